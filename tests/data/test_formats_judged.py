from __future__ import annotations

import pytest
from format_rows import U2, A, B, U, group

from alignlab.data.formats.registry import detect
from alignlab.errors import DataError


def rated(text, overall, **aspects):
    marks = {name: {"Rating": rating, "Rationale": "..."} for name, rating in aspects.items()}
    return {"model": "m", "response": text, "annotations": marks, "overall_score": overall}


FEEDBACK = {
    "instruction": "q",
    "completions": [
        rated("slip", 10.0, helpfulness="1", honesty="1", truthfulness="N/A"),
        rated("good", 8.0, helpfulness="5", honesty="4", truthfulness="5"),
    ],
}


def test_ultrafeedback_is_scored_by_its_aspects():
    made = group(FEEDBACK)
    # truthfulness is not rated for both; (1 + 1)/2 = 1 and (5 + 4)/2 = 4.5
    assert made.verdict.scores == (1.0, 4.5)
    assert made.completions == ("slip", "good")
    assert made.verdict.pairs() == ((1, 0),)
    assert made.meta["attributes"][1]["overall_score"] == 8.0
    assert made.meta["models"] == ["m", "m"]


def test_weights_decide_what_a_score_is():
    assert group(FEEDBACK, weights={"overall_score": 1}).verdict.scores == (10.0, 8.0)
    # 0.5 · 1 - 1 · 1 = -0.5 and 0.5 · 5 - 1 · 4 = -1.5
    made = group(FEEDBACK, weights={"helpfulness": 0.5, "honesty": -1.0})
    assert made.verdict.scores == (-0.5, -1.5)
    with pytest.raises(DataError, match=r"completion 1 has no attribute 'honest'.*'honesty'"):
        group(FEEDBACK, weights={"honest": 1})
    with pytest.raises(DataError, match="no ratings of attributes to weigh"):
        group({"prompt": "q", "completion": "a"}, weights={"honesty": 1})


def test_ultrafeedback_without_aspects():
    items = [{"response": "x", "overall_score": 3}, {"response": "y", "overall_score": 5}]
    assert group({"instruction": "q", "completions": items}).verdict.scores == (3.0, 5.0)
    with pytest.raises(DataError, match="needs a rank, a score or annotations"):
        group({"instruction": "q", "completions": [{"response": "x"}]})
    with pytest.raises(DataError, match="'completions', item 1: needs a text"):
        group({"instruction": "q", "completions": [{"score": 1}]})
    bad = [rated("x", 1, helpfulness="many")]
    with pytest.raises(DataError, match=r"'annotations.helpfulness' must hold numbers, not 'many'"):
        group({"instruction": "q", "completions": bad})


def test_nectar_ranks():
    answers = [
        {"answer": "w", "rank": 3.0},
        {"answer": "b", "rank": 1.0},
        {"answer": "m", "rank": 2},
    ]
    assert group({"prompt": "q", "answers": answers}).verdict.ranks == (2, 0, 1)


def test_ultrafeedback_binarized_keeps_label_and_scores():
    row = {
        "prompt": "q",
        "prompt_id": "1",
        "chosen": [U, A],
        "rejected": [U, B],
        "messages": [U, A],
        "score_chosen": 6.0,
        "score_rejected": 6.0,
    }
    made = group(row)
    assert made.verdict.pairs() == ((0, 1),)  # scores are equal, the label is not
    assert made.meta == {"prompt_id": "1", "score_chosen": 6.0, "score_rejected": 6.0}


def test_helpsteer_is_scored_by_helpfulness():
    row = {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 4, "verbosity": 2}
    assert detect([row]) == "attributes"
    made = group(row)
    assert made.verdict.scores == (3.0,)
    assert made.meta["attributes"] == [{"helpfulness": 3.0, "correctness": 4.0, "verbosity": 2.0}]
    # 0.5 · 4 - 0.25 · 2 = 1.5
    assert group(row, weights={"correctness": 0.5, "verbosity": -0.25}).verdict.scores == (1.5,)
    text = {name: str(value) for name, value in row.items()}  # CSV
    assert group(text).verdict.scores == (3.0,)
    assert group({"instruction": "q", "output": "a", "score": 7}).verdict.scores == (7.0,)


