"""What a reward is: a number for every (prompt, completion), made in one call for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from alignlab.data.call_text import spelt
from alignlab.data.group import PromptGroup
from alignlab.data.thinking import split
from alignlab.run import content_key
from alignlab.spec import Spec, build

Texts = Sequence[str]
Meta = Sequence[Mapping[str, Any]]  # what the data knows about each prompt
# These score by what their fields name but do not state: a model's files, which may be replaced.
BY_FILES = (
    "alignlab.rewards.checkpoint.SequenceClassifier",
    "alignlab.rewards.judge.annotator.JudgeAnnotator",
    "alignlab.rewards.judge.reward.JudgeReward",
)


class Reward(Protocol):
    """Scores completions, higher is better; training reward and gold are two such objects."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score R completions: float32 (R,); ``meta[r]`` is what the data knows about prompt r."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the scores: code version, fields, data."""
        ...


def fingerprint(reward: Any, version: int, *data: str) -> str:
    """Fingerprint of a reward that is a dataclass: its class, version, fields and data hashes."""
    kind = f"{type(reward).__module__}.{type(reward).__qualname__}"
    return content_key([kind, version, reward, list(data)])


def outside(spec: Any) -> list[str]:
    """Fingerprints of the judges and checkpoints inside a configuration, which no field states."""
    if isinstance(spec, Spec):
        if spec.target in BY_FILES:
            return [build(spec).fingerprint()]
        return [f for value in spec.arguments.values() for f in outside(value)]
    if isinstance(spec, Mapping):
        return [f for value in spec.values() for f in outside(value)]
    return outside(spec.annotator) if hasattr(spec, "annotator") else []


def prompt_text(group: PromptGroup) -> str:
    """Prompt as plain text: itself, or the contents of its messages, one per line.

    Of a conversation in which the assistant has spoken, every turn is named by who said it, calls
    are JSON, and thoughts are left out.
    """
    prompt = group.prompt
    if isinstance(prompt, str):
        return prompt
    if all(message["role"] in ("system", "user") for message in prompt):
        return "\n".join(message["content"] for message in prompt)
    said = (f"{m['role'].capitalize()}: {split(spelt(m)).answer.strip()}" for m in prompt)
    return "\n\n".join(said)


def known_of(group: PromptGroup) -> Mapping[str, Any]:
    """What a reward is told of a prompt: its meta, its tools, and the calls of its own answer.

    ``tools`` and ``calls`` are there where the group has tools, or an answer that calls some. The
    calls are those of the first turn of the answer, which is what a policy is sampled for; a prompt
    with tools and no answer has none to compare with.
    """
    shown = group.demonstration() if group.verdict else None
    answer = shown.completions[0] if shown is not None else ()
    first = answer[0] if answer and not isinstance(answer, str) else {}
    calls = [call["function"] for call in first.get("tool_calls") or ()]
    if not group.tools and not calls:
        return group.meta
    own = {"calls": calls} if first else {}  # a field of the data with that name says more
    return {**own, **group.meta, **({"tools": list(group.tools)} if group.tools else {})}
