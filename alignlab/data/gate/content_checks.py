"""Checks of the content: verdicts, repetitions, leaks, special tokens in a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from alignlab.data.gate.finding import Batch, Finding
from alignlab.data.group import Text, TokenGroup


def no_rows(batch: Batch) -> Iterator[Finding]:
    """An empty split."""
    if not batch.groups:
        yield Finding(
            "error",
            "no_rows",
            0,
            (),
            "There are no rows",
            "Check data.limit, the shares, the file.",
        )


def empty(batch: Batch) -> Iterator[Finding]:
    """Completions without a word."""
    blank = [
        t.row
        for g, t in zip(batch.groups, batch.tokens, strict=True)
        if any(not _content(c).strip() for c in g.completions)
    ]
    yield from batch.finding(
        "warning",
        "empty_completion",
        blank,
        "A completion is empty: it teaches to stop at once",
        "Drop these rows if that is not meant.",
    )


def same_completions(batch: Batch) -> Iterator[Finding]:
    """Pairs whose two sides are the same tokens: their loss is a constant."""
    rows = []
    for group in batch.tokens:
        keys = [c.tobytes() for c in group.completions]
        if len(set(keys)) < len(keys) and any(keys[i] == keys[j] for i, j in group.verdict.pairs()):
            rows.append(group.row)
    yield from batch.finding(
        "error" if rows and len(rows) == len(batch.tokens) else "warning",
        "chosen_is_rejected",
        rows,
        "A better and a worse completion are the same tokens",
        "Drop these rows, or raise max_completion if they differ only further on.",
    )


def needed_verdict(batch: Batch) -> Iterator[Finding]:
    """The verdicts must be of use to the method."""
    useful: dict[str, Callable[[TokenGroup], bool]] = {
        "demonstration": lambda t: bool(t.completions) and bool(t.verdict),
        "pairs": lambda t: bool(t.verdict.pairs()),
        "thumbs": lambda t: any(thumb is not None for thumb in t.verdict.desirable()),
    }
    if batch.need not in useful:
        return
    rows = [t.row for t in batch.tokens if not useful[batch.need](t)]
    all_of_them = len(rows) == len(batch.tokens)
    kinds = sorted({t.verdict.kind for t in batch.tokens})
    yield from batch.finding(
        "error" if all_of_them else "warning",
        "verdict_missing",
        rows,
        f"The method needs {batch.need}; verdicts here are: {', '.join(kinds)}",
        "Use data with such a verdict, or annotate samples first."
        if all_of_them
        else "These rows are left out (ties and single completions give no pair).",
    )


def one_sided(batch: Batch) -> Iterator[Finding]:
    """Thumbs that all point the same way leave nothing to tell apart."""
    thumbs = [thumb for t in batch.tokens for thumb in t.verdict.thumbs]
    if thumbs and len(set(thumbs)) == 1:
        rows = [t.row for t in batch.tokens if t.verdict.thumbs]
        yield from batch.finding(
            "error" if batch.need in ("pairs", "thumbs") else "warning",
            "labels_all_same",
            rows,
            f"Every label is {thumbs[0]}",
            "Check that the label field was read as meant (true = desirable).",
        )


def special_text(batch: Batch) -> Iterator[Finding]:
    """Special tokens written in a text become control tokens.

    One BOS at the start of a prompt and one EOS at the end of a completion are what the tokenised
    form has anyway, so they are no finding.
    """
    tokenizer = batch.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    marks = sorted(mark for mark in special if len(mark) > 2)
    openings = {mark[:2] for mark in marks}  # hundreds of marks share a few openings
    rows = []
    for group, tokens in zip(batch.groups, batch.tokens, strict=True):
        prompt = _content(group.prompt).removeprefix(tokenizer.bos_token or "")
        answers = [
            _content(c).rstrip().removesuffix(tokenizer.eos_token) for c in group.completions
        ]
        text = "\x00".join((prompt, *answers))
        if any(opening in text for opening in openings) and any(mark in text for mark in marks):
            rows.append(tokens.row)
    yield from batch.finding(
        "error",
        "special_token_in_text",
        rows,
        "A text contains a special token of the tokenizer, which ends or starts turns",
        f"Remove it from the text. Special tokens: {' '.join(marks[:12])}",
    )


def seam(batch: Batch) -> Iterator[Finding]:
    """Prompt and completion of plain text that run into each other without a space."""
    if batch.sampled:
        return
    rows = []
    for group, tokens in zip(batch.groups, batch.tokens, strict=True):
        if not group.prompt or not isinstance(group.prompt, str):
            continue
        starts = [str(c)[:1] for c in group.completions]
        if group.prompt[-1].isalnum() and any(start.isalnum() for start in starts):
            rows.append(tokens.row)
    yield from batch.finding(
        "warning",
        "no_space_between",
        rows,
        "Prompt and completion run into one word",
        "Begin completions with a space or end prompts with a line break; or data.style=messages.",
    )


def leakage(batch: Batch) -> Iterator[Finding]:
    """Prompts that occur in another split too."""
    here = [_content(group.prompt).strip().lower() for group in batch.groups]
    for split, groups in batch.other.items():
        there = {_content(group.prompt).strip().lower() for group in groups} - {""}
        rows = [t.row for text, t in zip(here, batch.tokens, strict=True) if text in there]
        yield from batch.finding(
            "error",
            "prompt_in_two_splits",
            rows,
            f"Prompts occur in the split '{split}' too",
            "Held-out numbers would be memory. Remove them from one of the splits.",
        )


def repeated(batch: Batch) -> Iterator[Finding]:
    """Whole rows that occur more than once."""
    seen: set[tuple[bytes, ...]] = set()
    rows = []
    for group in batch.tokens:
        key = (group.prompt.tobytes(), *(c.tobytes() for c in group.completions))
        if key in seen and group.completions:
            rows.append(group.row)
        seen.add(key)
    yield from batch.finding(
        "warning", "repeated_row", rows, "A row occurs more than once", "Drop the copies."
    )


def _content(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)
