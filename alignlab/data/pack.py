"""From token groups to the padding-free flat batch, and from sizes to micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.data.group import TokenGroup
from alignlab.errors import DataError
from alignlab.images import images_of
from alignlab.tensors import FlatBatch, GroupSpan


def group_tokens(group: TokenGroup) -> int:
    """Tokens that the group adds to a flat batch: its prompt once, and every completion."""
    return len(group.prompt) + sum(map(len, group.completions))


def pack(sizes: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """Bins of item indices whose sizes add up to at most ``budget``: first-fit decreasing.

    An item larger than the budget gets a bin of its own. Deterministic: items of equal size are
    placed by index; bins come in order of creation, the largest item first, indices ascending.
    Items of one size are placed together, so the time grows with the number of distinct sizes.
    """
    if budget < 1:
        raise ValueError(f"The token budget must be positive, not {budget}.")
    values = np.asarray(sizes, dtype=np.int64)
    if not len(values):
        return []
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    begin = np.flatnonzero(np.diff(ordered, prepend=ordered[0] + 1))
    home = np.empty(len(values), dtype=np.int64)  # bin of each item, in decreasing order
    room = np.zeros(len(values), dtype=np.int64)  # room left; bins from `opened` on are not open
    usable, opened = np.zeros(0, dtype=np.int64), 0  # open bins that the smallest item still fits
    for first, last in zip(begin.tolist(), [*begin[1:].tolist(), len(values)], strict=True):
        size, count = int(ordered[first]), last - first
        usable = usable[room[usable] >= ordered[-1]]
        fits = np.minimum(room[usable] // size, count) if size else np.full(len(usable), count)
        taken = np.diff(np.minimum(np.cumsum(fits), count), prepend=0)
        placed = int(taken.sum())
        home[first : first + placed] = np.repeat(usable, taken)
        room[usable] -= taken * size
        each = max(budget // size, 1) if size else count
        new = opened + np.arange(count - placed) // each
        home[first + placed : last] = new
        if len(new):
            fresh = np.arange(opened, int(new[-1]) + 1)
            room[fresh] = max(budget, size) - np.bincount(new - opened) * size
            usable, opened = np.concatenate([usable, fresh]), int(new[-1]) + 1
    members = np.lexsort((order, home))
    ends = np.cumsum(np.bincount(home))[:-1]
    return [part.tolist() for part in np.split(order[members], ends)]


@dataclass(frozen=True)
class Fullness:
    """How full the micro-batches of some optimizer steps are, as shares of the token budget."""

    micro_batches: float  # of a step, mean
    used: float  # of the budget of all micro-batches
    most: float  # what no packing can exceed: a step of 1.2 budgets needs two micro-batches


def fullness(steps: Iterable[np.ndarray], budget: int) -> Fullness:
    """Pack the item sizes of every step and compare with the fewest bins that could hold them.

    With T tokens in a step, ⌈T / budget⌉ micro-batches are the fewest, so T / (⌈T / budget⌉ budget)
    is the most that can be used. From n micro-batches on that is at least (n - 1) / n.
    """
    count = bins = fewest = tokens = 0
    for sizes in steps:
        total = sizes.sum()
        count, tokens, fewest = count + 1, tokens + total, fewest + -(-total // budget)
        bins += len(pack(sizes, budget))
    if not tokens:
        return Fullness(0.0, 0.0, 0.0)
    return Fullness(bins / count, tokens / (bins * budget), tokens / (fewest * budget))


def flatten(groups: Sequence[TokenGroup]) -> FlatBatch:
    """Lay groups out as ``prompt₁ c₁₁ c₁₂ … prompt₂ c₂₁ …``, on the CPU.

    The predictor of a completion's first token is the last token of its prompt; positions of every
    completion continue from the prompt's end. Groups without completions are prompts only. Tokens
    that a group masks are read by the model and are no targets.

    Raises:
        DataError: an empty prompt or an empty completion, which has no token to predict.
    """
    import torch

    if not groups:
        raise ValueError("flatten needs at least one group.")
    segments = [part for group in groups for part in (group.prompt, *group.completions)]
    is_prompt = [first for group in groups for first in (True, *(False for _ in group.completions))]
    length = np.fromiter(map(len, segments), np.int64, len(segments))
    prompt = np.array(is_prompt)
    group_of = np.cumsum(prompt) - 1  # (segments,) group of each segment
    if (length == 0).any():
        group = groups[int(group_of[int((length == 0).argmax())])]
        raise DataError(
            f"Row {group.row} (id {group.id!r}) has an empty prompt or completion after "
            "tokenisation. Raise max_completion or drop the row; `alignlab data check` lists all."
        )
    end = np.cumsum(length)
    start = end - length
    prompt_end = end[prompt][group_of]  # (segments,) where the prompt of each segment ends
    prompt_length = length[prompt][group_of]
    input_ids = np.concatenate(segments).astype(np.int64)
    index = np.arange(len(input_ids))
    within = index - np.repeat(start, length)
    position = within + np.repeat(np.where(prompt, 0, prompt_length), length)

    counted = np.repeat(~prompt, length)
    for group, first in zip(groups, np.flatnonzero(prompt).tolist(), strict=True):
        for number, mask in enumerate(group.masks, first + 1):
            if mask is not None:
                counted[start[number] : end[number]] = mask
    target = np.flatnonzero(counted)  # (N,) index into T of every target
    predictor = np.where(within == 0, np.repeat(prompt_end, length), index)[target] - 1
    targets = np.fromiter((n for group in groups for n in group.targets()), np.int64)
    tensor = torch.from_numpy
    return FlatBatch(
        input_ids=tensor(input_ids),
        position_ids=tensor(position),
        predictor_index=tensor(predictor),
        target_ids=tensor(input_ids[target]),
        target_completion=tensor(np.repeat(np.arange(len(targets)), targets)),
        end_index=tensor(end[~prompt] - 1),
        lengths=tensor(targets),
        completion_group=tensor(group_of[~prompt]),
        rows=tensor(np.fromiter((group.row for group in groups), np.int64, len(groups))),
        spans=_spans(start.tolist(), end.tolist(), is_prompt),
        images=tuple(image for group in groups for image in images_of(group.meta)),
    )


def _spans(start: list[int], end: list[int], is_prompt: list[bool]) -> tuple[GroupSpan, ...]:
    prompts: list[tuple[int, int]] = []
    completions: list[list[tuple[int, int]]] = []
    for first, last, prompt in zip(start, end, is_prompt, strict=True):
        if prompt:
            prompts.append((first, last))
            completions.append([])
        else:
            completions[-1].append((first, last))
    return tuple(GroupSpan(p, tuple(c)) for p, c in zip(prompts, completions, strict=True))
