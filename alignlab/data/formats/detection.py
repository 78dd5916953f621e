"""Which format the rows of a file are of: always the same answer, or why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from alignlab.data.formats.fields import ANSWERS, Row
from alignlab.data.formats.pairs import SIDES
from alignlab.data.formats.shapes import Format
from alignlab.data.formats.spelling import slip_of
from alignlab.errors import DataError

# A field that holds an answer says that a row is more than the format which leaves it aside: one of
# these always, one of fields.ANSWERS where a bare prompt would be all that is read.
_ANSWERS = (
    *("chosen", "rejected", "completion", "completions"),
    *("preferred_output", "non_preferred_output", "rejected_response"),
    *chain.from_iterable(SIDES),
)
_STATE = "state the format: data.format={}"


def choose_most(rows: Sequence[Row], formats: Mapping[str, Format]) -> tuple[str, dict[int, str]]:
    """Return the format that most of the rows are of, and what each row of another one looks like.

    Raises:
        DataError: as `choose`, of the rows of that format alone.
    """
    found = [best(row, formats) for row in rows]
    votes = Counter(names[0] for names in found if len(names) == 1)
    if not votes:
        return choose(rows, (), formats), {}
    chosen = votes.most_common(1)[0][0]
    own = [row for row, names in zip(rows, found, strict=True) if names in ([], [chosen])]
    odd = {n: " or ".join(names) for n, names in enumerate(found) if names not in ([], [chosen])}
    return choose(own, (), formats), odd


def choose(rows: Sequence[Row], places: Sequence[str], formats: Mapping[str, Format]) -> str:
    """Return the one format that all rows are of; see `registry.detect`."""
    if not rows:
        raise DataError("there are no rows, so no format can be told.")
    named = [*places, *(f"row {n}" for n in range(len(places) + 1, len(rows) + 1))]
    chosen, since = "", ""
    for row, place in zip(rows, named, strict=False):
        found = best(row, formats)
        if len(found) > 1:
            raise DataError(_ambiguous(row, place, found, formats))
        name = found[0] if found else ""
        if name and not chosen:
            chosen, since = name, place
        elif name and name != chosen:
            raise DataError(
                f"{place} looks like '{name}' and {since} like '{chosen}': one file, one format. "
                f"Put them into files of their own, or {_STATE.format(chosen)}."
            )
    _check_names(rows, chosen, formats)
    if not chosen:
        raise DataError(_nothing_fits(rows[0], formats))
    return chosen


def best(row: Row, formats: Mapping[str, Format]) -> list[str]:
    """Return the formats that the row is of; more than one if none of them explains the others.

    Of the formats that fit, those of the lowest rank count. One explains another if it reads every
    field that the other reads. None fits where a field with an answer would be left aside.
    """
    fits = [name for name, form in formats.items() if not form.complaints(row)]
    rank = min((formats[name].rank for name in fits), default=0)
    used = {name: formats[name].used(row) for name in fits if formats[name].rank == rank}
    kept: list[str] = []
    for name, fields in used.items():
        others = {n: f for n, f in used.items() if n != name}
        if not any(fields < f or (fields == f and n in kept) for n, f in others.items()):
            kept.append(name)
    lone = _aside(row, rank) - used[kept[0]] if len(kept) == 1 else set()
    return [] if lone else kept


def _aside(row: Row, rank: int = 2) -> set[str]:
    """Fields of the row with an answer, which a format of this rank must not leave aside."""
    names = (*_ANSWERS, *ANSWERS, "answer") if rank == 2 else _ANSWERS
    return {name for name in names if row.get(name) is not None}


def looks_like(row: Row, name: str, formats: Mapping[str, Format]) -> str:
    """Return a sentence on what else the row would be, for the end of an error."""
    found = next((other for other in best(row, formats) if other != name), None)
    if found is None or formats[found].rank > formats[name].rank:
        return ""
    return f" The row looks like '{found}'; to read all rows so, {_STATE.format(found)}."


def _ambiguous(row: Row, place: str, found: Sequence[str], formats: Mapping[str, Format]) -> str:
    ways = "; ".join(
        f"'{name}' (by {', '.join(sorted(formats[name].used(row)))})" for name in found
    )
    return f"{place} fits several formats: {ways}. Please {_STATE.format(' or '.join(found))}."


def _check_names(rows: Sequence[Row], chosen: str, formats: Mapping[str, Format]) -> None:
    """Refuse a field whose name is nearly one that would change what is read."""
    present = list(dict.fromkeys(k for row in rows for k, v in row.items() if v is not None))
    known = list(dict.fromkeys(field for form in formats.values() for field in form.fields))
    absent = [name for name in known if name not in present]
    for field in present:
        near = slip_of(field, absent)
        row = next(row for row in rows if row.get(field) is not None)
        if field in known:  # the field of another format: only one letter s is taken for a slip
            read = chosen and field in formats[chosen].used(row)
            near = "" if read or near.rstrip("s") != field.rstrip("s") else near
        if not near:
            continue
        renamed = {near if key == field else key: value for key, value in row.items()}
        after = best(renamed, formats)
        better = any(near in formats[name].used(renamed) for name in after if name != chosen)
        if better or (chosen and near in formats[chosen].fields):
            wrong = "would not be read" if field in known else "is unknown"
            raise DataError(
                f"the field '{field}' {wrong}. Did you mean '{near}'? Rename it with "
                f"data.fields.{field}={near}, or state the format with data.format=NAME."
            )


def _nothing_fits(row: Row, formats: Mapping[str, Format]) -> str:
    """Say which formats are nearest to the row, and what it lacks of each."""
    present = [key for key, value in row.items() if value is not None]
    lacks = {name: form.complaints(row) for name, form in formats.items()}
    reads = {name: form.used(row) - {""} for name, form in formats.items()}
    aside = _aside(row)

    def distance(name: str) -> tuple[int, int, int]:
        left = sum(field not in reads[name] for field in aside)
        return left, len(lacks[name]), -len(reads[name])

    def starts(name: str) -> bool:
        needed = {need.found(row) for need in formats[name].needs} - {""}
        return bool(needed & aside if aside else needed) and bool(lacks[name])

    near = sorted(filter(starts, formats), key=distance)[:3]
    fields = ", ".join(present) or "(none)"
    if not near:
        return (
            f"no format has the fields {fields}. Rename them with data.fields, for example "
            f"data.fields.{present[0] if present else 'NAME'}=prompt. Formats: "
            f"{', '.join(formats)}."
        )
    first = lacks[near[0]]
    read = [f"'{field}'" for field in sorted(reads[near[0]])]
    there = f"{' and '.join(read)} {'is' if len(read) == 1 else 'are'} there, but "
    rest = "; ".join(f"'{name}' ({', '.join(lacks[name])})" for name in near[1:])
    also = f" Also near: {rest}." if rest else ""
    return (
        f"no format has the fields {fields}. Nearest is '{near[0]}': {there}{', '.join(first)}."
        f"{also} Rename fields with data.fields, or add them."
    )
