"""Several sources as one: mixed by weight or by count, with caps, always in the same order."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from alignlab.data.group import PromptGroup
from alignlab.data.rows.bad_rows import Losses, joined
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.data.sources.source import (
    SPLITS,
    TRAINING,
    Carded,
    Source,
    check_limit,
    check_split,
    left_out_of,
)
from alignlab.errors import ConfigError, DataError, did_you_mean
from alignlab.spec import Spec, build

VERSION = 1  # part of the fingerprint: raise it when the groups or their order change


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture."""

    source: Spec
    weight: float  # with mix=weight: its share, relative to the other parts'
    count: int  # with mix=count: groups of it in every training split
    cap: int | None  # most groups of it before mixing, null = all; the first in its order
    splits: tuple[str, ...]  # splits that it takes part in


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Named sources mixed into one; ``meta["part"]`` says where a group comes from.

    In training splits a part gives ``n_i`` groups: all of its (``mix=all``), a share ``w_i / Σw``
    (``weight``) of ``size`` groups or of as many as the parts allow, or ``count``. A part that has
    fewer gives its groups again, at most ``repeat`` times, the later ones marked by
    ``meta["copy"]``. Held-out splits have every group of every part once. The j-th group of a part
    stands at (j + ½) / n_i of the whole, so that every stretch has the mixture's proportions.
    """

    parts: Mapping[str, Part]
    mix: Literal["all", "weight", "count"]
    size: int | None
    repeat: int
    limit: Mapping[str, int | None]
    _given: dict[str, dict[str, tuple[int, int]]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if not self.parts:
            raise ConfigError("A mixture of data needs at least one part.")
        for name, part in self.parts.items():
            for split in part.splits:
                if split not in SPLITS:
                    hint = did_you_mean(split, SPLITS)
                    raise ConfigError(f"parts.{name}.splits: no split '{split}'.{hint}")
            if part.weight <= 0 or part.count < 1 or (part.cap is not None and part.cap < 1):
                raise ConfigError(f"parts.{name}: weight, count and cap must be positive.")
        if self.repeat < 1 or (self.size is not None and self.size < 1):
            raise ConfigError("repeat and size must be at least 1.")

    def fingerprint(self) -> str:
        """Hash of every field, with the parts' own fingerprints in place of their sources."""
        parts = {
            name: [
                part.weight,
                part.count,
                part.cap,
                part.splits,
                self._sources[name].fingerprint(),
            ]
            for name, part in self.parts.items()
        }
        rest = [self.mix, self.size, self.repeat, dict(self.limit)]
        return fingerprint_of([], ("mixture", VERSION, list(parts.items()), rest))

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split; see :meth:`stream`."""
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split; the parts are read once to count, and to yield each time.

        Raises:
            DataError: an unknown split, or a part that would have to be repeated too often.
        """
        check_split(split)
        if split not in self._given:  # the parts do not change while the object lives
            self._given[split] = self.amounts(split)
        streams = (
            self._placed(name, split, have, most)
            for name, (have, most) in self._given[split].items()
        )
        merged = heapq.merge(*streams, key=lambda placed: placed[:2])
        return itertools.islice((group for _, _, group in merged), self.limit.get(split))

    def left_out(self, split: str) -> Losses | None:
        """Return what the parts left out of a split, together."""
        found = {name: left_out_of(source, split) for name, source in self._sources.items()}
        lost = {name: one for name, one in found.items() if one is not None}
        return joined(lost) if lost else None

    def card(self) -> dict[str, Any]:
        """Return what each part gave to the splits loaded so far, and the cards of the parts.

        ``{"splits": {split: {part: {"rows", "given"}}}, "parts": {part: card}}``
        """
        given = {
            split: {name: {"rows": have, "given": most} for name, (have, most) in parts.items()}
            for split, parts in self._given.items()
        }
        cards = {
            name: source.card()
            for name, source in self._sources.items()
            if isinstance(source, Carded) and source.card()
        }
        return {"splits": given, "parts": cards}

    def amounts(self, split: str) -> dict[str, tuple[int, int]]:
        """For each part with groups in a split: how many it has, and how many it gives."""
        counts = {
            name: sum(1 for _ in self._groups(name, split))
            for name, part in self.parts.items()
            if split in part.splits
        }
        have = {name: count for name, count in counts.items() if count}
        return {name: (have[name], most) for name, most in self._wanted(split, have).items()}

    def _wanted(self, split: str, have: Mapping[str, int]) -> dict[str, int]:
        """Groups that each part gives: largest remainders, so that they add up to the size."""
        if self.mix == "all" or split not in TRAINING or not have:
            return dict(have)
        if self.mix == "count":
            wanted = {name: self.parts[name].count for name in have}
        else:
            total = sum(self.parts[name].weight for name in have)
            share = {name: self.parts[name].weight / total for name in have}
            size = self.size or math.floor(min(have[n] / share[n] for n in have) + 1e-9)
            exact = {name: share[name] * size for name in have}
            wanted = {name: math.floor(exact[name] + 1e-9) for name in have}
            by_rest = sorted(have, key=lambda name: (wanted[name] - exact[name], name))
            for name in by_rest[: size - sum(wanted.values())]:
                wanted[name] += 1
        for name, most in wanted.items():
            if most > have[name] * self.repeat:
                raise DataError(
                    f"Part '{name}' of the mixture gives {most:,} groups to '{split}' and has "
                    f"{have[name]:,}, so each would be shown up to {-(-most // have[name])} times."
                    f" Lower its share or data.size, or allow it with data.repeat="
                    f"{-(-most // have[name])}."
                )
        return wanted

    def _placed(
        self, name: str, split: str, have: int, most: int
    ) -> Iterator[tuple[float, str, PromptGroup]]:
        """(position in [0, 1), part, group) for each group that a part gives, ascending."""
        copies = itertools.chain.from_iterable(
            ((copy, group) for group in self._groups(name, split))
            for copy in range(-(-most // have))
        )
        for place, (copy, group) in enumerate(itertools.islice(copies, most)):
            told = {"part": name, **({"copy": copy} if copy else {})}
            yield (place + 0.5) / most, name, replace(group, meta={**group.meta, **told})

    def _groups(self, name: str, split: str) -> Iterator[PromptGroup]:
        return itertools.islice(self._sources[name].stream(split), self.parts[name].cap)

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {name: build(part.source) for name, part in self.parts.items()}
