"""Completions behind kept prompts: the log-probabilities of a pass over prompts and completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_cases import SIZES, architecture, backbone_config, make_batch, perturb, random_model

from alignlab.models.attention_plan import attention_plan, plan_behind
from alignlab.models.backbone import Backbone
from alignlab.models.grouped_attention import KEEP, PLAN, grouped_attention
from alignlab.models.kept_prompts import KeptPrompts, states_behind
from alignlab.models.soft_prompts import PrefixTuning, PromptTuning
from alignlab.models.view import View
from alignlab.tensors import GroupSpan

# The prompts of SIZES with other completions: other numbers of them, and other lengths.
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
OTHER = ((5, (11,)), (9, (4, 2, 7)), (1, (3,)), (17, (1, 6)))


def batches() -> tuple[Any, Any]:
    """A batch, and its prompts with other completions."""
    from alignlab.data.group import NONE, TokenGroup
    from alignlab.data.pack import flatten

    one, source = make_batch(), make_batch(OTHER, seed=7)
    groups = []
    for row, (mine, other) in enumerate(zip(one.spans, source.spans, strict=True)):
        prompt = one.input_ids[slice(*mine.prompt)].numpy()
        parts = tuple(source.input_ids[slice(*c)].numpy() for c in other.completions)
        groups.append(TokenGroup(prompt, parts, NONE, row=row, id=str(row)))
    return one, flatten(groups)


def view_of(model: Any, layout: Any = "grouped") -> View:
    return View("policy", model, None, layout, torch.float32)


def test_a_plan_behind_by_hand() -> None:
    """Prompts of 2 and 1 tokens, in a batch of 7; behind them completions of 1, 2 and of 2."""
    there = (GroupSpan((0, 2), ((2, 5),)), GroupSpan((5, 6), ((6, 7),)))
    here = (GroupSpan((0, 2), ((2, 3), (3, 5))), GroupSpan((5, 6), ((6, 8),)))
    plan = plan_behind(there, 7, here, "cpu")
    [block] = plan.blocks
    assert (block.rows, block.queries, block.keys, plan.longest) == (3, 2, 4, 4)
    # The keys of the other batch are 0 … 6; its own completions begin at 7.
    assert plan.key_index.tolist() == [0, 1, 8, 9, 5, 10, 11, 11, 0, 1, 7, 7]
    assert plan.query_index.tolist() == [1, 2, 3, 4, 0, 0]
    assert plan.output_index.tolist() == [4, 0, 1, 2, 3]


@pytest.mark.conformance(
    "equivalence",
    "completions behind kept prompts",
    "log-probs behind the prompts that another pass kept are those of a whole pass, to 1e-5",
)
@pytest.mark.parametrize(
    "kind", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi", "cohere", "mixtral"]
)
def test_what_is_behind_kept_prompts_is_what_stands_behind_prompts(kind: str) -> None:
    view = view_of(random_model(architecture(kind)))
    one, other = batches()
    kept = KeptPrompts()
    plain = view.logps(one)
    keeping = view.logps(one, keep=kept)
    assert torch.equal(keeping, plain)
    assert keeping.requires_grad
    found = view.logps_behind(other, kept)
    assert not found.requires_grad
    assert kept.states is not None
    with torch.no_grad():
        torch.testing.assert_close(found, view.logps(other), rtol=1e-5, atol=1e-5)


def test_what_a_layer_keeps_is_its_keys_and_values_without_gradient() -> None:
    layer = torch.nn.Identity()
    layer.layer_idx = 3  # type: ignore[assignment]
    plan = attention_plan((GroupSpan((0, 2), ((2, 3),)),), "cpu")
    query, key, value = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    keep: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    grouped_attention(layer, query, key, value, None, **{PLAN: plan, KEEP: keep})
    assert list(keep) == [3]
    assert [x.data_ptr() for x in keep[3]] == [key.data_ptr(), value.data_ptr()]  # no copies
    assert not any(x.requires_grad for x in keep[3])


def test_the_prompts_do_not_pass_again() -> None:
    model = random_model(architecture("llama"))
    view, (one, other) = view_of(model), batches()
    kept, tokens = KeptPrompts(), []
    view.logps(one, keep=kept)
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: tokens.append(output.shape[1])
    )
    view.logps_behind(other, kept)
    assert tokens == [sum(sum(parts) for _, parts in OTHER)]
    assert len(kept.keys_values) == 2
    assert not any(x.requires_grad for pair in kept.keys_values.values() for x in pair)


def test_gradients_are_those_of_a_pass_that_keeps_nothing() -> None:
    model = random_model(architecture("llama"))
    view, (one, other) = view_of(model), batches()
    found = []
    for kept in (None, KeptPrompts()):
        model.zero_grad()
        loss = view.logps(one, keep=kept).square().sum()
        if kept is not None:
            loss = loss * (1 + 0 * view.logps_behind(other, kept).sum())
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [None, 4])
def test_of_a_training_backbone(tmp_path: Any, rank: int | None, checkpointing: bool) -> None:
    config = backbone_config(rank, gradient_checkpointing=checkpointing)
    backbone = Backbone.load(config, tmp_path)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    one, other = batches()
    backbone.train_mode(True)
    with backbone.view("policy") as view:
        kept = KeptPrompts()
        loss = view.logps(one, keep=kept).sum()
        assert (kept.states is None) == checkpointing
        found = view.logps_behind(other, kept)
        with torch.no_grad():
            torch.testing.assert_close(found, view.logps(other), rtol=1e-5, atol=1e-5)
        loss.backward()
    mine = {n: p.grad.clone() for n, p in backbone.trainable_parameters("policy").items()}
    for parameter in backbone.trainable_parameters("policy").values():
        parameter.grad = None
    with backbone.view("policy") as view:
        view.logps(one).sum().backward()
    for name, parameter in backbone.trainable_parameters("policy").items():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("padded", {}),
        (
            "grouped",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        ),
    ],
)
def test_what_does_not_fit_passes_whole(layout: str, changes: dict[str, Any]) -> None:
    view = view_of(random_model(architecture("llama", **changes)), layout)
    one, other = batches()
    kept = KeptPrompts()
    view.logps(one, keep=kept)
    assert kept.states is None
    found = view.logps_behind(other, kept)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(found, view.logps(other))


@pytest.mark.parametrize(
    "adapter", [PromptTuning(tokens=3, start="random"), PrefixTuning(tokens=3, hidden=None)]
)
def test_what_stands_before_prompts_passes_whole(tmp_path: Any, adapter: Any) -> None:
    backbone = Backbone.load(backbone_config(adapter=adapter), tmp_path)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    one, other = batches()
    with backbone.view("policy") as view:
        kept = KeptPrompts()
        view.logps(one, keep=kept)
        assert kept.states is None
        with torch.no_grad():
            assert torch.equal(view.logps_behind(other, kept), view.logps(other))


def test_rows_longer_than_the_window_pass_whole() -> None:
    """The kept batch fits into the window, and the completions behind its prompts do not."""
    longest = max(prompt + max(parts) for prompt, parts in SIZES)
    model = random_model(architecture("mistral", sliding_window=longest))
    view, one = view_of(model), make_batch()
    other = make_batch(((5, (2,)), (9, (3,)), (1, (1,)), (17, (23,))))
    kept = KeptPrompts()
    view.logps(one, keep=kept)
    assert kept.states is not None
    with torch.no_grad():
        assert torch.equal(view.logps_behind(other, kept), view.logps(other))


def test_other_prompts_are_refused() -> None:
    model = random_model(architecture("llama"))
    view, kept = view_of(model), KeptPrompts()
    view.logps(make_batch(), keep=kept)
    with pytest.raises(ValueError, match=r"Prompts of \[5, 9, 2, 17\] tokens behind kept ones of"):
        view.logps_behind(make_batch(((5, (2,)), (9, (3,)), (2, (1,)), (17, (3,)))), kept)
    with pytest.raises(ValueError, match="No prompts were kept"):
        states_behind(model, make_batch(), KeptPrompts())
