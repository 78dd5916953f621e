"""Selection: the best trial, what is counted, what is refused, and where its model can stand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignlab.compose import compose
from alignlab.errors import ConfigError, TrainingError
from alignlab.files import write_atomically
from alignlab.graph import ordered
from alignlab.plan import Plan, build_stage
from alignlab.run import Run, Store
from alignlab.stages.select import Select, Trial, adopt, chosen, require_comparable, trial_of

EVALUATION = {
    "split": "validation",
    "prompts": 8,
    "samples": 1,
    "best_of": 1,
    "sampling": {"temperature": 1.0},
    "seed": 0,
    "label": None,
    "inputs": {"policy": "a", "reference": "sft"},
    "backbone": {"path": "x"},
}


@dataclass
class Bench:
    """Runs of trials and of their evaluations, as if they had been executed."""

    store: Store

    def trial(
        self,
        number: int,
        value: float | None,
        *,
        end: str = "done",
        config: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Run]:
        """One trial: ``done``, ``diverged``, ``failed``, ``never`` begun, or ``unscored``."""
        policy = self.store.run("preference", f"{number:04d}")
        score = self.store.run("evaluate", f"{number:04d}")
        inputs = {f"trial/{number}": policy, f"score/{number}": score}
        if end == "never":
            return inputs
        kinds = {"diverged": "diverged", "failed": "failed"}
        policy.update_record(
            label=f"DPO (beta={settings.get('beta', 0.1)})", tokens_trained=100, flops=6e3,
            seconds=2.0, error_kind=kinds.get(end), reference="sft-1",
        )  # fmt: skip
        write_atomically(policy.path / "config.json", {"objective": settings})
        policy.log(1, {"loss": 1.0, "tokens": 40})
        if end in kinds:
            return inputs
        policy.model_dir.mkdir()
        (policy.model_dir / "weights").write_text(f"of trial {number}")
        (policy.model_dir / "view.json").write_text("{}")
        policy.finish()
        if end == "unscored":
            score.update_record(error_kind="diverged", seconds=1.0)
            return inputs
        score.update_record(summary={"gold": value, "proxy": -number}, tokens_sampled=10,
                            flops=1e3, seconds=1.0)  # fmt: skip
        write_atomically(score.path / "config.json", config or EVALUATION)
        score.finish()
        return inputs

    def select(self, inputs: Mapping[str, Run], **given: Any) -> Run:
        fields = {"metric": "gold", "direction": "max", "fields": ["objective.beta"], **given}
        names = {role: run.name for role, run in inputs.items()}
        stage = Select(seed=0, inputs=names, method="dpo", **fields)
        run = self.store.run("select", "0001")
        stage.run(inputs, run, None)  # type: ignore[arg-type]
        run.finish()
        return run


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Store(tmp_path))


def test_the_best_trial_is_chosen_and_its_model_is_adopted(bench: Bench) -> None:
    inputs = bench.trial(1, 0.2) | bench.trial(2, 0.5, beta=1.0) | bench.trial(3, 0.4)
    run = bench.select(inputs)
    record = run.record
    assert record["chosen"] == "preference-0002"
    assert (run.model_dir / "weights").read_text() == "of trial 2"
    assert record["summary"] == {"validation_gold": 0.5, "done": 3, "diverged": 0, "failed": 0}
    assert record["label"] == "DPO (3 trials)"
    assert record["reference"] == "sft-1"
    assert record["trials"][1] == {
        "run": "preference-0002",
        "evaluation": "evaluate-0002",
        "settings": {"objective.beta": 1.0},
        "value": 0.5,
        "status": "done",
        "tokens": 110.0,  # 100 trained and 10 sampled by the evaluation
        "flops": 7e3,  # 6000 + 1000
        "seconds": 3.0,  # 2 + 1
    }
    assert run.verify() == []


def test_the_model_stays_when_the_trial_goes(bench: Bench) -> None:
    inputs = bench.trial(1, 0.2) | bench.trial(2, 0.5)
    run = bench.select(inputs)
    linked = (run.model_dir / "weights").stat()
    assert linked.st_ino == (inputs["trial/2"].model_dir / "weights").stat().st_ino
    bench.store.delete(inputs["trial/2"])
    assert (run.model_dir / "weights").read_text() == "of trial 2"
    assert run.verify() == []


def test_without_hard_links_it_is_copied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    run = bench.select(bench.trial(1, 0.2))
    assert (run.model_dir / "weights").read_text() == "of trial 1"


def test_an_interrupted_attempt_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    inputs = bench.trial(1, 0.2)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("x")
    adopt(inputs["trial/1"].model_dir, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["view.json", "weights"]


def test_a_tie_goes_to_the_earlier_trial(bench: Bench) -> None:
    inputs = bench.trial(1, 0.1) | bench.trial(2, 0.5) | bench.trial(3, 0.5)
    assert bench.select(inputs).record["chosen"] == "preference-0002"


def test_the_tenth_trial_comes_after_the_second(bench: Bench) -> None:
    inputs = bench.trial(10, 0.5) | bench.trial(2, 0.5) | bench.trial(1, 0.1)
    record = bench.select(inputs).record
    assert [t["run"][-2:] for t in record["trials"]] == ["01", "02", "10"]
    assert record["chosen"] == "preference-0002"


def test_another_metric_and_direction(bench: Bench) -> None:
    inputs = bench.trial(1, 0.1) | bench.trial(2, 0.5) | bench.trial(3, 0.3)
    # proxy = −number: the lowest is the third
    record = bench.select(inputs, metric="proxy", direction="min").record
    assert record["chosen"] == "preference-0003"
    assert record["summary"]["validation_proxy"] == -3


def test_trials_that_diverged_or_failed_are_counted(bench: Bench) -> None:
    inputs = (
        bench.trial(1, None, end="diverged", beta=9.0)
        | bench.trial(2, 0.1)
        | bench.trial(3, None, end="failed")
        | bench.trial(4, None, end="unscored")  # trained, but its samples were not finite
        | bench.trial(5, math.nan)
        | bench.trial(6, None, end="never")
    )
    record = bench.select(inputs).record
    status = ["diverged", "done", "failed", "diverged", "diverged", "failed"]
    assert [t["status"] for t in record["trials"]] == status
    assert [t["value"] for t in record["trials"]] == [None, 0.1, None, None, None, None]
    assert record["chosen"] == "preference-0002"
    assert record["summary"] == {"validation_gold": 0.1, "done": 1, "diverged": 3, "failed": 2}
    first, last = record["trials"][0], record["trials"][-1]
    assert (first["tokens"], first["flops"], first["seconds"]) == (40.0, None, 2.0)  # until then
    assert first["settings"] == {"objective.beta": 9.0}
    assert (last["tokens"], last["flops"], last["seconds"]) == (0.0, None, 0.0)


def test_nothing_is_chosen_when_no_trial_is_done(bench: Bench) -> None:
    inputs = bench.trial(1, None, end="diverged") | bench.trial(2, None, end="failed")
    with pytest.raises(TrainingError, match="preference-0001 diverged, preference-0002 failed"):
        bench.select(inputs)


def test_scores_of_other_conditions_are_refused_when_it_runs(bench: Bench) -> None:
    other = {**EVALUATION, "sampling": {"temperature": 0.5}}
    inputs = bench.trial(1, 0.1) | bench.trial(2, 0.5, config=other)
    with pytest.raises(ConfigError, match=r"inputs\.score/2: differs from score/1 in sampling"):
        bench.select(inputs)
    inputs = bench.trial(3, 0.1, config={**EVALUATION, "split": "test"})
    with pytest.raises(ConfigError, match="test split"):
        bench.select(inputs)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"prompts": 9}, "prompts"),
        ({"seed": 1}, "seed"),
        ({"sampling": {"temperature": 0.0}, "samples": 2}, "samples, sampling"),
        ({"label": "x", "backbone": {"path": "y"}, "inputs": {"policy": "b"}}, ""),
    ],
)
def test_what_makes_scores_comparable(change: dict[str, Any], names: str) -> None:
    configs = {"score/1": EVALUATION, "score/2": {**EVALUATION, **change}}
    if not names:
        require_comparable(configs)
        return
    with pytest.raises(ConfigError, match=f"differs from score/1 in {names},"):
        require_comparable(configs)


def test_the_choice_is_of_values_alone() -> None:
    def trials(*values: float | None) -> list[Trial]:
        return [
            Trial(run="r", evaluation="e", settings={}, value=v, status="done", tokens=0.0,
                  flops=0.0, seconds=0.0)
            for v in values
        ]  # fmt: skip

    assert chosen(trials(1.0, None, 3.0), "max") == 2
    assert chosen(trials(1.0, None, 3.0), "min") == 0
    assert chosen(trials(-2.0, -2.0), "min") == 0


def test_a_labelled_method_keeps_its_label(bench: Bench) -> None:
    assert bench.select(bench.trial(1, 0.2), label="mine").record["label"] == "mine"


def test_a_trial_reads_the_fields_that_were_searched(bench: Bench) -> None:
    inputs = bench.trial(1, 0.2, beta=0.3)
    found = trial_of(inputs["trial/1"], inputs["score/1"], ["objective.beta", "a.b"], "gold")
    assert found.settings == {"objective.beta": 0.3, "a.b": None}


# --------------------------------------------------------------------------------------- the plan


def searched(*overrides: str) -> dict[str, Any]:
    return compose(["pipeline=preference", "experiment=smoke", "search=default",
                    "budget.trials=2", *overrides])  # fmt: skip


def stages_of(tmp_path: Path, change: Any = None) -> dict[str, Any]:
    """The stages of a searched preference pipeline, changed before they are put in order."""
    plan = Plan.from_configs([searched()], Store(tmp_path))
    [job] = plan.jobs
    nodes = {name: dict(plan.nodes[run].config) for name, run in job.stages.items()}
    if change is not None:
        change(nodes)
    return {name: build_stage(node, f"stages.{name}") for name, node in nodes.items()}


def scores(nodes: Mapping[str, Any]) -> list[str]:
    return [name for name in nodes if name.startswith("validate_")]


@pytest.mark.slow
def test_a_select_stage_stands_where_a_policy_stands(tmp_path: Path) -> None:
    order = ordered(stages_of(tmp_path))
    assert order.index("preference") < order.index("evaluate")


def test_scores_on_test_prompts_are_refused_by_the_plan(tmp_path: Path) -> None:
    def change(nodes: dict[str, Any]) -> None:
        for name in scores(nodes):
            nodes[name]["split"] = "test"

    with pytest.raises(ConfigError, match=r"stages\.preference: inputs\.score/1: .* test split"):
        ordered(stages_of(tmp_path, change))


def test_unequal_scores_are_refused_by_the_plan(tmp_path: Path) -> None:
    def change(nodes: dict[str, Any]) -> None:
        nodes[scores(nodes)[1]]["samples"] = 2

    with pytest.raises(ConfigError, match=r"inputs\.score/2: differs from score/1 in samples"):
        ordered(stages_of(tmp_path, change))


def test_a_score_belongs_to_its_trial(tmp_path: Path) -> None:
    def change(nodes: dict[str, Any]) -> None:
        inputs = nodes["preference"]["inputs"]
        inputs["score/1"], inputs["score/2"] = inputs["score/2"], inputs["score/1"]

    with pytest.raises(ConfigError, match=r"inputs\.score/1: .* evaluates 'preference,trial=2"):
        ordered(stages_of(tmp_path, change))


def test_every_trial_needs_a_score(tmp_path: Path) -> None:
    def change(nodes: dict[str, Any]) -> None:
        del nodes["preference"]["inputs"]["score/2"]

    with pytest.raises(ConfigError, match="trial/2 and score/2 belong together"):
        stages_of(tmp_path, change)


@pytest.mark.slow
def test_what_was_not_measured_cannot_decide(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric=proxy: .* has no reward stage"):
        Plan.from_configs([searched("search.metric=proxy")], Store(tmp_path))
    with pytest.raises(ConfigError, match=r"metric=audit: .* has no audit reward"):
        Plan.from_configs([searched("search.metric=audit", "audit=null")], Store(tmp_path))
    with pytest.raises(ConfigError, match=r"reference_nll .* direction=min"):
        Plan.from_configs([searched("search.metric=reference_nll")], Store(tmp_path))
    plan = Plan.from_configs(
        [searched("search.metric=reference_nll", "search.direction=min")], Store(tmp_path)
    )
    assert any(node.kind == "select" for node in plan.nodes.values())


def test_what_is_behind_a_selection_is_not_pruned(bench: Bench) -> None:
    inputs = bench.trial(1, 0.2) | bench.trial(2, 0.5)
    run = bench.store.run("select", "0001")
    run.update_record(inputs={role: r.name for role, r in inputs.items()})
    bench.select(inputs)
    study = bench.store.studies / "s" / "study.json"
    study.parent.mkdir(parents=True)
    study.write_text(json.dumps({"jobs": [{"stages": {"dpo": run.name}}]}))
    assert bench.store.prune() == []
