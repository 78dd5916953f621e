"""What the sampler keeps is what the trainer's own forward pass gives (DESIGN §9, equivalence)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.data.group import PromptGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.models.backbone import Backbone
from alignlab.models.load import Adapter, BackboneConfig
from alignlab.rollout.rollout import sample_rollout
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.slots import fits_slots


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "sampling",
    "the sampler's log-probs are the trainer's to 1e-5, full and LoRA, dropout on",
)
@pytest.mark.parametrize("rank", [None, 4], ids=["full", "lora"])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_kept_log_probs_equal_the_views(tmp_path_factory, rank, temperature):
    cache = tmp_path_factory.getbasetemp() / "cache"
    config = BackboneConfig(
        path="random:tiny",
        revision=None,
        adapter=Adapter(rank=rank, alpha=8.0, dropout=0.5, target_modules="all-linear"),
        dtype="float32",
        layout="auto",
        gradient_checkpointing=False,
    )
    backbone = Backbone.load(config, cache)
    backbone.add("policy", source=None, trainable=True)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters("policy").values():
            noise = torch.Generator().manual_seed(0)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    tokenization = Tokenization(backbone.tokenizer, max_prompt=40, max_completion=12)
    texts = ["The film", "A", "It was good, and then it"]
    prompts = [tokenization.prompt(PromptGroup(t, id=t), i) for i, t in enumerate(texts)]
    sampling = Sampling(max_new_tokens=12, temperature=temperature, top_p=1.0, top_k=0, batch=8)
    backbone.train_mode(True)
    with backbone.view("policy") as view:
        assert fits_slots(view.model)
        rollout = sample_rollout(view, prompts, tokenization, sampling, 4, seed=0, step=0)
    backbone.train_mode(False)
    with backbone.view("policy") as view, torch.no_grad():
        want = view.logps(flatten(rollout.groups), temperature=temperature)
    kept = torch.from_numpy(np.concatenate(rollout.logps))
    torch.testing.assert_close(kept, want, rtol=0, atol=1e-5)
