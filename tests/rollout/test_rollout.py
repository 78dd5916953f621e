from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.data.group import PromptGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.rollout.rollout import Rollout, continuation, prompt_seed, sample_rollout
from alignlab.rollout.sampling import Sampling

PLAN = Sampling(max_new_tokens=10, temperature=1.0, top_p=1.0, top_k=0, batch=6)


class View:
    def __init__(self, model):
        self.model = model


@pytest.fixture(scope="module")
def view(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger EOS logits, so that some completions end and some do not
        model.lm_head.weight[2] *= 4
    return View(model)


@pytest.fixture(scope="module")
def tokenization(tokenizer):
    return Tokenization(tokenizer, max_prompt=20, max_completion=10)


@pytest.fixture(scope="module")
def prompts(tokenization):
    texts = ["the film", "the acting was very", "good", "a"]
    groups = [PromptGroup(t, id=f"p{i}", meta={"place": i}) for i, t in enumerate(texts)]
    return [tokenization.prompt(group, 10 + i) for i, group in enumerate(groups)]


@pytest.fixture(scope="module")
def rollout(view, prompts, tokenization) -> Rollout:
    return sample_rollout(view, prompts, tokenization, PLAN, 5, seed=3, step=7)


def test_shapes_and_flags(rollout, prompts):
    assert len(rollout.groups) == len(rollout.prompts) == len(rollout.completions) == 4
    assert len(rollout.logps) == len(rollout.finished) == 20
    assert rollout.tokens == rollout.lengths.sum() == sum(map(len, rollout.logps))
    assert 0 < rollout.finished.sum() < 20
    flat = [c for g in rollout.groups for c in g.completions]
    truncated = [t for g in rollout.groups for t in g.truncated]
    for ids, logps, finished, cut in zip(
        flat, rollout.logps, rollout.finished, truncated, strict=True
    ):
        assert len(ids) == len(logps)
        assert ids.dtype == np.int32
        assert cut == (not finished)
        assert (2 in ids) == finished  # a truncated completion has no EOS
    for got, given in zip(rollout.groups, prompts, strict=True):
        assert (got.row, got.id, got.meta) == (given.row, given.id, given.meta)


@pytest.mark.conformance(
    "equivalence", "sampling", "a rollout's log-probs stand at the flat batch's targets, to 1e-5"
)
def test_kept_log_probs_equal_the_flat_batch_targets(rollout, view):
    # What a trainer would compute: the flat batch's targets, here from padding-free rows.
    batch = flatten(rollout.groups)
    kept = torch.from_numpy(np.concatenate(rollout.logps))
    assert len(batch.target_ids) == len(kept)
    view.model.eval()
    want = []
    for group in rollout.groups:
        for ids in group.completions:
            row = torch.from_numpy(np.concatenate([group.prompt, ids]).astype(np.int64))[None]
            with torch.no_grad():
                logp = view.model(input_ids=row).logits[0, :-1].log_softmax(-1)
            want.append(logp.gather(1, row[0, 1:, None])[-len(ids) :, 0])
    torch.testing.assert_close(kept, torch.cat(want), rtol=0, atol=1e-5)


def test_text_is_prompt_plus_completion(rollout, tokenization):
    for group, prompt, texts in zip(
        rollout.groups, rollout.prompts, rollout.completions, strict=True
    ):
        for ids, text in zip(group.completions, texts, strict=True):
            whole = tokenization.decode(np.concatenate([group.prompt, ids]))
            assert prompt + text == whole
            assert "<|" not in text
    assert rollout.prompts[1] == "the acting was very"


def test_a_character_split_between_prompt_and_completion_is_decoded_alone(tokenization):
    first, second = tokenization.tokenizer("é", add_special_tokens=False)["input_ids"]
    prompt, ids = np.array([1, first]), np.array([second, 2])
    text = continuation(tokenization, prompt, tokenization.decode(prompt), ids)
    assert text == tokenization.decode(ids)


def test_per_completion_repeats_prompts_and_meta(rollout):
    prompts, texts, meta = rollout.per_completion()
    assert prompts[:6] == ["the film"] * 5 + ["the acting was very"]
    assert texts == [t for group in rollout.completions for t in group]
    assert [m["place"] for m in meta] == [i for i in range(4) for _ in range(5)]


@pytest.mark.conformance(
    "determinism", "sampling", "samples are a function of seed, step and prompt alone"
)
def test_samples_depend_on_seed_step_and_row_only(view, prompts, tokenization, rollout):
    def ids(groups, seed=3, step=7):
        made = sample_rollout(view, groups, tokenization, PLAN, 5, seed=seed, step=step)
        return {g.row: [c.tolist() for c in g.completions] for g in made.groups}

    want = {g.row: [c.tolist() for c in g.completions] for g in rollout.groups}
    assert ids(prompts[::-1]) == want
    assert ids(prompts[2:3])[12] == want[12]
    assert ids(prompts, seed=4) != want
    assert ids(prompts, step=8) != want


def test_a_prompt_that_comes_twice_is_sampled_differently(view, prompts, tokenization):
    twice = [prompts[0], replace(prompts[0])]
    made = sample_rollout(view, twice, tokenization, PLAN, 5, seed=0, step=0)
    left, right = ([c.tolist() for c in g.completions] for g in made.groups)
    assert left != right


def test_prompt_seeds_are_distinct_and_fixed():
    seeds = {
        prompt_seed(a, b, c, d)
        for a in range(4)
        for b in range(4)
        for c in range(4)
        for d in (0, 1)
    }
    assert len(seeds) == 128
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert prompt_seed(1, 23, 4) != prompt_seed(12, 3, 4)
