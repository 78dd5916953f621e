"""Anchors: what they read of the model, and what they add to a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from equivalence_cases import train
from stage_lab import (
    Caught,
    Chain,
    Lab,
    ids_of,
    largest_difference,
    plain_model,
    token_logps,
    weights,
)
from torch import Tensor

from alignlab.compose import conf_dir
from alignlab.errors import ConfigError
from alignlab.keys import stage_key
from alignlab.models.backbone import Backbone
from alignlab.models.changes import changes_of
from alignlab.objectives.forgetting import weight_change
from alignlab.run import Run
from alignlab.spec import build, parse
from alignlab.stages.anchor_terms import Scene, penalty
from alignlab.stages.fisher import fisher, rows_of

NAMES = sorted(path.stem for path in (conf_dir() / "anchor").glob("*.yaml"))
ANCHORING = "alignlab.objectives.forgetting"


def anchor(lab: Lab, name: str, **changes: Any) -> dict[str, Any]:
    """An anchor of conf/anchor over the lab's data."""
    node = yaml.safe_load((conf_dir() / "anchor" / f"{name}.yaml").read_text(encoding="utf-8"))
    if "defaults" in node:
        del node["defaults"]
        node = {**anchor(lab, "distill"), **node}
    data, sizes = lab.configs["sft"]["data"], {"max_prompt": 16, "max_completion": 12}
    if node.get("data"):
        node["data"] = data
    node |= {key: value for key, value in sizes.items() if key in node}
    if "sampling" in node:
        node["sampling"] = {**node["sampling"], "max_new_tokens": 12}
        node["batch"] = 5
    return {**node, **changes}


def scene_of(lab: Lab, source: Path | None) -> Scene:
    stage: Any = lab.stage("sft")
    backbone = Backbone.load(stage.backbone, lab.store.cache, "cpu")
    backbone.add("policy", source=source, trainable=True)
    return Scene(backbone, "policy", source, lab.engine, 0, lambda step: ())


@contextmanager
def moved(scene: Scene, by: float = 0.05) -> Iterator[dict[str, Tensor]]:
    """The policy's parameters, each moved at random inside the block."""
    generator = torch.Generator().manual_seed(1)
    steps = {}
    for name, parameter in scene.backbone.trainable_parameters("policy").items():
        steps[name] = by * torch.randn(parameter.shape, generator=generator)
        parameter.data += steps[name]
    yield steps


@pytest.mark.conformance(
    "law", "L2-SP", "½ α ‖θ − θ_start‖² over all trained weights, and its gradient"
)
def test_l2sp_by_definition(chain: Chain) -> None:
    scene = scene_of(chain.lab, chain.sft.model_dir)
    terms = penalty(scene, 0.3, None)
    with moved(scene) as steps, scene.backbone.view("policy") as view:
        loss, metrics = terms.loss(view)
        wanted = 0.15 * sum(float(step.double().square().sum()) for step in steps.values())
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
        assert float(metrics["anchor"][0]) == pytest.approx(wanted, rel=1e-5)
        loss.backward()
        for name, parameter in scene.backbone.trainable_parameters("policy").items():
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, 0.3 * steps[name], atol=1e-6), name


@pytest.mark.slow
@pytest.mark.conformance(
    "law", "L2-SP", "with LoRA: the change of the adapted matrices, s(BA − B₀A₀)"
)
def test_with_adapters_the_change_is_that_of_the_matrices(lora_chain: Chain) -> None:
    scene = scene_of(lora_chain.lab, lora_chain.sft.model_dir)
    changes = changes_of(scene.backbone, "policy")
    before = {
        n: p.detach().clone() for n, p in scene.backbone.trainable_parameters("policy").items()
    }
    with moved(scene):
        after = scene.backbone.trainable_parameters("policy")
        total = 0.0
        for name in [n for n in after if ".lora_A" in n]:
            other = name.replace(".lora_A", ".lora_B")
            scale = 32.0 / 4  # alpha over rank
            product = after[other].double() @ after[name].double()
            start = before[other].double() @ before[name].double()
            total += 0.5 * float((scale * (product - start)).square().sum())
        found = sum(float(change.through(lambda d: weight_change(d, None))) for change in changes)
    assert total > 1e-3
    assert found == pytest.approx(total, rel=1e-4)
    assert sum(len(change.inputs) for change in changes) == len(after)


