"""The token view: every token of a group with its text and what it is to a loss."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup, TokenGroup, Verdict
    from alignlab.data.template import Tokenization

Kind = Literal["prompt", "target", "end", "masked", "cut"]
MEANING: dict[Kind, str] = {
    "prompt": "read by the model, no loss",
    "target": "counted by the loss",
    "end": "counted, ends an answer",
    "masked": "inside a completion, read only",
    "cut": "truncated away, not seen at all",
}
LONGEST_CHARACTER = 4  # tokens, where every byte of a character is a token of its own


@dataclass(frozen=True)
class Piece:
    """The smallest run of tokens that spells whole characters; mostly one token."""

    ids: tuple[int, ...]
    text: str
    kind: Kind
    special: bool = False  # a token of the template, not text that looks like it


@dataclass(frozen=True)
class CompletionView:
    """One completion: what its verdict says, its pieces, and its counts in tokens."""

    label: str
    pieces: tuple[Piece, ...]
    tokens: int  # that a stage sees
    targets: int
    cut: int  # tokens truncated away


@dataclass(frozen=True)
class RowView:
    """One prompt group as a stage would train on it."""

    row: int
    id: str
    place: str
    verdict: str
    prompt: tuple[Piece, ...]
    prompt_tokens: int
    prompt_cut: int
    completions: tuple[CompletionView, ...]


class Viewer:
    """Makes views of groups with one tokenization, which says what is cut."""

    def __init__(self, tokenization: Tokenization) -> None:
        self.cutting, self.whole = tokenization, copy(tokenization)
        self.whole.max_prompt = self.whole.max_completion = None
        self.tokenizer = tokenization.tokenizer
        self._anchor = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        self._before = self._decode(self._anchor)

    def view(self, group: PromptGroup, row: int) -> RowView:
        """View one group; ``row`` is its position in the data set.

        Raises:
            DataError: the group cannot be tokenised.
        """
        seen, whole = self.cutting.group(group, row), self.whole.group(group, row)
        cut = int(seen.meta.get("prompt_cut", 0))
        return RowView(
            row=row,
            id=group.id,
            place=str(group.meta.get("place", "")),
            verdict=group.verdict.kind,
            prompt=self.pieces(whole.prompt, self._prompt_kinds(whole.prompt, cut)),
            prompt_tokens=len(seen.prompt),
            prompt_cut=cut,
            completions=tuple(
                self._completion(seen, whole, number) for number in range(len(seen.completions))
            ),
        )

    def pieces(self, ids: Sequence[int] | np.ndarray, kinds: Sequence[Kind]) -> tuple[Piece, ...]:
        """Cut ids into pieces that spell whole characters, none of two kinds."""
        tokens = [int(token) for token in ids]
        made: list[Piece] = []
        start = 0
        while start < len(tokens):
            token, kind = tokens[start], kinds[start]
            if token in self.cutting.special_ids:
                name = str(self.tokenizer.convert_ids_to_tokens(token))
                made.append(Piece((token,), name, kind, special=True))
                start += 1
                continue
            end = self._end_of_piece(tokens, kinds, start)
            part = tuple(tokens[start:end])
            made.append(Piece(part, self._spelt(part), kind))
            start = end
        return tuple(made)

    def _prompt_kinds(self, prompt: np.ndarray, cut: int) -> list[Kind]:
        kinds: list[Kind] = ["prompt"] * len(prompt)
        first = int(bool(len(prompt)) and prompt[0] == self.tokenizer.bos_token_id)  # BOS stays
        kinds[first : first + cut] = ["cut"] * cut
        return kinds

    def _completion(self, seen: TokenGroup, whole: TokenGroup, number: int) -> CompletionView:
        ids, kept = whole.completions[number], len(seen.completions[number])
        mask = whole.masks[number] if whole.masks else None
        ends = set(self.cutting.stop_ids)
        kinds: list[Kind] = []
        for position, token in enumerate(ids.tolist()):
            if position >= kept:
                kinds.append("cut")
            elif mask is not None and not mask[position]:
                kinds.append("masked")
            else:
                kinds.append("end" if token in ends else "target")
        return CompletionView(
            label=label(whole.verdict, number),
            pieces=self.pieces(ids, kinds),
            tokens=kept,
            targets=seen.targets()[number],
            cut=len(ids) - kept,
        )

    def _end_of_piece(self, tokens: list[int], kinds: Sequence[Kind], start: int) -> int:
        for end in range(start + 1, min(start + LONGEST_CHARACTER, len(tokens)) + 1):
            if kinds[end - 1] != kinds[start] or tokens[end - 1] in self.cutting.special_ids:
                break
            if "\ufffd" not in self._spelt(tuple(tokens[start:end])):
                return end
        return start + 1

    def _spelt(self, ids: tuple[int, ...]) -> str:
        # Behind an anchor, because SentencePiece drops the space before a text's first word.
        text = self._decode([*self._anchor, *ids])
        return text[len(self._before) :] if text.startswith(self._before) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        options: dict[str, Any] = {"clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, **options))


def label(verdict: Verdict, number: int) -> str:
    """What the verdict says of one completion, in words; empty for demonstrations."""
    if verdict.kind == "ranking":
        place = verdict.ranks[number]
        return f"rank {place}" + (" (best)" if place == min(verdict.ranks) else "")
    if verdict.kind == "scores":
        return f"score {verdict.scores[number]:g}"
    if verdict.kind == "thumbs":
        return "thumb up" if verdict.thumbs[number] else "thumb down"
    return ""


def visible(character: str) -> str:
    """A character as a person can see it: white space and control characters get a sign."""
    if character == " " or character.isprintable():
        return character
    return {"\n": "↵", "\t": "⇥"}.get(character) or f"⟨U+{ord(character):04X}⟩"


def quoted(text: str) -> str:
    """A text as one line that can be read back: quoted, every unprintable character escaped."""
    named = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(named.get(c) or (c if c.isprintable() else _escape(c)) for c in text) + '"'


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"
