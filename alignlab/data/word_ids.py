"""Token ids of many texts with every word encoded once, where the tokenizer never joins words.

Byte-level BPE cuts a text at its spaces before it merges anything, so the ids of a text are those
of its words, one after the other. Most words of a data set occur many times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

# A word with what stands between it and the next cut. A cut is before a single space between two
# characters that are no white space: longer runs of white space are left to the tokenizer.
_WORD = re.compile(r"\s*\S+(?:(?! \S)\s+\S*)*|\s+")
_FEW = 16  # texts that are not worth looking for words in
_KNOWN = 200_000  # words kept, and as many older ones: about 100 MB
_LONG = 48  # characters of a word that is not kept: it will hardly come again

# What a pre-tokenizer may treat alike: letters of several cases and scripts, digits, punctuation,
# symbols, marks that join, and characters that some libraries take for white space.
_KINDS = (
    *(
        "a",
        "Z",
        "é",
        "ß",
        "ǅ",
        "ʰ",
        "中",
        "の",
        "한",
        "ع",
        "अ",
        "ा",
        "Ω",
        "1",
        "9",
        "٣",
        "½",
        "Ⅷ",
        "²",
    ),
    *(
        ".",
        ",",
        ":",
        "!",
        "?",
        "'",
        "’",
        '"',
        "-",
        "–",
        "_",
        "/",
        "\\",
        "(",
        ")",
        "*",
        "#",
        "<",
        ">",
    ),
    *("|", "=", "+", "$", "%", "&", "@", "~", "^", "`", "😀", "€", "\u0301", "\u200d", "\u200b"),
    *("\u180e", "\ufeff", "\x00", "'s", "'LL", "n't", "12", "123", "1234", "...", "ab", "AB", "aB"),
)


class WordIds:
    """What ``tokenizer(texts, add_special_tokens=False)["input_ids"]`` gives, mostly remembered.

    Where the tokenizer could join words (`apart` is False) it is asked for every text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known = _Known(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text."""
        if len(texts) < _FEW or not self.apart:
            return self._ask(list(texts))
        self._known.begin()
        return [self._ids(_WORD.findall(text)) for text in texts]

    def continued(
        self, heads: Sequence[str], tails: Sequence[Sequence[str]]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Ids of every head, and of every head with each of its tails behind it, in order.

        Only a head's last word depends on what follows, so the others are not looked at again.
        """
        if len(heads) < _FEW or not self.apart:
            wholes = [head + tail for head, mine in zip(heads, tails, strict=True) for tail in mine]
            return self(heads), self(wholes)
        self._known.begin()
        alone, together = [], []
        for head, mine in zip(heads, tails, strict=True):
            words = _WORD.findall(head)
            last = words.pop() if words else ""
            first = self._ids(words)
            alone.append(first + self._ids([last]) if last else first)
            together += [first + self._ids(_WORD.findall(last + tail)) for tail in mine]
        return alone, together

    def _ids(self, words: Sequence[str]) -> list[int]:
        found: list[int] = np.frombuffer(
            b"".join(map(self._known.__getitem__, words)), np.int32
        ).tolist()
        return found

    def __getstate__(self) -> dict[str, Any]:
        """The tokenizer and the answer about it; another process learns its own words."""
        return {
            "tokenizer": self.tokenizer,
            "_known": _Known(self.tokenizer),
            "apart": self.apart,
        }

    @cached_property
    def apart(self) -> bool:
        """Whether no token can span a single space between two characters that are no space."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None:
            return False
        parts: Mapping[str, Any] = json.loads(core.to_str())
        model, normalizer = parts["model"], parts["normalizer"]
        return (
            model["type"] == "BPE"
            and not model.get("dropout")
            and parts["pre_tokenizer"] is not None
            and (normalizer is None or normalizer["type"] == "NFC")
            and not any(map(_takes_spaces, parts["added_tokens"]))
            and _cuts_at_spaces(json.dumps(parts["pre_tokenizer"]))
        )

    def _ask(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]


class _Known(dict[str, bytes]):
    """Ids of words, 4 bytes each; of a word that is not there the tokenizer is asked."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.older: dict[str, bytes] = {}  # those known before there were too many

    def __reduce__(self) -> tuple[type[_Known], tuple[Any]]:
        """Without the words."""
        return type(self), (self.tokenizer,)

    def begin(self) -> None:
        """Undo what earlier uses of the tokenizer set: padding and truncation."""
        core = self.tokenizer.backend_tokenizer
        core.no_padding()
        core.no_truncation()
        self.encode = core.encode

    def __missing__(self, word: str) -> bytes:
        ids = self.older.get(word)
        if ids is None:
            found = self.encode(word, add_special_tokens=False).ids
            ids = np.array(found, dtype=np.int32).tobytes()
        if len(word) <= _LONG:
            if len(self) >= _KNOWN:  # words that do not come again are left behind
                self.older = dict(self)
                self.clear()
            self[word] = ids
        return ids


def _takes_spaces(token: Mapping[str, Any]) -> bool:
    """Whether an added token could hold or swallow a single space between words."""
    inside = " " in token["content"] and token["content"].strip(" ") != ""
    alone = token["content"] == " "
    return inside or alone or token["lstrip"] or token["rstrip"] or token["single_word"]


@lru_cache(maxsize=8)
def _cuts_at_spaces(description: str) -> bool:
    """Whether "x y" is cut before its space and both sides are cut as they would be alone.

    The pre-tokenizer is asked for every two kinds of characters. It is a regular expression over
    such kinds, so what holds for all of these holds for words.
    """
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    parts = {"model": model, "pre_tokenizer": json.loads(description), "added_tokens": []}
    core = Tokenizer.from_str(json.dumps({"version": "1.0", **parts}))

    def cut(text: str) -> list[str]:
        return [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str(text)]

    lefts = {before + kind: cut(before + kind) for kind in _KINDS for before in ("", " ")}
    rights = {" " + kind + after: cut(" " + kind + after) for kind in _KINDS for after in ("", "a")}
    return all(
        cut(left + right) == alone + rights[right]
        for left, alone in lefts.items()
        for right in rights
    )
