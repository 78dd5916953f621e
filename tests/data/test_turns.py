"""Completions of several turns: the assistant's tokens are the targets, and nothing else is."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import small_tokenizers as small

from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.errors import DataError

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3_EXTRA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ZEPHYR_EXTRA = ("<|user|>", "<|assistant|>", "<|system|>")


# family: (make the tokenizer, what a turn of the assistant is in the tokens, system messages?)
FAMILIES = {
    "chatml": (
        lambda: small.make_tokenizer(*CHATML, adds_bos=False, template=small.CHATML),
        lambda text: text + "<|im_end|>",
        True,
    ),
    "chatml, offsets without spaces": (
        lambda: small.make_tokenizer(*CHATML, adds_bos=False, template=small.CHATML, trim=True),
        lambda text: text + "<|im_end|>",
        True,
    ),
    "chatml, no offsets": (
        lambda: small.Slow(small.make_tokenizer(*CHATML, adds_bos=False, template=small.CHATML)),
        lambda text: text + "<|im_end|>",
        True,
    ),
    "chatml on a tokenizer without its tokens": (
        lambda: small.make_tokenizer("<s>", "</s>", adds_bos=True, template=small.CHATML),
        lambda text: text + "<|im_end|>\n",  # plain text; EOS is written at the end alone
        True,
    ),
    "llama 2": (
        lambda: small.make_tokenizer("<s>", "</s>", adds_bos=True, template=small.LLAMA2),
        lambda text: " " + text.strip() + " </s>",
        True,
    ),
    "llama 2, sentencepiece": (
        lambda: small.make_metaspace("<s>", "</s>", template=small.LLAMA2),
        lambda text: " " + text.strip() + " </s>",
        True,
    ),
    "llama 3": (
        lambda: small.make_tokenizer(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            LLAMA3_EXTRA,
            adds_bos=True,
            template=small.LLAMA3,
        ),
        lambda text: text.strip() + "<|eot_id|>",
        True,
    ),
    "zephyr": (
        lambda: small.make_tokenizer(
            "<s>", "</s>", ZEPHYR_EXTRA, adds_bos=False, template=small.ZEPHYR
        ),
        lambda text: text + "</s>",
        True,
    ),
    "mistral, no system message": (
        lambda: small.make_metaspace("<s>", "</s>", template=small.MISTRAL),
        lambda text: " " + text + "</s>",
        False,
    ),
    "gemma": (
        lambda: small.make_tokenizer(
            "<bos>",
            "<eos>",
            ("<start_of_turn>", "<end_of_turn>"),
            adds_bos=True,
            template=small.GEMMA,
        ),
        lambda text: text.strip() + "<end_of_turn>",
        False,
    ),
    "deepseek": (
        lambda: small.make_tokenizer(
            "<|begin|>",
            "<|finish|>",
            ("<|User|>", "<|Assistant|>"),
            adds_bos=True,
            template=small.DEEPSEEK,
        ),
        lambda text: text + "<|finish|>",
        True,
    ),
    "phi 3": (
        lambda: small.make_tokenizer(
            "<s>",
            "<|endoftext|>",
            (*ZEPHYR_EXTRA, "<|end|>"),
            adds_bos=False,
            template=small.PHI3,
        ),
        lambda text: text + "<|end|>",
        True,
    ),
    "phi 3, tokens that swallow line breaks": (
        lambda: small.make_tokenizer(
            "<s>",
            "<|endoftext|>",
            adds_bos=False,
            template=small.PHI3,
            rstrip=(*ZEPHYR_EXTRA, "<|end|>"),
        ),
        lambda text: text + "<|end|>",
        True,
    ),
    "roles as plain text": (
        lambda: small.make_tokenizer("<s>", "</s>", adds_bos=True, template=small.PLAIN),
        lambda text: text + "</s>",
        True,
    ),
    "roles as plain text, offsets without spaces": (
        lambda: small.make_tokenizer(
            "<s>", "</s>", adds_bos=False, template=small.PLAIN, trim=True
        ),
        lambda text: text + "</s>",
        True,
    ),
    "no end of turn at all": (
        lambda: small.make_tokenizer("<s>", "</s>", adds_bos=False, template=small.UNENDED),
        lambda text: text + "\n",
        True,
    ),
}
WORDS = (
    "the",
    "film",
    "was good",
    " and",
    "bad.",
    "\n",
    "\n\n",
    "  ",
    "é漢",
    "😀",
    "user",
    "5",
    "'s",
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    make, written, system = FAMILIES[request.param]
    return request.param, make(), written, system


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def runs(ids, mask):
    """The masked ids, cut where something that is no target stands between."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [ids[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def spelt(name, tokenizer, ids):
    """Text of ids; without white space where the tokenizer itself swallows or adds some."""
    written = text(tokenizer, ids)
    own_spaces = ("sentencepiece", "mistral", "swallow")
    return "".join(written.split()) if any(word in name for word in own_spaces) else written


