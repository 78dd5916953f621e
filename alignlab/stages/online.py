"""What PPO and GRPO share: sampling from the live policy and scoring what it said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignlab.data.group import NONE
from alignlab.data.pack import flatten
from alignlab.data.sources.source import policy_prompts
from alignlab.engine.dealt import Dealt
from alignlab.engine.stopping import together
from alignlab.engine.work import Micro
from alignlab.errors import ConfigError
from alignlab.rewards.reward import known_of
from alignlab.rewards.thinking import graded
from alignlab.rollout.thoughts import Thought, thoughts_of
from alignlab.spec import Spec, build
from alignlab.stages.judges import Judges
from alignlab.stages.packed import Metrics
from alignlab.stages.session import inspect, keep_card, parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.gate.limits import Limits
    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.data.sources.source import Source
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.rewards.ensemble import Ensemble
    from alignlab.rewards.reward import Reward
    from alignlab.rollout.rollout import Rollout
    from alignlab.rollout.sampling import Sampling
    from alignlab.run import Run
    from alignlab.stages.online_stage import Online, Setting
    from alignlab.stages.outside import Gaps, Outside
    from alignlab.tensors import FlatBatch


@dataclass
class Experience:
    """The rollouts of one iteration: per-completion scores (C,), per-token lists of length C."""

    groups: list[TokenGroup]
    scores: Tensor  # (C,) reward before any KL term
    finished: Tensor  # (C,) bool, ended with EOS
    old: list[Tensor]  # C × (L,) log-probs at sampling time
    reference: list[Tensor]  # C × (L,) under the reference; empty where no term needs it
    tokens: dict[str, list[Tensor]] = field(default_factory=dict)  # C × (L,): advantages, values …
    monitored: Tensor | None = None  # (C,) a reward that is watched and trains nothing
    # Of rollouts by another sampler; tokens["importance"] corrects them.
    outside: Gaps | None = None
    thoughts: list[Thought] = field(default_factory=list)  # (C,)

    @property
    def lengths(self) -> Tensor:
        """Completion tokens (C,), EOS included."""
        return torch.tensor([len(x) for x in self.old])

    def log_ratio(self) -> Tensor:
        """Log-ratio log π_old(y|x) − log π_ref(y|x), (C,), nats; its mean estimates the KL."""
        pairs = zip(self.old, self.reference, strict=True)
        return torch.stack([(old - ref).sum() for old, ref in pairs])

    def completions_of(self, groups: Sequence[int]) -> list[int]:
        """Completion indices of the named groups, in order."""
        starts = np.cumsum([0, *(len(g.completions) for g in self.groups)])
        return [c for g in groups for c in range(starts[g], starts[g + 1])]


def prompts_of(
    data: Source, most: int, tokenization: Tokenization, run: Run, limits: Limits
) -> list[TokenGroup]:
    """Return at most ``most`` prompts that a policy samples from, after the data gate.

    Prompts that are evaluated on must not be among them.
    """
    found = policy_prompts(data, most)
    groups = [replace(group.keep([]), meta=known_of(group)) for group in found]
    prompts = tokenization.prompts(groups)
    held_out = {name: data.load(name) for name in ("validation", "test")}
    inspect(groups, prompts, tokenization, run, need="prompt", limits=limits, held_out=held_out)
    keep_card(data, run, limits)
    return prompts


def require_prompts_for_all(engine: Engine, rollout_batch: int) -> None:
    """Refuse more processes than there are prompts to sample from."""
    world = engine.workers().world
    if world > rollout_batch:
        raise ConfigError(
            f"{world} processes share the {rollout_batch} prompts of an iteration (rollout_batch);"
            " each needs one."
        )


def scorer_of(stage: Online, at: Setting, engine: Engine) -> Scorer:
    """What scores the rollouts of an online stage."""
    return Scorer(
        at.backbone,
        at.rewards,
        stage.reward,
        engine,
        stage.ensemble,
        stage.monitor,
        texts=cache(partial(policy_prompts, at.data, stage.prompts)),
    )


class Scorer:
    """Reward of sampled completions: learned runs if there are any, else a reward function.

    ``monitor`` is one more reward that is measured on the same completions and trains nothing.
    ``texts`` gives the prompts as texts, by row: what a reward run that stands apart reads.
    """

    def __init__(
        self,
        backbone: Backbone,
        rewards: Sequence[Run],
        spec: Spec | None,
        engine: Engine,
        ensemble: Ensemble,
        monitor: Spec | None = None,
        texts: Callable[[], Sequence[PromptGroup]] = tuple,
    ) -> None:
        self.backbone, self.engine, self.ensemble = backbone, engine, ensemble
        self.function = build(spec) if not rewards and spec is not None else None
        self.monitor = build(monitor) if monitor is not None else None
        runs = {f"reward_{i}" if i else "reward": run for i, run in enumerate(rewards)}
        self.judges = Judges(backbone, runs, engine.workers(), engine.budget)
        self.texts = texts

    def __call__(self, rollout: Rollout) -> Tensor:
        """Scores (C,) in the rollout's order."""
        if self.function is not None:
            return self._by(self.function, rollout)
        return self.ensemble(torch.stack([self.member(n, rollout) for n in self.judges.names]))

    def member(self, name: str, rollout: Rollout) -> Tensor:
        """Scores (C,) of one reward run."""
        said = zip(rollout.groups, rollout.said, strict=True)

        def texts() -> list[PromptGroup]:
            prompts = self.texts()  # of all rows
            return [replace(prompts[g.row], completions=c, verdict=NONE) for g, c in said]

        return torch.tensor([*chain(*self.judges.scores(name, rollout.groups, texts))])

    def monitored(self, rollout: Rollout) -> Tensor | None:
        """Scores (C,) of the reward that is only watched, if there is one."""
        return None if self.monitor is None else self._by(self.monitor, rollout)

    def _by(self, reward: Reward, rollout: Rollout) -> Tensor:
        scored = partial(graded, reward, *rollout.per_completion())
        return torch.from_numpy(together(self.engine.workers(), scored)).float()


