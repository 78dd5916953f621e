"""Preference optimization: what the policy is compared with, and what must not change a result."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stage_lab import (
    OBJECTIVES,
    Caught,
    Chain,
    largest_difference,
    objective,
    plain_model,
    token_logps,
    weights,
)

from alignlab.errors import ConfigError, DataError
from alignlab.models.backbone import Backbone
from alignlab.models.view import View
from alignlab.run import Run
from alignlab.spec import function
from alignlab.stages import session
from alignlab.stages.annotate import read
from alignlab.stages.pairing import mismatched
from alignlab.stages.reference import ReferenceLogps, completion_sums
from alignlab.stages.terms import Terms


def plain_sums(folder: Any, groups: Any, cache: Any) -> torch.Tensor:
    """Summed completion log-probabilities (C,), one sequence at a time."""
    model = plain_model(folder, cache)
    with torch.no_grad():
        sums = [token_logps(model, g.prompt, c).sum() for g in groups for c in g.completions]
    return torch.stack(sums)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "every objective of conf/objective",
    "two token budgets: weights to 1e-6",
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_alike_in_any_micro_batching(chain: Chain, name: str) -> None:
    stage, inputs = chain.prefer(objective=objective(name), pairs="all")
    small = chain.lab.run(stage, inputs, token_budget=64)
    large = chain.lab.run(stage, inputs, token_budget=4096)
    assert largest_difference(weights(chain.sft), weights(large)) > 1e-3
    assert largest_difference(weights(small), weights(large)) < 1e-6
    last = large.metrics("train")[-1]
    assert last["step"] == 3
    assert large.record["updates"] == 3
    assert large.summary().keys() >= {"accuracy", "margin"}


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "DPO, KTO, SimPO",
    "flat and padded layout train to the same weights",
)
@pytest.mark.parametrize("name", ["dpo", "kto", "simpo"])
def test_the_padded_layout_trains_to_the_same_weights(chain: Chain, name: str) -> None:
    stage, inputs = chain.prefer(objective=objective(name), pairs="all")
    grouped = chain.lab.run(stage, inputs)
    padded = chain.lab.run(
        replace(stage, backbone=replace(stage.backbone, layout="padded")), inputs
    )
    assert (grouped.record["layout"], padded.record["layout"]) == ("grouped", "padded")
    assert largest_difference(weights(grouped), weights(padded)) < 1e-5


@pytest.mark.conformance(
    "equivalence",
    "DPO",
    "the order of prompts inside a step changes no weight beyond 1e-6",
)
def test_the_order_of_groups_inside_a_step_does_not_matter(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, inputs = chain.prefer()
    straight = chain.lab.run(stage, inputs)
    rows = session.step_rows
    monkeypatch.setattr(session, "step_rows", lambda *given: rows(*given)[::-1])
    reversed_ = chain.lab.run(stage, inputs)
    assert largest_difference(weights(straight), weights(reversed_)) < 1e-6


def test_the_first_step_has_the_loss_of_an_unmoved_policy(chain: Chain) -> None:
    stage, inputs = chain.prefer()
    first = chain.lab.run(stage, inputs).metrics("train")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2, h = 0
    assert first["margin"] == pytest.approx(0.0, abs=1e-4)


def test_the_reference_is_the_sft_run_and_is_recorded(chain: Chain, caught: Caught) -> None:
    stage, inputs = chain.prefer()
    run = chain.lab.run(stage, inputs)
    assert run.record["reference"] == chain.sft.path.name
    groups = [g for g in read(chain.annotations, "train") if g.verdict.pairs()]
    reference = ReferenceLogps(caught.backbone, chain.sft, chain.lab.engine, chain.lab.store.cache)
    pairs = stage.select(groups)
    reference.prepare(pairs)
    expected = plain_sums(chain.sft.model_dir, pairs, chain.lab.store.cache)
    assert torch.allclose(reference.sums(pairs).double(), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["chain", "lora_chain"])
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_no_wrong_reference_after_an_in_memory_hand_off(
    request: pytest.FixtureRequest, caught: Caught, which: str, name: str
) -> None:
    """The view that stayed loaded beside the moving policy still is the SFT model."""
    chain: Chain = request.getfixturevalue(which)
    stage, inputs = chain.online(name)
    run = chain.lab.run(stage, inputs)
    groups = read(chain.annotations, "train")[:6]
    with torch.no_grad():
        reference = completion_sums(caught.backbone, "reference", groups, chain.lab.engine)
        policy = completion_sums(caught.backbone, "policy", groups, chain.lab.engine)
    cache = chain.lab.store.cache
    expected = plain_sums(chain.sft.model_dir, groups, cache)
    assert torch.allclose(reference.double(), expected, atol=1e-4)
    assert (policy.double() - expected).abs().max() > 1e-2
    assert torch.allclose(policy.double(), plain_sums(run.model_dir, groups, cache), atol=1e-4)


def entries(run: Run) -> dict[str, float]:
    folder = run.path.parent / "cache" / "reference"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


@pytest.mark.conformance(
    "equivalence",
    "reference log-probs",
    "one pass serves every learning rate, seed and objective",
)
def test_reference_logps_are_computed_once_for_all_learning_rates(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, inputs = chain.prefer()
    first = chain.lab.run(stage, inputs)
    known = entries(first)

    def refuse(*_: Any) -> None:
        raise AssertionError("the cache was missed")

    monkeypatch.setattr(ReferenceLogps, "compute", refuse)
    other, _ = chain.prefer(optimizer__learning_rate=3e-3, objective=objective("ipo"), seed=5)
    second = chain.lab.run(other, inputs)
    assert entries(second) == known
    assert largest_difference(weights(first), weights(second)) > 1e-4


@pytest.mark.slow
def test_other_tokens_or_another_reference_miss_the_cache(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    compute = ReferenceLogps.compute

    def counting(self: ReferenceLogps, groups: Any) -> Any:
        computed.append(self.key(groups))
        return compute(self, groups)

    monkeypatch.setattr(ReferenceLogps, "compute", counting)
    stage, inputs = chain.prefer()
    cut = chain.lab.stage("annotate", validation_share=0.2, max_completion=5)
    annotations = chain.lab.run(cut, {"policy": chain.sft})
    longer = chain.lab.run(chain.lab.stage("sft", steps=4), {})
    chain.lab.run(stage, {**inputs, "annotations": annotations})
    assert len(computed) == 1  # other tokens
    chain.lab.run(stage, {**inputs, "annotations": annotations})
    assert len(computed) == 1  # the same ones again
    chain.lab.run(stage, {**inputs, "annotations": annotations, "reference": longer})
    assert len(set(computed)) == 2  # another reference
    chain.lab.run(stage, {**inputs, "annotations": annotations, "init": longer})
    assert len(computed) == 2  # another policy to start from


def test_a_cached_entry_is_not_taken_for_another_precision(chain: Chain) -> None:
    stage, _ = chain.prefer()
    groups = stage.select(read(chain.annotations, "train"))

    class Named:
        dtype_name = "float32"

    one = ReferenceLogps(Named(), chain.sft, chain.lab.engine, chain.lab.store.cache)  # type: ignore[arg-type]
    two = ReferenceLogps(Named(), chain.sft, chain.lab.engine, chain.lab.store.cache)  # type: ignore[arg-type]
    assert one.key(groups) == two.key(groups)
    two.backbone.dtype_name = "bfloat16"  # type: ignore[misc]
    assert one.key(groups) != two.key(groups)


def kto_terms(chain: Chain, policy: Run, before: Run) -> tuple[Terms, Any]:
    """KTO's terms over a backbone whose policy is another run than the reference."""
    from alignlab.models.backbone import Backbone
    from alignlab.objectives.declaration import declaration

    stage, _ = chain.prefer(objective=objective("kto"))
    backbone = Backbone.load(stage.backbone, chain.lab.store.cache)
    reference = ReferenceLogps(backbone, before, chain.lab.engine, chain.lab.store.cache)
    data = stage.select(read(chain.annotations, "train"))
    reference.prepare([*data, *mismatched(data[:4], data)])
    backbone.add("policy", source=policy.model_dir, trainable=True)
    kto = function(stage.objective)
    return Terms(kto, declaration(kto), reference), backbone


