"""What a backbone asks of the bodies of its views, whatever technique they are of.

A body is what computes hidden states for one view: a whole model, or a base with something of the
view's own in it. A technique (`alignlab.models.techniques`) makes the container of all bodies.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignlab.models.techniques import Technique

# Where bitsandbytes is installed, peft imports it, and on CPUs it misses an optional kernel aloud.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

VIEW_FILE = "view.json"
PEFT_CONFIG = "adapter_config.json"
HEAD_FILE = "head.safetensors"


class Read(Protocol):
    """Reads a model folder onto the device."""

    def __call__(
        self, folder: Path, trainable: bool, quantization: Any | None = None
    ) -> PreTrainedModel:
        """Read it, every parameter to be trained or none, quantised as transformers is told."""
        ...


@dataclass(frozen=True)
class Base:
    """A base model that was found and not yet read, as techniques make bodies of it."""

    folder: Path
    name: str  # as it was configured
    read: Read
    store: Callable[[PreTrainedModel], None]  # frozen weights into their storage formats
    place: Callable[[nn.Module], None] | None  # puts a model in its shares (ZeRO 3), if any
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype  # of the products
    scored: Collection[str] = ()  # views with a scalar head, who do not use the language model's

    def frozen(self) -> PreTrainedModel:
        """Read the base once, frozen and in its place, for all views to compute with."""
        model = self.read(self.folder, False)
        if self.place is not None:
            self.place(model)
        return model


class Bodies(Protocol):
    """The bodies of all views, at most one of them active."""

    @property
    def mode(self) -> str:
        """Name of the technique, as ``view.json`` has it."""
        ...

    @property
    def shares_base(self) -> bool:
        """Whether all views compute with one base; a view that is a whole model changes it."""
        ...

    # Bodies that also read what other techniques saved name these in ``family``.

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Add body ``name``: what `save` wrote to ``source``, or a fresh one.

        A fresh one computes what the base does, unless its technique says otherwise.

        Raises:
            ConfigError: ``source`` is of another technique, or does not fit.
        """
        ...

    def activate(self, name: str) -> PreTrainedModel:
        """Make ``name`` the body that computes, and return the model; cheap if it already is.

        Every trainable view's parameters require gradients afterwards, not only the active one's.
        """
        ...

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters by names that do not depend on the view; none for a frozen view."""
        ...

    def count(self, name: str) -> int:
        """Parameters that the view computes with."""
        ...

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that `count` counts."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """Everything that holds parameters, for an engine that shards it."""
        ...

    def sharing(self) -> Self:
        """The same parameters in modules of their own (see `alignlab.models.sharding`)."""
        ...

    def save(self, name: str, folder: Path) -> None:
        """Write what `add` reads; peft's format where peft has one."""
        ...

    def drop(self, name: str) -> None:
        """Free a body."""
        ...


class Change(Protocol):
    """What a technique does to a training beside its updates (AdaLoRA deals out ranks)."""

    def begin(self, steps: int) -> None:
        """Learn how many steps the training will have, before the first and when it goes on."""
        ...

    def before(self, *, counts: bool) -> None:
        """Add to this process's gradients before they are summed; one process ``counts``."""
        ...

    def after(self) -> None:
        """Change what an update has left behind; its summed gradients are still there."""
        ...

    def cut(self) -> None:
        """Take out of the weights, after a moving average has become them, what was taken out."""
        ...

    def taken_early(self, step: int) -> str | None:
        """What to know of the weights after ``step`` updates, if more changes were to come."""
        ...

    def state(self) -> dict[str, Any]:
        """What later changes depend on beside weights and gradients, for a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        ...


@runtime_checkable
class Changing(Protocol):
    """Bodies that take part in a training."""

    def changing(self, views: Sequence[str]) -> Change:
        """What they do to a training of ``views``."""
        ...


def bodies_for(adapter: Technique, base: Base) -> Bodies:
    """Make the bodies of a technique on a base model."""
    return adapter.bodies(base)


def made_as(source: Path) -> dict[str, Any]:
    """What ``view.json`` says of a model folder; without one, what its files tell."""
    file = source / VIEW_FILE
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    return {"mode": "lora" if (source / PEFT_CONFIG).is_file() else "full"}


def made_for(source: Path, bodies: Bodies) -> dict[str, Any]:
    """`made_as`, of a folder that a view of ``bodies`` is made from.

    Raises:
        ConfigError: another technique left it, and all views compute with one base (whole models
            take in whatever can be merged); or its scalar head is gone.
    """
    made = made_as(source)
    mode = made["mode"]
    known = {"full", bodies.mode, *getattr(bodies, "family", ())}
    if bodies.shares_base and mode not in known:
        raise ConfigError(
            f"{source} was trained with adapter={mode}, and this stage has adapter={bodies.mode}: "
            "one base cannot serve both. Set the same adapter in both stages, or merge the first "
            "one with `alignlab export RUN --merge` and start from that folder (backbone.path)."
        )
    if made.get("head") and not (source / HEAD_FILE).is_file():
        raise ConfigError(f"{source}: its {HEAD_FILE} is gone; a fresh head scores at random.")
    return made
