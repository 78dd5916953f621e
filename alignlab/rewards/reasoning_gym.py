"""reasoning-gym's own scoring of an answer, for prompts of the data source of that name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from alignlab.data.sources.reasoning_gym import PACKAGE, dataset
from alignlab.errors import DataError
from alignlab.rewards.reward import Meta, Texts, fingerprint

_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ReasoningGymScore:
    """The task's score of the answer that a completion gives, in [0, 1].

    ``read`` says where the answer stands: ``whole`` completion, its ``last_line``, or ``tagged``
    with <answer>…</answer> (the last pair; without one the answer is wrong).
    """

    read: Literal["whole", "last_line", "tagged"]

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "reasoning_gym"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion, float32 (R,).

        Raises:
            DataError: a prompt that is not from data=reasoning_gym.
        """
        scores = [self._one(text, known) for text, known in zip(completions, meta, strict=True)]
        return np.array(scores, dtype=np.float32)

    def _one(self, completion: str, known: Mapping[str, Any]) -> float:
        place = known.get("gym")
        if place is None:
            raise DataError(
                "The reward reasoning_gym scores prompts of data=reasoning_gym, and the data have "
                f"no field 'gym' (fields: {', '.join(sorted(known)) or 'none'})."
            )
        made = dataset(place["task"], place["options"], place["seed"], place["size"])
        answer = answer_of(completion, self.read)
        return float(made.score_answer(answer, made[place["index"]]))

    def fingerprint(self) -> str:
        """Hash of the fields and the package's version."""
        return fingerprint(self, 1, version(PACKAGE))


def answer_of(completion: str, read: str) -> str | None:
    """The answer that a completion gives; None where it gives none."""
    if read == "tagged":
        found = _TAGGED.findall(completion)
        return found[-1].strip() if found else None
    lines = completion.strip().splitlines()
    if read == "last_line":
        return lines[-1].strip() if lines else None
    return completion.strip()