@pytest.mark.slow
@pytest.mark.parametrize("moved_by", ["sft", "dpo"])
def test_the_kl_point_of_kto_by_hand(chain: Chain, moved_by: str) -> None:
    if moved_by == "sft":  # likelier completions: a positive mean
        moved, before = chain.sft, chain.lab.run(chain.lab.stage("sft", steps=1), {})
    else:  # unlikelier ones: the clamp at zero
        stage, inputs = chain.prefer(optimizer__learning_rate=3e-2)
        moved, before = chain.lab.run(stage, inputs), chain.sft
    terms, backbone = kto_terms(chain, moved, before)
    policy = plain_model(moved.model_dir, chain.lab.store.cache)
    sft = plain_model(before.model_dir, chain.lab.store.cache)
    data = chain.prefer()[0].select(read(chain.annotations, "train"))
    step = data[:4]
    ratios = []
    with torch.no_grad():
        # x_1 with y_2, x_2 with y_3, x_3 with y_4, x_4 with y_1: both completions of each
        for asked, answered in zip(step, [*step[1:], step[0]], strict=True):
            for completion in answered.completions:
                new = token_logps(policy, asked.prompt, completion).sum()
                ratios.append(float(new - token_logps(sft, asked.prompt, completion).sum()))
    mean = sum(ratios) / len(ratios)
    assert mean > 0.1 if moved_by == "sft" else mean < -0.1
    for budget in (32, 4096):
        engine = replace(chain.lab.engine, token_budget=budget)
        found = terms.kl_point(backbone, mismatched(step, data), engine)["kl_point"]
        assert float(found) == pytest.approx(max(0.0, mean), abs=1e-4)
        assert not found.requires_grad


