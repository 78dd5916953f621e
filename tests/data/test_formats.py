from __future__ import annotations

import pytest
from format_rows import U2, A, B, S, U, group

from alignlab.data.formats.registry import FORMATS, detect, read
from alignlab.errors import DataError


def test_explicit_preference_of_text():
    made = group({"prompt": "p", "chosen": " c", "rejected": " r", "margin": 2})
    assert (made.prompt, made.completions) == ("p", (" c", " r"))
    assert made.verdict.pairs() == ((0, 1),)
    assert made.meta == {"margin": 2}


def test_a_prompt_repeated_in_both_answers_is_not_doubled():
    made = group({"prompt": "p q", "chosen": "p q yes", "rejected": "p q no"})
    assert (made.prompt, made.completions) == ("p q", (" yes", " no"))


def test_implicit_preference_of_text_never_cuts_a_word():
    # the common beginning is "I like ca"; the prompt ends before " ca"
    made = group({"chosen": "I like cats", "rejected": "I like cars"})
    assert (made.prompt, made.completions) == ("I like", (" cats", " cars"))
    made = group({"chosen": "I like cats", "rejected": "I likely"})
    assert (made.prompt, made.completions) == ("I", (" like cats", " likely"))
    with pytest.raises(DataError, match="begin differently"):
        group({"chosen": "cats", "rejected": "dogs"})


def test_transcripts_split_at_the_last_common_turn():
    head = "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant:"
    made = group({"chosen": head + " yes", "rejected": head + " no\n\nHuman: more"})
    assert (made.prompt, made.completions) == (head, (" yes", " no\n\nHuman: more"))


def test_transcripts_that_differ_at_a_human_turn_go_back_to_the_assistant():
    head = "\n\nHuman: q\n\nAssistant:"
    made = group(
        {
            "chosen": head + " a\n\nHuman: x\n\nAssistant: c",
            "rejected": head + " a\n\nHuman: y\n\nAssistant: r",
        }
    )
    assert made.prompt == head
    assert made.completions[0] == " a\n\nHuman: x\n\nAssistant: c"


def test_identical_transcripts_keep_a_completion_for_the_gate_to_find():
    text = "\n\nHuman: q\n\nAssistant: a"
    made = group({"chosen": text, "rejected": text})
    assert made.completions == (" a", " a")


def test_preference_of_messages_explicit_and_implicit():
    explicit = group({"prompt": [U], "chosen": [A], "rejected": [B]})
    implicit = group({"chosen": [U, A], "rejected": [U, B]})
    repeated = group({"prompt": [U], "chosen": [U, A], "rejected": [U, B]})
    binarized = group({"prompt": "q", "chosen": [U, A], "rejected": [U, B]})
    text_prompt = group({"prompt": "q", "chosen": [A], "rejected": [B]})
    text_answers = group({"prompt": [U], "chosen": "a", "rejected": "b"})
    for made in (explicit, implicit, repeated, binarized, text_prompt, text_answers):
        assert made.prompt == (U,)
        assert made.completions == ((A,), (B,))


def test_implicit_messages_over_turns():
    made = group({"chosen": [U, A, U2, A], "rejected": [U, A, U2, B]})
    assert (made.prompt, made.completions) == ((U, A, U2), ((A,), (B,)))
    # where the user's turns differ first, the answer before them belongs to neither prompt: a
    # completion opens with the assistant (TRL's begins with the user's turn, which is then learnt)
    made = group({"chosen": [U, A, U, A], "rejected": [U, A, U2, B]})
    assert (made.prompt, made.completions) == ((U,), ((A, U, A), (A, U2, B)))
    with pytest.raises(DataError, match="no common prompt"):
        group({"chosen": [U, A], "rejected": [U2, B]})


@pytest.mark.parametrize("label", [True, 1, "true", 1.0, "desirable", "Thumbs up", "👍", "yes"])
def test_unpaired_desirable(label):
    made = group({"prompt": "p", "completion": " c", "label": label})
    assert made.verdict.thumbs == (True,)


@pytest.mark.parametrize("label", [False, 0, "0", -1, "undesirable", "thumbs down", "👎"])
def test_unpaired_undesirable(label):
    made = group({"prompt": "p", "completion": " c", "label": label})
    assert made.verdict.thumbs == (False,)


@pytest.mark.parametrize("label", ["maybe", 2, 0.5, "desirablee", [True]])
def test_unpaired_unclear(label):
    with pytest.raises(DataError, match="'label' must be true or false"):
        group({"prompt": "p", "completion": " c", "label": label})