def conversation(random, system):
    said = lambda: "".join(random.choice(WORDS) for _ in range(random.randint(1, 5)))  # noqa: E731
    prompt = [{"role": "user", "content": said()}]
    if system and random.random() < 0.5:
        prompt.insert(0, {"role": "system", "content": said()})
    completion = [{"role": "assistant", "content": said()}]
    for _ in range(random.randint(1, 3)):
        completion.append({"role": "user", "content": said()})
        completion.append({"role": "assistant", "content": said()})
    return PromptGroup(tuple(prompt), (tuple(completion),), DEMONSTRATION, id="x")


@pytest.mark.slow
def test_the_targets_are_the_answers_with_their_end_and_nothing_else(family):
    name, tokenizer, written, system = family
    tokenization = Tokenization(tokenizer, None, None)
    source = random.Random(0)
    groups = [conversation(source, system) for _ in range(40)]
    for group, made in zip(groups, tokenization.groups(groups), strict=True):
        answers = [m["content"] for m in group.completions[0] if m["role"] == "assistant"]
        [ids], [mask] = made.completions, made.masks
        assert len(mask) == len(ids)
        found = runs(ids, mask)
        expected = [written(answer) for answer in answers]
        if name in ("chatml on a tokenizer without its tokens", "no end of turn at all"):
            expected[-1] += tokenizer.eos_token
        if "sentencepiece" in name or "mistral" in name:  # decoding drops a text's first space
            expected = [e.removeprefix(" ") for e in expected]
        assert [text(tokenizer, part) for part in found] == expected
        assert made.targets() == (sum(map(len, found)),)


def test_every_turn_starts_where_a_sampler_would(family):
    """The ids before a turn spell the prompt that sampling would start from."""
    name, tokenizer, _, system = family
    tokenization = Tokenization(tokenizer, None, None)
    group = conversation(random.Random(3), system)
    made = tokenization.group(group, 0)
    [ids], [mask] = made.completions, made.masks
    messages = [*group.prompt, *group.completions[0]]
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    starts = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int)])) == 1)
    assert len(starts) == len(turns)
    for turn, start in zip(turns, starts, strict=True):
        sampled_from = tokenization.prompt(PromptGroup(tuple(messages[:turn])), 0).prompt
        before = [*made.prompt, *ids[:start]]
        assert spelt(name, tokenizer, before) == spelt(name, tokenizer, sampled_from)


def test_the_whole_is_still_the_rendering_of_the_template(family):
    name, tokenizer, _, system = family
    tokenization = Tokenization(tokenizer, None, None)
    for seed in range(5):
        group = conversation(random.Random(seed), system)
        made = tokenization.group(group, 0)
        messages = [*group.prompt, *group.completions[0]]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        wanted = spelt(name, tokenizer, tokenizer(rendered, add_special_tokens=False)["input_ids"])
        ours = spelt(name, tokenizer, [*made.prompt, *made.completions[0]])
        if not rendered.startswith(tokenizer.bos_token):
            ours = ours.removeprefix(tokenizer.bos_token)
        ours = ours if wanted.startswith(ours) else ours.removesuffix(tokenizer.eos_token)
        assert wanted.startswith(ours)
        left = wanted[len(ours) :]  # a line break, and Phi 3's EOS
        assert not left.replace(tokenizer.eos_token, "").strip()


