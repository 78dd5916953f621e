"""Tool calls as text: read in every spelling, and rows of such data made messages with tools."""

from __future__ import annotations

import json

import pytest
import small_tokenizers as small

from alignlab.data.call_text import Call, read
from alignlab.data.formats import registry
from alignlab.data.formats.written_calls import tools_in
from alignlab.data.gate.gate import check
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.template import Tokenization
from alignlab.errors import DataError
from alignlab.models.template_bank import BANK

F = {"name": "f", "arguments": {"a": 1}}
ONE = (Call("f", {"a": 1}),)
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("just words", "just words", ()),
        (f"<tool_call>\n{json.dumps(F)}\n</tool_call>", "", ONE),
        (f"Wait. <tool_call>{json.dumps(F)}</tool_call>", "Wait.", ONE),
        (f"<tool_call>{json.dumps(F)}</tool_call>\n" * 2, "", ONE * 2),
        ("<functioncall> {\"name\": \"f\", \"arguments\": '{\"a\": 1}'} <|endoftext|>", "", ONE),
        (f"[TOOL_CALLS][{json.dumps(F)}]", "", ONE),
        ('[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[ARGS]{}', "", (*ONE, Call("g", {}))),
        ('<function=f>{"a": 1}</function>', "", ONE),
        ("<tool_call><function=f>\n<parameter=a>\n1\n</parameter></function></tool_call>", "", ONE),
        ('{"name": "f", "parameters": {"a": 1}}', "", ONE),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", ONE),
        ('[f(a=1), Get Rain(city="a, (b)", days=[1, 2])]', "",
         (*ONE, Call("Get Rain", {"city": "a, (b)", "days": [1, 2]}))),
        # answers that only look like calls
        ('{"name": "Ann"}', '{"name": "Ann"}', ()),
        ("[1, 2]", "[1, 2]", ()),
        ("[see this (page 3)]", "[see this (page 3)]", ()),
        ("[f(__import__('os'))]", "[f(__import__('os'))]", ()),
    ],
)  # fmt: skip
def test_spellings(text, content, calls):
    found = read(text)
    assert (found.content, found.calls, found.error) == (content, calls, "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>{'name': 'f'}</tool_call>", "no JSON"),
        ('<tool_call>{"name": "f", "arguments": {}}', "never closed"),
        ('<tool_call>{"arguments": {}}</tool_call>', "a name"),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "JSON object"),
        ("[TOOL_CALLS][oops]", "no JSON"),
        ('<functioncall> {"name": ', "no JSON"),
    ],
)
def test_broken_calls_say_why(text, error):
    assert error in read(text).error
    assert read(text).tried


def share(*turns, **more):
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **more}


HERMES = share(
    ("system", f"You call functions. <tools> {json.dumps([TOOL])} </tools> Answer as {F}."),
    ("human", "go"),
    ("gpt", f"<tool_call>\n{json.dumps(F)}\n</tool_call>"),
    ("tool", "<tool_response>\n7\n</tool_response>"),
    ("gpt", "seven"),
)
TOOLACE = share(
    ("user", "go"),
    ("assistant", "[f(a=1)]"),
    ("tool", "7"),
    ("assistant", "seven"),
    system=f"You may invoke:\n[{json.dumps(TOOL)}]\nPut it as [func1(name=value)].",
)
GLAIVE = {
    "system": f"SYSTEM: You are an assistant with these functions -\n{json.dumps(TOOL)}",
    "chat": 'USER: go\n\n\nASSISTANT: <functioncall> {"name": "f", "arguments": \'{"a": 1}\'}'
    " <|endoftext|>\n\n\nFUNCTION RESPONSE: 7\n\n\nASSISTANT: seven <|endoftext|>\n\n\n",
}


@pytest.mark.parametrize("row", [HERMES, TOOLACE, GLAIVE], ids=["hermes", "toolace", "glaive"])
def test_rows_of_text_become_tools_calls_and_results(row):
    form = registry.detect([row])
    assert form == ("glaive" if "chat" in row else "sharegpt")
    group = registry.read(form, row, calls="parsed")
    call = {"type": "function", "id": "call00001", "function": F}
    assert group.prompt == ({"role": "user", "content": "go"},)  # the template lists the tools
    assert group.completions == (
        (
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "7", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "seven"},
        ),
    )
    assert group.tools == ({"type": "function", "function": TOOL},)


