"""Token ids of many texts with every word encoded once, where the tokenizer never joins words.

Byte-level BPE cuts a text at its spaces before it merges anything, so the ids of a text are those
of its words, one after the other. Most words of a data set occur many times.
"""

from __future__ import annotations

import json
import re
import string
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

# A word with what stands between it and the next cut. A cut is before a single space between two
# characters that are no white space, and, where the tokenizer allows it, before line breaks that
# follow anything, or at least a letter or digit. Other white space is left to the tokenizer.
_AT_SPACES = re.compile(r"\s*\S+(?:(?! \S)\s+\S*)*|\s+")
_AFTER_LETTERS = re.compile(r"\s*\S+(?:(?! \S|(?<=[^\W_])\n)\s+\S*)*|\s+")
_AT_LINES = re.compile(r"\s*\S+(?:(?! \S|\n)\s+\S*)*|\s+")
_FEW = 16  # texts that are not worth looking for words in
_KNOWN = 300_000  # words kept, and as many older ones: about 100 MB
_LONG = 48  # characters of a word that is not kept: it will hardly come again

# Most new words are letters with signs behind them. Where these are pieces of their own, the model
# is asked for the letters alone: without the work around it, in less than half of the time.
_PLAIN = re.compile(r"( [A-Za-z]?[a-z]+)([.,!?;:)\"]*)")
_WITHIN = re.compile(r' ?[A-Za-z]*[.,!?;:)"]*')  # what may be found in such a word
_SIGNS = '.,!?;:)"'

# What a pre-tokenizer may treat alike: letters of several cases and scripts, digits, punctuation,
# symbols, marks that join, and characters that some libraries take for white space.
_KINDS = (
    *"aZéßǅʰ中の한عअ\u093eΩ19٣½Ⅷ².,:!?'’\"-",
    *"–_/\\()*#<>|=+$%&@~^`😀€\u0301\u200d\u200b\u180e\ufeff\x00",
    *("'s", "'LL", "n't", "12", "123", "1234", "...", "ab", "AB", "aB"),
)