def made_by(template, *, extra=(), bos="<|im_start|>", eos="<|im_end|>", adds_bos=False):
    return small.make_tokenizer(bos, eos, extra, adds_bos=adds_bos, template=template)


def say(role, content, **more):
    return {"role": role, "content": content, **more}


CHAT = (
    say("user", "the film"),
    say("assistant", "was good"),
    say("user", "and"),
    say("assistant", "bad"),
)


def group(*messages, prompt=1, **fields):
    return PromptGroup(messages[:prompt], (messages[prompt:],), DEMONSTRATION, id="c", **fields)


def counted(tokenizer, made, number=0):
    mask = made.masks[number]
    return [text(tokenizer, part) for part in runs(made.completions[number], mask)]


def test_a_turn_of_weight_0_is_read_only():
    tokenizer = made_by(small.CHATML)
    tokenization = Tokenization(tokenizer, None, None)
    first, last = dict(CHAT[1], weight=0), dict(CHAT[3], weight=0)
    made = tokenization.group(group(CHAT[0], first, CHAT[2], CHAT[3]), 0)
    assert counted(tokenizer, made) == ["bad<|im_end|>"]
    made = tokenization.group(group(*CHAT[:3], last), 0)
    assert counted(tokenizer, made) == ["was good<|im_end|>"]
    assert text(tokenizer, made.completions[0]).endswith("bad<|im_end|>")
    made = tokenization.group(group(CHAT[0], first), 0)  # a single answer too
    assert made.targets() == (0,)
    made = tokenization.group(group(CHAT[0], dict(CHAT[1], weight=1)), 0)
    assert made.masks == ()  # all is a target, as without weights


def test_completions_of_one_group_have_masks_of_their_own():
    tokenizer = made_by(small.CHATML)
    both = PromptGroup(CHAT[:1], (CHAT[1:2], CHAT[1:]), DEMONSTRATION, id="c")
    made = Tokenization(tokenizer, None, None).group(both, 0)
    assert made.masks[0] is None
    assert counted(tokenizer, made, 1) == ["was good<|im_end|>", "bad<|im_end|>"]


def test_what_follows_the_last_answer_is_left_out():
    tokenizer = made_by(small.CHATML)
    tokenization = Tokenization(tokenizer, None, None)
    longer = tokenization.group(group(*CHAT, say("user", "the film")), 0)
    assert (
        longer.completions[0].tolist()
        == tokenization.group(group(*CHAT), 0).completions[0].tolist()
    )


def test_a_completion_without_an_answer_is_refused_by_name():
    tokenization = Tokenization(made_by(small.CHATML), None, None)
    bad = group(*CHAT[:1], CHAT[2], meta={"place": "chats.jsonl, line 7"})
    with pytest.raises(DataError, match=r"'c' \(chats.jsonl, line 7\) has no message of the assis"):
        tokenization.group(bad, 0)


def test_truncation_cuts_the_mask_with_the_ids():
    tokenizer = made_by(small.CHATML)
    whole = Tokenization(tokenizer, None, None).group(group(*CHAT), 0)
    for limit in range(1, len(whole.completions[0]) + 1):
        cut = Tokenization(tokenizer, None, limit).group(group(*CHAT), 0)
        assert cut.completions[0].tolist() == whole.completions[0][:limit].tolist()
        assert cut.masks[0].tolist() == whole.masks[0][:limit].tolist()
        assert cut.truncated == (limit < len(whole.completions[0]),)
    later = group(CHAT[0], dict(CHAT[1], weight=0), *CHAT[2:])
    nothing = Tokenization(tokenizer, None, 2).group(later, 0)
    assert nothing.targets() == (0,)  # what the gate looks at


