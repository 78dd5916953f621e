"""Steps of solutions, from rows of a file through a reward run to a reward for texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from stage_lab import Lab, PlainHead, plain_model

from alignlab import typed
from alignlab.rewards.process import ProcessReward, prefixes
from alignlab.spec import Spec
from alignlab.stages.annotate import read


def write_solutions(path: Path) -> None:
    """A step is right if it says "yes"; every solution has two to four steps."""
    source, rows = random.Random(3), []
    for number in range(60):
        labels = [source.random() < 0.5 for _ in range(source.randint(2, 4))]
        labels[:2] = [True, False] if number % 2 else [False, True]
        steps = [("yes" if right else "no") for right in labels]
        rows.append({"prompt": f"{number}?", "steps": steps, "labels": labels})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.slow
def test_labelled_steps_become_a_process_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "steps.jsonl"
    write_solutions(data)
    lab = Lab.make(tmp_path, data=data)
    sft = lab.run(lab.stage("sft", steps=1), {})
    annotations = lab.run(lab.stage("annotate", validation_share=0.2), {"policy": sft})
    group = read(annotations, "train")[0]
    assert group.verdict.kind == "thumbs"
    assert 2 <= len(group.completions) <= 4
    assert [len(c) for c in group.completions] == sorted(len(c) for c in group.completions)
    objective = {"_target_": "alignlab.objectives.regression.cross_entropy"}
    stage = lab.stage("reward", objective=objective, normalize=False, steps=30)
    run = lab.run(stage, {"init": sft, "annotations": annotations})
    (run.path / "config.json").write_text(json.dumps(typed.to_mapping(stage)), encoding="utf-8")
    assert run.summary()["validation_accuracy"] > 0.9
    assert run.summary()["validation_loss"] < 0.4

    monkeypatch.setenv("ALIGNLAB_RUNS", str(lab.store.root))
    inner = Spec(
        "alignlab.rewards.trained.TrainedReward",
        {
            "run": run.name,
            "store": None,
            "max_prompt": None,
            "max_completion": None,
            "token_budget": 256,
        },
    )
    texts = ["yes\nyes", "yes\nno\nyes", "no"]
    found = {
        combine: ProcessReward(reward=inner, separator="\n", combine=combine).score(
            ["1?"] * 3, texts, [{}] * 3
        )
        for combine in ("min", "product")
    }
    assert found["min"][0] > 0.5 > max(found["min"][1], found["min"][2])

    # by hand: every prefix by itself, its score at the last token
    model = plain_model(run.model_dir, lab.store.cache)
    head = PlainHead.load(run.model_dir)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.model_dir)
    prompt = list(tokenizer("1?").input_ids)
    logs = []
    with torch.no_grad():
        for prefix in prefixes(texts[1], "\n"):
            ids = [*tokenizer(prefix, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            logit = float(head.along(model, prompt, ids)[-1])
            logs.append(-np.logaddexp(0, -logit))
    assert found["product"][1] == pytest.approx(np.exp(sum(logs)), rel=1e-3)
    assert found["min"][1] == pytest.approx(np.exp(min(logs)), rel=1e-3)
