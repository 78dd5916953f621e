from __future__ import annotations

from alignlab.data.group import CHOSEN_REJECTED, PromptGroup
from alignlab.data.transcript import is_transcript, with_style

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


def test_several_turns_and_a_system_message():
    made = with_style(PromptGroup((SYSTEM, U, A, U), ((B,),)), "text")
    assert made.prompt == "Be kind.\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant:"
    back = with_style(PromptGroup(made.prompt.removeprefix("Be kind."), (" b",)), "messages")
    assert back.prompt == (U, A, U)


def test_what_a_transcript_is():
    assert is_transcript(TEXT.prompt)
    assert not is_transcript("The word Human: and\n\nAssistant: inside")
    assert not is_transcript("Human: alone")