def test_the_held_out_loss_of_kto_by_hand(chain: Chain) -> None:
    """The measured rows are one step: a KL point of their own, the loss of each completion."""
    moved, before = chain.sft, chain.lab.run(chain.lab.stage("sft", steps=1), {})
    terms, backbone = kto_terms(chain, moved, before)
    policy, sft = (plain_model(r.model_dir, chain.lab.store.cache) for r in (moved, before))
    data = chain.prefer()[0].select(read(chain.annotations, "train"))
    rows = data[:4]

    def ratio(prompt: np.ndarray, completion: np.ndarray) -> float:
        logps = [token_logps(m, prompt, completion).sum() for m in (policy, sft)]
        return float(logps[0] - logps[1])

    with torch.no_grad():
        lent = [
            ratio(group.prompt, completion)
            for group, other in zip(rows, [*rows[1:], rows[0]], strict=True)
            for completion in other.completions
        ]
        point = max(0.0, sum(lent) / len(lent))
        expected = []
        for group in rows:
            for completion, good in zip(group.completions, group.verdict.desirable(), strict=True):
                lead = 0.1 * (ratio(group.prompt, completion) - point)
                expected.append(1 / (1 + math.exp(lead if good else -lead)))
    for budget in (32, 4096):
        engine = replace(chain.lab.engine, token_budget=budget)
        found = terms.evaluate(backbone, rows, data, engine)["loss"]
        assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "bco"])
def test_a_loss_with_statistics_of_a_step_can_stop_training(chain: Chain, name: str) -> None:
    rule = {"metric": "loss", "mode": "min", "patience": 1, "min_delta": 1.0}
    stage, inputs = chain.prefer(
        objective=objective(name), steps=5, evaluate_every=1, gap_rows=4, early_stopping=rule
    )
    run = chain.lab.run(stage, inputs)
    measured = run.metrics("eval")
    assert len(measured) == 2  # no gain of 1 nat, so it stops after one more
    assert all(math.isfinite(m["loss"]) and math.isfinite(m["loss_gap"]) for m in measured)
    assert math.isfinite(run.summary()["loss"])


def test_a_step_across_an_epoch_never_pairs_a_prompt_with_itself(chain: Chain) -> None:
    data = list(read(chain.annotations, "train"))
    twice = [data[0], data[0]]
    for group, paired in zip(twice, mismatched(twice, data), strict=True):
        assert paired.prompt is group.prompt
        assert paired.completions is data[1].completions
    three = [data[0], data[0], data[1]]
    partners = [m.completions for m in mismatched(three, data)]
    assert [p is data[1].completions for p in partners] == [True, True, False]
    assert partners[2] is data[0].completions


def test_mismatched_prompts_may_have_other_numbers_of_completions(chain: Chain) -> None:
    data = read(chain.annotations, "train")
    short = data[1].keep((0, 2))
    one, two = mismatched([data[0], short], data)
    assert (len(one.completions), len(two.completions)) == (2, 3)