@pytest.mark.slow  # imports torch
def test_masked_groups_become_targets_of_the_flat_batch():
    tokenizer = made_by(small.CHATML)
    made = Tokenization(tokenizer, None, None).group(group(*CHAT), 0)
    batch = flatten([made])
    assert text(tokenizer, batch.target_ids.tolist()) == "was good<|im_end|>bad<|im_end|>"
    before = batch.input_ids[batch.predictor_index].tolist()
    assert text(tokenizer, before[:1]) == "\n"  # the opening of the answer predicts it


# --- templates that write earlier turns differently -----------------------------------------------

THOUGHT = (CHAT[0], say("assistant", "<think>bad</think>was good"), *CHAT[2:])


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (small.THINKING, THOUGHT),
        (small.MISTRAL, (say("system", "be kind"), *CHAT)),
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_ways_out(template, messages):
    tokenization = Tokenization(made_by(template), None, None)
    prompt = 1 + (messages[0]["role"] == "system")
    rows = group(*messages, prompt=prompt, meta={"place": "a.jsonl, line 2"})
    with pytest.raises(DataError) as error:
        tokenization.group(rows, 0)
    for word in ("line 2", "data.turns=last", "backbone.template=training", "FILE.jinja"):
        assert word in str(error.value)


def test_the_last_turn_of_such_a_template_is_exact():
    tokenizer = made_by(small.THINKING)
    tokenization = Tokenization(tokenizer, None, None)
    made = tokenization.group(group(*CHAT, prompt=3), 0)
    assert text(tokenizer, made.completions[0]) == "<think>\n\n</think>\n\nbad<|im_end|>"
    unweighted = (CHAT[0], dict(CHAT[1], weight=0), *CHAT[2:])
    # The prompt of turn 1 is a prefix of the whole, and turn 1 is read only
    made = tokenization.group(group(*unweighted), 0)
    assert counted(tokenizer, made) == ["<think>\n\n</think>\n\nbad<|im_end|>"]


def test_marks_of_the_template_are_used_where_turns_change():
    tokenizer = made_by(small.MARKED)
    made = Tokenization(tokenizer, None, None).group(group(*THOUGHT), 0)
    # The mark of the line break after the end of turn is not taken.
    assert counted(tokenizer, made) == ["was good<|im_end|>", "bad<|im_end|>"]


def test_marks_that_leave_out_the_end_of_a_turn_are_completed():
    marked = "{{ '<|im_end|>\n' }}{% endgeneration %}"
    assert marked in small.MARKED
    tokenizer = made_by(small.MARKED.replace(marked, "{% endgeneration %}{{ '<|im_end|>\n' }}"))
    made = Tokenization(tokenizer, None, None).group(group(*THOUGHT), 0)
    assert counted(tokenizer, made) == ["was good<|im_end|>", "bad<|im_end|>"]


def test_marks_on_other_roles_are_refused():
    template = small.MARKED.replace(
        "{% for m in messages %}{{ '<|im",
        "{% for m in messages %}{% generation %}{% endgeneration %}{{ '<|im",
    )
    with pytest.raises(DataError, match=r"marks 4 passages.*2 turns"):
        Tokenization(made_by(template), None, None).group(group(*THOUGHT), 0)


