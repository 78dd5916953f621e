"""Prompt groups at hand as a data source, so that tests can prepare them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.data.group import PromptGroup
from alignlab.data.prepared import Prepared, prepare
from alignlab.data.template import Tokenization


@dataclass(frozen=True)
class Listed:
    """Groups of the split ``preference``; a list is named by its content, a stream is not read."""

    groups: Iterable[PromptGroup]

    def fingerprint(self) -> str:
        known = repr(self.groups) if isinstance(self.groups, (list, tuple)) else "a stream"
        return hashlib.sha256(known.encode()).hexdigest()

    def stream(self, split: str) -> Iterator[PromptGroup]:
        return iter(self.groups if split == "preference" else ())

    def load(self, split: str) -> list[PromptGroup]:
        return list(self.stream(split))


def prepare_groups(
    groups: Iterable[PromptGroup], tokenization: Tokenization, cache: Path, **options: Any
) -> Prepared:
    """Tokens of groups at hand, with the options of `prepare`."""
    return prepare(Listed(groups), "preference", tokenization, cache, **options)
