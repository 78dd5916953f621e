"""Several sources as one: mixed by weight or by count, with caps, always in the same order."""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from alignlab.data.group import PromptGroup
from alignlab.data.rows.bad_rows import Losses, joined
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.data.sources import placing
from alignlab.data.sources.rates import divided, proportional, unrepeated, weighted
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

    In training splits a part gives ``n_i`` groups: all of its (``mix=all``), ``count``, or a share
    of ``size`` groups or of as many as the parts allow. The share is ``w_i / Σw`` (``weight``) or
    follows from the parts' sizes (``proportional``, see `rates.proportional`). A part that has
    fewer gives its groups again, at most ``repeat`` times, the later ones marked by
    ``meta["copy"]``. Held-out splits have every group of every part once. The j-th group of a part
    stands at (j + ½) / n_i of the whole, so that every stretch has the mixture's proportions.
    With ``measure=characters`` weights and ``size`` are of characters, for documents of unlike
    lengths, and a group takes as much of the whole as it is long.
    """

    # Fields that came later; while they are null they are in no key.
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"rate_cap", "temperature", "measure"})

    parts: Mapping[str, Part]
    mix: Literal["all", "weight", "count", "proportional"]
    size: int | None
    repeat: int
    limit: Mapping[str, int | None]
    rate_cap: int | None = None  # of proportional: groups of a part beyond it raise no rate
    temperature: float | None = None  # of proportional: None = 1; larger evens the rates out
    measure: Literal["groups", "characters"] | None = None  # of weight: of what; None = groups
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
        self._check_rates()
        if self.repeat < 1 or (self.size is not None and self.size < 1):
            raise ConfigError("repeat and size must be at least 1.")

    def _check_rates(self) -> None:
        """Refuse fields that the way of mixing would not look at."""
        owner = {"rate_cap": "proportional", "temperature": "proportional", "measure": "weight"}
        for name, mix in owner.items():
            if getattr(self, name) is not None and self.mix != mix:
                raise ConfigError(
                    f"data.{name}={getattr(self, name)} says nothing with data.mix={self.mix}: set"
                    f" data.mix={mix}, or leave {name} null."
                )
        for name in ("rate_cap", "temperature"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"data.{name} must be positive or null, not {value}.")

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
        rest: list[Any] = [self.mix, self.size, self.repeat, dict(self.limit)]
        later = {name: getattr(self, name) for name in sorted(self.unkeyed_if_null)}
        rest += [[name, value] for name, value in later.items() if value is not None]
        return fingerprint_of([], ("mixture", VERSION, list(parts.items()), rest))

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split; see :meth:`stream`."""
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split; the parts are read once to count, and to yield each time.

        Raises:
            DataError: an unknown split, or a part that would have to be repeated too often.
        """
        given = self._amounts(split)
        streams = (self._placed(name, split, have, most) for name, (have, most) in given.items())
        merged = heapq.merge(*streams, key=lambda placed: placed[:2])
        return itertools.islice((group for _, _, group in merged), self.limit.get(split))

    def left_out(self, split: str) -> Losses | None:
        """Return what the parts left out of a split, together."""
        found = {name: left_out_of(source, split) for name, source in self._sources.items()}
        lost = {name: one for name, one in found.items() if one is not None}
        return joined(lost) if lost else None

    def card(self) -> dict[str, Any]:
        """Return what each part gave to the splits loaded so far, and the cards of the parts.

        ``{"splits": {split: {part: {"rows", "given"}}}, "parts": {part: card}}``; with measure=
        characters also "characters" and "given_characters".
        """
        given = {split: self.told(split) for split in self._given}
        cards = {
            name: source.card()
            for name, source in self._sources.items()
            if isinstance(source, Carded) and source.card()
        }
        return {"splits": given, "parts": cards}

    def told(self, split: str) -> dict[str, dict[str, int]]:
        """What each part has and gives in a split, in groups and, if they are measured, characters.

        Raises:
            DataError: as `stream`.
        """
        parts = self._amounts(split)
        told = {name: {"rows": have, "given": most} for name, (have, most) in parts.items()}
        if self.measure == "characters" and split in TRAINING:
            for name, (have, most) in parts.items():
                sizes = self._lengths(name, split)
                rounds, rest = divmod(most, have)
                given = rounds * sum(sizes) + sum(sizes[:rest])
                told[name] |= {"characters": sum(sizes), "given_characters": given}
        return told

    def _amounts(self, split: str) -> Mapping[str, tuple[int, int]]:
        check_split(split)
        if split not in self._given:  # the parts do not change while the object lives
            self._given[split] = self.amounts(split)
        return self._given[split]

    def amounts(self, split: str) -> dict[str, tuple[int, int]]:
        """For each part with groups in a split: how many it has, and how many it gives."""
        here = [name for name, part in self.parts.items() if split in part.splits]
        if self.measure == "characters" and split in TRAINING:
            return self._by_length(split, {name: self._lengths(name, split) for name in here})
        counts = {name: sum(1 for _ in self._groups(name, split)) for name in here}
        have = {name: count for name, count in counts.items() if count}
        wanted = self._wanted(split, have)
        self._require(split, wanted, have)
        return {name: (have[name], most) for name, most in wanted.items()}

    def _wanted(self, split: str, have: Mapping[str, int]) -> dict[str, int]:
        """Groups that each part gives: largest remainders, so that they add up to the size."""
        if self.mix == "all" or split not in TRAINING or not have:
            return dict(have)
        if self.mix == "count":
            return {name: self.parts[name].count for name in have}
        if self.mix == "proportional":
            rates = proportional(have, self.rate_cap, self.temperature)
        else:
            rates = weighted({name: self.parts[name].weight for name in have})
        return divided(self.size or unrepeated(have, rates), rates)

    def _by_length(self, split: str, sizes: Mapping[str, array[int]]) -> dict[str, tuple[int, int]]:
        """What each part has and gives where weights are of characters."""
        whole = {name: sum(found) for name, found in sizes.items() if sum(found)}
        if not whole:
            return {}
        rates = weighted({name: self.parts[name].weight for name in whole})
        wanted = divided(self.size or unrepeated(whole, rates), rates)
        self._require(split, wanted, whole)
        return {
            name: (len(sizes[name]), placing.given(sizes[name], most))
            for name, most in wanted.items()
        }

    def _require(self, split: str, wanted: Mapping[str, int], have: Mapping[str, int]) -> None:
        """Refuse a mixture that repeats a part more often than is allowed."""
        unit = self.measure or "groups"
        for name, most in wanted.items():
            if most > have[name] * self.repeat:
                raise DataError(
                    f"Part '{name}' of the mixture gives {most:,} {unit} to '{split}' and has "
                    f"{have[name]:,}, so each would be shown up to {-(-most // have[name])} times."
                    f" Lower its share or data.size, or allow it with data.repeat="
                    f"{-(-most // have[name])}."
                )

    def _placed(
        self, name: str, split: str, have: int, most: int
    ) -> Iterator[tuple[float, str, PromptGroup]]:
        """(position in [0, 1), part, group) for each group that a part gives, ascending."""
        copies = itertools.chain.from_iterable(
            ((copy, group) for group in self._groups(name, split))
            for copy in range(-(-most // have))
        )
        if self.measure == "characters" and split in TRAINING:
            line = placing.places(self._lengths(name, split), most)
        else:
            line = ((place + 0.5) / most for place in range(most))
        for place, (copy, group) in zip(line, copies, strict=False):
            told = {"part": name, **({"copy": copy} if copy else {})}
            yield place, name, replace(group, meta={**group.meta, **told})

    def _lengths(self, name: str, split: str) -> array[int]:
        """Characters of the groups of a part, read once."""
        if (name, split) not in self._sizes:
            self._sizes[name, split] = placing.lengths(self._groups(name, split))
        return self._sizes[name, split]

    def _groups(self, name: str, split: str) -> Iterator[PromptGroup]:
        return itertools.islice(self._sources[name].stream(split), self.parts[name].cap)

    @cached_property
    def _sizes(self) -> dict[tuple[str, str], array[int]]:
        return {}

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {name: build(part.source) for name, part in self.parts.items()}
