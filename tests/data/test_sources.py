from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from table_sources import prompts, source, write

from alignlab.data.sources.hub import Hub
from alignlab.data.sources.splits import assign
from alignlab.errors import DataError


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"p{i % 300}", "chosen": f" c{i}", "rejected": f" r{i}"} for i in range(600)]
    return write(tmp_path / "pairs.jsonl", rows)


def test_splits_are_disjoint_by_prompt_and_cover_the_file(pairs):
    file = source(path=pairs)
    sft, preference = file.load("sft"), file.load("preference")
    validation, test = file.load("validation"), file.load("test")
    assert sft == preference  # share
    assert len(sft) + len(validation) + len(test) == 600
    parts = [prompts(file, split) for split in ("sft", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 300
    assert 4 <= len(parts[1]) <= 30
    assert 4 <= len(parts[2]) <= 30


def test_without_share_sft_and_preference_are_disjoint(pairs):
    file = source(path=pairs, share=False, sft=0.25)
    sft, preference = prompts(file, "sft"), prompts(file, "preference")
    assert not sft & preference
    assert 0.15 < len(sft) / (len(sft) + len(preference)) < 0.35
    assert sft | preference == prompts(source(path=pairs), "sft")


def test_growing_a_file_moves_no_prompt(tmp_path, pairs):
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    more = write(tmp_path / "more.jsonl", [*rows, {"prompt": "new", "chosen": "", "rejected": "x"}])
    for split in ("sft", "validation", "test"):
        assert prompts(source(path=pairs), split) <= prompts(source(path=more), split)


def test_a_tiny_file_still_has_held_out_prompts(tmp_path):
    path = write(tmp_path / "tiny", [{"prompt": p, "completion": " c"} for p in "abc"])
    file = source(path=path)
    assert [len(file.load(s)) for s in ("sft", "validation", "test")] == [1, 1, 1]


def test_assign_takes_the_share_below_its_bound_and_the_nearest_key_where_that_is_none():
    values = np.array([0.04, 0.9, 0.06, 0.05, 0.2, 0.11])  # bounds: test < 0.05, validation < 0.1
    home = assign(values, {"test": 0.05, "validation": 0.05})
    assert home.tolist() == ["test", "train", "validation", "validation", "train", "train"]
    home = assign(np.array([0.7, 0.5, 0.5]), {"test": 0.1, "validation": 0.0})
    assert home.tolist() == ["train", "test", "test"]  # both rows of the key nearest to the bound
    assert assign(values, {"test": 0.0, "validation": 0.0}).tolist() == ["train"] * 6
    with pytest.raises(DataError, match="2 distinct prompts cannot be cut"):
        assign(np.array([0.7, 0.5]), {"test": 0.1, "validation": 0.1})


def test_own_files_for_held_out_splits(tmp_path, pairs):
    other = write(tmp_path / "test.jsonl", [{"prompt": "t", "chosen": " c", "rejected": " r"}])
    file = source(path=pairs, test_path=other, validation_path=other)
    assert prompts(file, "test") == prompts(file, "validation") == {"t"}
    assert len(file.load("sft")) == 600


def test_pretraining_reads_the_best_text(tmp_path, pairs):
    file = source(path=pairs)
    texts = [g.completions[0] for g in file.load("pretrain")]
    assert all(g.prompt == "" for g in file.load("pretrain"))
    assert len(texts) == len(file.load("sft"))
    assert all(" c" in text for text in texts)
    assert len(file.load("pretrain_validation")) == len(file.load("validation"))
    chat = write(tmp_path / "c", [{"messages": [{"role": "user", "content": x}]} for x in "abcd"])
    with pytest.raises(DataError, match="plain text and the data are messages"):
        source(path=chat).load("pretrain")


def test_texts_to_model_are_split_by_text(tmp_path):
    path = write(tmp_path / "t", [{"text": f"text {i}"} for i in range(100)])
    file = source(path=path)
    assert 80 < len(file.load("pretrain")) < 98


def test_ids_limits_and_order(tmp_path, pairs):
    file = source(path=pairs)
    few = source(path=pairs, limit={"sft": 7, "test": None})
    ids = [g.id for g in file.load("sft")]
    assert len(set(ids)) == len(ids)
    assert [g.id for g in few.load("sft")] == ids[:7]
    assert file.load("sft")[0].meta["place"].startswith("pairs.jsonl, line ")
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    turned = source(path=write(tmp_path / "turned", rows[::-1]))
    assert [g.id for g in turned.load("sft")] == ids  # the order in the file does not matter


def test_fingerprint_is_of_the_content_not_the_path(tmp_path, pairs):
    copy = shutil.copy(pairs, tmp_path / "copy")
    base = source(path=pairs).fingerprint()
    assert source(path=str(copy)).fingerprint() == base
    assert source(path=pairs, style="messages").fingerprint() != base
    assert source(path=pairs, test_path=str(copy)).fingerprint() != base
    with pytest.raises(DataError, match="No file"):
        source(path=str(tmp_path / "none")).fingerprint()


def test_errors_name_file_line_and_field(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}]
    path = write(tmp_path / "bad.jsonl", rows)
    message = r"bad.jsonl, line 2 \(format prompt_completion\): 'completion' must be text"
    with pytest.raises(DataError, match=message):
        source(path=path).load("sft")


def test_fields_are_renamed(tmp_path):
    rows = [{"q": f"{i}", "good": "a", "bad": "b"} for i in range(9)]
    path = write(tmp_path / "x", rows)
    names = {"q": "prompt", "good": "chosen", "bad": "rejected"}
    assert source(path=path, fields=names).load("sft")[0].completions == ("a", "b")
    with pytest.raises(DataError, match=r"names 'goood'.*Did you mean 'good'"):
        source(path=path, fields={"goood": "chosen"}).load("sft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "preferences"}, "Did you mean 'preference'"),
        ({"validation": 0.6, "test": 0.4}, "leave rows"),
        ({"limit": {"tests": 3}}, "Did you mean 'test'"),
        ({"limit": {"test": 0}}, "at least 1"),
    ],
)
def test_a_wrong_field_is_refused_at_once(changes, message):
    with pytest.raises(DataError, match=message):
        source(path="x", **changes)


