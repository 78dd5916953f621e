"""Asking a judge: from memory where it has answered before, and every reply kept as it comes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from alignlab.rewards.judge.judge import Judge, Question, Reply
from alignlab.rewards.judge.memory import Memory, question_key

FOLDER = "judgements"


class Asker:
    """Asks one judge, remembers its replies in ``cache`` and counts what they cost.

    Replies without a verdict are not remembered: the next session asks again.
    """

    def __init__(self, judge: Judge, cache: Path) -> None:
        self.judge = judge
        self._memory = Memory(cache / FOLDER / judge.fingerprint()) if judge.remembered else None
        self._lock = threading.Lock()
        self.questions = self.hits = self.calls = self.no_verdict = 0
        self.tokens_in = self.tokens_out = 0
        self.usd: float | None = 0.0

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Replies in the order of the questions; equal questions are asked once.

        Raises:
            JudgeError: the judge cannot go on; the replies until then are remembered.
        """
        if self._memory is None:
            found: dict[int, Reply] = {}
            self.judge.answer(questions, lambda i, reply: found.__setitem__(i, self._note(reply)))
            self.questions += len(questions)
            return [found[i] for i in range(len(questions))]
        memory = self._memory
        memory.refresh()
        keys = [question_key(question) for question in questions]
        replies = {key: reply for key in keys if (reply := memory.find(key)) is not None}
        places = {key: i for i, key in reversed(list(enumerate(keys))) if key not in replies}
        asked = sorted(places.values())
        self.hits += len(questions) - len(asked)
        self.questions += len(questions)

        def heard(index: int, reply: Reply) -> None:
            key = keys[asked[index]]
            with self._lock:
                replies[key] = self._note(reply)
                if reply.side != "none":
                    memory.keep(key, reply)

        if asked:
            self.judge.answer([questions[i] for i in asked], heard)
        return [replies[key] for key in keys]

    def _note(self, reply: Reply) -> Reply:
        self.calls += reply.calls
        self.no_verdict += reply.side == "none"
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        unknown = self.usd is None or reply.usd is None
        self.usd = None if unknown else self.usd + reply.usd  # type: ignore[operator]
        return reply

    def spent(self) -> dict[str, float | None]:
        """What was asked so far, as a run record has it."""
        return {
            "questions": self.questions,
            "cache_hits": self.hits,
            "calls": self.calls,
            "unreadable": self.no_verdict,
            "judge_tokens_in": self.tokens_in,
            "judge_tokens_out": self.tokens_out,
            "cost_usd": self.usd,
        }
