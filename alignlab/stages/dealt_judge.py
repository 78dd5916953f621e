"""A judge that is a model, asked by the main process and answered by all processes of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alignlab.engine.stopping import together

if TYPE_CHECKING:
    from alignlab.engine.distributed import Workers
    from alignlab.rewards.judge.judge import Heard, Judge, Question, Reply

SHARE = 64  # questions of a process between two replies that are kept


class DealtJudge:
    """Stands in for ``judge`` on the main process; the others `follow`."""

    def __init__(self, judge: Judge, workers: Workers) -> None:
        self._judge, self._workers = judge, workers
        self.name, self.deterministic = judge.name, judge.deterministic
        self.balanced, self.remembered = judge.balanced, judge.remembered

    def fingerprint(self) -> str:
        """That of the judge: who computes changes no reply."""
        return self._judge.fingerprint()

    def answer(self, questions: Sequence[Question], heard: Heard) -> None:
        """Reply to the questions, some from every process at a time."""
        size = SHARE * self._workers.world
        for start in range(0, len(questions), size):
            part = list(questions[start : start + size])
            self._workers.from_main(part)
            for index, reply in enumerate(self._replies(part), start):
                heard(index, reply)

    def follow(self) -> None:
        """Answer this process's share of whatever the main one is asked, until it says no more."""
        nothing: list[Question] = []
        while (part := self._workers.from_main(nothing)) is not None:
            self._replies(part)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Let the others follow as long as the main process asks something inside."""
        yield
        self._workers.from_main(None)

    def _replies(self, questions: Sequence[Question]) -> list[Reply]:
        mine = self._workers.share(questions)

        def here() -> list[Reply]:
            replies: dict[int, Reply] = {}
            self._judge.answer(mine, replies.__setitem__)
            return [replies[i] for i in range(len(mine))]

        return self._workers.whole(together(self._workers, here))
