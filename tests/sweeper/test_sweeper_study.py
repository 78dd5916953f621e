"""Sweeps with Optuna through the command line, on toys: results, resumption, failures, files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import sweep_toys

from alignlab.cli import main
from alignlab.run import Store

optuna = pytest.importorskip("optuna", reason="hydra/sweeper=optuna needs the package optuna")

SWEEP = [
    "hydra/sweeper=optuna",
    "hydra.sweeper.objective=bowl/loss",
    "hydra.sweeper.direction=minimize",
    "stages.bowl.x=interval(0,1)",
    "study=s",
]


def run(*words: str) -> int:
    return main(["run", "-m", *SWEEP, *words])


def trials(store: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((store / "studies/s/trials.json").read_text())[
        "trials"
    ]
    return content


@pytest.mark.slow
def test_trials_are_run_and_their_best_one_is_told(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("hydra.sweeper.n_trials=5", "hydra/sweeper/sampler=random") == 0
    found = trials(toys)
    assert [row["state"] for row in found] == ["done"] * 5
    for row in found:  # (x − 0.3)² with seed 0
        assert row["values"][0] == pytest.approx((row["params"]["stages.bowl.x"] - 0.3) ** 2)
    best = min(found, key=lambda row: row["values"][0])
    content = json.loads((toys / "studies/s/trials.json").read_text())
    assert content["best"] == [best["number"]]
    out = capsys.readouterr().out
    alone = f"alignlab run stages.bowl.x={best['params']['stages.bowl.x']}\n"
    assert alone in out  # without study=s, whose trials it would replace
    assert "5 of 5 trials: 5 done, 0 diverged, 0 failed" in out
    # The stage that all trials share was made once, though they came in three batches.
    assert len(sweep_toys.MADE) == 6
    study = json.loads((toys / "studies/s/study.json").read_text())
    assert len(study["jobs"]) == 5
    assert {job["stages"]["base"] for job in study["jobs"]} == {sweep_toys.MADE[0]}
    assert len(study["stages"]) == 6


@pytest.mark.slow
def test_the_same_command_adds_nothing_and_a_longer_one_what_is_missing(toys: Path) -> None:
    assert run("hydra.sweeper.n_trials=2") == 0
    first = trials(toys)
    made = len(sweep_toys.MADE)
    assert run("hydra.sweeper.n_trials=2") == 0
    assert (trials(toys), len(sweep_toys.MADE)) == (first, made)
    assert run("hydra.sweeper.n_trials=4") == 0
    assert trials(toys)[:2] == first
    assert [row["number"] for row in trials(toys)] == [0, 1, 2, 3]
    assert len(json.loads((toys / "studies/s/study.json").read_text())["jobs"]) == 4


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_an_interrupted_sweep_goes_on_as_if_undisturbed(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=7"]
    words += ["hydra.sweeper.sampler.n_startup_trials=2"] if sampler == "tpe" else []
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "straight"))
    assert run(*words) == 0
    straight = trials(tmp_path / "straight")

    monkeypatch.setenv("ALIGNLAB_RUNS", str(toys))
    sweep_toys.MADE.clear()
    sweep_toys.STOP["after"] = 4  # the base and three trials: in the middle of the second batch
    assert run(*words) == 143
    assert "continue with: alignlab run -m" in capsys.readouterr().err
    assert [row["state"] for row in trials(toys)] == ["done", "done", "running", "running"]
    # The lease of this very process has ended with the command, so its trials are free again.
    assert run(*words) == 0
    assert trials(toys) == straight
    assert len(sweep_toys.MADE) == len(set(sweep_toys.MADE)) == 8


@pytest.mark.long
def test_failed_and_diverged_trials_are_told_apart_and_counted(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+stages.bowl.word=plain,diverges,fails,refused,undefined", "hydra.sweeper.n_jobs=4"]
    words = [word.replace("+stages.bowl.word", "stages.bowl.word") for word in words]
    space = ["hydra.sweeper.n_trials=24", "hydra.sweeper.max_failure_rate=1"]
    assert run(*words, *space, "hydra/sweeper/sampler=random") == 0
    found = trials(toys)
    states = {
        word: {row["state"] for row in found if row["params"]["stages.bowl.word"] == word}
        for word in ("plain", "diverges", "fails", "refused", "undefined")
    }
    assert states == {
        "plain": {"done"},
        "diverges": {"diverged"},
        "undefined": {"diverged"},
        "fails": {"failed"},
        "refused": {"failed"},
    }
    reasons = {row["params"]["stages.bowl.word"]: row["reason"] for row in found}
    assert "the loss is not finite" in reasons["diverges"]
    assert reasons["undefined"] == "bowl/loss is nan"
    assert "the bowl is broken" in reasons["fails"]
    assert "this word is not allowed" in reasons["refused"]
    counts = {s: sum(row["state"] == s for row in found) for s in ("done", "diverged", "failed")}
    assert f"{counts['diverged']} diverged, {counts['failed']} failed" in capsys.readouterr().out
    study = optuna.load_study(study_name="s", storage=journal(toys))
    kinds = {trial.state.name for trial in study.trials}
    assert kinds == {"COMPLETE", "PRUNED", "FAIL"}


def journal(store: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(store / "studies/s/optuna.journal")))


@pytest.mark.slow
def test_a_sweep_whose_trials_fail_stops(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hydra.sweeper.n_trials=20", "stages.base.word=fails") == 1
    assert [row["state"] for row in trials(toys)] == ["failed", "failed"]
    assert "base" in trials(toys)[0]["reason"]
    assert "2 of 2 trials of a batch failed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["hydra.sweeper.objective=bowls/loss"], "Did you mean 'bowl'?"),
        (["stages.base.word=refused"], "this word is not allowed"),
        (["stages.base.x=200"], "stages.base.x"),
        (["stages.bowll.x=3"], "Did you mean 'bowl'?"),
        (["hydra.sweeper.seeds=[0,1]", "seed=4"], "give one of both"),
        (["hydra.sweeper.storage=sqlite:////nowhere/x.db"], "cannot open"),
    ],
)
def test_mistakes_are_refused_before_a_trial_is_made(
    toys: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert part in capsys.readouterr().err
    assert sweep_toys.MADE == []
    assert not (toys / "studies/s/optuna.journal").exists()


@pytest.mark.slow
def test_a_metric_that_nobody_reports_is_named(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("hydra.sweeper.objective=bowl/los", "hydra.sweeper.n_trials=2") == 2
    message = capsys.readouterr().err
    assert "reports no 'los'" in message
    assert "Did you mean 'loss'?" in message


@pytest.mark.slow
def test_numbers_of_the_record_can_be_optimised(toys: Path) -> None:
    words = ["hydra.sweeper.objective=[bowl/loss,bowl/seconds]",
             "hydra.sweeper.direction=[minimize,minimize]"]  # fmt: skip
    assert run(*words, "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=nsgaii") == 0
    assert all(row["values"][1] >= 0 for row in trials(toys))


@pytest.mark.slow
def test_several_objectives_have_a_front(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hydra.sweeper.objective=[bowl/loss,bowl/x]",
             "hydra.sweeper.direction=[minimize,minimize]"]  # fmt: skip
    assert run(*words, "hydra.sweeper.n_trials=8", "hydra/sweeper/sampler=random") == 0
    rows = trials(toys)
    front = {
        row["number"]
        for row in rows
        if not any(
            all(o <= m for o, m in zip(other["values"], row["values"], strict=True))
            and other["values"] != row["values"]
            for other in rows
        )
    }
    content = json.loads((toys / "studies/s/trials.json").read_text())
    assert set(content["best"]) == front
    assert f"not dominated by any other: {len(front)} trials" in capsys.readouterr().out or (
        len(front) == 1
    )


@pytest.mark.slow
def test_a_trial_may_be_a_mean_over_seeds(toys: Path) -> None:
    assert run("hydra.sweeper.seeds=[0,2]", "hydra.sweeper.n_trials=2") == 0
    for row in trials(toys):  # the mean of seed / 100 over 0 and 2 is 0.01
        loss = (row["params"]["stages.bowl.x"] - 0.3) ** 2 + 0.01
        assert row["values"][0] == pytest.approx(loss)
    assert len(json.loads((toys / "studies/s/study.json").read_text())["jobs"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trials.db", "elsewhere/trials.journal"])
def test_trials_may_be_stored_elsewhere(toys: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    stated = f"sqlite:///{place}" if name.endswith(".db") else str(place)
    words = [f"hydra.sweeper.storage={stated}", "hydra.sweeper.study_name=mine"]
    assert run(*words, "hydra.sweeper.n_trials=2") == 0
    assert place.is_file()
    assert run(*words, "hydra.sweeper.n_trials=3") == 0
    assert len(trials(toys)) == 3


@pytest.mark.slow
def test_trials_of_another_question_do_not_mix(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"hydra.sweeper.storage={tmp_path / 'all.journal'}", "hydra.sweeper.study_name=mine"]
    assert run(*words, "hydra.sweeper.n_trials=2") == 0
    assert run(*words, "hydra.sweeper.n_trials=3", "seed=4") == 2
    assert "with another overrides" in capsys.readouterr().err


@pytest.mark.slow
def test_files_of_an_experiment_may_ask_for_a_sweep(toys: Path) -> None:
    assert main(["run", "-m", "experiment=tuned", "study=s"]) == 0
    assert len(trials(toys)) == 3


@pytest.mark.slow
def test_a_plan_shows_the_first_batch_and_stores_nothing(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "-m", *SWEEP, "hydra.sweeper.n_trials=9"]) == 0
    out = capsys.readouterr().out
    assert "3 stages of 2 jobs" in out
    assert "2 of 9 trials" in out
    assert main(["plan", "-m", *SWEEP, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 20
    assert not toys.exists() or not list(toys.rglob("*.journal"))


@pytest.mark.slow
def test_a_trial_of_a_live_command_is_left_to_it(toys: Path) -> None:
    assert run("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1") == 0
    study = optuna.load_study(study_name="s", storage=journal(toys))
    from alignlab.report.live import launcher_lease

    lease = launcher_lease(toys / "studies/s", f"sweep-other-{os.getpid()}")
    lease.acquire()
    trial = study.ask({"stages.bowl.x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    trial.set_user_attr("owner", f"sweep-other-{os.getpid()}")
    assert run("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1") == 0
    assert [row["state"] for row in trials(toys)] == ["done", "running", "done"]
    lease.discard()
    assert run("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1") == 0
    assert [row["state"] for row in trials(toys)] == ["done"] * 3


@pytest.mark.slow
def test_records_name_every_trial_for_later_commands(toys: Path) -> None:
    assert run("hydra.sweeper.n_trials=3") == 0
    record = json.loads((toys / "studies/s/record.json").read_text())
    assert len(record["jobs"]) == 3
    done = [run for run in Store(toys).runs() if run.done]
    assert {run.name for run in done} == set(record["stages"])


def test_a_launch_that_does_not_stay_is_refused(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignlab.launch.launcher import InProcess

    monkeypatch.setattr(InProcess, "stays", False)  # as launch=slurm with wait=false
    assert run() == 2
    assert "launch.wait=true" in capsys.readouterr().err


def test_a_sweep_says_which_package_it_lacks(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run() == 2
    assert "alignlab[optuna]" in capsys.readouterr().err