@pytest.mark.parametrize(
    ("fields", "ranks"),
    [
        ({"response_a": "x", "response_b": "y", "winner": "model_a"}, (0, 1)),
        ({"response_a": "x", "response_b": "y", "winner": "B"}, (1, 0)),
        ({"response_a": "x", "response_b": "y", "winner": "tie (bothbad)"}, (0, 0)),
        (
            {
                "response_a": "x",
                "response_b": "y",
                "winner_model_a": 0,
                "winner_model_b": 1,
                "winner_tie": 0,
            },
            (1, 0),
        ),
        (
            {
                "response_a": "x",
                "response_b": "y",
                "winner_model_a": 0,
                "winner_model_b": 0,
                "winner_tie": 1,
            },
            (0, 0),
        ),
        ({"response_0": "x", "response_1": "y", "better_response_id": 1}, (1, 0)),
        ({"response1": "x", "response2": "y", "overall_preference": -3}, (0, 1)),
        ({"response1": "x", "response2": "y", "overall_preference": 0}, (0, 0)),
        ({"response_1": "x", "response_2": "y", "preference_strength": 2}, (1, 0)),
        ({"output_1": "x", "output_2": "y", "preference": 1}, (0, 1)),
        ({"output_1": "x", "output_2": "y", "preference": 1.8}, (1, 0)),
        ({"output_1": "x", "output_2": "y", "preference": 1.5}, (0, 0)),
    ],
)
def test_two_answers_side_by_side(fields, ranks):
    made = group({"prompt": "q", **fields})
    assert made.completions == ("x", "y")
    assert made.verdict.ranks == ranks


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"response_a": "x", "response_b": "y", "winner": "model_c"}, "'winner' must be model_a"),
        ({"response_0": "x", "response_1": "y", "better_response_id": 2}, "must be 0 or 1, not 2"),
        ({"output_1": "x", "output_2": "y", "preference": 0}, "must lie between 1 .* not 0"),
        ({"response_a": "x", "winner": "a"}, "response_b is missing"),
    ],
)
def test_side_by_side_errors(fields, error):
    with pytest.raises(DataError, match=error):
        group({"prompt": "q", **fields})


def test_arena_conversations_share_their_prompt():
    row = {"conversation_a": [U, A], "conversation_b": [U, B], "winner": "model_b"}
    made = group(row)
    assert (made.prompt, made.completions) == ((U,), ((A,), (B,)))
    assert made.verdict.ranks == (1, 0)


def test_comparisons_of_known_sets():
    shp = {"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 0, "score_A": 9}
    assert (group(shp).prompt, group(shp).verdict.ranks) == ("q\n\n", (1, 0))
    assert group(shp).meta == {"score_A": 9}
    with pytest.raises(DataError, match="'labels' must be 1"):
        group({**shp, "labels": 2})
    web = {"question": {"full_text": "q"}, "answer_0": "x", "answer_1": "y"}
    made = group({**web, "score_0": -0.5, "score_1": 0.5})
    assert (made.prompt, made.verdict.scores) == ("q\n\n", (-0.5, 0.5))
    post = {"post": "P", "title": "T", "subreddit": "s"}
    made = group({"info": post, "summaries": [{"text": " x"}, {"text": " y"}], "choice": 1})
    assert made.prompt == "SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"
    assert (made.completions, made.verdict.ranks) == ((" x", " y"), (1, 0))


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
KWISE = {"prompt": "q", "completions": ["x", "y", "z"], "ranks": [2, 1, 3]}
SCORES = {"prompt": "q", "completions": ["x", "y", "z"], "scores": [0.5, 0.9, 0.1]}


@pytest.mark.parametrize(
    ("row", "pairs", "thumbs", "best"),
    [
        (PAIR, {(0, 1)}, (True, False), 0),  # pairs → KTO
        (KWISE, {(1, 0), (0, 2), (1, 2)}, (None, True, False), 1),  # K-wise → DPO's pairs
        (SCORES, {(1, 0), (0, 2), (1, 2)}, (None, True, False), 1),  # scores → all
        (FEEDBACK, {(1, 0)}, (False, True), 1),
        ({"question": "q", "m": {"solution": "s", "is_correct": True}}, set(), (True,), 0),
        ({"prompt": "q", "completion": "a", "label": 0}, set(), (False,), 0),
    ],
)
def test_a_verdict_feeds_any_method(row, pairs, thumbs, best):
    verdict = group(row).verdict
    assert set(verdict.pairs()) == pairs
    assert verdict.desirable() == thumbs
    assert verdict.best() == best


def test_the_last_turn_of_pairs_is_not_touched():
    row = {"chosen": [U, A, U2, A], "rejected": [U, B, U2, B]}
    assert group(row, turns="last") == group(row, turns="all")
