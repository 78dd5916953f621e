"""The real worker process, which can also locate toys."""

from __future__ import annotations

import sys

import toys

from alignlab import plan
from alignlab.launch.worker import main

if __name__ == "__main__":
    plan.locate = toys.locate
    sys.exit(main())
