"""What is merged, read from model folders one tensor at a time: weights, or adapters' updates.

An adapter's update of a matrix is ``ΔW = s B A``. A rule sees it as the change from the base model,
so adapters are merged as the whole models would be that they stand for, and not factor by factor:
``B₁A₁ + B₂A₂`` is not ``(B₁ + B₂)(A₁ + A₂)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.models.bodies import HEAD_FILE, PEFT_CONFIG, made_as
from alignlab.models.weights import weights_sha256

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Starts of adapters that take something out of the base's own matrices.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Weights:
    """The tensors of a whole model."""

    folder: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """Which file every tensor is in."""
        from safetensors import safe_open

        found: dict[str, Path] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name == HEAD_FILE:
                continue
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        return found

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, from the files' headers."""
        from alignlab.models.memory import tensor_shapes

        return tensor_shapes(self.folder)

    def stored(self, name: str) -> Tensor:
        """Read one tensor as it is stored."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def get(self, name: str) -> Tensor:
        """Read one tensor, as float32 where it is a number with a fraction."""
        tensor = self.stored(name)
        return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Updates:
    """The update ``s B A`` of every matrix that a LoRA folder (peft's format) adapts."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """``adapter_config.json``; raises ConfigError for what is more than ``s B A``."""
        text = (self.folder / PEFT_CONFIG).read_text(encoding="utf-8")
        config: dict[str, Any] = json.loads(text)
        start = str(config.get("init_lora_weights"))
        odd = {
            f"a {config.get('peft_type')} adapter": config.get("peft_type") != "LORA",
            "DoRA": config.get("use_dora"),
            "biases": config.get("bias") not in (None, "none"),
            "an alpha for each module": config.get("alpha_pattern"),
            f"a start by {start}": start.startswith(_CHANGES_BASE),
            "whole modules": config.get("modules_to_save"),
        }
        if found := [what for what, there in odd.items() if there]:
            raise ConfigError(
                f"{self.folder}: {found[0]} is more than an update s·B·A of each matrix, which is "
                "what adapters are merged by. Write the models out with `alignlab export RUN "
                "--merge`, or train all of them with adapter=lora or adapter=full."
            )
        return config

    @cached_property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) of every adapted module, float32."""
        from safetensors.torch import load_file

        _ = self.config  # which refuses what has other parts
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(self.folder / ADAPTER_WEIGHTS).items():
            module, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
            if factor not in ("A.weight", "B.weight"):
                raise ConfigError(f"{self.folder}: {key} is no factor of a linear layer's update.")
            parts.setdefault(module, {})[factor[0]] = tensor.float()
        return {module: (pair["A"], pair["B"]) for module, pair in parts.items()}

    @property
    def rank(self) -> int:
        """Largest rank of its factors."""
        return max(len(down) for down, _ in self.factors.values())

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every update."""
        pairs = self.factors.items()
        return {module: (up.shape[0], down.shape[1]) for module, (down, up) in pairs}

    def get(self, name: str) -> Tensor:
        """Compute one update."""
        down, up = self.factors[name]
        rank = down.shape[0]
        power = 0.5 if self.config.get("use_rslora") else 1.0
        return (self.config["lora_alpha"] / rank**power) * (up @ down)


@dataclass(frozen=True)
class HeadVector:
    """A scalar head as one vector: its score is the vector's product with ``[h; 1]``.

    ``r = gain (w·h + b) + offset``, so ``[gain w, gain b + offset]``, in the unit of the scores.
    """

    folder: Path

    @cached_property
    def vector(self) -> Tensor:
        """The vector (H + 1,), float32."""
        import torch
        from safetensors.torch import load_file

        head = load_file(self.folder / HEAD_FILE)
        bias = head["gain"] * head["linear.bias"] + head["offset"]
        return torch.cat([head["gain"] * head["linear.weight"][0], bias])

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of the vector."""
        return {HEAD_FILE: tuple(self.vector.shape)}

    def get(self, name: str) -> Tensor:
        """The vector."""
        return self.vector


Source = Weights | Updates | HeadVector


def opened(folder: Path, *, head: bool = False) -> Weights | Updates:
    """Open a run's model folder as what it is; ``head``: with a scalar head beside it."""
    adapter = (folder / PEFT_CONFIG).is_file()
    if bool(made_as(folder).get("head")) != head:
        raise ConfigError(
            f"{folder} has no scalar head; reward models are merged with reward models."
            if head
            else f"{folder} has a scalar head; reward models are merged by stage merge_rewards."
        )
    return Updates(folder) if adapter else Weights(folder)


def require_one_origin(sources: Sequence[Source]) -> None:
    """Refuse models that do not go back to one base model, or that differ in their tensors.

    Raises:
        ConfigError: naming two of them, and what differs.
    """
    first = sources[0]
    kinds = {type(source) for source in sources}
    if len(kinds) > 1:
        raise ConfigError(
            "an adapter cannot be merged with a whole model: "
            + ", ".join(f"{s.folder} ({made_as(s.folder)['mode']})" for s in sources)
            + ". Export the adapter with --merge, or train all of them with one adapter setting."
        )
    common = _origins(first.folder)
    for source in sources[1:]:
        if not common & (theirs := _origins(source.folder)):
            raise ConfigError(
                f"{first.folder} and {source.folder} go back to different base models; an average "
                "of models that do not share a start is no model. Train both from one."
            )
        common &= theirs
        if isinstance(source, Weights) and (mine := first.shapes()) != (other := source.shapes()):
            names = [n for n in {**mine, **other} if mine.get(n) != other.get(n)]
            raise ConfigError(
                f"{names[0]} is {mine.get(names[0], 'missing')} in {first.folder} and "
                f"{other.get(names[0], 'missing')} in {source.folder}: not one architecture."
            )


def _origins(folder: Path) -> set[str]:
    """Hashes of the base that a model was trained from, and of the model as a base of others."""
    base = made_as(folder).get("base_sha256")
    if (folder / PEFT_CONFIG).is_file():
        return {str(base)}
    return {str(base), weights_sha256(folder)}