def collect(
    backbone: Backbone,
    prompts: Sequence[TokenGroup],
    tokenization: Tokenization,
    sampling: Sampling,
    *,
    completions: int,
    seed: int,
    step: int,
    scorer: Scorer,
    engine: Engine,
    reference: bool,
    keep: Path | None = None,
    outside: Outside | None = None,
) -> tuple[Experience, Rollout]:
    """Sample ``completions`` per prompt from the live policy and score them.

    Each process does so for its share of the prompts; then all know all rollouts, so that whatever
    is computed from them is the same everywhere. The second result is this process's share. A
    signal is heeded on all of them in the middle of it; ``keep`` is a file of this process that the
    rollout lies in meanwhile (`sampler.sample`). ``outside``: what samples instead of the trainer.
    """
    from alignlab.stages.outside import sampled

    workers = engine.workers()
    asked = (tokenization, sampling, completions, seed, step)
    rollout = sampled(outside, backbone, prompts, *asked, workers=workers, keep=keep)
    groups = list(rollout.groups)

    def measured(view: str) -> list[Tensor]:
        temperature = sampling.temperature
        read = lambda view, batch: view.logps(batch, temperature=temperature)  # noqa: E731
        return token_outputs(backbone, view, groups, engine, read)

    old = [torch.from_numpy(np.asarray(x)).float() for x in rollout.logps]
    importance: list[Tensor] = []
    gaps: Gaps | None = None
    if outside is not None:
        sampler_logps, old = old, measured("policy")
        importance, gaps = outside.corrected(old, sampler_logps, workers)
    ref = measured("reference") if reference else []

    def everywhere(items: Sequence[Any]) -> list[Any]:
        """Items of this process's completions → those of all, in the order of the prompts."""
        per_prompt = [items[i : i + completions] for i in range(0, len(items), completions)]
        return [item for part in workers.whole(per_prompt) for item in part]

    watched = scorer.monitored(rollout)
    experience = Experience(
        groups=workers.whole(groups),
        scores=torch.tensor(everywhere(scorer(rollout).tolist())),
        finished=torch.tensor(everywhere(np.asarray(rollout.finished, dtype=bool).tolist())),
        old=everywhere(old),
        reference=everywhere(ref),
        tokens={"importance": everywhere(importance)} if outside is not None else {},
        outside=gaps,
        thoughts=everywhere(thoughts_of(rollout, tokenization)),
        monitored=None if watched is None else torch.tensor(everywhere(watched.tolist())),
    )
    return experience, rollout


def shared_outputs(
    backbone: Backbone, view: str, groups: Sequence[TokenGroup], engine: Engine, read: Any
) -> list[Tensor]:
    """`token_outputs` of groups that every process knows, the work dealt out among them."""
    found = Dealt(backbone, engine.workers(), engine.budget).shared(view, groups, pieces_of(read))
    return [piece for group in found for piece in group]


def token_outputs(
    backbone: Backbone, view: str, groups: Sequence[TokenGroup], engine: Engine, read: Any
) -> list[Tensor]:
    """Per-token outputs (log-probs, values) of every completion, without gradients."""
    found = Dealt(backbone, engine.workers(), engine.budget).read(view, groups, pieces_of(read))
    return [piece for group in found for piece in group]


def pieces_of(read: Callable[[View, FlatBatch], Tensor]) -> Callable[..., Sequence[Tensor]]:
    """``read``, whose values (N,) are of a flat batch, with those of each completion apart."""

    def pieces(active: View, batch: FlatBatch) -> Sequence[Tensor]:
        return read(active, batch).float().cpu().split(batch.lengths.tolist())

    return pieces


@dataclass(frozen=True)
class OnlinePack:
    """One micro-batch of rollouts: per-token statistics (N,) beside the flat batch."""

    batch: FlatBatch
    term: str  # which term of the loss: policy, value or pretraining
    count: float  # units of the whole minibatch
    tokens: Mapping[str, Tensor]  # (N,) old, reference, advantages, values, returns, weights
    metrics: Metrics = field(default_factory=dict)


def pack_experience(
    experience: Experience,
    chosen: Sequence[int],
    names: Sequence[str],
    *,
    view: str,
    term: str,
    count: float,
    engine: Engine,
) -> list[Micro]:
    """Make the own micro-batches of the ``chosen`` groups, with the named token statistics."""
    device = engine.workers().device
    chosen = engine.workers().share(chosen)
    sources = {"old": experience.old, "reference": experience.reference, **experience.tokens}
    micros = []
    for positions, part in parts([experience.groups[g] for g in chosen], engine.budget):
        completions = experience.completions_of([chosen[i] for i in positions])
        tokens = {
            name: torch.cat([sources[name][c] for c in completions]).to(device)
            for name in names
            if sources[name]
        }
        batch = flatten(part).to(device)
        micros.append(
            Micro(
                view=view,
                data=OnlinePack(batch, term, count, tokens),
                tokens=batch.tokens,
                label="prompts " + ", ".join(str(g.row) for g in part[:8]),
            )
        )
    return micros
