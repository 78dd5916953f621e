"""Merged models: a rule of `merging` applied to model folders, tensor by tensor.

Inputs are read one tensor at a time; only the result is whole in memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.models.bodies import PEFT_CONFIG, made_as
from alignlab.models.load import resolve, set_modes
from alignlab.models.merge_sources import (
    ADAPTER_WEIGHTS,
    HeadVector,
    Source,
    Updates,
    Weights,
    require_one_origin,
)
from alignlab.models.merging import magnitude_cut

CHANGES = ("deltas", "pair_deltas")  # what a rule asks for that works on changes from a base
PAIRS = ("pair", "pair_deltas")  # and one that takes exactly two models
SHARES = "shares"  # weights that add up to 1
_HARDLY = 1e-4  # part of an update that may lie outside of the merged adapters' spaces


@dataclass(frozen=True)
class Merger:
    """A rule with what it is given: see `alignlab.models.merging`."""

    rule: Callable[..., Tensor]  # hyperparameters bound
    needs: Sequence[str]  # names of what it is given, in order
    weights: Tensor  # (k,)
    density: float | None
    seed: int
    importances: Sequence[Mapping[str, Tensor]] = ()  # per model, of its tensors by name

    def tensors(
        self, models: Sequence[Source], base: Source | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Merged tensors by name; without a ``base``, updates count from zero.

        Raises:
            DataError: the merged tensor is not finite.
        """
        names = sorted({name for model in models for name in model.shapes()})
        given: dict[str, Any] = {"weights": self.weights, SHARES: self.weights / self.weights.sum()}
        if "cuts" in self.needs and self.density is not None:
            cuts = [
                magnitude_cut(lambda m=model: self._changes(m, base, names), self.density)  # type: ignore[misc]
                for model in models
            ]
            given["cuts"] = torch.tensor(cuts)
        for name in names:
            values = [_read(model, name, models) for model in models]
            if not values[0].is_floating_point():
                yield name, values[0]  # a buffer of whole numbers: one architecture, one value
                continue
            none = torch.zeros(values[0].shape)
            given["importances"] = [known.get(name, none) for known in self.importances]
            given["generators"] = [self._generator(i, name) for i in range(len(models))]
            origin = torch.zeros(())
            if self.needs[0] in CHANGES and base is not None:
                origin = _read(base, name, models)
            first = [value - origin for value in values] if self.needs[0] in CHANGES else values
            merged = self.rule(first, *(given[need] for need in self.needs[1:]))
            if not bool(torch.isfinite(merged).all()):
                raise DataError(f"{name} of the merged model is not finite; look at the weights.")
            yield name, origin + merged if self.needs[0] in CHANGES else merged

    def _changes(
        self, model: Source, base: Source | None, names: Sequence[str]
    ) -> Iterator[Tensor]:
        for name in names:
            value = _read(model, name, [model, *([base] if base else [])])
            if value.is_floating_point():
                yield value if base is None else value - _read(base, name, [model, base])

    def _generator(self, model: int, name: str) -> Generator:
        digest = hashlib.sha256(f"{self.seed}:{model}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _read(source: Source, name: str, all_of: Sequence[Source]) -> Tensor:
    """One tensor; the zero update where an adapter leaves a matrix alone that another adapts.

    Raises:
        ConfigError: a model without that weight.
    """
    if name in source.shapes():
        return source.get(name)
    if isinstance(source, Weights):
        raise ConfigError(f"{source.folder} has no {name}, which a model merged with it has.")
    shape = next(s.shapes()[name] for s in all_of if name in s.shapes())
    return torch.zeros(shape)


def write_merged(
    merger: Merger,
    models: Sequence[Source],
    base: Source | None,
    rank: int | None,
    cache: Path,
    to: Path,
) -> dict[str, float]:
    """Write the merged model or adapter to the folder ``to``; returns numbers for the record.

    Without a ``base`` what the models changed is counted from the base model that all go back to.

    Raises:
        ConfigError: they go back to different ones, or are of different kinds.
    """
    require_one_origin([*models, *([base] if base else [])])
    adapters = [model for model in models if isinstance(model, Updates)]
    if adapters:
        start = base if isinstance(base, Updates) else None
        return write_adapter(merger, adapters, start, rank, to)
    weights = [model for model in models if isinstance(model, Weights)]
    if base is None:
        base = Weights(resolve(str(made_as(weights[0].folder)["base"]), cache))
    return {"parameters": write_model(merger, weights, base, to)}


def write_model(merger: Merger, models: Sequence[Weights], base: Source, to: Path) -> int:
    """Write the merged model as a folder like the first one; returns the parameters in it.

    Stored in the number formats of the first model; its configuration and tokenizer are kept.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import save_file

    first = models[0]
    _copy_rest(first.folder, to)
    state = {
        name: tensor.to(first.stored(name).dtype) for name, tensor in merger.tensors(models, base)
    }
    if made_as(first.folder)["mode"] == "full":
        save_torch_state_dict(state, to)
    else:  # what a technique trains of a model that is not saved with it
        [file] = {file.name for file in first.files.values()}
        save_file(state, to / file, metadata={"format": "pt"})
    set_modes(to)
    return sum(tensor.numel() for tensor in state.values())


def write_head(merger: Merger, models: Sequence[Source], base: Source | None, to: Path) -> None:
    """Write the merged scalar head of reward models beside the merged model."""
    from alignlab.models.heads import ScalarHead

    heads = [HeadVector(model.folder) for model in models]
    start = None if base is None else HeadVector(base.folder)
    [(_, vector)] = merger.tensors(heads, start)
    head, read = ScalarHead(len(vector) - 1), set()
    for model in reversed(models):
        head.load(model.folder)
        read.add(head.pooling)
    if len(read) > 1:
        raise ConfigError(
            "some of the reward models read the first state of an encoder and some the mean of all"
            " (pooling): there is no head between the two."
        )
    head.gain.fill_(1.0)
    head.offset.zero_()
    head.linear.weight.copy_(vector[None, :-1])
    head.linear.bias.copy_(vector[-1:])
    head.save(to)
    set_modes(to)


def write_adapter(
    merger: Merger, models: Sequence[Updates], base: Updates | None, rank: int | None, to: Path
) -> dict[str, float]:
    """Write the merged updates as one LoRA folder; returns its rank, size and what was left out.

    The nearest update of ``rank`` (None: the sum of the merged adapters' ranks) by the singular
    values of each: exact for sums and averages at that rank, not for rules that drop or trim
    single elements. ``residual`` is the part that is lost, as a share of the whole's norm.
    """
    from safetensors.torch import save_file

    rank = rank or sum(model.rank for model in (*models, *([base] if base else [])))
    rank = min(rank, max(min(s) for model in models for s in model.shapes().values()))
    state: dict[str, Tensor] = {}
    lost = whole = 0.0
    for name, update in merger.tensors(models, base):
        spaces = [
            m.factors[name] for m in (*models, *([base] if base else [])) if name in m.factors
        ]
        down, up = factored(update, rank, spaces)
        state[f"base_model.model.{name}.lora_A.weight"] = down
        state[f"base_model.model.{name}.lora_B.weight"] = up
        lost += float((update - up @ down).square().sum())
        whole += float(update.square().sum())
    _copy_rest(models[0].folder, to)
    save_file(state, to / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = merged_config([model.config for model in models], rank)
    text = json.dumps(config, indent=2, sort_keys=True)
    (to / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")
    set_modes(to)
    residual = (lost / whole) ** 0.5 if whole else 0.0
    parameters = sum(tensor.numel() for tensor in state.values())
    return {"rank": rank, "residual": residual, "parameters": parameters}


def factored(
    update: Tensor, rank: int, spaces: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``A (rank, in)`` and ``B (out, rank)`` whose product is nearest to ``update (out, in)``.

    The Eckart–Young theorem: the leading singular values and vectors. ``spaces`` are factors that
    an update which is a sum of them lies in; their small common space is then looked at alone.
    """
    left = torch.linalg.qr(torch.cat([up for _, up in spaces], 1)).Q
    right = torch.linalg.qr(torch.cat([down for down, _ in spaces], 0).T).Q
    core = left.T @ update @ right
    outside = float((update - left @ core @ right.T).norm())
    inside = outside <= _HARDLY * float(update.norm())
    small, about = (core, (left, right)) if inside else (update, None)
    u, s, vh = torch.linalg.svd(small, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    up, down = u[:, :kept] * root, root[:, None] * vh[:kept]
    if about is not None:
        up, down = about[0] @ up, down @ about[1].T
    if kept < rank:  # a matrix smaller than the rank that all have
        up = torch.nn.functional.pad(up, (0, rank - kept))
        down = torch.nn.functional.pad(down, (0, 0, 0, rank - kept))
    return down.contiguous(), up.contiguous()


def merged_config(configs: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """Configuration of the merged adapter as peft reads it: updates ``B A`` without a scale."""
    modules = [config["target_modules"] for config in configs]
    joined = modules[0]
    if all(isinstance(names, list) for names in modules):
        joined = sorted({name for names in modules for name in names})
    return {
        **configs[0],
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "target_modules": joined,
    }


def _copy_rest(source: Path, to: Path) -> None:
    """Copy everything but weights: configuration, tokenizer, template, and whose base it is."""
    to.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copy2(file, to / file.name)
