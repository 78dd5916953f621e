"""The gate for bare texts: what can be seen before there is a tokenizer, by their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from alignlab.data.gate import content_checks, repetition_checks, truncation_checks
from alignlab.data.gate.character_checks import Characters, Mojibake
from alignlab.data.gate.check import Check
from alignlab.data.gate.finding import Finding
from alignlab.data.gate.gate import CHUNK, Gate
from alignlab.data.gate.limits import Limits
from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.data.wording import content

CHECKS: tuple[type[Check], ...] = (
    content_checks.NoRows,
    content_checks.Empty,
    truncation_checks.LengthOutliers,
    Characters,
    Mojibake,
    repetition_checks.Leakage,
    repetition_checks.Repeated,
)


def check_texts(
    groups: Iterable[PromptGroup], held_out: Mapping[str, Iterable[PromptGroup]], limits: Limits
) -> list[Finding]:
    """Run the checks that need no tokens over the texts of a split.

    Args:
        groups: one text each, as their completion.
        held_out: groups of other splits, whose texts must not occur here.
        limits: from which share of the rows on a finding counts.
    """
    gate = Gate(None, held_out=held_out, limits=limits, vocabulary=256, checks=CHECKS)
    stream: Iterator[PromptGroup] = iter(groups)
    row = 0
    while part := list(islice(stream, CHUNK)):
        gate.see(part, [_bytes_of(group, row + i) for i, group in enumerate(part)])
        row += len(part)
    return gate.findings()


def _bytes_of(group: PromptGroup, row: int) -> TokenGroup:
    texts = [content(text).encode("utf-8", "surrogatepass") for text in group.completions]
    return TokenGroup(
        prompt=np.zeros(0, dtype=np.int32),
        completions=tuple(np.frombuffer(text, np.uint8).astype(np.int32) for text in texts),
        verdict=group.verdict,
        row=row,
        id=group.id,
        meta=group.meta,
    )
