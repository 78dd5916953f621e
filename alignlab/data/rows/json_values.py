"""JSON values, checked beyond the grammar, and what to say of a text that is none."""

from __future__ import annotations

import json
import re
from typing import Any

from alignlab.data.rows.limits import LIMITS

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Refused(ValueError):
    """JSON that parses, and means nothing or two things."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Refused(f"the name '{twice}' occurs twice in one object. Keep one of the two")
    return found


def _constant(text: str) -> Any:
    raise Refused(f"{text} is not JSON. Write null, or leave the field out")


LENIENT = json.JSONDecoder()  # finds where a value ends that means nothing or two things
DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def parse(text: str) -> Any:
    """Return the value of a JSON text; ValueError or RecursionError where there is none."""
    value = DECODER.decode(text)
    check(value, text)
    return value


def check(value: Any, text: str) -> None:
    """Refuse what parses and breaks later: lone surrogates, bottomless nesting, endless fields."""
    if "\\u" in text and _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Refused(
                "a text holds half of a surrogate pair (\\ud800 and the like), which is no "
                "character. Write the text again from its source"
            ) from error
    if text.count("[") + text.count("{") > LIMITS.depth and _depth(value) > LIMITS.depth:
        raise RecursionError
    if isinstance(value, dict) and len(value) > LIMITS.fields and not by_id(value):
        raise Refused(
            f"one object with {len(value):,} fields, and a row has at most {LIMITS.fields:,}. If "
            "its names are ids, write a list of objects"
        )


def by_id(value: dict[str, Any]) -> bool:
    """Whether an object holds rows under their ids, rather than fields or pandas' columns."""
    rows = list(value.values())
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        return False
    return not all(name.isdigit() for row in rows[:100] for name in row)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= LIMITS.depth:
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [x for values in inner for x in values if isinstance(x, (dict, list))]
        depth += 1
    return depth


def reason_of(error: Exception, text: str) -> tuple[str, int]:
    """Return what is wrong with a JSON text and what to do; and the column, or 0."""
    if isinstance(error, RecursionError):
        return f"lists or objects more than {LIMITS.depth} deep. Flatten the field.", 0
    if isinstance(error, Refused):
        return f"{error}.", 0
    if not isinstance(error, json.JSONDecodeError):  # int() refuses thousands of digits
        return "a number has thousands of digits. Write it as text, in quotes.", 0
    return f"not JSON ({error.msg}). {_advice(error, text)}", error.colno


def _advice(error: json.JSONDecodeError, text: str) -> str:
    at = text[error.pos : error.pos + 1]
    before = text[: error.pos].rstrip()[-1:]
    if at == "'":
        return "Names and texts need double quotes, as json.dumps writes them."
    if before == "," and at in ("}", "]"):
        return "Remove the comma before the closing bracket."
    if error.msg == "Extra data" and at == ",":
        return "Remove the comma at the end of the line: every line is one whole object."
    if error.msg == "Extra data" and "\r" in text.rstrip("\r"):
        return "The lines end in CR alone: convert the file with tr '\\r' '\\n'."
    if error.msg == "Extra data":
        return "Write every object in a line of its own: jq -c . OLD > NEW."
    if error.msg.startswith("Invalid control character"):
        return "A line break or tab inside a text is written \\n or \\t."
    if error.msg.startswith("Unterminated string"):
        return "A line break inside a text is written \\n; or the file is cut off."
    return "Every line must be one whole object; is the file cut off?"
