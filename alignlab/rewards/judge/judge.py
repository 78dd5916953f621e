"""What a judge is: asked which of two answers to one prompt is better, it names a side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from alignlab.errors import AlignlabError

Side = Literal["first", "second", "tie", "none"]  # none = no verdict could be read


class JudgeError(AlignlabError):
    """A judge that cannot go on: out of budget, refused, or never understood."""


@dataclass(frozen=True)
class Question:
    """Two answers to one prompt, in the order in which the judge sees them."""

    prompt: str
    first: str
    second: str
    reference: str | None = None  # what the data give as the answer, for judges that are shown it
    meta: Mapping[str, Any] = field(default_factory=dict)  # what the data know about the prompt
    repeat: int = 0  # asked so many times before; a remembered reply is to the same repeat


@dataclass(frozen=True)
class Reply:
    """The judge's answer to one question, and what it cost."""

    side: Side
    said: str = ""  # the judge's own words or numbers
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0  # None = the price is not known
    calls: int = 0  # requests that were answered


Heard = Callable[[int, Reply], None]  # index of a question and its reply; any thread may call it


class Judge(Protocol):
    """Compares two answers in one order; who asks in both orders is `rulings.rule`."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether the same question always gets the same reply."""
        ...

    @property
    def balanced(self) -> bool:
        """Whether both orders of a match agree by construction, so that it proves nothing."""
        ...

    @property
    def remembered(self) -> bool:
        """Whether replies are dear enough to be kept on disk."""
        ...

    def answer(self, questions: Sequence[Question], heard: Heard) -> None:
        """Reply to every question; ``heard`` gets each reply as soon as there is one.

        Raises:
            JudgeError: the judge cannot go on; what was heard until then stands.
        """
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the replies: model, prompt, code version."""
        ...


def judge_fingerprint(judge: Any, version: int, *parts: Any) -> str:
    """Name a judge by its class, the version of its code and what its replies depend on."""
    from alignlab.run import content_key

    return content_key([type(judge).__qualname__, version, *parts])
