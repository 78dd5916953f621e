"""Published reward models and classifiers as rewards: what transformers computes, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alignlab import spec
from alignlab.compose import compose, conf_dir
from alignlab.errors import ConfigError
from alignlab.models.tiny import byte_tokenizer
from alignlab.plan import Plan
from alignlab.rewards.checkpoint import SequenceClassifier
from alignlab.run import Store

PROMPTS = ["the fox", "a dog", "say it again"]
TEXTS = ["jumps over the lazy dog", "no", "abc klm 12 0"]
LABELS = {"NEGATIVE": -1.0, "NEUTRAL": 0.0, "POSITIVE": 1.0}
TINY = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}


def reward(path: Path, **changes: Any) -> SequenceClassifier:
    values = {"revision": None, "text": "completion", "label": None, "values": None}
    values |= {"max_tokens": None, "token_budget": 96}
    return SequenceClassifier(path=str(path), **{**values, **changes})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A BERT with three labels."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    names = dict(enumerate(LABELS))
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(**TINY, max_position_embeddings=64, id2label=names, pad_token_id=0)
    ).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module", params=[0, None], ids=["padded", "no pad token"])
def reward_model(request, tmp_path_factory) -> tuple[Path, Any]:
    """A Llama with one output, as most published reward models are."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = LlamaConfig(
        **TINY, max_position_embeddings=128, num_labels=1, pad_token_id=request.param
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    if request.param is None:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder, model


def test_labels_are_weighted_by_their_probability(classifier) -> None:
    folder, model = classifier
    tokenizer, wanted = byte_tokenizer(), []
    for text in TEXTS:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        p = logits.softmax(-1).tolist()
        wanted.append((p[2] - p[0], p[2]))  # −1 · negative + 0 · neutral + 1 · positive
    found = reward(folder, values=LABELS).score(PROMPTS, TEXTS, [{}] * 3)
    assert found.dtype == np.float32
    assert found == pytest.approx([mean for mean, _ in wanted], abs=1e-5)
    found = reward(folder, label="POSITIVE").score(PROMPTS, TEXTS, [{}] * 3)
    assert found == pytest.approx([p for _, p in wanted], abs=1e-5)
    assert np.ptp(found) > 0.01
    assert reward(folder, label="POSITIVE").score([], [], []).shape == (0,)


def test_a_reward_model_reads_its_chat_template(reward_model) -> None:
    folder, model = reward_model
    tokenizer, wanted = byte_tokenizer(), []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        written = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            wanted.append(float(model(torch.tensor([ids])).logits[0, 0]))
    found = reward(folder, text="chat").score(PROMPTS, TEXTS, [{}] * 3)
    assert found == pytest.approx(wanted, abs=1e-5)
    joined = reward(folder, text="joined").score(PROMPTS, TEXTS, [{}] * 3)
    whole = [p + t for p, t in zip(PROMPTS, TEXTS, strict=True)]
    alone = reward(folder, text="completion", token_budget=8).score(PROMPTS, whole, [{}] * 3)
    assert joined == pytest.approx(alone, abs=1e-5)
    assert abs(joined - found).max() > 1e-3


def test_the_yaml_is_built(reward_model) -> None:
    file = conf_dir() / "reward" / "checkpoint.yaml"
    node = {**yaml.safe_load(file.read_text(encoding="utf-8")), "path": str(reward_model[0])}
    made = spec.build(spec.parse(node, "reward"))
    assert made.name == reward_model[0].name
    assert made.fingerprint() == spec.build(spec.parse(node, "reward")).fingerprint()
    assert np.isfinite(made.score(["p"], ["4"], [{}])).all()


@pytest.mark.slow
def test_what_a_checkpoint_does_not_say_is_asked_for(classifier, reward_model, tmp_path) -> None:
    def refused(message: str, folder: Path = classifier[0], **changes: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            reward(folder, **changes).score(PROMPTS, TEXTS, [{}] * 3)

    refused("has 3 outputs .NEGATIVE, NEUTRAL, POSITIVE.: set label")
    refused("no label 'POSITIV'.*Did you mean 'POSITIVE'", label="POSITIV")
    refused("need a value: NEUTRAL, POSITIVE", values={"NEGATIVE": -1.0})
    refused("one output, which is the score", reward_model[0], label="LABEL_0")
    refused("path=/no/such: no such folder", Path("/no/such"))
    with pytest.raises(ConfigError, match="label and values"):
        reward(classifier[0], label="POSITIVE", values=LABELS)
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    refused("no checkpoint of a trained classifier.*would be random", tmp_path, label="LABEL_0")


def test_a_checkpoint_that_was_replaced_is_another_run(tmp_path) -> None:
    """Its folder is called what it was, so only the files can say so."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"old")
    config = compose(["pipeline=sft", "backbone=tiny", "reward@gold=checkpoint"])
    config["gold"]["path"] = str(tmp_path)
    config["stages"]["evaluate"]["gold"]["path"] = str(tmp_path)

    def runs() -> Mapping[str, str]:
        return Plan.from_configs([config], Store(tmp_path / "store")).jobs[0].stages

    before = runs()
    assert runs() == before
    weights.write_bytes(b"newer")
    after = runs()
    assert after["sft"] == before["sft"]
    assert after["evaluate"] != before["evaluate"]