# --- tools ----------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "rate", "arguments": '{"film": "x"}'}}
TOOL = {"type": "function", "function": {"name": "rate", "parameters": {}}}
CALLING = (
    say("user", "the film"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    say("tool", "good", tool_call_id="1"),
    say("assistant", "was good"),
)


def test_tools_are_shown_calls_are_targets_results_are_not():
    tokenizer = made_by(small.TOOLS)
    tokenization = Tokenization(tokenizer, None, None)
    made = tokenization.group(group(*CALLING, tools=(TOOL,)), 0)
    assert json.dumps(TOOL) in text(tokenizer, made.prompt)
    # the OpenAI form has its arguments as text; they are not quoted twice
    assert counted(tokenizer, made) == [
        '<call>rate {"film": "x"}</call><|im_end|>',
        "was good<|im_end|>",
    ]
    assert "<result>good</result>" in text(tokenizer, made.completions[0])
    assert tokenization.prompt(group(*CALLING, tools=(TOOL,)), 0).prompt.tolist() == (
        made.prompt.tolist()
    )


def test_groups_with_different_tools_in_one_batch():
    tokenizer = made_by(small.TOOLS)
    tokenization = Tokenization(tokenizer, None, None)
    other = {"type": "function", "function": {"name": "other", "parameters": {}}}
    rows = [
        group(*CALLING, tools=(TOOL,)),
        group(*CHAT),
        group(*CALLING, tools=(other,)),
        group(*CHAT[:2], tools=(TOOL,)),
    ]
    for alone, together in zip(rows, tokenization.groups(rows), strict=True):
        single = tokenization.group(alone, 0)
        assert single.prompt.tolist() == together.prompt.tolist()
        assert single.completions[0].tolist() == together.completions[0].tolist()


def test_a_template_that_wants_arguments_as_text_gets_text():
    concatenating = small.TOOLS.replace(
        "call.function.arguments | tojson", "call.function.arguments"
    )
    tokenizer = made_by(concatenating)
    as_object = {"type": "function", "function": {"name": "rate", "arguments": {"film": "x"}}}
    rows = (CALLING[0], {"role": "assistant", "tool_calls": [as_object]}, *CALLING[2:])
    made = Tokenization(tokenizer, None, None).group(group(*rows), 0)
    assert counted(tokenizer, made)[0] == '<call>rate {"film": "x"}</call><|im_end|>'


def test_a_tokenizer_with_a_template_for_tools_uses_it_for_them():
    tokenizer = made_by(None)
    tokenizer.chat_template = {"default": small.CHATML, "tool_use": small.TOOLS}
    tokenization = Tokenization(tokenizer, None, None)
    with_tools = tokenization.group(group(*CALLING, tools=(TOOL,)), 0)
    assert json.dumps(TOOL) in text(tokenizer, with_tools.prompt)
    assert "Be kind." in text(tokenizer, tokenization.group(group(*CHAT), 0).prompt)
    tokenizer.chat_template = {"rag": small.CHATML}
    with pytest.raises(DataError, match="rag and none called 'default'"):
        Tokenization(tokenizer, None, None)


# --- what else decides the ids --------------------------------------------------------------------


def test_a_template_with_a_clock_makes_the_same_tokens_every_day():
    clock = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + small.CHATML
    tokenizer = made_by(clock)
    made = Tokenization(tokenizer, None, None).group(group(*CHAT), 0)
    assert text(tokenizer, made.prompt).startswith("Today: 26 Jul 2024\n<|im_start|>")


def test_the_fingerprint_follows_the_template_for_tools():
    tokenizer = made_by(small.CHATML)
    plain = Tokenization(tokenizer, 8, 8).fingerprint()
    tokenizer.chat_template = {"default": small.CHATML, "tool_use": small.TOOLS}
    assert Tokenization(tokenizer, 8, 8).fingerprint() != plain


def test_a_refusal_names_the_conversation_among_many():
    tokenization = Tokenization(made_by(small.LLAMA2, bos="<s>", eos="</s>"), None, None)
    bad = PromptGroup(
        (CHAT[0], CHAT[2]), (CHAT[1:2],), DEMONSTRATION, id="b", meta={"place": "x, line 3"}
    )
    with pytest.raises(DataError, match=r"'b' \(x, line 3\): user and assistant must alternate"):
        tokenization.groups([group(*CHAT), bad, group(*CHAT)])
