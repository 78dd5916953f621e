"""The templates of some thirty model families, as TRL ships them: found exactly, or refused."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest
import small_tokenizers as small

from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.template import Tokenization
from alignlab.errors import DataError

FOLDER = files("trl") / "chat_templates"
NAMES = sorted(f.name for f in FOLDER.iterdir() if f.name.endswith(".jinja"))
SPECIAL = re.compile(
    r"<[|｜][^<>{}' ]{1,40}[|｜]>|<(?:start|end)_of_turn>|<end_of_utterance>|<\|?turn\|?>"
)
CALL = {"type": "function", "function": {"name": "rate", "arguments": {"film": "xyz"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "rate",
        "description": "rates",
        "parameters": {
            "type": "object",
            "properties": {"film": {"type": "string", "description": "which"}},
            "required": ["film"],
        },
    },
}


def user(content):
    return {"role": "user", "content": content}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


ASKED = (user("one film"),)
TWO = (answer("was good"), user("another"), answer("it is bad"))
THOUGHT = (answer("<think>\nhm\n</think>\n\nwas good"),)
USING = (
    answer("", tool_calls=[CALL]),
    {"role": "tool", "name": "rate", "content": "seven", "tool_call_id": "1"},
    answer("was good"),
)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request):
    text = (FOLDER / request.param).read_text(encoding="utf-8")
    special = sorted(set(SPECIAL.findall(text)))
    ends = ("<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>")
    eos = next((end for end in ends if end in special), "</s>")
    made = small.make_tokenizer("<s>", eos, special, adds_bos=False, template=text)
    made.name_or_path = request.param
    return made


def counted(tokenizer, completion, tools=()):
    """Texts of what is counted, run by run; None if the template is refused with the ways out."""
    group = PromptGroup(ASKED, (completion,), DEMONSTRATION, "x", tools=tools)
    try:
        made = Tokenization(tokenizer, None, None).group(group, 0)
    except DataError as error:
        said = str(error)
    else:
        return runs(tokenizer, made)
    assert "'x'" in said
    assert "refuses" in said or ".jinja" in said
    return None


def runs(tokenizer, made):
    """Texts of what is counted, cut where something else stands between."""
    ids = made.completions[0]
    mask = made.masks[0] if made.masks else np.ones(len(ids), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [
        tokenizer.decode(ids[a:b], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.slow
def test_one_answer_ends_in_a_special_token(tokenizer):
    found = counted(tokenizer, TWO[:1]) or counted(tokenizer, THOUGHT)
    if tokenizer.name_or_path in ("deepseek_r1_distill.jinja", "deepseekv3.jinja") or (
        tokenizer.name_or_path == "deepseekv3_training.jinja"
    ):
        assert found is None  # they open a thought and write none: nothing they write is sampled
        return
    assert found is not None
    [text] = found
    assert "was good" in text
    assert re.search(r"was good(\s*<[^<>]+>\s*)+$", text)
    assert "one film" not in text


@pytest.mark.parametrize("name", ["nemotron_3_nano.jinja", "nemotron_3_super.jinja"])
def test_a_template_that_opens_a_thought_says_how_to_train_without(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    special = sorted(set(SPECIAL.findall(text)))
    make = lambda template: small.make_tokenizer(  # noqa: E731
        "<s>", "<|im_end|>", special, adds_bos=False, template=template
    )
    plain = PromptGroup(ASKED, (TWO,), DEMONSTRATION, "x")
    with pytest.raises(DataError, match=r"opens a thought.*enable_thinking = false") as error:
        Tokenization(make(text), None, None).group(plain, 0)
    advice = re.search(r"\{%- set enable_thinking = false -%\}", str(error.value))[0]
    found = counted(make(advice + text), TWO)
    assert found == ["was good<|im_end|>", "it is bad<|im_end|>"]


def test_two_answers_are_two_runs(tokenizer):
    found = counted(tokenizer, TWO)
    if found is None:
        return
    first, second = found
    assert "was good" in first
    assert "it is bad" in second
    assert "another" not in first + second
    # Both turns end alike, but for those that close the last one as no other.
    ends = [re.findall(r"<[^<>]+>", text)[-1:] for text in (first, second)]
    known = ("gptoss", "idefics", "smolvlm")  # <|end|> and <|return|>; no EOS inside
    assert ends[0] == ends[1] or any(name in tokenizer.name_or_path for name in known)


def test_a_training_version_finds_what_it_was_made_for(tokenizer):
    """TRL's training versions keep earlier turns, so every answer is found."""
    thinking = ("deepseek", "nemotron")  # only with thoughts in the data
    if "_training" in tokenizer.name_or_path and not tokenizer.name_or_path.startswith(thinking):
        assert counted(tokenizer, TWO) is not None


@pytest.mark.slow
def test_calls_are_counted_or_refused_and_never_lost(tokenizer):
    found = counted(tokenizer, USING, tools=(TOOL,))
    if found is None:
        return
    call, last = found
    assert "rate" in call
    assert "xyz" in call
    assert "was good" in last
    assert "seven" not in call + last


@pytest.mark.filterwarnings("ignore")
def test_what_is_counted_is_what_trl_marks_less_what_no_sampler_writes(tokenizer):
    """Against an independent finding: TRL's {% generation %} marks. Around ours they hold line
    breaks behind the end of a turn, and openings that are written before a sampler starts."""
    found = counted(tokenizer, TWO)
    if found is None or "_training" not in tokenizer.name_or_path:
        return
    messages = [*ASKED, *TWO]
    if any(name in tokenizer.name_or_path for name in ("llava", "idefics", "smolvlm")):
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    made = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = np.array(made["input_ids"]), np.array(made["assistant_masks"])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    marked = [
        tokenizer.decode(ids[a:b], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    assert len(marked) == len(found)
    for ours, theirs in zip(found, marked, strict=True):
        before, _, behind = theirs.partition(ours)
        assert ours in theirs
        assert not behind.replace(tokenizer.eos_token, "").strip()
        assert "good" not in before
