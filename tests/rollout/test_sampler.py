from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import MistralConfig, MistralForCausalLM

from alignlab.errors import DataError, TrainingError
from alignlab.rollout import slots, waves
from alignlab.rollout.cache import PreallocatedLayer, new_cache
from alignlab.rollout.sampler import sample, uniform_stream
from alignlab.rollout.sampling import Sampling

VOCABULARY, EOS = 24, 2  # of the models in conftest.py


def plan(**changes):
    values = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "batch": 8}
    return Sampling(**{**values, **changes})


def draw(model, prompts, n=3, seeds=None, **changes):
    seeds = list(range(100, 100 + len(prompts))) if seeds is None else seeds
    return sample(
        model, prompts, n=n, sampling=plan(**changes), eos_id=EOS, seeds=seeds, device="cpu"
    )


def full_forward(model, prompt, completion, temperature):
    """Log-probabilities of a completion from one uncached, unpadded forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def assert_same(left, right):
    for a, b in zip(left.ids, right.ids, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(left.logps, right.logps, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(left.finished, right.finished)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "sampling",
    "cached log-probs equal one uncached pass to 1e-5, at any temperature",
)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_log_probs_equal_a_full_forward_pass(llama, prompts, temperature):
    got = draw(llama, prompts, temperature=temperature)
    lengths = {len(ids) for ids in got.ids}
    assert len(lengths) > 2  # rows that end at different steps, or the test shows little
    for index, (ids, logps) in enumerate(zip(got.ids, got.logps, strict=True)):
        want = full_forward(llama, prompts[index // 3], ids, temperature)
        np.testing.assert_allclose(logps, want, rtol=0, atol=1e-5)
        assert logps.dtype == np.float32


@pytest.mark.conformance(
    "equivalence",
    "sampling",
    "with top-k and top-p the log-probs are those of the whole distribution",
)
def test_log_probs_are_those_before_truncation(llama, prompts):
    got = draw(llama, prompts, top_k=3, top_p=0.8, temperature=0.9)
    for index, (ids, logps) in enumerate(zip(got.ids, got.logps, strict=True)):
        want = full_forward(llama, prompts[index // 3], ids, 0.9)
        np.testing.assert_allclose(logps, want, rtol=0, atol=1e-5)


@pytest.mark.conformance(
    "closed form", "sampling", "every token is the inverse CDF of its stated uniform number"
)
def test_tokens_follow_the_stated_uniforms(llama, prompts):
    # The definition, token by token: first i with cdf_i > u(seed, sample, step).
    got = draw(llama, prompts[:2], n=2, temperature=1.3)
    for prompt, index in itertools.product(range(2), range(2)):
        ids = got.ids[prompt * 2 + index]
        u = uniform_stream(100 + prompt, index, 12)
        for step, token in enumerate(ids):
            seen = np.concatenate([prompts[prompt], ids[:step]]).astype(np.int64)
            with torch.no_grad():
                logits = llama(input_ids=torch.from_numpy(seen)[None]).logits[0, -1].double()
            cdf = (logits / 1.3).softmax(-1).cumsum(-1).numpy()
            assert token == np.searchsorted(cdf, u[step], side="right")


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "sampling", "any number of rows side by side: the same samples"
)
@pytest.mark.parametrize("batch", [1, 2, 5, 21, 64])
def test_samples_do_not_depend_on_the_batch(llama, prompts, batch):
    assert_same(draw(llama, prompts, batch=batch), draw(llama, prompts, batch=7))


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "sampling", "any order and company of prompts: the same samples"
)
def test_samples_do_not_depend_on_order_or_company(llama, prompts):
    together = draw(llama, prompts)
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = draw(llama, [prompts[i] for i in order], seeds=[100 + i for i in order])
    for place, i in enumerate(order):
        for s in range(3):
            np.testing.assert_array_equal(shuffled.ids[place * 3 + s], together.ids[i * 3 + s])
    alone = draw(llama, [prompts[2]], seeds=[102])
    for s in range(3):
        np.testing.assert_array_equal(alone.ids[s], together.ids[6 + s])


@pytest.mark.slow
@pytest.mark.conformance("equivalence", "sampling", "more samples or tokens extend what was drawn")
def test_more_samples_and_more_tokens_extend_what_was_drawn(llama, prompts):
    few = draw(llama, prompts, n=2, max_new_tokens=5)
    many = draw(llama, prompts, n=6, max_new_tokens=12)
    for p, s in itertools.product(range(len(prompts)), range(2)):
        np.testing.assert_array_equal(few.ids[p * 2 + s], many.ids[p * 6 + s][:5])


def test_samples_of_one_prompt_differ_and_seeds_matter(llama, prompts):
    got = draw(llama, prompts[:1], n=8)
    assert len({tuple(ids.tolist()) for ids in got.ids}) > 4
    other = draw(llama, prompts[:1], n=8, seeds=[7])
    assert any(a.tolist() != b.tolist() for a, b in zip(got.ids, other.ids, strict=True))


def test_a_completion_ends_at_the_first_stop_token(llama, prompts):
    got = draw(llama, prompts, n=6)
    assert 0 < got.finished.sum() < len(got.finished)
    for ids, logps, finished in zip(got.ids, got.logps, got.finished, strict=True):
        assert len(ids) == len(logps)
        assert EOS not in ids[:-1]
        assert finished == (ids[-1] == EOS)
        assert finished or len(ids) == 12
    assert got.tokens == sum(map(len, got.ids))


def test_any_of_several_stop_tokens_ends_a_completion(llama, prompts):
    stops = (EOS, 5, 6)
    got = sample(
        llama, prompts, n=4, sampling=plan(), eos_id=stops, seeds=[0] * len(prompts), device="cpu"
    )
    assert {int(ids[-1]) for ids, end in zip(got.ids, got.finished, strict=True) if end} >= {5, 6}
    assert not any(np.isin(ids[:-1], stops).any() for ids in got.ids)


@pytest.mark.conformance(
    "equivalence", "sampling", "finished rows that leave the batch change nothing"
)
def test_compaction_changes_nothing(llama, prompts, monkeypatch):
    normal = draw(llama, prompts, n=5, batch=64)
    monkeypatch.setattr(waves, "COMPACT_AT", 0.0)
    monkeypatch.setattr(slots, "REFILL_AT", 1.0)
    never = draw(llama, prompts, n=5, batch=64)
    monkeypatch.setattr(waves, "COMPACT_AT", 1.0)
    monkeypatch.setattr(slots, "REFILL_AT", 0.0)
    always = draw(llama, prompts, n=5, batch=64)
    assert_same(normal, never)
    assert_same(normal, always)


def test_finished_rows_leave_the_batch(llama, prompts):
    rows = []
    handle = llama.model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    draw(llama, prompts, n=5, batch=64, temperature=1.5, max_new_tokens=40)
    handle.remove()
    first = (1, sum(map(len, prompts))) if slots.fits_slots(llama) else (7, 9)
    assert rows[0] == first  # one prefill, a prompt once, however many samples
    assert rows[1] == (35, 1)
    sizes = [size for size, _ in rows[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 18


@pytest.mark.conformance(
    "closed form", "sampling", "4,000 first tokens follow the model's distribution (χ²)"
)
def test_first_token_distribution(llama, prompts):
    # χ² over tokens with an expected count of at least 5; seeds are fixed, so this cannot flake.
    n = 4000
    got = draw(llama, prompts[3:4], n=n, max_new_tokens=1, batch=1000)
    counts = np.bincount([int(ids[0]) for ids in got.ids], minlength=VOCABULARY)
    ids = torch.from_numpy(prompts[3].astype(np.int64))[None]
    with torch.no_grad():
        probs = llama(input_ids=ids).logits[0, -1].double().softmax(-1).numpy()
    common = probs * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * n
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > 0.01


@pytest.mark.conformance(
    "equivalence", "sampling", "temperature 0 gives the tokens of transformers' generate"
)
def test_greedy_equals_transformers_generate(llama, prompts):
    got = draw(llama, prompts, n=1, temperature=0.0)
    for prompt, ids in zip(prompts, got.ids, strict=True):
        tokens = torch.from_numpy(prompt.astype(np.int64))[None]
        want = llama.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        assert ids.tolist() == want[0, len(prompt) :].tolist()


@pytest.mark.conformance(
    "equivalence", "sampling", "dropout is off while sampling, and every module's mode is restored"
)
def test_dropout_is_off_and_every_mode_is_restored(gpt2, prompts):
    gpt2.transformer.h[0].attn.attn_dropout.eval()
    before = {name: module.training for name, module in gpt2.named_modules()}
    first = draw(gpt2, prompts)
    assert {name: module.training for name, module in gpt2.named_modules()} == before
    assert_same(first, draw(gpt2, prompts))
    gpt2.eval()
    for index, (ids, logps) in enumerate(zip(first.ids, first.logps, strict=True)):
        want = full_forward(gpt2, prompts[index // 3], ids, 1.0)
        np.testing.assert_allclose(logps, want, rtol=0, atol=1e-5)


def test_mode_is_restored_after_an_error(gpt2, prompts, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("stop")

    monkeypatch.setattr(waves, "choose", fail)
    with pytest.raises(RuntimeError, match="stop"):
        draw(gpt2, prompts)
    assert gpt2.training


@pytest.mark.slow
def test_a_training_step_in_the_same_autocast_context_still_gets_gradients(llama, prompts):
    weight = llama.model.layers[0].mlp.up_proj.weight
    ids = torch.from_numpy(prompts[2].astype(np.int64))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        draw(llama, prompts)
        loss = llama(input_ids=ids).logits.float().square().mean()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    llama.zero_grad(set_to_none=True)


@pytest.mark.conformance(
    "equivalence", "sampling", "sliding-window models: cached log-probs equal one uncached pass"
)
def test_sliding_window_layers_use_the_dynamic_cache(prompts):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=4,
        initializer_range=0.3,
    )
    model = MistralForCausalLM(config).eval()
    assert not isinstance(new_cache(config, 8).layers[0], PreallocatedLayer)
    got = draw(model, prompts, n=2, batch=1)  # batch < n: the prompt's cache is branched
    assert_same(got, draw(model, prompts, n=2, batch=6))
    for index, (ids, logps) in enumerate(zip(got.ids, got.logps, strict=True)):
        want = full_forward(model, prompts[index // 2], ids, 1.0)
        np.testing.assert_allclose(logps, want, rtol=0, atol=1e-5)


def test_preallocated_cache_is_used_where_it_fits(llama):
    assert all(isinstance(layer, PreallocatedLayer) for layer in new_cache(llama.config, 8).layers)


def test_logits_that_are_not_finite_stop_the_run(llama, prompts):
    weight = llama.lm_head.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight[3] = float("nan")
    try:
        with pytest.raises(TrainingError, match="not finite"):
            draw(llama, prompts)
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def test_prompts_that_cannot_be_continued_are_refused(llama, prompts):
    with pytest.raises(DataError, match="Prompt 1 is empty"):
        draw(llama, [prompts[0], prompts[0][:0]])
    with pytest.raises(DataError, match=r"9 tokens.*64 positions"):
        draw(llama, prompts, max_new_tokens=56)
    with pytest.raises(ValueError, match="as many seeds"):
        draw(llama, prompts, seeds=[1])


@pytest.mark.conformance(
    "closed form", "sampling", "the random streams are distinct and uniform (Kolmogorov–Smirnov)"
)
def test_streams_are_distinct_prefix_stable_and_uniform():
    many = np.concatenate([uniform_stream(seed, i, 50) for seed in range(40) for i in range(5)])
    assert len(np.unique(many)) == len(many)
    np.testing.assert_array_equal(uniform_stream(3, 1, 9), uniform_stream(3, 1, 20)[:9])
    assert stats.kstest(many, "uniform").pvalue > 0.01
