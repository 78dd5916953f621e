"""`alignlab reproduce STUDY`: what differs here, what stands in the way, and do numbers agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from study_lab import ROWS, StudyLab, write_rows

from alignlab.cli import main
from alignlab.commands import differences as room
from alignlab.commands.reproduce_study import (
    Moved,
    cells,
    compare,
    config_of,
    moved,
    session_of,
)
from alignlab.commands.study_record import environment_state, paths_of
from alignlab.errors import ConfigError
from alignlab.stages.sft import SFT

Check = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> StudyLab:
    """A finished study of two seeds; tests only read it."""
    root = tmp_path_factory.mktemp("lab")
    lab = StudyLab(root / "runs", write_rows(root / "pairs.jsonl"), "seed=0,1")
    lab.record()
    lab.finish({0: 0.5, 1: 0.6})
    lab.record()
    return lab


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data" / "pairs.jsonl")


@pytest.fixture
def copied(tmp_path: Path, lab: StudyLab, data: Path) -> Path:
    """The study's folder on another machine, its data file in a place of its own."""
    text = (lab.folder / "record.json").read_text()
    folder = tmp_path / "copied"
    folder.mkdir()
    old = str(lab.store.root.parent / "pairs.jsonl")
    assert old in text
    (folder / "record.json").write_text(text.replace(old, str(data)))
    return folder


@pytest.fixture
def check(
    tmp_path: Path,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Check:
    """`reproduce --check` of a copied study folder, on a machine without the store."""
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "elsewhere"))

    def call(*options: str) -> tuple[int, str]:
        code = main(["reproduce", str(copied), "--check", *options])
        out, err = capsys.readouterr()
        assert not (tmp_path / "elsewhere").exists()  # nothing was begun
        return code, out + err

    return call


