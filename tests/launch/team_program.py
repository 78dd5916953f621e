"""The real program of one stage, which can also locate teams and toys."""

from __future__ import annotations

import sys

import teams

from alignlab import plan
from alignlab.launch.program import main

if __name__ == "__main__":
    plan.locate = teams.locate
    sys.exit(main())
