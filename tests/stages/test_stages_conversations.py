"""Conversations with tools and thoughts through the stages: from a file to a trained step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_lab import Caught, Lab, plain_model, token_logps
from transformers import AutoTokenizer

from alignlab.data.order import step_rows
from alignlab.data.template import Tokenization
from alignlab.errors import DataError
from alignlab.models.load import resolve
from alignlab.models.template_bank import DIALOGUE_TOOLS
from alignlab.spec import build
from alignlab.stages.sft import demonstrations

TOOL = {
    "name": "rain",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
REWARD = {
    "_target_": "alignlab.rewards.mixture.Mixture",
    "terms": [
        {
            "weight": 1.0,
            "reward": {
                "_target_": "alignlab.rewards.tool_calls.ToolCallFormat",
                "credit": "share",
            },
        },
        {"weight": 0.5, "reward": {"_target_": "alignlab.rewards.thinking.ThinkingFormat"}},
    ],
}
LIMITS = ("tokens.max_prompt=512", "tokens.max_completion=128")


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(city: str) -> dict[str, Any]:
    return {"function": {"name": "rain", "arguments": json.dumps({"city": city})}}


def write(path: Path) -> Path:
    """Pairs whose prompt is a conversation with a call and its result; the better answer calls."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(24):
            before = [
                say("user", f"Rain in a{n}?"),
                say("assistant", "", tool_calls=[call(f"a{n}")]),
                say("tool", "dry"),
                say("assistant", "No."),
                say("user", f"And b{n}?"),
            ]
            better = say("assistant", "", tool_calls=[call(f"b{n}")], reasoning_content="look")
            worse = say("assistant", "Yes.", reasoning_content="guess")
            row = {"prompt": before, "chosen": [better], "rejected": [worse], "tools": [TOOL]}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The template opens a thought in every answer, as DeepSeek-R1's does."""
    folder = tmp_path_factory.mktemp("tools")
    opening = "{{ OPEN('assistant') }}{% endif %}"
    assert DIALOGUE_TOOLS.endswith(opening)
    template = folder / "thinking.jinja"
    opened = "{{ OPEN('assistant') + ' <think>\n' }}{% endif %}"
    template.write_text(DIALOGUE_TOOLS.removesuffix(opening) + opened, encoding="utf-8")
    data = write(folder / "pairs.jsonl")
    stated = (f"backbone.template={template}", "data.mask_thinking=true")
    gold = ("reward@gold=tool_call_match", "gold.credit=partial")
    return Lab.make(folder, *LIMITS, *stated, *gold, data=data)


@pytest.fixture(scope="module")
def sft(lab: Lab) -> Any:
    return lab.run(lab.stage("sft", batch=4, steps=1), {})


@pytest.mark.slow
def test_the_loss_is_of_the_calls_alone(lab: Lab, sft: Any) -> None:
    stage = lab.stage("sft", batch=4, steps=1)
    tokenizer = AutoTokenizer.from_pretrained(sft.model_dir)
    groups = Tokenization(tokenizer, 512, 128).groups(demonstrations(build(stage.data).load("sft")))
    picked = [groups[row] for row in step_rows(0, 4, len(groups), stage.seed)]
    for group in picked:
        prompt, [ids], [mask] = tokenizer.decode(group.prompt), group.completions, group.masks
        assert '"name": "rain", "parameters"' in prompt
        assert "<tool_response>\ndry\n</tool_response>" in prompt
        assert prompt.endswith("Assistant: <think>\n")
        assert tokenizer.decode(ids).startswith("look\n</think>")
        counted = tokenizer.decode(ids[mask])
        assert counted.startswith('<tool_call>\n{"name": "rain", "arguments": {"city": "b')
        assert counted.endswith("</tool_call><|eos|>")
    base = resolve("random:tiny", lab.store.cache)
    model = plain_model(base, lab.store.cache)
    with torch.no_grad():
        found = [token_logps(model, g.prompt, g.completions[0])[g.masks[0]] for g in picked]
    expected = -float(torch.cat(found).mean())
    assert sft.metrics("train")[0]["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_pairs_of_a_call_and_words(lab: Lab, sft: Any, caught: Caught) -> None:
    annotations = lab.run(lab.stage("annotate", validation_share=0.1), {"policy": sft})
    inputs = {"init": sft, "reference": sft, "annotations": annotations}
    dpo = lab.run(lab.stage("dpo", batch=4, steps=1), inputs)
    tokenizer = AutoTokenizer.from_pretrained(sft.model_dir)
    counted = tokenizer.decode(caught.work.micros(1)[0].data.batch.target_ids)
    assert counted.count("<tool_call>") == counted.count("Yes.")
    assert "look" not in counted
    assert "guess" not in counted
    assert dpo.metrics("train")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_grpo_scores_what_follows_the_thought_and_reports_it(lab: Lab, sft: Any) -> None:
    changes = {"reward": REWARD, "iterations": 1, "updates": 1, "rollout_batch": 2, "group": 2}
    stage = lab.stage("grpo", **changes, sampling__max_new_tokens=8)
    run = lab.run(stage, {"init": sft, "reference": sft})
    [first, *_] = run.metrics("train")
    # Eight random tokens close no thought: there is no answer, and no reward for one.
    assert first["reward"] == 0
    assert first["thinking_share"] == first["thinking_cut"] == 1
    assert first["thinking_length"] == first["completion_length"]


def test_an_evaluation_keeps_thoughts_apart(lab: Lab, sft: Any) -> None:
    stage = lab.stage("evaluate_sft", split="validation", sampling__max_new_tokens=8)
    run = lab.run(stage, {"policy": sft, "reference": sft})
    for row in run.samples():
        assert row["completion"] == ""  # cut off in its thought
        assert row["thinking"]
        assert row["thinking_cut"] is True
        assert row["thinking_tokens"] == row["tokens"]
        assert row["gold"] == 0  # the reference calls, and nothing was called
        assert "User: Rain in a" in row["prompt"]
        assert 'Assistant: <tool_call>\n{"name": "rain"' in row["prompt"]
    assert run.summary()["thinking_cut"] == 1
    assert run.summary()["reference_gold"] == 1  # the data's own answers make the call


def test_a_reward_for_tools_says_what_rows_lack(lab: Lab, sft: Any, tmp_path: Path) -> None:
    rows = [{"messages": [say("user", f"q{n}"), say("assistant", "a")]} for n in range(12)]
    file = tmp_path / "bare.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stage = lab.stage("grpo", reward=REWARD, data__path=str(file), sampling__max_new_tokens=4)
    with pytest.raises(DataError, match=r"needs the tools of every prompt.*bare\.jsonl, line \d+"):
        lab.run(stage, {"init": sft, "reference": sft})
