"""Rows that cannot be read are refused, or left out and counted: never one without the other."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest
from malformed_files import BOMBS, BROKEN_BYTES, BROKEN_JSON, BROKEN_PATHS, BROKEN_TEXT, parquet
from table_sources import source

from alignlab.cli import main
from alignlab.data.gate.gate import require
from alignlab.data.gate.left_out import left_out
from alignlab.data.gate.limits import Limits, Share
from alignlab.data.prepared import prepare
from alignlab.data.quality.refined import Refined
from alignlab.data.rows.bad_rows import Losses, kind_of
from alignlab.data.rows.fingerprint import content_of, fingerprint_of
from alignlab.data.rows.listing import files_of
from alignlab.data.sources.file import File
from alignlab.data.sources.hub import Hub
from alignlab.data.sources.mixture import Mixture, Part
from alignlab.data.sources.table import VERSION
from alignlab.data.template import Tokenization
from alignlab.errors import DataError
from alignlab.spec import Spec

WAY_OUT = r"To leave out such rows, counted: data\.bad_rows=leave_out\.$"


def line(number: int, **more) -> bytes:
    row = {"prompt": f"question {number}", "chosen": "yes", "rejected": "no", **more}
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


LATIN = line(7, chosen="caf\u00e9").decode().encode("latin-1")
PAIR = b'{"prompt": "p", "chosen": "a", "rejected": "b"}'

# name of the file, its bytes, prompts that are kept, and (place, reason) of what is left out
TABLE = {
    "a line that is no JSON": (
        "x.jsonl",
        line(1) + b'{"prompt": \n' + line(2),
        2,
        [("line 2, column 12", "not JSON")],
    ),
    "the first line": ("x.jsonl", b"{'a': 1}\n" + line(1), 1, [("line 1, column 2", "not JSON")]),
    "the last line, cut off": ("x.jsonl", line(1) + b'{"p', 1, [("line 2, column 2", "not JSON")]),
    "two encodings": ("x.jsonl", line(1) + LATIN + line(2), 2, [("line 2", "not UTF-8 text")]),
    "a NUL byte": ("x.jsonl", line(1) + b'{"a": "\0"}\n' + line(2), 2, [("line 2", "a NUL byte")]),
    "a list": ("x.jsonl", line(1) + b"[1]\n" + line(2), 2, [("line 2", "a row must be an object")]),
    "a name twice": ("x.jsonl", line(1) + b'{"a": 1, "a": 2}\n', 1, [("line 2", "the name 'a'")]),
    "NaN": ("x.jsonl", line(1) + line(2, score=float("nan")), 1, [("line 2", "NaN is not JSON")]),
    "half a character": ("x.jsonl", line(1) + b'{"a": "\\ud800"}', 1, [("line 2", "a text holds")]),
    "a field without a value": (
        "x.jsonl",
        line(1) + line(2, chosen=None) + line(3, chosen=4) + line(4),
        2,
        [("line 2", "no 'chosen'"), ("line 3", "'chosen' must be text")],
    ),
    "another format in the first rows": (
        "x.jsonl",
        line(1) + b'{"prompt": "p", "completion": "c"}\n' + line(2),
        2,
        [("line 2", "the row looks like 'prompt_completion'")],
    ),
    "another format in most of the first rows": (
        "x.jsonl",
        b'{"prompt": "p", "completion": "c"}\n' + line(1) + line(2),
        2,
        [("line 1", "the row looks like 'prompt_completion'")],
    ),
    "messages among texts": (
        "x.jsonl",
        line(1) + line(2, prompt=[{"role": "user", "content": "u"}]) + line(3),
        2,
        [("line 2", "the rows before are text")],
    ),
    "values of an array": (
        "x.json",
        b"[" + PAIR + b',\n{"a": 1, "a": 2}, 7, {"prompt": "\xe9"},' + PAIR + b"]",
        2,
        [("row 2", "the name 'a'"), ("row 3", "a row must be"), ("row 4", "not UTF-8 text")],
    ),
    "a value of an array that is too deep": (
        "x.json",
        b"[" + PAIR + b',{"a": ' + b"[" * 99 + b"]" * 99 + b"}," + PAIR + b"]",
        2,
        [("row 2", "lists or objects more than")],
    ),
    "rows of a table": (
        "x.csv",
        b'prompt,chosen,rejected\np,a,b\np\nq,"a\n\xe9\n",b\nr,a,b\n"x"y,a,b\ns,a,"b\nb"\n',
        3,
        [("line 3", "1 values, not the 3"), ("line 5", "not UTF-8"), ("line 8", "not a row of")],
    ),
    "a document of a text": (
        "x.txt",
        b"one\ntwo\n\nthree\ncaf\xe9\nfour\n\nfive\n",
        2,
        [("line 5", "not UTF-8 text")],
    ),
    "a dialogue of YAML": (
        "x.yml",
        b"conversations:\n- - a\n  - b\n- 'c - d'\n- - e\n  - f\n",
        2,
        [("conversations 2", "must be a list of what was said")],
    ),
}


def lost(data, split="preference") -> Losses:
    found = data.left_out(split)
    assert found is not None
    return found


@pytest.mark.parametrize("name", TABLE)
def test_they_are_left_out_and_counted(tmp_path, name):
    file, content, kept, bad = TABLE[name]
    path = tmp_path / file
    path.write_bytes(content)
    data = source(path=str(path), validation=0.0, test=0.0, bad_rows="leave_out")
    assert len(data.load("preference")) == kept
    found = lost(data)
    assert (found.count, found.rows) == (len(bad), kept + len(bad))
    assert sum(found.why.values()) == len(bad)
    assert sorted(place for place, _ in found.first) == sorted(f"{file}, {at}" for at, _ in bad)
    for at, reason in bad:
        assert dict(found.first)[f"{file}, {at}"].startswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_without_a_word_they_are_refused_and_the_way_out_is_named(tmp_path, name):
    file, content, _, bad = TABLE[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        source(path=str(path), validation=0.0, test=0.0).load("preference")
    if "first rows" not in name:  # of two formats none is the bad one
        assert re.search(WAY_OUT, str(caught.value))
        places = [at.split(",")[0] for at, _ in bad]  # in an array a row is told by its line
        assert any(at in str(caught.value) or at.startswith("row") for at in places)


def test_a_table_of_arrow(tmp_path):
    rows = [{"prompt": b"p", "completion": "c"}, {"prompt": b"\xff\xd8", "completion": "c"}] * 2
    path = parquet(rows)(tmp_path)
    data = source(path=str(path), validation=0.0, test=0.0, bad_rows="leave_out", encoding="cp1252")
    assert len(data.load("sft")) == 2
    assert lost(data, "sft").why == {
        "'prompt' holds a binary value, perhaps an image or a sound; alignlab reads text": 2
    }
    with pytest.raises(DataError, match="row 2: 'prompt' holds a binary"):
        source(path=str(path)).load("sft")


BROKEN = [*BROKEN_JSON, *BROKEN_TEXT, *BROKEN_BYTES, *BOMBS, *BROKEN_PATHS]


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.name)
def test_no_broken_file_passes_unseen(tmp_path, case):
    """Every file of the table of broken ones is refused all the same, or something is counted."""
    path = case.make(tmp_path)
    data = source(path=str(path), validation=0.0, test=0.0, bad_rows="leave_out")
    said = ""
    try:
        data.load("preference")
    except DataError as error:
        said = str(error)
    assert len(said) < 900
    assert said.rstrip().endswith((".", "?", ")")) if said else lost(data).count > 0


def test_an_open_quote_takes_the_rest_of_a_table_with_it_and_is_no_bad_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion\na,b\nc,"d\n' + "e,f\n" * 50)
    with pytest.raises(DataError, match="line 3: a quote that opens"):
        source(path=str(path), bad_rows="leave_out").load("sft")


def test_a_file_of_bad_rows_alone_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{\n" * 30)
    with pytest.raises(DataError, match=r"none of 30 rows can be read; x\.jsonl, line 1, "):
        source(path=str(path), bad_rows="leave_out").load("sft")
    path.write_bytes(line(1, chosen=None) * 3000)
    with pytest.raises(DataError, match="none of 1,000 rows can be read"):  # no further
        source(path=str(path), bad_rows="leave_out", format="preference").load("sft")


def test_reasons_without_end_are_counted_together(tmp_path):
    path = tmp_path / "x.jsonl"
    good = b"".join(map(line, range(50)))
    roles = (json.dumps({"prompt": [{"role": f"r{'a' * i}", "content": "u"}]}) for i in range(40))
    rows = (json.loads(row) | {"chosen": "a", "rejected": "b"} for row in roles)
    path.write_bytes(good + "\n".join(map(json.dumps, rows)).encode())
    data = source(path=str(path), validation=0.0, test=0.0, bad_rows="leave_out")
    assert len(data.load("preference")) == 50
    assert lost(data).count == 40
    assert len(lost(data).why) <= 21
    assert len(lost(data).first) == 8


def test_the_words_that_rows_are_counted_by():
    assert kind_of("3 values, not the 2 that the header names (a, b). Quote texts.") == (
        "N values, not the N that the header names (a, b)"
    )
    assert kind_of("not UTF-8 text (x). Convert it.") == "not UTF-8 text (x)"
    assert kind_of("'chosen' must be text; it is 'a b c'.") == "'chosen' must be text"


def test_places_name_the_file_and_the_fingerprint_says_what_was_asked(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line(1))
    (tmp_path / "b.jsonl").write_bytes(b"{\n" + line(2))
    made = [
        source(path=str(tmp_path), validation=0, test=0, bad_rows=p) for p in 2 * ("leave_out",)
    ]
    assert len(made[0].load("sft")) == 2
    assert lost(made[0], "sft").first[0][0] == "b.jsonl, line 1, column 2"
    assert made[0].fingerprint() == made[1].fingerprint()
    refusing = source(path=str(tmp_path), validation=0, test=0)
    assert refusing.fingerprint() != made[0].fingerprint()
    assert refusing.left_out("sft") is None
    # What was prepared before there was a choice is found under the same key.
    fields = asdict(refusing) | {"path": "", "validation_path": None, "test_path": None}
    for later in ("bad_rows", "encoding", *File.unkeyed_if_null):
        del fields[later]
    content = {"train": [content_of(f) for f in files_of(str(tmp_path))]}
    assert refusing.fingerprint() == fingerprint_of([], ("file", VERSION, content, fields))


@pytest.mark.slow
def test_a_hub_data_set_whole_and_as_a_stream(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p{i}", "completion": "c" if i % 4 else ""} for i in range(8)]
    table = datasets.Dataset.from_list([row if i != 5 else {} for i, row in enumerate(rows)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: table)
    for streaming in (False, True):
        hub = source(
            Hub,
            revision="f" * 40,
            streaming=streaming,
            bad_rows="leave_out",
            validation=0,
            test=0,
            limit={"sft": 100},
        )
        assert len(hub.load("sft")) == 7
        assert lost(hub, "sft").count == 1
        assert lost(hub, "sft").first[0][0] == "x/y (train), row 6"
        assert hub.card()["left_out"]["sft"]["rows_out"] == 7


def of(path, **more) -> Spec:
    plain = {**asdict(source(path=str(path), validation=0.0, test=0.0)), "bad_rows": "leave_out"}
    return Spec("alignlab.data.sources.file.File", {**plain, **more})


def test_it_is_counted_through_mixtures_and_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "store"))
    (tmp_path / "a.jsonl").write_bytes(line(1) + b"{\n" + line(2))
    (tmp_path / "b.jsonl").write_bytes(line(3) + b"[]\n" + b"{\n")
    every = ("sft", "preference")
    parts = {
        name: Part(source=of(tmp_path / f"{name}.jsonl"), weight=1, count=1, cap=None, splits=every)
        for name in "ab"
    }
    mixture = Mixture(parts=parts, mix="all", size=None, repeat=1, limit={})
    assert len(mixture.load("preference")) == 3
    found = lost(mixture)
    assert (found.rows, found.count) == (6, 3)
    assert {place for place, _ in found.first} == {
        "a: a.jsonl, line 2, column 2",
        "b: b.jsonl, line 2",
        "b: b.jsonl, line 3, column 2",
    }
    assert mixture.card()["parts"]["b"]["left_out"]["preference"]["rows_in"] == 3
    for _ in range(2):  # refined, and read from where the refined rows are kept
        refined = Refined(source=of(tmp_path / "b.jsonl"), steps={}, order=())
        assert len(refined.load("preference")) == 1
        assert lost(refined).count == 2
        [entry] = refined.card()["splits"]["preference"]
        assert (entry["step"], entry["rows_in"], entry["rows_out"]) == ("read", 3, 1)


@pytest.mark.slow
def test_the_gate_says_it_and_stops_above_its_limit(tmp_path, plain_tokenizer):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(map(line, range(30))) + b"{\n")  # 1 of 31 = 3.2 %
    data = source(path=str(path), validation=0.0, test=0.0, bad_rows="leave_out")
    how = Tokenization(plain_tokenizer, None, None)
    for _ in range(2):  # made, and found
        made = prepare(data, "preference", how, tmp_path / "cache", need="pairs")
        [said] = [finding for finding in made.findings if finding.code == "left_out"]
        assert (said.severity, said.count) == ("warning", 1)
        assert said.counted() == "1 row: x.jsonl, line 31, column 2"
        assert "3.23% of 31 (1: not JSON" in said.message
        assert made.card["left_out"]["preference"]["rows_out"] == 30
    strict = Limits(left_out=Share(warn=0.0, error=0.03))
    made = prepare(data, "preference", how, tmp_path / "cache", need="pairs", limits=strict)
    with pytest.raises(DataError, match=r"were left out, 3.23% of 31 .*1 row: x.jsonl, line 31"):
        require(made.findings)
    data.load("sft")
    assert len(left_out(data, ("sft", "preference", "test"))) == 1  # the same rows, said once
    assert left_out(data, ("preference",), Limits(left_out=Share(warn=0.5, error=None))) == []
    whole = source(path=str(path), bad_rows="refuse")
    assert whole.card() == {}


@pytest.mark.slow
def test_data_check_says_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "store"))
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(map(line, range(40))) + b"{\n" + LATIN)  # 2 of 42 = 4.8 %
    asked = ["data", "check", str(path), "backbone=tiny", "data.bad_rows=leave_out"]
    assert main([*asked, "--json", "--html", str(tmp_path / "x.html")]) == 0
    printed = json.loads(capsys.readouterr().out.rsplit("\npage", 1)[0])
    [found] = [f for f in printed["findings"] if f["code"] == "left_out"]
    assert found["count"] == 2
    assert found["places"] == ["x.jsonl, line 41, column 2", "x.jsonl, line 42"]
    assert "x.jsonl, line 41, column 2" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert main([*asked, "gate.left_out.error=0.04"]) == 1
    assert re.search(r"ERROR .*: left_out, 2 rows", capsys.readouterr().out)
    assert main(asked[:-1]) == 2
    assert "data.bad_rows=leave_out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("latin-1", line(1, chosen="caf\u00e9").decode().encode("latin-1")),
        ("utf-16", line(1, chosen="\u4f60\u597d caf\u00e9").decode().encode("utf-16")),
        ("utf-16-le", line(1, chosen="\u4f60\u597d").decode().encode("utf-16-le")),
        ("gb18030", line(1, chosen="\u4f60\u597d").decode().encode("gb18030") * 40_000),
    ],
)
def test_text_in_another_encoding(tmp_path, encoding, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    data = source(path=str(path), validation=0.0, test=0.0, encoding=encoding)
    best = {group.completions[0] for group in data.load("preference")}
    assert len(best) == 1
    assert best <= {"caf\u00e9", "\u4f60\u597d", "\u4f60\u597d caf\u00e9"}
    with pytest.raises(DataError, match=r"data\.encoding=|is a binary file"):
        source(path=str(path)).load("preference")


def test_an_encoding_that_the_file_has_not(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(1) + b'{"prompt": "\x81"}\n' + line(2))  # no character in cp1252
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not cp1252 text"):
        source(path=str(path), encoding="cp1252").load("sft")
    data = source(path=str(path), encoding="cp1252", bad_rows="leave_out", validation=0.0, test=0.0)
    assert len(data.load("preference")) == 2
    assert lost(data).count == 1
    with pytest.raises(DataError, match=r"data\.encoding=lattin-1 is no.* Did you mean 'latin-1'"):
        source(path=str(path), encoding="lattin-1")
    with pytest.raises(DataError, match=r"data\.encoding=base64 is no encoding"):
        source(path=str(path), encoding="base64")
    with pytest.raises(DataError, match=r"data\.bad_rows=leaveout: .*Did you mean 'leave_out'"):
        source(path=str(path), bad_rows="leaveout")
