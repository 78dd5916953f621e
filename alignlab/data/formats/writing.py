"""Prompt groups as JSON lines in a format of their own, and back: nothing is lost on the way."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignlab.data.formats.chat import messages_of
from alignlab.data.formats.fields import Row, kind_of
from alignlab.data.group import PromptGroup, Text, Verdict
from alignlab.errors import DataError, did_you_mean

_KINDS = ("none", "demonstration", "ranking", "scores", "thumbs")
_VALUES = {"ranking": "ranks", "scores": "scores", "thumbs": "thumbs"}


def row_of(group: PromptGroup) -> dict[str, Any]:
    """Return a group as a row of the format ``group``, of JSON values only."""
    verdict: dict[str, Any] = {"kind": group.verdict.kind}
    if group.verdict.kind in _VALUES:
        name = _VALUES[group.verdict.kind]
        verdict[name] = list(getattr(group.verdict, name))
    row: dict[str, Any] = {
        "prompt": _said(group.prompt),
        "completions": [_said(completion) for completion in group.completions],
        "verdict": verdict,
    }
    if group.id:
        row["id"] = group.id
    if group.meta:
        row["meta"] = dict(group.meta)
    if group.tools:
        row["tools"] = [dict(tool) for tool in group.tools]
    return row


def _said(text: Text) -> Any:
    return text if isinstance(text, str) else list(text)


def write(groups: Iterable[PromptGroup], path: Path) -> int:
    """Write groups as JSON lines and return how many; the file appears when it is complete.

    Values of ``meta`` that JSON does not know (dates, for example) are written as text.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.part")
    count = 0
    with beside.open("w", encoding="utf-8", errors="surrogatepass") as stream:
        for group in groups:
            stream.write(line_of(group) + "\n")
            count += 1
    beside.replace(path)
    return count


def line_of(group: PromptGroup) -> str:
    """Return a group as one line of JSON; halves of surrogate pairs are escaped."""
    line = json.dumps(row_of(group), ensure_ascii=False, default=str)
    if line.isascii() or line.encode("utf-8", errors="replace").decode() == line:
        return line
    return json.dumps(row_of(group), default=str)


def group(row: Row) -> PromptGroup:
    """Read a row that `write` wrote."""
    completions, verdict = row["completions"], row["verdict"]
    if not isinstance(completions, list) or not isinstance(verdict, dict):
        raise DataError("'completions' must be a list and 'verdict' an object with 'kind'.")
    kind = verdict.get("kind")
    if kind not in _KINDS:
        hint = did_you_mean(str(kind), _KINDS)
        raise DataError(
            f"'verdict.kind' must be one of {', '.join(_KINDS)}, not {kind!r:.60}.{hint}"
        )
    meta, tools = row.get("meta") or {}, row.get("tools") or ()
    if not isinstance(meta, Mapping):
        raise DataError(f"'meta' must be an object; it is {kind_of(meta)}.")
    return PromptGroup(
        _text("prompt", row["prompt"]),
        tuple(_text("completions", completion) for completion in completions),
        Verdict(kind, **_values(kind, verdict)),
        str(row.get("id") or ""),
        meta,
        tuple(tools),
    )


def _text(field: str, value: Any) -> Text:
    if isinstance(value, str):
        return value
    if value == []:
        return ()
    return messages_of(field, value)


def _values(kind: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    if kind not in _VALUES:
        return {}
    name = _VALUES[kind]
    values = verdict.get(name)
    read = {"ranks": int, "scores": (int, float), "thumbs": bool}[name]
    fits = isinstance(values, list) and all(isinstance(v, read) for v in values)  # type: ignore[arg-type]
    if not fits:
        raise DataError(f"'verdict.{name}' must be a list of {name}, one per completion.")
    return {name: tuple(values or ())}
