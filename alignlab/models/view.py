"""What a stage computes with: one active view of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from alignlab.models.attention_plan import attention_plan
from alignlab.models.auto import encodes
from alignlab.models.encoder_rows import pooled_states
from alignlab.models.kept_prompts import KeptPrompts, states_behind
from alignlab.models.layout import Layout, hidden_states, window_of
from alignlab.models.logps import Head, head_of
from alignlab.models.smoothing import predict
from alignlab.models.virtual_tokens import lead_of
from alignlab.models.vision import unreached
from alignlab.tensors import FlatBatch, GroupSpan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.heads import ScalarHead
    from alignlab.models.noise import EmbeddingNoise
    from alignlab.models.sharding import Sharding

T = TypeVar("T")


@dataclass(frozen=True)
class Features:
    """Last hidden states of a flat batch at the places that anything is read from."""

    at_targets: Tensor  # (N, H) at each target's predictor position
    at_ends: Tensor  # (C, H) at the last token of each completion


class View:
    """An active view; every method takes a `FlatBatch` on the backbone's device.

    Matrix products run in ``dtype``; log-probabilities, scores and values come out in fp32.
    With a ``sharding``, passes run inside of the engine that holds the weights.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        head: ScalarHead | None,
        layout: Layout,
        dtype: torch.dtype,
        sharding: Sharding | None = None,
    ) -> None:
        self.name = name
        self.model = model  # for cached decoding; its calls run in the backbone's number format
        self._head = head
        self._layout: Layout = layout
        self._dtype = dtype
        self._within = sharding.run if sharding else None
        self._predictor = sharding.predictors.get(name) if sharding else None

    def features(self, batch: FlatBatch) -> Features:
        """Hidden states at targets and ends, from one forward pass."""
        ends, targets = batch.end_index, batch.predictor_index
        at_targets, at_ends = self._pass(
            batch, lambda hidden: (hidden.index_select(0, targets), hidden.index_select(0, ends))
        )
        return Features(at_targets=at_targets, at_ends=at_ends)

    def logps(
        self,
        batch: FlatBatch,
        *,
        temperature: float = 1.0,
        noise: EmbeddingNoise | None = None,
        keep: KeptPrompts | None = None,
    ) -> Tensor:
        """Log-probability (nats) of every target ``(N,)``, at a sampling temperature.

        ``noise`` disturbs the embeddings of this pass; ``keep`` is left its prompts, if they fit.
        """

        def read(hidden: Tensor) -> Tensor:
            return self._predict(hidden, batch, temperature)[0]

        return self._pass(batch, read, noise, keep)

    def logps_behind(self, batch: FlatBatch, kept: KeptPrompts) -> Tensor:
        """`logps` without gradients of completions of the prompts, in order, that a pass kept.

        The prompts pass through the model again where that pass kept nothing.
        """
        with torch.no_grad():
            if kept.states is None or self._layout_of(batch) != "grouped":
                return self.logps(batch)

            def compute() -> Tensor:
                # Nothing remembered: copies of trained weights would stay until the backward pass.
                with autocast(self.model.device, self._dtype, remember=False):
                    states, index = states_behind(self.model, batch, kept)
                    return self._predict(states, batch, 1.0, index=index)[0]

            return self._run(compute)

    def logps_mean(
        self, batch: FlatBatch, *, noise: EmbeddingNoise | None = None
    ) -> tuple[Tensor, Tensor]:
        """`logps`, and the mean log-probability of the whole vocabulary at the same places."""

        def read(hidden: Tensor) -> tuple[Tensor, ...]:
            return self._predict(hidden, batch, 1.0, mean=True)

        logps, mean = self._pass(batch, read, noise)
        return logps, mean

    def logps_entropy(self, batch: FlatBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`logps`, and the entropy (nats) of each predictive distribution without gradient."""

        def read(hidden: Tensor) -> tuple[Tensor, ...]:
            return self._predict(hidden, batch, temperature, entropy=True)

        logps, entropy = self._pass(batch, read)
        return logps, entropy

    def scores(self, batch: FlatBatch) -> Tensor:
        """Normalised scalar of every completion ``(C,)``, read at its last token.

        Of an encoder: at the pooled state of the completion's row.
        """
        head, index = self.scalar_head, batch.end_index
        if encodes(self.model.config):
            return self._run(lambda: head(self._pooled(batch)))
        return self._pass(batch, lambda hidden: head(hidden.index_select(0, index)))

    def values(self, batch: FlatBatch) -> Tensor:
        """Normalised scalar of every target ``(N,)``, read where the target is predicted."""
        head, index = self.scalar_head, batch.predictor_index
        return self._pass(batch, lambda hidden: head(hidden.index_select(0, index)))

    def nothing(self) -> Tensor:
        """Zero, (), after a pass that weighs nothing: all that the view trains has a gradient of 0.

        What a process does that has no micro-batch left while others do, where all must make the
        same passes.
        """
        batch = blank(self.model.device)
        values = self.scores if encodes(self.model.config) else self.values
        read = self.logps if self._head is None else values
        return 0.0 * read(batch).sum()

    @property
    def unused(self) -> list[torch.nn.Parameter]:
        """Parameters that no pass reaches.

        A language-model head, not tied, beside a scalar one; layers of a vision tower above those
        that its features are read from.
        """
        with self._arithmetic():
            unseen = unreached(self.model)
        if self._head is None:
            return unseen
        tied = {id(p) for p in self.model.get_input_embeddings().parameters()}
        outputs = self.model.get_output_embeddings()
        left = [p for p in outputs.parameters() if id(p) not in tied] if outputs else []
        return [*unseen, *left]

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

    def _pass(
        self,
        batch: FlatBatch,
        read: Callable[[Tensor], T],
        noise: EmbeddingNoise | None = None,
        keep: KeptPrompts | None = None,
    ) -> T:
        """``read`` the hidden states ``(T, H)`` of one forward pass."""

        def compute() -> T:
            with self._arithmetic():
                hidden = hidden_states(self.model, batch, self._layout_of(batch), noise, keep)
            return read(hidden)

        if encodes(self.model.config):
            raise ValueError("An encoder scores whole rows; it has no states that predict tokens.")
        return self._run(compute)

    def _pooled(self, batch: FlatBatch) -> Tensor:
        """States (C, H) of an encoder's rows."""
        with self._arithmetic():
            return pooled_states(self.model, batch, self._layout, self.scalar_head.pooling)

    def _run(self, compute: Callable[[], T]) -> T:
        """Compute a pass, inside of the engine that holds the weights, if there is one."""
        return compute() if self._within is None else self._within(compute)

    def _predict(
        self,
        hidden: Tensor,
        batch: FlatBatch,
        temperature: float,
        *,
        entropy: bool = False,
        mean: bool = False,
        index: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        hidden = hidden.index_select(0, batch.predictor_index if index is None else index)
        with self._arithmetic():
            if self._predictor is not None:
                return self._predictor(hidden, batch.target_ids, temperature, entropy, mean)
            return predict(hidden, self.lm_head, batch.target_ids, temperature, entropy, mean)

    def _layout_of(self, batch: FlatBatch) -> Layout:
        window = window_of(self.model.config.get_text_config(decoder=True))
        if window is None or self._layout == "padded":
            return self._layout
        device = batch.input_ids.device
        longest = attention_plan(batch.spans, device, lead_of(self.model)).longest
        return self._layout if longest <= window else "padded"

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        # A cast that autocast remembers from a pass without gradients has no way back to the
        # weight (pytorch issue 48049), so passes with gradients neither read nor fill that memory.
        with autocast(self.model.device, self._dtype, remember=not torch.is_grad_enabled()):
            yield


def blank(device: torch.device | str) -> FlatBatch:
    """A batch of a prompt and a completion of one meaningless token each."""
    one = torch.zeros(1, dtype=torch.int64, device=device)
    return FlatBatch(
        input_ids=one.repeat(2),
        position_ids=torch.arange(2, device=one.device),
        predictor_index=one,
        target_ids=one,
        target_completion=one,
        end_index=one + 1,
        lengths=one + 1,
        completion_group=one,
        rows=one,
        spans=(GroupSpan((0, 1), ((1, 2),)),),
    )


def autocast(
    device: torch.device | str, dtype: torch.dtype, *, remember: bool = True
) -> torch.autocast:
    """Matrix products in ``dtype``; float32 means as the weights are."""
    kind = torch.device(device).type
    reduced = dtype != torch.float32
    return torch.autocast(
        kind, dtype=dtype if reduced else None, enabled=reduced, cache_enabled=remember
    )
