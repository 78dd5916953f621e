"""Decoding in slots: a row that has ended makes room for the next one, and no prompt is padded.

All rows of the memory end at the same column, so one step writes one column for all of them; a row
that starts in the middle is placed before that column, and the columns outside of it are masked.
Prompts run through the model as one flat sequence. For architectures of the *grouped* layout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from alignlab import interruption
from alignlab.errors import Interrupted
from alignlab.images import Reference
from alignlab.models.grouped_attention import LEAD, NAME
from alignlab.models.layout import window_of
from alignlab.models.logps import head_of
from alignlab.models.virtual_tokens import flat_inputs, lead_of
from alignlab.models.vision import decoder_of
from alignlab.rollout.choose import choose
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.slot_memory import Columns, PromptLayer, SlotLayer
from alignlab.rollout.streams import Drawn, uniforms_of
from alignlab.rollout.unfinished import Unfinished
from alignlab.tensors import GroupSpan

REFILL_AT = 0.25  # share of free slots from which waiting rows are let in, or the batch shrinks
PREFILL_TOKENS = 4096  # prompt tokens of one forward pass


def fits_slots(model: Any) -> bool:
    """Whether ``model`` was loaded for the flat layout and its attention sees whole rows."""
    config = model.config.get_text_config(decoder=True)
    flat = getattr(config, "_attn_implementation", None) == NAME
    return flat and window_of(config) is None


def decode_slots(
    model: Any,
    prompts: Sequence[np.ndarray],
    n: int,
    sampling: Sampling,
    stop: Tensor,
    seeds: Sequence[int],
    unfinished: Unfinished | None = None,
    images: Sequence[Sequence[Reference]] | None = None,
) -> Drawn:
    """Sample ``n`` completions of every prompt; see `sampler.sample`.

    ``unfinished`` says how far an earlier session has come, and is told how far this one comes;
    ``images`` are what each prompt shows.
    """
    slots = _Slots(model, prompts, n, sampling, stop, seeds, images)
    if unfinished is None:
        return slots.run()
    slots.go_on(unfinished.read() or {})
    try:
        with interruption.deferred():
            drawn = slots.run()
    except Interrupted:
        unfinished.write(slots.moved(), [part for layer in slots.layers for part in layer.memory])
        raise
    unfinished.write(slots.moved())
    return drawn


@dataclass
class _Prompts:
    """Prompts after their forward pass, until all of their samples have a slot."""

    layers: list[PromptLayer]
    logits: Tensor  # (P, V) of the first token
    spans: dict[int, tuple[int, int]]  # prompt -> its tokens in the flat sequence
    rows: dict[int, int]  # prompt -> its row of ``logits``


@dataclass
class _Slots:
    model: Any
    prompts: Sequence[np.ndarray]
    n: int
    sampling: Sampling
    stop: Tensor
    seeds: Sequence[int]
    images: Sequence[Sequence[Reference]] | None = None
    columns: Columns = field(default_factory=Columns)
    open: _Prompts | None = None  # the last prompt let in, while samples of it wait

    def __post_init__(self) -> None:
        self.device = self.stop.device
        self.limit = self.sampling.max_new_tokens
        order = sorted(range(len(self.prompts)), key=lambda i: (-len(self.prompts[i]), i))
        self.waiting = deque((prompt, sample) for prompt in order for sample in range(self.n))
        slots = min(self.sampling.batch, len(self.waiting))
        self.lead = lead_of(self.model).length  # virtual tokens before every prompt
        longest = max((len(p) for p in self.prompts), default=0)
        self.columns.filled = self.lead + longest
        self.drawn = Drawn.empty(len(self.waiting), self.limit, self.device)
        self.layers: list[SlotLayer] = []
        # One entry per slot. The first are kept on the host, where every decision is made.
        self.place = np.zeros(slots, dtype=np.int64)  # row of ``drawn``
        self.step = np.zeros(slots, dtype=np.int64)  # tokens drawn
        self.start = np.zeros(slots, dtype=np.int64)  # first column of the row
        self.live = np.zeros(slots, dtype=bool)
        self.position = torch.zeros(slots, 1, dtype=torch.int64, device=self.device)
        self.uniforms = torch.zeros(slots, self.limit, dtype=torch.float64, device=self.device)
        self.logits = torch.empty(0)
        self.head = head_of(self.model).reduced()

    def run(self) -> Drawn:
        """Draw tokens until every row has ended or is full."""
        if self.waiting and not self.layers:
            self._admit()
        while self.live.any():
            interruption.check()
            token = self._draw()
            if self.live.any():
                self._make_room()
                self._forward(token)
            if self.waiting:
                if np.count_nonzero(~self.live) >= REFILL_AT * len(self.live):
                    self._admit()
            elif np.count_nonzero(self.live) <= (1 - REFILL_AT) * len(self.live):
                self._shrink()
        self.layers, self.logits, self.open = [], torch.empty(0), None  # what only decoding needs
        return self.drawn

    def moved(self) -> dict[str, Any]:
        """What decoding has changed since it began; between two tokens."""
        given = {"model", "prompts", "n", "sampling", "stop", "seeds", "images"}
        given |= {"head", "device", "lead"}
        return {name: value for name, value in vars(self).items() if name not in given}

    def go_on(self, moved: Mapping[str, Any]) -> None:
        """Take back what `moved` returned."""
        vars(self).update(moved)

    def _draw(self) -> Tensor:
        """Draw one token per slot and note those of rows that live."""
        at = torch.from_numpy(np.minimum(self.step, self.limit - 1)).to(self.device)
        token, logp = choose(
            self.logits,
            self.uniforms.gather(1, at[:, None])[:, 0],
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
        )
        live = torch.from_numpy(np.flatnonzero(self.live)).to(self.device)
        rows = torch.from_numpy(self.place[self.live]).to(self.device)
        self.drawn.ids[rows, at[live]] = token[live]
        self.drawn.logps[rows, at[live]] = logp[live]
        self.step += 1
        ended = torch.isin(token, self.stop).cpu().numpy() & self.live
        over = ended | (self.live & (self.step == self.limit))
        if over.any():
            done = torch.from_numpy(self.place[over]).to(self.device)
            self.drawn.length[done] = torch.from_numpy(self.step[over]).to(self.device)
            self.drawn.finished[done] = torch.from_numpy(ended[over]).to(self.device)
            self.live &= ~over
        return token

    def _forward(self, token: Tensor) -> None:
        """Feed one token per slot; ended rows ride along."""
        first = torch.from_numpy(self.start).to(self.device)
        columns = torch.arange(self.columns.width, device=self.device)
        seen = (columns >= first[:, None]) & (columns <= self.columns.filled)
        mask = torch.zeros(seen.shape, device=self.device).masked_fill_(~seen, float("-inf"))
        hidden = decoder_of(self.model)(
            input_ids=token[:, None],
            attention_mask=mask[:, None, None],
            position_ids=self.position,
            past_key_values=Cache(layers=list(self.layers)),
            use_cache=True,
        )[0]
        self.logits = self.head.logits(hidden[:, -1])
        self.position = self.position + 1
        self.columns.filled += 1

    def _make_room(self) -> None:
        """When no column is left: drop those of rows that are gone, and add new ones."""
        if self.columns.filled < self.columns.width:
            return
        first, end = int(self.start[self.live].min()), self.columns.filled
        self.columns.filled = end - first
        self.columns.widen()
        for layer in self.layers:
            layer.move(first, end)
        self.start = np.maximum(self.start - first, 0)

    def _admit(self) -> None:
        """Give the free slots to waiting rows."""
        free = np.flatnonzero(~self.live)
        taken = [self.waiting.popleft() for _ in range(min(len(free), len(self.waiting)))]
        slot_of = dict(zip(taken, free.tolist(), strict=False))
        longest = max(len(self.prompts[prompt]) for prompt, _ in taken)
        self.columns.filled = max(self.columns.filled, self.lead + longest)
        for ready in self._ready(list(dict.fromkeys(prompt for prompt, _ in taken))):
            rows = [row for row in taken if row[0] in ready.spans]
            self._start_rows(ready, rows, [slot_of[row] for row in rows])
        last = taken[-1][0]
        waits = bool(self.waiting) and self.waiting[0][0] == last
        self.open = ready if waits else None

    def _ready(self, wanted: list[int]) -> Iterator[_Prompts]:
        """Prompts with their keys and values, some at a time."""
        if self.open is not None and wanted[0] in self.open.spans:
            yield self._only(self.open, wanted.pop(0))
        while wanted:
            part = [wanted.pop(0)]
            tokens = len(self.prompts[part[0]])
            while wanted and tokens + len(self.prompts[wanted[0]]) <= PREFILL_TOKENS:
                part.append(wanted.pop(0))
                tokens += len(self.prompts[part[-1]])
            yield self._prefill(part)

    @staticmethod
    def _only(prompts: _Prompts, prompt: int) -> _Prompts:
        return _Prompts(
            prompts.layers,
            prompts.logits,
            {prompt: prompts.spans[prompt]},
            {prompt: prompts.rows[prompt]},
        )

    def _prefill(self, members: list[int]) -> _Prompts:
        """Run prompts through the model as one flat sequence."""
        ends = np.cumsum([len(self.prompts[m]) for m in members])
        spans = {
            m: (int(e) - len(self.prompts[m]), int(e)) for m, e in zip(members, ends, strict=True)
        }
        ids = np.concatenate([self.prompts[m] for m in members]).astype(np.int64)
        position = np.concatenate([np.arange(end - start) for start, end in spans.values()])
        inputs = flat_inputs(
            self.model,
            torch.from_numpy(ids).to(self.device),
            torch.from_numpy(position).to(self.device),
            tuple(GroupSpan(prompt=span, completions=()) for span in spans.values()),
            [image for m in members for image in self.images[m]] if self.images else (),
        )
        count = self.model.config.get_text_config(decoder=True).num_hidden_layers
        layers = [PromptLayer() for _ in range(count)]
        hidden = decoder_of(self.model)(
            **inputs, past_key_values=Cache(layers=list(layers)), use_cache=True
        )[0][0][-len(ids) :]
        for layer, (keys, values) in zip(layers, inputs.get(LEAD, ()), strict=False):
            layer.put_before(keys, values)
        last = torch.from_numpy(ends - 1).to(self.device)
        logits = self.head.logits(hidden[last])
        return _Prompts(layers, logits, spans, {m: i for i, m in enumerate(members)})

    def _start_rows(self, ready: _Prompts, rows: list[tuple[int, int]], slots: list[int]) -> None:
        """Put prompts into slots: keys, values, the first logits and everything counted."""
        if not self.layers:
            size = len(self.live)
            self.columns.widen()
            self.layers = [SlotLayer(k, size, self.columns) for k in ready.layers]
            self.logits = ready.logits.new_zeros(size, ready.logits.shape[1])
        spans = [ready.spans[prompt] for prompt, _ in rows]
        lengths = np.array([self.lead + end - start for start, end in spans])
        filled = self.columns.filled
        lead = np.arange(self.lead)  # first in the flat sequence, and before every prompt
        parts = [part for span in spans for part in (lead, self.lead + np.arange(*span))]
        tokens = np.concatenate(parts)
        columns = np.concatenate([np.arange(filled - size, filled) for size in lengths])
        index = [
            torch.from_numpy(x).to(self.device)
            for x in (np.repeat(slots, lengths), columns, tokens)
        ]
        for layer, kept in zip(self.layers, ready.layers, strict=True):
            layer.place(kept, *index)
        at = torch.tensor(slots, device=self.device)
        source = torch.tensor([ready.rows[prompt] for prompt, _ in rows], device=self.device)
        self.logits = self.logits.index_copy(0, at, ready.logits[source].to(self.logits.dtype))
        self.position[at] = torch.from_numpy(lengths).to(self.device)[:, None]
        samples = [(self.seeds[prompt], sample) for prompt, sample in rows]
        self.uniforms[at] = uniforms_of(samples, self.limit, self.device)
        self.place[slots] = [prompt * self.n + sample for prompt, sample in rows]
        self.step[slots] = 0
        self.start[slots] = filled - lengths
        self.live[slots] = True

    def _shrink(self) -> None:
        """Drop the slots of rows that have ended: nobody waits for them."""
        kept = np.flatnonzero(self.live)
        index = torch.from_numpy(kept).to(self.device)
        for layer in self.layers:
            layer.select(index)
        self.place, self.step, self.start = self.place[kept], self.step[kept], self.start[kept]
        self.live = self.live[kept]
        self.position, self.logits = self.position[index], self.logits[index]
        self.uniforms = self.uniforms[index]
