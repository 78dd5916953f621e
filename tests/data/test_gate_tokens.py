"""The gate on tokens, masks and verdicts that no tokenization of ours would make, and on ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gate_cases import by_code, findings, message, pair, shown, talk, thumb
from mutation import catches

from alignlab.data.gate.gate import Gate
from alignlab.data.gate.limits import Limits, Share
from alignlab.data.gate.verdict_checks import in_circles
from alignlab.data.group import CHOSEN_REJECTED, PromptGroup, Verdict
from alignlab.data.template import Tokenization

TURNS = shown(
    talk("user", "the film"),
    talk("assistant", "was good", "user", "and the acting was", "assistant", "very bad"),
)


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 10_000])
@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_ids_outside_of_the_vocabulary(plain_tokenizer, wrong, side):
    def change(token):
        if token.row != 1:
            return token
        bad = np.array([wrong], dtype=np.int32)
        if side == "prompt":
            return replace(token, prompt=np.append(token.prompt, bad))
        first, *rest = token.completions
        return replace(token, completions=(np.concatenate([bad, first]), *rest))

    rows = [shown(f"the film {i}\n", " good") for i in range(3)]
    found = by_code(findings(rows, plain_tokenizer, change=change))
    assert found == {"out_of_vocabulary": ("error", (1,))}


@catches("alignlab.data.gate.token_checks", "(flat.ids >= self.facts.vocabulary)", "(flat.ids < 0)")
def test_the_model_may_know_fewer_ids_than_the_tokenizer(plain_tokenizer):
    rows = [shown("the film\n", " good")]
    [token] = Tokenization(plain_tokenizer, 9, 9).groups(rows)
    most = max(token.prompt.max(), token.completions[0].max())
    for size, codes in ((most + 1, {}), (most, {"out_of_vocabulary": ("error", (0,))})):
        gate = Gate(plain_tokenizer, vocabulary=int(size))
        gate.see(rows, [token])
        assert by_code(gate.findings()) == codes


def word_tokenizer(unknown="<unk>"):
    """One token per known word; any other word is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "the", "film", "was", "good", "bad"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token=unknown
    )


def test_unknown_tokens():
    tokenizer = word_tokenizer()
    rows = [shown(f"the film {'was ' * i}\n", " good") for i in range(5)]
    assert findings(rows, tokenizer, limits=Limits(length_outlier=None)) == []
    odd = shown("the film was\n", " gut")
    # tokens: 2+i of prompts i = 0…4 are 20, 2 of each answer are 10, 3 + 2 of the odd row: 1 of 35
    [found] = findings([*rows, odd], tokenizer)
    assert (found.code, found.severity, found.rows) == ("unknown_tokens", "warning", (5,))
    assert found.message.startswith("2.86%")
    assert by_code(findings([odd] * 2, tokenizer))["unknown_tokens"] == ("error", (0, 1))  # 1 of 5


def test_an_unknown_token_that_is_eos_says_nothing():
    """GPT-2's tokenizer calls <|endoftext|> its unknown token: every end would count."""
    rows = [shown("the film\n", " good")]
    assert findings(rows, word_tokenizer(unknown="</s>")) == []


def test_bos_after_an_empty_prompt_of_a_chunk(plain_tokenizer):
    """A prompt of no tokens at all lacks BOS, and its neighbours keep theirs."""
    rows = [shown(f"the film {i}\n", " good") for i in range(3)]
    none = np.zeros(0, np.int32)
    found = by_code(
        findings(
            rows, plain_tokenizer, change=lambda t: replace(t, prompt=none) if t.row == 2 else t
        )
    )
    assert found == {"bos_missing": ("error", (2,))}


def test_a_policy_may_be_cut_off(plain_tokenizer):
    rows = [shown("the film\n", " good" * 40)]
    assert "completion_truncated" in by_code(findings(rows, plain_tokenizer, lengths=(9, 9)))
    found = by_code(findings(rows, plain_tokenizer, lengths=(9, 9), sampled=True))
    assert "completion_truncated" not in found


def test_share_of_tokens_that_are_cut(plain_tokenizer):
    # the film: BOS the film ⏎ = 4 tokens; 9 × " good" + EOS = 10, of which 6 are kept
    rows = [shown("the film\n", " good" * 9)]
    [lost] = [f for f in findings(rows, plain_tokenizer, lengths=(9, 6)) if "tokens" in f.code]
    assert lost.message.startswith(f"{4 / 14:.1%} of all tokens")


