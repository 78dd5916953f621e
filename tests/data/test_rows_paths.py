"""What a path means: folders, globs, addresses, folders of `datasets`, texts, named splits."""

from __future__ import annotations

import gzip
import json
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignlab.data.rows.files import read_rows, stream_rows
from alignlab.data.rows.fingerprint import content_of
from alignlab.data.rows.listing import by_split, files_of, split_named
from alignlab.errors import DataError


def text(*names):
    return "".join(json.dumps({"prompt": name}) + "\n" for name in names)


def make(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def prompts(rows):
    return [row["prompt"] for _, row in rows]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    make(tmp_path, b_dot_jsonl=text("3"), a__z_dot_jsonl=text("1", "2"), README_dot_md="# notes")
    make(tmp_path, _dot_hidden_dot_jsonl="{", _SUCCESS="", a__LICENSE="x")
    found = read_rows(tmp_path)
    assert prompts(found) == ["1", "2", "3"]
    assert [place for place, _ in found] == [
        "a/z.jsonl, line 1",
        "a/z.jsonl, line 2",
        "b.jsonl, line 1",
    ]


def test_one_file_in_a_folder_needs_no_name_in_places(tmp_path):
    make(tmp_path, a_dot_jsonl=text("1"))
    assert read_rows(tmp_path) == [("line 1", {"prompt": "1"})]


def test_globs(tmp_path):
    make(
        tmp_path,
        a_dot_jsonl=text("1"),
        b_dot_jsonl=text("2"),
        c_dot_csv="x",
        d__e_dot_jsonl=text("3"),
    )
    assert prompts(stream_rows(tmp_path / "*.jsonl")) == ["1", "2"]
    assert prompts(stream_rows(f"{tmp_path}/**/*.jsonl")) == ["1", "2", "3"]
    assert prompts(stream_rows(tmp_path / "[b]*")) == ["2"]
    odd = tmp_path / "odd[1].jsonl"  # a file whose name looks like a glob is that file
    odd.write_text(text("4"))
    assert prompts(stream_rows(odd)) == ["4"]


def test_globs_of_the_working_folder(tmp_path, monkeypatch):
    make(tmp_path, a_dot_jsonl=text("1"))
    monkeypatch.chdir(tmp_path)
    assert prompts(stream_rows("*.jsonl")) == ["1"]


def test_linked_files_and_folders_are_followed(tmp_path):
    far = make(tmp_path / "far", blob=text("1"), more__c_dot_jsonl=text("2"))
    top = tmp_path / "top"
    top.mkdir()
    (top / "a.jsonl").symlink_to(far / "blob")  # as the cache of the hub does
    (top / "b").symlink_to(far / "more")
    assert prompts(stream_rows(top)) == ["1", "2"]


def test_too_many_files(tmp_path, monkeypatch):
    from alignlab.data.rows import listing
    from alignlab.data.rows.limits import Limits

    make(tmp_path, **{f"f{i}_dot_jsonl": text(str(i)) for i in range(4)})
    monkeypatch.setattr(listing, "LIMITS", Limits(files=3))
    with pytest.raises(DataError, match="more than 3 files"):
        files_of(tmp_path)


def test_folders_of_datasets_without_what_map_left_there(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": str(i)} for i in range(10)]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-0123.arrow").write_bytes(b"left by map")
    assert prompts(stream_rows(tmp_path / "one")) == [str(i) for i in range(10)]
    both = datasets.DatasetDict({"train": table.select(range(7)), "test": table.select([8, 9])})
    both.save_to_disk(tmp_path / "two")
    found = by_split(files_of(tmp_path / "two"), "two")
    assert {split: prompts(stream_rows(files)) for split, files in found.items()} == {
        "train": [str(i) for i in range(7)],
        "test": ["8", "9"],
    }


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("train.jsonl", ("train",)),
        ("my_train_file.csv", ("train",)),
        ("data/train-00000-of-00002.parquet", ("train",)),
        ("test_prefs-00000.parquet", ("test",)),
        ("IFBench_test.jsonl", ("test",)),
        ("eval/rows.jsonl", ("test",)),
        ("dev.txt.gz", ("validation",)),
        ("Validation.JSONL", ("validation",)),
        ("train/test.jsonl", ("test",)),  # the file's own name says more
        ("train_test.jsonl", ("train", "test")),
        ("testimonials.jsonl", ()),
        ("latest.jsonl", ()),
        ("contest1.jsonl", ()),
        ("retrained.jsonl", ()),
        ("evaluations.csv", ()),
        ("rows.test_of_time", ()),
    ],
)
def test_splits_are_told_by_the_words_of_names(name, splits):
    assert split_named(name) == splits


def test_named_splits_of_a_folder(tmp_path):
    make(tmp_path, train_dot_jsonl=text("1"), test_dot_jsonl=text("2"), dev_dot_jsonl=text("3"))
    found = by_split(files_of(tmp_path), "x")
    assert {split: [f.name for f in files] for split, files in found.items()} == {
        "train": ["train.jsonl"],
        "test": ["test.jsonl"],
        "validation": ["dev.jsonl"],
    }
    make(tmp_path, extra_dot_jsonl=text("4"))
    with pytest.raises(DataError, match=r"extra.jsonl belongs to none.*glob"):
        by_split(files_of(tmp_path), "x")
    (tmp_path / "train.jsonl").unlink()
    assert by_split(files_of(tmp_path), "x")["train"][0].name == "extra.jsonl"


