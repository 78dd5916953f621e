"""Names that are nearly known ones: a misspelt field would be ignored without a word."""

from __future__ import annotations

from collections.abc import Collection


def slip_of(word: str, known: Collection[str]) -> str:
    """Return the known word that ``word`` is but for one slip, or an empty text.

    A slip is the case, a plural, one letter more or less, two letters exchanged, or, in a word of
    five letters or more, another letter. Words of fewer than four have too many neighbours.
    """
    if word in known or len(word) < 4:
        return ""
    lower = word.lower()
    return next((right for right in known if _one_slip(lower, right)), "")


def _one_slip(word: str, right: str) -> bool:
    if word.rstrip("s") == right.rstrip("s"):
        return True
    if abs(len(word) - len(right)) > 1:
        return False
    same = next((i for i, (a, b) in enumerate(zip(word, right, strict=False)) if a != b), None)
    if same is None:  # one is the beginning of the other
        return True
    rest, other = word[same:], right[same:]
    exchanged = rest[:2] == other[1::-1] and rest[2:] == other[2:]
    replaced = len(right) > 4 and rest[1:] == other[1:]
    return exchanged or replaced or rest[1:] == other or rest == other[1:]
