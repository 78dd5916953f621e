"""Checks of the characters: damaged text, and rows in another script than the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.gate import characters
from alignlab.data.gate.check import Check, Found, RowCheck, found
from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.limits import Share
from alignlab.data.gate.tally import Tally

LETTERS = 20  # letters from which prompt and answer are compared by their script

# UTF-8 that was read as Windows-1252 or Latin-1: é becomes Ã©, ’ becomes â€™, an emoji ðŸ….
_MISREAD = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u0153\u02dc\u201c\u201d\u2122]"
    "|\u00e2\u0080[\u0080-\u00bf]|\u00f0\u0178|\u00f0\u009f"
)
_LEADS = ("\u00c2", "\u00c3", "\u00e2", "\u00f0")

DAMAGE = {
    characters.REPLACED: (
        "replacement_character",
        "A text holds U+FFFD, which stands for bytes that could not be read, or private characters",
        "Read the source again with its true encoding.",
    ),
    characters.CONTROL: (
        "control_character",
        "A text holds control characters (NUL, escape codes, …)",
        "Remove them: they come from a terminal, a PDF or a wrong encoding.",
    ),
    characters.INVISIBLE: (
        "invisible_character",
        "A text holds invisible characters that change direction or hide text",
        "Remove them, unless the script needs them.",
    ),
}


class Characters(Check):
    """Damaged characters, and scripts of the rows: one pass over all characters serves both."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.rows = 0
        self.broken = Tally()
        self.damage = {kind: Tally() for kind in DAMAGE}
        self.scripts = {name: Tally() for name in characters.NAMES}
        self.switched = Tally()

    def see(self, chunk: Chunk) -> None:
        """Count the classes of all characters."""
        self.rows += len(chunk.groups)
        prompts = characters.counts_of(chunk.prompt_texts)
        answers = characters.counts_of(["\n".join(texts) for texts in chunk.answer_texts])
        both = prompts + answers
        self.broken.add(chunk.start, np.flatnonzero(both[:, characters.SURROGATE]))
        for kind, tally in self.damage.items():
            tally.add(chunk.start, np.flatnonzero(both[:, kind]))
        script = _dominant(both, least=1)
        for number, tally in enumerate(self.scripts.values()):
            tally.add(chunk.start, np.flatnonzero(script == number))
        asked, said = _dominant(prompts, LETTERS), _dominant(answers, LETTERS)
        self.switched.add(chunk.start, np.flatnonzero((asked >= 0) & (said >= 0) & (asked != said)))

    def shares(self) -> dict[str, float]:
        """Share of the rows by their most frequent script; rows without letters are in none."""
        total = max(self.rows, 1)
        return {name: t.count / total for name, t in self.scripts.items() if t.count}

    def findings(self) -> Iterator[Found]:
        """Damage of each kind, scripts that stand out, answers in another script."""
        yield from found(
            "error",
            "invalid_unicode",
            self.broken,
            "A text holds half a character (a lone surrogate), which no encoding can write",
            "Repair or drop the rows; a cut \\ud83d escape in JSON is the usual cause.",
        )
        limit: Share = self.facts.limits.unreadable_text
        for kind, (code, message, advice) in DAMAGE.items():
            severity = limit.severity(self.damage[kind].count, self.rows)
            if severity is not None:
                yield from found(severity, code, self.damage[kind], message, advice)
        yield from self._outliers()

    def _outliers(self) -> Iterator[Found]:
        rare = self.facts.limits.script_outlier
        if rare is None:
            return
        lettered = sum(t.count for t in self.scripts.values())
        common = max(self.scripts, key=lambda name: self.scripts[name].count)
        for name, tally in self.scripts.items():
            if name != common and 0 < tally.count <= rare * lettered:
                yield from found(
                    "warning",
                    "other_script",
                    tally,
                    f"Rows are written in {name} script, most others in {common}",
                    "If another language is not meant, drop them.",
                )
        if 0 < self.switched.count <= rare * lettered:
            yield from found(
                "warning",
                "answer_in_other_script",
                self.switched,
                "Completions are written in another script than their prompt",
                "If these are not translations, drop them.",
            )


class Mojibake(RowCheck):
    """Text that was read with the wrong encoding once: ``itâ€™s``, ``cafÃ©``."""

    severity = "warning"
    code = "mojibake"
    message = "A text was read with the wrong encoding (â€™ for ’, Ã© for é)"
    advice = "Read the source as UTF-8, or repair the text (ftfy does it)."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with such pairs of characters."""
        texts = zip(chunk.prompt_texts, chunk.answer_texts, strict=True)
        return [
            row
            for row, (prompt, answers) in enumerate(texts)
            if _misread(prompt) or any(map(_misread, answers))
        ]

    def limit(self) -> Share:
        """As for other damage."""
        return self.facts.limits.unreadable_text


def _misread(text: str) -> bool:
    if text.isascii() or not any(lead in text for lead in _LEADS):
        return False
    return _MISREAD.search(text) is not None


def _dominant(counts: np.ndarray, least: int) -> np.ndarray:
    """Index of the most frequent script of each text; -1 below ``least`` letters (T,)."""
    letters = counts[:, characters.FIRST_SCRIPT :]
    if not len(letters):
        return np.zeros(0, dtype=np.int64)
    return np.where(letters.sum(axis=1) >= least, letters.argmax(axis=1), -1)
