"""How a sweep with Optuna scores a real study: validation prompts of its own, and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.commands.sweeper.scores import scored
from alignlab.commands.sweeper.settings import settings_of
from alignlab.compose import compose, sweep
from alignlab.run import Store

pytest.importorskip("optuna", reason="hydra/sweeper=optuna needs the package optuna")

STUDY = ["experiment=smoke", "pipeline=preference", "reward@gold=length", "audit=null"]
ASKED = ["hydra/sweeper=optuna", "hydra.sweeper.objective=evaluate/gold",
         "hydra.sweeper.direction=maximize"]  # fmt: skip
SPACE = "objective.beta=tag(log,interval(0.01,1))"


@pytest.mark.slow
def test_an_evaluation_of_test_prompts_is_made_again_on_validation_prompts() -> None:
    settings = settings_of(sweep([*ASKED, "seed=1,2"]).sweeper or {})
    config = compose(STUDY)
    made = scored(config, settings)["stages"]
    assert set(made) - set(config["stages"]) == {"validate_evaluate"}
    own, twin = made["evaluate"], made["validate_evaluate"]
    assert (own["split"], twin["split"]) == ("test", "validation")
    assert (twin["prompts"], twin["samples"]) == (8, 1)  # size.validate of the smoke experiment
    assert own["inputs"] == twin["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "split", "extra"),
    [
        ("evaluate/gold", "test", []),  # asked for
        ("sft/seconds", "validation", []),  # no evaluation
        ("evaluate/gold", "validation", ["stages.evaluate.split=validation"]),  # is on them already
    ],
)
def test_otherwise_the_stage_itself_is_read(objective: str, split: str, extra: list[str]) -> None:
    words = [f"hydra.sweeper.objective={objective}", f"hydra.sweeper.split={split}"]
    settings = settings_of(sweep([*ASKED, *words, "seed=1,2"]).sweeper or {})
    config = compose([*STUDY, *extra])
    assert scored(config, settings)["stages"] == config["stages"]


@pytest.mark.slow
def test_what_the_search_has_scored_is_not_scored_again(tmp_path: Path) -> None:
    # The same setting, validated by `search` and by the sweeper, is one run.
    from alignlab.plan import Plan

    settings = settings_of(sweep([*ASKED, "seed=1,2"]).sweeper or {})
    space = "+search.space.preference={objective: {beta: [0.1, 0.2]}}"
    words = ["search=default", "budget.trials=1", space]
    searched = Plan.from_configs([compose([*STUDY, *words])], Store(tmp_path))
    swept = Plan.from_configs([scored(compose(STUDY), settings)], Store(tmp_path))
    [twin] = [job.stages["validate_evaluate"] for job in swept.jobs]
    assert twin in searched.nodes


@pytest.mark.long
def test_a_real_sweep_and_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    words = [*STUDY, *ASKED, SPACE, "study=s", "tracking=disabled", "engine.threads=1"]
    assert main(["run", "-m", *words, "hydra.sweeper.n_trials=3"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 trials: 3 done" in out
    folder = tmp_path / "studies/s"
    content = json.loads((folder / "trials.json").read_text())
    store = Store(tmp_path)
    kinds = [run.kind for run in store.runs() if run.done]
    # one SFT run, its data and its evaluation for all; three policies, each tested and validated
    assert sorted(kinds) == ["annotate", *["evaluate"] * 7, *["preference"] * 3, "sft"]
    by_split: dict[str, list[float]] = {"validation": [], "test": []}
    for run in store.runs():
        config = json.loads((run.path / "config.json").read_text())
        if run.kind == "evaluate" and run.record["inputs"]["policy"].startswith("preference"):
            by_split[config["split"]].append(run.summary()["gold"])
    values = [row["values"][0] for row in content["trials"]]
    assert sorted(values) == pytest.approx(sorted(by_split["validation"]))
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    assert 'id="trials"' in page
    # All trials are methods of the report, tested on test prompts; their validation is not.
    methods = (folder / "report/methods.csv").read_text().splitlines()
    assert len(methods) == 1 + 3 + 1
