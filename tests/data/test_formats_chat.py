from __future__ import annotations

import json

import pytest
from format_rows import U2, A, B, S, U, group, said, share

from alignlab.data.formats.registry import read
from alignlab.data.transcript import with_style
from alignlab.errors import DataError

CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
WIRE = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
ASKS = said("assistant", None, tool_calls=[WIRE])
RESULT = said("tool", "r", tool_call_id="c1")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_a_conversation_of_one_answer():
    made = group({"messages": [U, A]})
    assert (made.prompt, made.completions) == ((U,), ((A,),))
    assert made.verdict.kind == "demonstration"


def test_messages_as_the_text_of_json():
    made = group({"messages": json.dumps([U, A])})  # Parquet files have them so
    assert (made.prompt, made.completions) == ((U,), ((A,),))


def test_all_turns_or_the_last():
    row = {"messages": [S, U, A, U2, B]}
    made = group(row)
    assert (made.prompt, made.completions) == ((S, U), ((A, U2, B),))
    made = group(row, turns="last")
    assert (made.prompt, made.completions) == ((S, U, A, U2), ((B,),))


def test_a_conversation_that_waits_for_an_answer_is_a_prompt():
    made = group({"messages": [U, A, U2]})
    assert (made.prompt, made.completions, made.verdict.kind) == ((U, A, U2), (), "none")


def test_weights_survive():
    made = group({"messages": [U, {**A, "weight": 0}, U2, {**B, "weight": 1.0}]})
    assert [m.get("weight") for m in made.completions[0]] == [0, None, 1]
    made = group({"messages": [U, {**A, "train": False}, U2, {**B, "loss": True}]})
    assert [m.get("weight") for m in made.completions[0]] == [0, None, 1]
    made = group({"messages": [{**U, "weight": 0}, {**A, "weight": None}]})
    assert (made.prompt, made.completions) == ((U,), ((A,),))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({**A, "weight": 2}, "'weight' must be one 0 or 1, not 2"),
        ({**A, "weight": 0.5}, "'weight' must be one 0 or 1"),
        ({**A, "weight": "0"}, "'weight' must be one 0 or 1"),
        ({**A, "weight": 1, "train": False}, "'weight and train' must be one"),
        ({**A, "wieght": 0}, "the key 'wieght' is unknown. Did you mean 'weight'"),
        ({**A, "Weight": 0}, "Did you mean 'weight'"),
        ({**A, "tool_call": []}, "Did you mean 'tool_calls'"),
        ({"role": "asistant", "content": "a"}, "'asistant' is unknown. Did you mean 'assistant'"),
        ({"role": "narrator", "content": "a"}, "'narrator' is unknown. *Known: system"),
        ({"role": "assistant"}, "message 2: .*content is missing"),
        ({"role": "assistant", "content": 3}, "content is 3"),
        ({"role": "assistant", "content": None}, "Only a message with tool_calls may have none"),
        ({"role": "assistant", "content": None, "audio": {}}, "audio is not supported"),
        ("a", "message 2: needs role and content"),
        ({"content": "a"}, "message 2: needs role and content"),
        (said("assistant", [{"type": "image_url", "image_url": {}}]), "part 1 is 'image_url'"),
    ],
)
def test_messages_that_cannot_be_read(message, error):
    with pytest.raises(DataError, match=error):
        read("messages", {"messages": [U, message, U2, B]})


def test_a_weight_on_a_user_is_refused():
    with pytest.raises(DataError, match="message 1: only messages of the assistant have a weight"):
        group({"messages": [{**U, "weight": 1}, A]})


def test_content_as_parts_is_their_text():
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "2"}]
    assert group({"messages": [said("user", parts), A]}).prompt == (U2,)
    assert group({"messages": [said("developer", "s"), U, A]}).prompt == (S, U)


def test_parallel_tool_calls_survive():
    second = {**WIRE, "id": "c2"}
    asks = said("assistant", None, tool_calls=[WIRE, second])
    back = [said("tool", "y", tool_call_id="c2"), RESULT]
    made = group({"messages": [U, asks, *back, A], "tools": [TOOL]})
    assert made.tools == (TOOL,)
    first = made.completions[0][0]
    assert first == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL, {**CALL, "id": "c2"}],
    }
    assert made.completions[0][1:3] == tuple(back)


def test_legacy_functions_become_tool_calls():
    row = {
        "messages": [
            U,
            said("assistant", None, function_call={"name": "f", "arguments": '{"x": 1}'}),
            {"role": "function", "name": "f", "content": "r"},
            A,
        ],
        "functions": [{"name": "f", "parameters": {"type": "object"}}],
    }
    made = group(row)
    call, result, _ = made.completions[0]
    assert call["tool_calls"] == [{**CALL, "id": "call00001"}]
    assert result == {"role": "tool", "content": "r", "name": "f", "tool_call_id": "call00001"}
    assert made.tools == (TOOL,)


