"""What a reward is: a number for every (prompt, completion), made in one call for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from alignlab.data.group import PromptGroup
from alignlab.run import content_key


class Reward(Protocol):
    """Scores completions, higher is better; training reward and gold are two such objects."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        meta: Sequence[Mapping[str, Any]],
    ) -> np.ndarray:
        """Score R completions: float32 (R,); ``meta[r]`` is what the data knows about prompt r."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the scores: code version, fields, data."""
        ...


def fingerprint(reward: Any, version: int, *data: str) -> str:
    """Fingerprint of a reward that is a dataclass: its class, version, fields and data hashes."""
    kind = f"{type(reward).__module__}.{type(reward).__qualname__}"
    return content_key([kind, version, reward, list(data)])


def prompt_text(group: PromptGroup) -> str:
    """Prompt as plain text: itself, or the contents of its messages, one per line."""
    prompt = group.prompt
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
