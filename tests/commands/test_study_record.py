"""The record of a study: everything that running it again needs, and nothing twice."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from study_lab import StudyLab, write_rows

from alignlab import files
from alignlab.commands import study_record
from alignlab.commands.study_record import describe, is_path, leaves, paths_of, standard_errors
from alignlab.errors import DataError
from alignlab.run import Store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl")


@pytest.mark.slow
def test_a_record_before_and_after_the_study(tmp_path: Path, data: Path) -> None:
    lab = StudyLab(tmp_path / "runs", data, "seed=0,1")
    record = lab.record()
    assert len(record["stages"]) == 10
    assert len(record["configs"]) == 4  # seeds share them, and so do the two evaluations
    assert {stage["result"] for stage in record["stages"].values()} == {None}
    assert record["states"] == {}
    [job, _] = record["jobs"]
    policy = record["stages"][job["stages"]["preference"]]
    assert policy["inputs"]["init"] == job["stages"]["sft"]
    assert policy["kind"] == "preference"

    lab.finish()
    record = lab.record()
    [state] = record["states"].values()
    assert state["packages"]["torch"]
    assert state["threads"] == 1
    evaluation = record["stages"][job["stages"]["evaluate"]]
    assert evaluation["summary"] == {"gold": 0.5, "audit": 0.25}
    # prompts 0.25 and 0.75: sd √0.125, over √2
    assert evaluation["error"]["gold"] == pytest.approx(math.sqrt(0.125 / 2))
    assert evaluation["result"] != policy["result"]


def test_the_files_behind_the_data_are_hashed(tmp_path: Path, data: Path) -> None:
    record = StudyLab(tmp_path, data).record()
    [read] = {json.dumps(r["paths"]) for r in record["reads"].values() if r["paths"]}
    content = data.read_bytes()
    assert json.loads(read) == {
        "data.path": {
            "path": str(data),
            "files": [
                {
                    "name": "pairs.jsonl",
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            ],
        }
    }
    assert "Question" not in json.dumps(record)  # no row of the data is in it


@pytest.mark.slow
def test_a_record_is_small(tmp_path: Path) -> None:
    lab = StudyLab(tmp_path, None, "pipeline=compare", "seed=0,1")
    lab.finish()
    lab.record()
    assert (lab.folder / "record.json").stat().st_size < 1500 * len(lab.session.plan.nodes)


@pytest.mark.slow
def test_finished_runs_are_read_once(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = StudyLab(tmp_path, data)
    lab.finish()
    first = lab.record()
    monkeypatch.setattr(study_record, "result_of", lambda _: pytest.fail("read again"))
    assert lab.record() == first


@pytest.mark.slow
def test_a_copy_lies_beside_the_page(tmp_path: Path, data: Path) -> None:
    lab = StudyLab(tmp_path, data)
    (lab.folder / "report").mkdir(parents=True)
    record = lab.record()
    assert files.read_json(lab.folder / "report" / "record.json") == record


def test_a_folder_without_a_record_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The command in its study\.json, given again"):
        study_record.read(tmp_path / "record.json")
    (tmp_path / "record.json").write_text('{"format": 99, "stages": {}}')
    with pytest.raises(DataError, match="format 99, known: 1"):
        study_record.read(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.path", "pairs.jsonl", True),
        ("gold.words", "lists/good.txt", True),
        ("data.test_path", "held.jsonl", True),
        ("data.path", "https://example.org/x.jsonl", False),
        ("label", "DPO", False),
        ("data.path", None, False),
        ("prompt", "a\nb/c", False),
    ],
)
def test_what_can_be_a_path(key: str, value: object, expected: bool) -> None:
    assert is_path(key, value) is expected


def test_leaves_and_folders(tmp_path: Path) -> None:
    assert dict(leaves({"a": {"b": 1}, "c": [2, {"d": 3}]})) == {"a.b": 1, "c.0": 2, "c.1.d": 3}
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "x.bin").write_bytes(b"123")
    assert [(f["name"], f["bytes"]) for f in describe(folder)] == [
        ("config.json", 2),
        ("sub/x.bin", 3),
    ]
    found = paths_of({"backbone": {"path": str(folder)}, "data": {"path": "not/there"}})
    assert list(found) == ["backbone.path"]


def test_large_files_of_a_model_are_told_by_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_record, "LARGE", 2)
    (tmp_path / "weights").write_bytes(b"123")
    assert describe(tmp_path)[0]["sha256"] is None
    assert describe(tmp_path / "weights")[0]["sha256"]  # named by itself it is data


def test_standard_errors_are_over_prompts_not_samples(tmp_path: Path) -> None:
    run = Store(tmp_path).run("judge", "a")
    for prompt, win in (("p", 1.0), ("p", 0.0), ("q", 1.0), ("q", 1.0), ("r", 0.0), ("r", 0.0)):
        run.sample({"prompt_id": prompt, "win": win})
    # prompt means 0.5, 1, 0: variance 0.25, over 3 prompts
    assert standard_errors(run) == {"win_rate": pytest.approx(math.sqrt(0.25 / 3))}
    assert standard_errors(Store(tmp_path).run("sft", "a")) == {}
