"""A laboratory for stages: one small store, real configurations, plain arithmetic.

What a test compares a stage with is computed here by transformers alone, one sequence at a time:
nothing of alignlab's models, batching or sampling is used.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from alignlab import typed
from alignlab.compose import compose, conf_dir
from alignlab.engine.distributed import Engine
from alignlab.models.load import resolve
from alignlab.plan import build_stage
from alignlab.run import Run, Store
from alignlab.stages.stage import Stage

# A larger eps than AdamW's customary 1e-8: with that one, a gradient of nothing but rounding noise
# makes a full step, and no two orders of summation could be compared to six digits.
METHOD_INPUTS = {"init": "sft", "reference": "sft", "reward": "reward"}
OPTIMIZER = {
    "optimizer.learning_rate": 1e-2,
    "optimizer.eps": 1e-3,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
}


def write_data(path: Path, prompts: int = 40, completions: int = 3, seed: int = 2) -> None:
    """Prompts and completions of many lengths; the score counts the letter a, without ties."""
    source = random.Random(seed)
    rows = []
    for number in range(prompts):
        words = "".join(source.choices("bcdfgh ", k=source.randint(3, 10)))
        texts = [
            "".join(source.choices("klmnop", k=source.randint(2, 7))) + "a" * place
            for place in range(completions)
        ]
        order = source.sample(range(completions), completions)
        rows.append(
            {
                "prompt": f"{number} {words}",
                "completions": [texts[i] for i in order],
                "scores": [float(i) for i in order],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclass
class Lab:
    """Stages over one store, built from conf/ as the command line builds them."""

    store: Store
    configs: Mapping[str, Any]
    engine: Engine
    numbers: Any = field(default_factory=count)

    @classmethod
    def make(cls, folder: Path, *overrides: str, data: Path | None = None) -> Lab:
        if data is None:
            data = folder / "data.jsonl"
            write_data(data)
        config = compose(
            [
                "experiment=smoke",
                "pipeline=compare",
                "+stage@stages.online_dpo=online_dpo",
                "+stage@stages.best_of_n=best_of_n",
                *(
                    f"++stages.online_dpo.inputs.{role}={source}"
                    for role, source in METHOD_INPUTS.items()
                ),
                "++stages.best_of_n.inputs.annotations=annotate",
                f"data.path={data}",
                "data.validation=0.1",
                "data.test=0.1",
                "annotator=gold",
                "reward@audit=length",
                *(overrides or ("reward@gold=matches", "gold.pattern=a")),
            ]
        )
        stated = {**config["engine"], "device": "cpu", "threads": 1, "progress": False}
        return cls(Store(folder / "runs"), config["stages"], typed.build(Engine, stated, "engine"))

    def stage(self, name: str, **changes: Any) -> Stage:
        """Stage ``name`` of pipeline=compare; changes are dotted keys with __ for the dot."""
        node = copy.deepcopy(dict(self.configs[name]))
        named = {key.replace("__", "."): value for key, value in changes.items()}
        for key, value in {**(OPTIMIZER if "optimizer" in node else {}), **named}.items():
            place, *rest = key.split(".")
            target = node
            for part in rest:
                target, place = target[place], part
            assert place in target, key
            target[place] = value
        return build_stage(node, f"stages.{name}")

    def new_run(self, kind: str) -> Run:
        return self.store.run(kind, f"{next(self.numbers):06d}")

    def run(
        self,
        stage: Stage,
        inputs: Mapping[str, Run],
        run: Run | None = None,
        **engine: Any,
    ) -> Run:
        """Execute a stage in a run of its own (or go on with ``run``) and finish it."""
        run = run or self.new_run(stage.kind)
        stage.run(inputs, run, replace(self.engine, **engine))
        run.finish()
        return run


@dataclass
class Chain:
    """A lab with the three runs that every method starts from."""

    lab: Lab
    sft: Run
    annotations: Run
    reward: Run

    def inputs(self, *roles: str) -> dict[str, Run]:
        known = {
            "init": self.sft,
            "reference": self.sft,
            "policy": self.sft,
            "annotations": self.annotations,
            "reward": self.reward,
        }
        return {role: known[role] for role in roles}

    def prefer(self, **changes: Any) -> tuple[Any, dict[str, Run]]:
        return self.lab.stage("dpo", **changes), self.inputs("init", "reference", "annotations")

    def online(self, name: str, **changes: Any) -> tuple[Any, dict[str, Run]]:
        return self.lab.stage(name, **changes), self.inputs("init", "reference", "reward")


class Caught:
    """What the training loop was last given."""

    work: Any
    backbone: Any


def objective(name: str) -> dict[str, Any]:
    """Configuration of an objective, as conf/objective has it."""
    return yaml.safe_load((conf_dir() / "objective" / f"{name}.yaml").read_text(encoding="utf-8"))


OBJECTIVES = sorted(path.stem for path in (conf_dir() / "objective").glob("*.yaml"))


def weights(run: Run) -> dict[str, Tensor]:
    """All tensors of a run's model folder."""
    files = sorted(run.model_dir.glob("*.safetensors"))
    assert files
    return {f"{f.name}/{name}": value for f in files for name, value in load_file(f).items()}


