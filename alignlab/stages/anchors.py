"""Anchors: what else a training is asked for, so that the policy does not forget its start.

An anchor stands in the field ``anchor`` of a stage that trains. It adds terms to the loss of every
step, each divided by a count of the whole step, so that they add up over micro-batches and
processes as the loss itself does. The start is the policy, or the reward model, as the stage finds
it; of PPO's two views the policy is held and the value is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.errors import ConfigError
from alignlab.objectives.bounds import Positive
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build, late, locate
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.engine.work import Work
    from alignlab.models.backbone import Backbone
    from alignlab.stages.anchor_terms import Scene, Terms
    from alignlab.stages.session import OfflineWork


class Anchor(ABC):
    """What every anchor says of itself when a plan is made, and what it adds to a training."""

    copies: ClassVar[int] = 0  # float32 copies of the trained weights that it holds
    of_text: ClassVar[bool] = False  # whether it compares what two models write, token by token
    of_matrices: ClassVar[bool] = False  # whether, for adapters, something as large as the base
    holds_start: ClassVar[bool] = False  # whether the starting model is a view of its own

    def fingerprint(self) -> str:
        """Fingerprint of the data that it reads."""
        data: Any = getattr(self, "data", None)
        return str(build(data).fingerprint()) if isinstance(data, Spec) else ""

    @abstractmethod
    def terms(self, scene: Scene) -> Terms:
        """Look at the policy before it is trained, and make the terms of its loss."""


@dataclass(frozen=True, kw_only=True)
class L2SP(Anchor):
    """``α/2 ‖θ − θ_start‖²`` beside the loss (Li, Grandvalet & Davoine 2018, 1802.01483).

    With low-rank adapters θ are the matrices that they adapt. A scalar head counts from its start.
    """

    copies: ClassVar[int] = 1

    weight: Positive  # α

    def terms(self, scene: Scene) -> Terms:
        """A penalty with the same weight everywhere."""
        from alignlab.stages.anchor_terms import penalty

        return penalty(scene, self.weight, None)


@dataclass(frozen=True, kw_only=True)
class EWC(Anchor):
    """``λ/2 Σ_j F_j (θ_j − θ_start,j)²`` (Kirkpatrick et al. 2017, 1612.00796 eq. 3).

    F is the diagonal of the Fisher information of ``data`` under the starting model, from the
    squared gradients of single rows, per completion token: at λ = 1 the term is the second-order
    estimate of how much the negative log-likelihood of that data has risen. Rows have the labels
    of the data ("empirical Fisher") or ones that the model samples. With low-rank adapters F and θ
    are those of the adapted matrices (EWC-LoRA, 2602.17559).
    """

    copies: ClassVar[int] = 2
    of_matrices: ClassVar[bool] = True

    weight: Positive  # λ
    data: Spec
    split: str
    rows: Annotated[int, Range(min=1)]
    labels: Literal["data", "sampled"]
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]

    def terms(self, scene: Scene) -> Terms:
        """A penalty weighted by what each weight matters for the data."""
        from alignlab.stages.anchor_terms import penalty
        from alignlab.stages.fisher import fisher

        return penalty(scene, self.weight, lambda changes: fisher(self, scene, changes))


@dataclass(frozen=True, kw_only=True)
class Distillation(Anchor):
    """``λ`` times a divergence between the starting model's and the policy's next tokens.

    The mean over the completion tokens of the step's own rows, or of ``batch`` rows of ``data`` per
    step: as they are, or with completions that the policy samples then and there (on-policy, GKD:
    Agarwal et al. 2024, 2306.13649).
    """

    holds_start: ClassVar[bool] = True
    of_text: ClassVar[bool] = True

    weight: Positive  # λ
    divergence: Spec
    data: Spec | None
    split: str
    rows: Annotated[int, Range(min=1)] | None
    batch: Annotated[int, Range(min=1)]
    sampled: bool
    sampling: Sampling
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]

    def __post_init__(self) -> None:
        """Sampling needs prompts; a divergence is of two distributions."""
        if self.sampled and self.data is None:
            raise ConfigError("sampled=true needs prompts to sample from: set data.")
        if list(late(self.divergence)) != ["policy", "start"]:
            raise ConfigError(
                f"divergence: {self.divergence.target} is no divergence of alignlab.objectives."
                "forgetting, such as forward_kl, reverse_kl or jensen_shannon."
            )

    def terms(self, scene: Scene) -> Terms:
        """Passes of both models over the same tokens."""
        from alignlab.stages.distilling import Distilling

        return Distilling(self, scene)


Trains = Literal["rows", "scores", "rollouts"]  # on given rows, a scalar head, its own samples


def require_anchor(spec: Spec | None, trains: Trains = "rows") -> None:
    """Refuse what is no anchor, when the plan is made, or none for what the stage trains on.

    Raises:
        ConfigError: says which.
    """
    if spec is None:
        return
    found = locate(spec.target, "anchor._target_")
    if not (isinstance(found, type) and issubclass(found, Anchor)):
        raise ConfigError(f"anchor: {spec.target} is no anchor; see conf/anchor.")
    if trains == "scores" and found.of_text:
        raise ConfigError(
            "anchor: a reward model scores text and writes none that could be held to its start;"
            " hold its weights, with anchor l2sp or ewc."
        )
    if trains == "rollouts" and found.of_text and spec.arguments.get("data") is None:
        raise ConfigError(
            "anchor.data: the rows of a step are what the policy just said, where the KL term"
            " (kl_coef) or the reference of the objective holds it already. Name data to distil on"
            " beside them, such as data=${data}; or hold the weights, with anchor l2sp or ewc."
        )


def anchor_of(spec: Spec | None) -> Anchor | None:
    """Make the anchor of a stage, if it has one."""
    if spec is None:
        return None
    made: Anchor = build(spec)
    return made


def anchored(spec: Spec | None, work: OfflineWork, backbone: Backbone, source: Path | None) -> Work:
    """``work`` with the terms of the anchor, or as it is without one.

    ``source`` is the folder that the policy was made from, None where it is the base.
    """
    anchor = anchor_of(spec)
    if anchor is None:
        return work
    from alignlab.stages.anchor_terms import Anchored, Scene

    scene = Scene(backbone, work.view, source, work.engine, work.seed, work.chosen)
    return Anchored(work, anchor.terms(scene))


def anchored_online(
    spec: Spec | None, work: Work, backbone: Backbone, source: Path, engine: Engine, seed: int
) -> Work:
    """The same for work on what the view ``policy`` samples: it has no rows that are given."""
    anchor = anchor_of(spec)
    if anchor is None:
        return work
    from alignlab.stages.anchor_terms import Anchored, Scene

    scene = Scene(backbone, "policy", source, engine, seed, chosen=lambda step: ())
    return Anchored(work, anchor.terms(scene))
