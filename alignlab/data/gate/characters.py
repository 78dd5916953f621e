"""Every Unicode character in one of a few classes: letters by script, and what no text should hold.

These are scripts, not languages: English and Spanish are both Latin.
"""

from __future__ import annotations

from functools import cache

import numpy as np

NEUTRAL, SURROGATE, REPLACED, CONTROL, INVISIBLE = range(5)

# Main blocks of the scripts that data are written in; Chinese and Japanese share characters, so
# they share a class.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": (
        (0x41, 0x5A),
        (0x61, 0x7A),
        (0xAA, 0xAA),
        (0xBA, 0xBA),
        (0xC0, 0xD6),
        (0xD8, 0xF6),
        (0xF8, 0x2AF),
        (0x1E00, 0x1EFF),
        (0x2C60, 0x2C7F),
        (0xA720, 0xA7FF),
        (0xFF21, 0xFF3A),
        (0xFF41, 0xFF5A),
    ),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Armenian": ((0x530, 0x58F),),
    "Hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDCF), (0xFE70, 0xFEFE)),
    "Devanagari": ((0x900, 0x97F),),
    "Bengali": ((0x980, 0x9FF),),
    "Gurmukhi": ((0xA00, 0xA7F),),
    "Gujarati": ((0xA80, 0xAFF),),
    "Tamil": ((0xB80, 0xBFF),),
    "Telugu": ((0xC00, 0xC7F),),
    "Kannada": ((0xC80, 0xCFF),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Sinhala": ((0xD80, 0xDFF),),
    "Thai": ((0xE00, 0xE7F),),
    "Lao": ((0xE80, 0xEFF),),
    "Tibetan": ((0xF00, 0xFFF),),
    "Burmese": ((0x1000, 0x109F),),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF)),
    "Ethiopic": ((0x1200, 0x139F),),
    "Khmer": ((0x1780, 0x17FF),),
    "Mongolian": ((0x1800, 0x18AF),),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "Han and Kana": (
        (0x2E80, 0x2FDF),
        (0x3005, 0x3007),
        (0x3040, 0x30FF),
        (0x31F0, 0x31FF),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0xFF66, 0xFF9F),
        (0x20000, 0x323AF),
    ),
}
FIRST_SCRIPT = 5  # class of the first of SCRIPTS
NAMES = tuple(SCRIPTS)
_DAMAGE = (
    (SURROGATE, 0xD800, 0xDFFF),  # half a character: no encoding can write it
    (REPLACED, 0xFFFD, 0xFFFF),  # what a decoder puts for bytes that it cannot read
    (REPLACED, 0xE000, 0xF8FF),  # private use: means nothing outside of one font
    (CONTROL, 0x00, 0x08),
    (CONTROL, 0x0B, 0x0C),
    (CONTROL, 0x0E, 0x1F),
    (CONTROL, 0x7F, 0x9F),
    (INVISIBLE, 0x200B, 0x200B),
    (INVISIBLE, 0x200E, 0x200F),
    (INVISIBLE, 0x202A, 0x202E),  # turn the direction of what follows
    (INVISIBLE, 0x2060, 0x206F),
    (INVISIBLE, 0xFEFF, 0xFEFF),  # a byte order mark in the middle of a text
    (INVISIBLE, 0xE0000, 0xE007F),  # tags: a whole message can hide in them
)


@cache
def table() -> np.ndarray:
    """Class of every code point (1114112,) uint8."""
    classes = np.zeros(0x110000, dtype=np.uint8)
    for number, ranges in enumerate(SCRIPTS.values(), FIRST_SCRIPT):
        for first, last in ranges:
            classes[first : last + 1] = number
    for kind, first, last in _DAMAGE:
        classes[first : last + 1] = kind
    return classes


def classes_of(text: str) -> np.ndarray:
    """Class of every character of a text (N,) uint8."""
    if text.isascii():
        return table()[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
    return table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]


def counts_of(texts: list[str]) -> np.ndarray:
    """How many characters of each class each text has (T, FIRST_SCRIPT + scripts) int64."""
    counts = np.zeros((len(texts), FIRST_SCRIPT + len(NAMES)), dtype=np.int64)
    ascii_ = [i for i, text in enumerate(texts) if text and text.isascii()]
    other = [i for i, text in enumerate(texts) if text and not text.isascii()]
    for members in (ascii_, other):  # joined, so that one pass serves all; ASCII takes a byte each
        if members:
            classes = classes_of("".join([texts[i] for i in members]))
            lengths = np.array([len(texts[i]) for i in members])
            starts = np.cumsum(lengths) - lengths
            for kind in np.flatnonzero(np.bincount(classes)).tolist():
                if kind != NEUTRAL:
                    here = (classes == kind).astype(np.int64)
                    counts[members, kind] = np.add.reduceat(here, starts)
    return counts
