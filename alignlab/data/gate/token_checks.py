"""Checks of the token stream: BOS, EOS, what truncation left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from alignlab.data.gate.finding import Batch, Finding
from alignlab.data.group import TokenGroup


def bos(batch: Batch) -> Iterator[Finding]:
    """BOS must open the prompt exactly once iff the tokenizer's own encoding adds it."""
    token = batch.tokenizer.bos_token_id
    if token is None:
        return
    adds = batch.tokenizer("x")["input_ids"][:1] == [token]
    opening = [_leading(t.prompt, token) for t in batch.tokens]
    twice = [t.row for t, n in zip(batch.tokens, opening, strict=True) if n > 1]
    yield from batch.finding(
        "error",
        "bos_twice",
        twice,
        "The prompt starts with BOS more than once",
        "Remove BOS from the text or from the chat template.",
    )
    if adds:
        missing = [t.row for t, n in zip(batch.tokens, opening, strict=True) if n == 0]
        yield from batch.finding(
            "error",
            "bos_missing",
            missing,
            "The prompt lacks the BOS that the tokenizer adds to a text",
            "Tokenise with alignlab.data.template.Tokenization.",
        )


def bos_inside(batch: Batch) -> Iterator[Finding]:
    """A BOS of its own kind (not a turn mark, not EOS) belongs nowhere but at the start."""
    token = batch.tokenizer.bos_token_id
    if token is None or batch.tokenizer("x")["input_ids"][:1] != [token]:
        return
    if token == batch.tokenizer.eos_token_id:
        return
    # a warning: a young policy may sample BOS, and BOS in a given text is special_text's error
    rows = [
        t.row
        for t in batch.tokens
        if (t.prompt[1:] == token).any() or any((c == token).any() for c in t.completions)
    ]
    yield from batch.finding(
        "warning",
        "bos_inside",
        rows,
        "BOS stands inside a prompt or completion",
        "Remove it from the text, or write the chat template so that BOS comes first only.",
    )


def end_of_completion(batch: Batch) -> Iterator[Finding]:
    """A completion ends in one end token unless it was truncated; none stands inside."""
    ends = _end_ids(batch)
    missing, twice = [], []
    for text, group in zip(batch.groups, batch.tokens, strict=True):
        turns = any(not isinstance(c, str) and len(c) > 1 for c in text.completions)
        flags = group.truncated or (False,) * len(group.completions)
        for completion, cut in zip(group.completions, flags, strict=True):
            if len(completion) == 0:
                continue
            last = int(completion[-1])
            if not cut and last not in ends:
                missing.append(group.row)
            if last in ends and not turns and (completion[:-1] == last).any():
                twice.append(group.row)
    yield from batch.finding(
        "error",
        "eos_missing",
        missing,
        "A completion does not end in EOS, so the policy would not learn to stop",
        "Tokenise with alignlab.data.template.Tokenization; a cut completion must say so.",
    )
    yield from batch.finding(
        "error",
        "eos_twice",
        twice,
        "A completion has EOS before its end too",
        "Remove EOS from the text or from the chat template.",
    )


def truncated(batch: Batch) -> Iterator[Finding]:
    """Truncated prompts and completions, and completions that have no token left."""
    prompts = [t.row for t in batch.tokens if t.meta.get("prompt_cut")]
    yield from batch.finding(
        "warning",
        "prompt_truncated",
        prompts,
        f"{_share(prompts, batch.tokens)} of the prompts are cut on the left",
        "Raise max_prompt if the beginning matters (a system message stands there).",
    )
    gone = [t.row for t in batch.tokens if any(len(c) == 0 for c in t.completions)]
    yield from batch.finding(
        "error",
        "no_completion_tokens",
        gone,
        "A completion has no token left, so its loss would be 0/0",
        "Raise max_completion or drop the rows.",
    )
    if batch.sampled:
        return
    cut = [t.row for t in batch.tokens if any(t.truncated)]
    whole = [t for t in batch.tokens if t.truncated]
    yield from batch.finding(
        "warning",
        "completion_truncated",
        cut,
        f"{_share(cut, whole)} of the groups have a completion cut on the right, without EOS",
        "Raise max_completion: the policy learns to stop only from completions that end.",
    )


def _leading(ids: np.ndarray, token: int) -> int:
    different = np.flatnonzero(ids != token)
    return int(different[0]) if len(different) else len(ids)


def _end_ids(batch: Batch) -> frozenset[int]:
    """Ids that may end a completion: EOS and, for messages, any special token of the template."""
    eos = int(batch.tokenizer.eos_token_id)
    if not any(group.conversational for group in batch.groups):
        return frozenset({eos})
    added = getattr(batch.tokenizer, "added_tokens_decoder", {})
    return frozenset({eos, *(index for index, token in added.items() if token.special)})


def _share(rows: Sequence[int], of: Sequence[TokenGroup]) -> str:
    return f"{len(rows) / max(len(of), 1):.1%}"
