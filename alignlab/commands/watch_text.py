"""A study at one moment as lines for a terminal: its graph, what runs, what failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignlab.engine.progress import BAR, SHOWN, clock
from alignlab.report.live import Snapshot, StageState, Status
from alignlab.report.pace import factors, remaining, stage_left

MARKS: dict[Status, tuple[str, str, str]] = {  # drawn, in plain ASCII, colour of the terminal
    "done": ("●", "#", "32"),
    "cached": ("○", "o", "32"),
    "running": ("▶", ">", "36"),
    "queued": ("◦", ":", "33"),
    "waiting": ("·", ".", "2"),
    "stopped": ("■", "=", "33"),
    "failed": ("✗", "X", "31"),
    "blocked": ("–", "-", "31"),
}
TICKS = "▁▂▃▄▅▆▇█"
ASCII_TICKS = "_.-=+*#@"
CURVE = 20  # characters of a small curve
FULL = 24  # runs of one stage that are drawn one by one; more of them are counted
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Style:
    """What the terminal can show."""

    colour: bool = False
    unicode: bool = True
    width: int | None = None  # columns; None = lines may be of any length
    height: int | None = None

    def paint(self, text: str, code: str) -> str:
        """Colour a text, where there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def mark(self, status: Status) -> str:
        """One character for a state."""
        drawn, plain, code = MARKS[status]
        return self.paint(drawn if self.unicode else plain, code)


def draw(snapshot: Snapshot, style: Style) -> list[str]:
    """Draw the whole study; on a terminal cut to its size, settled stages first."""
    running = _running(snapshot, style)
    failed = _failed(snapshot, style)
    head = [headline(snapshot, style), ""]
    blocks = (running, queued(snapshot, style), failed, [_legend(snapshot, style)])
    tail = [line for block in blocks for line in _block(block)]
    tail += _block([snapshot.trouble])
    rows = _by_name(snapshot)
    room = None if style.height is None else max(3, style.height - len(head) - len(tail))
    lines = [*head, *_graph(rows, snapshot, style, room), *tail]
    lines = lines[: style.height] if style.height else lines
    return [cut(line, style.width) for line in lines]


def headline(snapshot: Snapshot, style: Style) -> str:
    """Name, counts, time spent and time left."""
    live = snapshot.live()
    parts = [
        style.paint(f"study {snapshot.study}", "1"),
        f"{live.done} of {live.total} stages",
    ]
    if snapshot.elapsed:
        parts.append(f"{clock(snapshot.elapsed)} so far" if snapshot.active else
                     f"took {clock(snapshot.elapsed)}")  # fmt: skip
    left = remaining(snapshot)
    if snapshot.active and left:
        parts.append(f"about {clock(left)} left")
    if live.running:
        parts.append(f"{live.running} running")
    if waits := len(snapshot.of("queued")):
        parts.append(f"{waits} queued")
    if live.failed:
        parts.append(style.paint(f"{live.failed} failed or blocked", "31"))
    if not snapshot.active and live.done + live.failed < live.total:
        parts.append("not running")
    return "  ".join(parts)


def _block(lines: Sequence[str]) -> list[str]:
    return ["", *lines] if any(lines) else []


def _by_name(snapshot: Snapshot) -> dict[str, list[StageState]]:
    """Stages under the name that the pipeline gives them, in the order of the graph."""
    rows: dict[str, list[StageState]] = {}
    for stage in snapshot.stages:
        rows.setdefault(stage.name, []).append(stage)
    return rows


def _graph(
    rows: dict[str, list[StageState]], snapshot: Snapshot, style: Style, room: int | None
) -> list[str]:
    """A line per stage name: its depth in the graph, a mark per run, what it reads."""
    names = {stage.run: stage.name for stage in snapshot.stages}
    depth: dict[str, int] = {}
    reads: dict[str, list[str]] = {}
    for name, stages in rows.items():
        sources = [names[i] for s in stages for i in s.inputs.values() if i in names]
        reads[name] = [source for source in dict.fromkeys(sources) if source != name]
        depth[name] = 1 + max((depth.get(source, 0) for source in reads[name]), default=-1)
    shown, folded = _fold(rows, room)
    left = max((2 * depth[name] + len(name) for name in shown), default=0)
    marks = {name: _marks(rows[name], style) for name in shown}
    middle = max((len(_COLOUR.sub("", text)) for text in marks.values()), default=0)
    arrow = "←" if style.unicode else "<-"
    lines = []
    for name in shown:
        gap = " " * (middle - len(_COLOUR.sub("", marks[name])))
        source = f"  {arrow} {', '.join(reads[name])}" if reads[name] else ""
        indented = "  " * depth[name] + name
        line = f"{indented:<{left}}  {marks[name]}{gap}{style.paint(source, '2')}"
        lines.append(line.rstrip())
    return [*lines, *(style.paint(line, "2") for line in folded)]


