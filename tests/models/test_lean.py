"""Lean adapters compute what peft computes, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.models.lean import lean_adapters


def model(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        initializer_range=0.2,
    )
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": 0.0}
    found = get_peft_model(LlamaForCausalLM(config), LoraConfig(**{**settings, **options})).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return found


IDS = torch.tensor([[3, 7, 11, 2, 30], [5, 5, 9, 1, 0]])


@pytest.mark.conformance(
    "equivalence", "sampling", "adapters in three operations equal peft's, to 1e-5 in float32"
)
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "down_proj"]])
def test_logits_are_pefts(modules):
    lora = model(target_modules=modules)
    with torch.no_grad():
        plain = lora(IDS).logits
        with lean_adapters(lora) as layers:
            lean = lora(IDS).logits
        again = lora(IDS).logits
    assert layers == (14 if modules == "all-linear" else 4)
    torch.testing.assert_close(lean, plain, rtol=0, atol=1e-5)
    assert not torch.equal(lean, plain)  # it was another computation
    assert torch.equal(again, plain)
    with lora.disable_adapter(), torch.no_grad():
        assert (lora(IDS).logits - plain).abs().max() > 0.1


def test_bfloat16_products_are_as_near_to_float32_as_pefts():
    lora = model()
    with torch.no_grad():
        exact = lora(IDS).logits
        with torch.autocast("cpu", torch.bfloat16):
            plain = lora(IDS).logits.float()
            with lean_adapters(lora):
                lean = lora(IDS).logits.float()
    errors = [float((x - exact).square().mean().sqrt()) for x in (lean, plain)]
    assert errors[0] < 1.1 * errors[1]


def test_the_active_adapter_counts():
    lora = model()
    lora.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    lora.set_adapter("other")
    with torch.no_grad(), lean_adapters(lora) as layers:
        assert layers == 2
        changed = lora(IDS).logits
    lora.set_adapter("default")
    with torch.no_grad(), lean_adapters(lora) as layers:
        assert layers == 14
        assert not torch.allclose(lora(IDS).logits, changed, atol=0.1)


@pytest.mark.parametrize(
    "case", ["dora", "bias of B", "merged", "adapters off", "two adapters", "no adapter"]
)
def test_what_is_not_plain_is_left_to_peft(case):
    options = {"dora": {"use_dora": True}, "bias of B": {"lora_bias": True}}.get(case, {})
    lora = model(**options)
    if case == "merged":
        lora.merge_adapter()
    elif case == "adapters off":
        lora.base_model.disable_adapter_layers()
    elif case == "two adapters":
        lora.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
        lora.base_model.set_adapter(["default", "other"])
    elif case == "no adapter":
        lora = lora.unload()
    with torch.no_grad():
        plain = lora(IDS).logits
        with lean_adapters(lora) as layers:
            assert layers == 0
            assert torch.equal(lora(IDS).logits, plain)


def test_forward_is_restored_after_an_error():
    lora = model()
    with pytest.raises(RuntimeError, match="stop"), lean_adapters(lora):
        raise RuntimeError("stop")
    assert all("forward" not in vars(module) for module in lora.modules())