def test_kto_carries_no_reference_through_training(chain: Chain, monkeypatch) -> None:
    views = []
    real = Backbone.view

    def view(self, name, **options):
        views.append((name, self.views))
        return real(self, name, **options)

    monkeypatch.setattr(Backbone, "view", view)
    stage, inputs = chain.prefer(objective=objective("kto"), steps=2)
    shutil.rmtree(chain.lab.store.cache / "reference", ignore_errors=True)
    chain.lab.run(stage, inputs)
    names = [name for name, _ in views]
    assert names.count("reference") == 2  # on the pairs, and on the mismatched ones
    trained = views[len(names) - names[::-1].index("reference") :]
    assert set(trained) == {("policy", ("policy",))}
    assert len(trained) > 3  # two steps, and the evaluation at the end


class Passes:
    """Tokens of every pass of the policy, as a step makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        for name in ("logps", "logps_behind"):
            monkeypatch.setattr(View, name, self.noting(name, getattr(View, name)))

    def noting(self, kind: str, real: Any) -> Any:
        def noted(view: View, *args: Any, **options: Any) -> Any:
            if view.name == "policy":
                self.kinds.append(kind if torch.is_grad_enabled() else f"{kind}, no gradient")
            return real(view, *args, **options)

        return noted


@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("one", {}),
        ("several", {}),
        ("dropout", {"backbone__adapter__rank": 4, "backbone__adapter__dropout": 0.1}),
        ("noise", {"neftune_alpha": 5.0}),
    ],
)
def test_a_step_that_is_one_micro_batch_finds_its_statistics_itself(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, name: str, what: str, changes: dict[str, Any]
) -> None:
    """Unless a pass that trains is not that of the policy as it is."""
    stage, inputs = chain.prefer(objective=objective(name), steps=2, **changes)
    budget = 60 if what == "several" else 4096
    seen = Passes(monkeypatch)
    steps: list[list[str]] = []
    real = session.OfflineWork.micros

    def micros(self, step):
        steps.append(seen.kinds)
        seen.kinds = []
        found = real(self, step)
        assert (len(found) == 1) == (what != "several")
        assert all((micro.data.late is not None) == (what == "one") for micro in found)
        return found

    monkeypatch.setattr(session.OfflineWork, "micros", micros)
    run = chain.lab.run(stage, inputs, token_budget=budget)
    of_step = steps[1]
    own = {"kto": ["logps", "logps_behind"], "bco": ["logps"]}[name]
    if what == "one":
        assert of_step == own
    else:
        assert of_step.count("logps, no gradient") == of_step.count("logps") > 0
        assert "logps_behind" not in of_step
    key = {"kto": "kl_point", "bco": "log_ratio_shift"}[name]
    assert all(math.isfinite(row[key]) for row in run.metrics("train"))


def test_kto_with_one_prompt_per_step_is_refused(chain: Chain) -> None:
    with pytest.raises(ConfigError, match="batch of 2 or more"):
        chain.prefer(objective=objective("kto"), batch=1)
    chain.prefer(objective=objective("dpo"), batch=1)


def test_an_objective_with_a_reference_needs_one(chain: Chain) -> None:
    named = {"init": "sft", "annotations": "annotate"}
    with pytest.raises(ConfigError, match=r"inputs\.reference"):
        chain.prefer(inputs=named)
    chain.prefer(inputs=named, objective=objective("orpo"))


def test_annotations_without_a_single_pair_are_refused(chain: Chain) -> None:
    """They would give a training of zero steps, and a policy that is the SFT model."""
    sampled = chain.lab.store.run("annotate", "0a0a0a")
    lines = (chain.annotations.path / "annotations.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    for row in rows:
        row["verdict"] = {"kind": "ranking", "ranks": [0, 0, 0], "scores": [], "thumbs": []}
    sampled.path.mkdir(parents=True)
    (sampled.path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    stage, inputs = chain.prefer(steps=None)
    with pytest.raises(DataError, match="verdict that this stage can use"):
        chain.lab.run(stage, {**inputs, "annotations": sampled})
    with pytest.raises(DataError, match="verdict that this stage can use"):
        chain.lab.run(chain.lab.stage("reward"), {"init": chain.sft, "annotations": sampled})
