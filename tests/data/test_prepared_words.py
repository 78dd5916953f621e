"""Ids made word by word are the tokenizer's own, and only where it never joins words."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from alignlab.data import word_ids
from alignlab.data.word_ids import WordIds

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
WORDS = (
    "don't the film, film! 12 1234 naïve 中文 über _x_ e.g. :-) \u0301 A'S x\u200by ½ \u1e9b\u0323"
)


def tokenizer_of(pre_tokenizer, normalizer=None, added=(), model=None):
    core = Tokenizer(model or models.BPE())
    core.normalizer, core.decoder = normalizer, decoders.ByteLevel()
    core.pre_tokenizer = pre_tokenizer
    text = "the film was good . the the and then , don't 12 12 \n\n x"
    if model is None:
        trainer = trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<|eos|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator([text] * 4, trainer)
    core.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")


FAMILIES = {
    "gpt2": lambda: tokenizer_of(GPT2),
    "smollm": lambda: tokenizer_of(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
    ),
    "llama3": lambda: tokenizer_of(pre_tokenizers.Sequence([SPLIT, BYTES])),
    "qwen": lambda: tokenizer_of(pre_tokenizers.Sequence([SPLIT, BYTES]), normalizers.NFC()),
    "spaces": lambda: tokenizer_of(GPT2, added=[AddedToken("  ", normalized=False)]),
    "marks": lambda: tokenizer_of(GPT2, added=[AddedToken("<|im_start|>", special=True)]),
}
ODD = " \n\t\u00a0\u200b\u1680\u2028\u3000\x1c\x85ab'sé中\u0301" + "1٣.!?<|>-_/😀\u200d\ufeff\u180e"
texts = st.text(st.sampled_from(ODD), max_size=30) | st.lists(
    st.sampled_from([*WORDS.split(" "), "", "\n", "<|im_start|>", "<|eos|>", "then", "  "]),
    max_size=12,
).map(" ".join)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    tokenizer = FAMILIES[request.param]()
    words = WordIds(tokenizer)
    assert words.cut is not None
    return tokenizer, words


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=4))
def test_ids_are_the_tokenizers_own(family, given_texts):
    tokenizer, words = family
    many = [*given_texts, *map(str, range(word_ids._FEW))]
    assert words(many) == tokenizer(many, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, max_size=3)), min_size=1, max_size=4))
def test_a_head_is_read_once_for_all_its_tails(family, pairs):
    tokenizer, words = family
    many = [*pairs, *((f"the {n}", [" film", "s"]) for n in range(word_ids._FEW))]
    heads, wholes = words.continued([h for h, _ in many], [t for _, t in many])
    assert [ids.tolist() for ids in heads] == tokenizer(
        [h for h, _ in many], add_special_tokens=False
    )["input_ids"]
    together = [head + tail for head, tails in many for tail in tails]
    found = [ids.tolist() for ids in wholes]
    assert found == tokenizer(together, add_special_tokens=False)["input_ids"]


plain_words = st.from_regex(r"[A-Za-z]?[a-z]{1,9}[.,!?;:)\"]{0,3}", fullmatch=True)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(plain_words, min_size=word_ids._FEW, max_size=40))
def test_letters_and_the_signs_behind_them_are_asked_of_the_model(family, given_words):
    tokenizer, _ = family
    words = WordIds(tokenizer)
    assert words.plain
    many = [f"a {word}" for word in given_words]
    assert words(many) == tokenizer(many, add_special_tokens=False)["input_ids"]
    assert {f" {w.rstrip(word_ids._SIGNS)}" for w in given_words} <= set(words._known)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: tokenizer_of(GPT2, added=["goods"]),  # letters that are no piece of text
        lambda: tokenizer_of(GPT2, added=[AddedToken("!?", normalized=False)]),
        lambda: tokenizer_of(
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(r"[A-Z](?=[a-z])"), "isolated"), BYTES]
            )
        ),
        lambda: tokenizer_of(  # a full stop belongs to the word
            pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r" ?\S+"), "isolated"), BYTES])
        ),
    ],
)
def test_where_letters_are_no_piece_of_their_own_whole_words_are_asked_for(make):
    tokenizer = make()
    words = WordIds(tokenizer)
    assert words.cut is None or not words.plain
    many = [f"the Goods, are very {word}" for word in ("goods!?", "Bad.", "XYz", "aB,c") * 9]
    assert words(many) == tokenizer(many, add_special_tokens=False)["input_ids"]


def test_the_words_of_a_text_are_the_text():
    for text in ("", " ", "a", " a  b c \n d", "a\n b", "x  ", "  x", WORDS):
        assert "".join(word_ids._AT_SPACES.findall(text)) == text
    assert word_ids._AT_SPACES.findall("one two  three\n four, five ") == [
        "one",
        " two  three\n four,",
        " five ",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tokenizer_of(None),  # merges anything
        lambda: tokenizer_of(
            pre_tokenizers.Metaspace(), model=models.Unigram([("<|eos|>", 0.0)], 0)
        ),
        lambda: tokenizer_of(
            pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), BYTES])
        ),
        lambda: tokenizer_of(BYTES),  # bytes of the whole text as one word
        lambda: tokenizer_of(GPT2, normalizers.Sequence([normalizers.Strip()])),
        lambda: tokenizer_of(GPT2, added=[AddedToken("<m>", lstrip=True)]),
        lambda: tokenizer_of(GPT2, added=["and then"]),
        lambda: tokenizer_of(GPT2, added=[AddedToken(" ", normalized=False)]),
    ],
)
def test_a_tokenizer_that_may_join_words_is_asked_for_whole_texts(make):
    tokenizer = make()
    words = WordIds(tokenizer)
    assert words.cut is None
    many = [f"x {n}  <m> and then" for n in range(word_ids._FEW + 1)]
    assert words(many) == tokenizer(many, add_special_tokens=False)["input_ids"]
    assert not words._known


def test_memory_is_bounded_and_long_words_are_not_kept(monkeypatch):
    tokenizer = FAMILIES["gpt2"]()
    words = WordIds(tokenizer)
    monkeypatch.setattr(word_ids, "_KNOWN", 150)
    long = "y" * (word_ids._LONG + 1)
    for start in range(0, 400, 100):
        many = [f"w{n} and {long}" for n in range(start, start + 100)]
        assert words(many) == tokenizer(many, add_special_tokens=False)["input_ids"]
        assert len(words._known) <= 150
        assert f" {long}" not in words._known


def test_earlier_padding_and_truncation_do_not_stay():
    tokenizer = FAMILIES["gpt2"]()
    many = [f"the film {n} was good" for n in range(100)]
    expected = tokenizer(many, add_special_tokens=False)["input_ids"]
    tokenizer.pad_token = "<|eos|>"
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert WordIds(tokenizer)(many) == expected


def test_another_process_starts_without_words():
    words = WordIds(FAMILIES["gpt2"]())
    many = [f"the film {n}" for n in range(100)]
    expected = words(many)
    copy = pickle.loads(pickle.dumps(words))
    assert not copy._known
    assert copy(many) == expected


def test_line_breaks_are_cuts_where_the_tokenizer_allows_it():
    def pattern(family: str):
        return WordIds(FAMILIES[family]()).cut.__self__

    assert pattern("gpt2") is word_ids._AT_LINES
    assert pattern("llama3") is word_ids._AFTER_LETTERS  # ".\\n" is one piece there
    added = AddedToken("end\n", normalized=False)
    assert WordIds(tokenizer_of(GPT2, added=[added])).cut.__self__ is word_ids._AT_SPACES
    text = "a b.\n\nHuman: c\n d  e\n"
    assert word_ids._AT_LINES.findall(text) == ["a", " b.", "\n\nHuman:", " c", "\n d  e", "\n"]
    assert word_ids._AFTER_LETTERS.findall(text) == ["a", " b.\n\nHuman:", " c", "\n d  e", "\n"]
