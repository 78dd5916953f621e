from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_cases import architecture, make_batch, random_model

from alignlab.models import grouped_attention as ga
from alignlab.models.attention_plan import WASTE_PAIRS, WASTE_SHARE, attention_plan
from alignlab.models.grouped_attention import grouped_attention
from alignlab.models.layout import GROUPED, hidden_states
from alignlab.tensors import GroupSpan


def named(model_type: str) -> Any:
    """A row of its own on the conformance page."""
    claim = "flat ≡ padded in value and gradient, to 1e-5"
    mark = pytest.mark.conformance("architecture", model_type, claim)
    return pytest.param(model_type, id=model_type, marks=mark)


def by_definition(q, k, v, spans, scale, softcap=None):
    """Attention of every token over its prompt and its own completion, one token at a time."""
    q, k, v = q[0], k[0], v[0]
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    out = torch.zeros(q.shape[1], q.shape[0], q.shape[2], dtype=q.dtype)
    for span in spans:
        for own in (span.prompt, *span.completions):
            for token in range(*own):
                seen = list(range(*span.prompt)) if own != span.prompt else []
                seen += range(own[0], token + 1)
                scores = torch.einsum("hd,hsd->hs", q[:, token], k[:, seen]) * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                out[token] = torch.einsum("hs,hsd->hd", scores.softmax(-1), v[:, seen])
    return out[None]


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "attention over the flat batch",
    "is attention written out token by token, in value and gradient, to 1e-12 (float64)",
)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_equals_the_definition_in_value_and_gradient(batch, heads, softcap) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, h, batch.tokens, 8, dtype=torch.float64, requires_grad=True)
        for h in (heads[0], heads[1], heads[1])
    )
    plan = attention_plan(batch.spans, "cpu")
    options = {"scaling": 0.3, "softcap": softcap, ga.PLAN: plan}
    ours, weights = grouped_attention(torch.nn.Identity(), q, k, v, None, **options)
    theirs = by_definition(q, k, v, batch.spans, 0.3, softcap)
    assert weights is None
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    seed = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * seed).sum(), (q, k, v)),
        torch.autograd.grad((theirs * seed).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [named(model_type) for model_type in sorted(GROUPED)])
def test_flat_equals_padded_in_value_and_gradient(model_type, batch) -> None:
    model = random_model(architecture(model_type))
    seed = torch.randn(len(batch.target_ids), model.config.hidden_size)
    values, gradients = [], []
    for layout in ("grouped", "padded"):
        model.zero_grad()
        hidden = hidden_states(model, batch, layout).index_select(0, batch.predictor_index)
        (hidden * seed).sum().backward()
        values.append(hidden.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)
    assert values[0].abs().max() > 0.5
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())), name


@pytest.mark.conformance(
    "equivalence",
    "attention over the flat batch",
    "another completion of the same prompt changes no bit",
)
def test_a_completion_does_not_see_its_sibling(batch) -> None:
    model = random_model(architecture("llama"))
    (start, end), sibling = batch.spans[0].completions[0], batch.spans[0].completions[1]
    ids = batch.input_ids.clone()
    ids[start:end] += 1
    with torch.no_grad():
        before = hidden_states(model, batch, "grouped")
        after = hidden_states(model, replace(batch, input_ids=ids), "grouped")
    assert (before[start:end] - after[start:end]).abs().max() > 0.1
    assert torch.equal(before[slice(*sibling)], after[slice(*sibling)])
    assert torch.equal(before[slice(*batch.spans[0].prompt)], after[slice(*batch.spans[0].prompt)])


@pytest.mark.conformance(
    "equivalence",
    "attention over the flat batch",
    "gradient checkpointing recomputes with the same layout: gradients bit for bit",
)
def test_gradient_checkpointing_keeps_the_plan(batch) -> None:
    model = random_model(architecture("llama"))
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        hidden_states(model, batch, "grouped").square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.conformance(
    "equivalence",
    "attention over the flat batch",
    "without the flat layout it is transformers' sdpa, bit for bit",
)
def test_without_a_plan_it_is_ordinary_attention(batch) -> None:
    from transformers import AutoModelForCausalLM

    model = random_model(architecture("llama"))
    plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="sdpa").eval()
    plain.load_state_dict(model.state_dict())
    ids = batch.input_ids[:24].view(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # left padding, as in generation
    with torch.no_grad():
        ours, theirs = (m(ids, attention_mask=mask).logits for m in (model, plain))
        assert torch.equal(ours[mask.bool()], theirs[mask.bool()])
        options = {"max_new_tokens": 5, "do_sample": False}
        generated = [m.generate(ids, attention_mask=mask, **options) for m in (model, plain)]
    assert torch.equal(*generated)


def test_a_lost_plan_is_an_error() -> None:
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(RuntimeError, match="lost"):
        grouped_attention(torch.nn.Identity(), x, x, x, ga.placeholder_mask("cpu"))


@pytest.mark.parametrize("term", ["s_aux", "position_bias"])
def test_an_unknown_attention_term_is_refused(batch, term) -> None:
    x = torch.randn(1, 2, batch.tokens, 4)
    options = {ga.PLAN: attention_plan(batch.spans, "cpu"), term: torch.ones(2)}
    with pytest.raises(NotImplementedError, match=term):
        grouped_attention(torch.nn.Identity(), x, x, x, None, **options)


def test_rows_beyond_a_sliding_window_are_refused(batch) -> None:
    x = torch.randn(1, 2, batch.tokens, 4)
    plan = attention_plan(batch.spans, "cpu")
    assert plan.longest == 17 + 20  # the last group's prompt and its first completion
    options = {ga.PLAN: plan, "sliding_window": 36}
    with pytest.raises(NotImplementedError, match="window 36"):
        grouped_attention(torch.nn.Identity(), x, x, x, None, **options)


def test_one_completion_needs_no_gather() -> None:
    plan = attention_plan(make_batch([(30, (40,))]).spans, "cpu")
    assert plan.query_index is plan.key_index is plan.output_index is None
    [block] = plan.blocks
    assert (block.rows, block.queries, block.keys, block.mask) == (1, 70, 70, None)


def test_many_short_groups_are_few_calls_and_long_ones_are_not_padded_to() -> None:
    short = [(20 + i % 5, (10 + i % 4, 12)) for i in range(200)]
    plan = attention_plan(make_batch([*short, (900, (300,))]).spans, "cpu")
    assert len(plan.blocks) <= 4
    assert [b.keys for b in plan.blocks if b.rows == 1] == [1200]
    padded = sum(b.rows * b.queries * b.keys for b in plan.blocks)
    useful = 1200**2 + sum((p + c[0]) ** 2 + c[1] * (p + c[1]) for p, c in short)
    assert padded <= (1 + WASTE_SHARE) * useful + WASTE_PAIRS * len(plan.blocks)


def test_prompts_without_completions() -> None:
    spans = (GroupSpan((0, 4), ()), GroupSpan((4, 7), ((7, 9),)))
    plan = attention_plan(spans, "cpu")
    assert plan.longest == 5
    torch.manual_seed(0)
    q = torch.randn(1, 2, 9, 4, dtype=torch.float64)
    ours, _ = grouped_attention(torch.nn.Identity(), q, q, q, None, scaling=1.0, **{ga.PLAN: plan})
    torch.testing.assert_close(ours, by_definition(q, q, q, spans, 1.0), rtol=0, atol=1e-12)


def test_the_plan_of_a_batch_is_made_once(batch) -> None:
    assert attention_plan(batch.spans, "cpu") is attention_plan(make_batch().spans, "cpu")
