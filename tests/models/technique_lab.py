"""A laboratory for techniques: what every yaml of conf/adapter must do, in one small chain each.

A technique's test module makes one `Tried` per yaml and asks it all the questions; what a test has
to say itself is which parameters the technique trains, and what of it cannot be merged.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOM = str(Path(__file__).resolve().parent.parent / "stages")
if ROOM not in sys.path:  # pytest puts a folder on the path only when it collects there
    sys.path.insert(0, ROOM)

from model_cases import make_batch  # noqa: E402
from stage_lab import Chain, Lab, token_logps, weight_hashes  # noqa: E402

from alignlab.engine.state import TrainState  # noqa: E402
from alignlab.models.backbone import Backbone  # noqa: E402
from alignlab.models.export import load_applied, load_merged  # noqa: E402
from alignlab.run import Run  # noqa: E402

METHODS = ("dpo", "ppo", "grpo")
SMALL = {"batch": 4, "steps": 2, "evaluate_rows": 4}


class PowerCut(Exception):
    """A training that ends without a word."""


@dataclass
class Trained:
    """What one training did to every tensor of its backbone."""

    run: Run
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    trained: set[str]  # names of the tensors that the trained views say they train
    names: dict[str, set[str]]  # what each of these views calls them

    @property
    def moved(self) -> set[str]:
        """Tensors with another value, or another shape, than before."""
        return {name for name, old in self.before.items() if not same(self.after[name], old)}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits."""
    return a.shape == b.shape and torch.equal(a, b)


def tensors_of(backbone: Backbone) -> dict[str, Tensor]:
    """Every parameter and buffer of all views, under any name that it has."""
    parts = {**backbone._bodies.modules(), **{f"{n}_head": h for n, h in backbone._heads.items()}}
    return {
        f"{part}/{name}": value
        for part, module in parts.items()
        for kind in (module.named_parameters, module.named_buffers)
        for name, value in kind(remove_duplicate=False)
    }


