"""Annotation: sample completions from a policy and let a simulated annotator rank them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.data.gate.limits import Limits
from alignlab.models.load import BackboneConfig
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build
from alignlab.stages.annotations import (
    FILE,
    Collected,
    Row,
    counts_of,
    lines,
    read,
    require_own_template,
    require_verdicts,
    restored,
    token_group,
    verdict_of,
    whole_chunks,
    write,
    written,
)
from alignlab.stages.stage import POLICY_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup, TokenGroup, Verdict
    from alignlab.data.sources.source import Source
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.rewards.annotator import Annotates
    from alignlab.run import Run

__all__ = [
    "FILE",
    "Annotate",
    "annotated_rows",
    "group_limit",
    "judged",
    "lines",
    "read",
    "require_own_template",
    "require_verdicts",
    "verdict_of",
    "write",
]

CHUNK = 1024  # prompts that are in memory at a time where all come with a verdict
SAMPLED = 8192  # and where some are sampled for, which a large batch does better


@dataclass(frozen=True, kw_only=True)
class Annotate(Stage):
    """Give every prompt group of the ``preference`` split a verdict over its completions.

    Groups that come with a ranking, scores or thumbs keep them (human data). The others are
    completed with ``completions`` samples of the policy, which the annotator ranks: the
    simulated preference collection of AlpacaFarm (Dubois et al. 2023, arXiv:2305.14387). Token ids
    are stored, so that every later stage trains on the very tokens that were sampled.
    """

    version: ClassVar[int] = 4  # decoding rounds otherwise
    kind: ClassVar[str] = "annotate"
    roles: ClassVar[Mapping[str, Role]] = {"policy": Role(POLICY_KINDS)}

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    annotator: Spec
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    prompts: Annotated[int, Range(min=1)]
    completions: Annotated[int, Range(min=2, max=9)]
    sampling: Sampling
    validation_share: Annotated[float, Range(min=0, max=0.5)]

    def fingerprint(self) -> str:
        """Fingerprint of data and base model, and of judges that annotate."""
        from alignlab.rewards.judge.annotator import outside

        return " ".join([super().fingerprint(), *outside(self.annotator)])

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write ``annotations.jsonl``: one prompt group with its verdict per line."""
        from alignlab.data.gate.gate import Gate
        from alignlab.data.prepared import SplitOf
        from alignlab.data.template import Tokenization
        from alignlab.models.templates import template_hash
        from alignlab.rollout.unfinished import rollout_file
        from alignlab.stages.session import heed, keep_card, open_backbone

        run = engine.workers().own(run)
        data = build(self.data)
        kinds = Counter(kind_of(group) for group in self._prompts(data))
        keep_card(data, run, self.gate)
        backbone = open_backbone(self.backbone, run, engine, self.seed)
        # Before the tokenizer is used: the policy may bring its own (after `pretrain`).
        backbone.add("policy", source=inputs["policy"].model_dir, trainable=False)
        tokenization = Tokenization(backbone.tokenizer, self.max_prompt, self.max_completion)
        gate = Gate(
            tokenization.tokenizer,
            need="thumbs" if kinds.keys() == {"thumbs"} else "pairs",
            held_out={split: SplitOf(data, split) for split in ("validation", "test")},
            limits=self.gate,
            sampled="missing" in kinds,
        )
        size = SAMPLED if "missing" in kinds else CHUNK
        counts: Counter[str] = Counter()
        collected = Collected(rollout_file(run.state_dir, engine.workers().rank))
        place = run.path / FILE if engine.workers().is_main else Path(os.devnull)
        earlier = written(place, whole_chunks(place, size))
        with place.open("a", encoding="utf-8") as file, self._spending(run):
            stream = self._prompts(data)
            while groups := list(islice(stream, size)):
                before = list(islice(earlier, len(groups)))  # by an interrupted session
                if before:
                    groups, tokens = self._restored(groups, before, collected)
                else:
                    groups, tokens = self._judged(backbone, tokenization, groups, collected)
                first = counts["prompts"]
                rows = [replace(t, row=row) for row, t in enumerate(tokens, first)]
                gate.see(groups, rows)
                if not before:
                    file.writelines(lines(groups, rows, self.validation_share))
                    file.flush()
                counts.update(counts_of(groups))
        heed(gate.findings(), run)
        keep_card(data, run, self.gate)
        run.update_record(
            **collected.record(backbone),
            label=self.label or "annotations",
            template=template_hash(backbone.tokenizer),
            prompts=counts["prompts"],
            completions=counts["completions"],
            summary={
                "pairs": counts["pairs"],
                "groups_without_pairs": counts["groups_without_pairs"],
            },
        )

    @contextmanager
    def _spending(self, run: Run) -> Iterator[None]:
        """Record what a judge costs, over all sessions of the run and also when it stops."""
        from alignlab.rewards.annotator import Spends, total

        earlier = run.record.get("judge") or {}
        try:
            yield
        finally:
            ranker = self.__dict__.get("_ranker")  # not made where every group has its verdict
            if isinstance(ranker, Spends) and (spent := ranker.spent()):
                run.update_record(judge=total([earlier, spent]))

    @cached_property
    def _ranker(self) -> Annotates:
        # Once for all chunks: a judge loads a model, and its budget is that of the whole stage.
        annotator: Annotates = build(self.annotator)
        return annotator

    def _prompts(self, data: Source) -> Iterator[PromptGroup]:
        return islice(data.stream("preference"), self.prompts)

    def _judged(
        self,
        backbone: Backbone,
        tokenization: Tokenization,
        groups: list[PromptGroup],
        collected: Collected,
    ) -> tuple[list[PromptGroup], list[TokenGroup]]:
        """The groups in their order with a verdict each, and their tokens."""
        given = [i for i, group in enumerate(groups) if kind_of(group) != "missing"]
        missing = [i for i, group in enumerate(groups) if kind_of(group) == "missing"]
        tokens = dict(zip(given, tokenization.groups([groups[i] for i in given]), strict=True))
        if missing:
            fresh = self.collect(backbone, tokenization, [groups[i] for i in missing], collected)
            for i, (group, token) in zip(missing, fresh, strict=True):
                groups[i], tokens[i] = group, token
        return groups, [tokens[i] for i in range(len(groups))]

    def _restored(
        self, groups: list[PromptGroup], before: Sequence[Row], collected: Collected
    ) -> tuple[list[PromptGroup], list[TokenGroup]]:
        """The same as `_judged`, from the lines that were written of it."""
        sampled = [i for i, group in enumerate(groups) if kind_of(group) == "missing"]
        tokens = [token_group(row) for row in before]
        for i in sampled:
            groups[i] = restored(groups[i], before[i])
        length = sum(len(ids) for i in sampled for ids in tokens[i].completions)
        collected.add(length, [groups[i].meta.get("votes", ()) for i in sampled])
        return groups, tokens

    def collect(
        self,
        backbone: Backbone,
        tokenization: Tokenization,
        groups: Sequence[PromptGroup],
        collected: Collected,
    ) -> list[tuple[PromptGroup, TokenGroup]]:
        """Sample completions for ``groups`` and have them ranked."""
        from alignlab.rollout.rollout import sample_rollout

        first = collected.prompts
        prompts = tokenization.prompts(groups, range(first, first + len(groups)))
        with backbone.view("policy") as view:
            rollout = sample_rollout(
                view,
                prompts,
                tokenization,
                self.sampling,
                self.completions,
                self.seed,
                step=0,
                keep=collected.keep,
            )
        annotator = self._ranker
        out = []
        for group, token, texts in zip(groups, rollout.groups, rollout.completions, strict=True):
            annotation = annotator.annotate(group, texts, self.seed)
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
        collected.add(rollout.tokens, [group.meta.get("votes", ()) for group, _ in out])
        return out

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampled tokens, at the length limit."""
        from alignlab.stages.estimate import decode_of, sampling_estimate

        rows = self.prompts * self.completions
        at_once = min(self.prompts, SAMPLED) * self.completions
        times = -(-rows // at_once)
        return sampling_estimate(
            self.backbone,
            cache,
            tokens=rows * self.sampling.max_new_tokens,
            decode=decode_of(self.sampling, at_once, self.max_prompt, times=times),
        )


def judged(verdict: Verdict) -> bool:
    """Whether a verdict tells completions apart, or gives a single one its thumb."""
    return bool(verdict.pairs()) or verdict.kind == "thumbs"


def kind_of(group: PromptGroup) -> Literal["pairs", "thumbs", "missing"]:
    """What the verdict that came with a group is good for; ``missing``: to be annotated."""
    if not group.completions or not judged(group.verdict):
        return "missing"
    return "pairs" if group.verdict.pairs() else "thumbs"


def annotated(inputs: Mapping[str, Stage]) -> Annotate:
    """Return the annotate stage behind a stage."""
    stage = inputs["annotations"]
    assert isinstance(stage, Annotate)
    return stage


def annotated_rows(inputs: Mapping[str, Stage]) -> float:
    """Prompts that a stage behind an annotate stage trains on, before ties are left out."""
    stage = annotated(inputs)
    return stage.prompts * (1 - stage.validation_share)


def group_limit(inputs: Mapping[str, Stage], completions: int | None = None) -> int:
    """Most tokens of one annotated prompt with all, or only some, of its completions."""
    stage = annotated(inputs)
    return stage.max_prompt + (completions or stage.completions) * stage.max_completion
