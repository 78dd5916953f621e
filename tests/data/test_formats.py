from __future__ import annotations

import pytest

from alignlab.data.formats.registry import FORMATS, detect, read
from alignlab.errors import DataError

U = {"role": "user", "content": "q"}
U2 = {"role": "user", "content": "q2"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}


def group(row):
    return read(detect([row]), row)


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
    with pytest.raises(DataError, match="no common prompt"):
        group({"chosen": [U, A], "rejected": [U2, B]})


@pytest.mark.parametrize(
    ("label", "thumb"), [(True, True), (0, False), ("true", True), ("0", False), (1.0, True)]
)
def test_unpaired(label, thumb):
    made = group({"prompt": "p", "completion": " c", "label": label})
    assert made.verdict.thumbs == (thumb,)


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
        ({}, "one of 'scores'"),
        ({"scores": [1]}, "one value per completion"),
        ({"scores": ["good", "bad"]}, "'scores' must hold numbers"),
        ({"scores": [1, float("nan")]}, "not a number"),
        ({"labels": [1, "maybe"]}, "'maybe'"),
    ],
)
def test_scored_errors(extra, message):
    with pytest.raises(DataError, match=message):
        read("scored", {"prompt": "p", "completions": ["x", "y"], **extra})


def test_messages_and_sharegpt():
    assert group({"messages": [U, A]}).completions == ((A,),)
    assert group({"messages": [U, A, U2]}).completions == ()
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    made = group({"conversations": turns})
    assert (made.prompt, made.completions) == ((U,), ((A,),))
    with pytest.raises(DataError, match="an answer but no prompt"):
        group({"messages": [A]})
    with pytest.raises(DataError, match="message 2"):
        group({"messages": [U, {"role": "assistant"}]})
    with pytest.raises(DataError, match="tool calls"):
        group({"messages": [U, {**A, "tool_calls": [{}]}]})
    with pytest.raises(DataError, match="from, value"):
        group({"conversations": [{"from": "robot", "value": "q"}]})


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
    assert made.meta == {"models": ("small", "large")}


def test_prompt_only_and_text():
    made = group({"prompt": "p", "key": 7})
    assert (made.completions, made.meta) == ((), {"key": 7})
    made = group({"text": "t"})
    assert (made.prompt, made.completions) == ("", ("t",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "'choosen'.*Did you mean 'chosen'"),
        ({"prompt": "p", "rejected": "b"}, "'rejected' is there, but chosen is missing"),
        ({"prompt": "p", "completions": "b", "scores": [1]}, "must be a list"),
        ({"completion": "b"}, "prompt is missing"),
        ({"foo": 1, "bar": 2}, "no format has the fields foo, bar"),
        ({"question": "q"}, "no format"),
        ({"prompt": 3, "completion": "c"}, "'prompt' must be text or a list of messages"),
        ({"chosen": "x", "rejected": [A]}, "both be text or both be messages"),
    ],
)
def test_what_cannot_be_read_says_why(row, message):
    with pytest.raises(DataError, match=message):
        group(row)


def test_a_row_without_a_needed_field():
    with pytest.raises(DataError, match=r"no 'completion', which.*Did you mean 'complation'"):
        read("prompt_completion", {"prompt": "p", "complation": "c"})
    with pytest.raises(DataError, match="Did you mean 'alpaca'"):
        read("alpacca", {})


def test_fields_that_are_empty_in_every_row_do_not_count():
    row = {"prompt": "p", "completion": "c", "label": None, "chosen": None}
    assert detect([row]) == "prompt_completion"


def test_every_format_is_documented():
    for name, form in FORMATS.items():
        assert form.read.__doc__, name
