"""Annotation: sample completions from a policy and let a simulated annotator rank them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.data.gate.limits import Limits
from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.rewards.ensemble import Ensemble
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
from alignlab.stages.stage import POLICY_KINDS, Estimate, Role, Stage, filling
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.data.gate.gate import Gate, Need
    from alignlab.data.group import PromptGroup, TokenGroup, Verdict
    from alignlab.data.sources.source import Source
    from alignlab.data.template import Tokenization
    from alignlab.engine.dealt import Dealt
    from alignlab.engine.distributed import Engine
    from alignlab.run import Run
    from alignlab.stages.collector import Collector
    from alignlab.stages.judges import Judges

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
Verdicts = Literal["pairs", "thumbs", "scores", "missing"]


@dataclass(frozen=True, kw_only=True)
class Annotate(Stage):
    """Give every prompt group of the ``preference`` split a verdict over its completions.

    Groups that come with a ranking, scores or thumbs keep them (human data). The others are
    completed with ``completions`` samples of the policy, which the annotator ranks: the
    simulated preference collection of AlpacaFarm (Dubois et al. 2023, arXiv:2305.14387). Reward
    stages judge in the annotator's place, and then every prompt is sampled for, whatever verdict
    it came with. Token ids are stored, so that every later stage trains on the very tokens that
    were sampled. With ``completions: 1`` nothing is compared, and a score of a single completion is
    a verdict too: what reward models learn that regress on scores.
    """

    version: ClassVar[int] = 6  # decoding rounds otherwise
    kind: ClassVar[str] = "annotate"
    together: ClassVar[bool] = True
    sees: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "policy": Role((*POLICY_KINDS, "pretrain")),
        "reward": Role(("reward",), optional=True, many=True),
    }
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"ensemble", "skip"})

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    annotator: Spec
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    prompts: Annotated[int, Range(min=1)]
    completions: Annotated[int, Range(min=1, max=64)]
    sampling: Sampling
    validation_share: Annotated[float, Range(min=0, max=0.5)]
    ensemble: Ensemble | None = None
    skip: Annotated[int, Range(min=0)] | None = None

    def validate(self) -> None:
        """Several rewards say how they become one."""
        if len(filling("reward", self.inputs)) > 1 and self.ensemble is None:
            raise ConfigError(
                "ensemble: several reward stages judge; say how their scores become one, as"
                " ensemble={combine: mean, penalty: 0.5}."
            )

    @property
    def limits(self) -> tuple[int, int]:
        """Most tokens of a prompt and of a completion."""
        return self.max_prompt, self.max_completion

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write ``annotations.jsonl``: one prompt group with its verdict per line.

        Of several processes each samples for its share of the prompts and annotates it; all know
        the groups of a chunk, and the main one writes.
        """
        from alignlab.data.template import Tokenization
        from alignlab.engine.dealt import Dealt
        from alignlab.models.templates import template_hash
        from alignlab.rollout.unfinished import rollout_file
        from alignlab.stages.collector import Collector
        from alignlab.stages.session import heed, keep_card, open_backbone

        workers = engine.workers()
        run = workers.own(run)
        data = build(self.data)
        kinds = Counter(map(self._kind_of, self._prompts(data)))
        keep_card(data, run, self.gate)
        backbone = open_backbone(self.backbone, run, engine, self.seed, shared=True)
        # Before the tokenizer is used: the policy may bring its own (after `pretrain`).
        backbone.add("policy", source=inputs["policy"].model_dir, trainable=False)
        tokenization = Tokenization(backbone.tokenizer, *self.limits, processor=backbone.processor)
        gate = self._gate_of(data, set(kinds), tokenization)
        size = SAMPLED if "missing" in kinds else CHUNK
        counts: Counter[str] = Counter()
        collected = Collected(rollout_file(run.state_dir, workers.rank))
        dealt = Dealt(backbone, workers, engine.budget)
        judges = self._judges(inputs, dealt)
        collector = Collector(self, dealt, tokenization, collected, judges)
        place = run.path / FILE if workers.is_main else Path(os.devnull)
        earlier = written(place, whole_chunks(place, size))
        with place.open("a", encoding="utf-8") as file, collector.spending(run):
            stream = self._prompts(data)
            while groups := list(islice(stream, size)):
                # by an interrupted session, which only the main process sees
                before = workers.from_main(list(islice(earlier, len(groups))))
                if before:
                    groups, tokens = self._restored(groups, before, collected)
                else:
                    groups, tokens = self._judged(collector, groups)
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

    def _need(self, kinds: Set[str]) -> Need:
        if kinds == {"thumbs"}:
            return "thumbs"
        return "scores" if self.completions == 1 else "pairs"

    def _gate_of(self, data: Source, kinds: Set[str], tokenization: Tokenization) -> Gate:
        from alignlab.data.gate.gate import Gate
        from alignlab.data.prepared import SplitOf

        return Gate(
            tokenization.tokenizer,
            need=self._need(kinds),
            held_out={split: SplitOf(data, split) for split in ("validation", "test")},
            limits=self.gate,
            sampled="missing" in kinds,
        )

    def _judges(self, inputs: Mapping[str, Run], dealt: Dealt) -> Judges | None:
        """The reward runs that judge in the annotator's place; None where it does."""
        from alignlab.stages.judges import Judges

        roles = filling("reward", inputs)
        runs = {f"reward_{i}": inputs[role] for i, role in enumerate(roles)}
        return Judges(dealt.backbone, runs, dealt.workers, dealt.token_budget) if runs else None

    def _prompts(self, data: Source) -> Iterator[PromptGroup]:
        first = self.skip or 0
        groups = islice(data.stream("preference"), first, first + self.prompts)
        return (g.keep(()) for g in groups) if filling("reward", self.inputs) else groups

    def _kind_of(self, group: PromptGroup) -> Verdicts:
        return kind_of(group, alone=self.completions == 1)

    def _judged(
        self, collector: Collector, groups: list[PromptGroup]
    ) -> tuple[list[PromptGroup], list[TokenGroup]]:
        """The groups in their order with a verdict each, and their tokens."""
        kinds = [self._kind_of(group) for group in groups]
        given = [i for i, kind in enumerate(kinds) if kind != "missing"]
        missing = [i for i, kind in enumerate(kinds) if kind == "missing"]
        found = collector.tokenization.groups([groups[i] for i in given])
        tokens = dict(zip(given, found, strict=True))
        if missing:
            fresh = collector.collect([groups[i] for i in missing])
            for i, (group, token) in zip(missing, fresh, strict=True):
                groups[i], tokens[i] = group, token
        return groups, [tokens[i] for i in range(len(groups))]

    def _restored(
        self, groups: list[PromptGroup], before: Sequence[Row], collected: Collected
    ) -> tuple[list[PromptGroup], list[TokenGroup]]:
        """The same as `_judged`, from the lines that were written of it."""
        sampled = [i for i, group in enumerate(groups) if self._kind_of(group) == "missing"]
        tokens = [token_group(row) for row in before]
        for i in sampled:
            groups[i] = restored(groups[i], before[i])
        length = sum(len(ids) for i in sampled for ids in tokens[i].completions)
        collected.add(length, [groups[i].meta.get("votes", ()) for i in sampled])
        return groups, tokens

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


def kind_of(group: PromptGroup, *, alone: bool = False) -> Verdicts:
    """What the verdict that came with a group is good for; ``missing``: to be annotated.

    ``alone``: scores are verdicts even where nothing is compared.
    """
    if alone and group.completions and group.verdict.kind == "scores":
        return "scores"
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
