"""The tensor types that pass between rooms: frozen dataclasses with named axes.

Axis letters, used in every docstring of the package:

====  =======================================================================
``T`` tokens of one flat micro-batch, without padding
``N`` *targets*: completion tokens of the micro-batch (each predicted once; masked ones are none)
``C`` completions of the micro-batch
``G`` prompt groups of the micro-batch
``P`` ordered pairs (better, worse)
``B`` examples of an objective (pairs, or single completions)
``V`` vocabulary, ``H`` hidden size
====  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class GroupSpan:
    """Where one prompt group lies in the flat sequence: half-open index ranges."""

    prompt: tuple[int, int]
    completions: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FlatBatch:
    """One micro-batch of prompt groups as a single padding-free token sequence.

    The sequence is ``prompt₁ c₁₁ c₁₂ … prompt₂ c₂₁ …``. Position ids of every completion continue
    from the end of its prompt, and a completion sees its prompt and itself, never a sibling.
    A target's *predictor* is the position whose output predicts it; for the first token of every
    completion that is the last token of the (shared) prompt.
    """

    input_ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64
    predictor_index: Tensor  # (N,) int64, index into T of the position that predicts target n
    target_ids: Tensor  # (N,) int64, the token to predict
    target_completion: Tensor  # (N,) int64, completion that target n belongs to
    end_index: Tensor  # (C,) int64, index into T of the last token of each completion
    lengths: Tensor  # (C,) int64, targets: completion tokens, EOS included, masked ones left out
    completion_group: Tensor  # (C,) int64, group of each completion
    rows: Tensor  # (G,) int64, data row of each group
    spans: tuple[GroupSpan, ...]  # (G,) host-side layout, what the attention plan is made from
    images: tuple[Any, ...] = ()  # references to the images of all prompts, in order; no pixels

    def to(self, device: torch.device | str) -> Self:
        """Copy of the batch with every tensor on ``device``."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in moved.items()}
        return replace(self, **moved)

    @property
    def completions(self) -> int:
        """C, the number of completions."""
        return len(self.end_index)

    @property
    def tokens(self) -> int:
        """T, the number of tokens that pass through the model."""
        return len(self.input_ids)


@dataclass(frozen=True)
class PairLogps:
    """Summed completion log-probabilities (nats) of B preference pairs."""

    chosen: Tensor  # (B,)
    rejected: Tensor  # (B,)
    chosen_length: Tensor  # (B,) completion tokens, EOS included
    rejected_length: Tensor  # (B,)


@dataclass(frozen=True)
class SingleLogps:
    """Summed completion log-probabilities (nats) of B single completions with a thumb each."""

    completion: Tensor  # (B,)
    length: Tensor  # (B,)
    desirable: Tensor  # (B,) bool


@dataclass(frozen=True)
class GroupLogps:
    """Summed log-probabilities (nats) of all completions of G prompts, and what is known of them.

    Every prompt has at least one ordered pair; the completions of a prompt stand together.
    """

    completion: Tensor  # (C,)
    length: Tensor  # (C,) completion tokens, EOS included
    utility: Tensor  # (C,) the verdict as numbers, higher is better: scores, thumbs, minus ranks
    group: Tensor  # (C,) int64, prompt of each completion
    better: Tensor  # (P,) int64, index into C of the preferred completion
    worse: Tensor  # (P,) int64
    pair_group: Tensor  # (P,) int64, prompt of each pair
    groups: int  # G


@dataclass(frozen=True)
class GroupScores:
    """Scalar rewards of the completions of G prompts, and the ordered pairs among them."""

    reward: Tensor  # (C,)
    better: Tensor  # (P,) int64, index into C of the preferred completion
    worse: Tensor  # (P,) int64
    pair_group: Tensor  # (P,) int64, group of each pair
    groups: int  # G
    margin: Tensor | None = None  # (P,) stated strength of preference, in reward units


@dataclass(frozen=True)
class TargetScores:
    """Scalar rewards of the completions of G prompts, and the scores that they were given."""

    reward: Tensor  # (C,)
    target: Tensor  # (C,) scores on a scale of their own, or 1 and 0 for thumbs
    group: Tensor  # (C,) int64, prompt of each completion
    groups: int  # G


@dataclass(frozen=True)
class TargetShares(TargetScores):
    """The same where every given score is a probability, or a thumb: all are in [0, 1]."""


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities (nats) of N sampled tokens under three policies."""

    new: Tensor  # (N,) the policy being trained
    old: Tensor  # (N,) the policy that sampled
    reference: Tensor | None = None  # (N,) the frozen reference, where a KL term needs it