@dataclass
class Tried:
    """A technique on the tiny model: SFT, annotations and a reward model, two steps each."""

    chain: Chain
    first: Trained  # of the SFT stage

    @classmethod
    def make(cls, folder: Path, adapter: str, *overrides: str) -> Tried:
        """Train the chain with ``adapter=ADAPTER`` and further overrides of the command line."""
        named = (f"adapter={adapter}", *overrides, "reward@gold=matches", "gold.pattern=a")
        lab = Lab.make(folder, *named)
        first = watched(lab, lab.stage("sft", **SMALL), {})
        judged = lab.stage("annotate", validation_share=0.2)
        annotations = lab.run(judged, {"policy": first.run})
        small = {"batch": 4, "steps": 1}
        inputs = {"init": first.run, "annotations": annotations}
        reward = lab.run(lab.stage("reward", **small), inputs)
        return cls(Chain(lab, first.run, annotations, reward), first)

    def stage(self, method: str, **changes: Any) -> tuple[Any, dict[str, Run]]:
        """Stage of a method of `METHODS`, one step long."""
        if method == "dpo":
            return self.chain.prefer(**{"steps": 1, "batch": 4, **changes})
        # Without the constant for completions that do not end: all alike, they would teach nothing.
        return self.chain.online(method, **{"iterations": 1, "missing_eos_score": None, **changes})

    def trains(self, method: str) -> Trained:
        """Train a method from the SFT run."""
        return watched(self.chain.lab, *self.stage(method))

    def open(self, run: Run, **changes: Any) -> Backbone:
        """A backbone of its own with the view ``policy`` of ``run``, frozen."""
        config = self.chain.lab.stage("sft").backbone
        backbone = Backbone.load(config, self.chain.lab.store.cache, **changes)
        backbone.add("policy", source=run.model_dir, trainable=False)
        return backbone

    def check_changes(self, expected: str, *methods: str) -> None:
        """Exactly what the technique trains changes, in SFT and in each method: all of it.

        ``expected`` is a pattern (`re.fullmatch`) on the names of `Backbone.trainable_parameters`,
        of which the plan must know the number of elements; scalar heads are left out.
        """
        for trained in (self.first, *map(self.trains, methods)):
            assert trained.moved == trained.trained, sorted(trained.moved ^ trained.trained)[:5]
            names = {n for n in trained.names["policy"] if not n.startswith("head.")}
            assert names
            odd = [name for name in names if not re.fullmatch(expected, name)]
            assert not odd, odd[:5]
        stage = self.chain.lab.stage("sft")
        planned = stage.estimate(self.chain.lab.store.cache, {})
        record = self.chain.sft.record
        assert planned.params_trained == record["params_trained"]
        assert planned.params_total == record["params_total"]

    def check_loads(self, run: Run | None = None, atol: float = 1e-5) -> None:
        """What was saved computes what was trained: in a fresh backbone, and with transformers."""
        run = run or self.chain.sft
        batch = make_batch()
        backbone = self.open(run)
        with torch.no_grad(), backbone.view("policy") as view:
            ours = view.logps(batch)
        other = self.open(run, seed=5)  # nothing of it comes from the seed
        with torch.no_grad(), other.view("policy") as view:
            assert torch.equal(view.logps(batch), ours)
        plain, _ = load_applied(run.model_dir, self.chain.lab.store.cache)
        torch.testing.assert_close(plain_logps(plain, batch), ours, rtol=0, atol=atol)

    def check_merges(self, run: Run | None = None, atol: float = 1e-5) -> None:
        """The merged model computes what the view does."""
        run = run or self.chain.sft
        batch = make_batch()
        with torch.no_grad(), self.open(run).view("policy") as view:
            ours = view.logps(batch)
        merged, _ = load_merged(run.model_dir, self.chain.lab.store.cache)
        torch.testing.assert_close(plain_logps(merged, batch), ours, rtol=0, atol=atol)

    def check_resumes(self, method: str | None = None, **changes: Any) -> None:
        """A training that is cut off after its first step ends in the same bytes."""
        lab = self.chain.lab
        stage, inputs = (
            self.stage(method, **changes) if method else (lab.stage("sft", **SMALL, **changes), {})
        )
        straight = lab.run(stage, inputs)
        run = cut_off(lab, stage, inputs)
        torch.manual_seed(12345)  # another process is in another random state
        assert weight_hashes(lab.run(stage, inputs, run)) == weight_hashes(straight)


def cut_off(lab: Lab, stage: Any, inputs: Mapping[str, Run]) -> Run:
    """The run of a training that died after it saved its first step."""
    run, save = lab.new_run(stage.kind), TrainState.save

    def dying(self: TrainState, *args: Any) -> None:
        save(self, *args)
        raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "save", dying)
        with pytest.raises(PowerCut):
            lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    return run


def watched(lab: Lab, stage: Any, inputs: Mapping[str, Run]) -> Trained:
    """Run a stage, and keep all tensors of its backbone from before and after the training."""
    import alignlab.engine.loop as loop

    train, seen = loop.train, dict[str, Any]()

    def watching(work: Any, backbone: Backbone, views: Any, **named: Any) -> Any:
        seen["before"] = {n: t.detach().clone() for n, t in tensors_of(backbone).items()}
        of = {view: backbone.trainable_parameters(view) for view in views}
        own = {id(p) for found in of.values() for p in found.values()}
        seen["own"] = {n for n, t in tensors_of(backbone).items() if id(t) in own}
        seen["names"] = {view: set(found) for view, found in of.items()}
        result = train(work, backbone, views, **named)
        seen["after"] = {n: t.detach().clone() for n, t in tensors_of(backbone).items()}
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", watching)
        run = lab.run(stage, inputs)
    return Trained(run, seen["before"], seen["after"], seen["own"], seen["names"])


def plain_logps(model: Any, batch: Any) -> Tensor:
    """Log-probs (T,) of the completions of a flat batch, one row at a time, without our layouts."""
    found = []
    with torch.no_grad():
        for span in batch.spans:
            prompt = batch.input_ids[slice(*span.prompt)].tolist()
            for own in span.completions:
                row = batch.input_ids[slice(*own)].tolist()
                found.append(token_logps(model, prompt, row))
    return torch.cat(found).float()
