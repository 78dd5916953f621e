"""Splits: by key, stable when rows are added, prompts for policies, no training on test sets."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import combinations

import pytest
from table_sources import prompts, source, write

from alignlab.data.sources.hub import Hub
from alignlab.data.sources.source import SPLITS, policy_prompts
from alignlab.data.sources.splits import is_official_test
from alignlab.errors import DataError

PAIRS = [{"prompt": f"p{i % 300}", "chosen": f" c{i}", "rejected": f" r{i}"} for i in range(600)]
LABELED = ("sft", "validation", "test")


def digest(groups):
    return hashlib.sha256("".join(group.id for group in groups).encode()).hexdigest()[:16]


def test_the_splits_of_rows_never_change(tmp_path):
    """Recorded when splits were made in memory; a change here changes every result."""
    data = source(path=write(tmp_path / "pairs.jsonl", PAIRS), share=False, sft=0.25)
    found = {split: (len(data.load(split)), digest(data.load(split))) for split in SPLITS}
    assert found == {
        "pretrain": (552, "1701acf18152d8f6"),
        "pretrain_validation": (20, "b67995e4c5384a4e"),
        "sft": (152, "4858093fddf87451"),
        "preference": (400, "07f12710661480b8"),
        "unlabeled": (0, "e3b0c44298fc1c14"),  # SHA-256 of nothing
        "validation": (20, "b67995e4c5384a4e"),
        "test": (28, "7a5dce90ec40b5bb"),
    }


def test_prompts_that_differ_in_case_or_space_alone_are_in_one_split(tmp_path):
    def said(i, kind):
        text = (f"word {i}", f"Word  {i} ")[kind]
        return text if i % 2 else [{"role": "user", "content": text}]

    rows = [
        {"prompt": said(i, kind), "chosen": "c", "rejected": "r"}
        for i in range(120)
        for kind in (0, 1)
    ]
    texts = [row for row in rows if isinstance(row["prompt"], str)]
    chats = [row for row in rows if not isinstance(row["prompt"], str)]
    for name, part in (("texts", texts), ("chats", chats)):
        path = write(tmp_path / f"{name}.jsonl", part)
        data = source(path=path, validation=0.3, test=0.3)
        counts = [len(data.load(split)) for split in LABELED]
        assert sum(counts) == 120
        assert all(count > 10 and count % 2 == 0 for count in counts)


def test_stream_gives_what_load_gives(tmp_path):
    data = source(path=write(tmp_path / "x.jsonl", PAIRS), unlabeled=0.2, limit={"sft": 50})
    for split in SPLITS:
        assert list(data.stream(split)) == data.load(split)
    assert len(data.load("sft")) == 50
    one, two = data.stream("test"), data.stream("validation")  # two readers of one file
    mixed = [group for pair in zip(one, two, strict=False) for group in pair]
    assert mixed[::2] == data.load("test")[: len(mixed) // 2]


def test_rows_of_one_user_fall_into_one_split(tmp_path):
    rows = [{**row, "user": i % 40} for i, row in enumerate(PAIRS)]
    data = source(path=write(tmp_path / "x.jsonl", rows), split_by="user", test=0.2, validation=0.2)
    users = {split: {g.meta["user"] for g in data.load(split)} for split in LABELED}
    assert sum(map(len, users.values())) == len(set.union(*users.values())) == 40
    assert all(users.values())
    assert sum(len(data.load(split)) for split in LABELED) == 600
    more = [*rows, *({**row, "user": 100 + i % 9} for i, row in enumerate(PAIRS))]
    grown = source(
        path=write(tmp_path / "y.jsonl", more), split_by="user", test=0.2, validation=0.2
    )
    for split in LABELED:
        assert users[split] <= {g.meta["user"] for g in grown.load(split)}


def test_split_by_a_field_that_the_format_reads(tmp_path):
    data = source(path=write(tmp_path / "x.jsonl", PAIRS), split_by="prompt")
    assert data.load("test")[0].meta["prompt"] == data.load("test")[0].prompt


@pytest.mark.parametrize(
    ("value", "said"), [(None, "is missing"), (["a"], "is a list"), ({"a": 1}, "is a dict")]
)
def test_a_row_without_its_key_is_named(tmp_path, value, said):
    rows = [{**row, "user": "u"} for row in PAIRS[:5]]
    rows[3]["user"] = value
    data = source(path=write(tmp_path / "x.jsonl", rows), split_by="user")
    with pytest.raises(DataError, match=rf"x.jsonl, line 4 .*'user', by which .*{said}"):
        data.load("sft")


def test_prompts_for_policies_are_kept_apart(tmp_path):
    path = write(tmp_path / "x.jsonl", PAIRS)
    data = source(path=path, unlabeled=0.3, share=False)
    splits = ("sft", "preference", "unlabeled", "validation", "test")
    found = {split: prompts(data, split) for split in splits}
    assert all(not a & b for a, b in combinations(found.values(), 2))
    assert len(set.union(*found.values())) == 300
    assert 60 < len(found["unlabeled"]) < 110  # 30 % of about 276
    assert all(g.completions == () and not g.verdict for g in data.load("unlabeled"))
    assert not found["unlabeled"] & {g.prompt for g in data.load("pretrain")}
    assert found["validation"] == prompts(source(path=path), "validation")  # held-out ones stay
    shared = source(path=path, unlabeled=0.3)
    assert prompts(shared, "sft") == prompts(shared, "preference")
    assert not prompts(shared, "sft") & prompts(shared, "unlabeled")


def test_policies_sample_from_unlabeled_prompts_else_from_those_of_preference(tmp_path):
    path = write(tmp_path / "x.jsonl", PAIRS)
    plain, kept = source(path=path), source(path=path, unlabeled=0.3)
    assert policy_prompts(plain, 12) == plain.load("preference")[:12]
    assert policy_prompts(kept, 12) == kept.load("unlabeled")[:12]
    assert len(policy_prompts(kept, 10_000)) == len(kept.load("unlabeled"))


@pytest.mark.parametrize("name", ["test.jsonl", "IFBench_test.jsonl", "eval-2.jsonl", "TEST.csv"])
def test_a_file_named_as_a_test_set_is_not_trained_on(tmp_path, name):
    data = source(path=write(tmp_path / name, PAIRS[:50]))
    for split in ("sft", "preference", "pretrain", "unlabeled"):
        with pytest.raises(DataError, match=rf"'{name}' is named as a test.*allow_test=true"):
            data.load(split)
    assert data.load("test")  # measuring on it is what it is for


def test_a_test_file_may_be_trained_on_where_that_is_said(tmp_path):
    path = write(tmp_path / "test.jsonl", PAIRS)
    assert len(source(path=path, allow_test=True).load("sft")) > 400


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("test", True),
        ("test_prefs", True),
        ("evaluation", True),
        ("testimonials.jsonl", False),
        ("latest.jsonl", False),
        ("retest2.jsonl", False),
        ("train_test.jsonl", False),  # named for both: a person's own file
        ("train_prefs", False),
        ("/data/test/pairs.jsonl", False),  # the folder of a file says little
    ],
)
def test_what_counts_as_a_test_set(name, refused):
    assert is_official_test(name) == refused


@pytest.mark.parametrize("theirs", ["test", "test_prefs", "test[:80%]", "train+test", "eval"])
def test_a_test_split_of_the_hub_is_not_trained_on(theirs):
    data = source(Hub, revision="f" * 40, splits={"train": theirs})
    with pytest.raises(DataError, match=r"named as a test set.*data.splits.test"):
        data.load("preference")
    data = source(Hub, revision="f" * 40, splits={"train": "train", "sft": theirs})
    with pytest.raises(DataError, match="named as a test set"):
        data.stream("sft")


def test_a_folder_has_the_splits_of_its_names(tmp_path):
    write(tmp_path / "d" / "train-0.jsonl", PAIRS[:100])
    write(tmp_path / "d" / "train-1.jsonl", PAIRS[100:300])
    write(tmp_path / "d" / "test.jsonl", PAIRS[300:320])
    data = source(path=str(tmp_path / "d"))
    assert len(data.load("test")) == 20
    assert len(data.load("sft")) + len(data.load("validation")) == 300
    places = {group.meta["place"] for group in data.load("sft")}
    assert {place.split(",")[0] for place in places} == {"train-0.jsonl", "train-1.jsonl"}
    assert data.load("test")[0].meta["place"].startswith("test.jsonl, line ")
    other = write(tmp_path / "other.jsonl", PAIRS[320:330])
    assert len(source(path=str(tmp_path / "d"), test_path=other).load("test")) == 10


def test_a_folder_of_test_files_alone(tmp_path):
    write(tmp_path / "d" / "test-0.jsonl", PAIRS[:100])
    write(tmp_path / "d" / "test-1.jsonl", PAIRS[100:200])
    with pytest.raises(DataError, match=r"'test-0\.jsonl' is named as a test set"):
        source(path=str(tmp_path / "d")).load("sft")
    found = source(path=str(tmp_path / "d"), allow_test=True, validation=0, test=0)
    assert len(found.load("sft")) == 200


def test_the_fingerprint_sees_files_come_and_change(tmp_path):
    folder = tmp_path / "d"
    write(folder / "train-0.jsonl", PAIRS[:10])
    data = source(path=str(folder))
    before = data.fingerprint()
    write(folder / "train-1.jsonl", PAIRS[10:20])
    two = data.fingerprint()
    (folder / "README.md").write_text("notes")
    assert data.fingerprint() == two != before
    write(folder / "train-1.jsonl", PAIRS[20:30])
    assert data.fingerprint() not in (two, before)


def test_a_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "x.jsonl"
    data = source(path=write(path, PAIRS[:50]), test=0, validation=0)
    assert len(data.load("sft")) == 50
    write(path, PAIRS[:60])
    os.utime(path, ns=(1, 1))
    assert len(data.load("sft")) == 60


def test_a_field_that_only_later_rows_have_can_be_renamed(tmp_path):
    rows = [{"q": f"{i}", "completion": "c"} for i in range(150)]
    rows[120]["kind"] = "x"
    names = {"q": "prompt", "kind": "topic"}
    data = source(path=write(tmp_path / "x.jsonl", rows), fields=names, test=0, validation=0)
    assert [g.meta["topic"] for g in data.load("sft") if "topic" in g.meta] == ["x"]
    with pytest.raises(DataError, match=r"names 'knid'; the fields are q, completion"):
        source(path=data.path, fields={"q": "prompt", "knid": "topic"}).load("sft")


class TestStream:
    """A data set of the hub that is read as a stream."""

    @pytest.fixture(autouse=True)
    def _hub(self, monkeypatch):
        datasets = pytest.importorskip("datasets")
        rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(200)]
        self.asked = []

        def load_dataset(name, config, *, revision, split, streaming=False):
            self.asked.append(streaming)
            table = datasets.Dataset.from_list(rows)
            return table.to_iterable_dataset() if streaming else table

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def test_it_cuts_the_same_splits_in_the_order_of_the_data_set(self):
        changes = {"revision": "a" * 40, "unlabeled": 0.2, "share": False}
        whole = source(Hub, **changes)
        stream = source(Hub, **changes, streaming=True)
        for split in SPLITS:
            groups = list(stream.stream(split))
            assert {g.id for g in groups} == {g.id for g in whole.load(split)}
            numbers = [int(g.meta["place"].split()[-1]) for g in groups]
            assert numbers == sorted(numbers)
        assert self.asked.count(True) == len(SPLITS)

    def test_all_of_it_at_once_needs_a_number(self):
        stream = source(Hub, revision="b" * 40, streaming=True, limit={"sft": 9})
        assert len(stream.load("sft")) == 9
        assert stream.load("sft") == list(stream.stream("sft"))
        with pytest.raises(DataError, match=r"data\.limit\.preference=NUMBER"):
            stream.load("preference")

    def test_nothing_is_read_to_say_that_no_prompts_are_kept(self):
        stream = source(Hub, revision="c" * 40, streaming=True)
        assert list(stream.stream("unlabeled")) == []
        assert self.asked == []


def test_groups_carry_plain_meta(tmp_path):
    data = source(path=write(tmp_path / "x.jsonl", [{**row, "k": {"a": [1]}} for row in PAIRS]))
    group = data.load("sft")[0]
    assert json.loads(json.dumps(dict(group.meta))) == group.meta
    assert group.meta["k"] == {"a": [1]}


RATED = [
    {"prompt": f"p{i % 60}", "response": f"r{i}", "helpfulness": i % 5, "verbosity": i % 3}
    for i in range(180)
]


def test_rows_of_one_prompt_that_rate_an_answer_each_are_one_group(tmp_path):
    data = source(path=write(tmp_path / "x.jsonl", RATED), test=0.1, validation=0.1)
    groups = [group for split in LABELED for group in data.load(split)]
    assert len(groups) == len({group.prompt for group in groups}) == 60
    [group] = [group for group in groups if group.prompt.startswith("p7")]
    assert group.completions == ("r7", "r67", "r127")
    assert group.verdict.scores == (2.0, 2.0, 2.0)  # 7, 67 and 127 modulo 5
    assert group.meta["place"] == "x.jsonl, line 8"
    assert list(data.stream("sft")) == data.load("sft")


def test_attributes_are_weighed(tmp_path):
    path = write(tmp_path / "x.jsonl", RATED)
    data = source(path=path, weights={"verbosity": -1.0, "helpfulness": 0.5}, test=0, validation=0)
    [group] = [group for group in data.load("sft") if group.prompt.startswith("p7")]
    assert group.verdict.scores == (0.0, 0.0, 0.0)  # ½ · 2 − 1, thrice: 7, 67, 127 are 1 modulo 3
    assert data.fingerprint() != source(path=path, test=0, validation=0).fingerprint()
    with pytest.raises(DataError, match=r"x.jsonl, line 1 .*'verbosty'"):
        source(path=path, weights={"verbosty": 1.0}).load("sft")


def test_conversations_are_trained_on_all_answers_or_on_the_last(tmp_path):
    turns = [{"role": r, "content": f"{r} {i}"} for i in (1, 2) for r in ("user", "assistant")]
    path = write(tmp_path / "x.jsonl", [{"messages": turns}])
    [every] = source(path=path, test=0, validation=0).load("sft")
    [last] = source(path=path, test=0, validation=0, turns="last").load("sft")
    assert (len(every.prompt), len(every.completions[0])) == (1, 3)
    assert (len(last.prompt), len(last.completions[0])) == (3, 1)


def test_groups_that_alignlab_wrote_keep_their_ids(tmp_path):
    row = {
        "prompt": "p",
        "completions": ["a", "b"],
        "verdict": {"kind": "ranking", "ranks": [0, 1]},
        "id": "7f",
        "meta": {"place": "old.jsonl, line 3", "topic": "x"},
    }
    [group] = source(path=write(tmp_path / "x.jsonl", [row]), test=0, validation=0).load("sft")
    assert group.id == "7f"
    assert dict(group.meta) == {"place": "x.jsonl, line 1", "topic": "x"}
