"""Rulings on pairs of completions: both orders are asked, and a win needs both to agree."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.judge import Question, Side

Outcome = Literal["win", "tie", "loss", "none"]  # for the completion; none = no verdict

FORWARD: dict[Side, Outcome] = {"first": "win", "second": "loss", "tie": "tie", "none": "none"}
BACKWARD: dict[Side, Outcome] = {"first": "loss", "second": "win", "tie": "tie", "none": "none"}


@dataclass(frozen=True)
class Match:
    """A completion and its opponent, both answers to one prompt."""

    prompt: str
    completion: str
    opponent: str
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def orders(self, repeat: int = 0) -> tuple[Question, Question]:
        """Both questions: the completion first, then the opponent first."""

        def question(first: str, second: str) -> Question:
            return Question(self.prompt, first, second, self.reference, self.meta, repeat)

        return (
            question(self.completion, self.opponent),
            question(self.opponent, self.completion),
        )


@dataclass(frozen=True)
class Ruling:
    """What came of a match; ``asked`` is false for two equal texts, which tie unasked."""

    forward: Outcome  # with the completion shown first
    backward: Outcome  # with the opponent shown first
    asked: bool = True

    @property
    def consistent(self) -> bool:
        """Whether both orders gave the same verdict."""
        return self.forward == self.backward != "none"

    @property
    def win(self) -> float | None:
        """1 or 0 where both orders agree on the winner, else 0.5; None without both verdicts."""
        if "none" in (self.forward, self.backward):
            return None
        if not self.consistent:
            return 0.5
        return {"win": 1.0, "tie": 0.5, "loss": 0.0}[self.forward]

    @property
    def mean(self) -> float | None:
        """Mean over the orders that have a verdict of 1 for a win, 0.5 for a tie; None without."""
        value = {"win": 1.0, "tie": 0.5, "loss": 0.0}
        said = [value[side] for side in (self.forward, self.backward) if side in value]
        return sum(said) / len(said) if said else None


EQUAL = Ruling("tie", "tie", asked=False)


def rule(asker: Asker, matches: Sequence[Match], repeat: int = 0) -> list[Ruling]:
    """Have every match judged in both orders."""
    open_ones = [i for i, match in enumerate(matches) if match.completion != match.opponent]
    questions = [question for i in open_ones for question in matches[i].orders(repeat)]
    replies = iter(asker.ask(questions))
    rulings = [EQUAL] * len(matches)
    for i in open_ones:
        forward, backward = next(replies), next(replies)
        rulings[i] = Ruling(FORWARD[forward.side], BACKWARD[backward.side])
    return rulings


def consistency(rulings: Sequence[Ruling]) -> float | None:
    """Share of the matches with two verdicts in which they agree; equal texts do not count."""
    both = [r for r in rulings if r.asked and r.win is not None]
    return sum(r.consistent for r in both) / len(both) if both else None


def spread(ids: Sequence[str], count: int) -> list[int]:
    """Indices of ``count`` items chosen by a hash of their ids: the same ones in every study."""
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    return sorted(order[:count])


def repeated(asker: Asker, matches: Sequence[Match]) -> float | None:
    """Ask the same matches a second time; share of questions with the same reply as before.

    None where no question has two verdicts. A deterministic judge is not asked: 1.
    """
    if asker.judge.deterministic:
        return 1.0
    kept = [match for match in matches if match.completion != match.opponent]
    before = asker.ask([question for match in kept for question in match.orders()])
    again = asker.ask([question for match in kept for question in match.orders(repeat=1)])
    pairs = [(a.side, b.side) for a, b in zip(before, again, strict=True)]
    said = [(a, b) for a, b in pairs if "none" not in (a, b)]
    return sum(a == b for a, b in said) / len(said) if said else None


def verbose(text: str) -> str:
    """Return the text followed by itself: longer, and not a bit better."""
    return f"{text.rstrip()} {text.lstrip()}"


def sentinels(asker: Asker, matches: Sequence[Match]) -> dict[str, Any]:
    """Ask what has only one right answer, on the completions of ``matches``.

    *identical*: the same text twice must tie; ``first`` and ``second`` are the shares of replies
    that name a side all the same, so their difference is the judge's position bias with nothing to
    judge. *verbose*: a text against itself said twice, which must not win; shares over both orders.
    """
    texts = [match for match in matches if match.completion.strip()]
    same = [
        Question(m.prompt, m.completion, m.completion, reference=m.reference, meta=m.meta)
        for m in texts
    ]
    sides = [reply.side for reply in asker.ask(same)]
    copies = [replace(m, completion=verbose(m.completion), opponent=m.completion) for m in texts]
    wins = [ruling.win for ruling in rule(asker, copies)]
    return {
        "asked": len(texts),
        "identical": {side: _share(sides, side) for side in ("tie", "first", "second", "none")},
        "verbose": {
            "wins": _share(wins, 1.0),
            "ties": _share(wins, 0.5),
            "losses": _share(wins, 0.0),
        },
    }


def _share(values: Sequence[Any], wanted: Any) -> float | None:
    return sum(value == wanted for value in values) / len(values) if values else None
