"""A small searched study, run for real: a trial that diverges, the choice, its test, its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.report.analysis import analyse
from alignlab.report.table import read_study
from alignlab.report.tuning.numbers import tunings
from alignlab.run import Store

STUDY = [
    "pipeline=preference",
    "experiment=smoke",
    "study=tuned",
    "tracking=disabled",
    "search=default",
    "budget.trials=3",
    "+search.space.preference={optimizer:{learning_rate:[1.0e-3,1.0e+30]}}",
    "reward@gold=length",
    "audit=null",
    "engine.threads=1",
]


@pytest.mark.long
def test_a_searched_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    store = Store(tmp_path / "runs")
    assert main(["run", *STUDY]) == 0  # a trial that diverged is a result

    [select] = [run for run in store.runs() if run.kind == "select"]
    record = select.record
    status = {t["settings"]["optimizer.learning_rate"]: t["status"] for t in record["trials"]}
    assert status == {3e-4: "done", 1e-3: "done", 1e30: "diverged"}
    values = {t["run"]: t["value"] for t in record["trials"] if t["status"] == "done"}
    assert values[record["chosen"]] == max(values.values())
    broken = next(t for t in record["trials"] if t["status"] == "diverged")
    assert store.find(broken["run"]).record["error_kind"] == "diverged"

    # The tested policy is the chosen one, file by file, and test prompts were read for it alone.
    tested = [r for r in store.runs() if r.record.get("inputs", {}).get("policy") == select.name]
    assert len(tested) == 1
    assert json.loads((tested[0].path / "config.json").read_text())["split"] == "test"
    model = store.find(record["chosen"]).model_dir
    names = sorted(p.name for p in model.iterdir())
    assert names == sorted(p.name for p in select.model_dir.iterdir())
    assert all((model / n).read_bytes() == (select.model_dir / n).read_bytes() for n in names)
    splits = {
        json.loads((run.path / "config.json").read_text())["split"]
        for run in store.runs()
        if run.name in {t["evaluation"] for t in record["trials"]} and run.done
    }
    assert splits == {"validation"}

    # The second command finds everything there, the diverged trial counted.
    capsys.readouterr()
    assert main(["plan", *STUDY]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["run", *STUDY]) == 0
    assert store.find(broken["run"]).record["error_kind"] == "diverged"

    # The selection is a policy for every command.
    assert main(["export", select.name, "--to", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "config.json").is_file()
    assert main(["runs", "show", select.name]) == 0
    assert "trials" in capsys.readouterr().out

    analysis = analyse(read_study("tuned", store), draws=20)
    [tuning] = tunings(analysis)
    assert (tuning.count, tuning.share("diverged")) == (3, pytest.approx(1 / 3))
    assert tuning.chosen[0].run == record["chosen"]
    page = (store.studies / "tuned/report/index.html").read_text(encoding="utf-8")
    assert 'id="tuning"' in page
