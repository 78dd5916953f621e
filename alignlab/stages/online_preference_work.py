"""Online preference optimization as the loop sees it: judged rollouts, then updates on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from alignlab.data.order import step_rows
from alignlab.engine.stopping import together
from alignlab.rewards.shaping import missing_eos
from alignlab.spec import build, function
from alignlab.stages.online import Scorer, collect, scorer_of, shared_outputs
from alignlab.stages.online_metrics import rollout_metrics
from alignlab.stages.pairing import best_and_worst, of_use, verdict_of_scores
from alignlab.stages.reference import completion_sums, content
from alignlab.stages.session import OfflineWork
from alignlab.stages.terms import Terms

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import PromptGroup, TokenGroup, Verdict
    from alignlab.engine.distributed import Engine
    from alignlab.engine.work import Micro
    from alignlab.models.backbone import Backbone, View
    from alignlab.objectives.declaration import Declaration
    from alignlab.rewards.annotator import Annotates
    from alignlab.rollout.rollout import Rollout
    from alignlab.stages.online import Experience
    from alignlab.stages.online_preference import OnlinePreference
    from alignlab.stages.online_stage import Setting
    from alignlab.stages.packed import Metrics, Packed


class Ranks(Scorer):
    """An annotator as the judge: gold scores of what it ranked, and its verdicts."""

    def __init__(
        self, stage: OnlinePreference, at: Setting, engine: Engine, prompts: Sequence[PromptGroup]
    ) -> None:
        super().__init__(at.backbone, (), None, engine, stage.ensemble, stage.monitor)
        self.stage, self.prompts = stage, prompts
        self.verdicts: list[Verdict] = []  # of all processes' prompts, of the last rollout

    @cached_property
    def annotator(self) -> Annotates:
        """Made once: a judge loads a model, and its budget is that of the whole stage."""
        assert self.stage.annotator is not None
        annotator: Annotates = build(self.stage.annotator)
        return annotator

    def __call__(self, rollout: Rollout) -> Tensor:
        """Scores (C,) of this process's completions; the verdicts of all are kept."""
        from alignlab.rewards.judge.annotator import limited

        assert self.stage.annotator is not None
        workers = self.engine.workers()
        mine = list(zip(rollout.groups, rollout.said, strict=True))
        if limited(self.stage.annotator):  # its budget is one, so one process asks
            everything = workers.whole(mine)
            found = workers.from_main(self._ranked(everything) if workers.is_main else [])
        else:
            found = workers.whole(together(workers, lambda: self._ranked(mine)))
        self.verdicts = [verdict for verdict, _ in found]
        return torch.tensor([s for _, scores in workers.share(found) for s in scores])

    def _ranked(self, said: Sequence[Any]) -> list[tuple[Verdict, tuple[float, ...]]]:
        seed = self.stage.seed
        annotations = [self.annotator.annotate(self.prompts[g.row], t, seed) for g, t in said]
        return [(annotation.verdict, annotation.scores) for annotation in annotations]


def judge_of(stage: OnlinePreference, at: Setting, engine: Engine) -> Scorer:
    """What judges the completions: the annotator if there is one, else the reward."""
    from alignlab.data.sources.source import policy_prompts

    if stage.annotator is not None:
        return Ranks(stage, at, engine, policy_prompts(at.data, stage.prompts))
    return scorer_of(stage, at, engine)


