"""A panel of annotators: several simulated people or models judge, and their votes are combined."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Annotated, Literal

from alignlab.data.group import PromptGroup, Verdict
from alignlab.errors import ConfigError
from alignlab.rewards.agreement import pair_votes, pairwise_agreement
from alignlab.rewards.annotator import Annotates, Annotation, Spends, tiers, total
from alignlab.rewards.reward import fingerprint
from alignlab.spec import Spec, build
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Member:
    """One annotator of a panel."""

    annotator: Spec
    weight: Annotated[float, Range(min=0, min_open=True)]  # of the vote or of the score


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Ranks completions by the votes or by the scores of its members.

    *majority*: i beats j when the members who rank i above j weigh more than those who rank it
    below; completions are ordered by wins minus losses (Copeland), because majorities can go round
    in a circle. With two completions this is the weighted majority. *mean*: by the weighted mean of
    the perceived scores, on the members' own scales, so choose weights with those in mind.

    Every member draws its noise from the seed and its name, so equal members err apart. The scores
    of an annotation are the weighted means of the members' scores without noise; it is ``flipped``
    when members of more than half the weight had their ranking turned round.
    """

    members: Mapping[str, Member]
    aggregation: Literal["majority", "mean"]

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ConfigError("A panel needs at least two members; for one, use it alone.")

    @cached_property
    def _annotators(self) -> dict[str, Annotates]:
        return {name: build(member.annotator) for name, member in self.members.items()}

    def rank(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Verdict:
        """Return the verdict alone; see `annotate`."""
        return self.annotate(group, texts, seed).verdict

    def annotate(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Annotation:
        """Rank the completions ``texts`` of ``group``'s prompt; the votes are kept."""
        said = [
            annotator.annotate(group, texts, _member_seed(seed, name))
            for name, annotator in self._annotators.items()
        ]
        weights = [member.weight for member in self.members.values()]
        votes = tuple(one.verdict.ranks for one in said)
        perceived = _mean([one.perceived for one in said], weights)
        values = _copeland(votes, weights) if self.aggregation == "majority" else perceived
        turned = sum(w for one, w in zip(said, weights, strict=True) if one.flipped)
        return Annotation(
            verdict=Verdict("ranking", ranks=tiers(values, 0.0)),
            scores=_mean([one.scores for one in said], weights),
            perceived=perceived,
            flipped=turned > sum(weights) / 2,
            votes=votes,
            agreement=pairwise_agreement([pair_votes(ranks) for ranks in votes]),
        )

    def spent(self) -> dict[str, float | None]:
        """What its members have cost, those among them that cost anything."""
        return total(one.spent() for one in self._annotators.values() if isinstance(one, Spends))

    def fingerprint(self) -> str:
        """Hash of the fields and of the members' own fingerprints."""
        return fingerprint(self, 1, *(a.fingerprint() for a in self._annotators.values()))


def _member_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"panel:{seed}:{name}".encode()).digest()[:6], "big")


def _mean(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(
        sum(w * value for w, value in zip(weights, column, strict=True)) / total
        for column in zip(*rows, strict=True)
    )


def _copeland(votes: Sequence[Sequence[int]], weights: Sequence[float]) -> tuple[float, ...]:
    """Wins minus losses of each completion against the others, by weighted majority."""
    k = len(votes[0])
    score = [0.0] * k
    for i, j in combinations(range(k), 2):
        pairs = [(ranks[i], ranks[j], w) for ranks, w in zip(votes, weights, strict=True)]
        lead = sum(w for a, b, w in pairs if a < b) - sum(w for a, b, w in pairs if a > b)
        won = (lead > 1e-12) - (lead < -1e-12)  # 0.1 + 0.2 against 0.3 is a draw
        score[i] += won
        score[j] -= won
    return tuple(score)
