"""Rows of YAML: a list of objects, one object, or dialogues under one name (ChatterBot's files)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from alignlab.data.rows.bad_rows import InFile
from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.errors import DataError

DIALOGUES = "conversations"  # of a file that holds lists of texts under this name


def yaml_rows(stream: io.BufferedReader, file: InFile) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of a YAML file; nothing of it is executed.

    A document is in memory as a whole, so a file has at most `LIMITS.yaml_bytes`. Anchors and
    aliases are refused: a few lines of them can stand for more text than any memory holds.

    Raises:
        DataError: no YAML, more than one document, too long, or with aliases; names the line.
    """
    import yaml

    where = file.where
    data = stream.read(LIMITS.yaml_bytes + 1)
    if len(data) > LIMITS.yaml_bytes:
        raise DataError(
            f"{where}: a YAML file of more than {LIMITS.yaml_bytes // MIB} MiB, which must be read "
            "as a whole. Write the rows as JSON lines."
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(data, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > LIMITS.depth:
                reason = (
                    f"lists or objects more than {LIMITS.depth} deep. Flatten them."
                    if depth > LIMITS.depth
                    else f"the alias *{event.anchor}. Write the value out where it is used."
                )
                raise DataError(f"{where}, line {event.start_mark.line + 1}: {reason}")
        value = yaml.load(data, Loader=loader)  # a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"{where}{line}: not YAML ({problem}). Check the indentation.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason}). Convert the file.") from error
    except ValueError as error:  # a date such as 2026-13-45
        raise DataError(f"{where}: a value that is none ({error}). Put it in quotes.") from error
    yield from _rows(value, file)


def _rows(value: Any, file: InFile) -> Iterator[tuple[str, Any]]:
    talks = value.get(DIALOGUES) if isinstance(value, dict) else None
    if isinstance(talks, list) and talks and isinstance(talks[0], list):
        rest = {name: other for name, other in value.items() if name != DIALOGUES}
        for number, talk in enumerate(talks, 1):
            if not isinstance(talk, list):
                file.take(
                    f"{DIALOGUES} {number}",
                    f"must be a list of what was said in turn; it is {talk!r:.60}. Begin every turn"
                    " of a dialogue with a dash of its own.",
                )
                continue
            yield f"{DIALOGUES} {number}", {"conversation": [_text(said) for said in talk], **rest}
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"row {number}", row


def _text(said: Any) -> Any:
    """What was said: YAML takes unquoted answers such as 42 or Yes for other things than text."""
    if isinstance(said, bool):
        return "Yes" if said else "No"
    return str(said) if isinstance(said, (int, float)) else said
