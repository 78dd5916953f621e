"""Verifiable instructions (IFEval, IFBench): the share of them that a policy follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from alignlab.annotations import Range
from alignlab.data.group import PromptGroup
from alignlab.data.wording import content
from alignlab.errors import DataError
from alignlab.evaluation.checkers import ifbench_format, ifbench_words, ifeval
from alignlab.evaluation.checkers.registry import CHECKERS, Undecidable, follows
from alignlab.evaluation.items import cut_warning, item_id, load
from alignlab.evaluation.policy import Policy
from alignlab.evaluation.task import Better, Result, Row
from alignlab.rewards.reward import fingerprint
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build

VERSION = 1
SETS = (ifeval, ifbench_words, ifbench_format)  # importing them registers their checkers
BETTER: dict[str, Better] = dict.fromkeys(
    ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose", "finished"),
    "higher",
)


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Strict and loose accuracy, by prompt (all its instructions) and by instruction.

    Loose: followed by the text or by one of its variants without the first line, the last, both,
    and each of these without asterisks (Zhou et al. 2023, §2.2). Rows of data state
    ``instruction_id_list`` and ``kwargs``. Instructions that have no checker are counted and named
    in the record and never passed: they are left out of the instruction level, and a prompt that
    has one is left out of the prompt level.
    """

    data: Spec
    split: str
    items: Annotated[int, Range(min=1)] | None
    stop: tuple[str, ...]
    sampling: Sampling

    @property
    def tokens(self) -> int:
        """Sampled tokens at the length limit."""
        return (self.items or 0) * self.sampling.max_new_tokens

    def fingerprint(self) -> str:
        """Hash of the fields and the data."""
        return fingerprint(self, VERSION, build(self.data).fingerprint())

    def run(self, policy: Policy) -> Result:
        """Sample one answer per prompt and check it."""
        _, groups = load(self.data, self.split, self.items, "instructions")
        asked = [instructions_of(group) for group in groups]
        answers = policy.answer(groups, self.sampling, 1, self.stop)
        rows: list[Row] = []
        unknown: Counter[str] = Counter()
        for number, (group, wanted) in enumerate(zip(groups, asked, strict=True)):
            [text] = answers.texts[number]
            strict, loose, lacking = judge(text, wanted)
            unknown.update(lacking)
            rows += _rows(item_id(group, number), content(group.prompt), text, strict, loose)
            rows.append(Row("finished", item_id(group, number), float(answers.finished[number][0])))
        known = sum(map(len, asked)) - sum(unknown.values())
        notes = {"instructions": known, "unknown": dict(sorted(unknown.items()))}
        warnings = cut_warning("instructions", answers.cut, len(groups))
        if unknown:
            names = ", ".join(sorted({name.partition(" (")[0] for name in unknown}))
            warnings.append(
                f"instructions: {sum(unknown.values())} of {known + sum(unknown.values())}"
                f" instructions have no checker and count nowhere: {names}"
            )
        return Result(rows, BETTER, notes, warnings)


def _rows(
    item: str, prompt: str, text: str, strict: Sequence[bool | None], loose: Sequence[bool | None]
) -> list[Row]:
    rows = []
    for name, verdicts in (("strict", strict), ("loose", loose)):
        if None not in verdicts:
            followed = float(all(verdicts))
            rows.append(Row(f"prompt_{name}", item, followed, prompt=prompt, completion=text))
        rows += [
            Row(f"instruction_{name}", item, float(verdict))
            for verdict in verdicts
            if verdict is not None
        ]
    return rows


def instructions_of(group: PromptGroup) -> list[tuple[str, Mapping[str, Any]]]:
    """Ids and arguments of a prompt's instructions.

    Raises:
        DataError: the row states none, or not as many arguments as ids.
    """
    names = group.meta.get("instruction_id_list")
    arguments = group.meta.get("kwargs")
    if not isinstance(names, list) or not names:
        raise DataError(
            f"Row {group.meta.get('place') or group.id}: no 'instruction_id_list', the ids of the"
            " instructions to check (as in IFEval and IFBench)."
        )
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise DataError(
            f"Row {group.meta.get('place') or group.id}: 'kwargs' must be a list of one mapping per"
            f" instruction ({len(names)})."
        )
    return [(str(n), a or {}) for n, a in zip(names, arguments, strict=True)]


def judge(
    text: str, wanted: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[list[bool | None], list[bool | None], list[str]]:
    """Strict and loose verdicts, None where nobody can say, and the ids of those with the reason.

    Whether an instruction can be checked depends on the instruction and not on the text.
    """
    strict: list[bool | None] = []
    loose: list[bool | None] = []
    unknown = []
    for name, arguments in wanted:
        try:
            exact = follows(name, text, arguments)
            free = exact or any(follows(name, variant, arguments) for variant in variants(text))
        except Undecidable as reason:
            strict.append(None)
            loose.append(None)
            unknown.append(f"{name} ({reason})")
            continue
        strict.append(exact)
        loose.append(free)
    return strict, loose, unknown


def variants(text: str) -> list[str]:
    """Texts that count for loose accuracy: without first line, last line, both, asterisks."""
    every = text.split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (every[1:], every[:-1], every[1:-1]))]
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]


def known_ids() -> frozenset[str]:
    """Ids of the instructions that have a checker."""
    return frozenset(CHECKERS)
