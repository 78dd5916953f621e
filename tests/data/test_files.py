from __future__ import annotations

import gzip
import json

import pytest

from alignlab.data.rows.files import read_rows
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.errors import DataError

ROWS = [{"prompt": "p é\u2028x", "completion": "c, 1"}, {"prompt": "q\nr", "completion": 'd "e"'}]


def contents():
    import csv
    import io

    def table(delimiter):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, ["prompt", "completion"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
        return out.getvalue()

    yield "jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS) + "\n\n"
    yield "array", json.dumps(ROWS, indent=1)
    yield "wrapped", json.dumps({"data": ROWS}, indent=1)
    yield "wrapped-line", json.dumps({"data": ROWS})
    yield "csv", table(",")
    yield "tsv", table("\t")
    yield "semicolon", table(";")
    yield "bom", "\ufeff" + table(",")


@pytest.mark.parametrize(("name", "text"), list(contents()), ids=lambda v: v[:12])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_content_tells_the_kind(tmp_path, name, text, zipped):
    path = tmp_path / "data.txt"  # no helpful name
    content = text.encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert [row for _, row in read_rows(path)] == ROWS


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "x"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read_rows(path) == [("row 1", ROWS[0]), ("row 2", ROWS[1])]


def test_lists_in_csv_cells(tmp_path):
    path = tmp_path / "k.csv"
    path.write_text('prompt,completions,scores\np,"[""a"", ""b""]","[1, 2]"\n')
    assert read_rows(path)[0][1] == {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": 2\n', r"line 2, column \d+: not JSON"),
        (b'[{"a": 1},', "line 1, column .*not JSON"),
        (b'{"a": 1}\n[1]\n', "line 2: a row must be an object with fields, not a list"),
        (b"[1, 2]", "row 1: a row must be an object"),
        (b'{"a": "\xff"}', "line 1: not UTF-8"),
        (b"a,b\n1\n", r"line 2: 1 values, not the 2 .*\(a, b\)"),
        (b"", "holds no rows"),
        (b"[]", "holds no rows"),
    ],
)
def test_errors_name_file_and_place(tmp_path, content, message):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_offers_a_neighbour(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"Did you mean 'pairs.jsonl'"):
        read_rows(tmp_path / "pair.jsonl")


def test_fingerprint_follows_bytes_and_fields(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("x")
    two.write_text("x")
    assert fingerprint_of([one], {"a": 1}) == fingerprint_of([two], {"a": 1})
    assert fingerprint_of([one], {"a": 1}) != fingerprint_of([one], {"a": 2})
    before = fingerprint_of([two], 0)
    two.write_text("xy")
    assert fingerprint_of([two], 0) != before