def weight_hashes(run: Run) -> dict[str, str]:
    """Hashes of the safetensors files of a run's model folder (bytes take minutes to show)."""
    files = sorted(run.model_dir.glob("*.safetensors"))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest absolute difference between two sets of weights with the same names."""
    assert a.keys() == b.keys()
    return max(
        float((a[name].detach().double() - b[name].detach().double()).abs().max()) for name in a
    )


def plain_model(folder: Path, cache: Path) -> Any:
    """The model of a run as transformers (and peft) load it, in double precision."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double().eval()
    base = resolve(json.loads((folder / "view.json").read_text())["base"], cache)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(folder)).double().eval()


def token_logps(
    model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """log π(y_t | x, y_<t) of every completion token (L,), one forward pass over one sequence."""
    ids = torch.tensor([[*map(int, prompt), *map(int, completion)]])
    logits = model(input_ids=ids).logits[0] / temperature
    predicted = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return predicted.gather(1, ids[0, len(prompt) :, None])[:, 0]


@dataclass
class PlainHead:
    """r = gain (w · h + b) + offset, read from head.safetensors."""

    weight: Tensor
    bias: Tensor
    gain: Tensor
    offset: Tensor

    @classmethod
    def load(cls, folder: Path) -> PlainHead:
        state = {k: v.double() for k, v in load_file(folder / "head.safetensors").items()}
        return cls(
            state["linear.weight"][0], state["linear.bias"][0], state["gain"], state["offset"]
        )

    def along(self, model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """Scalar at every position of prompt + completion (T,)."""
        ids = torch.tensor([[*map(int, prompt), *map(int, completion)]])
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        return self.gain * (hidden @ self.weight + self.bias) + self.offset


def ids_of(values: np.ndarray) -> list[int]:
    return [int(value) for value in values]


@dataclass
class PlainAdamW:
    """AdamW as its paper has it, one parameter at a time, after clipping the joint norm."""

    parameters: list[Tensor]
    rate: float
    betas: tuple[float, float]
    eps: float
    max_norm: float
    steps: int = 0

    def __post_init__(self) -> None:
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        norm = sum(float((g * g).sum()) for g in gradients) ** 0.5
        scale = min(1.0, self.max_norm / (norm + 1e-6))
        self.steps += 1
        one, two = self.betas
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            g = gradient * scale
            self.first[i] = one * self.first[i] + (1 - one) * g
            self.second[i] = two * self.second[i] + (1 - two) * g * g
            mean = self.first[i] / (1 - one**self.steps)
            square = self.second[i] / (1 - two**self.steps)
            with torch.no_grad():
                parameter -= self.rate * mean / (square.sqrt() + self.eps)

    @classmethod
    def like(cls, stage: Any, parameters: list[Tensor]) -> PlainAdamW:
        """With a stage's settings: constant rate, no warm-up, no decay."""
        o = stage.optimizer
        assert (o.schedule, o.warmup, o.weight_decay, o.ema) == ("constant", 0, 0, None)
        return cls(parameters, o.learning_rate, o.betas, o.eps, o.max_grad_norm)
