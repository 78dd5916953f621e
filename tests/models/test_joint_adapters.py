"""Adapters that are computed together compute what peft's layers do, and so do their gradients."""

from __future__ import annotations

import weakref

import peft
import pytest
import torch
from counting import Counting
from lora_cases import adapted, llama, stirred
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from alignlab.models.joint_adapters import joint_adapters
from alignlab.models.lean import lean_layers

IDS = torch.tensor([[3, 7, 11, 2, 30], [5, 5, 9, 1, 0]])


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config)


def run(model, dtype=torch.float32):
    """Outputs and all gradients of one pass whose loss weighs every output by itself."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(IDS)[0].float()
    weights = torch.sin(torch.arange(out.numel())).view_as(out)
    (out * weights).sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out.detach(), grads


def assert_same(found, expected, tolerance):
    assert found[1].keys() == expected[1].keys()
    pairs = {"output": (found[0], expected[0])}
    pairs |= {name: (found[1][name], grad) for name, grad in expected[1].items()}
    for name, (one, other) in pairs.items():
        assert one.dtype == other.dtype, name
        off = (one - other).norm() / other.norm()
        assert off <= tolerance, f"{name}: {off:.1e}"


@pytest.mark.conformance(
    "equivalence",
    "adapters computed together",
    "outputs and gradients are those of peft's layers, to 1e-5 in float32",
)
@pytest.mark.parametrize(
    ("base", "modules", "layers"),
    [
        (llama, "all-linear", 14),
        (llama, ["k_proj", "up_proj", "down_proj"], 6),
        (llama, ["v_proj"], 2),
        (bert, ["query", "value", "dense"], 11),  # three dense ones in a layer, and the pooler
    ],
)
def test_outputs_and_gradients_are_pefts(base, modules, layers):
    lora = adapted(base(), target_modules=modules)
    plain = run(lora)
    with joint_adapters(lora) as joined:
        joint = run(lora)
    again = run(lora)
    assert joined == layers
    assert not torch.equal(joint[0], plain[0])  # it was another computation
    assert_same(joint, plain, 1e-5)
    assert_same(again, plain, 0.0)  # and left no trace


def test_in_bfloat16_both_are_as_near_to_float32():
    lora = adapted(llama())
    exact = run(lora)
    plain = run(lora, torch.bfloat16)
    with joint_adapters(lora):
        joint = run(lora, torch.bfloat16)
    for name, grad in exact[1].items():
        off = [float((run_[1][name] - grad).norm() / grad.norm()) for run_ in (plain, joint)]
        assert off[1] < 1.3 * off[0] + 0.01, (name, off)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        # Of a block's seven layers: W, A and B each, of which A is one for q, k, v and one for
        # gate, up. The head is one product in both.
        (llama, (2 * 21 + 1, 2 * 18 + 1)),
        # Six layers and the pooler; A is one for query, key, value.
        (bert, (2 * 18 + 3, 2 * 16 + 3)),
    ],
)
def test_one_product_of_first_factors_for_what_reads_one_tensor(base, expected):
    lora = adapted(base())
    plain = products(lora)
    with joint_adapters(lora):
        assert (plain, products(lora)) == expected


def products(model):
    with Counting() as counted:
        model(IDS)
    return counted.calls["mm"] + counted.calls["addmm_"]


def test_what_siblings_read_is_kept_once():
    lora = adapted(llama())
    for parameter in lora.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    weights = {p.untyped_storage().data_ptr() for p in lora.parameters()}
    ids = IDS.repeat(1, 12)

    def kept():
        bytes_by_place = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            bytes_by_place[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            alive = lora(ids)
        assert alive is not None
        return sum(n for place, n in bytes_by_place.items() if place not in weights)

    plain = kept()
    with joint_adapters(lora):
        joint = kept()
    # Copies that peft's layers keep of their own: two of q, k, v and one of gate, up, per block.
    copies = 2 * 3 * ids.numel() * 32 * 2
    assert joint < plain - copies, (joint, plain, copies)


def test_several_active_adapters_of_unlike_rank_add_up():
    lora = adapted(llama())
    lora.add_adapter("more", LoraConfig(r=3, lora_alpha=2, target_modules=["q_proj", "v_proj"]))
    stirred(lora)
    lora.base_model.set_adapter(["default", "more"])
    plain = run(lora)
    assert any(".more." in name for name in plain[1])
    with joint_adapters(lora):
        assert_same(run(lora), plain, 1e-5)


@pytest.mark.parametrize("frozen", ["q_proj", "v_proj"])
def test_no_gradient_is_made_for_a_frozen_adapter(frozen):
    lora = adapted(llama())
    for name, parameter in lora.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    plain = run(lora)
    assert not any(frozen in name for name in plain[1])
    with joint_adapters(lora):
        assert_same(run(lora), plain, 1e-5)
        with torch.no_grad():
            torch.testing.assert_close(lora(IDS)[0], plain[0], rtol=1e-5, atol=1e-5)


def test_layers_computed_again_in_the_backward_pass():
    lora = adapted(llama())
    plain = run(lora)
    lora.train()
    lora.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    lora.enable_input_require_grads()
    again = run(lora)
    assert_same(again, plain, 1e-5)
    with joint_adapters(lora):
        assert_same(run(lora), plain, 1e-5)


class Apart(torch.nn.Module):
    """Layers of names that read one tensor elsewhere, here given two, or one never asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q_proj = torch.nn.Linear(6, 5)
        self.k_proj = torch.nn.Linear(6, 4)
        self.v_proj = torch.nn.Linear(6, 3)

    def forward(self, x, other, *, order="qk"):
        parts = {"q": lambda: self.q_proj(x), "k": lambda: self.k_proj(other)}
        return torch.cat([parts[name]() for name in order], -1)


