from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignlab.data.gate.gate import CHECKS, check, require
from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup, Verdict
from alignlab.data.template import Tokenization
from alignlab.errors import DataError

GOOD = PromptGroup("the film", (" was good", " was bad"), CHOSEN_REJECTED, id="g")
OTHER = PromptGroup("the acting", (" was good", " was very bad"), CHOSEN_REJECTED, id="o")


def codes(findings):
    return {finding.code: finding.severity for finding in findings}


def gate(groups, tokenizer, *, limits=(64, 64), change=None, **options):
    tokens = Tokenization(tokenizer, *limits).groups(groups)
    if change:
        tokens = [change(token) for token in tokens]
    return check(groups, tokens, tokenizer, **options)


def ids(*values):
    return np.array(values, dtype=np.int32)


def test_clean_data_have_no_findings(plain_tokenizer, chatml_tokenizer, llama3_tokenizer):
    assert gate([GOOD, OTHER], plain_tokenizer, need="pairs", other={"test": []}) == []
    chat = PromptGroup(
        ({"role": "user", "content": "the film"},),
        (({"role": "assistant", "content": "was good"},), ({"role": "assistant", "content": "b"},)),
        CHOSEN_REJECTED,
    )
    for tokenizer in (chatml_tokenizer, llama3_tokenizer):
        assert gate([chat], tokenizer, need="pairs", limits=(200, 64)) == []


def test_bos(plain_tokenizer):
    bos = plain_tokenizer.bos_token_id
    twice = gate([GOOD], plain_tokenizer, change=lambda t: replace(t, prompt=ids(bos, *t.prompt)))
    assert codes(twice)["bos_twice"] == "error"
    none = gate([GOOD], plain_tokenizer, change=lambda t: replace(t, prompt=t.prompt[1:]))
    assert codes(none) == {"bos_missing": "error"}
    inside = gate(
        [GOOD], plain_tokenizer, change=lambda t: replace(t, prompt=ids(*t.prompt, bos, 5))
    )
    assert codes(inside) == {"bos_inside": "warning"}


def test_eos(plain_tokenizer):
    eos = plain_tokenizer.eos_token_id

    def edit(function):
        return lambda t: replace(t, completions=tuple(map(function, t.completions)))

    missing = gate([GOOD], plain_tokenizer, change=edit(lambda c: c[:-1]))
    assert codes(missing) == {"eos_missing": "error"}
    twice = gate([GOOD], plain_tokenizer, change=edit(lambda c: ids(*c, eos)))
    assert codes(twice) == {"eos_twice": "error"}
    inside = gate([GOOD], plain_tokenizer, change=edit(lambda c: ids(eos, *c)))
    assert codes(inside) == {"eos_twice": "error"}


def test_empty_and_truncated(plain_tokenizer):
    blank = PromptGroup("the film", ("", " was bad"), CHOSEN_REJECTED)
    assert codes(gate([blank], plain_tokenizer)) == {"empty_completion": "warning"}
    gone = gate(
        [GOOD], plain_tokenizer, change=lambda t: replace(t, completions=(ids(), t.completions[1]))
    )
    assert codes(gone) == {"no_completion_tokens": "error"}
    found = gate([GOOD, OTHER], plain_tokenizer, limits=(2, 3))
    cut = {f.code: f for f in found}
    assert cut["prompt_truncated"].count == 2
    assert cut["completion_truncated"].rows == (1,)  # " was very bad" + EOS is 4 tokens
    assert "25.0%" in cut["completion_truncated"].message  # one of four completions


def test_same_completions(plain_tokenizer):
    same = PromptGroup("the", (" good", " good"), CHOSEN_REJECTED)
    assert codes(gate([same], plain_tokenizer)) == {"chosen_is_rejected": "error"}
    assert codes(gate([GOOD, same], plain_tokenizer)) == {"chosen_is_rejected": "warning"}
    tie = PromptGroup("the", (" good", " good"), Verdict("scores", scores=(1.0, 1.0)))
    assert codes(gate([tie], plain_tokenizer)) == {}


def test_verdict_for_the_method(plain_tokenizer):
    shown = PromptGroup("the film", (" was good",), DEMONSTRATION)
    bare = PromptGroup("the movie")
    assert codes(gate([shown], plain_tokenizer, need="demonstration")) == {}
    assert codes(gate([GOOD], plain_tokenizer, need="demonstration")) == {}
    assert codes(gate([GOOD], plain_tokenizer, need="thumbs")) == {}
    assert codes(gate([bare], plain_tokenizer, need="prompt")) == {}
    for need in ("pairs", "thumbs"):
        assert codes(gate([shown], plain_tokenizer, need=need)) == {"verdict_missing": "error"}
        mixed = gate([GOOD, shown, bare], plain_tokenizer, need=need)
        assert [(f.severity, f.rows) for f in mixed] == [("warning", (1, 2))]


def test_labels_all_the_same(plain_tokenizer):
    groups = [
        PromptGroup(p, (" good",), Verdict("thumbs", thumbs=(True,))) for p in ("the", "a", "and")
    ]
    assert codes(gate(groups, plain_tokenizer, need="thumbs")) == {"labels_all_same": "error"}
    groups[1] = PromptGroup("a", (" bad",), Verdict("thumbs", thumbs=(False,)))
    assert codes(gate(groups, plain_tokenizer, need="thumbs")) == {}


def test_special_tokens_in_text(plain_tokenizer):
    tricked = PromptGroup("the<|eos|> film", (" was good",), DEMONSTRATION)
    assert codes(gate([tricked], plain_tokenizer))["special_token_in_text"] == "error"
    usual = PromptGroup("<|bos|>the film", (" was good<|eos|>\n",), DEMONSTRATION)
    assert codes(gate([usual], plain_tokenizer)) == {}


def test_prompt_and_completion_run_together(plain_tokenizer):
    glued = PromptGroup("the film", ("was good",), DEMONSTRATION)
    assert codes(gate([glued], plain_tokenizer)) == {"no_space_between": "warning"}
    assert codes(gate([glued], plain_tokenizer, sampled=True)) == {}


def test_prompts_in_two_splits_and_repeated_rows(plain_tokenizer):
    found = gate([GOOD, OTHER], plain_tokenizer, other={"test": [PromptGroup(" The Film ")]})
    assert [(f.code, f.severity, f.rows) for f in found] == [
        ("prompt_in_two_splits", "error", (0,))
    ]
    assert codes(gate([GOOD, OTHER, GOOD], plain_tokenizer)) == {"repeated_row": "warning"}


def test_nothing_to_train_on(plain_tokenizer):
    with pytest.raises(DataError, match="There are no rows"):
        require(gate([], plain_tokenizer, need="pairs"))


def test_require_lists_every_error_and_lets_warnings_pass(plain_tokenizer):
    def ruin(token):
        return replace(
            token, prompt=token.prompt[1:], completions=tuple(c[:-1] for c in token.completions)
        )

    with pytest.raises(DataError) as caught:
        require(gate([GOOD] * 10, plain_tokenizer, change=ruin))
    text = str(caught.value)
    assert "lacks the BOS" in text
    assert "does not end in EOS" in text
    assert "(10 rows: row 0, 1, 2, 3, 4, 5, 6, 7, …)" in text
    require(gate([GOOD, GOOD], plain_tokenizer))  # a repeated row is a warning


def test_every_check_says_what_it_looks_for():
    assert all(one.__doc__ for one in CHECKS)
