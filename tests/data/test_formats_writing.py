from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from format_rows import U2, A, B, S, U

from alignlab.data.formats.grouping import together
from alignlab.data.formats.registry import detect, read
from alignlab.data.formats.writing import row_of, write
from alignlab.data.group import (
    CHOSEN_REJECTED,
    DEMONSTRATION,
    NONE,
    PromptGroup,
    Verdict,
)
from alignlab.errors import DataError

CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": None}}}
ASKS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "f"}}
GROUPS = [
    PromptGroup("p \n", (" c", ""), CHOSEN_REJECTED, "id1", {"place": "line 3", "x": [1, None]}),
    PromptGroup((S, U), ((ASKS, RESULT, {**A, "weight": 0}, U2, B),), DEMONSTRATION, tools=(TOOL,)),
    PromptGroup("", ("text 漢字 \u2028 end",), DEMONSTRATION),
    PromptGroup("half \ud83d of a pair"),
    PromptGroup((U,), (), NONE),
    PromptGroup("q", ("x", "y"), Verdict("scores", scores=(0.1, -2.0))),
    PromptGroup("q", ("x", "y"), Verdict("thumbs", thumbs=(True, False))),
]


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "groups.jsonl"
    assert write(iter(GROUPS), path) == len(GROUPS)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert detect(rows) == "group"
    assert [read("group", row) for row in rows] == GROUPS
    assert "漢字" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["groups.jsonl"]


def test_an_interrupted_writing_leaves_no_file(tmp_path):
    def broken():
        yield GROUPS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken(), tmp_path / "groups.jsonl")
    assert not (tmp_path / "groups.jsonl").exists()


def test_values_that_json_does_not_know_become_text(tmp_path):
    day = datetime(2026, 11, 22, tzinfo=UTC)
    write([PromptGroup("q", meta={"day": day})], tmp_path / "groups.jsonl")
    assert "2026-11-22" in (tmp_path / "groups.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"verdict": {"kind": "rankings"}}, "Did you mean 'ranking'"),
        ({"verdict": {"kind": "ranking"}}, "'verdict.ranks' must be a list of ranks"),
        ({"verdict": {"kind": "scores", "scores": ["1", "2"]}}, "'verdict.scores' must be a list"),
        ({"verdict": {"kind": "scores", "scores": [1.0]}}, "2 completions but 1 scores"),
        ({"completions": "xy"}, "'completions' must be a list"),
        ({"meta": [1]}, "'meta' must be an object"),
    ],
)
def test_a_row_of_our_own_that_was_spoiled(change, error):
    with pytest.raises(DataError, match=error):
        read("group", {**row_of(GROUPS[5]), **change})


def scored(prompt, answer, score, **meta):
    verdict = Verdict("scores", scores=(score,))
    return PromptGroup(prompt, (answer,), verdict, meta={"attributes": [{"h": score}], **meta})


def test_rows_of_one_prompt_become_one_group():
    rows = [scored("p", "x", 1.0, place="line 1", lang="en", n=1), scored("q", "z", 2.0)]
    rows += [scored("p", "y", 3.0, place="line 3", lang="en", n=2)]
    first, second = together(rows)
    assert (first.prompt, first.completions, first.verdict.scores) == ("p", ("x", "y"), (1.0, 3.0))
    assert first.meta == {
        "attributes": [{"h": 1.0}, {"h": 3.0}],
        "place": "line 1",
        "lang": "en",
        "n": [1, 2],
    }
    assert first.verdict.pairs() == ((1, 0),)
    assert second == rows[1]


def test_thumbs_of_one_prompt_make_pairs():
    yes = PromptGroup("p", ("x",), Verdict("thumbs", thumbs=(True,)))
    no = PromptGroup("p", ("y",), Verdict("thumbs", thumbs=(False,)))
    (made,) = together([yes, no])
    assert made.verdict.pairs() == ((0, 1),)


def test_what_does_not_belong_together_stays_apart():
    demonstration = PromptGroup("p", ("x",), DEMONSTRATION)
    ranking = PromptGroup("p", ("x", "y"), CHOSEN_REJECTED)
    other = PromptGroup("p", ("x",), Verdict("scores", scores=(1.0,)), tools=(TOOL,))
    groups = [demonstration, demonstration, ranking, ranking, scored("p", "x", 1.0), other]
    assert together(groups) == groups