def test_a_call_behind_a_thought_and_parallel_results():
    text = f"<think>\nhm\n</think>\n\n<tool_call>{json.dumps(F)}</tool_call>" + (
        f"<tool_call>{json.dumps(F)}</tool_call>"
    )
    two = "<tool_response>1</tool_response><tool_response>2</tool_response>"
    row = share(("human", "go"), ("gpt", text), ("tool", two), ("gpt", "so"), tools=[TOOL])
    [said] = registry.read("sharegpt", row, calls="parsed").completions
    assert said[0]["content"] == "<think>\nhm\n</think>\n\n"
    results = [(m["tool_call_id"], m["content"]) for m in said if m["role"] == "tool"]
    assert results == [("call00001", "1"), ("call00002", "2")]


def test_what_is_refused_names_the_message():
    broken = share(("human", "go"), ("gpt", "<tool_call>{f}</tool_call>"))
    with pytest.raises(DataError, match=r"message 2 \(assistant\).*no JSON.*data\.calls=null"):
        registry.read("sharegpt", broken, calls="parsed")
    assert registry.read("sharegpt", broken).completions  # as text it stays
    with pytest.raises(DataError, match="and the row has a field of them too"):
        registry.read("sharegpt", {**HERMES, "tools": [TOOL]}, calls="parsed")
    with pytest.raises(DataError, match=r"without a call.*data\.calls=parsed"):
        registry.read("sharegpt", TOOLACE)
    with pytest.raises(DataError, match="'chat' must be turns"):
        registry.read("glaive", {"system": "", "chat": "hello"})


def test_tools_are_told_from_other_json():
    text = f'Like {{"name": "f", "arguments": {{}}}} or [1] {{broken: {json.dumps(TOOL)}'
    assert tools_in(text) == [TOOL]


def test_the_gate_checks_calls_by_their_tools():
    tokenizer = small.make_tokenizer(
        "<|im_start|>", "<|im_end|>", adds_bos=False, template=BANK["chatml_tools"]
    )
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    good = {"name": "f", "parameters": schema}
    odd = {"name": "f", "parameters": {"type": "object", "properties": 3}}

    def row(tool, name="f", **arguments):
        call = {"name": name, "arguments": arguments}
        asked = {"query": "go", "tools": [tool], "answers": json.dumps([call])}
        return registry.read("function_calls", asked)

    rows = [row(good, a=1), row(good, a="x"), row(good, "g"), row(odd, a=1), row(good, b=1)]
    made = Tokenization(tokenizer, None, None).groups(rows)
    found = {one.code: one for one in check(rows, made, tokenizer)}
    assert found["call_does_not_fit"].rows == (1, 2, 4)
    assert found["tool_schema"].rows == (3,)
    assert {f.severity for f in found.values()} == {"warning"}


@pytest.mark.parametrize("name", ["chatml_tools", "dialogue_tools"])
def test_what_our_templates_write_is_read_again(name):
    tokenizer = small.make_tokenizer(
        "<|im_start|>", "<|im_end|>", adds_bos=False, template=BANK[name]
    )
    group = registry.read("sharegpt", HERMES, calls="parsed")
    tokenization = Tokenization(tokenizer, None, None)
    made = tokenization.group(group, 0)
    assert json.dumps(TOOL)[1:] in tokenization.decode(made.prompt)
    said = tokenizer.decode(made.completions[0][made.masks[0]], skip_special_tokens=True)
    assert "seven" in said
    assert "7" not in said  # what the tool said is read only
    call = PromptGroup(group.prompt, (group.completions[0][:1],), DEMONSTRATION, tools=group.tools)
    [ids] = tokenization.group(call, 0).completions
    assert read(tokenization.decode(ids)).calls == ONE
    dpo = PromptGroup(group.prompt, (call.completions[0], group.completions[0][2:]))
    assert len(tokenization.group(dpo, 0).completions) == 2