def plain_fisher(lab: Lab, run: Run, groups: Any, name: str) -> Tensor:
    """Squared gradients by transformers alone, a sequence at a time, in double precision."""
    model = plain_model(run.model_dir, lab.store.cache)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    weight = model.get_submodule(name).weight.requires_grad_(True)
    total, tokens = torch.zeros_like(weight), 0
    for group in groups:
        logps = token_logps(model, ids_of(group.prompt), ids_of(group.completions[0]))
        total += torch.autograd.grad(logps.sum(), weight)[0].square()
        tokens += len(logps)
    return total / tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.conformance(
    "law", "EWC", "F = Σ (∂ log p(y|x)/∂θ)² / Σ |y|, row by row, with LoRA of the matrices"
)
def test_the_fisher_information_by_definition(kind: str, chain: Chain, lora_chain: Chain) -> None:
    here = {"full": chain, "lora": lora_chain}[kind]
    scene = scene_of(here.lab, here.sft.model_dir)
    made = build(parse(anchor(here.lab, "ewc", rows=4), "anchor"))
    changes = changes_of(scene.backbone, "policy")
    found = dict(zip([c.name for c in changes], fisher(made, scene, changes), strict=True))
    groups = rows_of(made, scene)
    assert len(groups) == 4
    for module in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"):
        [name] = [n for n in found if module in n]
        wanted = plain_fisher(here.lab, here.sft, groups, module)
        assert float(wanted.max()) > 1e-6
        assert torch.allclose(
            found[name].double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.max())
        )
    # Nothing else was left requiring gradients.
    trained = {id(p) for p in scene.backbone.trainable_parameters("policy").values()}
    with scene.backbone.view("policy") as view:
        assert {id(p) for p in view.model.parameters() if p.requires_grad} == trained


def test_sampled_labels_are_the_models_own(chain: Chain) -> None:
    scene = scene_of(chain.lab, chain.sft.model_dir)
    given = build(parse(anchor(chain.lab, "ewc", rows=6), "anchor"))
    own = build(parse(anchor(chain.lab, "ewc", rows=6, labels="sampled"), "anchor"))
    mine, theirs = rows_of(own, scene), rows_of(given, scene)
    assert [ids_of(g.prompt) for g in mine] == [ids_of(g.prompt) for g in theirs]
    assert [ids_of(g.completions[0]) for g in mine] != [ids_of(g.completions[0]) for g in theirs]


