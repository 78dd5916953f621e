"""As ``python -m MODULE …`` in a process that can also locate toys: what jobs of tests run."""

from __future__ import annotations

import runpy
import sys

import toys

from alignlab import plan

if __name__ == "__main__":
    plan.locate = toys.locate
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
