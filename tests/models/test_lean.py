"""Layers that are computed together compute what each would alone, and leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from lora_cases import adapted, llama
from peft import LoraConfig

from alignlab.models.lean import lean_layers


def model(**options):
    return adapted(llama(), **options).eval()


IDS = torch.tensor([[3, 7, 11, 2, 30], [5, 5, 9, 1, 0]])


def passes(found, ids=IDS):
    """Logits of a first pass, which shows what reads the same tensor, and of one after it."""
    return found(ids).logits, found(ids).logits


@pytest.mark.conformance(
    "equivalence", "sampling", "layers as one product equal peft's one by one, to 1e-5 in float32"
)
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "down_proj"], ["v_proj"]])
def test_logits_are_pefts(modules):
    lora = model(target_modules=modules)
    with torch.no_grad():
        plain = lora(IDS).logits
        with lean_layers(lora) as layers:
            first, second = passes(lora)
        again = lora(IDS).logits
    assert layers == 15  # seven in each of two blocks, and the head
    for lean in (first, second):
        torch.testing.assert_close(lean, plain, rtol=0, atol=1e-5)
    assert not torch.equal(second, plain)  # it was another computation
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)
    with lora.disable_adapter(), torch.no_grad():
        assert (lora(IDS).logits - plain).abs().max() > 0.1


def test_one_product_for_what_reads_one_tensor(monkeypatch):
    lora, calls = model(), []
    plain = torch.nn.functional.linear

    def counted(*args):
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    with torch.no_grad(), lean_layers(lora):
        lora(IDS)
        one_by_one = len(calls)
        lora(IDS)
    # A block has seven layers with two products each, and then four: qkv, o, gate and up, down.
    assert (one_by_one, len(calls) - one_by_one) == (2 * 14 + 1, 2 * 4 + 1)


def test_bfloat16_products_are_as_near_to_float32_as_pefts():
    lora = model()
    bases = [m.base_layer.weight for m in lora.modules() if hasattr(m, "base_layer")]
    for weight in bases:
        weight.data = weight.data.bfloat16().float()
    with torch.no_grad():
        exact = lora(IDS).logits
        for weight in bases:  # as a backbone stores what is frozen
            weight.data = weight.data.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            plain = lora(IDS).logits.float()
            with lean_layers(lora):
                lean = passes(lora)[1].float()
    errors = [float((x - exact).square().mean().sqrt()) for x in (lean, plain)]
    assert errors[0] < 1.1 * errors[1]


def test_frozen_weights_share_memory_and_stay_what_they_are():
    lora = model()
    block = lora.base_model.model.model.layers[0].self_attn
    before = copy.deepcopy(lora.state_dict())
    with torch.no_grad(), lean_layers(lora):
        passes(lora)
    parts = [p.base_layer.weight for p in (block.q_proj, block.k_proj, block.v_proj)]
    storage = parts[0].untyped_storage()
    assert {p.untyped_storage().data_ptr() for p in parts} == {storage.data_ptr()}
    # Rows of 32 float32: 32 + 16 + 16 of the weights, 3 x 4 of the adapters' first factors.
    assert storage.nbytes() == (32 + 16 + 16 + 12) * 32 * 4
    assert all(torch.equal(value, before[name]) for name, value in lora.state_dict().items())
    with torch.no_grad(), lean_layers(lora):
        passes(lora)
    assert parts[0].untyped_storage().data_ptr() == storage.data_ptr()  # they lie there already
    loss = lora(IDS).logits.square().mean()
    loss.backward()
    assert block.q_proj.lora_A["default"].weight.grad.abs().max() > 0


def test_the_adapters_of_now_are_computed():
    lora = model()
    for std in (0.3, 0.6):
        with torch.no_grad():
            for name, parameter in lora.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=std)
            plain = lora(IDS).logits
            with lean_layers(lora):
                lean = passes(lora)[1]
        torch.testing.assert_close(lean, plain, rtol=0, atol=1e-4)


def test_trained_weights_stay_where_an_optimizer_knows_them():
    lora = model().unload().requires_grad_(True)
    places = {name: p.data_ptr() for name, p in lora.named_parameters()}
    for reduced in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            plain = lora(IDS).logits
            with lean_layers(lora):
                assert torch.equal(passes(lora)[1], plain)
    assert {name: p.data_ptr() for name, p in lora.named_parameters()} == places


def test_weights_in_memory_of_others_stay_there():
    lora = model()
    layer = lora.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    shares = torch.zeros(3, *layer.weight.shape)  # as an engine that keeps many in one
    shares[1] = layer.weight
    layer.weight.data = shares[1]
    with torch.no_grad():
        plain = lora(IDS).logits
        with lean_layers(lora):
            torch.testing.assert_close(passes(lora)[1], plain, rtol=0, atol=1e-5)
    assert layer.weight.data_ptr() == shares[1].data_ptr()


def test_a_layer_that_is_given_something_else_is_not_answered_with_its_siblings():
    lora = model()
    block = lora.base_model.model.model.layers[0].self_attn
    x, y = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    with torch.no_grad():
        plain = [block.q_proj(x), block.k_proj(y), block.v_proj(x), block.q_proj(y)]
        with lean_layers(lora):
            passes(lora)
            lean = [block.q_proj(x), block.k_proj(y), block.v_proj(x), block.q_proj(y)]
    for mine, theirs in zip(lean, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_the_active_adapter_counts():
    lora = model()
    lora.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    logits = {}
    for name in ("other", "default", "other"):  # of other ranks: the memory is made anew
        lora.set_adapter(name)
        with torch.no_grad():
            plain = lora(IDS).logits
            with lean_layers(lora):
                logits[name] = passes(lora)[1]
        torch.testing.assert_close(logits[name], plain, rtol=0, atol=1e-5)
    assert not torch.allclose(logits["other"], logits["default"], atol=0.1)


def test_two_adapters_at_a_time_are_one_of_their_joint_rank():
    lora = model()
    lora.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B.other" in name:
                parameter.normal_(std=0.3)
        one = lora(IDS).logits
        lora.base_model.set_adapter(["default", "other"])
        both = lora(IDS).logits
        with lean_layers(lora):
            torch.testing.assert_close(passes(lora)[1], both, rtol=0, atol=1e-5)
    assert (both - one).abs().max() > 0.1


@pytest.mark.parametrize("case", ["dora", "bias of B", "merged", "adapters off"])
def test_what_is_not_plain_is_left_to_peft(case):
    options = {"dora": {"use_dora": True}, "bias of B": {"lora_bias": True}}.get(case, {})
    lora = model(**options)
    if case == "merged":
        lora.merge_adapter()
    elif case == "adapters off":
        lora.base_model.disable_adapter_layers()
    with torch.no_grad():
        plain = lora(IDS).logits
        with lean_layers(lora) as layers:
            assert layers == 1  # the head, which has no adapter
            assert torch.equal(passes(lora)[1], plain)


def test_forward_is_restored_after_an_error():
    lora = model()
    with pytest.raises(IndexError), lean_layers(lora):
        lora(torch.tensor([[40]]))  # of 40 tokens
    assert all("forward" not in vars(module) for module in lora.modules())
