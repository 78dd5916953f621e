"""Completions for prompts without a verdict: sampled and ranked, each process its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from alignlab.engine.dealt import served
from alignlab.engine.stopping import together
from alignlab.rewards.annotator import Spends, total
from alignlab.rewards.judge.annotator import limited
from alignlab.spec import build
from alignlab.stages.pairing import verdict_of_scores

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.dealt import Dealt
    from alignlab.rewards.annotator import Annotates
    from alignlab.run import Run
    from alignlab.stages.annotate import Annotate
    from alignlab.stages.annotations import Collected
    from alignlab.stages.judges import Judges

    Sampled = tuple[PromptGroup, TokenGroup, Sequence[str]]
    Ranked = tuple[PromptGroup, TokenGroup]

HEARD = 16  # prompts that the main process annotates between two words to the others


@dataclass(frozen=True)
class Collector:
    """Samples from the view ``policy`` and asks the annotator, each process for its share.

    An annotator with a budget is asked by the main process alone: the budget is one.
    """

    stage: Annotate
    dealt: Dealt
    tokenization: Tokenization
    collected: Collected
    judges: Judges | None = None  # reward runs, where they judge in the annotator's place

    def collect(self, groups: Sequence[PromptGroup]) -> list[Ranked]:
        """Completions and a verdict for each of ``groups``; every process knows all."""
        stage, workers, first = self.stage, self.dealt.workers, self.collected.prompts
        prompts = self.tokenization.prompts(groups, range(first, first + len(groups)))
        rollout = self.dealt.sample(
            "policy",
            prompts,
            self.tokenization,
            stage.sampling,
            stage.completions,
            stage.seed,
            keep=self.collected.keep,
        )
        mine = [*zip(workers.share(groups), rollout.groups, rollout.said, strict=True)]
        if self.judges:
            out = workers.whole(self._scored(self.judges, mine))
        elif limited(stage.annotator):
            out = self._ranked_by_main(workers.whole(mine))
        else:
            out = workers.whole(together(workers, lambda: self._ranked(mine)))
        tokens = sum(workers.gather(rollout.tokens))
        self.collected.add(tokens, [group.meta.get("votes", ()) for group, _ in out])
        return out

    @contextmanager
    def spending(self, run: Run) -> Iterator[None]:
        """Record what a judge costs, over all sessions of the run and also when it stops.

        Where it stops one of several processes, what that one has spent is recorded.
        """
        earlier = run.record.get("judge") or {}
        everyone = []
        try:
            yield
            everyone = self.dealt.workers.gather(self._spent())
        except BaseException:
            everyone = [self._spent()]
            raise
        finally:
            if any(everyone):
                run.update_record(judge=total([earlier, *filter(None, everyone)]))

    def _spent(self) -> dict[str, float | None]:
        annotator = self.__dict__.get("_annotator")  # not made where every group has its verdict
        return annotator.spent() if isinstance(annotator, Spends) else {}

    @cached_property
    def _annotator(self) -> Annotates:
        # Once for all chunks: a judge loads a model, and its budget is that of the whole stage.
        annotator: Annotates = build(self.stage.annotator)
        return annotator

    def _scored(self, judges: Judges, sampled: Sequence[Sampled]) -> list[Ranked]:
        """Verdicts of the reward runs, which all processes ask together."""

        def asked() -> list[PromptGroup]:
            return [replace(group, completions=tuple(said)) for group, _, said in sampled]

        tokens = [token for _, token, _ in sampled]
        with served(self.dealt.backbone):
            members = [judges.scores(name, tokens, asked) for name in judges.names]
        out = []
        for place, (group, token, texts) in enumerate(sampled):
            each = torch.tensor([member[place] for member in members])
            combine = self.stage.ensemble
            verdict = verdict_of_scores((each[0] if combine is None else combine(each)).tolist())
            meta = {**group.meta, "gold": verdict.scores, "flipped": False}
            judged = replace(group, completions=tuple(texts), verdict=verdict, meta=meta)
            out.append((judged, replace(token, verdict=verdict, meta=meta)))
        return out

    def _ranked(self, sampled: Sequence[Sampled]) -> list[Ranked]:
        out = []
        for group, token, texts in sampled:
            annotation = self._annotator.annotate(group, texts, self.stage.seed)
            verdict = annotation.verdict
            meta = {**group.meta, "gold": annotation.scores, "flipped": annotation.flipped}
            if annotation.votes:  # of a panel
                meta |= {"votes": annotation.votes, "agreement": annotation.agreement}
            out.append(
                (
                    replace(group, completions=tuple(texts), verdict=verdict, meta=meta),
                    replace(token, verdict=verdict, meta=meta),
                )
            )
        return out

    def _ranked_by_main(self, sampled: Sequence[Sampled]) -> list[Ranked]:
        """All by the main process; the others hear of it in pieces, and do not give up."""
        workers, out = self.dealt.workers, []
        for start in range(0, len(sampled), HEARD):
            part = sampled[start : start + HEARD]
            out += workers.from_main(self._ranked(part) if workers.is_main else [])
        return out
