"""Negative log-likelihood of held-out texts, by document: what a policy has forgotten of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from alignlab.annotations import Range
from alignlab.data.group import NONE, PromptGroup, TokenGroup
from alignlab.data.template import Tokenization
from alignlab.data.wording import content
from alignlab.errors import DataError
from alignlab.evaluation.items import item_id, load
from alignlab.evaluation.policy import Policy, bare
from alignlab.evaluation.task import Result, Row
from alignlab.rewards.reward import fingerprint
from alignlab.spec import Spec, build

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """NLL in nats, per token (weight: tokens) and per UTF-8 byte of the text (weight: bytes).

    Every token of a document is predicted once: after BOS (else EOS, for a tokenizer without), in
    windows of ``window`` tokens of which the first ``context`` repeat the window before. The end of
    the text is not predicted. The byte rate compares models of different vocabularies.
    """

    data: Spec
    split: str
    items: Annotated[int, Range(min=1)] | None
    window: Annotated[int, Range(min=2)]
    context: Annotated[int, Range(min=1)]

    def __post_init__(self) -> None:
        if self.context >= self.window:
            raise DataError(
                f"context={self.context} leaves nothing to predict in window={self.window}."
            )

    @property
    def tokens(self) -> int:
        """A guess, one window per document: documents have any length."""
        return (self.items or 0) * self.window

    def fingerprint(self) -> str:
        """Hash of the fields and the data."""
        return fingerprint(self, VERSION, build(self.data).fingerprint())

    def run(self, policy: Policy) -> Result:
        """Score every document."""
        _, groups = load(self.data, self.split, self.items, "perplexity")
        texts = [document(group) for group in groups]
        pieces, owner = [], []
        for number, tokens in enumerate(encode(policy.tokenization(None), texts)):
            found = windows(tokens, self.window, self.context)
            pieces += found
            owner += [number] * len(found)
        totals, counts = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
        for number, [scores] in zip(owner, policy.score(pieces), strict=True):
            totals[number] -= scores.logps.sum()
            counts[number] += len(scores.logps)
        rows: list[Row] = []
        for number, (group, text) in enumerate(zip(groups, texts, strict=True)):
            size = len(text.encode())
            nll, item = float(totals[number]), item_id(group, number)
            rows.append(Row("nll_per_token", item, nll / counts[number], float(counts[number])))
            rows.append(Row("nll_per_byte", item, nll / size, float(size)))
        notes = {"tokens": int(counts.sum()), "documents": len(texts)}
        return Result(rows, {"nll_per_token": "lower", "nll_per_byte": "lower"}, notes)


def document(group: PromptGroup) -> str:
    """Return the whole text of a group: its prompt and what demonstrably follows it."""
    shown = group.demonstration()
    text = content(group.prompt) + (content(shown.completions[0]) if shown else "")
    if not text:
        raise DataError(f"Document {group.id!r} is empty. Remove the row.")
    return text


def encode(tokenization: Tokenization, texts: Sequence[str]) -> list[TokenGroup]:
    """Texts as completions of the empty prompt (BOS, else EOS), without an end token."""
    groups = tokenization.groups([PromptGroup("", (text,)) for text in texts])
    return [bare(group, tokenization.tokenizer.eos_token_id) for group in groups]


def windows(document: TokenGroup, window: int, context: int) -> list[TokenGroup]:
    """Cut a document into groups of at most ``window`` tokens; every completion token is in one.

    The first window starts with the document's prompt, the others with the last ``context`` tokens
    before their first new one.
    """
    [body] = document.completions
    ids = np.concatenate([document.prompt, body])
    start = len(document.prompt)
    found: list[TokenGroup] = []
    while start < len(ids):
        seen = start if not found else min(context, start)
        end = min(len(ids), start - seen + window)
        head = ids[start - seen : start]
        found.append(
            TokenGroup(
                prompt=head, completions=(ids[start:end],), verdict=NONE,
                row=document.row, id=document.id,
            )
        )  # fmt: skip
        start = end
    return found
