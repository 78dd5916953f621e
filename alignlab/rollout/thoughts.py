"""How long the thoughts of sampled completions are, and which were cut off by the length limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.data.thinking import CLOSE, opened, split

if TYPE_CHECKING:
    import numpy as np

    from alignlab.data.template import Tokenization
    from alignlab.rollout.rollout import Rollout


@dataclass(frozen=True)
class Thought:
    """The thought of one completion."""

    text: str | None  # None: it has none
    tokens: int  # up to the end of its closing tag; all of the completion where it was cut off
    closed: bool

    def columns(self) -> dict[str, object]:
        """What a row of samples says of it; nothing where there is none."""
        if self.text is None:
            return {}
        cut = not self.closed
        return {"thinking": self.text, "thinking_tokens": self.tokens, "thinking_cut": cut}


def thoughts_of(rollout: Rollout, tokenization: Tokenization) -> list[Thought]:
    """Return the thought of every completion (C,), in the rollout's order."""
    found = []
    for group, prompt, texts in zip(
        rollout.groups, rollout.prompts, rollout.completions, strict=True
    ):
        begun = opened(prompt)
        for ids, text in zip(group.completions, texts, strict=True):
            said = split(text, begun=begun)
            if said.thought is None:
                found.append(Thought(None, 0, True))
                continue
            count = tokens_until(text.count(CLOSE), ids, tokenization) if said.closed else len(ids)
            found.append(Thought(said.thought, count, said.closed))
    return found


def tokens_until(count: int, ids: np.ndarray, tokenization: Tokenization) -> int:
    """Fewest tokens of a completion whose text has the closing tag ``count`` times."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        enough = tokenization.decode(ids[:middle]).count(CLOSE) >= count
        low, high = (low, middle) if enough else (middle + 1, high)
    return low