def _fold(rows: dict[str, list[StageState]], room: int | None) -> tuple[list[str], list[str]]:
    """Leave out whole rows that fit nowhere: finished ones first, then those whose turn comes."""
    shown = list(rows)
    folded: list[str] = []
    for words, what in ((("done", "cached"), "finished"), (("waiting", "queued"), "waiting")):
        if room is None or len(shown) + len(folded) <= room:
            break
        over = len(shown) + len(folded) + 1 - room
        gone = [n for n in shown if all(s.status in words for s in rows[n])][:over]
        if gone:
            shown = [name for name in shown if name not in set(gone)]
            folded.append(f"… and {len(gone)} more names, all {what}")
    return shown, folded


def _marks(stages: Sequence[StageState], style: Style) -> str:
    if len(stages) <= FULL:
        return "".join(style.mark(stage.status) for stage in stages)
    counts = {status: sum(s.status == status for s in stages) for status in MARKS}
    return " ".join(f"{n}{style.mark(status)}" for status, n in counts.items() if n)


def _running(snapshot: Snapshot, style: Style) -> list[str]:
    lines = []
    corrections = factors(snapshot)
    for stage in snapshot.of("running"):
        seed = "" if stage.seed is None else f"  seed {stage.seed}"
        left = stage_left(stage, corrections)
        times = f"{clock(stage.spent)}" + ("" if left is None else f", {clock(left)} left")
        lines.append(f"{style.mark('running')} {stage.name}{seed}  {stage.run}  {_bar(stage)}")
        lines[-1] += f"  {times}"
        curves = _curves(stage, style)
        if curves:
            lines.append(f"    {curves}")
    return lines


def queued(snapshot: Snapshot, style: Style) -> list[str]:
    """How many stages wait for a scheduler, by its reason, most first."""
    reasons = Counter(stage.reason for stage in snapshot.of("queued"))
    return [f"{style.mark('queued')} {n} queued: {why}" for why, n in reasons.most_common()]


def _bar(stage: StageState) -> str:
    """Share of the steps, or of the planned time where the stage takes no steps."""
    if stage.steps:
        share, text = stage.step / stage.steps, f" {stage.step}/{stage.steps}"
    elif stage.estimate > 0:
        share, text = min(0.99, stage.spent / stage.estimate), " of the planned time"
    else:
        return ""
    filled = int(BAR * min(share, 1.0))
    return "[" + "#" * filled + "." * (BAR - filled) + "]" + text


def _curves(stage: StageState, style: Style) -> str:
    parts = []
    for metric, (label, form) in SHOWN.items():
        values = stage.curve(metric)
        if values:
            ticks = TICKS if style.unicode else ASCII_TICKS
            small = style.paint(sparkline(values, CURVE, ticks), "36")
            parts.append(f"{label} {form.format(values[-1])} {small}")
    return "   ".join(parts)


def sparkline(values: Sequence[float], width: int, ticks: str = TICKS) -> str:
    """A curve in one line: means over ``width`` stretches; a gap where a number is not finite."""
    count = min(width, len(values))
    parts = [
        values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)
    ]
    means = [sum(part) / len(part) for part in parts]
    finite = [m for m in means if abs(m) < float("inf")]
    if not finite:
        return " " * count
    low, span = min(finite), max(finite) - min(finite)
    top = len(ticks) - 1
    return "".join(
        ticks[round((m - low) / span * top) if span else top // 2] if abs(m) < float("inf") else " "
        for m in means
    )


def _failed(snapshot: Snapshot, style: Style) -> list[str]:
    """Every failure with its reason, and how many stages each of them blocks."""
    lines = [
        f"{style.mark(stage.status)} {stage.name}  {stage.run}  {stage.reason or stage.status}"
        for stage in snapshot.of("failed", "stopped")
    ]
    causes = Counter(stage.reason for stage in snapshot.of("blocked"))
    blocked = [f"{style.mark('blocked')} {n} blocked: {why}" for why, n in causes.most_common()]
    return [*lines, *blocked]


def _legend(snapshot: Snapshot, style: Style) -> str:
    used = [status for status in MARKS if snapshot.of(status)]
    return "  ".join(f"{style.mark(status)} {status}" for status in used)


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """A plain line for every stage whose state is another one now, for logs and pipes."""
    old = {stage.run: stage.status for stage in before.stages}
    lines = []
    for stage in after.stages:
        if old.get(stage.run) != stage.status:
            spent = f"  {clock(stage.spent)}" if stage.status == "done" else ""
            reason = f"  {stage.reason}" if stage.reason else ""
            lines.append(f"{stage.status:<8} {stage.run:<28} {stage.name}{spent}{reason}")
    return lines


def cut(line: str, width: int | None) -> str:
    """Cut a line to the width of the terminal; colours take no room."""
    if width is None or len(_COLOUR.sub("", line)) <= width:
        return line
    out, room = [], width - 1
    for part in re.split(rf"({_COLOUR.pattern})", line):
        if _COLOUR.fullmatch(part):
            out.append(part)
        else:
            out.append(part[:room])
            room -= len(part[:room])
    return "".join(out) + "…"