def test_tools_as_text_bare_and_with_the_nulls_of_arrow():
    bare = '[{"name": "f", "description": null, "parameters": {"type": "object", "enum": null}}]'
    assert group({"messages": [U, A], "tools": bare}).tools == (TOOL,)
    assert group({"messages": [U, A], "tools": ""}).tools == ()
    with pytest.raises(DataError, match="'tools': this text is not JSON"):
        group({"messages": [U, A], "tools": "[{"})
    with pytest.raises(DataError, match="'tools', tool 1: needs a name"):
        group({"messages": [U, A], "tools": [{"parameters": {}}]})


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([U, RESULT, A], r"message 2 \(tool\): a tool's result without a call"),
        ([U, A, RESULT, A], r"message 3 \(tool\): a tool's result without a call"),
        ([U, ASKS, {**RESULT, "tool_call_id": "c7"}, A], "answers the call 'c7'; the open calls"),
        ([U, ASKS, RESULT, RESULT, A], "answers the call 'c1'; the open calls are none"),
        ([U, said("assistant", "", tool_calls=[{"id": "c1"}])], "call 1: needs a name"),
        (
            [U, said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "x"}}])],
            "arguments: this text is not JSON",
        ),
        (
            [
                U,
                said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]),
            ],
            "must be a JSON object",
        ),
        ([A], "the assistant speaks first"),
        ([S, A, U, B], "the assistant speaks first"),
        ([U, A, S, U2, B], r"message 3 \(system\): a system message may only be the first"),
        ([S, S, U, A], "a system message may only be the first"),
        ([said("user", " "), A], r"message 1 \(user\) is empty"),
        ([U, said("assistant", ""), U2, A], r"message 2 \(assistant\) is empty"),
    ],
)
def test_conversations_out_of_order(messages, error):
    with pytest.raises(DataError, match=error):
        group({"messages": messages})


def test_an_empty_last_answer_is_left_to_the_gate():
    assert group({"messages": [U, said("assistant", "")]}).completions[0][0]["content"] == ""