def test_hub_reads_mapped_splits(monkeypatch):
    datasets = pytest.importorskip("datasets")
    tables = {
        "train_prefs": [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(50)],
        "test_prefs": [{"prompt": "t", "chosen": "a", "rejected": "b"}],
    }

    def load_dataset(name, config, *, revision, split):
        assert (name, config, revision) == ("x/y", None, "f" * 40)
        return datasets.Dataset.from_list(tables[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = source(
        Hub, revision="f" * 40, splits={"train": "train_prefs", "test": "test_prefs"}, test=0.5
    )
    assert prompts(hub, "test") == {"t"}
    assert len(hub.load("preference")) + len(hub.load("validation")) == 50
    assert hub.fingerprint() != source(Hub, revision="e" * 40).fingerprint()
    with pytest.raises(DataError, match=r"split 'nope'"):
        source(Hub, revision="f" * 40, splits={"train": "nope"}).load("sft")


def test_hub_without_a_commit_says_what_to_do(monkeypatch):
    hub_client = pytest.importorskip("huggingface_hub")

    class Offline:
        def dataset_info(self, name, revision):
            raise ConnectionError

    monkeypatch.setattr(hub_client, "HfApi", Offline)
    with pytest.raises(DataError, match="full commit hash"):
        source(Hub).fingerprint()


def test_rows_of_text_and_rows_of_messages_are_not_mixed(tmp_path):
    """A chat template would be applied to some rows only, and nothing would say so."""
    rows = [{"instruction": f"ask {i}", "output": "say"} for i in range(3)]
    rows[2]["system"] = "be brief"  # a system message makes a conversation of it
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"line 3 .*rows before are text and this one is messages"):
        source(path=path, validation=0.0, test=0.0).load("sft")
    for style in ("text", "messages"):
        alike = source(path=path, validation=0.0, test=0.0, style=style).load("sft")
        assert {group.conversational for group in alike} == {style == "messages"}