class LiveReference:
    """The view ``reference``: what it says of a rollout is computed once, with the work shared."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        self.backbone, self.engine = backbone, engine
        self.known: dict[str, list[float]] = {}  # content of a group of the rollout → its sums

    def know(self, groups: Sequence[TokenGroup]) -> None:
        """Compute what `sums` will be asked for; all processes know the same ``groups``."""
        pieces = iter(
            shared_outputs(self.backbone, "reference", groups, self.engine, lambda v, b: v.logps(b))
        )
        self.known = {
            content(group): [float(next(pieces).double().sum()) for _ in group.completions]
            for group in groups
        }

    def sums(self, groups: Sequence[TokenGroup]) -> Tensor:
        """Log-probabilities (C,) of all completions of ``groups``, each summed (nats).

        Others than those of the rollout (KTO's mismatched ones) are computed anew.
        """
        known = [self.known.get(content(group)) for group in groups]
        if None in known:
            return completion_sums(self.backbone, "reference", groups, self.engine)
        flat = [value for values in known if values is not None for value in values]
        return torch.tensor(flat, dtype=torch.float32, device=self.engine.workers().device)


@dataclass(frozen=True)
class Judged:
    """One micro-batch of judged completions, and what is reported with it."""

    packed: Packed
    metrics: Metrics


class OnlinePreferenceWork:
    """The loop's view: a judged rollout at the start of an iteration, then its updates."""

    def __init__(
        self,
        stage: OnlinePreference,
        at: Setting,
        need: Declaration,
        judge: Scorer,
        engine: Engine,
    ) -> None:
        self.stage, self.at, self.judge, self.engine = stage, at, judge, engine
        self.reference = LiveReference(at.backbone, engine) if need.needs_reference else None
        self.terms = Terms(function(stage.objective), need, self.reference)
        self.sampled = 0
        self.tie_share = 0.0
        self.iteration = -1
        self.groups: list[TokenGroup] = []  # of the rollout in use, with what was judged of them
        self.told: Metrics = {}  # what is reported of that rollout

    def micros(self, step: int) -> list[Micro]:
        """Micro-batches of one update; the first of an iteration samples and asks the judge."""
        stage, workers = self.stage, self.engine.workers()
        iteration, index = divmod(step - 1, stage.updates)
        fresh = iteration != self.iteration
        if fresh:
            self.groups = self.collect(iteration)
            self.iteration = iteration
        size = len(self.groups)
        order = step_rows(0, size, size, stage.seed * 1_000_003 + iteration)
        chosen = [self.groups[g] for g in order[index :: stage.updates]]
        single = self.terms.need.view == "single"
        # One stays where none is of use: its gradient is zero, and the momentum goes on.
        useful = [g for g in chosen if of_use(g, single=single)] or chosen[:1]
        needs = self.terms.need
        micros = OfflineWork(
            useful,
            len(useful),
            stage.seed,
            self.engine,
            "policy",
            count=lambda groups: max(self.terms.count(groups), 1.0),
            loss_of=self.terms.loss,
            statistics=self.statistics if needs.has_statistics else None,
            extra_of=self.terms.reference_logps if needs.needs_reference else None,
        ).micros(1)
        told = self.told if fresh and workers.is_main else {}  # all know the same, one reports it
        return [
            replace(micro, data=Judged(micro.data, told if number == 0 else {}))
            for number, micro in enumerate(micros)
        ]

    def statistics(self, step: Sequence[TokenGroup]) -> Mapping[str, Tensor]:
        """What the objective must know of a whole update before its first micro-batch."""
        return self.terms.statistics(step, self.groups, self.at.backbone, self.engine)

    def collect(self, iteration: int) -> list[TokenGroup]:
        """Sample, judge, and keep of every prompt what is compared."""
        stage, at = self.stage, self.at
        rows = step_rows(iteration, stage.rollout_batch, len(at.prompts), stage.seed)
        experience, _ = collect(
            at.backbone,
            [at.prompts[r] for r in rows],
            at.tokenization,
            stage.sampling,
            completions=stage.completions,
            seed=stage.seed,
            step=iteration,
            scorer=self.judge,
            engine=self.engine,
            keep=at.keep,
            outside=at.outside,
            reference=self.reference is not None,  # for the KL that is reported
        )
        self.sampled += int(experience.lengths.sum())
        judged = self.judged(experience)
        single = self.terms.need.view == "single"
        ties = sum(not of_use(group, single=single) for group in judged)
        self.tie_share = ties / len(judged)
        self.told = {**rollout_metrics(experience), "tie_share": (self.tie_share, 1)}
        if stage.pairs == "best_worst":
            judged = [best_and_worst(g) if g.verdict.pairs() else g for g in judged]
        if self.reference is not None:
            self.reference.know(judged)
        return judged

    def judged(self, experience: Experience) -> list[TokenGroup]:
        """The groups of a rollout with their verdicts."""
        if isinstance(self.judge, Ranks):
            found = self.judge.verdicts
        else:
            scores = experience.scores
            if (score := self.stage.missing_eos_score) is not None:
                scores = missing_eos(scores, experience.finished, replace=score)
            each = scores.view(-1, self.stage.completions).tolist()
            found = [verdict_of_scores(values) for values in each]
        pairs = zip(experience.groups, found, strict=True)
        return [replace(group, verdict=verdict) for group, verdict in pairs]

    def loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """The objective's loss of one micro-batch, over the units of the whole update."""
        loss, metrics = self.terms.loss(view, micro.data.packed)
        return loss, {**metrics, **micro.data.metrics}

    def state(self) -> dict[str, Any]:
        """What is not a function of (seed, step): the rollout in use and what was judged of it."""
        return {
            "sampled": self.sampled,
            "tie_share": self.tie_share,
            "iteration": self.iteration,
            "groups": self.groups,
            "known": self.reference.known if self.reference is not None else {},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of an iteration with the same rollout."""
        self.sampled, self.tie_share = state["sampled"], state["tie_share"]
        self.iteration, self.groups = state["iteration"], state["groups"]
        if self.reference is not None:
            self.reference.known = state["known"]
