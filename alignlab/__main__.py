"""``python -m alignlab``."""

from __future__ import annotations

import sys

from alignlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
