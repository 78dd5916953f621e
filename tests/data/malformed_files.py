"""The table of broken files: how each is made, and what has to be said about it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROW = {"prompt": "p", "completion": " c"}
LINE = json.dumps(ROW) + "\n"
LONG = json.dumps({**ROW, "prompt": "p" * 2000}) + "\n"
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A file (or other thing under a path) and what reading it must say; rows where it is fine."""

    name: str
    make: Callable[[Path], Path]
    says: str = ""  # regular expression; "" = it loads
    rows: int = 0


def raw(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def lines(*texts: str, name: str = "rows.jsonl") -> Callable[[Path], Path]:
    return raw(name, "\n".join(texts))


def compressed(name: str, pack: Callable[[bytes], bytes], keep: float = 1.0, more: bytes = b""):
    rows = (LINE * 2000).encode() + os.urandom(3000).hex().join(('{"prompt": "', '"}')).encode()
    data = pack(rows)
    return raw(name, data[: int(len(data) * keep)] + more)


def zstd(data: bytes) -> bytes:
    import pyarrow

    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def folder_of(**files: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        top = folder / "data"
        for name, content in files.items():
            path = top / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        top.mkdir(exist_ok=True)
        return top

    return make


def parquet(rows: list, name: str = "rows.parquet", keep: float = 1.0, **columns):
    def make(folder: Path) -> Path:
        import pyarrow
        from pyarrow import parquet as pq

        table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table(columns)
        path = folder / name
        pq.write_table(table, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return make


def arrow(kind: str, keep: float = 1.0):
    def make(folder: Path) -> Path:
        import pyarrow

        table = pyarrow.Table.from_pylist([ROW] * 3000)
        out = io.BytesIO()
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        return raw("rows.arrow", out.getvalue()[: int(len(out.getvalue()) * keep)])(folder)

    return make


def two_columns_of_one_name(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet as pq

    texts = pyarrow.array(["a"])
    pq.write_table(pyarrow.table([texts, texts], names=["text", "text"]), folder / "x.parquet")
    return folder / "x.parquet"


def column_of_bytes(folder: Path) -> Path:
    return parquet([{"prompt": "p", "sound": b"\xff\xd8\xff"}])(folder)


def archive(name: str, inside: str, kind: str = "zip") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as out:
                out.writestr(inside, LINE)
        else:
            with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as out:
                info = tarfile.TarInfo(inside)
                info.size = len(LINE)
                out.addfile(info, io.BytesIO(LINE.encode()))
        return path

    return make


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jsonl")
    return folder / "pipe.jsonl"


def unix_socket(folder: Path) -> Path:
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.jsonl")
    finally:
        os.chdir(here)
    return folder / "socket.jsonl"


def link_to_itself(folder: Path) -> Path:
    (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
    return folder / "loop.jsonl"


def folder_in_itself(folder: Path) -> Path:
    top = folder_of(a_dot_jsonl=LINE)(folder)
    (top / "again").symlink_to(top)
    return top


def dangling_link(folder: Path) -> Path:
    top = folder_of(a_dot_jsonl=LINE)(folder)
    (top / "b.jsonl").symlink_to(top / "nowhere.jsonl")
    return top


def inside_a_file(folder: Path) -> Path:
    return raw("rows.jsonl", LINE)(folder) / "train.jsonl"


def bomb(name: str, open_: Callable, unit: bytes, times: int) -> Callable[[Path], Path]:
    """A small file that unpacks to ``len(unit) * times`` bytes."""

    def make(folder: Path) -> Path:
        with open_(folder / name, "wb") as out:
            for _ in range(times):
                out.write(unit)
        return folder / name

    return make


def zstd_bomb(folder: Path) -> Path:
    return raw("bomb.jsonl.zst", zstd(b"\n" * MIB) * 100)(folder)


BROKEN_JSON = [
    Case("json cut off", lines(LINE.strip(), '{"prompt": "p'), r"line 2, column \d+: not JSON"),
    Case("json key twice", lines('{"a": 1, "prompt": "p", "a": 2}'), "line 1: the name 'a' occurs"),
    Case("json key twice inside", lines('{"m": [{"x": 1, "x": 1}]}'), "line 1: the name 'x'"),
    Case(
        "json key twice in an array",
        raw("rows.json", '[{"a": "b"},\n {"a": 1, "a": 2}]'),
        "line 2: the name 'a' occurs twice",
    ),
    Case("json NaN", lines('{"prompt": "p", "score": NaN}'), "line 1: NaN is not JSON"),
    Case("json Infinity", lines(LINE.strip(), '{"score": -Infinity}'), "line 2: -Infinity is not"),
    Case(
        "lone surrogate", lines('{"prompt": "a \\ud800 b"}'), "line 1: a text holds half of a sur"
    ),
    Case("lone surrogate, low", lines('{"a": {"b": ["\\uDFFF"]}}'), "line 1: a text holds half"),
    Case("deep lists", lines('{"a": ' + "[" * 100 + "]" * 100 + "}"), "line 1: lists or objects"),
    Case(
        "bottomless lists",
        lines('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "line 1: lists or objects more than 64 deep",
    ),
    Case(
        "bottomless objects in an array",
        raw("rows.json", "[" + '{"a":' * 50_000 + "1" + "}" * 50_000 + "]"),
        "line 1: lists or objects more than 64 deep",
    ),
    Case("endless integer", lines('{"a": ' + "9" * 5000 + "}"), "line 1: a number has thousands"),
    Case("objects in one line", lines('{"a": 1}{"a": 2}'), "line 1, column 9: .*line of its own"),
    Case("objects one after another", raw("x.json", '{\n"a": 1\n}\n{\n"a": 2\n}'), "line 4.*Extra"),
    Case("comma behind each line", lines(LINE.strip() + ",", LINE.strip()), "line 1.*the comma at"),
    Case("comma before the bracket", raw("x.json", '[{"a": 1},]'), "line 1.*Expecting value"),
    Case("comma in an object", lines('{"a": 1,}'), "line 1.*Remove the comma"),
    Case("single quotes", lines("{'prompt': 'p'}"), "line 1, column 2: .*double quotes"),
    Case("Python's words", lines('{"a": True}'), "line 1, column 7: not JSON"),
    Case("comments", lines('// rows\n{"a": 1}'), "line 1: not JSON; it begins with '// rows"),
    Case("line break in a text", lines('{"a": "b', 'c"}'), "line 1, column 7: .*line break inside"),
    Case("bare numbers", lines("1", "2"), "line 1: not JSON; it begins with '1"),
    Case("a list in a line", lines('{"a": 1}', "[1]"), "line 2: a row must be an object .* a list"),
    Case("null in a line", lines('{"a": 1}', "null"), "line 2: a row must be an object .*NoneType"),
    Case("a list of texts", raw("x.json", '["a", "b"]'), "row 1: a row must be an object"),
    Case("lists by column", raw("x.json", '{"a": ["x", "y"], "b": ["z", "w"]}'), "lists by column"),
    Case("columns of pandas", raw("x.json", '{\n"a": {"0": "x"}, "b": {"0": "y"}}'), "by column"),
    Case("array cut off", raw("x.json", '[{"a": 1},\n{"a": 2}'), "line 2.*cut off"),
    Case("array and more", raw("x.json", '[{"a": 1}] [{"a": 2}]'), "column 12: Extra data"),
    Case(
        "array without commas", raw("x.json", '[{"a": 1}\n{"a": 2}]'), "line 2, .*expected ',' or"
    ),
    Case("empty array", raw("x.json", "[]"), "holds no rows"),
    Case("empty wrapper", raw("x.json", '{"data": []}'), "holds no rows"),
    Case(
        "too many fields",
        lines(json.dumps(dict.fromkeys(map(str, range(2000)), 0))),
        "line 1: one object with 2,000 fields",
    ),
    Case("too long a line", lines('{"a": "' + "x" * 65 * MIB + '"}'), "line 1: longer than 64 MiB"),
    Case(
        "too long a value in an array",
        raw("x.json", '[{"a": "' + "x" * 65 * MIB + '"}]'),
        "line 1, column 2: one value is longer than 64 MiB",
    ),
]

BROKEN_TEXT = [
    Case("empty", raw("rows.jsonl", b""), "holds no rows: the file is empty"),
    Case("blank lines only", raw("rows.jsonl", b"\n \n\r\n"), "holds no rows"),
    Case("a mark and nothing else", raw("rows.jsonl", b"\xef\xbb\xbf"), "holds no rows"),
    Case("UTF-16", raw("rows.jsonl", LINE.encode("utf-16")), "is text in UTF-16.*iconv"),
    Case("UTF-16 without a mark", raw("r.jsonl", LINE.encode("utf-16-be")), "is text in UTF-16"),
    Case("UTF-32", raw("rows.jsonl", LINE.encode("utf-32")), "is text in UTF-16 or UTF-32"),
    Case("Latin-1", raw("r.jsonl", '{"a": "é"}'.encode("latin-1")), "line 1: not UTF-8.*iconv"),
    Case(
        "two encodings",
        raw("r.jsonl", '{"a": "é"}\n'.encode() + '{"a": "é"}'.encode("latin-1")),
        "line 2: not UTF-8 text",
    ),
    Case(
        "two encodings in an array",
        raw("r.json", '[{"a": "é"},\n'.encode() + '{"a": "é"}]'.encode("latin-1")),
        "not UTF-8 text",
    ),
    Case("a character cut in two", raw("r.jsonl", b'{"a": "\xc3"}'), "line 1: not UTF-8"),
    Case("NUL in a line", raw("r.jsonl", LINE.encode() + b'{"a": "\0"}'), "line 2: a NUL byte"),
    Case("zeros at the end", raw("r.jsonl", LINE.encode() * 9 + b"\0" * 20), "line 10: a NUL byte"),
    Case("a web page", raw("r.jsonl", "<!DOCTYPE html><html>404</html>"), "is a web page"),
    Case("XML", raw("r.json", '\n<?xml version="1.0"?><Error/>'), "is a web page or XML"),
    Case(
        "a Git LFS pointer",
        raw("r.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "is a Git LFS pointer.*git lfs pull",
    ),
    Case("YAML cut off", raw("rows.yaml", "- prompt: [p\n- prompt: q\n"), "line 2: not YAML"),
    Case(
        "YAML that unfolds",
        raw("rows.yaml", "- &a [x, x, x, x]\n- &b [*a, *a, *a]\n- {prompt: [*b, *b]}\n"),
        "line 2: the alias",
    ),
    Case("csv with too few values", raw("r.csv", "a,b\n1,2\n3\n"), "line 3: 1 values, not the 2"),
    Case("csv with too many values", raw("r.csv", "a,b\n1,2,3\n"), r"line 2: 3 values.*\(a, b\)"),
    Case("csv with a name twice", raw("r.csv", "a,b,a\n1,2,3\n"), "line 1: the column 'a' occurs"),
    Case("csv without names", raw("r.csv", "a,,\n1,2,3\n"), "line 1: two columns have no name"),
    Case("csv with a NUL", raw("r.csv", b"a,b\n1,\0\n"), "line 2: a NUL byte"),
    Case("csv, open quote", raw("r.csv", 'a,b\n1,2\n"3,4\n5,6\n'), "line 3: a quote that opens"),
    Case("csv, loose quote", raw("r.csv", 'a,b\n"1"x,2\n'), "line 2: not a row of a table"),
    Case("csv of a header", raw("r.csv", "prompt,completion\n"), "holds no rows"),
    Case(
        "csv with a column per word",
        raw("r.csv", ",".join(f"c{i}" for i in range(2000)) + "\n"),
        "line 1: 2,000 columns",
    ),
]

BROKEN_BYTES = [
    Case("gzip cut off", compressed("r.jsonl.gz", gzip.compress, 0.6), "gzip data.*cut off"),
    Case("gzip damaged", compressed("r.gz", lambda d: gzip.compress(d)[:-8] + b"x" * 8), "damaged"),
    Case("gzip and rubbish", compressed("r.gz", gzip.compress, 1.0, b"rubbish"), "damaged"),
    Case("gzip header alone", raw("r.gz", b"\x1f\x8b\x08\0"), "gzip data.*cut off"),
    Case("gzip of nothing", raw("r.gz", gzip.compress(b"")), "holds no rows"),
    Case(
        "gzip twice",
        compressed("r.gz", lambda d: gzip.compress(gzip.compress(d))),
        "is compressed twice",
    ),
    Case("zstd cut off", compressed("r.zst", zstd, 0.6), "zstd data.*cut off"),
    Case("zstd and rubbish", compressed("r.zst", zstd, 1.0, b"rubbish"), "zstd data.*damaged"),
    Case("bzip2 cut off", compressed("r.bz2", bz2.compress, 0.6), "bzip2 data.*cut off"),
    Case("xz cut off", compressed("r.xz", lzma.compress, 0.6), "xz data.*cut off"),
    Case("xz damaged", raw("r.xz", b"\xfd7zXZ\0" + b"x" * 100), "xz data.*damaged"),
    Case("LZ4", raw("r.lz4", b"\x04\x22\x4d\x18rest"), "is LZ4-compressed. .*unlz4"),
    Case("half a parquet", parquet([ROW] * 500, keep=0.5), "Parquet file is damaged or cut off"),
    Case("parquet of four bytes", raw("r.parquet", b"PAR1"), "Parquet file is damaged"),
    Case("parquet without rows", parquet([], prompt=[], completion=[]), "holds no rows"),
    Case("parquet, a name twice", two_columns_of_one_name, "the column 'text' occurs twice"),
    Case("parquet of sounds", column_of_bytes, "row 1: 'sound' holds a binary value"),
    Case("arrow file cut off", arrow("file", 0.5), "Arrow file is damaged or cut off"),
    Case("arrow stream cut off", arrow("stream", 0.5), "Arrow file is damaged or cut off"),
    Case("zip", archive("rows.zip", "rows.jsonl"), r"is a zip archive.*zip://NAME::"),
    Case("Excel", archive("rows.xlsx", "xl/worksheets/sheet1.xml"), "is an Office document"),
    Case("torch", archive("rows.pt", "archive/data.pkl"), "is an archive of arrays"),
    Case("tar", archive("rows.tar", "rows.jsonl", "tar"), "is a tar archive"),
    Case("tar.gz", archive("rows.tar.gz", "rows.jsonl", "tar"), "is a tar archive"),
    Case("PDF", raw("paper.pdf", b"%PDF-1.7\n%\xe2\xe3"), "is a PDF document"),
    Case("pickle", raw("rows.pkl", pickle.dumps([ROW])), "is a pickle"),
    Case(
        "safetensors",
        raw("m.safetensors", (2).to_bytes(8, "little") + b"{}" + b"\0" * 64),
        r"is model weights \(safetensors\)",
    ),
    Case("GGUF", raw("m.gguf", b"GGUF\x03\0\0\0"), "is model weights"),
    Case("SQLite", raw("rows.db", b"SQLite format 3\0" + b"\0" * 64), "is an SQLite database"),
    Case("PNG", raw("x.png", b"\x89PNG\r\n\x1a\n\0\0"), "is a PNG image"),
    Case("noise", raw("rows.bin", bytes(range(1, 256)) * 4), "is a binary file of no known kind"),
]

BOMBS = [
    Case(
        "a gzip bomb of blank lines",
        bomb("b.jsonl.gz", gzip.open, b"\n" * MIB, 100),
        "unpacks to more than 250 times its size",
    ),
    Case("a gzip bomb of zeros", bomb("b.gz", gzip.open, b"\0" * MIB, 100), "binary file"),
    Case(
        "a bzip2 bomb of rows",
        bomb("b.jsonl.bz2", bz2.open, LONG.encode() * 500, 30),
        "unpacks to more than 250 times its size",
    ),
    Case(
        "an xz bomb in one line",
        bomb("b.json.xz", lzma.open, b"[" + b" " * MIB, 50),
        "unpacks to more than 250 times its size",
    ),
    Case("a zstd bomb", zstd_bomb, "unpacks to more than 250 times its size"),
]

BROKEN_PATHS = [
    Case("no file", lambda folder: folder / "nothing.jsonl", "No file .*nothing.jsonl"),
    Case("a folder without files", folder_of(), "holds no data files"),
    Case("a folder of notes", folder_of(README_dot_md="x", LICENSE="y"), "holds no data files"),
    Case("a path through a file", inside_a_file, "cannot be read: Not a directory"),
    Case("a name with a NUL", lambda folder: folder / "a\0b", "cannot be read"),
    Case("too long a name", lambda folder: folder / ("x" * 300), "cannot be read: File name too"),
    Case("a pipe", fifo, "is a pipe and no file"),
    Case("a device", lambda folder: Path("/dev/zero"), "is a device or socket and no file"),
    Case("a socket", unix_socket, "is a device or socket and no file"),
    Case("a link to itself", link_to_itself, "cannot be read: .*[Ss]ymbolic links"),
    Case("a folder in itself", folder_in_itself, "is a link back into its own folder"),
    Case("a link to nothing", dangling_link, "b.jsonl cannot be read.*Remove it"),
    Case("no match", lambda folder: folder / "*.jsonl", "No file matches .*in quotes"),
    Case(
        "files of two kinds",
        folder_of(a_dot_jsonl=LINE, b_dot_csv="a,b\n1,2\n"),
        r"several kinds \(a.jsonl, b.csv\).*glob",
    ),
    Case(
        "two kinds under one ending",
        folder_of(a_dot_jsonl=LINE, b_dot_jsonl=b"PAR1"),
        "b.jsonl is of another kind",
    ),
    Case(
        "an empty file among others",
        folder_of(a_dot_jsonl=LINE, b_dot_jsonl=b""),
        "b.jsonl holds no rows: the file is empty",
    ),
    Case(
        "a broken file among others",
        folder_of(a_dot_jsonl=LINE, b_dot_jsonl='{"a": 1}\n{"a": '),
        "b.jsonl, line 2, column 7: not JSON",
    ),
    Case(
        "a torn folder of datasets",
        folder_of(state_dot_json='{"_data_files": [', x_dot_arrow=b"x"),
        "state.json is not what datasets.save_to_disk writes",
    ),
    Case("an unknown address", lambda folder: "nope://a/b.jsonl", "cannot be reached"),
    Case("a driver that is missing", lambda folder: "abfs://a/b.jsonl", "needs a package"),
    Case("nothing at the address", lambda folder: "memory://no/such.jsonl", "Nothing at memory:"),
]

FINE = [
    Case("a byte-order mark", raw("r.jsonl", b"\xef\xbb\xbf" + LINE.encode() * 2), rows=2),
    Case(
        "a mark before an array",
        raw("r.json", b"\xef\xbb\xbf" + b"[" + LINE.encode() + b"]"),
        rows=1,
    ),
    Case("a mark before a table", raw("r.csv", b"\xef\xbb\xbfa,b\n1,2\n"), rows=1),
    Case("objects by id", raw("x.json", '{"x7": {"a": 1}, "x8": {"a": 2}}'), rows=2),
    Case(
        "objects by more ids than a row has fields",
        raw("x.json", json.dumps({f"id{i}": {"a": "b"} for i in range(3000)})),
        rows=3000,
    ),
    Case("CRLF", raw("r.jsonl", LINE.replace("\n", "\r\n") * 3), rows=3),
    Case("CRLF in a table", raw("r.csv", 'a,b\r\n1,"x\r\ny"\r\n'), rows=1),
    Case("blank lines between", raw("r.jsonl", f"\n{LINE}\n \n{LINE}\n\n"), rows=2),
    Case("blank lines in a table", raw("r.csv", "a,b\n\n1,2\n\n"), rows=1),
    Case("no end of line", raw("r.jsonl", LINE.strip()), rows=1),
    Case("lines that end in CR", raw("r.jsonl", b'{"a": 1}\r{"a": 2}\r'), rows=2),
    Case("a table whose lines end in CR", raw("r.csv", b'a,b\r1,"2\rx"\r3,4\r'), rows=2),
    Case("U+2028 inside a text", raw("r.jsonl", '{"a": "b\u2028c"}\n' + LINE), rows=2),
    Case("a line of 10 MB", raw("r.jsonl", '{"a": "' + "x" * 10**7 + '"}\n' + LINE), rows=2),
    Case("surrogates in pairs", raw("r.jsonl", '{"a": "\\ud83d\\ude00"}'), rows=1),
    Case("nulls", raw("r.jsonl", '{"a": null, "b": {"c": [null]}}'), rows=1),
    Case("an object over lines", raw("r.json", json.dumps(ROW, indent=2)), rows=1),
    Case(
        "a wrapper over lines",
        raw("r.json", json.dumps({"v": 1, "data": [ROW] * 3}, indent=2)),
        rows=3,
    ),
    Case("an array in one line", raw("r.json", json.dumps([ROW] * 5)), rows=5),
    Case("gzip in parts", raw("r.gz", gzip.compress(LINE.encode()) * 3), rows=3),
    Case("zstd in parts", raw("r.zst", zstd(LINE.encode()) * 3), rows=3),
    Case("bzip2", raw("r.jsonl.bz2", bz2.compress(LINE.encode())), rows=1),
    Case("xz", raw("r.jsonl.xz", lzma.compress(LINE.encode())), rows=1),
    Case(
        "a parquet file in gzip",
        lambda f: raw("r.gz", gzip.compress(parquet([ROW] * 7)(f).read_bytes()))(f),
        rows=7,
    ),
    Case("an arrow file", arrow("file"), rows=3000),
    Case("an arrow stream", arrow("stream"), rows=3000),
    Case("a column of pandas' index", raw("r.csv", ",a\n0,x\n1,y\n"), rows=2),
    Case("a hidden file beside", folder_of(a_dot_jsonl=LINE, _dot_b="x", README="y"), rows=1),
]
