"""Families of decoders that people bring: loaded, trained, sampled from, or refused by name.

That the flat layout computes what padded rows do is measured in test_layout.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import architecture, backbone_config, perturb, random_model

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.pack import flatten
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.memory import parameter_counts, tensor_shapes
from alignlab.models.selective import Selective
from alignlab.models.tiny import byte_tokenizer
from alignlab.rollout.sampler import sample
from alignlab.rollout.sampling import Sampling

WINDOW = {"sliding_window": 8}  # rows of the samples below are longer, so both layouts are met
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {},
    "opt": {},
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    # capped scores and logits, every other layer with a window
    "gemma2": {**WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**WINDOW, "sliding_window_pattern": 2},
    "phi": {},
    "phi3": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    # padded: ALiBi's biases by the place in the row, layers that do not hand keywords on
    "bloom": {},
    "stablelm": {},
}
# Biases of the tiny model with H = 32, I = 48 (4 H in GPT-2), 4 heads of 8, 2 key heads, 2 layers.
BIASES = {
    "gpt2": 2 * (3 * 32 + 32 + 128 + 32 + 2 * 32) + 32,  # 13 of them
    "gpt_neox": 2 * (3 * 32 + 32 + 48 + 32 + 2 * 32) + 32,
    "opt": 2 * (4 * 32 + 48 + 32 + 2 * 32) + 32,
    "qwen2": 2 * (32 + 16 + 16),  # what attention reads
    "bloom": 2 * (3 * 32 + 32 + 128 + 32 + 2 * 32) + 2 * 32,  # a norm behind the embedding too
    "stablelm": 2 * 64 + 32,
    "phi": 2 * (32 + 16 + 16 + 32 + 48 + 32 + 32) + 32 + 259,  # one norm per layer; the head's too
}
SEEN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "batch": 8, "max_new_tokens": 10}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    special = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = random_model(architecture(request.param, **special, **FAMILIES[request.param]))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return request.param, tmp_path


@pytest.mark.slow
def test_what_is_sampled_has_the_log_probs_that_training_gives(family) -> None:
    """With a LoRA adapter that is no zero update, and with rows longer than a layer's window."""
    _, folder = family
    config = backbone_config(4, path=str(folder))
    backbone = Backbone.load(config, folder)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy", scale=0.2)
    assert parameter_counts(config, folder) == backbone.parameter_counts("policy")
    prompts = [np.arange(5, 5 + length, dtype=np.int32) for length in (3, 7)]
    with backbone.view("policy") as view:
        found = sample(
            view.model, prompts, n=2, sampling=Sampling(**SEEN), eos_id=2, seeds=[1, 2],
            device="cpu",
        )  # fmt: skip
    groups = [
        TokenGroup(prompt, tuple(found.ids[2 * i : 2 * i + 2]), NONE, row=i, id=str(i))
        for i, prompt in enumerate(prompts)
    ]
    with backbone.view("policy") as view:
        logps = view.logps(flatten(groups))
        logps.sum().backward()
    torch.testing.assert_close(
        logps.detach(), torch.from_numpy(np.concatenate(found.logps)), rtol=0, atol=2e-5
    )
    assert float(logps.detach().std()) > 0.1
    own = backbone.trainable_parameters("policy")
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())
    assert not any("head" in name or "embed" in name for name in own)


@pytest.mark.slow
def test_bitfit_trains_every_bias_or_says_that_there_is_none(family) -> None:
    name, folder = family
    config = backbone_config(adapter=Selective(parameters=("*.bias",)), path=str(folder))
    if name not in BIASES:
        with pytest.raises(ConfigError, match="This architecture has no biases"):
            parameter_counts(config, folder)
        return
    backbone = Backbone.load(config, folder)
    backbone.add("policy", source=None, trainable=True)
    own = backbone.trainable_parameters("policy")
    assert sum(p.numel() for p in own.values()) == BIASES[name]
    assert parameter_counts(config, folder)[1] == BIASES[name]
    optimizer = torch.optim.AdamW(own.values(), lr=0.1, weight_decay=0.0)
    before = {key: p.detach().clone() for key, p in own.items()}
    group = TokenGroup(
        np.arange(5, 9, dtype=np.int32), (np.arange(20, 29, dtype=np.int32),), NONE, row=0, id="0"
    )
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        with backbone.view("policy") as view:
            loss = -view.logps(flatten([group])).mean()
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]
    # a bias of the keys moves no score: softmax does not see what all keys have in common
    still = {key for key, p in own.items() if torch.equal(p, before[key])}
    assert all("k_proj" in key for key in still), still


def test_first_files_of_gpt2_and_neox_hold_masks_that_are_no_biases(tmp_path) -> None:
    """openai-community/gpt2 has h.0.attn.bias (1, 1, 1024, 1024) and no prefix; Pythia's alike."""
    from safetensors.torch import save_file

    model = random_model(architecture("gpt2", vocab_size=259))
    model.save_pretrained(tmp_path / "now")
    now = tensor_shapes(tmp_path / "now")
    old = {
        name.removeprefix("transformer."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16) for i in (0, 1)}
    (tmp_path / "then").mkdir()
    save_file(old, tmp_path / "then" / "model.safetensors")
    then = tensor_shapes(tmp_path / "then")
    assert then == {name: shape for name, shape in now.items() if name != "lm_head.weight"}
    neox = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}
    neox |= {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}
    neox |= {"gpt_neox.layers.0.attention.dense.bias": torch.ones(4)}
    save_file(neox, tmp_path / "then" / "model.safetensors")
    assert list(tensor_shapes(tmp_path / "then")) == ["gpt_neox.layers.0.attention.dense.bias"]


def test_an_encoder_with_a_decoder_is_refused(tmp_path) -> None:
    from transformers import T5Config

    from alignlab.models.encoders import require_policy

    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a t5 is an encoder with a decoder behind it"):
        require_policy(backbone_config(path=str(tmp_path)), tmp_path, "sft")


def test_what_peft_cannot_adapt_is_refused_with_its_reason(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    config = architecture("mamba", vocab_size=259)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    backbone = Backbone.load(backbone_config(4, path=str(tmp_path)), tmp_path)
    with pytest.raises(ConfigError, match=r"adapter=lora does not fit.*out_proj.*target_modules"):
        backbone.add("policy", source=None, trainable=True)
