"""What the person at the terminal sees."""

from __future__ import annotations

import io

from alignlab.engine.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_clock():
    assert [clock(s) for s in (3.4, 59.6, 185, 7620)] == ["3s", "1m00s", "3m05s", "2h07m"]


def test_line_by_hand():
    progress = Progress("ppo-ab", 100, start=20, stream=io.StringIO())
    progress.update(
        40, {"loss": 0.12345, "reward": 1.5, "kl": 2.25, "tokens_per_second": 12345.0, "x": 1.0}
    )
    began = progress._began
    # 20 steps of this session in 10 s, 60 to go: 30 s
    assert progress.line(began + 10) == (
        "ppo-ab 40/100  loss 0.1235  reward +1.500  KL 2.250  12.3k tok/s  30s left"
    )
    progress.update(100)
    assert progress.line(began + 61).endswith("done in 1m01s")


def test_plain_lines_are_rare_and_the_last_is_never_missing():
    stream = io.StringIO()
    with Progress("sft-1", 1000, stream=stream, every=3600) as progress:
        for step in range(1, 501):
            progress.update(step, {"loss": float(step)})
    [line] = stream.getvalue().splitlines()  # only the one at the end: the hour is not over
    assert line.startswith("sft-1 500/1000  loss 500  ")
    assert "\r" not in line


def test_a_terminal_has_one_live_line():
    stream = Terminal()
    with Progress("sft-1", 4, stream=stream) as progress:
        for step in range(1, 5):
            progress.update(step)
    text = stream.getvalue()
    assert text.startswith("\rsft-1 ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "4/4 [################]" in text


def test_silence():
    stream = Terminal()
    with Progress("sft-1", 4, stream=stream, shown=False) as progress:
        progress.update(4)
    assert stream.getvalue() == ""
