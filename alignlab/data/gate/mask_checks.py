"""Checks of the loss masks: only what the assistant wrote is a target, and something is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.gate.check import Check, Found, RowCheck, found
from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.tally import Tally
from alignlab.data.group import Message, Text, TokenGroup
from alignlab.data.wording import content

DECODED = 1000  # completions of several turns whose targets are read as text again
LONG = 12  # characters of a turn from which its text is looked for: shorter ones occur anywhere


class NoTarget(RowCheck):
    """Completions whose mask leaves nothing to learn."""

    code = "no_target"
    message = "A completion has no token that the loss counts"
    advice = (
        "Give at least one assistant turn a weight of 1, raise max_completion, or drop the row."
    )

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with a mask that is all False."""
        return [
            row
            for row, t in enumerate(chunk.tokens)
            if any(mask is not None and len(mask) and not mask.any() for mask in t.masks)
        ]


class EndMasked(RowCheck):
    """A whole answer whose last token, the one that ends it, is no target."""

    code = "end_not_target"
    message = "The token that ends an answer is no target, so the policy would not learn to stop"
    advice = "Tokenise with alignlab.data.template.Tokenization, whose masks hold the end of turns."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with a mask that leaves out the end of a completion that is not cut."""
        masked = [row for row, tokens in enumerate(chunk.tokens) if tokens.masks]
        return [row for row in masked if _endless(chunk.groups[row].completions, chunk.tokens[row])]


class MaskSpans(Check):
    """Completions of several turns: the targets are as many spans as the assistant has turns.

    The text of the first thousand is read back from the very ids that are targets, and must not
    hold what a user or a tool wrote.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.unmasked, self.spans, self.foreign = Tally(), Tally(), Tally()
        self.decoded = 0

    def see(self, chunk: Chunk) -> None:
        """Look at the completions with turns of others than the assistant."""
        for row in np.flatnonzero(chunk.conversational).tolist():
            group, tokens = chunk.groups[row], chunk.tokens[row]
            turns = [i for i, c in enumerate(group.completions) if _others(c)]
            if turns:
                self._see_row(
                    chunk.start, row, [group.completions[i] for i in turns], tokens, turns
                )

    def _see_row(
        self, start: int, row: int, texts: list[Text], tokens: TokenGroup, which: list[int]
    ) -> None:
        masks = [m for i in which if tokens.masks and (m := tokens.masks[i]) is not None]
        if len(masks) < len(which):
            self.unmasked.add(start, [row])
            return
        cut = [bool(tokens.truncated and tokens.truncated[i]) for i in which]
        wrong = foreign = False
        for text, mask, short, i in zip(texts, masks, cut, which, strict=True):
            edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False]))))
            spans = edges.reshape(-1, 2)
            counted = sum(_counts(message) for message in _messages(text))
            wrong |= len(spans) > counted or (len(spans) < counted and not short)
            if self.decoded < DECODED:
                self.decoded += 1
                ids = tokens.completions[i]
                said = [self.facts.tokenizer.decode(ids[a:b].tolist()) for a, b in spans]
                foreign |= _holds_others(said, text)
        self.spans.add(start, [row] if wrong else [])
        self.foreign.add(start, [row] if foreign else [])

    def findings(self) -> Iterator[Found]:
        """Targets that the assistant did not write, and turns of it that are none."""
        yield from found(
            "error",
            "user_turn_in_loss",
            self.unmasked,
            "A completion holds turns of a user or a tool and has no mask: they are targets",
            "Tokenise with alignlab.data.template.Tokenization, which masks them; or data.turns="
            "last.",
        )
        yield from found(
            "error",
            "target_outside_turn",
            self.foreign,
            "Targets hold text that a user or a tool wrote",
            "The chat template does not show where a turn begins: take another one, or data.turns="
            "last.",
        )
        yield from found(
            "error",
            "mask_spans",
            self.spans,
            "The targets are not as many spans as the assistant has turns",
            "The chat template does not show where a turn begins: take another one, or data.turns="
            "last.",
        )


def _endless(texts: tuple[Text, ...], tokens: TokenGroup) -> bool:
    cuts = tokens.truncated or (False,) * len(texts)
    for text, mask, cut in zip(texts, tokens.masks, cuts, strict=True):
        last = isinstance(text, str) or _counts(text[-1])
        if mask is not None and len(mask) and last and not cut and not mask[-1]:
            return True
    return False


def _messages(text: Text) -> tuple[Message, ...]:
    return () if isinstance(text, str) else text


def _others(text: Text) -> bool:
    return any(m["role"] != "assistant" for m in _messages(text))


def _counts(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _holds_others(said: list[str], text: Text) -> bool:
    """Whether a turn that is no target stands in the decoded targets, and in no turn that is."""
    own = "\n".join(content((m,)) for m in _messages(text) if _counts(m))
    others = [content((m,)).strip() for m in _messages(text) if not _counts(m)]
    return any(
        len(other) >= LONG and other not in own and any(other in span for span in said)
        for other in others
    )
