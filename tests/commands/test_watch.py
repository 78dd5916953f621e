"""`alignlab watch`: what is drawn, and what a pipe gets."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from alignlab.cli import main
from alignlab.commands import watch
from alignlab.commands.watch_text import Style, changes, cut, draw, sparkline
from alignlab.report.live import Snapshot, StageState
from alignlab.run import Store

PLAIN = Style()


def state(run: str, *inputs: str, **more: Any) -> StageState:
    reads = {str(i): source for i, source in enumerate(inputs)}
    fields = {"name": run.partition("-")[0], "kind": "toy", "seed": 0, "estimate": 0.0, **more}
    return StageState(run=run, inputs=reads, **fields)


def snapshot(*stages: StageState, active: bool = True) -> Snapshot:
    return Snapshot("mine", "alignlab run study=mine", 1000.0, 1100.0, 2, active, stages)


def running(**more: Any) -> StageState:
    rows = tuple(
        {"step": s, "time": float(s), "loss": 1.0 - s / 100, "kl": s / 10} for s in range(1, 33)
    )
    return state("dpo-0", "sft-0", status="running", steps=64, spent=32.0, rows=rows, **more)


def test_the_graph_has_a_mark_per_run_and_names_what_is_read() -> None:
    seen = snapshot(
        state("sft-0", status="cached"),
        state("sft-1", status="done"),
        state("dpo-0", "sft-0", status="running"),
        state("dpo-1", "sft-1"),
        state("ppo-0", "sft-0", status="failed", reason="out of memory"),
        state("eval-0", "ppo-0", "sft-0", status="blocked", reason="ppo failed"),
    )
    lines = draw(seen, PLAIN)
    assert lines[0] == "study mine  2 of 6 stages  1m40s so far  1 running  2 failed or blocked"
    assert "sft       ○●" in lines
    assert "  dpo     ▶·  ← sft" in lines
    assert "    eval  –   ← ppo, sft" in lines
    assert "✗ ppo  ppo-0  out of memory" in lines
    assert lines[-1] == "● done  ○ cached  ▶ running  · waiting  ✗ failed  – blocked"


def test_a_running_stage_has_a_bar_its_time_left_and_curves() -> None:
    lines = draw(snapshot(state("sft-0", status="done"), running()), PLAIN)
    [at] = [i for i, line in enumerate(lines) if line.startswith("▶ dpo")]
    assert lines[at] == "▶ dpo  seed 0  dpo-0  [########........] 32/64  32s, 32s left"
    assert re.fullmatch(r"    loss 0.68 █\S{18}▁   KL 3.200 ▁\S{18}█", lines[at + 1])


def test_a_stage_without_steps_shows_its_share_of_the_planned_time() -> None:
    seen = snapshot(state("eval-0", status="running", spent=30.0, estimate=40.0))
    assert any(
        "[############....] of the planned time  30s, 10s left" in x for x in draw(seen, PLAIN)
    )
    late = snapshot(state("eval-0", status="running", spent=90.0, estimate=40.0))
    assert any("[###############.] of the planned time" in x for x in draw(late, PLAIN))


def test_many_runs_of_a_name_are_counted() -> None:
    many = [state(f"sft-{i}", status="done" if i < 40 else "waiting") for i in range(60)]
    assert "sft  40● 20·" in draw(snapshot(*many), PLAIN)


def test_a_small_terminal_loses_settled_rows_first() -> None:
    old = [state(f"old{i}-0", status="done") for i in range(30)]
    new = [state(f"new{i}-0") for i in range(3)]
    style = Style(width=60, height=20)
    lines = draw(snapshot(*old, *new, running(name="busy")), style)
    assert len(lines) <= 20
    assert all(len(line) <= 60 for line in lines)
    text = "\n".join(lines)
    assert "more names, all finished" in text
    assert all(f"new{i}" in text for i in range(3))
    assert "▶ busy" in text


def test_colours_and_ascii() -> None:
    seen = snapshot(state("sft-0", status="failed", reason="bad"))
    assert "\x1b[31m✗\x1b[0m" in "\n".join(draw(seen, Style(colour=True)))
    ascii_text = "\n".join(draw(snapshot(state("sft-0"), running()), Style(unicode=False)))
    assert ascii_text.isascii()


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 0, 7, 7], 2, "▁█"),  # means of two
        ([3, 3, 3], 9, "▄▄▄"),  # flat, and never wider than it has values
        ([0, float("nan"), 1], 3, "▁ █"),
        ([float("inf")], 3, " "),
    ],
)
def test_sparkline_by_hand(values: list[float], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn


def test_cut_counts_what_is_seen() -> None:
    assert cut("\x1b[31mabc\x1b[0mdef", 6) == "\x1b[31mabc\x1b[0mdef"
    assert cut("\x1b[31mabc\x1b[0mdef", 5) == "\x1b[31mabc\x1b[0md…"
    assert cut("abcdef", None) == "abcdef"


def test_changes_are_one_line_each() -> None:
    before = snapshot(state("a-0"), state("b-0", status="running"))
    after = snapshot(
        state("a-0"),
        state("b-0", status="done", spent=61.0),
        state("c-0", status="failed", reason="no"),
    )
    assert changes(before, after) == [
        f"done     {'b-0':<28} b  1m01s",
        f"failed   {'c-0':<28} c  no",
    ]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    stages = {"toy-a": {"name": "a", "kind": "toy", "inputs": {}}}
    (folder / "study.json").write_text(json.dumps({"name": "mine", "jobs": [], "stages": stages}))
    return Store(tmp_path)


@pytest.mark.parametrize("words", [["watch"], ["watch", "mine"], ["watch", "--once"]])
def test_a_study_that_nobody_runs_is_shown_once(
    store: Store, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("study mine  0 of 1 stages  not running")
    assert "\x1b" not in out


def test_an_unknown_study_is_a_message(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "mind"]) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err


def test_no_study_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "none"))
    assert main(["watch"]) == 2
    assert "no study under" in capsys.readouterr().err


def test_a_pipe_gets_a_line_per_change_until_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    seen = [
        snapshot(state("a-0", status="running")),
        snapshot(state("a-0", status="running")),
        snapshot(state("a-0", status="done", spent=3.0), active=False),
    ]
    monkeypatch.setattr(watch.Watcher, "look", lambda _: seen.pop(0))
    assert main(["watch", "mine", "--every", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"done     {'a-0':<28} a  3s",
        "study mine  1 of 1 stages",
    ]
    assert not seen


def test_a_terminal_is_drawn_in_place_and_left_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    seen = [snapshot(state("a-0", status="running")), snapshot(state("a-0", status="running"))]

    def look(_: object) -> Snapshot:
        if not seen:
            raise KeyboardInterrupt
        return seen.pop()

    monkeypatch.setattr(watch.Watcher, "look", look)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["watch", "mine", "--every", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second = out.split("study mine")[1:]
    height = first.count("\n")
    assert first.endswith(f"\x1b[{height}F\x1b[1m")  # back to where the first picture began
    assert out.endswith("\x1b[?25h")  # the cursor is seen again
    assert second.count("\n") == height
