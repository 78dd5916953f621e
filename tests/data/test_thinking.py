"""Thoughts: told from answers, written, dropped and masked; one row per answer where they go."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_tokenizers as small
import yaml

from alignlab.compose import conf_dir
from alignlab.data.formats.registry import read
from alignlab.data.gate.gate import check
from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup
from alignlab.data.sources.file import File
from alignlab.data.template import Tokenization
from alignlab.data.thinking import Said, opened, split, thought_of, whole, with_thinking
from alignlab.data.transcript import each_turn
from alignlab.errors import DataError
from alignlab.models.template_bank import BANK

CHATML = ("<|im_start|>", "<|im_end|>")
Q1, Q2 = {"role": "user", "content": "a film"}, {"role": "user", "content": "another"}
A1 = {"role": "assistant", "content": "was good", "reasoning_content": "very bad"}
A2 = {"role": "assistant", "content": "<think>\nacting\n</think>\n\nbad"}
FIELD = (  # reads thoughts in a field of its own, always
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['thinking'] %}{{ '[' + m['thinking'] + '] ' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml(template):
    return small.make_tokenizer(*CHATML, adds_bos=False, template=template)


def talk(*messages, prompt=1):
    said = (tuple(messages[prompt:]),)
    return PromptGroup(tuple(messages[:prompt]), said, DEMONSTRATION, "c", {"place": "line 7"})


def counted(tokenizer, group):
    """Texts of what is counted, run by run."""
    made = Tokenization(tokenizer, None, None).group(group, 0)
    ids = made.completions[0]
    mask = made.masks[0] if made.masks else np.ones(len(ids), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize(
    ("text", "begun", "said"),
    [
        ("just this", False, Said(None, "just this")),
        ("<think>\nhm\n</think>\n\n4", False, Said("hm", "4")),
        (" <think>hm</think>4", False, Said("hm", "4")),
        ("hm\n</think>\n4", True, Said("hm", "4")),  # the template opened it
        ("<think>so 7 or 8", False, Said("so 7 or 8", "", closed=False)),
        ("so 7 or 8", True, Said("so 7 or 8", "", closed=False)),
        ("<think>a</think>b<think>c</think>d", False, Said("a</think>b<think>c", "d")),
        ("x < 3, <think> is a tag", False, Said(None, "x < 3, <think> is a tag")),
    ],
)
def test_a_thought_is_told_from_the_answer(text, begun, said):
    assert split(text, begun=begun) == said


def test_a_prompt_that_opens_a_thought():
    assert opened("User: 2+2?\n\nAssistant: <think>\n")
    assert not opened("User: what is <think>?\n\nAssistant:")
    assert whole("hm</think>4", begun=True) == "<think>\nhm</think>4"
    assert whole("<think>hm</think>4", begun=True) == "<think>hm</think>4"


def test_thoughts_are_tagged_dropped_or_masked():
    group = talk(Q1, A1, Q2, A2)
    [said] = with_thinking(group, "tagged", masked=False).completions
    assert said[0] == {
        "role": "assistant",
        "content": "<think>\nvery bad\n</think>\n\nwas good",
    }
    assert said[2] == A2  # it was written so already
    [said] = with_thinking(group, "field", masked=False).completions
    assert said[2] == {"role": "assistant", "content": "bad", "reasoning_content": "acting"}
    [said] = with_thinking(group, "dropped", masked=False).completions
    assert [m["content"] for m in said] == ["was good", "another", "bad"]
    assert "reasoning_content" not in said[0]
    [said] = with_thinking(group, None, masked=True).completions
    assert said[0] == {**A1, "thought_weight": 0}
    assert said[1] == Q2
    assert with_thinking(group, None, masked=False) is group
    with pytest.raises(DataError, match="a thought in a field and another between"):
        thought_of({**A2, "thinking": "more"})


def test_a_thought_goes_where_the_template_reads_it():
    tokenizer = chatml(FIELD)  # data say reasoning_content, the template reads thinking
    assert counted(tokenizer, talk(Q1, A1)) == ["[very bad] was good<|im_end|>"]


def test_a_template_that_loses_a_thought_is_refused_with_the_row():
    tokenizer = chatml(small.CHATML)
    with pytest.raises(DataError, match=r"line 7\).*thinking=tagged.*thinking=dropped.*_tools"):
        Tokenization(tokenizer, None, None).group(talk(Q1, A1), 0)
    tagged = with_thinking(talk(Q1, A1), "tagged", masked=False)
    assert counted(tokenizer, tagged) == ["<think>\nvery bad\n</think>\n\nwas good<|im_end|>"]


def test_a_template_that_writes_tags_itself_is_given_the_field():
    writes = (
        FIELD.replace("'[' + m['thinking'] + '] '", "m['thinking']")
        .replace(
            "{% if m['thinking'] %}",
            "{% if m['role'] == 'assistant' %}<think>{% endif %}{% if m['thinking'] %}",
        )
        .replace(
            "{{ m['content']", "{% if m['role'] == 'assistant' %}</think>{% endif %}{{ m['content']"
        )
    )
    tokenizer = chatml(writes)
    tokenization = Tokenization(tokenizer, None, None)
    with pytest.raises(DataError, match=r"line 7\).*an empty thought.*data\.thinking=field"):
        tokenization.group(talk(Q1, A2), 0)
    field = with_thinking(talk(Q1, A2), "field", masked=False)
    assert counted(tokenizer, field) == ["<think>acting</think>bad<|im_end|>"]


@pytest.mark.parametrize("template", [small.CHATML, BANK["chatml_tools"]])
def test_a_masked_thought_is_read_and_not_counted(template):
    tokenizer = chatml(template)
    plain = with_thinking(talk(Q1, A1), "tagged", masked=False)
    masked = with_thinking(talk(Q1, A1), "tagged", masked=True)
    assert counted(tokenizer, masked) == ["was good<|im_end|>"]
    both = [Tokenization(tokenizer, None, None).group(g, 0) for g in (plain, masked)]
    assert both[0].completions[0].tolist() == both[1].completions[0].tolist()  # the same tokens
    assert both[0].masks == ()


def test_a_masked_thought_in_a_field_is_found_by_its_text():
    masked = with_thinking(talk(Q1, A1), None, masked=True)
    [text] = counted(chatml(FIELD), masked)
    assert text in ("] was good<|im_end|>", " was good<|im_end|>")
    bare = talk(Q1, {"role": "assistant", "content": "bad", "thought_weight": 0})
    tokenization = Tokenization(chatml(small.CHATML), None, None)
    with pytest.raises(DataError, match=r"line 7\) is to be masked.*writes none"):
        tokenization.group(bare, 0)


def test_thought_weight_of_single_messages():
    rows = [Q1, {**A2, "thought_weight": 0}, Q2, A2]
    group = read("messages", {"messages": rows})
    assert counted(chatml(small.CHATML), group) == [
        "bad<|im_end|>",
        "<think>\nacting\n</think>\n\nbad<|im_end|>",
    ]
    with pytest.raises(DataError, match=r"message 2: 'thought_weight' must be one 0 or 1"):
        read("messages", {"messages": [Q1, {**A2, "thought_weight": 0.5}]})


def test_reasoning_is_a_spelling_of_reasoning_content():
    row = {"messages": [Q1, {"role": "assistant", "content": "a", "reasoning": "hm"}]}
    assert read("messages", row).completions[0][0]["reasoning_content"] == "hm"


def test_the_gate_finds_thoughts_without_an_answer():
    tokenizer = chatml(small.CHATML)
    calling = {
        "role": "assistant",
        "content": "<think>\nlook\n</think>\n\n",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    rows = [
        talk(Q1, A2),
        talk(Q1, {"role": "assistant", "content": "<think>and then"}),
        talk(Q1, {"role": "assistant", "content": "<think>so</think>\n"}, Q2, A2),
        talk(Q1, {"role": "assistant", "content": "no thought"}),
        PromptGroup("a film", (" <think>", " good"), CHOSEN_REJECTED),
    ]
    made = Tokenization(tokenizer, None, None).groups(rows)
    found = {one.code: one for one in check(rows, made, tokenizer)}
    assert found["thought_without_answer"].severity == "warning"
    assert found["thought_without_answer"].rows == (1, 2, 4)
    tools = chatml(BANK["chatml_tools"])
    made = Tokenization(tools, None, None).groups([talk(Q1, calling)])
    codes = {one.code for one in check([talk(Q1, calling)], made, tools)}
    assert "thought_without_answer" not in codes  # a call follows it


# --- one row per answer ---------------------------------------------------------------------------


def test_each_answer_is_written_as_it_is_sampled():
    tokenizer = chatml(BANK["chatml_tools"])
    whole_one = talk(Q1, A1, Q2, A2)
    with pytest.raises(DataError, match=r"earlier turn.*data\.turns=each"):
        Tokenization(tokenizer, None, None).group(whole_one, 0)
    first, second = each_turn(whole_one)
    assert (first.id, second.id) == ("c/0", "c/2")
    assert counted(tokenizer, first) == ["<think>\nvery bad\n</think>\n\nwas good<|im_end|>"]
    assert counted(tokenizer, second) == ["<think>\nacting\n</think>\n\nbad<|im_end|>"]
    prompt = tokenizer.decode(Tokenization(tokenizer, None, None).group(second, 0).prompt)
    assert "was good" in prompt
    assert "very bad" not in prompt  # the thought of an earlier turn


def test_answers_of_weight_0_make_no_row_and_other_groups_stay():
    silent = talk(Q1, {**A1, "weight": 0}, Q2, A2)
    assert [g.id for g in each_turn(silent)] == ["c/2"]
    one = talk(Q1, A2)
    assert each_turn(one) == (one,)
    text = PromptGroup("a", ("b",), DEMONSTRATION)
    assert each_turn(text) == (text,)


def source(path, **changes):
    node = yaml.safe_load((conf_dir() / "data" / "file.yaml").read_text(encoding="utf-8"))
    del node["_target_"]
    stated = {"path": str(path), "validation": 0.3, "test": 0.0, "limit": {}}
    return File(**{**node, **stated, **changes})


def test_all_answers_of_a_conversation_fall_into_one_split(tmp_path):
    rows = [{"messages": [{**Q1, "content": f"film {n}"}, A2, Q2, A2]} for n in range(12)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = source(file, turns="each")
    splits = {split: data.load(split) for split in ("sft", "validation")}
    asked = {split: {g.prompt[0]["content"] for g in found} for split, found in splits.items()}
    assert not asked["sft"] & asked["validation"]
    assert len(asked["sft"]) + len(asked["validation"]) == 12
    assert sum(map(len, splits.values())) == 24
    assert len(source(file, turns="each", limit={"sft": 3}).load("sft")) == 6  # conversations
    with pytest.raises(DataError, match=r"turns=each.*style=text"):
        source(file, turns="each", style="text")


def test_new_fields_leave_old_fingerprints_alone(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [Q1, A2]}) + "\n", encoding="utf-8")
    plain = source(file).fingerprint()
    assert source(file, thinking=None, mask_thinking=None, calls=None).fingerprint() == plain
    for change in ({"thinking": "dropped"}, {"mask_thinking": True}, {"calls": "parsed"}):
        assert source(file, **change).fingerprint() != plain
