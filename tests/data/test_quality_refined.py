from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from quality_rows import passage, refined, write

from alignlab.compose import compose
from alignlab.errors import ConfigError, DataError
from alignlab.spec import build, parse


@pytest.fixture
def pairs(tmp_path):
    """Three hundred pairs, of which the last hundred repeat the first with other words' case."""
    rows = [
        {"prompt": f"{passage(i, 12)}", "chosen": f" {passage(i + 1000, 12)}", "rejected": " no"}
        for i in range(200)
    ]
    rows += [{**row, "prompt": row["prompt"].upper()} for row in rows[:100]]
    return write(tmp_path / "pairs.jsonl", rows)


def source_of(path):
    return build(parse(compose([f"data.path={path}"])["data"], "data"))


@pytest.mark.slow
def test_steps_are_applied_in_order_and_the_card_tells(pairs):
    data = refined(pairs, "data.order=[statistics,exact,near]")
    before = source_of(pairs).load("preference")
    after = data.load("preference")
    assert len(after) < len(before)
    assert [g for g in before if g in after] == after  # a part of the rows, in order
    card = data.card()
    entries = card["splits"]["preference"]
    assert [e["step"] for e in entries] == ["statistics", "exact", "near"]
    assert entries[0]["rows_in"] == len(before)
    assert entries[-1]["rows_out"] == len(after)
    assert [e["rows_out"] for e in entries[:-1]] == [e["rows_in"] for e in entries[1:]]
    assert entries[1]["rows_in"] - entries[1]["rows_out"] == sum(entries[1]["why"].values()) > 0
    assert entries[1]["examples"][0]["place"]
    assert entries[0]["numbers"]["pairs"] == len(before)
    assert json.loads(json.dumps(card)) == card
    assert card["source"]["path"] == pairs


@pytest.mark.slow
def test_held_out_splits_stay_and_win(tmp_path):
    rows = [
        {"prompt": passage(i, 12) + end, "chosen": f" {passage(i + 1000, 12)}", "rejected": " no"}
        for i in range(200)
        for end in ("", "?")
    ]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    ignored = "data.steps.exact.ignore=[case,space,punctuation]"
    data = refined(pairs, "data.order=[exact]", ignored)
    source = source_of(pairs)
    for split in ("validation", "test"):
        assert data.load(split) == source.load(split)
        assert data.card()["splits"][split] == []
    held_out = {
        g.prompt.rstrip("?") for split in ("validation", "test") for g in source.load(split)
    }
    assert not held_out & {g.prompt.rstrip("?") for g in data.load("sft")}
    hidden = {g.prompt.rstrip("?") for g in source.load("sft")}  # from the hash, by the mark
    assert held_out & hidden


@pytest.mark.slow
def test_a_named_held_out_split_is_changed_and_test_wins_over_validation(pairs):
    splits = "data.steps.exact.splits=[sft,validation,test]"
    data = refined(pairs, "data.order=[exact]", splits)
    for split, before in (("test", set()), ("validation", {"in the split test"})):
        data.load(split)
        assert set(data.card()["splits"][split][0]["why"]) <= {"duplicate"} | before
    prompts = {s: {g.prompt.lower() for g in data.load(s)} for s in ("sft", "validation", "test")}
    assert not prompts["validation"] & prompts["test"]
    assert not prompts["sft"] & (prompts["validation"] | prompts["test"])


@pytest.mark.slow
def test_a_split_is_refined_once(pairs, monkeypatch):
    data = refined(pairs, "data.order=[exact]")
    first = data.load("sft")
    first.clear()  # a caller's list is its own
    monkeypatch.setattr(type(data), "_refine", None)
    assert len(data.load("sft")) > 100
    assert list(data.stream("sft")) == data.load("sft")