class WordIds:
    """What ``tokenizer(texts, add_special_tokens=False)["input_ids"]`` gives, mostly remembered.

    Where the tokenizer could join words (`cut` is None) it is asked for every text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known = _Known(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text."""
        cut = self.cut if len(texts) >= _FEW else None
        if cut is None:
            return self._ask(list(texts))
        self._known.begin(self.plain)
        return [np.frombuffer(self._bytes(cut(text)), np.intc).tolist() for text in texts]

    def continued(
        self, heads: Sequence[str], tails: Sequence[Sequence[str]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids of every head, and of every head with each of its tails behind it, in order.

        Only a head's last word depends on what follows, so the others are not looked at again.
        """
        cut = self.cut if len(heads) >= _FEW else None
        if cut is None:
            wholes = [head + tail for head, mine in zip(heads, tails, strict=True) for tail in mine]
            return _arrays(self(heads)), _arrays(self(wholes))
        self._known.begin(self.plain)
        alone, together = [], []
        for head, mine in zip(heads, tails, strict=True):
            words = cut(head)
            last = words.pop() if words else ""
            first = self._bytes(words)
            alone.append(np.frombuffer(first + self._known[last] if last else first, np.intc))
            together += [
                np.frombuffer(first + self._bytes(cut(last + tail)), np.intc) for tail in mine
            ]
        return alone, together

    def _bytes(self, words: Sequence[str]) -> bytes:
        return b"".join(map(self._known.__getitem__, words))

    def __getstate__(self) -> dict[str, Any]:
        """The tokenizer and the answer about it; another process learns its own words."""
        return {
            "tokenizer": self.tokenizer,
            "_known": _Known(self.tokenizer),
            "cut": self.cut,
            "plain": self.cut is not None and self.plain,
        }

    @cached_property
    def cut(self) -> Callable[[str], list[str]] | None:
        """Cut a text into words that no token can span; None if the tokenizer may join any."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None:
            return None
        parts: Mapping[str, Any] = json.loads(core.to_str())
        model, normalizer, added = parts["model"], parts["normalizer"], parts["added_tokens"]
        if (
            model["type"] != "BPE"
            or model.get("dropout")
            or parts["pre_tokenizer"] is None
            or (normalizer is not None and normalizer["type"] != "NFC")
            or any(map(_takes_spaces, added))
        ):
            return None
        lines = not any("\n" in t["content"] and t["content"].strip() for t in added)
        found = _pattern(json.dumps(parts["pre_tokenizer"]), lines)
        return None if found is None else found.findall

    @cached_property
    def plain(self) -> bool:
        """Whether letters are one piece, the signs behind them others, and spelt as bytes are."""
        core = self.tokenizer.backend_tokenizer
        added = core.get_added_tokens_decoder().values()
        if any(_WITHIN.fullmatch(token.content) for token in added):
            return False
        letters = [f" {a}{b}" for a in string.ascii_letters for b in ("", "a", "zqxjkvbpygf")]
        signs = [a + b for a in _SIGNS for b in ("", *_SIGNS)]
        return _spelt_as_bytes(core, letters) and _parts_at(
            ("",), letters[::9], lambda text: _pieces(core, text), signs
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

    def begin(self, plain: bool) -> None:
        """Undo what earlier uses of the tokenizer set: padding and truncation."""
        core = self.tokenizer.backend_tokenizer
        core.no_padding()
        core.no_truncation()
        self.encode = core.encode
        self.model = core.model if plain else None

    def __missing__(self, word: str) -> bytes:
        ids = self.older.get(word)
        if ids is None:
            ids = self._ask(word)
        if len(word) <= _LONG:
            if len(self) >= _KNOWN:  # words that do not come again are left behind
                self.older = dict(self)
                self.clear()
            self[word] = ids
        return ids

    def _ask(self, word: str) -> bytes:
        plain = None if self.model is None else _PLAIN.fullmatch(word)
        if self.model is None or plain is None:
            return array("i", self.encode(word, add_special_tokens=False).ids).tobytes()
        letters, signs = plain.groups()
        if signs:
            return self[letters] + self[signs]
        return array("i", [token.id for token in self.model.tokenize("Ġ" + word[1:])]).tobytes()


def _spelt_as_bytes(core: Any, words: Sequence[str]) -> bool:
    """Whether each word is one piece in the spelling of byte-level BPE, which the model knows."""
    return all(
        _pieces(core, word) == ["Ġ" + word[1:]]
        and core.encode(word, add_special_tokens=False).ids
        == [token.id for token in core.model.tokenize("Ġ" + word[1:])]
        for word in words
    )


def _pieces(core: Any, text: str) -> list[str]:
    return [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str(text)]


def _arrays(ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(each, dtype=np.intc) for each in ids]


def _takes_spaces(token: Mapping[str, Any]) -> bool:
    """Whether an added token could hold or swallow a single space between words."""
    inside = " " in token["content"] and token["content"].strip(" ") != ""
    alone = token["content"] == " "
    return inside or alone or token["lstrip"] or token["rstrip"] or token["single_word"]


@lru_cache(maxsize=8)
def _pattern(description: str, lines: bool) -> re.Pattern[str] | None:
    """The pattern with most cuts that a pre-tokenizer, and where asked for ``lines``, allows."""
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    parts = {"model": model, "pre_tokenizer": json.loads(description), "added_tokens": []}
    core = Tokenizer.from_str(json.dumps({"version": "1.0", **parts}))

    def cut(text: str) -> list[str]:
        return [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str(text)]

    breaks = ("\n", "\n\n", "\n ")
    if not _parts_at((" ",), _KINDS, cut):
        return None
    if lines and _parts_at(breaks, _KINDS, cut):
        return _AT_LINES
    if lines and _parts_at(breaks, [kind for kind in _KINDS if kind[-1].isalnum()], cut):
        return _AFTER_LETTERS
    return _AT_SPACES


def _parts_at(
    between: Sequence[str],
    before: Sequence[str],
    cut: Callable[[str], list[str]],
    behind: Sequence[str] = _KINDS,
) -> bool:
    """Whether "x y" is cut before what is between, and both sides as they would be alone.

    The pre-tokenizer is asked for every two kinds of characters. It is a regular expression over
    such kinds, so what holds for all of these holds for words.
    """
    lefts = {start + kind: cut(start + kind) for kind in before for start in ("", " ")}
    rights = [gap + kind + end for gap in between for kind in behind for end in ("", "a")]
    alone = {right: cut(right) for right in (*rights, *(gap for gap in between if gap.strip(" ")))}
    return all(
        cut(left + right) == mine + pieces
        for left, mine in lefts.items()
        for right, pieces in alone.items()
    )
