"""Which samples meet before a judge: those of two evaluations, or of one and the references."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignlab.errors import DataError
from alignlab.rewards.judge.annotator import reference_of
from alignlab.rewards.judge.rulings import Match, Ruling, spread
from alignlab.run import Run, Store
from alignlab.spec import build, parse

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pairing:
    """The matches of a judging, with the rows that they were made of."""

    matches: Sequence[Match]
    samples: Sequence[Row]  # rows of the evaluation that is judged, one per match
    opponents: Sequence[Row]  # completion, tokens, gold of the other side, one per match
    left_out: int  # samples without an opponent

    @property
    def ids(self) -> list[str]:
        """Prompt of every match."""
        return [str(row["prompt_id"]) for row in self.samples]

    def longer(self, index: int) -> float:
        """Tokens of the completion minus tokens of its opponent."""
        return float(self.samples[index]["tokens"]) - float(self.opponents[index]["tokens"])

    def prompt_number(self, index: int) -> int:
        """Number of the match's prompt, in the order of their ids (as the report numbers them)."""
        return self._numbers[str(self.samples[index]["prompt_id"])]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(sorted(set(self.ids)))}

    def rows(self, rulings: Sequence[Ruling]) -> Iterator[dict[str, Any]]:
        """Rows of the judge run, as the report reads them."""
        for sample, opponent, ruling in zip(self.samples, self.opponents, rulings, strict=True):
            yield {
                "prompt_id": sample["prompt_id"],
                "sample": sample["sample"],
                "prompt": sample["prompt"],
                "completion": sample["completion"],
                "opponent_completion": opponent["completion"],
                "win": ruling.win,  # null: no verdict
                "forward": ruling.forward,
                "backward": ruling.backward,
                "consistent": ruling.consistent,
                "asked": ruling.asked,
                "tokens": sample["tokens"],
                "opponent_tokens": opponent["tokens"],
                "gold": sample["gold"],
                "opponent_gold": opponent["gold"],
            }


def pair(samples: Run, opponent: Run | None, prompts: int | None) -> Pairing:
    """Pair the rows of two finished evaluate runs, or those of one with the data's references.

    The k-th sample of a prompt meets the opponent's k-th. ``prompts`` are chosen by a hash.

    Raises:
        DataError: no prompt has both sides.
    """
    rows = samples.samples()
    groups = _groups(samples)
    ids = sorted({str(row["prompt_id"]) for row in rows})
    kept = ids if prompts is None else {ids[i] for i in spread(ids, prompts)}
    rows = [row for row in rows if str(row["prompt_id"]) in kept]
    other = _references(samples, groups, rows) if opponent is None else _rows_of(opponent)
    found = [(row, other.get(_place(row))) for row in rows]
    pairs = [(row, against) for row, against in found if against is not None]
    if not pairs:
        side = (
            "reference answers in its data" if opponent is None else f"prompts of {opponent.name}"
        )
        raise DataError(f"{samples.name}: none of its {len(rows)} samples meets one of the {side}.")
    return Pairing(
        matches=[_match(row, against, groups) for row, against in pairs],
        samples=[row for row, _ in pairs],
        opponents=[against for _, against in pairs],
        left_out=len(rows) - len(pairs),
    )


def _place(row: Row) -> tuple[str, int]:
    return str(row["prompt_id"]), int(row["sample"])


def _match(row: Row, against: Row, groups: Mapping[str, PromptGroup]) -> Match:
    group = groups.get(str(row["prompt_id"]))
    return Match(
        prompt=str(row["prompt"]),
        completion=str(row["completion"]),
        opponent=str(against["completion"]),
        # A judge that is shown the very answer it has to judge as the good one decides nothing.
        reference=None if group is None or against.get("is_reference") else reference_of(group),
        meta={} if group is None else group.meta,
    )


def _rows_of(run: Run) -> dict[tuple[str, int], Row]:
    return {_place(row): row for row in run.samples()}


def _groups(samples: Run) -> dict[str, PromptGroup]:
    """The prompts that were evaluated, read again: their reference answers and what is known."""
    config = json.loads((samples.path / "config.json").read_text(encoding="utf-8"))
    data = build(parse(config["data"], f"{samples.name}: data"))
    return {group.id: group for group in data.load(config["split"])[: config["prompts"]]}


def _references(
    samples: Run, groups: Mapping[str, PromptGroup], rows: Sequence[Row]
) -> dict[tuple[str, int], Row]:
    """Reference answers as rows, their length counted by the policy's own tokenizer."""
    from transformers import AutoTokenizer

    kind, _, key = str(samples.record["policy"]).partition("-")
    tokenizer = AutoTokenizer.from_pretrained(Store(samples.path.parent).run(kind, key).model_dir)
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        group = groups.get(str(row["prompt_id"]))
        text = reference_of(group) if group is not None else None
        if text is not None:
            tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1  # and its end
            found[_place(row)] = {
                "completion": text,
                "tokens": tokens,
                "gold": None,
                "is_reference": True,
            }
    return found
