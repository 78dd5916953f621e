"""A study's folder: the graph before the first stage, what was told of each, who is at work."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from study_lab import StudyLab

from alignlab.launch.task import Outcome
from alignlab.lease import identity
from alignlab.report.live import Watcher, launcher_lease
from alignlab.report.table import read_study


@pytest.fixture
def lab(tmp_path: Path) -> StudyLab:
    return StudyLab(tmp_path, None, "seed=0,1")


@pytest.mark.slow
def test_the_study_file_is_the_whole_graph(lab: StudyLab) -> None:
    before = time.time()
    lab.file.open(2)
    study = json.loads((lab.folder / "study.json").read_text())
    assert (study["name"], study["width"]) == ("mine", 2)
    assert before - 1 <= study["started"] <= time.time()
    assert [job["seed"] for job in study["jobs"]] == [0, 1]
    seen: set[str] = set()
    for run, stage in study["stages"].items():
        assert set(stage["inputs"].values()) <= seen, "inputs come before what reads them"
        assert run.startswith(f"{stage['kind']}-")
        assert stage["seconds"] >= 0
        seen.add(run)
    assert seen == {run for job in study["jobs"] for run in job["stages"].values()}
    assert {stage["name"] for stage in study["stages"].values()} == set(study["jobs"][0]["stages"])
    [policy, _] = [s for s in study["stages"].values() if s["kind"] == "preference"]
    assert policy["inputs"]["init"] == study["jobs"][0]["stages"]["sft"]


@pytest.mark.slow
def test_the_report_still_reads_it(lab: StudyLab) -> None:
    lab.file.open(1)
    assert read_study("mine", lab.store).seeds == [0, 1]


@pytest.mark.slow
def test_the_second_command_keeps_the_day_of_the_first(lab: StudyLab) -> None:
    lab.file.open(1)
    file = lab.folder / "study.json"
    study = json.loads(file.read_text()) | {"created": "2026-01-01T00:00:00"}
    file.write_text(json.dumps(study))
    lab.file.open(1)
    assert json.loads(file.read_text())["created"] == "2026-01-01T00:00:00"


@pytest.mark.slow
def test_a_stage_that_may_lose_inputs_says_so(tmp_path: Path) -> None:
    lab = StudyLab(tmp_path, None, "pipeline=compare", "search=default", "budget.trials=2")
    lab.file.open(1)
    stages = json.loads((lab.folder / "study.json").read_text())["stages"]
    assert {s["kind"] for s in stages.values() if s.get("tolerant")} == {"select"}


@pytest.mark.slow
def test_outcomes_are_told_line_by_line(lab: StudyLab) -> None:
    lab.file.open(1)
    node = lab.session.plan.pending()[0]
    lab.file.settled(Outcome(node.run, node.name, "failed", 2.5, "no luck", 1))
    [row] = map(json.loads, (lab.folder / "outcomes.jsonl").read_text().splitlines())
    assert row.pop("time") == pytest.approx(time.time(), abs=60)
    assert row == {
        "run": node.run, "name": node.name, "status": "failed", "seconds": 2.5, "reason": "no luck",
    }  # fmt: skip
    seen = {s.run: s for s in Watcher("mine", lab.store).look().stages}
    assert (seen[node.run].status, seen[node.run].reason) == ("failed", "no luck")


@pytest.mark.slow
def test_a_command_at_work_is_seen_and_a_dead_one_is_cleared(lab: StudyLab) -> None:
    lab.file.open(1)
    dead = lab.folder / "launchers" / "elsewhere-1"
    dead.mkdir(parents=True)
    gone = {**identity(), "pid": 2**22 + 1}  # more than Linux gives
    (dead / "000001.json").write_text(json.dumps(gone))
    assert not Watcher("mine", lab.store).look().active
    with lab.file.at_work():
        [mine] = (lab.folder / "launchers").iterdir()
        assert launcher_lease(lab.folder, mine.name).live()
        assert Watcher("mine", lab.store).look().active
    assert not list((lab.folder / "launchers").iterdir())
    assert not Watcher("mine", lab.store).look().active
