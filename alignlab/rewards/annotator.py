"""A simulated annotator: ranks completions by a gold reward, with noise, flips and ties.

The idea is AlpacaFarm's (Dubois et al. 2023, arXiv:2305.14387): preferences whose truth is known,
from annotators who err at a stated rate.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Literal, Protocol, runtime_checkable

from alignlab.data.group import PromptGroup, Verdict
from alignlab.rewards.reward import Reward, fingerprint, known_of, prompt_text
from alignlab.rewards.thinking import graded
from alignlab.spec import Spec, build
from alignlab.typed import Range

__all__ = ["Annotates", "Annotation", "Annotator", "Spends", "prompt_text", "total"]


@dataclass(frozen=True)
class Annotation:
    """What the annotator says of one prompt's k completions, and the truth behind it."""

    verdict: Verdict  # ranking, 0 = best
    scores: tuple[float, ...]  # (k,) gold scores
    perceived: tuple[float, ...]  # (k,) gold scores with noise: what was ranked
    flipped: bool  # the ranking was turned round
    votes: tuple[tuple[int, ...], ...] = ()  # of a panel: the ranks that each member gave
    agreement: float | None = None  # of a panel: share of equal votes, over members and pairs


class Annotates(Protocol):
    """Ranks the completions of a prompt: a simulated annotator, a judge, or a panel of such."""

    def annotate(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Annotation:
        """Rank the completions ``texts`` of ``group``'s prompt."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the rankings."""
        ...


@runtime_checkable
class Spends(Protocol):
    """An annotator that costs something: requests, tokens, US dollars."""

    def spent(self) -> dict[str, float | None]:
        """What it has cost since it was made; None = not known."""
        ...


def total(costs: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Add costs up, name by name; what is not known of one is not known of the sum."""
    listed = list(costs)
    names = dict.fromkeys(name for cost in listed for name in cost)
    found: dict[str, float | None] = {}
    for name in names:
        known = [cost.get(name, 0) for cost in listed]
        found[name] = None if None in known else sum(value or 0 for value in known)
    return found


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """Ranks completions by perceived score s̃_i = s_i + noise · ε_i.

    *gumbel*: ε standard Gumbel, so rankings follow Plackett–Luce and pairs Bradley–Terry:
    P(i ≻ j) = σ((s_i − s_j) / noise). *normal*: ε standard normal (Thurstone):
    P(i ≻ j) = Φ((s_i − s_j) / (√2 noise)).

    With probability ``flip`` the whole ranking of a prompt is turned round, so every pair of it is
    mislabelled at exactly that rate and the verdict stays a ranking. Completions whose perceived
    score lies within ``ties`` of the best one of their tier tie with it; equal ones always tie.

    The draws are hashes of (seed, prompt, completion): they depend neither on the order of prompts
    and completions nor on what else is annotated. Equal completions are perceived as equal.
    """

    reward: Spec
    noise: Annotated[float, Range(min=0)]  # temperature, in units of the reward
    distribution: Literal["gumbel", "normal"]
    flip: Annotated[float, Range(min=0, max=1)]
    ties: Annotated[float, Range(min=0)]  # in units of the reward

    @cached_property
    def gold(self) -> Reward:
        """The reward behind the annotator."""
        return build(self.reward)

    def rank(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Verdict:
        """Return the verdict alone; see `annotate`."""
        return self.annotate(group, texts, seed).verdict

    def annotate(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Annotation:
        """Rank the completions ``texts`` of ``group``'s prompt.

        The prompt's id names it in the seed, its text where it has no id.
        """
        prompt = prompt_text(group)
        k = len(texts)
        scores = graded(self.gold, [prompt] * k, texts, [known_of(group)] * k).tolist()
        name = group.id or prompt
        perceived = [
            score + self.noise * self._draw(seed, name, text) if self.noise else score
            for score, text in zip(scores, texts, strict=True)
        ]
        flipped = _uniform("flip", seed, name) < self.flip
        ranks = tiers(perceived, self.ties)
        if flipped:
            ranks = tuple(max(ranks, default=0) - rank for rank in ranks)
        return Annotation(Verdict("ranking", ranks=ranks), tuple(scores), tuple(perceived), flipped)

    def _draw(self, seed: int, prompt: str, text: str) -> float:
        u = _uniform("noise", seed, prompt, text)
        return -math.log(-math.log(u)) if self.distribution == "gumbel" else NormalDist().inv_cdf(u)

    def fingerprint(self) -> str:
        """Hash of the fields and of the reward's own fingerprint."""
        return fingerprint(self, 1, self.gold.fingerprint())


def tiers(values: Sequence[float], width: float) -> tuple[int, ...]:
    """Dense ranks, 0 = highest: a tier is what lies within ``width`` of its highest value."""
    rank_of: dict[float, int] = {}
    rank, top = -1, math.inf
    for value in sorted(Counter(values), reverse=True):
        if rank < 0 or top - value > width:
            rank, top = rank + 1, value
        rank_of[value] = rank
    return tuple(rank_of[value] for value in values)


def _uniform(*parts: str | int) -> float:
    """A number in (0, 1) that is a hash of the parts."""
    text = "\x1f".join(str(part) for part in parts)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return (2 * (number >> 12) + 1) / 2**53
