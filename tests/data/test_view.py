"""The token view: each token once, with its own text, and what a loss makes of it."""

from __future__ import annotations

import pytest
import small_tokenizers as small

from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup, Verdict
from alignlab.data.template import Tokenization
from alignlab.data.view import Viewer, label, quoted, visible

USER = {"role": "user", "content": "the film"}
GOOD = {"role": "assistant", "content": "was good"}
BAD = {"role": "assistant", "content": "was bad"}


def kinds(pieces):
    """Consecutive pieces of one kind together: [(kind, text), …]."""
    runs = []
    for piece in pieces:
        if runs and runs[-1][0] == piece.kind:
            runs[-1][1].append(piece.text)
        else:
            runs.append((piece.kind, [piece.text]))
    return [(kind, "".join(texts)) for kind, texts in runs]


def ids(pieces):
    return [token for piece in pieces for token in piece.ids]


def test_a_pair_of_plain_texts(plain_tokenizer):
    tokenization = Tokenization(plain_tokenizer, 32, 32)
    group = PromptGroup(
        "the film", (" was good", " bad"), CHOSEN_REJECTED, "x", {"place": "a.jsonl, line 3"}
    )
    view = Viewer(tokenization).view(group, 7)
    assert (view.row, view.id, view.place, view.verdict) == (7, "x", "a.jsonl, line 3", "ranking")
    assert kinds(view.prompt) == [("prompt", "<|bos|>the film")]
    first, second = view.completions
    assert kinds(first.pieces) == [("target", " was good"), ("end", "<|eos|>")]
    assert (first.label, second.label) == ("rank 0 (best)", "rank 1")
    made = tokenization.group(group, 7)
    assert ids(view.prompt) == made.prompt.tolist()
    assert ids(first.pieces) == made.completions[0].tolist()
    assert (first.tokens, first.targets, first.cut) == (3, 3, 0)
    assert [piece.special for piece in first.pieces] == [False, False, True]


def test_what_is_truncated_is_shown_as_cut(plain_tokenizer):
    group = PromptGroup("the film was good", (" and good good",), DEMONSTRATION)
    view = Viewer(Tokenization(plain_tokenizer, 3, 2)).view(group, 0)
    # <|bos|> stays, "the film" goes, the last two tokens stay
    assert kinds(view.prompt) == [
        ("prompt", "<|bos|>"),
        ("cut", "the film"),
        ("prompt", " was good"),
    ]
    assert (view.prompt_tokens, view.prompt_cut) == (3, 2)
    [completion] = view.completions
    assert kinds(completion.pieces) == [("target", " and good"), ("cut", " good<|eos|>")]
    assert (completion.tokens, completion.targets, completion.cut) == (2, 2, 2)


def test_a_prompt_without_bos_is_cut_from_its_start(chatml_tokenizer):
    view = Viewer(Tokenization(chatml_tokenizer, 2, 9)).view(PromptGroup("the film was"), 0)
    assert kinds(view.prompt) == [("cut", "the"), ("prompt", " film was")]


def test_turns_are_masked_and_their_ends_are_ends(chatml_tokenizer):
    turns = (GOOD, {"role": "user", "content": "and"}, BAD)
    group = PromptGroup((USER,), (turns,), DEMONSTRATION)
    tokenization = Tokenization(chatml_tokenizer, 200, 64)
    [completion] = Viewer(tokenization).view(group, 0).completions
    assert kinds(completion.pieces) == [
        ("target", "was good"),
        ("end", "<|im_end|>"),
        ("masked", "\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"),
        ("target", "was bad"),
        ("end", "<|im_end|>"),
    ]
    made = tokenization.group(group, 0)
    counted = sum(len(p.ids) for p in completion.pieces if p.kind in ("target", "end"))
    assert completion.targets == counted == made.targets()[0]


def test_a_completion_with_nothing_to_learn_from(chatml_tokenizer):
    group = PromptGroup((USER,), (({**GOOD, "weight": 0},),), DEMONSTRATION)
    [completion] = Viewer(Tokenization(chatml_tokenizer, 200, 64)).view(group, 0).completions
    assert completion.targets == 0
    assert {piece.kind for piece in completion.pieces} == {"masked"}


@pytest.mark.parametrize("text", ["漢字 and 😀é", "the  film\n\n was\t", "<|eos|", " ", "\x1b[31m"])
def test_pieces_spell_the_text_and_lose_no_token(plain_tokenizer, text):
    tokens = plain_tokenizer(text, add_special_tokens=False)["input_ids"]
    viewer = Viewer(Tokenization(plain_tokenizer, 32, 32))
    pieces = viewer.pieces(tokens, ["target"] * len(tokens))
    assert "".join(piece.text for piece in pieces) == text
    assert ids(pieces) == tokens


def test_bytes_of_one_character_are_one_piece(plain_tokenizer):
    tokens = plain_tokenizer("a😀", add_special_tokens=False)["input_ids"]
    viewer = Viewer(Tokenization(plain_tokenizer, 32, 32))
    pieces = viewer.pieces(tokens, ["target"] * len(tokens))
    assert [piece.text for piece in pieces] == ["a", "😀"]
    assert len(pieces[1].ids) == 4
    # a character that truncation cuts through stays two kinds
    kinds_of = ["target"] * 3 + ["cut"] * 2
    assert {p.kind for p in viewer.pieces(tokens, kinds_of)} == {"target", "cut"}
    assert ids(viewer.pieces(tokens, kinds_of)) == tokens


def test_sentencepiece_keeps_its_spaces():
    tokenizer = small.make_metaspace("<s>", "</s>", template=None)
    tokens = tokenizer("the film was", add_special_tokens=False)["input_ids"]
    viewer = Viewer(Tokenization(tokenizer, 32, 32))
    pieces = viewer.pieces(tokens, ["target"] * len(tokens))
    assert "".join(piece.text for piece in pieces) == " the film was"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (DEMONSTRATION, ""),
        (Verdict("scores", scores=(0.5, 2.0)), "score 0.5"),
        (Verdict("thumbs", thumbs=(True, False)), "thumb up"),
        (Verdict("ranking", ranks=(1, 0)), "rank 1"),
    ],
)
def test_labels(verdict, said):
    assert label(verdict, 0) == said


def test_nothing_is_invisible():
    assert "".join(map(visible, "a\n\t\x1b\u202e\xa0é😀")) == "a↵⇥⟨U+001B⟩⟨U+202E⟩⟨U+00A0⟩é😀"
    assert quoted('a"\\\n\x1b\u202e😀') == '"a\\"\\\\\\n\\x1b\\u{202e}😀"'