# -- masks -----------------------------------------------------------------------------------------


def with_masks(*masks):
    def change(token):
        made = tuple(None if m is None else np.array(m, dtype=bool) for m in masks)
        return replace(token, masks=made)

    return change


def test_our_masks_pass(chatml_tokenizer, llama3_tokenizer, gemma_tokenizer):
    for tokenizer in (chatml_tokenizer, llama3_tokenizer, gemma_tokenizer):
        assert findings([TURNS], tokenizer) == []
        assert findings([TURNS], tokenizer, need="demonstration", size=1) == []


def test_a_turn_without_weight_is_no_target(chatml_tokenizer):
    answer = (
        message("assistant", "was good", weight=0),
        message("user", "and the acting was"),
        message("assistant", "very bad", weight=1),
    )
    assert findings([shown(TURNS.prompt, answer)], chatml_tokenizer) == []


@catches("alignlab.data.gate.mask_checks", "unmasked.add(start, [row])", "unmasked.add(start, [])")
@catches("alignlab.data.gate.mask_checks", "len(spans) < counted and", "False and")
def test_a_user_in_the_loss(chatml_tokenizer):
    size = len(Tokenization(chatml_tokenizer, 99, 99).group(TURNS, 0).completions[0])
    no_mask = findings([TURNS], chatml_tokenizer, change=with_masks(None))
    assert by_code(no_mask) == {"user_turn_in_loss": ("error", (0,))}
    all_of_it = findings([TURNS], chatml_tokenizer, change=with_masks([True] * size))
    assert set(by_code(all_of_it)) == {"mask_spans", "target_outside_turn"}
    nothing = findings([TURNS], chatml_tokenizer, change=with_masks([False] * size))
    assert by_code(nothing)["no_target"] == ("error", (0,))


@catches("alignlab.data.gate.mask_checks", "not cut and not mask[-1]", "cut and not mask[-1]")
def test_an_end_that_is_no_target(chatml_tokenizer):
    [mask] = Tokenization(chatml_tokenizer, 99, 99).group(TURNS, 0).masks
    endless = np.append(mask[:-1], False)
    found = by_code(findings([TURNS], chatml_tokenizer, change=with_masks(endless)))
    assert found == {"end_not_target": ("error", (0,))}


@catches("alignlab.data.gate.mask_checks", "foreign |= _holds", "foreign |= False and _holds")
def test_a_mask_that_lies_beside_the_turns(chatml_tokenizer):
    """As many spans as turns, but the second one is what the user wrote."""
    [mask] = Tokenization(chatml_tokenizer, 99, 99).group(TURNS, 0).masks
    first, *_ = np.flatnonzero(np.diff(mask.astype(int)))  # the last target of the first turn
    wrong = np.arange(len(mask)) <= first
    wrong[first + 2 : np.flatnonzero(mask & (np.arange(len(mask)) > first))[0]] = True
    found = by_code(findings([TURNS], chatml_tokenizer, change=with_masks(wrong)))
    assert set(found) == {"target_outside_turn", "end_not_target"}


def test_a_cut_dialogue_may_lack_its_last_turns(chatml_tokenizer):
    found = by_code(findings([TURNS], chatml_tokenizer, lengths=(99, 6)))
    assert "mask_spans" not in found
    assert "completion_truncated" in found


# -- verdicts --------------------------------------------------------------------------------------


@catches(
    "alignlab.data.gate.verdict_checks",
    "mixed(prompt, better, worse), mixed(prompt, worse, better)",
    "mixed(prompt, better, worse), mixed(better, worse, prompt)",
)
def test_reversed_pairs(plain_tokenizer):
    rows = [
        pair("the film\n", " good", " bad"),
        pair("the film\n", " good", " very bad"),
        pair("the movie\n", " bad", " good"),  # another prompt
        pair("the film\n", " bad", " good"),
    ]
    assert by_code(findings(rows, plain_tokenizer)) == {"contradiction": ("warning", (0, 3))}
    strict = Limits(contradiction=Share(warn=0.0, error=0.5))
    assert by_code(findings(rows, plain_tokenizer, limits=strict))["contradiction"][0] == "error"
    assert findings(rows[:3], plain_tokenizer) == []


