"""What every stage is: a frozen dataclass of hyperparameters plus one verb.

A stage names the stages it depends on (``inputs``: role → stage name), says which kinds of stage
may fill a role, and does its work in ``run``. Importing a stage module must not import torch:
planning a study of ten thousand stages is done from these classes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignlab.errors import ConfigError, did_you_mean
from alignlab.spec import Spec, build

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.capacity.workload import Workload
    from alignlab.engine.distributed import Engine
    from alignlab.rollout.sampling import Sampling
    from alignlab.run import Run

# What is compared: they train a policy from feedback, offline or on what it samples meanwhile.
ONLINE_KINDS = ("ppo", "grpo", "online_preference")
METHOD_KINDS = ("preference", *ONLINE_KINDS)
POLICY_KINDS = ("continued_pretrain", "sft", *METHOD_KINDS, "select", "merge")
JUDGING = ("annotator", "reward", "monitor", "gold", "audit")  # fields that a judge may stand in
START_KINDS = (*POLICY_KINDS, "pretrain")  # what a policy may start from, or be compared with


@dataclass(frozen=True)
class Role:
    """What may stand behind one input of a stage."""

    kinds: tuple[str, ...]
    optional: bool = False
    many: bool = False  # several stages may fill it: inputs ``role``, ``role/1``, ``role/2`` …
    tolerant: bool = False  # stages behind it may have failed, as long as one of them is done


def role_of(name: str) -> str:
    """Role that the input ``name`` fills: ``reward/2`` is one more stage behind ``reward``."""
    return name.partition("/")[0]


def filling(role: str, names: Iterable[str]) -> list[str]:
    """Names of the inputs that fill ``role``, in a fixed order: ``role``, ``role/1`` … ``role/10``.

    A stage reads all stages behind a role that takes many with it.
    """
    return sorted((n for n in names if role_of(n) == role), key=lambda n: (len(n), n))


@dataclass(frozen=True)
class Estimate:
    """What a stage will cost, as far as it can be known before anything is loaded."""

    params_total: int = 0
    params_trained: int = 0
    tokens: int = 0  # tokens that pass through a model, sampled ones included
    flops: float = 0.0
    memory_bytes: int = 0  # where no workload says it
    workload: Workload | None = None  # what memory and time on a device follow from


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Base of all stages. Fields here belong to every stage; the rest is on the final classes."""

    kind: ClassVar[str]
    # Raise it when a stage's arithmetic changes (here: of every stage); old runs stop matching.
    # 2: short rows' attention and target logits in bfloat16 are rounded otherwise.
    version: ClassVar[int] = 2
    roles: ClassVar[Mapping[str, Role]] = {}
    # Whether all processes of a job work on it; else the first does, and the others wait.
    together: ClassVar[bool] = False
    # Whether its backbone may be an encoder, which scores texts and writes none.
    encodes: ClassVar[bool] = False
    # Whether it can use rows with images.
    sees: ClassVar[bool] = False
    # Fields that change no number: a name, and what the data gate lets pass.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"label", "gate"})
    # Fields that came later and mean, while they are null, what was done before there were any.
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset()

    seed: int
    inputs: Mapping[str, str]
    label: str | None = None

    def __post_init__(self) -> None:
        for name in self.inputs:
            role = role_of(name)
            if role not in self.roles:
                known = ", ".join(self.roles) or "none"
                raise ConfigError(
                    f"inputs.{name}: a {self.kind} stage has no such input (it takes: {known})."
                    + did_you_mean(role, self.roles)
                )
            if name != role and not self.roles[role].many:
                raise ConfigError(
                    f"inputs.{name}: one stage fills the role '{role}' of a {self.kind} stage."
                )
        for role, rule in self.roles.items():
            if not filling(role, self.inputs) and not rule.optional:
                kinds = " or ".join(rule.kinds)
                raise ConfigError(
                    f"inputs.{role} is missing: a {self.kind} stage needs a {kinds} stage there."
                )
        self._require_sight()
        self.validate()

    def _require_sight(self) -> None:
        """Refuse images where the stage cannot use them or its backbone does not see."""
        from alignlab.models.sighted import require_backbone

        data, backbone = getattr(self, "data", None), getattr(self, "backbone", None)
        images = isinstance(data, Spec) and shows_images(data)
        if images and not self.sees:
            raise ConfigError(
                f"data.images: a {self.kind} stage cannot use images yet; sft, annotate (for pairs"
                " that come with a verdict), preference and evaluate can."
            )
        if backbone is not None and hasattr(backbone, "vision"):
            require_backbone(backbone, images=images)

    def validate(self) -> None:  # noqa: B027 (most stages have nothing to add)
        """Check what types and ranges cannot say; raise ConfigError."""

    def accept(self, inputs: Mapping[str, Stage]) -> None:  # noqa: B027 (as above)
        """Check the stages behind the inputs, when the plan is made; raise ConfigError."""

    def fingerprint(self) -> str:
        """Fingerprint of what it reads by itself: its data, its base model's files, its judges."""
        from alignlab.models.identity import identity
        from alignlab.models.templates import template_identity

        data, backbone = getattr(self, "data", None), getattr(self, "backbone", None)
        parts = [build(data).fingerprint() if isinstance(data, Spec) else ""]
        if backbone is not None:
            parts.append(identity(backbone.path, backbone.revision))
            if backbone.template is not None:
                parts.append(template_identity(backbone.template))
        anchor = getattr(self, "anchor", None)
        if isinstance(anchor, Spec):
            parts.append(build(anchor).fingerprint())
        judging = [f for name in JUDGING if isinstance(f := getattr(self, name, None), Spec)]
        if judging:
            from alignlab.rewards.reward import outside

            parts += [found for spec in judging for found in outside(spec)]
        return " ".join(parts)

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Cost of the stage, from its fields and those of its inputs, before anything is loaded.

        ``cache`` is the store's cache folder, where models that were fetched already lie.
        """
        return Estimate()

    @abstractmethod
    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Do the work: read finished ``inputs``, write everything into ``run``."""


def shows_images(data: Any) -> bool:
    """Whether a data source, or one inside of it, says that its rows show images."""
    if isinstance(data, Spec):
        return data.arguments.get("images") is not None or shows_images(
            list(data.arguments.values())
        )
    if isinstance(data, Mapping):
        return shows_images(list(data.values()))
    return isinstance(data, list | tuple) and any(map(shows_images, data))


def reject_truncated_sampling(sampling: Sampling) -> None:
    """Policy gradients need log-probs of the distribution that was sampled from, untruncated."""
    if sampling.top_p < 1 or sampling.top_k > 0 or sampling.temperature <= 0:
        raise ConfigError(
            f"sampling.top_p={sampling.top_p}, top_k={sampling.top_k}, temperature="
            f"{sampling.temperature}: policy-gradient training samples the whole distribution; use"
            " top_p=1, top_k=0 and a temperature above 0."
        )
