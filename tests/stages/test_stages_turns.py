"""Conversations in the stages: answers carry the loss, and one template goes with all of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_lab import Caught, Lab, plain_model, token_logps
from transformers import AutoTokenizer

from alignlab.data.order import step_rows
from alignlab.data.template import Tokenization
from alignlab.errors import ConfigError
from alignlab.models.load import resolve
from alignlab.models.templates import DIALOGUE, template_hash, use_template
from alignlab.plan import Plan
from alignlab.spec import build
from alignlab.stages.annotate import read
from alignlab.stages.sft import demonstrations

LIMITS = ("tokens.max_prompt=64", "tokens.max_completion=160", "reward@gold=length")


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(path: Path) -> Path:
    """Forty conversations of two answers each; the second answer of the better one is longer."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(40):
            turns = [say("assistant", f"a{n}"), say("user", "and"), say("assistant", "good" * 2)]
            worse = [say("assistant", f"b{n}"), say("user", "and"), say("assistant", "bad")]
            asked = [say("user", f"question {n}")]
            row = {"prompt": asked, "chosen": turns, "rejected": worse}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("turns")
    data = conversations(folder / "chats.jsonl")
    return Lab.make(folder, *LIMITS, "backbone.template=dialogue", data=data)


@pytest.fixture(scope="module")
def sft(lab: Lab) -> Any:
    return lab.run(lab.stage("sft", batch=5, steps=1), {})


@pytest.mark.slow
def test_the_loss_is_the_mean_over_the_answers_alone(lab: Lab, sft: Any) -> None:
    stage = lab.stage("sft", batch=5, steps=1)
    base = resolve("random:tiny", lab.store.cache)
    tokenizer = use_template(AutoTokenizer.from_pretrained(base), "dialogue")
    groups = Tokenization(tokenizer, 64, 160).groups(demonstrations(build(stage.data).load("sft")))
    model = plain_model(base, lab.store.cache)
    picked = [groups[row] for row in step_rows(0, 5, len(groups), stage.seed)]
    with torch.no_grad():
        whole = [token_logps(model, g.prompt, g.completions[0]) for g in picked]
    answers = [logps[torch.from_numpy(g.masks[0])] for logps, g in zip(whole, picked, strict=True)]
    expected, wrong = -torch.cat(answers).mean(), -torch.cat(whole).mean()
    assert abs(expected - wrong) > 1e-4  # the two can be told apart here
    assert sft.metrics("train")[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_masks_live_through_annotation_and_preference(lab: Lab, sft: Any, caught: Caught) -> None:
    annotations = lab.run(lab.stage("annotate", validation_share=0.1), {"policy": sft})
    groups = read(annotations, "train")
    tokenizer = AutoTokenizer.from_pretrained(sft.model_dir)
    for group in groups:
        for ids, mask in zip(group.completions, group.masks, strict=True):
            said = tokenizer.decode(ids[mask], skip_special_tokens=False)
            assert said.count("<|eos|>") == 2
            assert "User" not in said
    inputs = {"init": sft, "reference": sft, "annotations": annotations}
    dpo = lab.run(lab.stage("dpo", batch=4, steps=1), inputs)
    batch = caught.work.micros(1)[0].data.batch
    assert "User" not in tokenizer.decode(batch.target_ids, skip_special_tokens=False)
    assert len(batch.target_ids) == int(batch.lengths.sum())
    # Policy and reference are the same weights: a reward margin of 0, whatever is masked.
    assert dpo.metrics("train")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert annotations.record["template"] == dpo.record["template"] == sft.record["template"]


def test_the_template_is_saved_with_the_run_and_inherited(lab: Lab, sft: Any) -> None:
    saved = AutoTokenizer.from_pretrained(sft.model_dir)
    assert saved.chat_template == DIALOGUE
    assert sft.record["template"] == template_hash(saved)
    heir = lab.run(lab.stage("annotate", backbone__template=None), {"policy": sft})
    assert heir.record["template"] == template_hash(saved)


@pytest.mark.slow
def test_another_template_is_refused_with_both_names(lab: Lab, sft: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.jinja"
    loud = DIALOGUE.replace("capitalize", "upper").replace("Assistant:", "ASSISTANT:")
    other.write_text(loud, encoding="utf-8")
    base = resolve("random:tiny", lab.store.cache)
    tokenizer = use_template(AutoTokenizer.from_pretrained(base), str(other))
    message = rf"{sft.name} was made with.*{sft.record['template']}.*{template_hash(tokenizer)}"
    with pytest.raises(ConfigError, match=message):
        lab.run(lab.stage("annotate", backbone__template=str(other)), {"policy": sft})
    # ... also where the annotations were made with another one than the policy
    foreign = lab.run(lab.stage("sft", steps=1, backbone__template=str(other)), {})
    annotations = lab.run(
        lab.stage("annotate", backbone__template=str(other), validation_share=0.1),
        {"policy": foreign},
    )
    inputs = {"init": sft, "reference": sft, "annotations": annotations}
    with pytest.raises(ConfigError, match=rf"{annotations.name} was made with"):
        lab.run(lab.stage("dpo", batch=4, steps=1), inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dpo": "chatml"}, r"stages\.dpo\.backbone\.template.*chatml.*init \('sft'\).*dialogue"),
        ({"sft": None}, r"stages\.annotate\.backbone\.template.*dialogue.*tokenizer's own"),
        ({"annotate": None, "evaluate_dpo": None}, None),  # null takes what the inputs have
        ({"reward": "chatml"}, r"stages\.reward\.backbone\.template"),
    ],
)
def test_a_change_between_stages_is_refused_before_anything_runs(
    lab: Lab, changes: dict[str, str | None], message: str | None
) -> None:
    stages = copy.deepcopy(dict(lab.configs))
    for name, template in changes.items():
        stages[name]["backbone"]["template"] = template
    if message is None:
        assert Plan.from_configs([{"stages": stages}], lab.store).nodes
        return
    with pytest.raises(ConfigError, match=message):
        Plan.from_configs([{"stages": stages}], lab.store)


@pytest.mark.slow
def test_a_template_is_part_of_every_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    data = conversations(tmp_path / "chats.jsonl")
    keys = []
    for text, name in ((None, "null"), (None, "dialogue"), ("a", str(file)), ("b", str(file))):
        if text:
            file.write_text(text, encoding="utf-8")
        made = Lab.make(tmp_path, *LIMITS, f"backbone.template={name}", data=data)
        plan = Plan.from_configs([{"stages": made.configs}], made.store)
        keys.append({node.key for node in plan.nodes.values()})
    assert all(not a & b for i, a in enumerate(keys) for b in keys[i + 1 :])
