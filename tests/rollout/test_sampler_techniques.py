"""The sampler's log-probs are the trainer's with what stands before prompts or inside of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from alignlab.data.group import PromptGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.errors import DataError
from alignlab.models.backbone import Backbone
from alignlab.models.bottleneck import Bottleneck
from alignlab.models.load import BackboneConfig
from alignlab.models.rescaling import IA3
from alignlab.models.soft_prompts import PrefixTuning, PromptTuning, PTuning
from alignlab.rollout.rollout import sample_rollout
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.slots import fits_slots

TECHNIQUES: dict[str, Any] = {
    "prompt": PromptTuning(tokens=7, start="vocabulary"),
    "ptuning": PTuning(tokens=7, encoder="lstm", hidden=8, layers=2, dropout=0.5),
    "prefix": PrefixTuning(tokens=7, hidden=None),
    "prefix network": PrefixTuning(tokens=7, hidden=8),
    "ia3": IA3(outputs=("k_proj", "v_proj"), inputs=("down_proj",)),
    "bottleneck": Bottleneck(
        after=("attention", "feed_forward"),
        reduction=4,
        activation="gelu",
        dropout=0.5,
        norms=True,
    ),
}


def open_policy(cache, technique: Any, layout: Any, dtype: Any = "float32") -> Backbone:
    config = BackboneConfig(
        path="random:tiny",
        revision=None,
        adapter=technique,
        dtype=dtype,
        layout=layout,
        gradient_checkpointing=False,
    )
    backbone = Backbone.load(config, cache)
    backbone.add("policy", source=None, trainable=True)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters("policy").values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return backbone


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "sampling",
    "the sampler's log-probs are the trainer's to 1e-5: soft prompts, (IA)³ and bottlenecks, "
    "in slots and in waves, dropout on",
)
@pytest.mark.parametrize("technique", sorted(TECHNIQUES))
@pytest.mark.parametrize("layout", ["grouped", "padded"])
def test_kept_log_probs_equal_the_view_s(cache, technique, layout) -> None:
    backbone = open_policy(cache, TECHNIQUES[technique], layout)
    tokenization = Tokenization(backbone.tokenizer, max_prompt=40, max_completion=12)
    # More rows than slots: rows come and go, and the memory moves.
    texts = ["The film", "A", "It was good, and then it", "A"]
    prompts = [tokenization.prompt(PromptGroup(t, id=str(i)), i) for i, t in enumerate(texts)]
    sampling = Sampling(max_new_tokens=12, temperature=0.8, top_p=1.0, top_k=0, batch=5)
    backbone.train_mode(True)
    with backbone.view("policy") as view:
        assert fits_slots(view.model) == (layout == "grouped")
        rollout = sample_rollout(view, prompts, tokenization, sampling, 4, seed=0, step=0)
    backbone.train_mode(False)
    with backbone.view("policy") as view, torch.no_grad():
        want = view.logps(flatten(rollout.groups), temperature=0.8)
    kept = torch.from_numpy(np.concatenate(rollout.logps))
    torch.testing.assert_close(kept, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("technique", ["prompt", "prefix"])
def test_both_samplers_draw_the_same(cache, technique) -> None:
    drawn = []
    for layout in ("grouped", "padded"):
        backbone = open_policy(cache, TECHNIQUES[technique], layout)
        tokenization = Tokenization(backbone.tokenizer, max_prompt=40, max_completion=12)
        prompts = [tokenization.prompt(PromptGroup(t, id=t), 0) for t in ("The film", "A")]
        sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0, top_k=0, batch=8)
        with backbone.view("policy") as view:
            rollout = sample_rollout(view, prompts, tokenization, sampling, 2, seed=0, step=0)
        drawn.append([c.tolist() for group in rollout.groups for c in group.completions])
    assert drawn[0] == drawn[1]


def test_virtual_tokens_take_positions(cache) -> None:
    # 2048 positions, 7 of them virtual: a prompt of 2035 leaves 6, and 7 new tokens do not fit.
    backbone = open_policy(cache, TECHNIQUES["prompt"], "grouped")
    tokenization = Tokenization(backbone.tokenizer, max_prompt=2035, max_completion=12)
    prompt = tokenization.prompt(PromptGroup("a" * 3000, id="a"), 0)
    assert len(prompt.prompt) == 2035
    sampling = Sampling(max_new_tokens=7, temperature=1.0, top_p=1.0, top_k=0, batch=8)
    with backbone.view("policy") as view, pytest.raises(DataError, match="with 14 more"):
        sample_rollout(view, [prompt], tokenization, sampling, 1, seed=0, step=0)