def test_unpaired_in_the_words_of_alpaca_and_of_conversations():
    made = group({"instruction": "i", "input": "x", "output": "o", "kto_tag": False})
    assert (made.prompt, made.completions) == ("i\n\nx\n\n", ("o",))
    assert made.verdict.thumbs == (False,)
    made = group({"messages": [U, A, U2, B], "label": True})
    assert (made.prompt, made.completions) == ((U, A, U2), ((B,),))
    with pytest.raises(DataError, match="must end with the answer that is judged"):
        group({"messages": [U, A, U2], "label": True})


def test_prompt_completion():
    made = group({"prompt": "p", "completion": " c"})
    assert (made.prompt, made.completions, made.verdict.kind) == ("p", (" c",), "demonstration")
    assert group({"prompt": [U], "completion": [A]}).completions == ((A,),)
    assert group({"prompt": [U], "completion": "a"}).completions == ((A,),)


def test_scored_ranked_labelled():
    base = {"prompt": "p", "completions": ["x", "y", "z"]}
    assert group({**base, "scores": [1, 3, 2.5]}).verdict.pairs() == ((1, 0), (1, 2), (2, 0))
    assert group({**base, "ranks": [3, 1, 1]}).verdict.ranks == (1, 0, 0)
    assert group({**base, "labels": [True, False, 1]}).verdict.thumbs == (True, False, True)
    made = group({"prompt": [U], "completions": ["a", [B]], "scores": [0, 1]})
    assert made.completions == ((A,), (B,))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "no 'scores' .or ratings, rewards"),
        ({"scores": [1, 2], "ranks": [1, 2]}, "needs one of 'scores', 'ranks', 'labels'"),
        ({"scores": [1, True]}, "'scores' must hold numbers, not True"),
        ({"scores": [1, float("inf")]}, "finite"),
        ({"scores": [1]}, "one value per completion"),
        ({"scores": ["good", "bad"]}, "'scores' must hold numbers"),
        ({"scores": [1, float("nan")]}, "not a number"),
        ({"labels": [1, "maybe"]}, "'maybe'"),
    ],
)
def test_scored_errors(extra, message):
    with pytest.raises(DataError, match=message):
        read("scored", {"prompt": "p", "completions": ["x", "y"], **extra})


def test_alpaca_and_self_instruct():
    made = group({"instruction": "i", "input": "x", "output": "o"})
    assert (made.prompt, made.completions) == ("i\n\nx\n\n", ("o",))
    assert group({"instruction": "i", "input": "", "output": "o"}).prompt == "i\n\n"
    instances = [{"input": "x", "output": "o"}, {"input": "y", "output": "p"}]
    assert group({"instruction": "i", "instances": instances}).completions == ("o",)


def test_question_answer_keeps_the_final_answer_for_a_verifier():
    made = group({"question": "2+2?", "answer": "It is 4.\n#### 4"})
    assert (made.prompt, made.completions) == ("2+2?\n\n", ("It is 4.\n#### 4",))
    assert made.meta["answer"] == "4"
    assert group({"prompt": "2+2?", "answer": 4}).meta["answer"] == "4"


def test_solutions_become_thumbs():
    row = {
        "question": "q",
        "small": {"solution": "x", "is_correct": False},
        "large": {"solution": "y", "is_correct": True},
    }
    made = group(row)
    assert made.completions == ("x", "y")
    assert made.verdict.pairs() == ((1, 0),)
    assert made.meta == {"models": ["small", "large"]}


def test_prompt_only_and_text():
    made = group({"prompt": "p", "key": 7})
    assert (made.completions, made.meta) == ((), {"key": 7})
    made = group({"text": "t"})
    assert (made.prompt, made.completions) == ("", ("t",))


@pytest.mark.parametrize("kind", ["prompt_completion", "preference", "unpaired", "scored"])
def test_a_system_prompt_makes_any_prompt_messages(kind):
    rest = {
        "prompt_completion": {"completion": "a"},
        "preference": {"chosen": "a", "rejected": "b"},
        "unpaired": {"completion": "a", "label": 1},
        "scored": {"completions": ["a"], "scores": [1]},
    }[kind]
    made = group({"prompt": "q", "system": "s", **rest})
    assert made.prompt == (S, U)
    assert made.completions[0] == (A,)
    assert group({"prompt": "q", "system": "", **rest}).prompt == (U,)
    assert group({"prompt": [S, U], "system": "s", **rest}).prompt == (S, U)
    with pytest.raises(DataError, match="two different system prompts"):
        group({"prompt": [S, U], "system": "other", **rest})