@pytest.mark.slow
def test_the_fingerprint_is_of_the_source_and_the_applied_steps_in_order(pairs):
    made = refined(pairs, "data.order=[exact,near]")
    base = made.fingerprint()
    assert replace(made).fingerprint() == base

    def changed(step, **arguments):
        spec = made.steps[step]
        return {**made.steps, step: replace(spec, arguments={**spec.arguments, **arguments})}

    more = replace(made.source, arguments={**made.source.arguments, "test": 0.1})
    others = [
        replace(made, order=("near", "exact")),
        replace(made, order=("exact",)),
        replace(made, steps=changed("near", threshold=0.7)),
        replace(made, steps=changed("exact", splits=("sft",))),
        replace(made, source=more),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 6
    resting = replace(made, steps=changed("length", min_words=9))
    assert resting.fingerprint() == base  # a step that is not applied changes nothing


@pytest.mark.slow
def test_a_second_step_of_a_kind_by_name(pairs):
    data = refined(
        pairs,
        "+quality@data.steps.short=length",
        "data.steps.short.part=prompt",
        "data.steps.short.max_words=3",
        "data.steps.short.min_words=null",
        "data.order=[length,short]",
    )
    message = r"No row of the split 'sft' is left \(length: (\d+) → \1; short: \1 → 0\)"
    with pytest.raises(DataError, match=message):
        data.load("sft")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.order=[exakt]", "Did you mean 'exact'"),
        ("data.order=[exact,exact]", "named twice"),
        (
            "data.steps.exact.splits=[stf]",
            r"steps.exact.splits: no split 'stf'.*Did you mean 'sft'",
        ),
        ("data.steps.exact.held_out=[sft]", "steps.exact.held_out: no split 'sft'"),
        ("data.steps.near.threshold=2", "threshold"),
        ("data.steps.exact.ignore=[spaces]", "space"),
        ("data.steps.exact._target_=alignlab.rewards.length.Length", "target_words"),
    ],
)
def test_a_wrong_step_is_refused_before_anything_is_read(override, message):
    with pytest.raises((DataError, ConfigError), match=message):
        refined("/nowhere.jsonl", override)


@pytest.mark.slow
def test_an_error_in_a_step_names_it(pairs):
    with pytest.raises(DataError, match=r"step 'mix', split 'sft': .*no field 'part'"):
        refined(pairs, "data.order=[mix]").load("sft")
    gone = "+data.steps.decontaminate.sets.exam=/nowhere/exam.jsonl"
    with pytest.raises(DataError, match=r"steps.decontaminate: .*exam\.jsonl"):
        refined(pairs, "data.order=[decontaminate]", gone).fingerprint()


@pytest.mark.slow
def test_planning_with_all_steps_imports_nothing_heavy(pairs):
    code = (
        "import sys\n"
        "from quality_rows import refined\n"
        f"data = refined({pairs!r}, 'data.order=[exact,near,decontaminate,select,repetition]')\n"
        "data.fingerprint()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'datasketch', 'scipy', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=here
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_rows_are_refined_once_for_all_stages_of_a_store(pairs, tmp_path, monkeypatch):
    from alignlab.data.quality import kept
    from alignlab.data.quality.duplicates import ExactDuplicates

    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "store"))
    applied = []
    apply = ExactDuplicates.apply_against

    def counting(self, *given):
        applied.append(1)
        return apply(self, *given)

    monkeypatch.setattr(ExactDuplicates, "apply_against", counting)
    first = refined(pairs, "data.order=[exact]")
    groups, card = first.load("preference"), first.card()
    assert len(applied) == 1
    again = refined(pairs, "data.order=[exact]")  # another stage, another process
    assert again.load("preference") == groups
    assert again.card()["splits"]["preference"] == card["splits"]["preference"]
    assert len(applied) == 1
    files = list((tmp_path / "store" / "cache" / "rows").glob("*.rows"))
    assert files
    for file in files:  # damaged: made again
        file.write_bytes(file.read_bytes()[:-1])
    assert refined(pairs, "data.order=[exact]").load("preference") == groups
    assert len(applied) == 2
    other = refined(pairs, "data.order=[exact]", "data.steps.exact.ignore=[]")
    assert other.load("preference") != groups  # other steps, another entry
    strange = [replace(groups[0], meta={"what": object()})]
    kept.write(tmp_path / "x.rows", strange, [])
    assert not (tmp_path / "x.rows").exists()
