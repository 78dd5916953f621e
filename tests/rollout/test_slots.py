"""Rows that come and go: whatever the slots, the same samples as one row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from alignlab.models.grouped_attention import register
from alignlab.rollout import slot_memory, slots
from alignlab.rollout.sampler import sample
from alignlab.rollout.sampling import Sampling

EOS = 2


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["one key head", "two", "as many as queries"])
def model(request):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=request.param,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=EOS,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=register()).eval()


def draw(model, prompts, *, n=1, batch=4, limit=10, eos=EOS):
    sampling = Sampling(max_new_tokens=limit, temperature=1.0, top_p=1.0, top_k=0, batch=batch)
    seeds = [int(p.sum()) * 31 + len(p) for p in prompts]
    return sample(model, prompts, n=n, sampling=sampling, eos_id=eos, seeds=seeds, device="cpu")


def some_prompts(count, longest=12):
    rng = np.random.default_rng(3)
    return [
        rng.integers(3, 24, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(count)
    ]


def same(left, right):
    for a, b in zip(left.ids, right.ids, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(left.logps, right.logps, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(left.finished, right.finished)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "sampling", "a row in a slot that others had before it is the row alone"
)
@pytest.mark.parametrize(("n", "batch"), [(1, 3), (3, 4), (5, 2), (2, 64)])
def test_rows_in_slots_are_the_rows_alone(model, n, batch):
    prompts = some_prompts(14)
    together = draw(model, prompts, n=n, batch=batch)
    assert len({len(ids) for ids in together.ids}) > 2
    for index in (0, 5, 13):
        alone = draw(model, [prompts[index]], n=n, batch=1)
        part = slice(index * n, (index + 1) * n)
        np.testing.assert_array_equal(together.finished[part], alone.finished)
        for a, b in zip(together.ids[part], alone.ids, strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(together.logps[part], alone.logps, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_free_slots_are_filled_while_rows_wait(model, monkeypatch):
    lives = []
    forward = slots._Slots._forward
    monkeypatch.setattr(
        slots._Slots,
        "_forward",
        lambda self, token: (
            lives.append((self.live.sum(), len(self.waiting))) or forward(self, token)
        ),
    )
    drawn = draw(model, some_prompts(60, longest=4), batch=8, limit=12)
    crowded = [live for live, waiting in lives if waiting]
    assert len(crowded) > 10
    assert np.mean(crowded) > 6.5  # of 8
    assert len(lives) < 1.35 * drawn.tokens / 8 + 12


@pytest.mark.slow
def test_the_memory_is_moved_when_its_columns_are_used_up(model, monkeypatch):
    moves = []
    move = slots.SlotLayer.move
    monkeypatch.setattr(
        slots.SlotLayer, "move", lambda self, a, b: moves.append((a, b)) or move(self, a, b)
    )
    prompts = some_prompts(40)
    wide = draw(model, prompts, batch=3, limit=6)
    monkeypatch.setattr(slot_memory, "BLOCK", 4)
    moves.clear()
    got = draw(model, prompts, batch=3, limit=6)
    same(wide, got)
    assert len(moves) > 10
    assert sum(first > 0 for first, _ in moves) > 4
    assert all(0 <= first < end for first, end in moves)
    monkeypatch.setattr(slots, "REFILL_AT", 1.0)
    same(got, draw(model, prompts, batch=64, limit=6))


@pytest.mark.slow
def test_a_prompt_runs_once_however_many_slots_and_samples(model, monkeypatch):
    tokens = []
    prefill = slots._Slots._prefill
    monkeypatch.setattr(
        slots._Slots,
        "_prefill",
        lambda self, members: tokens.extend(members) or prefill(self, members),
    )
    prompts = some_prompts(5)
    draw(model, prompts, n=7, batch=3)
    assert sorted(tokens) == [0, 1, 2, 3, 4]


def test_prompts_run_in_parts_that_fit_the_budget(model, monkeypatch):
    prompts = some_prompts(20)
    whole = draw(model, prompts, batch=20)
    monkeypatch.setattr(slots, "PREFILL_TOKENS", 7)
    parts = []
    prefill = slots._Slots._prefill
    monkeypatch.setattr(
        slots._Slots,
        "_prefill",
        lambda self, members: (
            parts.append(sum(len(self.prompts[m]) for m in members)) or prefill(self, members)
        ),
    )
    same(whole, draw(model, prompts, batch=20))
    assert max(parts) <= 12  # a longer prompt is a part by itself
    assert len(parts) > 5


def test_only_the_flat_layout_without_a_window_fits(model):
    assert slots.fits_slots(model)
    other = AutoModelForCausalLM.from_config(model.config, attn_implementation="sdpa")
    assert not slots.fits_slots(other)
    register_again = AutoModelForCausalLM.from_config(model.config, attn_implementation=register())
    register_again.config.sliding_window = 8
    assert not slots.fits_slots(register_again)