def test_alpaca_with_history_is_a_conversation():
    row = {"instruction": "q2", "input": "", "output": "b", "history": [["q", "a"]]}
    made = group(row)
    assert (made.prompt, made.completions) == ((U,), ((A, U2, B),))
    made = group(row, turns="last")
    assert (made.prompt, made.completions) == ((U, A, U2), ((B,),))
    # an empty history: still messages, so that all rows of a file are
    assert group({**row, "history": []}).prompt == (U2,)
    with pytest.raises(DataError, match="'history', pair 2: must be"):
        group({**row, "history": [["q", "a"], ["q2"]]})


def test_alpaca_of_the_hub_has_a_text_too():
    row = {"instruction": "i", "input": "x", "output": "o", "text": "Below is ..."}
    assert detect([row]) == "alpaca"
    assert group(row).prompt == "i\n\nx\n\n"


def test_dolly_and_orca():
    dolly = {"instruction": "i", "context": "c", "response": "r", "category": "qa"}
    assert detect([dolly]) == "alpaca"
    assert group(dolly).prompt == "i\n\nc\n\n"
    orca = {"id": "1", "system_prompt": "s", "question": "q", "response": "a"}
    assert (group(orca).prompt, group(orca).completions) == ((S, U), ((A,),))
    intel = {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}
    assert (group(intel).prompt, group(intel).completions) == ((S, U), ((A,), (B,)))


def test_what_stands_beside_a_prompt_is_not_lost():
    with pytest.raises(DataError, match="'prompt' and 'context' are both there"):
        group({"prompt": "p", "context": "c", "completion": "a"})
    made = group({"question": "p", "context": "c", "answer": "a"})
    assert made.prompt == "p\n\nc\n\n"
    made = group({"input": "p", "chosen": "a", "rejected": "b"})
    assert made.prompt == "p\n\n"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{4}$", "4"),
        (r"first \boxed{3}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ x_{1}^{2} }", "x_{1}^{2}"),
        (r"\fbox{no} \boxed 5", "5"),
        (r"\boxed{a \\}", r"a \\"),  # a line break, not an escaped brace
        ("steps\n#### 1,234", "1,234"),
    ],
)
def test_final_answers(solution, answer):
    assert group({"problem": "p", "solution": solution}).meta["answer"] == answer
    assert group({"problem": "p", "answer": solution}).meta["answer"] == answer


def test_a_stated_answer_wins_over_the_box():
    made = group({"problem": "p", "solution": r"\boxed{3}", "answer": "three"})
    assert made.meta["answer"] == "three"
    assert "answer" not in group({"problem": "p", "solution": "no box"}).meta
    with pytest.raises(DataError, match="opened and never closed"):
        group({"problem": "p", "solution": r"\boxed{\frac{1}{2}"})


def test_a_truth_to_check_by():
    assert group({"prompt": "p", "ground_truth": 7}).meta["answer"] == "7"
    tulu = {"messages": [U], "ground_truth": "4", "dataset": "math"}
    made = group(tulu)
    assert (made.prompt, made.completions, made.meta["answer"]) == ((U,), (), "4")
    verl = {"prompt": [U], "reward_model": {"style": "rule", "ground_truth": "4"}}
    assert group(verl).meta == {"answer": "4"}
    text = {"prompt": [U], "reward_model": '{"ground_truth": "4"}'}  # Parquet may hold JSON text
    assert group(text).meta == {"answer": "4"}
    evals = {"input": [U], "ideal": ["a", "b"]}  # OpenAI's evals
    assert (group(evals).prompt, group(evals).meta) == ((U,), {"answer": ["a", "b"]})
    with pytest.raises(DataError, match="no 'ground_truth'"):
        group({"prompt": [U], "reward_model": {"style": "rule"}})


def test_multiple_choice_is_not_taken_for_an_answer():
    with pytest.raises(DataError, match="'choices' makes it multiple choice"):
        group({"question": "q", "choices": ["a", "b"], "answer": 1})


def test_every_format_says_what_it_is():
    for name, form in FORMATS.items():
        assert form.read.__doc__, name
    with pytest.raises(DataError, match="Did you mean 'alpaca'"):
        read("alpacca", {})
