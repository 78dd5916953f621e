"""Low-rank adapters: the same promises, an unmoved base, and exports that are the policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_lab import (
    Caught,
    Chain,
    largest_difference,
    objective,
    plain_model,
    token_logps,
    weight_hashes,
    weights,
)

from alignlab.models.export import export_model
from alignlab.models.load import resolve
from alignlab.stages.annotate import read
from alignlab.stages.reference import completion_sums


def base_weights(caught: Caught) -> dict[str, torch.Tensor]:
    """Weights of the one base under the adapters, by the names they have on disk."""
    with caught.backbone.view("policy") as view:
        named = dict(view.model.named_parameters())
    return {
        name.replace(".base_layer", ""): value.detach()
        for name, value in named.items()
        if ".lora_" not in name
    }


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "LoRA: DPO, KTO, PPO, GRPO",
    "training leaves every bit of the base as it was",
)
@pytest.mark.parametrize("name", ["dpo", "kto", "ppo", "grpo"])
def test_the_base_stays_as_it_was(lora_chain: Chain, caught: Caught, name: str) -> None:
    if name in ("dpo", "kto"):
        stage, inputs = lora_chain.prefer(objective=objective(name))
    else:
        stage, inputs = lora_chain.online(name)
    run = lora_chain.lab.run(stage, inputs)
    on_disk = load_file(resolve("random:tiny", lora_chain.lab.store.cache) / "model.safetensors")
    found = base_weights(caught)
    assert set(on_disk) <= set(found)
    assert all(torch.equal(found[key], value) for key, value in on_disk.items())
    assert largest_difference(weights(run), weights(lora_chain.sft)) > 1e-3
    trained = set(caught.backbone.trainable_parameters("policy"))
    assert trained
    assert all(".lora_" in key for key in trained)
    assert run.record["params_trained"] < run.record["params_total"] / 4


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "LoRA: DPO",
    "budget and layout do not change the adapter",
)
@pytest.mark.parametrize("change", ["token_budget", "layout"])
def test_micro_batches_and_layout_do_not_change_the_adapter(lora_chain: Chain, change: str) -> None:
    stage, inputs = lora_chain.prefer(pairs="all")
    one = lora_chain.lab.run(stage, inputs)
    if change == "layout":
        padded, _ = lora_chain.prefer(pairs="all", backbone__layout="padded")
        other = lora_chain.lab.run(padded, inputs)
    else:
        other = lora_chain.lab.run(stage, inputs, token_budget=64)
    assert largest_difference(weights(one), weights(other)) < 1e-5


def test_the_first_loss_says_that_policy_and_reference_are_the_sft_adapter(
    lora_chain: Chain,
) -> None:
    stage, inputs = lora_chain.prefer()
    first = lora_chain.lab.run(stage, inputs).metrics("train")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    # and that is not the bare base, whose log-probs are others
    base = plain_model(resolve("random:tiny", lora_chain.lab.store.cache), Path())
    group = stage.select(read(lora_chain.annotations, "train"))[0]
    sft = plain_model(lora_chain.sft.model_dir, lora_chain.lab.store.cache)
    with torch.no_grad():
        one = token_logps(base, group.prompt, group.completions[0]).sum()
        two = token_logps(sft, group.prompt, group.completions[0]).sum()
    assert abs(one - two) > 0.1


@pytest.mark.slow
def test_ppo_with_four_views_on_one_base(lora_chain: Chain, caught: Caught) -> None:
    stage, inputs = lora_chain.online("ppo", ppo_epochs=2)
    run = lora_chain.lab.run(stage, inputs)
    assert set(caught.backbone.views) == {"policy", "reference", "value", "reward"}
    value = caught.backbone.trainable_parameters("value")
    assert {"head.linear.weight", "head.linear.bias"} < set(value)
    first = run.metrics("train")[0]
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    for frozen in ("reference", "reward"):
        assert caught.backbone.trainable_parameters(frozen) == {}
    # reward and value started alike; only the value view has moved
    groups = caught.work.experience.groups
    from alignlab.stages.reward import scores_of

    scores = scores_of(caught.backbone, "reward", groups, lora_chain.lab.engine)
    assert torch.allclose(scores, caught.work.experience.scores, atol=1e-5)
    moved = scores_of(caught.backbone, "value", groups, lora_chain.lab.engine)
    assert float((moved - scores).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "LoRA: DPO",
    "the export, merged or not, gives the trained view's logits in plain transformers, to 1e-5",
)
@pytest.mark.parametrize("merge", [True, False])
def test_an_export_is_the_policy(
    lora_chain: Chain, caught: Caught, tmp_path: Path, merge: bool
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    stage, inputs = lora_chain.prefer()
    run = lora_chain.lab.run(stage, inputs)
    export_model(run.model_dir, tmp_path / "out", lora_chain.lab.store.cache, merge=merge)
    kind = AutoModelForCausalLM if merge else AutoPeftModelForCausalLM
    model = kind.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[1, 40, 50, 60, 70, 80]])
    with caught.backbone.view("policy") as view, torch.no_grad():
        expected = view.model(input_ids=ids).logits
        found = model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(
        resolve("random:tiny", lora_chain.lab.store.cache)
    ).eval()
    with torch.no_grad():
        assert float((base(input_ids=ids).logits - expected).abs().max()) > 1e-2


@pytest.mark.conformance(
    "equivalence",
    "LoRA: DPO",
    "the saved adapter gives the live view's log-probs in plain peft",
)
def test_a_saved_adapter_is_the_view_that_was_trained(lora_chain: Chain, caught: Caught) -> None:
    stage, inputs = lora_chain.prefer()
    run = lora_chain.lab.run(stage, inputs)
    groups = read(lora_chain.annotations, "validation")
    with torch.no_grad():
        live = completion_sums(caught.backbone, "policy", groups, lora_chain.lab.engine)
        model = plain_model(run.model_dir, lora_chain.lab.store.cache)
        plain = [token_logps(model, g.prompt, c).sum() for g in groups for c in g.completions]
    assert torch.allclose(live.double(), torch.stack(plain), atol=1e-4)


@pytest.mark.conformance(
    "determinism",
    "LoRA: SFT",
    "the same command gives the same adapter bit for bit, whatever ran before",
)
def test_the_same_command_gives_the_same_adapter(lora_chain: Chain) -> None:
    """Fresh adapters start from (seed, view), so nothing depends on what ran before."""
    stage = lora_chain.lab.stage("sft", steps=2)
    one = lora_chain.lab.run(stage, {})
    torch.manual_seed(12345)
    two = lora_chain.lab.run(stage, {})
    assert weight_hashes(one) == weight_hashes(two)
