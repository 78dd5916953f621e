"""Sources made of samples: best of n from an annotate run, and self-instruct."""

from __future__ import annotations

import json

import pytest
from quality_rows import write

from alignlab.compose import compose
from alignlab.data.group import PromptGroup
from alignlab.data.quality.self_instruct import Novel, instructions, rouge_l
from alignlab.data.quality.texts import words
from alignlab.errors import DataError
from alignlab.run import Store
from alignlab.spec import Spec, build, parse


def annotated(number, completions, ranks, split="train", truncated=None, **meta):
    return {
        "row": number,
        "id": f"id{number}",
        "split": split,
        "prompt": f"p{number}",
        "completions": completions,
        "verdict": {"kind": "ranking", "ranks": ranks, "scores": [], "thumbs": []},
        "truncated": truncated or [False] * len(completions),
        "meta": meta,
    }


@pytest.fixture
def finished(tmp_path):
    """A store with a finished annotate run of three prompts, one of them for validation."""
    run = Store(tmp_path / "runs").run("annotate", "abc123")
    run.update_record(label="x")
    rows = [
        annotated(0, ["bad", "best", "good"], [2, 0, 1], gold=[0.1, 0.9, 0.5]),
        annotated(1, ["worst", "cut"], [1, 0], truncated=[False, True], gold=[0.2, 0.3]),
        annotated(2, ["a", "b"], [0, 1], split="validation", gold=[1.0, 0.0]),
    ]
    write(run.path / "annotations.jsonl", rows)
    run.finish()
    return run


def from_run(finished, tmp_path, *overrides):
    origin = write(
        tmp_path / "all.jsonl", [{"prompt": f"h{i}", "completion": "c"} for i in range(40)]
    )
    node = compose(
        [
            "data=from_run",
            f"data.run={finished.name}",
            f"data.store={finished.path.parent}",
            f"data.origin.path={origin}",
            *overrides,
        ]
    )["data"]
    return build(parse(node, "data"))


def texts(groups):
    return [(group.prompt, *group.completions) for group in groups]


@pytest.mark.slow
def test_best_of_n_become_demonstrations(finished, tmp_path):
    data = from_run(finished, tmp_path)
    assert texts(data.load("sft")) == [("p0", "best"), ("p1", "worst")]  # "cut" did not end
    assert {group.verdict.kind for group in data.load("sft")} == {"demonstration"}
    kept = from_run(finished, tmp_path, "data.truncated=keep").load("sft")
    assert texts(kept) == [("p0", "best"), ("p1", "cut")]
    two = from_run(finished, tmp_path, "data.keep=2").load("sft")
    assert texts(two) == [("p0", "best"), ("p0", "good"), ("p1", "worst")]
    assert len({group.id for group in two}) == 3
    assert two[0].meta["place"] == "annotate-abc123, line 1"


@pytest.mark.slow
def test_rejection_by_a_field_and_a_bound(finished, tmp_path):
    bound = ("data.field=gold", "data.least=0.5", "data.keep=9")
    groups = from_run(finished, tmp_path, *bound).load("sft")
    assert texts(groups) == [("p0", "best"), ("p0", "good")]
    assert [group.meta["score"] for group in groups] == [0.9, 0.5]
    with pytest.raises(DataError, match="no score for each completion in votes"):
        from_run(finished, tmp_path, "data.field=votes").load("sft")


def test_other_splits(finished, tmp_path):
    data = from_run(finished, tmp_path)
    assert texts(data.load("preference")) == [("p0", "bad", "best", "good"), ("p1", "worst", "cut")]
    assert data.load("preference")[0].verdict.ranks == (2, 0, 1)
    assert texts(data.load("unlabeled")) == [("p0",), ("p1",)]
    assert all(group.prompt.startswith("h") for group in data.load("test"))
    with pytest.raises(DataError, match="Did you mean 'sft'"):
        data.load("stf")


@pytest.mark.slow
def test_the_fingerprint_is_of_the_annotations(finished, tmp_path):
    base = from_run(finished, tmp_path).fingerprint()
    assert from_run(finished, tmp_path, "data.keep=2").fingerprint() != base
    with (finished.path / "annotations.jsonl").open("a") as file:
        file.write(json.dumps(annotated(3, ["x", "y"], [0, 1])) + "\n")
    assert from_run(finished, tmp_path).fingerprint() != base


