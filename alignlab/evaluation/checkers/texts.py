"""Texts as words, sentences and lines: what checkers count."""

from __future__ import annotations

import re
import string
import unicodedata

PUNCTUATION = string.punctuation + "“”‘’…–—"
_WORD = re.compile(r"\w+")
_END = re.compile(r"([.!?…]+[\"'”’)\]*_]*)(\s+|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s)")
# A full stop after one of these, after an initial or after a list number ends no sentence.
_NO_END = re.compile(
    r"(?:\b(?i:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|cf|no|vol|fig|inc|ltd|co|gen|sen|rep|"
    r"gov|capt|lt|col|approx|dept|u\.s|u\.k|ph\.d|a\.m|p\.m)|(?:^|\s)[A-Z]|^\s*\d+)\.$"
)
_NOTHING = str.maketrans("", "", PUNCTUATION)


def listed(text: str) -> tuple[str, ...]:
    """Words of a list that is written as one text."""
    return tuple(text.split())


def words(text: str) -> list[str]:
    r"""Runs of letters, digits and underscores (``\w+``), as IFEval counts words."""
    return _WORD.findall(text)


def spoken(text: str) -> list[str]:
    """Words as white space parts them, without punctuation; what has no other sign is no word."""
    return text.translate(_NOTHING).split()


def stripped(text: str) -> list[str]:
    """Words as white space parts them, without punctuation at their ends."""
    return [w for part in text.split() if (w := part.strip(PUNCTUATION))]


def sentences(text: str) -> list[str]:
    """Sentences of a text, stripped: they end with . ! ? or …, a blank line, or a list item.

    A rule and not a model: known abbreviations, single capitals and list numbers end none.
    """
    found, start = [], 0
    for match in _END.finditer(text):
        piece = text[start : match.end()].strip()
        if match[1] == "." and _NO_END.search(piece):
            continue
        if piece:
            found.append(piece)
        start = match.end()
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def lines(text: str) -> list[str]:
    """Lines that hold more than white space, as they are."""
    return [line for line in text.split("\n") if line.strip()]


def ascii_only(text: str) -> str:
    """Text without diacritical marks."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def is_emoji(character: str) -> bool:
    """Whether a character is drawn as a picture: the Unicode blocks of emoji and symbols."""
    point = ord(character)
    return (
        0x1F000 <= point <= 0x1FAFF
        or 0x2600 <= point <= 0x27BF
        or 0x2B00 <= point <= 0x2BFF
        or 0x2300 <= point <= 0x23FF
        or point in (0x203C, 0x2049, 0x3030, 0x303D, 0x3297, 0x3299, 0x00A9, 0x00AE, 0x2122)
    )


JOINERS = "\ufe0f\ufe0e\u200d\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff\u20e3"
