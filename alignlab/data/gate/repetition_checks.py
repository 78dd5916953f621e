"""Checks of repetition: whole rows, prompts of other splits, answers of held-out prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.gate.check import Check, Found, found
from alignlab.data.gate.chunk import Chunk, Facts, keys_of, mixed
from alignlab.data.gate.tally import Column, Tally
from alignlab.data.group import PromptGroup
from alignlab.data.wording import content, folded, identity

WINDOW = 16  # tokens of a held-out answer that are looked for first
SHORT = 60  # characters below which a held-out answer may well occur by chance
NEAR_WORDS = 4  # words from which a prompt is compared without its punctuation

# Signs of formulas and code stay: 2+2 and 2-2 are different questions. As bytes, because
# `str.translate` is ten times slower as soon as a text holds one typographic quote.
_PUNCTUATION = b"!\"'(),.:;?[]`{}"
_BLANKED = bytes(ord(" ") if byte in _PUNCTUATION else byte for byte in range(256))
_SPACES = bytes(byte for byte in range(128) if chr(byte).isspace())
_OTHER_MARKS = tuple(mark.encode() for mark in "¡¿«»“”„‘’…–—。，！？：；（）、「」") + tuple(
    chr(code).encode() for code in range(128, 0x3001) if chr(code).isspace()
)

_DROPPED = bytes(sorted({*_PUNCTUATION, *_SPACES, *b"".join(_OTHER_MARKS)}))


def plain(text: str) -> bytes:
    """Text without differences of case and white space."""
    return folded(text).encode("utf-8", "surrogatepass")


def bare(text: str) -> bytes:
    """Text without differences of case, white space and, unless it is short, punctuation."""
    folded = text.casefold().encode("utf-8", "surrogatepass")
    if not text.isascii():
        for mark in _OTHER_MARKS:
            folded = folded.replace(mark, b" ")
    words = folded.translate(_BLANKED).split()
    return b" ".join(words) if len(words) >= NEAR_WORDS else plain(text)


def skeleton(text: str) -> bytes:
    """What texts share if `plain` or `bare` of them are the same, and few others do.

    Every byte that a mark or a space is made of is dropped, wherever it stands: that is quick.
    """
    return text.casefold().encode("utf-8", "surrogatepass").translate(None, _DROPPED)


class Repeated(Check):
    """Whole rows that occur more than once: the same tokens with the same verdict."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.keys, self.positions, self.rows = Column("Q"), Column("q"), 0

    def see(self, chunk: Chunk) -> None:
        """Remember a hash of every row that has completions."""
        self.rows += len(chunk.tokens)
        counts = np.diff(chunk.first)
        verdicts = (t.verdict for t in chunk.tokens)
        judged = [hash((v.ranks, v.scores, v.thumbs)) for v in verdicts]  # of numbers: no seed
        key = mixed(chunk.prompt_keys, np.array(judged, dtype=np.int64).astype(np.uint64))
        first = chunk.first[:-1]
        for place in range(int(counts.max(initial=0))):
            more = counts > place
            padded = np.zeros(len(key), dtype=np.uint64)
            padded[more] = chunk.completion_keys[first[more] + place]
            key = np.where(more, mixed(key, padded), key)
        self.keys.add(key[counts > 0])
        self.positions.add(chunk.start + np.flatnonzero(counts))

    def findings(self) -> Iterator[Found]:
        """One finding with the copies; the first of each is none."""
        _, first = np.unique(self.keys.values(), return_index=True)
        copies = np.ones(len(self.keys), dtype=bool)
        copies[first] = False
        tally = Tally()
        tally.add(0, self.positions.values()[copies])
        severity = self.facts.limits.repeated_row.severity(tally.count, self.rows)
        if severity is not None:
            yield from found(
                severity, "repeated_row", tally, "A row occurs more than once", "Drop the copies."
            )


