"""A data source made of a finished annotate run: rejection sampling, and self-instruct's harvest.

Rejection sampling keeps the best of the completions that a policy sampled for a prompt and trains
on them as demonstrations (best-of-n distillation; Llama 2, Touvron et al. 2023, arXiv:2307.09288,
section 3.2.3; RAFT, Dong et al. 2023, arXiv:2304.06767).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from alignlab import files
from alignlab.data.group import DEMONSTRATION, PromptGroup, Text, Verdict
from alignlab.data.quality.self_instruct import instructions
from alignlab.data.rows.bad_rows import Losses
from alignlab.data.sources.source import left_out_of
from alignlab.errors import DataError, did_you_mean
from alignlab.run import Run, Store, content_key
from alignlab.spec import Spec, build
from alignlab.typed import Range

FILE = "annotations.jsonl"  # what an annotate run writes
VERSION = 1  # part of the fingerprint: raise it when the same run gives other rows
SPLITS = ("sft", "preference", "unlabeled", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class FromRun:
    """Rows of a finished annotate run.

    ``sft`` are the ``keep`` best completions of every prompt as demonstrations, ``preference`` all
    completions with their verdict, ``unlabeled`` the prompts. With ``read: instructions`` every
    completion is read as a list of new instructions, which are the prompts of ``preference`` and
    ``unlabeled``, and ``sft`` is that of the origin. Held-out splits are always those of the
    origin. Rows are in the run's order; its own validation rows are left out of training.
    """

    run: str  # full name of the run, annotate-KEY
    store: str | None  # folder of finished runs; null = $ALIGNLAB_RUNS, else ./runs
    read: Literal["answers", "instructions"]
    keep: Annotated[int, Range(min=1)]  # most completions of a prompt, best first
    field: str | None  # one number per completion in the rows' meta; null = the verdict
    least: float | None  # completions must score so much; null = no bound
    truncated: Literal["keep", "drop"]  # completions that were cut at the length limit
    origin: Spec  # the data that the run was sampled from

    def fingerprint(self) -> str:
        """Hash of the run's annotations, of the fields and of the origin."""
        fields = [self.read, self.keep, self.field, self.least, self.truncated]
        content = files.sha256(self._finished.path / FILE)
        return content_key(["from_run", VERSION, content, fields, self._origin.fingerprint()])

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split.

        Raises:
            DataError: the run is not there or not finished, or a row has no scores.
        """
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Give the groups of `load` one by one, reading the run line by line."""
        if split not in SPLITS:
            known = ", ".join(SPLITS)
            raise DataError(f"No split '{split}': {known}.{did_you_mean(split, SPLITS)}")
        if split in ("validation", "test") or (split == "sft" and self.read == "instructions"):
            yield from self._origin.load(split)
            return
        place = self._finished.path / FILE
        for number, row in enumerate(files.rows(place), 1):
            if row["split"] != "train":
                continue
            group = _group(row, f"{self.run}, line {number}")
            yield from self._rows(group, row["truncated"], split)

    def left_out(self, split: str) -> Losses | None:
        """Return what the origin left out of a split that is its own."""
        return left_out_of(self._origin, split)

    def _rows(self, group: PromptGroup, truncated: list[bool], split: str) -> Iterator[PromptGroup]:
        if self.read == "instructions":
            yield from self._instructions(group)
        elif split == "unlabeled":
            yield group.keep(())
        elif split == "preference":
            yield group
        else:
            yield from self._demonstrations(group, truncated)

    def _demonstrations(self, group: PromptGroup, truncated: list[bool]) -> Iterator[PromptGroup]:
        scores = self._scores(group)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        good = [i for i in order if self.least is None or scores[i] >= self.least]
        whole = [i for i in good if self.truncated == "keep" or not truncated[i]]
        for place, i in enumerate(whole[: self.keep]):
            meta = {**group.meta, "score": scores[i], "rank": place}
            name = f"{group.id}-{i}"
            yield PromptGroup(group.prompt, (group.completions[i],), DEMONSTRATION, name, meta)

    def _instructions(self, group: PromptGroup) -> Iterator[PromptGroup]:
        for i, completion in enumerate(group.completions):
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            for k, instruction in enumerate(instructions(text)):
                meta = {"place": group.meta["place"]}
                yield PromptGroup(instruction, id=f"{group.id}-{i}-{k}", meta=meta)

    def _scores(self, group: PromptGroup) -> tuple[float, ...]:
        if self.field is None:
            values: Any = group.verdict.utilities()
        else:
            values = group.meta.get(self.field)
        if not isinstance(values, (list, tuple)) or len(values) != len(group.completions):
            known = ", ".join(group.meta)
            raise DataError(
                f"{group.meta['place']}: no score for each completion in "
                f"{self.field or 'the verdict'}; the row has {known}."
            )
        return tuple(float(value) for value in values)

    @cached_property
    def _finished(self) -> Run:
        root = Path(self.store or os.environ.get("ALIGNLAB_RUNS") or "runs").expanduser()
        found = {run.name: run for run in Store(root).runs()}
        if self.run not in found:
            hint = did_you_mean(self.run, found)
            raise DataError(f"No run '{self.run}' in {root.resolve()}.{hint} See: alignlab runs ls")
        run = found[self.run]
        if not run.done or not (run.path / FILE).is_file():
            state = "is no annotate run" if run.done else "is not finished"
            raise DataError(f"{run.name} {state}; a source needs a finished annotate run.")
        return run

    @cached_property
    def _origin(self) -> Any:
        return build(self.origin)


def _group(row: Mapping[str, Any], place: str) -> PromptGroup:
    prompt = _text(row["prompt"])
    completions = tuple(_text(c) for c in row["completions"])
    if not isinstance(prompt, str):  # samples are stored as text
        completions = tuple(
            ({"role": "assistant", "content": c},) if isinstance(c, str) else c for c in completions
        )
    known = {name: tuple(v) for name, v in row["verdict"].items() if name != "kind"}
    verdict = Verdict(row["verdict"]["kind"], **known)
    meta = {**row["meta"], "place": place}
    return PromptGroup(prompt, completions, verdict, row["id"], meta)


def _text(value: Any) -> Text:
    return value if isinstance(value, str) else tuple(value)
