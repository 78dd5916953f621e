"""The page of the formats: every example on it is read, and gives what stands under it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from alignlab.data.formats.registry import FORMATS, detect, read
from alignlab.data.formats.writing import line_of, row_of
from alignlab.data.rows.files import read_rows
from alignlab.errors import DataError

PAGE = Path(__file__).resolve().parents[2] / "alignlab" / "data" / "README.md"
SECTIONS = re.split(r"^#### `(\w+)`$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
EXAMPLES = [
    (name, json.loads(row), json.loads(made))
    for name, body in zip(SECTIONS[::2], SECTIONS[1::2], strict=True)
    for row, made in re.findall(r"```json\n(.*?)```\n```json\n(.*?)```", body, flags=re.S)
]
IDS = [f"{name}-{number}" for number, (name, _, _) in enumerate(EXAMPLES)]


@pytest.mark.parametrize(("name", "row", "made"), EXAMPLES, ids=IDS)
def test_examples(name, row, made):
    assert detect([row]) == name
    assert json.loads(json.dumps(row_of(read(name, row)))) == made


def test_every_format_is_on_the_page():
    assert set(SECTIONS[::2]) == set(FORMATS)
    assert {name for name, _, _ in EXAMPLES} == set(FORMATS)


def test_every_field_that_is_needed_is_on_the_page():
    for name, body in zip(SECTIONS[::2], SECTIONS[1::2], strict=True):
        needed = {field for need in FORMATS[name].needs for field in need.names}
        assert needed <= set(re.findall(r"`(\w+)`", body)), name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row", "made"), EXAMPLES, ids=IDS)
def test_examples_as_parquet(tmp_path, name, row, made):
    """Arrow gives every message the keys of all of them, null where they had none."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    if row.get("tools") == []:
        row = {key: value for key, value in row.items() if key != "tools"}
    try:
        table = pyarrow.Table.from_pylist([row])
    except pyarrow.ArrowInvalid as error:
        pytest.skip(f"Arrow has no type for this row: {error}")
    parquet.write_table(table, tmp_path / "x.parquet")
    ((_, back),) = read_rows(tmp_path / "x.parquet")
    assert detect([back]) == name
    again = row_of(read(name, back))
    for part in ("prompt", "completions", "verdict", "tools"):
        assert again.get(part) == made.get(part)


ODD = [
    *(None, "", " ", "text", "[1]", "{}", '{"a', "\ud800", "\\boxed{", "#### 4", "1e999", b"bytes"),
    *(0, 1, -1, 2.5, True, float("nan"), float("inf"), 10**400),
    *([], [None], [[]], {}, {"a": 1}, ["x", "y"], [1, 2], [{}], {"kind": "scores"}),
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    [{"from": "human", "value": "q"}, {"from": "gpt", "value": None}],
    [{"role": "user", "content": [{"type": "tool_result"}]}],
    [{"role": "tool", "content": {"a": b""}}],
    {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": b""}}]},
]


def spoiled(value, rng):
    """The value with one place of it, at any depth, replaced, left out or doubled."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = rng.choice(keys), value.copy()
    if rng.random() < 0.1:
        del copy[key]
    elif rng.random() < 0.1 and isinstance(value, list):
        copy.insert(key, value[key])
    else:
        copy[key] = spoiled(value[key], rng)
    return copy


@pytest.mark.slow
def test_spoiled_rows_are_read_or_refused_and_never_crash():
    rng = random.Random(5)
    refused = 0
    for number in range(4000):
        name, row, _ = EXAMPLES[number % len(EXAMPLES)]
        row = spoiled(spoiled(row, rng) if rng.random() < 0.3 else row, rng)
        if not isinstance(row, dict):
            continue
        for form in (None, name):
            try:
                made = read(form or detect([row]), row)
                again = json.loads(line_of(made))
                assert row_of(read("group", again)).keys() == again.keys()
            except DataError:
                refused += 1
    assert refused > 1000