def test_anthropic_blocks():
    use = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
    back = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "r"}]}
    row = {
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            U,
            said(
                "assistant",
                [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, use],
            ),
            said("user", [back, {"type": "text", "text": "q2"}]),
            B,
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    made = group(row)
    assert made.prompt == (S, U)
    call, result, user, last = made.completions[0]
    assert call == {**A, "reasoning_content": "hm", "tool_calls": [CALL]}
    assert (result, user, last) == (RESULT, U2, B)
    assert made.tools == (TOOL,)


HUMAN = ["human", "user", "Human", "USER", "prompter"]
MACHINE = ["gpt", "chatgpt", "assistant", "bot", "model", "bing", "bard", "ai", "Assistant"]


@pytest.mark.parametrize("human", HUMAN)
@pytest.mark.parametrize("machine", MACHINE)
@pytest.mark.parametrize("field", ["conversations", "conversation"])
def test_spellings_of_sharegpt(human, machine, field):
    made = group({field: share(("system", "s"), (human, "q"), (machine, "a"))})
    assert (made.prompt, made.completions) == ((S, U), ((A,),))


@pytest.mark.parametrize("result", ["observation", "tool", "function", "function_response"])
@pytest.mark.parametrize("call", ["function_call", "tool_call"])
def test_calls_of_sharegpt(call, result):
    turns = share(("human", "q"), (call, '{"name": "f", "arguments": {"x": 1}}'), (result, "r"))
    made = group({"conversations": [*turns, *share(("gpt", "a"))]})
    asks, back, last = made.completions[0]
    assert asks["tool_calls"] == [{**CALL, "id": "call00001"}]
    assert back == {"role": "tool", "content": "r", "tool_call_id": "call00001"}
    assert last == A


def test_calls_written_as_text_stay_text():
    call = '<tool_call>\n{"name": "f"}\n</tool_call>'
    made = group(
        {"conversations": share(("human", "q"), ("gpt", call), ("tool", "r"), ("gpt", "a"))}
    )
    assert [m["role"] for m in made.completions[0]] == ["assistant", "tool", "assistant"]
    assert made.completions[0][0]["content"] == call


@pytest.mark.parametrize(
    ("turns", "error"),
    [
        (share(("human", "q"), ("gtp", "a")), "the from 'gtp' is unknown. Did you mean 'gpt'"),
        (share(("humman", "q"), ("gpt", "a")), "Did you mean 'human'"),
        (share(("human", "q"), ("human", "q2"), ("gpt", "a")), "message 2: two turns of the user"),
        (
            share(("human", "q"), ("gpt", "a"), ("gpt", "b")),
            "message 3: two turns of the assistant",
        ),
        (share(("gpt", "a"), ("human", "q"), ("gpt", "b")), "the assistant speaks first"),
        (share(("human", ""), ("gpt", "a")), r"message 1 \(user\) is empty"),
        (
            share(("human", "q"), ("gpt", ""), ("human", "q2"), ("gpt", "b")),
            "message 2 .* is empty",
        ),
        (share(("human", "q"), ("function_call", "f(x)"), ("gpt", "a")), "this text is not JSON"),
        (share(("human", "q"), ("observation", "r"), ("gpt", "a")), "without a call"),
        (share(("human", "q"), ("gpt", None)), "content is missing"),
    ],
)
def test_sharegpt_that_others_skip_silently(turns, error):
    with pytest.raises(DataError, match=error):
        group({"conversations": turns})


def test_sharegpt_preferences_of_single_messages():
    one, two = share(("gpt", "a")) + share(("gpt", "b"))
    made = group({"conversations": share(("human", "q")), "chosen": one, "rejected": two})
    assert (made.prompt, made.completions) == ((U,), ((A,), (B,)))


def test_lists_of_texts_are_dialogues():
    made = group({"conversations": ["q", "a", "q2", "b"]})
    assert (made.prompt, made.completions) == ((U,), ((A, U2, B),))
    assert group({"data": ["q", "a"], "id": "0"}).completions == ((A,),)


def test_openai_preferences():
    row = {
        "input": {"messages": [U], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": [A],
        "non_preferred_output": [B],
    }
    made = group(row)
    assert (made.prompt, made.completions) == ((U,), ((A,), (B,)))
    assert made.tools == (TOOL,)
    assert made.meta == {"parallel_tool_calls": True}
    with pytest.raises(DataError, match="'input' must be an object with 'messages'"):
        group({**row, "input": {"prompt": "q"}})
    with pytest.raises(DataError, match="but non_preferred_output is missing"):
        group({"input": row["input"], "preferred_output": [A]})


def test_swift_pairs():
    made = group({"messages": [U, A], "rejected_response": "b"})
    assert (made.prompt, made.completions) == ((U,), ((A,), (B,)))


def log(*lines):
    return [{"sender": sender, "text": text, "timestamp": "t"} for sender, text in lines]


@pytest.mark.parametrize("media", [{"images": ["a.png"]}, {"image": {"bytes": b"", "path": "a"}}])
def test_rows_with_images_are_refused(media):
    with pytest.raises(DataError, match="is not empty, and alignlab trains on text"):
        group({"messages": [U, A], **media})
    assert group({"messages": [U, A], "images": [], "image": None}).prompt == (U,)


def test_chat_logs():
    turns = [log(("x", "q"), ("x", " ")), log(("y", "a"), ("y", "b")), log(("x", "bye"))]
    made = group({"messages": turns, "prompt": "about"})
    assert made.prompt == (U,)
    assert made.completions == ((said("assistant", "a\nb"),),)  # "bye" was never answered
    assert made.meta == {"prompt": "about"}
    assert group({"messages": log(("x", "q"), ("y", "a"))}).completions == ((A,),)
    assert group({"messages": log(("x", "q"))}).completions == ()
    with pytest.raises(DataError, match="a chat of two senders; 3 wrote"):
        group({"messages": log(("x", "q"), ("y", "a"), ("z", "b"))})
    with pytest.raises(DataError, match="a chat of two senders; 0 wrote"):
        group({"messages": log(("x", " "))})


def test_examples_that_openai_writes_as_system_messages():
    """{"role": "system", "name": "example_user"}: turns that show how it is done."""
    shown = [
        S,
        said("system", "abc", name="example_user"),
        said("system", "cba", name="example_assistant"),
        U,
    ]
    made = group({"input": shown, "ideal": "zyx"})
    assert [message["role"] for message in made.prompt] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in made.prompt] == ["s", "abc", "cba", "q"]


def test_a_later_system_message_has_a_place_in_a_text():
    row = {"messages": [U, A, S, U2, B]}
    with pytest.raises(DataError, match=r"To train on texts: data\.style=text\."):
        read("messages", row)
    made = with_style(read("messages", row, transcript=True), "text")
    assert made.prompt == "\n\nHuman: q\n\nAssistant: a\n\ns\n\nHuman: q2\n\nAssistant:"
    assert made.completions == (" b",)
