from __future__ import annotations

import numpy as np
import pytest

from alignlab.data.group import CHOSEN_REJECTED, PromptGroup
from alignlab.data.template import Tokenization
from alignlab.errors import DataError

USER = {"role": "user", "content": "the film"}
GOOD = ({"role": "assistant", "content": "was good"},)
BAD = ({"role": "assistant", "content": "was bad"},)
CHAT = PromptGroup((USER,), (GOOD, BAD), CHOSEN_REJECTED, id="c")


def raw(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_plain_text_by_hand(plain_tokenizer):
    made = Tokenization(plain_tokenizer, 32, 32).group(
        PromptGroup("the film", (" was good", " was bad"), CHOSEN_REJECTED, id="x"), row=3
    )
    assert raw(plain_tokenizer, made.prompt) == "<|bos|>the film"
    assert [raw(plain_tokenizer, c) for c in made.completions] == [
        " was good<|eos|>",
        " was bad<|eos|>",
    ]
    assert made.truncated == (False, False)
    assert (made.row, made.id, made.prompt.dtype) == (3, "x", np.int32)


def test_a_tokenizer_without_bos_gets_none_but_an_empty_prompt_has_a_start(chatml_tokenizer):
    made = Tokenization(chatml_tokenizer, 32, 32)
    group = made.group(PromptGroup("the film", (" was good",)), 0)
    assert raw(chatml_tokenizer, group.prompt) == "the film"
    empty = made.group(PromptGroup("", ("the film",)), 0)
    assert raw(chatml_tokenizer, empty.prompt) == "<|im_start|>"
    assert raw(chatml_tokenizer, empty.completions[0]) == "the film<|im_end|>"


def test_special_tokens_written_by_the_user_are_not_doubled(plain_tokenizer):
    made = Tokenization(plain_tokenizer, 32, 32)
    group = made.group(PromptGroup("<|bos|>the film", (" was good<|eos|>",)), 0)
    assert raw(plain_tokenizer, group.prompt) == "<|bos|>the film"
    assert raw(plain_tokenizer, group.completions[0]) == " was good<|eos|>"


def test_the_prompt_is_the_same_ids_with_and_without_completions(plain_tokenizer):
    made = Tokenization(plain_tokenizer, 32, 32)
    # "the fi" + "lm": the tokenizer would merge across the seam ("film" is one token)
    group = PromptGroup("the fi", ("lm", " was"))
    full, bare = made.group(group, 5), made.prompt(group, 5)
    assert full.prompt.tolist() == bare.prompt.tolist()
    assert bare.completions == ()
    alone = plain_tokenizer("the film", add_special_tokens=False)["input_ids"]
    assert alone[: len(bare.prompt) - 1] != bare.prompt[1:].tolist()  # there is a seam
    for completion, text in zip(full.completions, ("the film", "the fi was"), strict=True):
        assert made.decode([*full.prompt, *completion]) == text


def test_completions_are_tokenised_in_the_context_of_the_prompt(tokenizer_factory):
    tokenizer = tokenizer_factory("<s>", "</s>", adds_bos=True, prefix_space=True)
    # on its own "was" would become " was" (prefix space); after "the film " it must not
    made = Tokenization(tokenizer, 32, 32)
    group = made.group(PromptGroup("the film\n", ("was good",)), 0)
    assert made.decode([*group.prompt, *group.completions[0]]).strip() == "the film\nwas good"
    whole = tokenizer("the film\nwas good")["input_ids"]
    assert [*group.prompt, *group.completions[0][:-1]] == whole


def test_truncation_is_explicit(plain_tokenizer):
    made = Tokenization(plain_tokenizer, 3, 2)
    group = made.group(PromptGroup("the film was good", (" and good good", " bad")), 0)
    assert raw(plain_tokenizer, group.prompt) == "<|bos|> was good"  # keeps BOS and its end
    assert group.meta["prompt_cut"] == 2
    assert group.truncated == (True, False)
    assert raw(plain_tokenizer, group.completions[0]) == " and good"  # no EOS
    assert raw(plain_tokenizer, group.completions[1]).endswith("<|eos|>")
    assert [len(c) for c in group.completions] == [2, 2]


@pytest.mark.parametrize(
    ("name", "prompt", "end"),
    [
        (
            "chatml_tokenizer",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nthe film<|im_end|>\n"
            "<|im_start|>assistant\n",
            "<|im_end|>",
        ),
        (
            "llama3_tokenizer",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nthe film<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
        (
            "gemma_tokenizer",
            "<bos><start_of_turn>user\nthe film<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
        ),
    ],
)
def test_chat_templates(request, name, prompt, end):
    tokenizer = request.getfixturevalue(name)
    made = Tokenization(tokenizer, 200, 64)
    group = made.group(CHAT, 0)
    assert raw(tokenizer, group.prompt) == prompt
    assert [raw(tokenizer, c) for c in group.completions] == [f"was good{end}", f"was bad{end}"]
    assert made.stop_ids[0] == tokenizer.convert_tokens_to_ids(end)
    assert made.prompt(CHAT, 0).prompt.tolist() == group.prompt.tolist()
    if tokenizer.bos_token != "<|im_start|>":
        assert group.prompt.tolist().count(tokenizer.bos_token_id) == 1


def test_an_answer_that_merges_with_the_template_keeps_the_prompt(chatml_tokenizer):
    # ChatML's generation prompt ends in "\n"; an answer that starts with "\n" makes "\n\n"
    made = Tokenization(chatml_tokenizer, 200, 64)
    answer = ({"role": "assistant", "content": "\nwas good"},)
    group = made.group(PromptGroup((USER,), (answer, GOOD)), 0)
    assert group.prompt.tolist() == made.group(CHAT, 0).prompt.tolist()
    assert raw(chatml_tokenizer, group.completions[0]) == "\nwas good<|im_end|>"


def test_answers_over_several_turns_end_once_at_the_end(llama3_tokenizer):
    made = Tokenization(llama3_tokenizer, 200, 64)
    turns = (*GOOD, {"role": "user", "content": "and"}, *BAD)
    ids = made.group(PromptGroup((USER,), (turns,)), 0).completions[0]
    assert raw(llama3_tokenizer, ids).endswith("was bad<|eot_id|>")
    assert not raw(llama3_tokenizer, ids).endswith("<|eot_id|><|eot_id|>")


def test_a_template_that_writes_no_bos_gets_the_one_the_tokenizer_adds(
    plain_tokenizer, chatml_tokenizer
):
    made = Tokenization(plain_tokenizer, 200, 64, template=chatml_tokenizer.chat_template)
    group = made.group(CHAT, 0)
    assert group.prompt.tolist().count(plain_tokenizer.bos_token_id) == 1
    assert raw(plain_tokenizer, group.prompt).startswith("<|bos|><|im_start|>")
    assert group.completions[0].tolist().count(plain_tokenizer.eos_token_id) == 1
    assert group.completions[0][-1] == plain_tokenizer.eos_token_id


def test_messages_without_a_template_name_the_ways_out(plain_tokenizer):
    with pytest.raises(DataError, match=r"no chat template.*Ways out"):
        Tokenization(plain_tokenizer, 32, 32).group(CHAT, 0)


def test_a_template_that_refuses_a_role_is_a_data_error(gemma_tokenizer):
    system = {"role": "system", "content": "be kind"}
    with pytest.raises(DataError, match="System role not supported"):
        Tokenization(gemma_tokenizer, 99, 32).group(PromptGroup((system, USER)), 0)


def test_a_template_whose_prompt_depends_on_the_answer_is_refused(plain_tokenizer):
    unstable = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="differently when an answer follows"):
        Tokenization(plain_tokenizer, 99, 32, template=unstable).group(CHAT, 0)


def test_mixed_text_and_messages_are_refused(plain_tokenizer):
    with pytest.raises(DataError, match="both as text or both as messages"):
        Tokenization(plain_tokenizer, 99, 32).group(PromptGroup("p", (GOOD,)), 0)


def test_batched_equals_one_by_one(llama3_tokenizer):
    made = Tokenization(llama3_tokenizer, 40, 3)
    groups = [CHAT, PromptGroup("the film", (" was good", " and")), PromptGroup("the"), CHAT]
    for batched, (row, group) in zip(made.groups(groups), enumerate(groups), strict=True):
        single = made.group(group, row)
        assert batched.row == row
        assert batched.prompt.tolist() == single.prompt.tolist()
        assert [c.tolist() for c in batched.completions] == [c.tolist() for c in single.completions]


def test_fingerprint_follows_what_decides_the_ids(plain_tokenizer, gemma_tokenizer):
    base = Tokenization(plain_tokenizer, 32, 32).fingerprint()
    assert base == Tokenization(plain_tokenizer, 32, 32).fingerprint()
    others = [
        Tokenization(plain_tokenizer, 31, 32),
        Tokenization(plain_tokenizer, 32, 31),
        Tokenization(plain_tokenizer, 32, 32, template="x"),
        Tokenization(gemma_tokenizer, 32, 32),
    ]
    assert len({base, *(o.fingerprint() for o in others)}) == 5


def test_decode_drops_special_tokens_and_keeps_spaces(plain_tokenizer):
    made = Tokenization(plain_tokenizer, 32, 32)
    group = made.group(PromptGroup("good . bad", (" ,",)), 0)
    assert made.decode(group.prompt) == "good . bad"
    assert made.decode(group.completions[0]) == " ,"


@pytest.mark.parametrize("name", ["chatml_tokenizer", "llama3_tokenizer", "gemma_tokenizer"])
def test_chat_ids_are_those_of_the_tokenizer_itself(request, name):
    tokenizer = request.getfixturevalue(name)
    tokenization = Tokenization(tokenizer, 200, 64)
    made = tokenization.group(CHAT, 0)
    for answer, ids in zip((GOOD, BAD), made.completions, strict=True):
        whole = tokenizer.apply_chat_template([USER, *answer], tokenize=True, return_dict=False)
        ours = [*made.prompt, *ids]
        assert ours == whole[: len(ours)]
        assert tokenization.decode(whole[len(ours) :]).strip() == ""  # a line break