@pytest.mark.slow
def test_a_run_that_is_not_there_or_not_done_is_refused(finished, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'annotate-abc123'"):
        from_run(finished, tmp_path, "data.run=annotate-abc124").fingerprint()
    (finished.path / "DONE").unlink()
    with pytest.raises(DataError, match="is not finished"):
        from_run(finished, tmp_path).load("sft")


def test_prompts_of_messages_get_messages_back(finished, tmp_path):
    row = annotated(0, ["yes", "no"], [0, 1])
    row["prompt"] = [{"role": "user", "content": "Well?"}]
    write(finished.path / "annotations.jsonl", [row])
    [group] = from_run(finished, tmp_path).load("sft")
    assert group.prompt == ({"role": "user", "content": "Well?"},)
    assert group.completions == (({"role": "assistant", "content": "yes"},),)


def test_instructions_are_read_from_a_list():
    assert instructions(" Write a poem.\n10. Sum two\nnumbers.\n11. Explain th") == [
        "Write a poem.",
        "Sum two numbers.",
    ]
    assert instructions(" Only one") == ["Only one"]
    assert instructions("A\nTask 10: B\nTask 11: C") == ["A", "B"]
    assert instructions("") == []


def test_a_run_over_few_shot_prompts_gives_new_instructions(finished, tmp_path):
    row = annotated(0, ["Draw a cat.\n10. Draw a dog.\n11. Dra", "Sing."], [0, 1])
    write(finished.path / "annotations.jsonl", [row])
    data = from_run(finished, tmp_path, "data.read=instructions")
    groups = data.load("unlabeled")
    assert texts(groups) == [("Draw a cat.",), ("Draw a dog.",), ("Sing.",)]
    assert data.load("preference") == groups
    assert all(group.prompt.startswith("h") for group in data.load("sft"))  # of the origin
    assert len({group.id for group in groups}) == 3


def few_shot(tmp_path, *overrides):
    rows = [{"prompt": f"Task number {i}", "completion": "c"} for i in range(40)]
    seeds = write(tmp_path / "seeds.jsonl", rows)
    node = compose(["data=self_instruct", f"data.source.path={seeds}", *overrides])["data"]
    return build(parse(node, "data"))


@pytest.mark.slow
def test_few_shot_prompts(tmp_path):
    data = few_shot(tmp_path, "data.shots=3", "data.count=50")
    groups = data.load("preference")
    assert len({group.id for group in groups}) == 50
    lines = str(groups[0].prompt).split("\n")
    assert lines[0] == "Come up with a series of tasks:"
    assert [line[:15] for line in lines[1:4]] == [f"{i}. Task number "[:15] for i in (1, 2, 3)]
    assert lines[4] == "4."
    assert few_shot(tmp_path, "data.shots=3", "data.count=10").load("preference") == groups[:10]
    assert few_shot(tmp_path, "data.seed=1", "data.shots=3").load("preference")[0] != groups[0]
    assert {group.verdict.kind for group in data.load("sft")} == {"demonstration"}  # the seeds
    with pytest.raises(DataError, match="too few for shots=99"):
        few_shot(tmp_path, "data.shots=99").load("preference")


def longest(a, b):
    """Length of the longest common subsequence, by the textbook's table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            same = table[i][j] + 1
            table[i + 1][j + 1] = same if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l():
    # Common in order: the … sat … mat, 3 words; 2 · 3 / (4 + 5).
    assert rouge_l(words("the cat sat mat"), words("the dog sat on mat")) == 2 * 3 / 9
    assert rouge_l([], []) == 0
    assert rouge_l(["a"], []) == 0
    source = __import__("random").Random(0)
    for _ in range(200):
        a, b = ([source.choice("abcd") for _ in range(source.randint(0, 9))] for _ in range(2))
        if a or b:
            assert rouge_l(a, b) == 2 * longest(a, b) / (len(a) + len(b))


def test_novel_prompts_are_kept(tmp_path):
    prompts = ["Write a poem about rain", "write a poem about the rain!", "Add two numbers"]
    groups = [PromptGroup(p, id=str(i)) for i, p in enumerate(prompts)]
    kept, effect = Novel(threshold=0.7, known=None).apply(groups)
    assert [group.id for group in kept] == ["0", "2"]
    assert effect.examples[0]["detail"].startswith("0.91 to: Write a poem")  # 2 · 5 / 11
    seeds = write(tmp_path / "k.jsonl", [{"prompt": "Add three numbers", "completion": "x"}] * 9)
    node = compose([f"data.path={seeds}", "data.validation=0", "data.test=0"])["data"]
    known = Novel(threshold=0.6, known=parse(node, "known"))
    assert [group.id for group in known.apply(groups)[0]] == ["0"]  # 2 · 2 / 6 = 0.67
    assert known.fingerprint() != Novel(threshold=0.6, known=None).fingerprint()
    assert isinstance(known.known, Spec)