@pytest.mark.conformance(
    "law", "EWC", "to second order, λ = 1 is how much the old data's loss rises"
)
def test_the_penalty_is_the_expected_rise_of_the_loss(chain: Chain) -> None:
    """KL(start ‖ θ) per token ≈ ½ dᵀ F d for the full F; along one weight the diagonal is exact."""
    scene = scene_of(chain.lab, chain.sft.model_dir)
    made = build(parse(anchor(chain.lab, "ewc", rows=16, labels="sampled"), "anchor"))
    changes = changes_of(scene.backbone, "policy")
    information = fisher(made, scene, changes)
    place = next(i for i, c in enumerate(changes) if "layers.1.mlp.down_proj" in c.name)
    flat = int(information[place].flatten().argmax())
    change, weight = changes[place], changes[place].weight
    step = 1e-2
    weight.data.view(-1)[flat] += step
    found = float(change.through(lambda d: weight_change(d, information[place])).detach())
    assert found == pytest.approx(
        0.5 * step**2 * float(information[place].flatten()[flat]), rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_every_anchor_trains_and_holds_the_policy_back(
    name: str, adapter: str, chain: Chain, lora_chain: Chain
) -> None:
    here = {"full": chain, "lora": lora_chain}[adapter]
    start = {"init": here.sft}

    def trained(given: Any) -> Any:
        stage = here.lab.stage("sft", steps=3, seed=7, anchor=given)
        return train(here.lab, stage, start)

    free, held = trained(None), trained(anchor(here.lab, name, weight=1e3))
    rows = held.run.metrics("train")
    assert rows[0]["anchor"] == pytest.approx(0.0, abs=1e-6)  # nothing has changed yet
    assert rows[-1]["anchor"] > 0
    assert "anchor" not in free.run.metrics("train")[0]
    assert rows[0]["loss"] == pytest.approx(free.run.metrics("train")[0]["loss"], rel=1e-5)
    assert held.differs(free) > 1e-4
    assert free.before.keys() == held.before.keys()


@pytest.mark.slow
@pytest.mark.conformance(
    "law", "distillation", "the mean over tokens of the KL between the two models' next tokens"
)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_the_divergence_of_a_step_by_definition(
    divergence: str, chain: Chain, caught: Caught
) -> None:
    lab, start = chain.lab, {"init": chain.sft}
    settings = {"divergence": {"_target_": f"{ANCHORING}.{divergence}"}, "weight": 0.7}
    given = anchor(lab, "distill", **settings)
    one = lab.run(lab.stage("sft", steps=1, batch=4, anchor=given), start)
    two = lab.run(lab.stage("sft", steps=2, batch=4, anchor=given), start)
    groups = caught.work.work.chosen(2)
    models = [plain_model(run.model_dir, lab.store.cache) for run in (one, chain.sft)]
    total, tokens = 0.0, 0
    for group in groups:
        ids = torch.tensor([ids_of(group.prompt) + ids_of(group.completions[0])])
        first = len(group.prompt) - 1
        with torch.no_grad():
            q, p = (torch.log_softmax(m(ids).logits[0, first:-1], -1) for m in models)
        between = (p.exp() * (p - q)) if divergence == "forward_kl" else (q.exp() * (q - p))
        total, tokens = total + float(between.sum()), tokens + len(q)
    row = two.metrics("train")[1]
    assert row["anchor"] == pytest.approx(total / tokens, rel=1e-3)
    assert row["loss"] == pytest.approx(row["nll"] + 0.7 * row["anchor"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.conformance("equivalence", "anchors", "micro-batches of any size are one step")
def test_micro_batches_change_nothing(name: str, chain: Chain) -> None:
    given = anchor(chain.lab, name, **({"rows": 8} if name == "ewc" else {}))
    stage = chain.lab.stage("sft", steps=3, batch=7, anchor=given)
    small = train(chain.lab, stage, {"init": chain.sft}, token_budget=40)
    large = train(chain.lab, stage, {"init": chain.sft}, token_budget=4000)
    assert small.update > 1e-3
    assert small.differs(large) < 2e-6
    one, other = small.run.metrics("train")[-1], large.run.metrics("train")[-1]
    assert one["anchor"] == pytest.approx(other["anchor"], rel=1e-4)


@pytest.mark.slow
def test_a_preference_stage_has_anchors_too(chain: Chain) -> None:
    stage, inputs = chain.prefer(steps=2, anchor=anchor(chain.lab, "distill"))
    row = chain.lab.run(stage, inputs).metrics("train")[-1]
    assert row["anchor"] > 0
    assert row["loss"] > 0.5 * row["anchor"]
    stage, inputs = chain.prefer(steps=2, anchor=anchor(chain.lab, "ewc", rows=4))
    assert chain.lab.run(stage, inputs).metrics("train")[-1]["anchor"] > 0


class Stopped(Exception):
    """The power went off."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ewc", "distill_on_policy"])
@pytest.mark.conformance(
    "equivalence", "anchors", "a training that is continued holds to the first start"
)
def test_a_continued_training_is_the_same(
    name: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignlab.engine.state import TrainState

    given = anchor(chain.lab, name, **({"rows": 4} if name == "ewc" else {}))
    stage, start = chain.lab.stage("sft", steps=4, anchor=given), {"init": chain.sft}
    straight = chain.lab.run(stage, start, checkpoint_every_seconds=0)
    save: Callable[..., None] = TrainState.save

    def stop(self: TrainState, run: Run, engine: Any) -> None:
        save(self, run, engine)
        if self.step == 2:
            raise Stopped

    again = chain.lab.new_run("sft")
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "save", stop)
        with pytest.raises(Stopped):
            chain.lab.run(stage, start, again, checkpoint_every_seconds=0)
    chain.lab.run(stage, start, again, checkpoint_every_seconds=0)
    assert largest_difference(weights(straight), weights(again)) == 0


def test_no_anchor_is_what_was_there_before(chain: Chain) -> None:
    """A run without an anchor has the key that it had before there were any."""
    from alignlab import keys

    stage: Any = chain.lab.stage("sft")
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "content_key", lambda content: seen.append(content) or "x")
        stage_key(stage, "", {})
        stage_key(chain.lab.stage("sft", anchor=anchor(chain.lab, "l2sp")), "", {})
    assert "anchor" not in seen[0]["fields"]
    assert seen[1]["fields"]["anchor"]["weight"] == 0.1


def test_the_data_of_an_anchor_are_part_of_what_a_stage_reads(chain: Chain) -> None:
    lab = chain.lab
    plain = lab.stage("sft").fingerprint()
    with_data = lab.stage("sft", anchor=anchor(lab, "ewc")).fingerprint()
    assert with_data.startswith(plain)
    assert len(with_data) > len(plain) + 8
    assert lab.stage("sft", anchor=anchor(lab, "l2sp")).fingerprint().strip() == plain.strip()


def test_what_an_anchor_holds_is_in_the_estimate(chain: Chain) -> None:
    lab = chain.lab

    def workload(given: Any) -> Any:
        return lab.stage("sft", anchor=given).estimate(lab.store.cache, {}).workload

    none, ewc, distill = (
        workload(given) for given in (None, anchor(lab, "ewc"), anchor(lab, "distill"))
    )
    assert (none.averages, ewc.averages, distill.averages) == (0, 2, 0)
    assert (none.frozen, ewc.frozen, distill.frozen) == (0, 0, 1)


def test_the_information_of_adapted_matrices_is_as_large_as_they_are(lora_chain: Chain) -> None:
    lab = lora_chain.lab
    estimate = lab.stage("sft", anchor=anchor(lab, "ewc")).estimate(lab.store.cache, {})
    copies = estimate.workload.averages - 1  # of the adapter; one is its start
    assert estimate.params_total <= copies * estimate.params_trained
    assert copies * estimate.params_trained < estimate.params_total + estimate.params_trained


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"_target_": f"{ANCHORING}.forward_kl"}, "no anchor"),
        ({"_target_": "alignlab.stages.anchors.L2SP", "weight": 0.0}, "weight"),
        ({"_target_": "alignlab.stages.anchors.L2SP", "wieght": 1.0}, "weight"),
    ],
)
def test_what_is_no_anchor_is_refused_when_planned(
    given: dict[str, Any], message: str, chain: Chain
) -> None:
    with pytest.raises(ConfigError, match=message):
        chain.lab.stage("sft", anchor=given)


def test_a_distillation_that_makes_no_sense_is_refused(chain: Chain) -> None:
    with pytest.raises(ConfigError, match="set data"):
        chain.lab.stage("sft", anchor=anchor(chain.lab, "distill", sampled=True))
    wrong = {"_target_": f"{ANCHORING}.weight_change"}
    with pytest.raises(ConfigError, match="no divergence"):
        chain.lab.stage("sft", anchor=anchor(chain.lab, "distill", divergence=wrong))
