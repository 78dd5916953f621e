"""FlexAttention over the flat batch: the same attention as by blocks, on what can be run here.

There was no GPU: torch's uncompiled form stands for its kernels. It refuses gradients on a CPU,
which is lifted where gradients are compared.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_cases import architecture, backbone_config, make_batch, random_model
from test_grouped_attention import by_definition
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from alignlab.errors import ConfigError
from alignlab.models import flex
from alignlab.models import grouped_attention as ga
from alignlab.models.attention_plan import NO_LEAD, Lead, attention_plan
from alignlab.models.backbone import Backbone
from alignlab.models.flex import flex_plan, places
from alignlab.models.grouped_attention import grouped_attention
from alignlab.models.layout import chosen_layout, hidden_states
from alignlab.models.soft_prompts import PrefixTuning, PromptTuning
from alignlab.models.view import View
from alignlab.tensors import GroupSpan

SPANS = (GroupSpan((0, 2), ((2, 5), (5, 6))), GroupSpan((6, 7), ((7, 9),)))


@pytest.fixture
def with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch differentiate FlexAttention on a CPU."""
    module = "torch.nn.attention.flex_attention"
    monkeypatch.setattr(f"{module}._validate_device", lambda *tensors: None)


def attend(plan: Any, q: Any, k: Any, v: Any, **options: Any) -> torch.Tensor:
    out, weights = grouped_attention(
        torch.nn.Identity(), q, k, v, None, **{ga.PLAN: plan}, **options
    )
    assert weights is None
    return out


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=generator, requires_grad=True)


def test_places_by_hand() -> None:
    group, part = places(SPANS, 2)
    assert group.tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert part.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 0, 1, 1]


def test_who_sees_whom_by_hand() -> None:
    plan = flex_plan(SPANS, "cpu", Lead(1, tokens=False))
    seen = [
        [key for key in range(10) if plan.mask.mask_mod(*map(torch.tensor, (0, 0, query, key)))]
        for query in range(9)
    ]
    assert seen == [
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 6],  # the second completion: not the first one's tokens
        [0, 7],
        [0, 7, 8],
        [0, 7, 8, 9],
    ]
    assert plan.longest == 1 + 2 + 3
    assert flex_plan(SPANS, "cpu", Lead(1, tokens=False)) is plan  # once for all layers and passes


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "FlexAttention over the flat batch",
    "is attention written out token by token, in value and gradient, to 1e-5 (float32, CPU)",
)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_equals_the_definition(batch, heads, softcap, with_gradients) -> None:
    q, k, v = (
        numbers(h, batch.tokens, 8, seed=i) for i, h in enumerate((heads[0], heads[1], heads[1]))
    )
    plan = flex_plan(batch.spans, "cpu", NO_LEAD)
    ours = attend(plan, q, k, v, scaling=0.3, softcap=softcap)
    theirs = by_definition(q, k, v, batch.spans, 0.3, softcap)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    seed = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * seed).sum(), (q, k, v)),
        torch.autograd.grad((theirs * seed).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lead", [Lead(3, tokens=True), Lead(3, tokens=False)])
def test_what_leads_is_seen_by_all(batch, lead) -> None:
    behind = 0 if lead.tokens else lead.length
    tokens = batch.tokens + lead.length - behind
    q, k, v = (numbers(h, tokens, 8, seed=i).detach() for i, h in enumerate((4, 2, 2)))
    extra = [(numbers(2, behind, 8, seed=3).detach(),) * 2] if behind else None
    options = {ga.LEAD: extra} if extra else {}
    module = torch.nn.Identity()
    module.layer_idx = 0  # type: ignore[assignment]
    found = []
    for make in (flex_plan, attention_plan):
        plan = {ga.PLAN: make(batch.spans, "cpu", lead)}
        found.append(grouped_attention(module, q, k, v, None, scaling=0.4, **plan, **options)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gpt2"])
def test_models_have_the_same_states(model_type, batch) -> None:
    model = random_model(architecture(model_type))
    with torch.no_grad():
        flex, padded = (hidden_states(model, batch, layout) for layout in ("flex", "padded"))
    torch.testing.assert_close(flex, padded, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "technique", [PromptTuning(tokens=5, start="random"), PrefixTuning(tokens=5, hidden=None)]
)
def test_soft_prompts_have_the_same_states(technique, batch, cache) -> None:
    backbone = Backbone.load(replace(backbone_config(), adapter=technique), cache)
    backbone.add("policy", source=None, trainable=True)
    with torch.no_grad(), backbone.view("policy") as view:
        flex, padded = (hidden_states(view.model, batch, layout) for layout in ("flex", "padded"))
    torch.testing.assert_close(flex, padded, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_view_computes_with_it_up_to_the_window(batch, monkeypatch) -> None:
    taken = []

    def states(model, batch, layout, *others):
        taken.append(layout)
        return hidden_states(model, batch, layout, *others)

    monkeypatch.setattr("alignlab.models.view.hidden_states", states)
    longest = attention_plan(batch.spans, "cpu").longest
    for window in (longest, longest - 1):
        model = random_model(architecture("mistral", sliding_window=window))
        with torch.no_grad():
            View("policy", model, None, layout="flex", dtype=torch.float32).logps(batch)
    assert taken == ["flex", "padded"]


def test_it_is_chosen_on_a_gpu_alone(cache) -> None:
    config = architecture("llama")
    assert chosen_layout("flex", config, "cuda")[0] == "flex"
    assert chosen_layout("auto", config, "cuda")[0] == "grouped"
    with pytest.raises(ConfigError, match=r"layout=flex needs a CUDA device.*Use layout=auto"):
        chosen_layout("flex", config, "cpu")
    with pytest.raises(ConfigError, match="layout=flex does not fit: bloom"):
        chosen_layout("flex", architecture("bloom"), "cuda")
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        Backbone.load(backbone_config(layout="flex"), cache)


def test_dropped_weights_are_refused() -> None:
    q, k, v = numbers(4, 9, 8), numbers(4, 9, 8), numbers(4, 9, 8)
    with pytest.raises(ConfigError, match=r"cannot drop attention weights \(here 0.1\)"):
        attend(flex_plan(SPANS, "cpu", NO_LEAD), q, k, v, dropout=0.1)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_the_same_for_any_number_of_tokens() -> None:
    # The forward pass alone: compiled for CPUs it has no backward pass.
    torch._dynamo.reset()
    sizes = [
        ((40, (30, 20, 70)), (90, (30,))),
        ((50, (33, 20, 71)), (91, (30, 33))),
        ((14, (30,)), (9, (31, 167))),
    ]
    make, kernel = flex._compiled(create_block_mask), flex._compiled(flex_attention)
    for size in sizes:
        batch = make_batch(size)
        plan = flex_plan(batch.spans, "cpu", NO_LEAD)
        tokens = batch.tokens
        mask = make(plan.mask.mask_mod, None, None, tokens, tokens, device="cpu")
        assert torch.equal(mask.to_dense(), plan.mask.to_dense())
        q, k, v = (numbers(h, tokens, 16, seed=i).detach() for i, h in enumerate((4, 2, 2)))
        found = kernel(q, k, v, block_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
        expected = attend(attention_plan(batch.spans, "cpu"), q, k, v, scaling=0.3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] <= 4  # each once, and once for any number
