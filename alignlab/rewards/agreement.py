"""How far annotators agree: pairwise agreement, Cohen's kappa, Krippendorff's alpha."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations


def pair_votes(ranks: Sequence[int]) -> tuple[int, ...]:
    """Return an annotator's vote on every pair i < j of completions: 1 = i is better, −1, 0 = tie.

    ``ranks`` are dense, 0 = best.
    """
    return tuple((a < b) - (a > b) for a, b in combinations(ranks, 2))


def pairwise_agreement(votes: Sequence[Sequence[int]]) -> float | None:
    """Return the share of (two annotators, one unit) with equal votes, a list of votes for each.

    None where there is nothing to compare: fewer than two annotators, or no units.
    """
    same = [
        a == b for one, other in combinations(votes, 2) for a, b in zip(one, other, strict=True)
    ]
    return sum(same) / len(same) if same else None


def cohen_kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Return κ = (p_o − p_e) / (1 − p_e) of two annotators' votes on the same units.

    p_o is the share of equal votes and p_e = Σ_c p₁(c) p₂(c) what chance would give for their own
    shares of votes (Cohen 1960). None without units, or where chance agreement is 1.
    """
    n = len(first)
    if not n:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    one, other = Counter(first), Counter(second)
    expected = sum(one[c] * other[c] for c in one) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def agreement_of(votes: Sequence[Sequence[Sequence[int]]]) -> dict[str, float | None] | None:
    """Summarise a panel's ranks of many prompts, given as (prompts, members, completions).

    ``pairwise`` is the mean agreement on a pair of completions, ``alpha`` Krippendorff's α, and
    ``kappa`` Cohen's κ where there are two members. None where no prompt has votes.
    """
    panels = [[pair_votes(ranks) for ranks in prompt] for prompt in votes if prompt]
    if not panels:
        return None
    members = [[vote for panel in panels for vote in panel[m]] for m in range(len(panels[0]))]
    units = list(zip(*members, strict=True))
    found = {"pairwise": pairwise_agreement(members), "alpha": krippendorff_alpha(units)}
    return found | {"kappa": cohen_kappa(*members)} if len(members) == 2 else found


def krippendorff_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """Return Krippendorff's α for nominal values: the votes that each unit was given.

    α = 1 − D_o / D_e. With m_u votes on unit u and n votes on the units that have two or more,
    D_o = (1/n) Σ_u (ordered pairs of unequal votes in u) / (m_u − 1) and
    D_e = Σ_{c≠k} n_c n_k / (n (n − 1)) (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability"). 1 is agreement, 0 is what chance gives. None where all votes are equal or
    no unit has two, so that nothing can be said.
    """
    rated = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[int] = sum(rated, Counter())
    n = totals.total()
    expected = n * n - sum(count**2 for count in totals.values())
    if not expected:
        return None
    unequal = sum(
        (unit.total() ** 2 - sum(count**2 for count in unit.values())) / (unit.total() - 1)
        for unit in rated
    )
    return 1 - unequal * (n - 1) / expected
