"""Texts of prompt groups as words and hashed word n-grams: what the quality steps compare."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from alignlab.data.group import PromptGroup, Text

Scope = Literal["prompt", "completion", "both"]
Part = Literal["prompt", "best", "completions", "all"]
Ignored = Literal["case", "space", "punctuation"]

# Scripts that write no spaces between words: each character counts as a word.
_SINGLE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+")
_NOT_WORD = re.compile(r"[^\w\s]+")
_PRIME = 0x100000001B3  # odd, so that multiplication mod 2^64 loses nothing


def plain(text: Text) -> str:
    """Return a text, or what its messages say, one message per line, tool calls as JSON."""
    if isinstance(text, str):
        return text
    lines = []
    for message in text:
        content = message.get("content") or ""
        lines.append(content if isinstance(content, str) else json.dumps(content, sort_keys=True))
        if message.get("tool_calls"):
            lines.append(json.dumps(message["tool_calls"], sort_keys=True))
    return "\n".join(line for line in lines if line)


def scoped(group: PromptGroup, scope: Scope) -> str:
    """Return the text that identifies a group: its prompt, its completions in order, or both."""
    prompt = [plain(group.prompt)] if scope != "completion" else []
    completions = map(plain, group.completions) if scope != "prompt" else ()
    return "\n".join((*prompt, *completions))


def parts(group: PromptGroup, part: Part) -> list[str]:
    """Return the texts of a group that a filter looks at.

    ``best`` is the best completion by the verdict, and every completion where there is no verdict.
    """
    prompt = [plain(group.prompt)] if part in ("prompt", "all") else []
    if part == "prompt" or not group.completions:
        return prompt
    if part == "best" and group.verdict:
        return [plain(group.completions[group.verdict.best()])]
    return [*prompt, *map(plain, group.completions)]


def words(text: str) -> list[str]:
    """Return the words of a text, without case, punctuation and compatibility forms (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str, ignore: Iterable[Ignored]) -> str:
    """Return the text without the differences that ``ignore`` names; Unicode forms never count."""
    text = unicodedata.normalize("NFKC", text)
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = _NOT_WORD.sub(" ", text)
    return " ".join(text.split()) if "space" in ignore or "punctuation" in ignore else text


def ngram_hashes(tokens: Sequence[str], n: int) -> np.ndarray:
    """Return uint64 (max(0, words − n + 1),): a hash of every n neighbouring words, in order."""
    count = len(tokens) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    ids = np.fromiter(map(_word_id, tokens), np.uint64, len(tokens))
    hashes = np.zeros(count, np.uint64)
    for offset in range(n):
        hashes = hashes * np.uint64(_PRIME) + ids[offset : offset + count]
    return hashes ^ (hashes >> np.uint64(29))  # high bits into the low ones


def shingles(text: str, n: int) -> np.ndarray:
    """Return uint64 (S,), sorted: the set of hashed word n-grams of a text.

    A text of fewer than ``n`` words is one shingle, one without words has none.
    """
    tokens = words(text)
    if not tokens:
        return np.zeros(0, np.uint64)
    return np.unique(ngram_hashes(tokens, min(n, len(tokens))))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Return |A ∩ B| / |A ∪ B| of two sorted sets of hashes, 0 when one is empty."""
    if not len(first) or not len(second):
        return 0.0
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def excerpt(text: str, width: int = 160) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 2 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


@lru_cache(maxsize=1 << 18)
def _word_id(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