def test_text_is_parted_at_blank_lines_or_by_file(tmp_path):
    make(tmp_path, a_dot_txt="\nOne, two,\nthree.\n\n\n  Four.\r\n\r\n", b_dot_txt="x\n\ny\n")
    assert read_rows(tmp_path / "a.txt") == [
        ("line 2", {"text": "One, two,\nthree."}),
        ("line 6", {"text": "  Four."}),
    ]
    assert read_rows(tmp_path) == [
        ("a.txt, line 2", {"text": "One, two,\nthree.\n\n\n  Four."}),
        ("b.txt, line 1", {"text": "x\n\ny"}),
    ]


def test_a_text_may_begin_like_a_list_or_a_table(tmp_path):
    make(tmp_path, a_dot_txt="[Music]\n", b_dot_txt="Hello, world\nbye\n", c_dot_txt="{x}\n")
    assert [read_rows(tmp_path / f"{n}.txt")[0][1]["text"] for n in "abc"] == [
        "[Music]",
        "Hello, world\nbye",
        "{x}",
    ]


def test_addresses(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/rows/test.jsonl.gz", gzip.compress(text("1").encode()))
    memory.pipe("/rows/train.jsonl.gz", gzip.compress(text("2", "3").encode()))
    memory.pipe("/rows/README.md", b"notes")
    try:
        assert prompts(stream_rows("memory://rows/train.jsonl.gz")) == ["2", "3"]
        assert prompts(stream_rows("memory://rows/*.gz")) == ["1", "2", "3"]
        assert [f.name for f in files_of("memory://rows/t*t*.gz")] == ["test.jsonl.gz"]
        assert [f.name for f in files_of("memory://rows/t*.gz")] == [
            "test.jsonl.gz",
            "train.jsonl.gz",
        ]
        assert sorted(by_split(files_of("memory://rows"), "x")) == ["test", "train"]
        [one] = files_of("memory://rows/train.jsonl.gz")
        before = content_of(one)
        memory.pipe("/rows/train.jsonl.gz", gzip.compress(text("4").encode()))
        [two] = files_of("memory://rows/train.jsonl.gz")
        assert content_of(two) != before
    finally:
        memory.rm("/rows", recursive=True)


def test_files_inside_an_archive(tmp_path):
    pytest.importorskip("fsspec")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("d/rows.jsonl", text("1", "2"))
    found = read_rows(f"zip://d/rows.jsonl::{tmp_path}/a.zip")
    assert prompts(found) == ["1", "2"]
    with pytest.raises(DataError, match=r"Nothing at zip://d/none.jsonl"):
        read_rows(f"zip://d/none.jsonl::{tmp_path}/a.zip")


def test_parquet_at_an_address(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    fsspec = pytest.importorskip("fsspec")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), tmp_path / "x.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe("/x.parquet", (tmp_path / "x.parquet").read_bytes())
    try:
        assert prompts(stream_rows("memory://x.parquet")) == ["a", "b"]
    finally:
        memory.rm("/x.parquet")


@pytest.mark.slow
def test_a_web_server(tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    make(tmp_path, rows_dot_jsonl=text("1", "2"))
    parquet.write_table(pyarrow.table({"prompt": ["3", "4"]}), tmp_path / "rows.parquet")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        here = f"http://127.0.0.1:{server.server_port}"
        assert prompts(stream_rows(f"{here}/rows.jsonl")) == ["1", "2"]
        # this server cannot send parts of a file, and a Parquet file is read from its end
        assert prompts(stream_rows(f"{here}/rows.parquet")) == ["3", "4"]
        with pytest.raises(DataError, match=r"Nothing at .*none.jsonl"):
            read_rows(f"{here}/none.jsonl")
    finally:
        server.shutdown()
        server.server_close()


def test_values_of_tables_become_plain(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import datetime
    import decimal

    from pyarrow import parquet

    row = {
        "prompt": "p",
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "day": datetime.date(2026, 1, 2),
        "long": datetime.timedelta(seconds=90),
        "price": decimal.Decimal("1.25"),
        "old": b"text of an old writer",
        "messages": [{"role": "user", "content": "x"}],
        "none": None,
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x")
    [(_, found)] = read_rows(tmp_path / "x")
    assert json.loads(json.dumps(found)) == {
        **row,
        "when": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "long": 90.0,
        "price": 1.25,
        "old": "text of an old writer",
    }


@pytest.mark.slow
def test_rows_over_many_pieces_of_reading(tmp_path):
    """Arrays, wrapped arrays and lines that are longer than what is read at a time (1 MiB)."""
    rows = [{"prompt": f"{i} é " + "x" * (i % 7) * 100_000, "n": i} for i in range(30)]
    for name, content in (
        ("array", json.dumps(rows, ensure_ascii=False)),
        ("lines of an array", json.dumps(rows, indent=1)),
        ("wrapped", json.dumps({"version": 12, "data": rows, "end": 3}, ensure_ascii=False)),
        ("lines", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
        ("one", json.dumps(rows[6], indent=1)),
    ):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        found = [row for _, row in stream_rows(path)]
        assert found == (rows if name != "one" else [rows[6]])
