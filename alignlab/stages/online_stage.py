"""What PPO, GRPO and online preference optimization have in common: fields, checks, the opening."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from alignlab.data.gate.limits import Limits
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.work import Work
from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.rewards.ensemble import Ensemble
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.vllm import WHERE, check_rollout
from alignlab.spec import Spec, build
from alignlab.stages.anchors import anchored_online, require_anchor
from alignlab.stages.stage import (
    START_KINDS,
    Estimate,
    Role,
    Stage,
    filling,
    reject_truncated_sampling,
)
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import TokenGroup
    from alignlab.data.sources.source import Source
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run
    from alignlab.stages.outside import Outside


class Rolls(Work, Protocol):
    """Work on rollouts."""

    sampled: int  # tokens that were sampled so far


@dataclass(frozen=True)
class Setting:
    """What an online stage works with once it has begun; the backbone has the view ``policy``."""

    run: Run
    backbone: Backbone
    tokenization: Tokenization
    data: Source
    prompts: list[TokenGroup]
    rewards: list[Run]
    keep: Path  # a file of this process for the rollout in use, should a signal come
    outside: Outside | None  # what samples in place of the policy itself


@dataclass(frozen=True, kw_only=True)
class Online(Stage):
    """Trains on completions that the policy itself samples meanwhile, judged as they come.

    ``iterations`` times: ``rollout_batch`` prompts are sampled for and scored, then the policy
    makes a few updates on what it said.
    """

    version: ClassVar[int] = 6  # decoding rounds otherwise
    unkeyed: ClassVar[frozenset[str]] = Stage.unkeyed | WHERE
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"rollout", "anchor"})
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "init": Role(START_KINDS),
        "reference": Role(START_KINDS),
        "reward": Role(("reward",), optional=True, many=True),
    }

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    reward: Spec | None
    ensemble: Ensemble
    monitor: Spec | None
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    sampling: Sampling
    rollout: Spec | None = None
    prompts: Annotated[int, Range(min=1)]
    rollout_batch: Annotated[int, Range(min=1)]
    iterations: Annotated[int, Range(min=1)]
    optimizer: Optimizer
    missing_eos_score: float | None
    anchor: Spec | None = None

    def validate(self) -> None:
        """A reward is named, and what samples can do what is asked of it."""
        self.require_reward()
        reject_truncated_sampling(self.sampling)
        check_rollout(self.rollout, self.backbone.adapter)
        require_anchor(self.anchor, "rollouts")

    def require_reward(self) -> None:
        """Refuse a stage that nothing scores the completions of."""
        if not filling("reward", self.inputs) and self.reward is None:
            raise ConfigError(
                "inputs.reward is missing: name a reward stage there, or set `reward`."
            )

    def opened(
        self, inputs: Mapping[str, Run], run: Run, engine: Engine, *, whole: bool = False
    ) -> Setting:
        """Load the policy and read the prompts.

        ``whole``: rollouts of another sampler are corrected by one weight for each completion.
        """
        from alignlab.data.template import Tokenization
        from alignlab.rollout.unfinished import rollout_file
        from alignlab.stages.online import prompts_of, require_prompts_for_all
        from alignlab.stages.outside import outside_of
        from alignlab.stages.session import open_backbone

        require_prompts_for_all(engine, self.rollout_batch)
        run = engine.workers().own(run)
        backbone = open_backbone(self.backbone, run, engine, self.seed, shared=True)
        backbone.add("policy", source=inputs["init"].model_dir, trainable=True)
        tokenization = Tokenization(backbone.tokenizer, self.max_prompt, self.max_completion)
        data = build(self.data)
        longest = self.max_prompt + self.sampling.max_new_tokens
        return Setting(
            run=run,
            backbone=backbone,
            tokenization=tokenization,
            data=data,
            prompts=prompts_of(data, self.prompts, tokenization, run, self.gate),
            rewards=[inputs[name] for name in filling("reward", inputs)],
            keep=rollout_file(run.state_dir, engine.workers().rank),
            outside=outside_of(self.rollout, run, longest, whole=whole),
        )

    def note(self, setting: Setting, inputs: Mapping[str, Run], *, sampled: int) -> None:
        """Write into the run record what every online stage says of itself."""
        if "reference" in inputs:
            setting.run.update_record(reference=inputs["reference"].path.name)
        setting.run.update_record(
            label=self.label or self.name(),
            rewards=[reward.path.name for reward in setting.rewards],
            tokens_sampled=sampled,
        )

    def learn(
        self,
        work: Rolls,
        at: Setting,
        inputs: Mapping[str, Run],
        engine: Engine,
        *,
        views: Sequence[str],
        updates: int,
        completions: int,
        passes: int,
    ) -> None:
        """Train ``views`` on ``work``, ``updates`` times an iteration; save the policy, note costs.

        Of each prompt ``completions`` are sampled; a sampled token is read ``passes`` times without
        a gradient, its sampling included.
        """
        from alignlab.engine.loop import train
        from alignlab.stages.finish import finish_training

        start = inputs["init"].model_dir
        result = train(
            anchored_online(self.anchor, work, at.backbone, start, engine, self.seed),
            at.backbone,
            views,
            optimizer=self.optimizer,
            steps=self.iterations * updates,
            run=at.run,
            engine=engine,
            seed=self.seed,
        )
        asked = self.iterations * self.rollout_batch
        counts = {"prompts": asked, "completions": asked * completions}
        read = passes * work.sampled
        finish_training(at.run, at.backbone, "policy", result, counts, forward_tokens=read)
        self.note(at, inputs, sampled=work.sampled)

    def group_estimate(
        self,
        cache: Path,
        inputs: Mapping[str, Stage],
        *,
        updates: int,
        completions: int,
        kept: int,
        reference: bool,
    ) -> Estimate:
        """Sampling and scoring of ``completions`` per prompt, and a pass over ``kept`` of them."""
        from alignlab.stages.estimate import (
            apart_behind,
            averages,
            decode_of,
            starting_views,
            training_estimate,
            update_of,
        )

        others, apart = apart_behind(inputs, cache)
        prompts, prompt = self.iterations * self.rollout_batch, self.max_prompt
        sampled = prompts * (prompt + completions * self.max_completion)
        per = prompt + kept * self.max_completion
        shown = prompts * per
        scorers = len(filling("reward", self.inputs)) + reference
        small, rows = -(-self.rollout_batch // updates), self.rollout_batch * completions
        return training_estimate(
            self.backbone,
            cache,
            tokens=shown,
            forward_tokens=3 * sampled,
            update=update_of(small, shown, group=per, prompt=prompt, completions=kept),
            frozen=scorers + starting_views(self) - others,
            apart=apart,
            scored=scorers * sampled,
            decode=decode_of(self.sampling, rows, prompt, times=self.iterations, live=True),
            averages=averages(self, cache),
            optimizer=self.optimizer,
        )

    @abstractmethod
    def name(self) -> str:
        """Short name for tables."""