def faked(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    state = {**environment_state(), **changes}
    monkeypatch.setattr(room, "environment_state", lambda: state)


@pytest.mark.slow
def test_nothing_differs(check: Check) -> None:
    code, said = check()
    assert (code, "nothing differs" in said) == (0, True)


def test_another_version_of_a_package(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {**environment_state()["packages"], "torch": "9.9"}
    del packages["trl"]
    faked(monkeypatch, packages=packages)
    code, said = check()
    assert code == 1
    assert "then, 9.9 now" in said
    assert "packages.trl: " in said
    assert "then, None now" in said


def test_another_code_state(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, sources="0" * 64, git={"commit": "f" * 40, "dirty": True})
    code, said = check()
    assert code == 1
    assert "now" in said
    assert "commit fffffffff, with changes, modules 000000000000 now" in said


def test_another_commit_with_the_same_modules_is_no_difference(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    faked(monkeypatch, git={"commit": "f" * 40, "dirty": True})
    assert check()[0] == 0


def test_another_version_of_a_stage(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SFT.version + 1
    monkeypatch.setattr(SFT, "version", now)
    code, said = check()
    assert code == 1
    assert f"sft: version {now - 1} of its arithmetic then, {now} now" in said


def test_a_changed_data_file_is_named(check: Check, data: Path) -> None:
    before = data.stat().st_size
    write_rows(data, ROWS[:39])
    code, said = check()
    assert code == 2
    assert f"data.path: {data}: pairs.jsonl had {before} bytes then and has " in said
    assert "cannot be reproduced here" in said


def test_a_change_that_keeps_the_size(check: Check, data: Path) -> None:
    data.write_text(data.read_text().replace("good", "bood"))
    code, said = check()
    assert code == 2
    assert "the same size and another content" in said


def test_a_missing_file_and_where_it_is(check: Check, data: Path, tmp_path: Path) -> None:
    new = tmp_path / "else.jsonl"
    data.rename(new)
    code, said = check()
    assert code == 2
    assert f"--data {data}=PATH" in said
    assert check("--data", f"{data}={new}")[0] == 0
    assert check("--data", f"{data.parent}={new.parent}")[0] == 2  # pairs.jsonl is not there
    write_rows(new, ROWS[:10])
    assert "had" in check("--data", f"{data}={new}")[1]


def test_moved_words_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OLD=NEW"):
        moved(["a"], ".")
    with pytest.raises(ConfigError, match="there is no"):
        moved([f"a={tmp_path / 'b'}"], ".")


def test_paths_follow_the_folder_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    then, now = tmp_path / "then", tmp_path / "now"
    write_rows(then / "rows.jsonl")
    now.mkdir()
    monkeypatch.chdir(now)
    config = {"data": {"path": "rows.jsonl"}, "label": "rows.jsonl"}
    found = Moved((), str(then))(config)
    assert found == {"data": {"path": str(then / "rows.jsonl")}, "label": "rows.jsonl"}
    write_rows(now / "rows.jsonl")
    assert Moved((), str(then))(config) == config  # here it is, too


@pytest.mark.parametrize(
    ("now", "differs"),
    [("rows times-of-now", False), ("other times-of-now", True), ("rows times-of-then x", True)],
)
def test_a_model_folder_is_the_same_when_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, differs: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights").write_bytes(b"123")
    config = {"backbone": {"path": str(tmp_path)}, "data": {"_target_": "x.Rows"}}
    stage = {"name": "sft", "kind": "sft", "version": 1, "reads": "r"}
    reads = {"r": {"fingerprint": "rows times-of-then", "paths": paths_of(config)}}
    record = {"stages": {"sft-a": stage}, "reads": reads, "states": {}}
    built = SimpleNamespace(version=1, fingerprint=lambda: now)
    monkeypatch.setattr(room, "build_stage", lambda *_: built)
    assert bool(room.differences(record, {"sft-a": config}).data) is differs


def test_names_are_told_apart(lab: StudyLab, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("ALIGNLAB_RUNS", str(lab.store.root))
    assert main(["reproduce", "mine", "--check"]) == 0
    assert main(["reproduce", "mind"]) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err
    run = lab.session.plan.pending()[0].run
    assert main(["reproduce", run, "--data", "a=b"]) == 2
    assert "for studies" in capsys.readouterr().err


def test_an_old_study_has_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    (tmp_path / "studies" / "old").mkdir(parents=True)
    (tmp_path / "studies" / "old" / "study.json").write_text("{}")
    assert main(["reproduce", "old"]) == 2
    assert "given again" in capsys.readouterr().err


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_equal_studies_are_reproduced_bit_for_bit(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(read(copied), copied) == 0
    out = capsys.readouterr().out
    assert "10 of 10 runs came out the same" in out
    assert "bit for bit" in out


@pytest.mark.parametrize(
    ("shift", "code", "word"), [(0.02, 0, "within the noise"), (0.9, 1, "NOT reproduced")]
)
def test_other_bits_are_compared_with_the_noise_of_the_seeds(
    copied: Path, capsys: pytest.CaptureFixture[str], shift: float, code: int, word: str
) -> None:
    then, now = read(copied), read(copied)
    for stage in now["stages"].values():
        stage["result"] = "other bits"
        if stage["kind"] == "evaluate":
            stage["summary"]["gold"] += shift  # 0.5 and 0.6: sd 0.07, of a mean 0.05
            stage["summary"]["audit"] += 5  # of no weight: gold is what methods are judged by
    (copied / "record.json").write_text(json.dumps(now))
    assert compare(then, copied) == code
    out = capsys.readouterr().out
    assert "0 of 10 runs came out the same" in out
    assert word in out
    verdict = json.loads((copied / "agreement.json").read_text())
    assert word in verdict["verdict"]
    assert len(verdict["numbers"]) == 2  # gold of SFT and of the policy


def test_a_record_without_results_cannot_be_compared(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then = read(copied)
    for stage in then["stages"].values():
        stage["result"] = None
    assert compare(then, copied) == 2
    assert "no results" in capsys.readouterr().out


def test_stages_that_cannot_be_run_are_named(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then, now = read(copied), read(copied)
    for side, kind in ((then, "annotate"), (now, "annotate"), (now, "preference")):
        for stage in side["stages"].values():
            if stage["kind"] == kind:
                stage["result"] = None  # annotate never ended, preference did and fails here
    (copied / "record.json").write_text(json.dumps(now))
    assert compare(then, copied) == 2
    assert "cannot be compared: preference, preference could not" in capsys.readouterr().out


def test_methods_are_told_apart_by_what_they_read(lab: StudyLab) -> None:
    record = read(lab.folder)
    runs = {run: (stage, stage) for run, stage in record["stages"].items()}
    found = cells(record, runs)
    # both evaluations have one configuration; SFT's reads another policy
    assert [cell.then for cell in found] == [{0: 0.5, 1: 0.6}] * 2
    assert len({cell.method for cell in found}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["grid={preference: {objective.beta: [0.05, 0.2]}}", "seed=0,1"],
        ["pipeline=compare", "search=default", "budget.trials=2"],
        ["pipeline=compare", "/stage@assess.judge=judge"],
    ],
    ids=["grid", "search", "assess"],
)
def test_the_stages_of_a_design_are_planned_again_from_the_record(
    tmp_path: Path, overrides: list[str]
) -> None:
    words = [word.replace("/stage@", "+stage@") for word in overrides]
    lab = StudyLab(tmp_path / "runs", None, *words)
    record = lab.record()
    configs = {run: config_of(record, run) for run in record["stages"]}
    again = session_of(record, configs, tmp_path / "again").plan
    assert list(again.nodes) == list(lab.session.plan.nodes)  # the same keys, in the same order
    assert [dict(job.stages) for job in again.jobs] == [job["stages"] for job in record["jobs"]]


@pytest.mark.long
def test_a_copied_study_is_run_again_on_a_machine_without_its_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "here"))
    words = ["experiment=smoke", "pipeline=preference", "tracking=disabled", "study=small"]
    assert main(["run", *words]) == 0
    before = (tmp_path / "here" / "studies" / "small" / "study.json").read_text()
    capsys.readouterr()
    assert main(["reproduce", "small", "--to", str(tmp_path / "here")]) == 0  # the same store
    assert "5 stages, 5 in the store" in capsys.readouterr().out
    assert (tmp_path / "here" / "studies" / "small" / "study.json").read_text() == before
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "here" / "studies" / "small" / "report", copied)
    shutil.rmtree(tmp_path / "here")
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "there"))
    capsys.readouterr()
    assert main(["reproduce", str(copied)]) == 0
    out = capsys.readouterr().out
    assert "reproduced: every run is the same, bit for bit" in out
    [store] = (tmp_path / "there" / "reproductions").iterdir()
    assert len(list(store.glob("sft-*"))) == 1  # shared by both evaluations
