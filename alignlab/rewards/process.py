"""A reward for how an answer is reached: each of its steps is scored, and the scores combined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from alignlab.errors import ConfigError
from alignlab.rewards.reward import Meta, Reward, Texts, fingerprint
from alignlab.spec import Spec, build


@dataclass(frozen=True, kw_only=True)
class ProcessReward:
    """Combines the probabilities p_i = σ(r(x, y_≤i)) that the steps of a completion are right.

    ``product``: Π p_i, that no step is wrong (Lightman et al. 2023, 2305.20050). ``min``: the
    weakest step (there, and Math-Shepherd, Wang et al. 2023, 2312.08935). ``mean`` and
    ``last``, for comparison: a longer solution lowers a product by itself.

    ``reward`` gives a logit to the completion up to the end of step i: a reward run that was
    trained on rows of the format ``steps`` with objective ``cross_entropy`` and ``normalize:
    false``. It reads a solution of n steps in n prefixes. A completion without text is one step.
    """

    reads_thinking: ClassVar[bool] = True  # steps are mostly those of a thought

    reward: Spec
    separator: str  # what stands between two steps, as in the training rows
    combine: Literal["product", "min", "mean", "last"]

    def __post_init__(self) -> None:
        if not self.separator:
            raise ConfigError("separator is empty; steps are told apart by some text.")

    @cached_property
    def _inner(self) -> Reward:
        made: Reward = build(self.reward)
        return made

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{self.combine} of steps by {self._inner.name}"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion in [0, 1], float32 (R,)."""
        steps = [prefixes(completion, self.separator) for completion in completions]
        owner = [i for i, found in enumerate(steps) for _ in found]
        logits = self._inner.score(
            [prompts[i] for i in owner],
            [prefix for found in steps for prefix in found],
            [meta[i] for i in owner],
        )
        # σ(x) = e^(−log(1 + e^(−x))), in logarithms so that a product of many steps stays exact.
        logs = -np.logaddexp(0.0, -logits.astype(np.float64))
        ends = np.cumsum([len(found) for found in steps])
        parts = np.split(logs, ends[:-1]) if steps else []
        return np.array([self._combined(part) for part in parts], dtype=np.float32)

    def _combined(self, logs: np.ndarray) -> float:
        if self.combine == "product":
            return float(np.exp(logs.sum()))
        if self.combine == "min":
            return float(np.exp(logs.min()))
        return float(np.exp(logs).mean() if self.combine == "mean" else np.exp(logs[-1]))

    def fingerprint(self) -> str:
        """Hash of the fields and of the inner reward's own fingerprint."""
        return fingerprint(self, 1, self._inner.fingerprint())


def prefixes(completion: str, separator: str) -> list[str]:
    """The completion up to the end of each of its steps; empty steps are none."""
    found: list[str] = []
    steps = completion.split(separator)
    for end, step in enumerate(steps, start=1):
        if step.strip():
            found.append(separator.join(steps[:end]))
    return found or [completion]
