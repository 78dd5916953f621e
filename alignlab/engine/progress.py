"""What a person sees while a model trains: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

SHOWN = {  # metric name -> (label, format), in the order shown
    "loss": ("loss", "{:.4g}"),
    "reward": ("reward", "{:+.3f}"),
    "kl": ("KL", "{:.3f}"),
    "accuracy": ("acc", "{:.2f}"),
}
BAR = 16  # characters
REDRAW_SECONDS = 0.1


class Progress:
    """Progress of one training: step, loss, reward, KL, tokens/s, time left.

    ``every`` is the time in seconds between plain lines when ``stream`` is not a terminal.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        *,
        start: int = 0,
        shown: bool = True,
        stream: TextIO | None = None,
        every: float = 30.0,
    ) -> None:
        self.name, self.steps, self.step, self.start = name, steps, start, start
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._shown = shown
        self._gap = REDRAW_SECONDS if self._live else every
        self._metrics: dict[str, float] = {}
        self._began = self._last = time.monotonic()
        self._printed = -1

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report a finished step, and the newest metrics if there are any."""
        self.step = step
        self._metrics.update(metrics or {})
        now = time.monotonic()
        if self._shown and (now - self._last >= self._gap or step == self.steps):
            self._last = now
            self._print(now)

    def line(self, now: float) -> str:
        """Write the line as of time ``now`` (of ``time.monotonic``)."""
        done = self.step - self.start
        parts = [f"{self.name} {self.step}/{self.steps}"]
        if self._live:
            filled = BAR * self.step // max(self.steps, 1)
            parts[0] += " [" + "#" * filled + "." * (BAR - filled) + "]"
        for metric, (label, form) in SHOWN.items():
            if metric in self._metrics:
                parts.append(f"{label} {form.format(self._metrics[metric])}")
        if "tokens_per_second" in self._metrics:
            parts.append(f"{_short(self._metrics['tokens_per_second'])} tok/s")
        elapsed = now - self._began
        if self.step >= self.steps:
            parts.append(f"done in {clock(elapsed)}")
        elif done:
            parts.append(f"{clock(elapsed / done * (self.steps - self.step))} left")
        return "  ".join(parts)

    def _print(self, now: float) -> None:
        text = self.line(now)
        self._printed = self.step
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + text[:width].ljust(width))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last line standing, so that what follows begins on its own."""
        if not self._shown:
            return
        if self.step > self.start and self._printed != self.step:
            self._print(time.monotonic())
        if self._live and self._printed >= 0:
            self._stream.write("\n")
            self._stream.flush()


def clock(seconds: float) -> str:
    """Seconds as ``42s``, ``3m05s`` or ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