@pytest.mark.parametrize("order", ["qk", "kq", "qkq", "qq", "q"])
def test_names_may_promise_too_much(order):
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"])
    model = stirred(get_peft_model(Apart(), config))
    x, other = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)

    def result():
        model(x, other, order=order).square().sum().backward()
        weights = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found = {"x": x.grad, "other": other.grad} | weights
        x.grad = other.grad = None
        model.zero_grad(set_to_none=True)
        return {name: grad for name, grad in found.items() if grad is not None and grad.any()}

    plain = result()
    with joint_adapters(model):
        joint = result()
    assert joint.keys() == plain.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(joint[name], grad, rtol=1e-5, atol=1e-5)


def test_what_is_more_than_a_low_rank_update_is_left_to_peft():
    def joined(train=False, **options):
        lora = adapted(llama(), **options).train(train)
        with joint_adapters(lora) as layers:
            return layers

    assert joined() == 14
    assert joined(use_dora=True) == 0
    assert joined(lora_bias=True, target_modules=["q_proj"]) == 0
    assert joined(lora_dropout=0.1) == 14  # while it drops nothing
    assert joined(lora_dropout=0.1, train=True) == 0
    lora = adapted(llama())
    with lora.disable_adapter(), joint_adapters(lora) as layers:
        assert layers == 0
    lora.merge_adapter()
    with joint_adapters(lora) as layers:
        assert layers == 0
    lora.unmerge_adapter()
    with joint_adapters(lora) as layers:
        assert layers == 14
    for parameter in lora.parameters():
        parameter.requires_grad_(True)  # a trained base needs gradients of its own
    with joint_adapters(lora) as layers:
        assert layers == 0


class Louder(peft.tuners.lora.Linear):
    """A LoRA layer that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_of_other_kinds_are_left_as_they_are():
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2)
    lora = adapted(GPT2Model(config), target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    with joint_adapters(lora) as layers:
        assert layers == 0  # GPT-2's layers are transposed, and an embedding is none
    lora = adapted(llama())
    block = lora.base_model.model.model.layers[0].mlp
    block.up_proj.__class__ = Louder
    block.gate_proj.forward = forward = lambda x: x  # somebody else's
    with joint_adapters(lora) as layers:
        assert layers == 12
        assert block.gate_proj.forward is forward
        assert "forward" not in vars(block.up_proj)
    assert block.gate_proj.forward is forward


def test_layers_of_no_active_adapter_are_left_to_peft():
    lora = adapted(llama(), target_modules=["q_proj", "v_proj"])
    lora.add_adapter("more", LoraConfig(r=3, target_modules=["v_proj"]))
    stirred(lora)
    lora.base_model.set_adapter(["more"])
    plain = run(lora)
    with joint_adapters(lora) as layers:
        assert layers == 2
        assert_same(run(lora), plain, 1e-5)


def test_no_layer_stays_as_it_was():
    lora = adapted(llama())
    with joint_adapters(lora):
        own = [name for name, module in lora.named_modules() if "forward" in vars(module)]
    assert len(own) == 14


def test_nothing_is_kept_from_one_pass_to_the_next():
    lora = adapted(llama())
    read = []
    mlp = lora.base_model.model.model.layers[0].mlp
    hook = mlp.register_forward_pre_hook(lambda _, given: read.append(weakref.ref(given[0])))
    with joint_adapters(lora), torch.no_grad():
        lora(IDS)
        assert read.pop()() is None
    hook.remove()


def test_a_scale_is_no_second_rounding():
    """The gradient of B is the product's, in bfloat16, times s = 1.5 in float32."""
    lora = adapted(llama())
    with joint_adapters(lora):
        grads = run(lora, torch.bfloat16)[1]
    for name, grad in grads.items():
        if "lora_B" in name:
            assert torch.equal(grad / 1.5, (grad / 1.5).bfloat16().float()), name


def test_weights_that_deepspeed_shards_are_left_where_its_hooks_bring_them():
    lora = adapted(llama())
    lora.base_model.model.lm_head.weight.ds_id = 0  # not a layer with an adapter
    lora.base_model.model.model.layers[0].self_attn.k_proj.base_layer.weight.ds_id = 1
    with joint_adapters(lora) as layers:
        assert layers == 13


def test_decoding_takes_its_own_layers_inside_and_gives_them_back():
    lora = adapted(llama()).eval()
    with torch.no_grad():
        plain = lora(IDS)[0]
        with joint_adapters(lora):
            layer = lora.base_model.model.model.layers[0].self_attn.q_proj
            own = layer.forward
            with lean_layers(lora) as layers:
                assert layers == 15
                lora(IDS)
                torch.testing.assert_close(lora(IDS)[0], plain, rtol=0, atol=1e-5)
                assert layer.forward is not own
            assert layer.forward is own
            torch.testing.assert_close(lora(IDS)[0], plain, rtol=0, atol=1e-5)
    assert "forward" not in vars(layer)


def test_a_failed_pass_leaves_nothing_behind():
    lora = adapted(llama())
    with pytest.raises(RuntimeError), joint_adapters(lora):
        lora.base_model.model.model.layers[0].self_attn.q_proj(torch.zeros(2, 7))
    assert not any("forward" in vars(module) for module in lora.modules())
