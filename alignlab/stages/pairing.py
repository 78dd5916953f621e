"""Which completions an offline objective compares, and which prompts lend theirs to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from alignlab.data.group import NONE, TokenGroup, Verdict
from alignlab.stages.reference import content

DECIMALS = 5  # of a learned score: what follows is decided by the order of a sum


def verdict_of_scores(scores: Iterable[float]) -> Verdict:
    """What scores say of a prompt's completions; a difference of rounding alone is a tie.

    Equal completions are scored in unlike micro-batches, and one is not better than the other.
    """
    return Verdict("scores", scores=tuple(round(score, DECIMALS) for score in scores))


def of_use(group: TokenGroup, *, single: bool) -> bool:
    """Whether a verdict tells something: an ordered pair, or one thumb where ``single`` do."""
    if single:
        return any(thumb is not None for thumb in group.verdict.desirable())
    return bool(group.verdict.pairs())


def best_and_worst(group: TokenGroup) -> TokenGroup:
    """Two completions per prompt: the best and the worst that the verdict tells apart."""
    utilities = group.verdict.utilities()
    order = sorted(range(len(utilities)), key=lambda i: -utilities[i])
    return group.keep((order[0], order[-1]))


def mismatched(step: Sequence[TokenGroup], data: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Each prompt of a step with the completions of the next other prompt of the step.

    A step across the end of an epoch may hold one prompt twice, or only one; then the partner
    comes from ``data``.
    """
    size = len(step)

    def others(place: int) -> Iterator[TokenGroup]:
        return chain((step[(place + k) % size] for k in range(1, size)), data)

    partners = [
        next(other for other in others(i) if other.row != group.row) for i, group in enumerate(step)
    ]
    return [
        replace(
            group,
            completions=p.completions,
            truncated=p.truncated,
            masks=p.masks,
            verdict=NONE,
        )
        for group, p in zip(step, partners, strict=True)
    ]


def all_mismatched(
    steps: Iterable[Sequence[TokenGroup]], data: Sequence[TokenGroup]
) -> list[TokenGroup]:
    """What `mismatched` gives for every step of a training run, each content once.

    Which prompts meet in a step is known beforehand, so the reference's half of the KL point is
    computed before training and kept, as its log-probs of the pairs are.
    """
    found = {content(group): group for step in steps for group in mismatched(step, data)}
    return list(found.values())
