"""Multiple choice by likelihood: which of the given answers a policy finds most probable."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from alignlab.annotations import Range
from alignlab.data.group import PromptGroup
from alignlab.data.rows.files import stream_rows
from alignlab.data.rows.fingerprint import content_of
from alignlab.data.rows.listing import files_of
from alignlab.errors import DataError, did_you_mean
from alignlab.evaluation.policy import Policy, bare
from alignlab.evaluation.task import Result, Row
from alignlab.rewards.reward import fingerprint

VERSION = 1


@dataclass(frozen=True)
class Question:
    """A question, its choices, and which of them is right."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """``acc``: the choice with the highest log-likelihood is right; ``acc_norm``: per character.

    Choice c of prompt x scores log π(delimiter + c | x), summed over its tokens; ``acc_norm``
    divides by the number of characters of c. The first of equals counts as chosen. ``brier`` is
    Σ_c (p_c − 1[c right])², p the softmax of the summed log-likelihoods over the choices.
    """

    path: str
    question: str  # field of the question
    choices: tuple[str, ...]  # field of the list of choices, or one field per choice
    answer: str  # field of the right choice: its index, its letter, or its text
    answer_from: Annotated[int, Range(min=0, max=1)]  # index of the first choice
    frame: str
    delimiter: str
    items: Annotated[int, Range(min=1)] | None

    def __post_init__(self) -> None:
        if "{question}" not in self.frame:
            raise DataError("frame must hold {question} where the question goes.")

    @property
    def tokens(self) -> int:
        """Unknown: texts have any length."""
        return 0

    def fingerprint(self) -> str:
        """Hash of the fields and of the file's bytes."""
        return fingerprint(self, VERSION, *(content_of(file) for file in files_of(self.path)))

    def questions(self) -> list[Question]:
        """Read the file.

        Raises:
            DataError: names row and field.
        """
        found = []
        for place, row in stream_rows(self.path):
            try:
                found.append(self._question(row))
            except DataError as error:
                raise DataError(f"{self.path}, {place}: {error}") from error
            if len(found) == self.items:
                break
        return found

    def _question(self, row: Mapping[str, Any]) -> Question:
        for field in (self.question, *self.choices, self.answer):
            if field not in row:
                raise DataError(f"no field '{field}'.{did_you_mean(field, row)}")
        texts, labels = choices_of(row, self.choices)
        if len(texts) < 2:
            raise DataError(f"a question needs two choices or more; it has {len(texts)}.")
        right = place_of(row[self.answer], texts, labels, self.answer_from)
        prompt = self.frame.replace("{question}", str(row[self.question]))
        known = json.dumps([prompt, texts], ensure_ascii=False)
        return Question(hashlib.sha256(known.encode()).hexdigest()[:16], prompt, texts, right)

    def run(self, policy: Policy) -> Result:
        """Score every choice of every question."""
        asked = self.questions()
        tokenization = policy.tokenization(None)
        groups = tokenization.groups(
            [
                PromptGroup(q.prompt, tuple(self.delimiter + c for c in q.choices), id=q.id)
                for q in asked
            ]
        )
        end = tokenization.tokenizer.eos_token_id
        scored = policy.score([bare(group, end) for group in groups])
        rows: list[Row] = []
        for question, scores in zip(asked, scored, strict=True):
            sums = [float(s.logps.sum()) for s in scores]
            rows += rows_of(question, sums)
        policy.usage.prompts += len(asked)
        return Result(rows, {"acc": "higher", "acc_norm": "higher", "brier": "lower"})


def rows_of(question: Question, sums: Sequence[float]) -> list[Row]:
    """Accuracy, length-normalised accuracy and Brier score from summed log-likelihoods."""
    import numpy as np

    found = np.asarray(sums)
    rate = found / np.array([max(1, len(c)) for c in question.choices])
    shares = np.exp(found - found.max())
    shares /= shares.sum()
    truth = np.arange(len(sums)) == question.answer
    chosen = int(found.argmax())
    return [
        Row("acc", question.id, float(chosen == question.answer),
            prompt=question.prompt, completion=question.choices[chosen]),
        Row("acc_norm", question.id, float(int(rate.argmax()) == question.answer)),
        Row("brier", question.id, float(((shares - truth) ** 2).sum())),
    ]  # fmt: skip


def choices_of(
    row: Mapping[str, Any], fields: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels of the choices: of a list, of ARC's {text, label}, or of several fields."""
    if len(fields) > 1:
        return tuple(str(row[field]) for field in fields), ()
    value = row[fields[0]]
    if isinstance(value, Mapping) and "text" in value:
        return tuple(map(str, value["text"])), tuple(map(str, value.get("label", ())))
    if isinstance(value, list):
        return tuple(map(str, value)), ()
    raise DataError(f"'{fields[0]}' must be a list of choices.")


def place_of(
    answer: Any, texts: Sequence[str], labels: Sequence[str], answer_from: int
) -> int:  # fmt: skip
    """Index of the right choice, from its index, its label or letter, or its text."""
    said = str(answer).strip()
    if said in labels:
        return list(labels).index(said)
    if said in texts:
        return list(texts).index(said)
    if said.lstrip("-").isdigit() and 0 <= int(said) - answer_from < len(texts):
        return int(said) - answer_from
    if len(said) == 1 and said.upper() in string.ascii_uppercase[: len(texts)]:
        return string.ascii_uppercase.index(said.upper())
    raise DataError(
        f"the answer {answer!r} is neither an index from {answer_from}, a letter, nor the text of"
        f" one of the {len(texts)} choices."
    )
