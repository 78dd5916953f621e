from __future__ import annotations

import pytest

from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup
from alignlab.data.transcript import is_transcript, last_turn, with_style
from alignlab.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
U = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
TEXT = PromptGroup("\n\nHuman: q\n\nAssistant:", (" a", " b"), CHOSEN_REJECTED)
CHAT = PromptGroup((U,), ((A,), (B,)), CHOSEN_REJECTED)


def test_transcripts_and_messages_are_each_other():
    assert with_style(TEXT, "messages") == CHAT
    assert with_style(CHAT, "text") == TEXT
    assert with_style(TEXT, "as_is") is TEXT
    assert with_style(TEXT, "text") is TEXT
    assert with_style(CHAT, "messages") is CHAT


def test_plain_text_becomes_one_user_message():
    made = with_style(PromptGroup("2+2?\n\n", ("4",)), "messages")
    assert made.prompt == ({"role": "user", "content": "2+2?"},)
    assert made.completions == (({"role": "assistant", "content": "4"},),)


def test_turns_as_helpsteer_marks_them():
    prompt = "q\n<extra_id_1>Assistant\na\n<extra_id_1>User\nq2"
    made = with_style(PromptGroup(prompt, ("b",)), "messages")
    assert made.prompt == (U, A, {"role": "user", "content": "q2"})


def test_several_turns_and_a_system_message():
    made = with_style(PromptGroup((SYSTEM, U, A, U), ((B,),)), "text")
    assert made.prompt == "Be kind.\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant:"
    back = with_style(PromptGroup(made.prompt.removeprefix("Be kind."), (" b",)), "messages")
    assert back.prompt == (U, A, U)


def test_what_a_transcript_is():
    assert is_transcript(TEXT.prompt)
    assert not is_transcript("The word Human: and\n\nAssistant: inside")
    assert not is_transcript("Human: alone")


def test_a_transcript_of_a_conversation_demonstrates_its_last_answer():
    # a loss on text cannot leave out the user's turn between the two answers
    made = with_style(PromptGroup((U,), ((A, U, B),), DEMONSTRATION), "text")
    assert made.prompt == "\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant:"
    assert made.completions == (" b",)


def test_the_last_turn():
    group = PromptGroup((U,), ((A, U, B),), DEMONSTRATION, "id", {"x": 1})
    made = last_turn(group)
    assert (made.prompt, made.completions) == ((U, A, U), ((B,),))
    assert (made.id, made.meta) == ("id", {"x": 1})
    for other in (TEXT, CHAT, PromptGroup((U,)), PromptGroup("p", ("a",), DEMONSTRATION)):
        assert last_turn(other) is other


@pytest.mark.parametrize(
    "group",
    [
        PromptGroup((U,), (({**A, "weight": 0}, U, B),), DEMONSTRATION),
        PromptGroup((U,), (({**A, "tool_calls": []},),), DEMONSTRATION),
        PromptGroup((U, {"role": "tool", "content": "r"}), ((A,),), DEMONSTRATION),
        PromptGroup((U,), ((A,),), DEMONSTRATION, tools=({"type": "function"},)),
    ],
)
def test_what_a_transcript_cannot_hold_is_refused(group):
    with pytest.raises(DataError, match=r"a transcript has no place for .*data.style=as_is"):
        with_style(group, "text")


def test_text_without_a_prompt_cannot_be_messages():
    with pytest.raises(DataError, match="cannot be messages"):
        with_style(PromptGroup("", ("a text",), DEMONSTRATION), "messages")
