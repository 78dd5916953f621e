"""A data source with quality steps: the rows that remain, and the card that says why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from alignlab import typed
from alignlab.data.group import PromptGroup
from alignlab.data.quality import kept
from alignlab.data.quality.step import HELD_OUT, CrossStep, Step, StepEffect
from alignlab.data.rows.bad_rows import BAD_ROWS, Losses
from alignlab.data.sources.source import SPLITS, left_out_of
from alignlab.errors import ConfigError, DataError, did_you_mean
from alignlab.run import content_key
from alignlab.spec import Spec, build

VERSION = 1  # part of the fingerprint: raise it when the same steps give other rows


@dataclass(frozen=True, kw_only=True)
class Refined:
    """The groups of ``source`` after the steps named in ``order``.

    Every step says which ``splits`` it changes; by default those for training, so a held-out split
    is what it was in the source unless a step names it. Steps that compare with held-out splits
    see them as they are after their own steps, and held-out rows win: the test split keeps a row
    that validation or training has too. A step looks at a whole split, which is therefore in
    memory; it is refined once per object, however often it is loaded, and once per store, where the
    rows are kept by content for the stages and processes that come later.
    """

    source: Spec
    steps: Mapping[str, Spec]  # name -> step; what `order` does not name is not applied
    order: tuple[str, ...]
    _splits: dict[str, tuple[list[PromptGroup], list[dict[str, Any]]]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for name in self.order:
            if name not in self.steps:
                known = ", ".join(self.steps)
                hint = did_you_mean(name, self.steps)
                raise DataError(f"order: no step '{name}'; there are {known}.{hint}")
        if twice := [name for name in self.order if self.order.count(name) > 1]:
            raise DataError(f"order: the step '{twice[0]}' is named twice; give each its own name.")
        for name, step in self._chosen.items():
            if not isinstance(step, Step):
                raise DataError(f"steps.{name}: {self.steps[name].target} is no quality step.")
            _check_splits(f"steps.{name}.splits", step.splits, SPLITS)
            if isinstance(step, CrossStep):
                _check_splits(f"steps.{name}.held_out", step.held_out, HELD_OUT)

    @cached_property
    def _chosen(self) -> dict[str, Step]:
        chosen = {}
        for name in self.order:
            try:
                chosen[name] = build(self.steps[name])
            except (ConfigError, DataError) as error:
                raise type(error)(f"steps.{name}: {error}") from error
        return chosen

    @cached_property
    def _source(self) -> Any:
        return build(self.source)

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and of every step that is applied, in order."""
        steps = []
        for name, step in self._chosen.items():
            try:
                steps.append([name, step.fingerprint()])
            except DataError as error:
                raise DataError(f"steps.{name}: {error}") from error
        return content_key(["refined", VERSION, self._source.fingerprint(), steps])

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of a split that the steps keep, in the order of the source.

        Raises:
            DataError: from the source, or from a step, whose name it gives.
        """
        if split not in self._splits:
            key = content_key(["rows", self.fingerprint(), split])
            self._splits[split] = kept.made_once(key, lambda: self._refine(split))
        return list(self._splits[split][0])

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Give the groups of `load` one by one; the split is in memory."""
        yield from self.load(split)

    def left_out(self, split: str) -> Losses | None:
        """Return what the source left out of a split that was loaded, before any step."""
        effects = self._splits[split][1] if split in self._splits else []
        read = [entry for entry in effects if entry["kind"] == BAD_ROWS]
        return Losses.of_entry(read[0]) if read else None

    def card(self) -> dict[str, Any]:
        """Return what was done to each split loaded so far, as plain data for a run record.

        ``{"source": …, "splits": {split: [{"step", "rows_in", "rows_out", "seconds", "why",
        "examples", "numbers"}, …]}}``, steps in order.
        """
        effects = {split: list(done[1]) for split, done in self._splits.items()}
        plain: dict[str, Any] = typed.to_mapping({"source": self.source, "splits": effects})
        return plain

    def _refine(self, split: str) -> tuple[list[PromptGroup], list[dict[str, Any]]]:
        groups = self._source.load(split)
        empty = not groups  # not every source has every split
        read = left_out_of(self._source, split)
        effects: list[dict[str, Any]] = [read.entry()] if read is not None else []
        for name, step in self._chosen.items():
            if split not in step.splits:
                continue
            began = time.perf_counter()
            try:
                groups, done = self._apply(step, split, groups)
            except DataError as error:
                raise DataError(f"step '{name}', split '{split}': {error}") from error
            effects.append(_entry(name, done, time.perf_counter() - began))
        if not groups and not empty:
            lost = "; ".join(f"{e['step']}: {e['rows_in']} → {e['rows_out']}" for e in effects)
            raise DataError(f"No row of the split '{split}' is left ({lost}). Loosen the steps.")
        return groups, effects

    def _apply(
        self, step: Step, split: str, groups: list[PromptGroup]
    ) -> tuple[list[PromptGroup], StepEffect]:
        if not isinstance(step, CrossStep):
            return step.apply(groups)
        before = HELD_OUT[: HELD_OUT.index(split)] if split in HELD_OUT else HELD_OUT
        wanted = [name for name in before if name in step.held_out]
        return step.apply_against(groups, {name: self.load(name) for name in wanted})


def _check_splits(path: str, named: Sequence[str], known: Sequence[str]) -> None:
    for split in named:
        if split not in known:
            hint = did_you_mean(split, known)
            raise DataError(f"{path}: no split '{split}'; choose from {', '.join(known)}.{hint}")


def _entry(name: str, done: StepEffect, seconds: float) -> dict[str, Any]:
    return {
        "step": name,
        "kind": done.name,
        "rows_in": done.rows_in,
        "rows_out": done.rows_out,
        "seconds": round(seconds, 3),
        "why": dict(sorted(done.why.items(), key=lambda item: (-item[1], item[0]))),
        "examples": [dict(example) for example in done.examples],
        "numbers": dict(done.numbers),
    }
