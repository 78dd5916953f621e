"""Checks of the token stream: BOS, EOS, ids that the model does not know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.gate.check import Check, Found, RowCheck, found
from alignlab.data.gate.chunk import Chunk, Facts, Flat
from alignlab.data.gate.tally import Tally


class BosTwice(RowCheck):
    """A prompt that starts with BOS more than once."""

    code = "bos_twice"
    message = "The prompt starts with BOS more than once"
    advice = "Remove BOS from the text or from the chat template."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows whose first two tokens are BOS."""
        if self.facts.bos is None:
            return ()
        return np.flatnonzero(_opening(chunk.prompts, self.facts.bos) > 1)


class BosMissing(RowCheck):
    """A prompt without the BOS that the tokenizer's own encoding adds."""

    code = "bos_missing"
    message = "The prompt lacks the BOS that the tokenizer adds to a text"
    advice = "Tokenise with alignlab.data.template.Tokenization."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows whose first token is not BOS."""
        if self.facts.bos is None or not self.facts.adds_bos:
            return ()
        return np.flatnonzero(_opening(chunk.prompts, self.facts.bos) == 0)


class BosInside(RowCheck):
    """A BOS of its own kind (not a turn mark, not EOS) belongs nowhere but at the start."""

    severity = "warning"  # a policy may sample BOS; BOS in a given text is SpecialText's error
    code = "bos_inside"
    message = "BOS stands inside a prompt or completion"
    advice = "Remove it from the text, or write the chat template so that BOS comes first only."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with BOS after the first token."""
        bos = self.facts.bos
        if not self.facts.adds_bos or bos == self.facts.eos:
            return ()
        prompts, completions = chunk.prompts, chunk.completions
        inside = prompts.ids == bos
        inside[prompts.starts[prompts.lengths > 0]] = False
        rows = np.concatenate(
            (
                prompts.rows(prompts.sequence_of(np.flatnonzero(inside))),
                completions.rows(completions.sequence_of(np.flatnonzero(completions.ids == bos))),
            )
        )
        return np.unique(rows)


class EndOfCompletion(Check):
    """A completion ends in one end token unless it was truncated; none stands inside.

    The end token is EOS and, for messages, any special token of the template.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.missing, self.twice = Tally(), Tally()

    def see(self, chunk: Chunk) -> None:
        """Look at the last token of each completion, and for its like before it."""
        flat, last = chunk.completions, chunk.completions.last
        special = chunk.conversational[flat.owner] & np.isin(last, self.facts.special)
        ends = (last == self.facts.eos) | special
        without = (flat.lengths > 0) & ~chunk.truncated & ~ends
        self.missing.add(chunk.start, flat.rows(without))
        several = flat.count(flat.ids == np.repeat(last, flat.lengths)) > 1
        turns = [
            not isinstance(c, str) and len(c) > 1 for g in chunk.groups for c in g.completions
        ]  # each turn of a dialogue ends: masks say which of them are targets
        self.twice.add(chunk.start, flat.rows(ends & several & ~np.array(turns, dtype=bool)))

    def findings(self) -> Iterator[Found]:
        """Completions that never end, and such that end twice."""
        yield from found(
            "error",
            "eos_missing",
            self.missing,
            "A completion does not end in EOS, so the policy would not learn to stop",
            "Tokenise with alignlab.data.template.Tokenization; a cut completion must say so.",
        )
        yield from found(
            "error",
            "eos_twice",
            self.twice,
            "A completion has EOS before its end too",
            "Remove EOS from the text or from the chat template.",
        )


class OutOfVocabulary(RowCheck):
    """Ids for which the model has no embedding."""

    code = "out_of_vocabulary"
    message = "A token id lies outside of the model's vocabulary"
    advice = "Use the model's own tokenizer, or resize the model's embedding to the tokenizer."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with an id below 0 or from the size of the vocabulary on."""
        outside = [
            flat.rows(flat.count((flat.ids < 0) | (flat.ids >= self.facts.vocabulary)) > 0)
            for flat in (chunk.prompts, chunk.completions)
        ]
        return np.unique(np.concatenate(outside))


class UnknownTokens(Check):
    """Text that the tokenizer could only write as its unknown token is lost."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.unknown, self.tokens = Tally(), 0, 0
        ends = (facts.bos, facts.eos, facts.tokenizer.pad_token_id)
        token = facts.tokenizer.unk_token_id
        self.token = None if token in ends else token  # GPT-2's is its EOS: it says nothing

    def see(self, chunk: Chunk) -> None:
        """Count unknown tokens, and the rows that hold any."""
        if self.token is None:
            return
        rows = []
        for flat in (chunk.prompts, chunk.completions):
            found_here = flat.count(flat.ids == self.token)
            self.unknown += int(found_here.sum())
            self.tokens += len(flat.ids)
            rows.append(flat.rows(found_here > 0))
        self.tally.add(chunk.start, np.unique(np.concatenate(rows)))

    def findings(self) -> Iterator[Found]:
        """One finding if their share of all tokens is above the limit."""
        severity = self.facts.limits.unknown_tokens.severity(self.unknown, self.tokens)
        if severity is not None:
            yield from found(
                severity,
                "unknown_tokens",
                self.tally,
                f"{self.unknown / self.tokens:.2%} of the tokens are the unknown token",
                "The tokenizer cannot write this text: use a byte-level tokenizer, or other text.",
            )


def _opening(flat: Flat, bos: int) -> np.ndarray:
    """How many of the first two tokens of each sequence are BOS in a row: 0, 1 or 2 (S,)."""
    padded = np.append(flat.ids, [-1, -1])
    one = (flat.lengths > 0) & (padded[flat.starts] == bos)
    two = one & (flat.lengths > 1) & (padded[flat.starts + 1] == bos)
    return one.astype(int) + two
