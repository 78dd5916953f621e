"""SFT and preference stages on images: the losses of transformers' own pass, resume, refusals."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vision_lab import save_pictures, write_rows

from alignlab import typed
from alignlab.compose import compose
from alignlab.engine.distributed import Engine
from alignlab.errors import Interrupted
from alignlab.plan import build_stage
from alignlab.run import Run, Store

ROWS = 10


def pair_row(number: int, name: str | None) -> dict[str, Any]:
    """A pair on one picture, or on text alone; its better answer is what SFT imitates."""
    asked = f"What is number {number}?"
    return {
        "prompt": [{"role": "user", "content": f"<image>{asked}" if name else asked}],
        "chosen": [{"role": "assistant", "content": "a" * (1 + number % 3)}],
        "rejected": [{"role": "assistant", "content": "b" * (1 + number % 4)}],
        **({"images": [name]} if name else {}),
    }


@dataclass
class Lab:
    """Stages of pipeline=preference over one store, as the command line builds them."""

    store: Store
    stages: Mapping[str, Any]
    engine: Engine
    numbers: Any

    @classmethod
    def make(cls, folder: Path, model: Path, *overrides: str) -> Lab:
        names: list[str | None] = [*save_pictures(folder, [(30 + n, 28) for n in range(ROWS)])]
        names[3] = names[7] = None  # rows of text alone
        pairs = [pair_row(n, name) for n, name in enumerate(names)]
        write_rows(folder / "pairs.jsonl", pairs)
        config = compose(
            [
                "experiment=smoke", "pipeline=preference", "backbone=hub", "data=file",
                f"backbone.path={model}", "backbone.dtype=float32", "data.images=.",
                f"data.path={folder / 'pairs.jsonl'}",
                "data.validation=0.2", "data.test=0.2", "tokens.max_prompt=64",
                "tokens.max_completion=16",
                "stages.sft.steps=2", "stages.preference.steps=2", "objective=dpo", *overrides,
            ]
        )  # fmt: skip
        stated = {**config["engine"], "device": "cpu", "threads": 1, "progress": False}
        return cls(
            Store(folder / "runs"), config["stages"], typed.build(Engine, stated, "engine"), count()
        )

    def stage(self, name: str) -> Any:
        return build_stage(copy.deepcopy(self.stages[name]), f"stages.{name}")

    def run(self, name: str, inputs: Mapping[str, Run] | None = None, **engine: Any) -> Run:
        stage = self.stage(name)
        run = self.store.run(stage.kind, f"{next(self.numbers):06d}")
        stage.run(inputs or {}, run, replace(self.engine, **engine))
        run.finish()
        return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    files = sorted(run.model_dir.glob("*.safetensors"))
    return {k: v for file in files for k, v in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["adapter=lora", "adapter=full"])
def test_sft_then_dpo(adapter: str, llava: Path, tmp_path: Path) -> None:
    lab = Lab.make(tmp_path, llava, adapter)
    sft = lab.run("sft")
    assert sft.record["summary"]["validation_nll"] > 0
    annotated = lab.run("annotate", {"policy": sft})
    inputs = {"init": sft, "reference": sft, "annotations": annotated}
    preference = lab.run("preference", inputs)
    before, after = weights(sft), weights(preference)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert not any("vision_tower" in name or "projector" in name for name in changed)
    # More in a micro-batch or less, the same training.
    small = lab.run("preference", inputs, token_budget=90)
    apart = {n: float((w - after[n]).abs().max()) for n, w in weights(small).items()}
    assert max(apart.values()) < 1e-5
    scored = lab.run("evaluate", {"policy": preference, "reference": sft})
    assert scored.record["summary"]


@pytest.mark.slow
def test_first_losses_are_those_of_transformers(llava: Path, tmp_path: Path) -> None:
    """At the start DPO's loss is log 2, and SFT's is the mean of the model's own negative logp."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from alignlab.spec import build
    from alignlab.stages.sft import demonstrations

    lab = Lab.make(tmp_path, llava, "adapter=lora")
    stage = lab.stage("sft")
    held_out = demonstrations(build(stage.data).load("validation"))[: stage.evaluate_rows]
    model = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(llava)
    total, targets = 0.0, 0
    for group in held_out:
        said = group.prompt[0]["content"].rpartition(">")[2]
        shown = [Image.open(i["path"]) for i in group.meta.get("images", ())]
        head = f"<|bos|>user: {'<image>' * len(shown)}{said}<|eos|>assistant: "
        answer = group.completions[0][0]["content"] + "<|eos|>"
        more = {"images": shown} if shown else {}
        inputs = processor(
            text=[head + answer], add_special_tokens=False, return_tensors="pt", **more
        )
        count = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logps = model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0, -count:]
        total -= float(logps[-count - 1 : -1].gather(1, ids[:, None]).sum())
        targets += count
    assert any(g.meta.get("images") for g in held_out)
    run = lab.store.run("sft", "start")
    frozen = replace(stage, optimizer=replace(stage.optimizer, learning_rate=0.0))
    frozen.run({}, run, lab.engine)
    assert run.record["summary"]["validation_nll"] == pytest.approx(total / targets, abs=1e-5)


@pytest.mark.slow
def test_resumed_is_straight(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab import interruption

    lab = Lab.make(tmp_path, llava, "adapter=lora", "stages.sft.steps=4")
    straight = weights(lab.run("sft"))
    from alignlab.stages.session import OfflineWork

    stage, run = lab.stage("sft"), lab.store.run("sft", "broken")
    micros = OfflineWork.micros

    def until_third(work: OfflineWork, step: int) -> Any:
        if step == 3:
            raise Interrupted("stop", 2)
        return micros(work, step)

    del interruption
    with monkeypatch.context() as patched:
        patched.setattr(OfflineWork, "micros", until_third)
        with pytest.raises(Interrupted):
            stage.run({}, run, lab.engine)
    stage.run({}, run, lab.engine)
    assert all(torch.equal(value, straight[name]) for name, value in weights(run).items())
