"""The state of a study's stages and the time it still needs, from files written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_study import FakeStore
from study_folder import STARTED, StudyFolder, stage

from alignlab.commands.refresh import retire
from alignlab.errors import DataError
from alignlab.report.live import LiveState, Snapshot, StageState, Tail, Watcher, newest
from alignlab.report.pace import factors, remaining, schedule, stage_left, step_seconds
from alignlab.report.page import build_report

Make = Callable[..., StudyFolder]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[StudyFolder] = []

    def folder(*stages: dict[str, Any], width: int = 1) -> StudyFolder:
        made.append(StudyFolder(tmp_path, *stages, width=width))
        return made[-1]

    yield folder
    for each in made:
        each.end()


def look(study: StudyFolder) -> Snapshot:
    return Watcher("s", study.store).look()


def statuses(study: StudyFolder) -> dict[str, str]:
    return {s.name: s.status for s in look(study).stages}


def test_every_state_of_a_stage(make: Make) -> None:
    study = make(
        *map(stage, ("old", "new", "busy", "next", "broken")),
        stage("after", "broken"),
        stage("wide", "broken", tolerant=True),
    )
    study.done("old", at=STARTED - 1)
    study.done("new", at=STARTED + 1)
    study.begin("busy")
    study.run("broken").update_record(error="out of luck")
    study.told("broken", "failed", "out of luck")
    found = {s.name: s for s in look(study).stages}
    assert {name: s.status for name, s in found.items()} == {
        "old": "cached",  # finished before this study started
        "new": "done",
        "busy": "running",
        "next": "waiting",
        "broken": "failed",
        "after": "blocked",
        "wide": "waiting",  # its role is content with what is left
    }
    assert found["broken"].reason == "out of luck"
    assert found["after"].reason == "broken failed"
    assert found["busy"].spent == pytest.approx(7, abs=2)
    assert look(study).live() == LiveState(done=2, total=7, running=1, failed=2)


def test_a_failure_of_an_earlier_command_is_waiting_while_a_new_one_works(make: Make) -> None:
    study = make(stage("a"), stage("b", "a"))
    study.run("a").update_record(error="of last time")
    study.told("a", "failed", "of last time", at=STARTED - 5)
    assert statuses(study) == {"a": "failed", "b": "blocked"}  # nobody works on it
    study.lease(study.folder / "launchers" / "here-1")
    assert statuses(study) == {"a": "waiting", "b": "waiting"}


def test_a_stage_that_lost_all_it_could_read_is_blocked(make: Make) -> None:
    study = make(stage("try"), stage("select", "try", tolerant=True))
    study.told("try", "failed", "diverged")
    study.told("select", "blocked", "try (toy-try) failed")
    assert statuses(study) == {"try": "failed", "select": "blocked"}


@pytest.mark.slow
def test_a_page_of_a_stopped_study_is_the_page_of_no_running_one(small: FakeStore) -> None:
    state = LiveState(done=3, total=9, running=2, failed=1)
    page = build_report("demo", small, live=state)
    assert "3 of 9 stages" in page.read_text()
    assert 'data-beat="' in page.read_text()
    assert list(page.parent.glob("*.png"))
    assert not list(page.parent.glob("*.pdf"))  # half of the work, and nobody prints a draft
    retire(page)
    stopped = page.read_text()
    assert stopped == build_report("demo", small).read_text()
    assert list(page.parent.glob("*.pdf"))


def test_a_killed_study_is_not_active(make: Make) -> None:
    study = make(stage("a"), stage("b"))
    study.begin("a")
    assert look(study).active
    study.end()  # as when its process is gone
    seen = look(study)
    assert not seen.active
    assert statuses(study) == {"a": "stopped", "b": "waiting"}


def test_the_time_spent_ends_with_the_last_stage(make: Make) -> None:
    study = make(stage("a"), stage("b"))
    study.done("a", at=STARTED + 30)
    assert look(study).elapsed == 30
    study.done("b", at=STARTED + 45)
    assert look(study).elapsed == 45


def test_rows_come_in_as_they_are_written(make: Make) -> None:
    study = make(stage("a"))
    study.begin("a", {"step": 1, "time": 5.0, "loss": 0.5}, steps=8)
    study.rows("a", {"split": "validation", "step": 1, "time": 5.0, "loss": 9.0})
    watcher = Watcher("s", study.store)
    [seen] = watcher.look().stages
    assert (seen.step, seen.steps, seen.curve("loss")) == (1, 8, [0.5])
    study.rows("a", {"step": 2, "time": 6.0, "loss": "nan"})
    [seen] = watcher.look().stages
    assert seen.step == 2
    assert str(seen.curve("loss")) == "[0.5, nan]"


def test_a_tail_leaves_torn_lines_and_starts_again_when_rewound(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    tail = Tail(file)
    assert tail.read() == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in tail.read()] == [1, 2]
    with file.open("a") as stream:
        stream.write('ep": 3}\n')
    assert [row["step"] for row in tail.read()] == [1, 2, 3]
    file.write_text('{"step": 1}\n')
    assert [row["step"] for row in tail.read()] == [1]


def test_a_study_file_of_an_older_version_is_read(make: Make) -> None:
    study = make(stage("a"), stage("b", "a"))
    raw = json.loads((study.folder / "study.json").read_text())
    for key in ("stages", "started", "width"):
        del raw[key]
    (study.folder / "study.json").write_text(json.dumps(raw))
    study.done("a")
    study.run("b").update_record(inputs={"left": "toy-a"}, error="broken")
    seen = {s.name: s for s in look(study).stages}
    assert (seen["a"].status, seen["b"].status) == ("done", "failed")
    assert seen["b"].inputs == {"left": "toy-a"}


def test_a_study_that_is_started_again_is_read_again(make: Make) -> None:
    study = make(stage("a"))
    watcher = Watcher("s", study.store)
    assert [s.name for s in watcher.look().stages] == ["a"]
    file = study.folder / "study.json"
    raw = json.loads(file.read_text())
    raw["stages"]["toy-b"] = stage("b")
    file.write_text(json.dumps(raw))
    os.utime(file, ns=(1, 1))
    assert [s.name for s in watcher.look().stages] == ["a", "b"]


def test_a_damaged_study_file_is_named(make: Make) -> None:
    study = make(stage("a"))
    (study.folder / "study.json").write_text("{")
    with pytest.raises(DataError, match=r"study\.json cannot be read"):
        look(study)


def test_newest_is_the_study_started_last(make: Make) -> None:
    study = make(stage("a"))
    other = study.store.studies / "a-later-one"
    other.mkdir()
    (other / "study.json").write_text("{}")
    os.utime(study.folder / "study.json", (10, 10))
    assert newest(study.store) == "a-later-one"
    os.utime(other / "study.json", (5, 5))
    assert newest(study.store) == "s"


def state(run: str, *inputs: str, **more: Any) -> StageState:
    reads = {str(i): source for i, source in enumerate(inputs)}
    fields = {"name": run, "kind": "toy", "seed": 0, "estimate": 0.0, **more}
    return StageState(run=run, inputs=reads, **fields)


def snapshot(*stages: StageState, width: int = 1) -> Snapshot:
    return Snapshot("s", "", STARTED, STARTED + 100, width, True, stages)


def test_the_schedule_by_hand() -> None:
    stages = [state("a"), state("b", "a"), state("c", "a"), state("d", "b", "c")]
    seconds = {"a": 4.0, "b": 3.0, "c": 5.0, "d": 1.0}
    assert schedule(stages, seconds, 1) == 13  # 4 + 3 + 5 + 1
    assert schedule(stages, seconds, 2) == 10  # 4, then 3 beside 5, then 1
    assert schedule(stages, seconds, 9) == 10
    assert schedule([], {}, 1) == 0
    # an input that is already done is no reason to wait
    assert schedule([state("b", "done long ago")], {"b": 3.0}, 1) == 3


def test_the_pace_of_steps_ignores_a_pause() -> None:
    rows = tuple({"step": s, "time": t} for s, t in ((1, 0.0), (2, 2.0), (3, 900.0), (4, 902.0)))
    assert step_seconds(state("a", rows=rows)) == 2.0  # of 2, 898, 2
    assert step_seconds(state("a", rows=rows[:1])) is None
    every_fifth = tuple({"step": s, "time": float(s)} for s in (5, 10, 15))
    assert step_seconds(state("a", rows=every_fifth)) == 1.0


def test_what_is_left_of_a_stage() -> None:
    rows = tuple({"step": s, "time": 2.0 * s} for s in range(1, 11))
    training = state("a", status="running", steps=64, rows=rows, estimate=5.0)
    assert stage_left(training, {}) == 108.0  # 54 steps of 2 seconds, whatever was planned
    sampling = state("b", status="running", spent=15.0, estimate=20.0)
    assert stage_left(sampling, {"toy": 2.0}) == 25.0  # twice as slow as planned: 40 − 15
    assert stage_left(state("c"), {}) is None


def test_remaining_corrects_the_plan_by_what_stages_took() -> None:
    done = state("a", status="done", estimate=10.0, spent=30.0)
    assert factors(snapshot(done)) == {"toy": 3.0, "": 3.0}
    two = [state(r, status="waiting", estimate=20.0) for r in "bc"]
    assert remaining(snapshot(done, *two)) == 120.0  # 2 · 20 · 3, one after another
    assert remaining(snapshot(done, *two, width=2)) == 60.0
    other = state("d", status="waiting", estimate=5.0, kind="other")
    assert remaining(snapshot(done, other)) == 15.0  # no such kind yet: the factor of all


def test_remaining_without_estimates_takes_what_like_stages_took() -> None:
    assert remaining(snapshot(state("b", status="waiting"))) is None
    done = state("a", status="done", spent=30.0)
    assert remaining(snapshot(done, state("b", status="waiting"))) == 30.0
    assert remaining(snapshot(done, state("b", status="running", spent=10.0))) == 20.0
    assert remaining(snapshot(done)) == 0.0