def test_rankings_and_scores_contradict_too(plain_tokenizer):
    texts = (" good", " bad", " very bad")
    rows = [
        PromptGroup("the film\n", texts, Verdict("ranking", ranks=(0, 1, 2))),
        PromptGroup("the film\n", texts, Verdict("scores", scores=(0.5, 0.7, 0.1))),
        PromptGroup("the film\n", texts[:2], Verdict("scores", scores=(0.5, 0.5))),  # a tie
    ]
    # good > bad in the first row, bad > good in the second
    assert by_code(findings(rows, plain_tokenizer)) == {"contradiction": ("warning", (0, 1))}


def test_thumbs_both_ways(plain_tokenizer):
    rows = [
        thumb("the film\n", " good", True),
        thumb("the film\n", " bad", False),
        thumb("the movie\n", " good", False),
        thumb("the film\n", " good", False),
        thumb("the film\n", " good", True),
    ]
    found = by_code(findings(rows, plain_tokenizer))
    assert found["contradiction"] == ("warning", (0, 3, 4))
    assert found["repeated_row"] == ("warning", (4,))  # the third says something else


def test_circles(plain_tokenizer):
    rows = [
        pair("the film\n", " a", " b"),
        pair("the film\n", " b", " c"),
        pair("the film\n", " c", " d"),  # hangs on the circle, is not on it
        pair("the film\n", " c", " a"),
        pair("the movie\n", " b", " a"),
    ]
    assert by_code(findings(rows, plain_tokenizer)) == {"preference_cycle": ("warning", (0, 1, 3))}
    assert findings([*rows[:3], rows[4]], plain_tokenizer) == []


def test_in_circles_by_hand():
    # 1→2→3→1 is a circle, 3→4→5 leads out of it, 6→1 into it, 7→8 is apart
    source = np.array([1, 2, 3, 3, 4, 6, 7])
    target = np.array([2, 3, 1, 4, 5, 1, 8])
    assert in_circles(source, target).tolist() == [True, True, True, False, False, False, False]
    assert in_circles(source[3:], target[3:]).tolist() == [False] * 4
    assert in_circles(source[:0], target[:0]).tolist() == []


def test_label_balance(plain_tokenizer):
    rows = [thumb(f"the film {i}\n", " good", i != 3) for i in range(20)]
    [found] = findings(rows, plain_tokenizer, need="thumbs")
    assert (found.code, found.severity, found.rows) == ("label_imbalance", "warning", (3,))
    assert found.message == "95.0% of the 20 labels are True"
    some = [thumb(f"the film {i}\n", " good", i % 5 > 0) for i in range(20)]
    assert findings(some, plain_tokenizer, need="thumbs") == []


@catches(
    "alignlab.data.gate.content_checks", "all(texts[i] != texts[j]", "all(texts[i] == texts[j]"
)
def test_same_only_after_truncation(plain_tokenizer):
    cut = [pair(f"{i} film\n", " good good a", " good good b") for i in range(2)]
    rows = [*cut, pair("a\n", " bad", " bad")]
    [found] = [
        f for f in findings(rows, plain_tokenizer, lengths=(9, 2)) if f.code == "chosen_is_rejected"
    ]
    assert "(2 only after truncation)" in found.message
    assert (found.severity, found.count) == ("error", 3)


def test_a_tie_is_no_wrong_pair(plain_tokenizer):
    tie = PromptGroup("a\n", (" bad", " bad"), Verdict("scores", scores=(1.0, 1.0)))
    assert findings([tie, pair("b\n", " a", " b")], plain_tokenizer) == []
    assert PromptGroup("a", (), CHOSEN_REJECTED.keep([])).verdict.kind == "none"


# -- length ----------------------------------------------------------------------------------------


def test_length_outliers_name_the_longest_rows(plain_tokenizer):
    rows = [shown("the film\n", " good") for _ in range(30)]
    rows[4] = shown("the film\n", " good" * 200)
    rows[9] = shown("the film\n", " good" * 300)
    # a row is BOS the film ⏎ good EOS = 6 tokens; 20 × 6 = 120
    found = {f.code: f for f in findings(rows, plain_tokenizer, lengths=(99, 10))}
    assert found["length_outlier"].rows == (9, 4)  # before truncation, the longest first
    assert found["length_outlier"].count == 2
    assert "305" in found["length_outlier"].message
