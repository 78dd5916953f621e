"""YAML as rows: lists of objects, ChatterBot's dialogues, and what is refused."""

from __future__ import annotations

import pytest
from table_sources import source

from alignlab.data.rows import limits, yaml_rows
from alignlab.data.rows.files import read_rows
from alignlab.errors import DataError


def rows(tmp_path, text: str, name: str = "rows.yml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_rows(path)


def test_a_list_of_objects_and_one_object(tmp_path):
    listed = "- prompt: a\n  completion: b\n- {prompt: c, completion: 'd: e'}\n"
    assert rows(tmp_path, listed) == [
        ("row 1", {"prompt": "a", "completion": "b"}),
        ("row 2", {"prompt": "c", "completion": "d: e"}),
    ]
    assert rows(tmp_path, "text: |\n  two\n  lines\n", "one.yaml") == [
        ("row 1", {"text": "two\nlines\n"})
    ]


def test_dialogues_of_chatterbot(tmp_path):
    text = "categories:\n- AI\nconversations:\n- - Are you 42?\n  - Yes\n  - How old?\n  - 42\n"
    assert rows(tmp_path, text) == [
        (
            "conversations 1",
            {"conversation": ["Are you 42?", "Yes", "How old?", "42"], "categories": ["AI"]},
        )
    ]
    [group] = source(path=str(tmp_path / "rows.yml"), validation=0, test=0).load("sft")
    assert group.prompt == ({"role": "user", "content": "Are you 42?"},)
    assert [m["content"] for m in group.completions[0]] == ["Yes", "How old?", "42"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- a: &x [1, 2]\n- b: *x\n", r"rows.yml, line 2: the alias \*x"),
        ("a: [1\nb: 2\n", r"rows.yml, line 2: not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("- !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("- a: 2026-13-45\n", "a value that is none"),
        ("- " * 80 + "a\n", "more than 64 deep"),
        ("- just text\n", "row 1: a row must be an object"),
        ("conversations:\n- - a\n  - b\n- 'c - d'\n", "conversations 2: must be a list of what"),
    ],
)
def test_what_is_refused(tmp_path, text, match):
    with pytest.raises(DataError, match=match):
        rows(tmp_path, text)


def test_long_files_are_refused_before_they_are_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_rows, "LIMITS", limits.Limits(yaml_bytes=20))
    with pytest.raises(DataError, match="Write the rows as JSON lines"):
        rows(tmp_path, "- a: 1\n" * 9)
