"""Own key-value-cached decoding: one prefill per prompt, finished rows leave, log-probs kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from alignlab.errors import DataError, TrainingError
from alignlab.rollout.cache import new_cache
from alignlab.rollout.choose import choose
from alignlab.rollout.sampling import Sampling

__all__ = ["Samples", "Sampling", "sample", "uniform_stream"]

COMPACT_AT = 0.75  # share of live rows at which the finished ones are removed from the batch


@dataclass(frozen=True, eq=False)
class Samples:
    """Sampled completions, prompt-major: sample s of prompt p is item ``p * n + s``."""

    ids: list[np.ndarray]  # P·n arrays of int32; the stop token is the last one where one was drawn
    logps: list[np.ndarray]  # P·n arrays of fp32, nats, of the distribution at temperature T
    finished: np.ndarray  # (P·n,) bool: ended with a stop token

    @property
    def tokens(self) -> int:
        """Sampled tokens, stop tokens included."""
        return sum(map(len, self.ids))


def sample(
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    n: int,
    sampling: Sampling,
    eos_id: int | Sequence[int],
    seeds: Sequence[int],
    device: torch.device | str,
) -> Samples:
    """Sample ``n`` completions of every prompt.

    Every (prompt, sample) has a random stream of its own (`uniform_stream`), so what is drawn does
    not depend on ``sampling.batch``, on the other prompts or on their order, *up to rounding*: the
    logits' last bits depend on the batch's shape. On a random model of 4,096 tokens with large
    logits that changed 4 of 10,000 tokens in fp32, 2 to 5 of 100 in bf16; same shapes, none.

    The model is in evaluation mode meanwhile (no dropout) and gets its mode back; the caller's
    autocast applies to the forward pass, logits are fp32. The kept log-probabilities are those of
    softmax(logits / T) *before* top-k and top-p (for T = 0, of softmax(logits)).

    Args:
        model: a transformers decoder language model.
        prompts: P arrays of token ids, each of length ≥ 1; ``n`` completions are made of each.
        sampling: hyperparameters; ``batch`` rows are decoded side by side.
        eos_id: id or ids that end a completion.
        seeds: P integers, one per prompt.
        device: where the model is.

    Raises:
        DataError: an empty prompt, or one that leaves no room for the completion.
        TrainingError: log-probabilities that are not finite.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}.")
    _check_lengths(model, prompts, sampling.max_new_tokens)
    stop = torch.tensor([eos_id] if isinstance(eos_id, int) else list(eos_id), device=device)
    results: list[_Row | None] = [None] * (len(prompts) * n)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    width = max(1, sampling.batch // n)  # prompts of one prefill
    with torch.no_grad(), _evaluation(model):
        for first in range(0, len(order), width):
            members = order[first : first + width]
            rows = [(m, s) for m in members for s in range(n)]
            state = _prefill(model, [prompts[m] for m in members], sampling, device)
            for start in range(0, len(rows), sampling.batch):
                part = rows[start : start + sampling.batch]
                source = torch.arange(start, start + len(part), device=device) // n
                last = start + sampling.batch >= len(rows)
                streams = [uniform_stream(seeds[m], s, sampling.max_new_tokens) for m, s in part]
                uniforms = torch.from_numpy(np.stack(streams)).to(device)
                decoded = _decode(model, state.branch(source, last=last), uniforms, sampling, stop)
                for (member, index), row in zip(part, decoded, strict=True):
                    results[member * n + index] = row
    done = [row for row in results if row is not None]
    return Samples(
        ids=[row.ids for row in done],
        logps=[row.logps for row in done],
        finished=np.array([row.finished for row in done], dtype=bool),
    )


def uniform_stream(seed: int, index: int, steps: int) -> np.ndarray:
    """Uniforms (steps,) float64 in [0, 1) of sample ``index`` of a prompt: Philox keyed by both."""
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


@dataclass(frozen=True)
class _Row:
    ids: np.ndarray
    logps: np.ndarray
    finished: bool


@dataclass
class _State:
    """A batch between two steps of decoding; R rows."""

    cache: Cache
    logits: Tensor  # (R, V) of the next token
    position: Tensor  # (R, 1) of the next token
    mask: Tensor | None  # (R, capacity) int64, 0 at the left padding; None without padding
    filled: int  # tokens in the cache

    def branch(self, source: Tensor, *, last: bool) -> _State:
        """Return the state with row ``source[r]`` as row r; the last branch takes the memory."""
        taken = self if last else copy.copy(self)
        if not last:
            taken.cache = copy.deepcopy(self.cache)
        taken.select(source)
        return taken

    def select(self, rows: Tensor) -> None:
        """Keep the rows named, in that order."""
        same = torch.arange(len(self.logits), device=rows.device)
        if torch.equal(rows, same):
            return
        self.cache.batch_select_indices(rows)
        self.logits = self.logits[rows]
        self.position = self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def forward(self, model: Any, ids: Tensor, position: Tensor) -> None:
        """Feed ids (R, new) and keep the logits of what follows them."""
        self.filled += ids.shape[1]
        output = model(
            input_ids=ids,
            attention_mask=None if self.mask is None else self.mask[:, : self.filled],
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = output.logits[:, -1]
        self.position = position[:, -1:] + 1


def _prefill(
    model: Any, prompts: Sequence[np.ndarray], sampling: Sampling, device: torch.device | str
) -> _State:
    """Run the prompts once, left-padded to the longest of them."""
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.ones((len(prompts), longest + sampling.max_new_tokens), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, : longest - len(prompt)] = 0
    position = np.maximum(mask[:, :longest].cumsum(1) - 1, 0)
    padded = any(len(prompt) < longest for prompt in prompts)
    state = _State(
        cache=new_cache(model.config, mask.shape[1] - 1),  # the last token is never fed
        logits=torch.empty(0),
        position=torch.empty(0),
        mask=torch.from_numpy(mask).to(device) if padded else None,
        filled=0,
    )
    state.forward(model, torch.from_numpy(ids).to(device), torch.from_numpy(position).to(device))
    return state


def _decode(
    model: Any, state: _State, uniforms: Tensor, sampling: Sampling, stop: Tensor
) -> list[_Row]:
    """Draw tokens until every row has ended or is full; uniforms are (R, max_new_tokens)."""
    rows, limit = uniforms.shape
    ids = torch.zeros(rows, limit, dtype=torch.int64, device=uniforms.device)
    logps = torch.zeros(rows, limit, dtype=torch.float32, device=uniforms.device)
    length = torch.full((rows,), limit, device=uniforms.device)
    finished = torch.zeros(rows, dtype=torch.bool, device=uniforms.device)
    live = torch.arange(rows, device=uniforms.device)  # output row of each batch row
    for step in range(limit):
        token, logp = choose(
            state.logits,
            uniforms[live, step],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        ids[live, step], logps[live, step] = token, logp
        # Rows that ended earlier and still ride along draw tokens too; their length stays.
        ended = live[torch.isin(token, stop) & ~finished[live]]
        length[ended] = step + 1
        finished[ended] = True
        active = torch.nonzero(~finished[live]).squeeze(1)
        if step + 1 == limit or len(active) == 0:
            break
        if len(active) <= COMPACT_AT * len(live):
            live, token = live[active], token[active]
            state.select(active)
        state.forward(model, token.unsqueeze(1), state.position)
    return _rows(ids, logps, length, finished)


def _rows(ids: Tensor, logps: Tensor, length: Tensor, finished: Tensor) -> list[_Row]:
    numbers = ids.cpu().numpy().astype(np.int32)
    values = logps.cpu().numpy()
    rows = []
    for row, (size, end) in enumerate(zip(length.tolist(), finished.tolist(), strict=True)):
        if not np.isfinite(values[row, :size]).all():
            raise TrainingError(
                "Sampling gave log-probabilities that are not finite: the policy's logits are "
                "broken. Look for a loss that blew up, or sample in float32."
            )
        rows.append(_Row(numbers[row, :size].copy(), values[row, :size].copy(), bool(end)))
    return rows


def _check_lengths(model: Any, prompts: Sequence[np.ndarray], new: int) -> None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"Prompt {row} is empty: a first token needs something to follow.")
        if limit is not None and len(prompt) + new > limit:
            raise DataError(
                f"Prompt {row} has {len(prompt)} tokens; with max_new_tokens={new} it does not fit "
                f"the model's {limit} positions. Lower sampling.max_new_tokens or max_prompt."
            )


@contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    """Switch dropout off, and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
