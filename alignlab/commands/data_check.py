"""``alignlab data check``: the gate over every split of a data set, before any training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.commands.data_refusals import CHUNK, Refused

if TYPE_CHECKING:
    from alignlab.commands.data_setup import Setup
    from alignlab.data.gate.gate import Finding, Gate, Need, Statistics
    from alignlab.data.group import PromptGroup
    from alignlab.data.template import Tokenization

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Checked:
    """One split: what it holds and what is wrong with it."""

    split: str
    need: Need
    statistics: Statistics
    findings: tuple[Finding, ...]
    examples: dict[int, PromptGroup]  # row -> the group, for the rows that findings name


@dataclass(frozen=True)
class Report:
    """What was looked at, with what, and what was found."""

    data: str
    backbone: str
    vocabulary: int
    max_prompt: int
    max_completion: int
    splits: tuple[Checked, ...]
    seconds: float

    def count(self, severity: str) -> int:
        """Return the number of findings of one severity; what several splits share counts once."""
        return sum(finding.severity == severity for _, finding in self.merged())

    def merged(self) -> list[tuple[tuple[str, ...], Finding]]:
        """Findings with the splits that share them, errors first.

        A small file lends the same rows to several splits, and says the same of each.
        """
        found: dict[tuple[str, str, tuple[str, ...]], tuple[list[str], Finding]] = {}
        for one in self.splits:
            for finding in one.findings:
                key = (finding.code, finding.message, finding.places or (one.split,))
                found.setdefault(key, ([], finding))[0].append(one.split)
        merged = [(tuple(splits), finding) for splits, finding in found.values()]
        return sorted(merged, key=lambda entry: entry[1].severity != "error")

    def to_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints."""
        return {
            "data": self.data,
            "backbone": self.backbone,
            "vocabulary": self.vocabulary,
            "max_prompt": self.max_prompt,
            "max_completion": self.max_completion,
            "seconds": round(self.seconds, 3),
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "splits": {s.split: {"need": s.need, **asdict(s.statistics)} for s in self.splits},
            "findings": [{"splits": names, **asdict(found)} for names, found in self.merged()],
        }


def check(
    file: str | None,
    overrides: Sequence[str],
    *,
    as_json: bool = False,
    html: str | None = None,
    splits: Sequence[str] = (),
) -> int:
    """Check every split that the configured stages read; return 1 if there are errors.

    Args:
        file: a data file or folder; None = the data of the configuration.
        overrides: as of ``alignlab run``.
        as_json: print one JSON object instead of text.
        html: where to write a page; None = nowhere.
        splits: only these.

    Raises:
        ConfigError: a configuration that cannot be run.
        DataError: data that cannot be read as rows of a format.
    """
    from alignlab.commands.data_setup import Setup

    report = examine(Setup.of(file, overrides), splits)
    if html is not None:
        from alignlab.commands.data_page import write_page

        write_page(report, Path(html))
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        from alignlab.commands.data_text import text

        print(text(report))
        if html is not None:
            print(f"page: {html}")
    return 1 if report.count("error") else 0


def examine(setup: Setup, named: Sequence[str] = ()) -> Report:
    """Check the splits one after another."""
    began = time.monotonic()
    splits, lengths = setup.splits(named), setup.lengths
    # Data that cannot be read are refused before a tokenizer is loaded.
    held_out = {split: list(setup.data.stream(split)) for split in HELD_OUT}
    tokenization = setup.tokenization()
    checked = tuple(_check_split(setup, split, tokenization, held_out) for split in splits)
    return Report(
        setup.name,
        setup.backbone.path,
        setup.vocabulary() or len(tokenization.tokenizer),
        lengths.max_prompt,
        lengths.max_completion,
        tuple(one for one in checked if one is not None),
        time.monotonic() - began,
    )


def _check_split(
    setup: Setup,
    split: str,
    tokenization: Tokenization,
    held_out: dict[str, list[PromptGroup]],
) -> Checked | None:
    """Check one split; None for one that the data set leaves empty and no stage needs."""
    from alignlab.data.gate.gate import Gate
    from alignlab.data.gate.left_out import left_out
    from alignlab.stages import continued_pretrain

    need = need_of(setup, split)
    source = setup.source(split)
    if setup.reading(split):  # which compares its documents with held-out ones alone
        tokenization = setup.tokenization(documents=True)
        held = continued_pretrain.HELD_OUT
        held_out = {held: list(source.stream(held))}
    groups = held_out[split] if split in held_out else source.stream(split)
    if split == "sft":
        groups = _imitated(groups)
    gate = Gate(
        tokenization.tokenizer,
        need=need,
        held_out={} if split in held_out else held_out,
        limits=setup.limits,
        vocabulary=setup.vocabulary(),
        languages=True,
    )
    refused = Refused(split)
    for chunk in _chunks(groups, CHUNK):
        gate.see(*refused.tokenized(chunk, tokenization))
        refused.announce(gate)
        if refused.hopeless:
            break
    if not refused.rows and not need:
        return None
    lost = left_out(source, (split,), setup.limits)
    findings = (*lost, *refused.findings(), *_without_empty(gate, refused))
    rows = {row for finding in findings for row in finding.rows}
    again = source.stream(split) if rows else iter(())
    examples = {row: group for row, group in enumerate(again) if row in rows}
    return Checked(split, need, gate.statistics(), findings, examples)


def need_of(setup: Setup, split: str) -> Need:
    """What the stages ask of the verdicts of a split; "" = they read none there."""
    kinds = {stage.kind for stage in setup.stages.values()}
    if setup.reading(split):
        return "demonstration"
    if split == "sft":
        return "demonstration" if "sft" in kinds else ""
    if split == "preference" and "annotate" in kinds:
        first = islice(setup.data.stream(split), CHUNK)
        if any(g.completions and g.verdict.kind not in ("none", "demonstration") for g in first):
            if any(getattr(s, "completions", 0) == 1 for s in setup.stages.values()):
                return "scores"  # the stage `annotate` keeps those of single completions
            return "thumbs" if _takes_singles(setup) else "pairs"
        return "prompt"  # the stage `annotate` samples and judges completions
    return ""


def _takes_singles(setup: Setup) -> bool:
    """Whether a thumb for single completions is enough for every stage that reads verdicts."""
    from alignlab.objectives.declaration import declaration
    from alignlab.spec import Spec, function
    from alignlab.stages.reward import Reward, learns_scores

    stages = setup.stages.values()
    rewards = [stage for stage in stages if isinstance(stage, Reward)]
    if any(learns_scores(stage.objective) is None for stage in rewards):
        return False
    others = [getattr(s, "objective", None) for s in stages if not isinstance(s, Reward)]
    specs = [spec for spec in others if isinstance(spec, Spec)]
    single = all(declaration(function(spec)).view == "single" for spec in specs)
    return bool(specs or rewards) and single


def _without_empty(gate: Gate, refused: Refused) -> list[Finding]:
    """Findings of the gate; that it saw no rows is no news where none could be tokenised."""
    return [f for f in gate.findings() if f.code != "no_rows" or not refused.reasons]


def _chunks(groups: Iterable[PromptGroup], size: int) -> Iterator[list[PromptGroup]]:
    rows = iter(groups)
    while chunk := list(islice(rows, size)):
        yield chunk


def _imitated(groups: Iterable[PromptGroup]) -> Iterator[PromptGroup]:
    """What supervised fine-tuning sees of groups; those without a verdict go on to the gate."""
    for group in groups:
        judged = bool(group.completions and group.verdict)
        shown = group.demonstration() if judged else group
        if shown is not None:
            yield shown