class Leakage(Check):
    """Prompts that occur in another split too, exactly or but for their punctuation."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        held_out = {name: _texts(groups) for name, groups in facts.held_out.items()}
        self.same = {name: _keys(map(plain, texts)) for name, texts in held_out.items()}
        self.near = {name: _keys(map(bare, texts)) for name, texts in held_out.items()}
        self.alike = {name: _keys(map(skeleton, texts)) for name, texts in held_out.items()}
        self.exact = {name: Tally() for name in held_out}
        self.close = {name: Tally() for name in held_out}

    def see(self, chunk: Chunk) -> None:
        """Compare the prompts with those of the other splits."""
        if not any(map(len, self.same.values())):
            return
        texts = list(map(identity, chunk.prompt_texts, chunk.answer_texts))
        keys = keys_of(list(map(skeleton, texts)))
        for name in self.same:
            alike = np.flatnonzero(np.isin(keys, self.alike[name]))  # few: compared closely
            exact = np.isin(keys_of([plain(texts[row]) for row in alike]), self.same[name])
            close = np.isin(keys_of([bare(texts[row]) for row in alike]), self.near[name])
            self.exact[name].add(chunk.start, alike[exact])
            self.close[name].add(chunk.start, alike[close & ~exact])

    def findings(self) -> Iterator[Found]:
        """Per split an error for the same prompts and a warning for nearly the same ones."""
        for name in self.same:
            yield from found(
                "error",
                "prompt_in_two_splits",
                self.exact[name],
                f"Prompts occur in the split '{name}' too",
                "Held-out numbers would be memory. Remove them from one of the splits.",
            )
            yield from found(
                "warning",
                "near_prompt_in_two_splits",
                self.close[name],
                f"Prompts occur in the split '{name}' too, but for punctuation",
                "Look at them; if they ask the same, remove them from one of the splits.",
            )


class HeldOutAnswers(Check):
    """Completions that hold the whole answer of a held-out prompt, token for token.

    A held-out answer is looked for from its second token on (how the first one is cut depends on
    what stands before it). Short answers, which occur by chance, are not looked for.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tallies = {name: Tally() for name in facts.held_out}
        self.known: dict[int, list[tuple[int, bytes, str]]] = {}  # window -> (tokens, hash, split)
        if not facts.sampled:
            for name, groups in facts.held_out.items():
                self._remember(name, groups)
        slots = 1 << max(16, min(24, (64 * len(self.known)).bit_length()))
        self.mask = np.uint64(slots - 1)
        self.slots = np.zeros(slots, dtype=bool)  # nearly every window is told apart here
        windows = np.fromiter(self.known, np.uint64, len(self.known))
        self.slots[windows & self.mask] = True

    def _remember(self, name: str, groups: Iterable[PromptGroup]) -> None:
        texts = [text for g in groups for c in g.completions if len(text := content(c)) >= SHORT]
        if not texts:
            return
        encoded = self.facts.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for ids in encoded:
            tail = np.array(ids[1:], dtype=np.int32)
            if len(tail) >= WINDOW:
                window = int(rolling(tail[:WINDOW])[0])
                self.known.setdefault(window, []).append((len(tail), _digest(tail), name))

    def see(self, chunk: Chunk) -> None:
        """Look for the beginnings of held-out answers, and compare on from there."""
        flat = chunk.completions
        if not self.known or len(flat.ids) < WINDOW:
            return
        windows = rolling(flat.ids)
        rows: dict[str, set[int]] = {name: set() for name in self.tallies}
        for start in np.flatnonzero(self.slots[windows & self.mask]).tolist():
            sequence = int(flat.sequence_of(np.array(start)))
            for tokens, digest, name in self.known.get(int(windows[start]), ()):
                inside = start + tokens <= flat.ends[sequence]
                if inside and _digest(flat.ids[start : start + tokens]) == digest:
                    rows[name].add(int(flat.owner[sequence]))
        for name, shown in rows.items():
            self.tallies[name].add(chunk.start, sorted(shown))

    def findings(self) -> Iterator[Found]:
        """A warning per split."""
        for name, tally in self.tallies.items():
            yield from found(
                "warning",
                "held_out_answer",
                tally,
                f"Completions hold whole answers of the split '{name}'",
                "Unless these are stock phrases, remove the rows: held-out scores would be memory.",
            )


def rolling(ids: np.ndarray) -> np.ndarray:
    """Hash of every window of `WINDOW` ids (N - WINDOW + 1,) uint64, by doubling."""
    result = (ids.astype(np.int64).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    size = 1
    while size < WINDOW:
        factor = np.uint64(0xBF58476D1CE4E5B9 + 2 * size)
        left, right = result[:-size], result[size:]
        result = (left ^ (left >> np.uint64(31))) * factor + right
        size *= 2
    return result ^ (result >> np.uint64(29))


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.astype(np.int32).tobytes(), digest_size=8).digest()


def _texts(groups: Iterable[PromptGroup]) -> list[str]:
    return [identity(content(g.prompt), [content(c) for c in g.completions]) for g in groups]


def _keys(texts: Iterable[bytes]) -> np.ndarray:
    return np.unique(keys_of([text for text in texts if text]))
