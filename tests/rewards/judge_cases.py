"""Judges whose taste is known, and small prompts to ask them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from alignlab.rewards.judge.judge import Heard, Question, Reply
from alignlab.rewards.judge.prompts import JudgePrompt

PROMPT: dict[str, Any] = {
    "name": "short",
    "version": "1",
    "system": None,
    "text": "Q {prompt}\n{reference}A: {first}\nB: {second}\nOne letter.",
    "reference": "R: {reference}\n",
    "cue": "Letter:",
    "first": "A",
    "second": "B",
    "tie": "C",
}


def prompt(**changes: Any) -> JudgePrompt:
    return JudgePrompt(**{**PROMPT, **changes})


class Taste:
    """A judge that is a function of the question; counts what it is asked."""

    def __init__(
        self,
        side: Callable[[Question], str],
        *,
        deterministic: bool = True,
        remembered: bool = True,
        name: str = "taste",
    ) -> None:
        self.side, self.name = side, name
        self.deterministic, self.remembered = deterministic, remembered
        self.balanced = False
        self.asked: list[Question] = []

    def answer(self, questions: Sequence[Question], heard: Heard) -> None:
        for index, question in enumerate(questions):
            self.asked.append(question)
            heard(index, Reply(self.side(question), "said", 10, 1, 0.5, 1))

    def fingerprint(self) -> str:
        return self.name


def longer(question: Question) -> str:
    lead = len(question.first) - len(question.second)
    return "tie" if lead == 0 else "first" if lead > 0 else "second"


def always_first(question: Question) -> str:
    return "first"
