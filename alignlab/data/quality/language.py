"""A filter by language: texts in other languages than the named ones go, undecided ones stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

from alignlab.data.languages import UNDECIDED, language_of, languages
from alignlab.data.quality.filters import Share, TextFilter
from alignlab.data.quality.step import Reason
from alignlab.errors import DataError, did_you_mean
from alignlab.run import content_key
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Language(TextFilter):
    """Drops a row with a text that is in another language than the named ones, and surely so.

    A text that is too short, or whose language is told with less than ``confidence``, passes.
    """

    languages: tuple[str, ...]
    confidence: Share
    least_bytes: Annotated[int, Range(min=0)]

    def __post_init__(self) -> None:
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise DataError(f"languages: {code!r} must be an ISO 639 code such as en.")

    def fingerprint(self) -> str:
        """As of all steps, with the version of the library, whose model tells the language."""
        return content_key([super().fingerprint(), version("py3langid")])

    def complaint(self, text: str) -> Reason | None:
        """Return the language that was told if it is none of the named ones."""
        self._require_known()
        told = language_of(text, least=self.least_bytes, sure=self.confidence)
        if told.language in (UNDECIDED, *self.languages):
            return None
        return Reason("another language", f"{told.language} ({told.confidence:.2f})")

    def _require_known(self) -> None:
        known = languages()
        for code in self.languages:
            if code not in known:
                hint = did_you_mean(code, known)
                raise DataError(f"languages: {code!r} cannot be told.{hint} Known: {known}.")
