"""What a judge of words is told: a text with places for the prompt and the two answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from alignlab.errors import ConfigError
from alignlab.rewards.judge.judge import Question, Side

SIDES: tuple[Side, ...] = ("first", "second", "tie")
PLACES = ("prompt", "first", "second", "reference")
_PLACE = re.compile(r"\{([a-z_]+)\}")
_ROUND = r"[\s\"'`*_(\[<]*", r"[\s\"'`*_)\]>.:]*"  # what may stand around a label


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """The words of a judge's task, with the labels that it answers with.

    Places in braces are filled in one pass, so that braces inside an answer stay what they are.
    """

    name: str  # short name for tables
    version: str  # of the words; part of the judge's fingerprint, as the words are
    system: str | None  # system message; null = none
    text: str  # with {prompt}, {first} and {second}, and {reference} where a reference may stand
    reference: str | None  # what {reference} becomes where the data give a reference; null = never
    cue: str  # last line for a model without a chat template; the label follows it
    first: str  # label of the first answer
    second: str  # label of the second answer
    tie: str | None  # label of a tie; null = the judge has to choose

    def __post_init__(self) -> None:
        used = set(_PLACE.findall(self.text))
        lacking = [place for place in PLACES[:3] if place not in used]
        if lacking:
            raise ConfigError(f"prompt.text lacks the place {{{lacking[0]}}}.")
        if unknown := sorted(used - set(PLACES)):
            raise ConfigError(
                f"prompt.text has an unknown place {{{unknown[0]}}}; known are "
                + ", ".join(f"{{{place}}}" for place in PLACES)
                + "."
            )
        if self.reference is not None and not {"reference"} & used:
            raise ConfigError("prompt.reference is given, but prompt.text has no {reference}.")
        if self.reference is not None and "{reference}" not in self.reference:
            raise ConfigError("prompt.reference lacks the place {reference}.")
        if len({label.casefold() for label in self.labels}) < len(self.labels):
            raise ConfigError(f"prompt: the labels must differ, not {', '.join(self.labels)}.")
        if not all(re.fullmatch(r"\w+", label) for label in self.labels):
            raise ConfigError(f"prompt: a label must be one word, not {', '.join(self.labels)}.")

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the first answer, of the second one and, where there is one, of a tie."""
        return (self.first, self.second) + ((self.tie,) if self.tie is not None else ())

    @property
    def sides(self) -> dict[str, Side]:
        """Label → side."""
        return dict(zip(self.labels, SIDES, strict=False))

    def render(self, question: Question) -> str:
        """Write the task for one question."""
        reference = ""
        if self.reference is not None and question.reference is not None:
            reference = _fill(self.reference, {"reference": question.reference})
        values = {
            "prompt": question.prompt,
            "first": question.first,
            "second": question.second,
            "reference": reference,
        }
        return _fill(self.text, values)

    def plain(self, question: Question) -> str:
        """Write the task as one text that the label continues, for a model without a template."""
        parts = [self.system, self.render(question).rstrip(), self.cue]
        return "\n\n".join(part for part in parts if part)

    def read(self, reply: str) -> Side | None:
        """Read the side from a reply that is one label and nothing else; None when it is not.

        Quotes, brackets, emphasis and a full stop around the label are let pass, case is not.
        """
        for label, side in self.sides.items():
            if re.fullmatch(_ROUND[0] + re.escape(label) + _ROUND[1], reply):
                return side
        return None


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: values.get(match[1], match[0]), text)
