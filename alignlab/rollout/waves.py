"""Decoding in waves: a batch of prompts is padded on the left and decoded until all have ended.

What `slots` cannot do (architectures whose layers do not fit the flat batch) is done here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from alignlab import interruption
from alignlab.models.virtual_tokens import Prefix, VirtualTokens, soft_prompt_of
from alignlab.rollout.cache import new_cache
from alignlab.rollout.choose import choose
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.streams import Drawn, uniforms_of

COMPACT_AT = 0.75  # share of live rows at which the finished ones are removed from the batch


def decode_waves(
    model: Any,
    prompts: Sequence[np.ndarray],
    n: int,
    sampling: Sampling,
    stop: Tensor,
    seeds: Sequence[int],
) -> Drawn:
    """Sample ``n`` completions of every prompt; see `sampler.sample`."""
    drawn = Drawn.empty(len(prompts) * n, sampling.max_new_tokens, stop.device)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    width = max(1, sampling.batch // n)  # prompts of one prefill
    for first in range(0, len(order), width):
        members = order[first : first + width]
        rows = [(m, s) for m in members for s in range(n)]
        state = _prefill(model, [prompts[m] for m in members], sampling, stop.device)
        for start in range(0, len(rows), sampling.batch):
            part = rows[start : start + sampling.batch]
            source = torch.arange(start, start + len(part), device=stop.device) // n
            last = start + sampling.batch >= len(rows)
            uniforms = uniforms_of(
                [(seeds[m], s) for m, s in part], sampling.max_new_tokens, stop.device
            )
            places = torch.tensor([m * n + s for m, s in part], device=stop.device)
            _decode(model, state.branch(source, last=last), uniforms, sampling, stop, drawn, places)
    return drawn


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

    def forward(self, model: Any, position: Tensor, **inputs: Tensor) -> None:
        """Feed ids or embeddings (R, new, …) and keep the logits of what follows them."""
        self.filled += position.shape[1]
        output = model(
            **inputs,
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
    """Run the prompts once, left-padded to the longest of them.

    Virtual tokens stand between the padding and the prompt; a prefix is the beginning of the
    memory, and the padding follows it.
    """
    soft = soft_prompt_of(model)
    tokens = soft.length if isinstance(soft, VirtualTokens) else 0
    given = soft.length if isinstance(soft, Prefix) else 0  # columns that are there beforehand
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), tokens + longest), dtype=np.int64)
    mask = np.ones(
        (len(prompts), given + tokens + longest + sampling.max_new_tokens), dtype=np.int64
    )
    for row, prompt in enumerate(prompts):
        padding = longest - len(prompt)
        ids[row, padding:] = np.concatenate([np.arange(-tokens, 0), prompt])
        mask[row, given : given + padding] = 0
    seen = given + tokens + longest
    position = np.maximum(mask[:, :seen].cumsum(1) - 1, 0)[:, given:]
    padded = any(len(prompt) < longest for prompt in prompts)
    state = _State(
        cache=new_cache(model.config, mask.shape[1] - 1),  # the last token is never fed
        logits=torch.empty(0),
        position=torch.empty(0),
        mask=torch.from_numpy(mask).to(device) if padded else None,
        filled=given,
    )
    if isinstance(soft, Prefix):
        soft.fill(state.cache, len(prompts), model)
    fed = torch.from_numpy(ids).to(device)
    inputs = (
        {"inputs_embeds": soft.embed(model, fed)}
        if isinstance(soft, VirtualTokens)
        else {"input_ids": fed}
    )
    state.forward(model, torch.from_numpy(position).to(device), **inputs)
    return state


def _decode(
    model: Any,
    state: _State,
    uniforms: Tensor,
    sampling: Sampling,
    stop: Tensor,
    drawn: Drawn,
    places: Tensor,
) -> None:
    """Draw tokens until every row has ended or is full.

    ``uniforms`` are (R, max_new_tokens), ``places`` (R,) the rows of ``drawn`` to fill.
    """
    rows, limit = uniforms.shape
    finished = torch.zeros(rows, dtype=torch.bool, device=uniforms.device)
    live = torch.arange(rows, device=uniforms.device)  # what is left of the rows
    for step in range(limit):
        interruption.check()
        token, logp = choose(
            state.logits,
            uniforms[live, step],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        drawn.ids[places[live], step], drawn.logps[places[live], step] = token, logp
        # Rows that ended earlier and still ride along draw tokens too; their length stays.
        ended = live[torch.isin(token, stop) & ~finished[live]]
        drawn.length[places[ended]] = step + 1
        drawn.finished[places[ended]] = True
        finished[ended] = True
        active = torch.nonzero(~finished[live]).squeeze(1)
        if step + 1 == limit or len(active) == 0:
            return
        if len(active) <= COMPACT_AT * len(live):
            live, token = live[active], token[active]
            state.select(active)
        state.forward(model, state.position, input_ids=token.unsqueeze(1))
