"""What a stage computes with: one active view of the backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignlab.models.attention_plan import attention_plan
from alignlab.models.layout import Layout, hidden_states, window_of
from alignlab.models.logps import Head, head_of, token_logps, token_logps_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.heads import ScalarHead
    from alignlab.tensors import FlatBatch


@dataclass(frozen=True)
class Features:
    """Last hidden states of a flat batch at the places that anything is read from."""

    at_targets: Tensor  # (N, H) at each target's predictor position
    at_ends: Tensor  # (C, H) at the last token of each completion


class View:
    """An active view; every method takes a `FlatBatch` on the backbone's device.

    Matrix products run in ``dtype``; log-probabilities, scores and values come out in fp32.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        head: ScalarHead | None,
        *,
        layout: Layout,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.model = model  # for cached decoding; its calls run in the backbone's number format
        self._head = head
        self._layout: Layout = layout
        self._dtype = dtype

    def features(self, batch: FlatBatch) -> Features:
        """Hidden states at targets and ends, from one forward pass."""
        hidden = self._hidden(batch)
        return Features(
            at_targets=hidden.index_select(0, batch.predictor_index),
            at_ends=hidden.index_select(0, batch.end_index),
        )

    def logps(self, batch: FlatBatch, *, temperature: float = 1.0) -> Tensor:
        """Log-probability (nats) of every target ``(N,)``, at a sampling temperature."""
        hidden = self._hidden(batch).index_select(0, batch.predictor_index)
        with self._arithmetic():
            return token_logps(hidden, self.lm_head, batch.target_ids, temperature=temperature)

    def logps_entropy(self, batch: FlatBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`logps`, and the entropy (nats) of each predictive distribution without gradient."""
        hidden = self._hidden(batch).index_select(0, batch.predictor_index)
        with self._arithmetic():
            return token_logps_entropy(
                hidden, self.lm_head, batch.target_ids, temperature=temperature
            )

    def scores(self, batch: FlatBatch) -> Tensor:
        """Normalised scalar of every completion ``(C,)``, read at its last token."""
        return self.scalar_head(self._hidden(batch).index_select(0, batch.end_index))

    def values(self, batch: FlatBatch) -> Tensor:
        """Normalised scalar of every target ``(N,)``, read where the target is predicted."""
        return self.scalar_head(self._hidden(batch).index_select(0, batch.predictor_index))

    @property
    def lm_head(self) -> Head:
        """The language-model head."""
        return head_of(self.model)

    @property
    def scalar_head(self) -> ScalarHead:
        """The scalar head; raises ValueError on a view without one."""
        if self._head is None:
            raise ValueError(f"The view {self.name!r} has no scalar head; add it with head=True.")
        return self._head

    def _hidden(self, batch: FlatBatch) -> Tensor:
        with self._arithmetic():
            return hidden_states(self.model, batch, self._layout_of(batch))

    def _layout_of(self, batch: FlatBatch) -> Layout:
        window = window_of(self.model.config)
        if self._layout == "grouped" and window is not None:
            longest = attention_plan(batch.spans, batch.input_ids.device).longest
            return "grouped" if longest <= window else "padded"
        return self._layout

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        # A cast that autocast remembers from a pass without gradients has no way back to the
        # weight (pytorch issue 48049), so passes with gradients neither read nor fill that memory.
        with autocast(self.model.device, self._dtype, remember=not torch.is_grad_enabled()):
            yield


def autocast(
    device: torch.device | str, dtype: torch.dtype, *, remember: bool = True
) -> torch.autocast:
    """Matrix products in ``dtype``; float32 means as the weights are."""
    kind = torch.device(device).type
    reduced = dtype != torch.float32
    return torch.autocast(
        kind, dtype=dtype if reduced else None, enabled=reduced, cache_enabled=remember
    )
