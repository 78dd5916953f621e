"""The program of one stage, with a slow sampler: process 1 gets a signal in its second rollout.

``python interrupted_program.py TASK.json DRAW``: SIGUSR1 comes to process 1 alone, when it draws
its DRAW-th token; 0: never, and the sampler is as fast as ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from typing import Any

from alignlab import interruption
from alignlab.launch.program import main
from alignlab.rollout import slots

if __name__ == "__main__":
    task, stop = sys.argv[1], int(sys.argv[2])
    draw, draws = slots._Slots._draw, count(1)

    def slowly(self: Any) -> Any:
        number = next(draws)
        if stop and number >= stop:
            time.sleep(0.3)
        if number == stop and os.environ["RANK"] == "1":
            print(f"asked at {time.time()}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGUSR1)
        return draw(self)

    slots._Slots._draw = slowly  # type: ignore[method-assign]
    if stop:
        interruption.PATIENCE_SECONDS = 0.5
    code = main([task, "--here"])
    print(f"left at {time.time()} after {next(draws) - 1} draws", file=sys.stderr, flush=True)
    sys.exit(code)
