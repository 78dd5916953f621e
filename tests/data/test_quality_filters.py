from __future__ import annotations

import pytest
from quality_rows import passage, rows

from alignlab.data.group import CHOSEN_REJECTED, PromptGroup
from alignlab.data.quality.filters import (
    Characters,
    Length,
    LexicalDiversity,
    Patterns,
    Script,
    Vocabulary,
)
from alignlab.data.quality.measures import (
    distinct,
    duplicate_ngram_share,
    duplicate_share,
    top_ngram_share,
    type_token,
)
from alignlab.data.quality.repetition import Repetition
from alignlab.data.quality.statistics import Statistics
from alignlab.errors import DataError

FREE = {"min_words": None, "max_words": None, "min_characters": None, "max_characters": None}


def left(step, *texts):
    return [group.id for group in step.apply(rows(*texts))[0]]


def why(step, text):
    reason = step.complaint(text)
    return reason and reason.why


def tokens(text):
    return text.split()


def test_length_bounds_include_their_ends():
    step = Length(part="completions", **{**FREE, "min_words": 2, "max_words": 3})
    assert left(step, "a", "a b", "a b c", "a b c d", "") == ["1", "2"]
    assert step.apply(rows("a", "", "a b c d"))[1].why == {
        "fewer than 2 words": 2,
        "more than 3 words": 1,
    }
    step = Length(part="completions", **{**FREE, "min_characters": 3, "max_characters": 4})
    assert left(step, "ab", "abc", "abcd", "abcde") == ["1", "2"]
    with pytest.raises(DataError, match="at least 5 and at most 4"):
        Length(part="best", **{**FREE, "min_words": 5, "max_words": 4})


@pytest.mark.parametrize(
    ("part", "kept"), [("prompt", "bc"), ("best", "ac"), ("completions", "c"), ("all", "c")]
)
def test_part_says_which_texts_must_pass(part, kept):
    groups = [
        PromptGroup("x", ("one two", "x"), CHOSEN_REJECTED, "a"),
        PromptGroup("one two", ("x", "one two"), CHOSEN_REJECTED, "b"),
        PromptGroup("one two", ("one two", "one two"), CHOSEN_REJECTED, "c"),
    ]
    step = Length(part=part, **{**FREE, "min_words": 2})
    assert "".join(group.id for group in step.apply(groups)[0]) == kept


def test_best_without_a_verdict_means_every_completion():
    step = Length(part="best", **{**FREE, "min_words": 2})
    assert step.apply([PromptGroup("p", ("one two", "x"))])[0] == []
    assert len(step.apply([PromptGroup("p")])[0]) == 1  # no completion to complain of


def test_measures_by_hand():
    assert type_token(tokens("a b a c"), 50) == 3 / 4
    # Windows of 2 over a b b c: {a b} 2/2, {b b} 1/2, {b c} 2/2.
    assert type_token(tokens("a b b c"), 2) == pytest.approx(2.5 / 3)
    assert type_token([], 3) == 0
    # Pairs: a b, b a, a b | a b: 2 different of 4.
    assert distinct([tokens("a b a b"), tokens("a b")], 2) == 2 / 4
    # Three of five lines are new; 3 + 4 of 3 + 3 + 4 + 4 + 1 characters are not.
    assert duplicate_share(["abc", "abc", "wxyz", "wxyz", "."]) == (2 / 5, 7 / 15)
    assert duplicate_share([]) == (0, 0)
    # "ab cd" twice: 8 of 12 characters. Once is no repetition.
    assert top_ngram_share(tokens("ab cd ef ab cd gh"), 2) == pytest.approx(8 / 12)
    assert top_ngram_share(tokens("ab cd ef"), 2) == 0
    assert top_ngram_share(tokens("a a a a"), 2) == 1  # overlapping ones count at most everything
    # The second "x y z" repeats the first: 3 of 7 characters.
    assert duplicate_ngram_share(tokens("x y z w x y z"), 3) == 3 / 7
    # Both "y z"s after the first repeat it, and "z y" and "y z" share a letter that counts once.
    assert duplicate_ngram_share(tokens("y z y z"), 2) == 2 / 4


def test_lexical_diversity():
    step = LexicalDiversity(part="completions", type_token=0.3, window=50, distinct=0.4, ngram=2)
    loop = "very good film " * 20
    assert why(step, loop).startswith("type-token ratio below 0.3")  # 3 / 50
    assert why(step, passage(1)) is None
    assert why(step, "") is None
    pairs = LexicalDiversity(part="completions", type_token=0.0, window=50, distinct=0.4, ngram=2)
    assert why(pairs, loop) == "distinct-2 below 0.4"  # 3 of 59
    assert why(pairs, "one") is None


GOPHER = {
    "from_words": 0,
    "lines": 0.3,
    "line_characters": 0.2,
    "paragraphs": 0.3,
    "paragraph_characters": 0.2,
    "top": (0.2, 0.18, 0.16),
    "repeated": (0.15, 0.14, 0.13, 0.12, 0.11, 0.1),
}
OFF = {
    "from_words": 0,
    "lines": 1.0,
    "line_characters": 1.0,
    "paragraphs": 1.0,
    "paragraph_characters": 1.0,
}


def test_repetition_finds_each_kind():
    step = Repetition(part="completions", **GOPHER)
    line = passage(1, 8)
    assert why(step, passage(1, 200)) is None
    assert why(step, "Yes.") is None
    assert why(step, "") is None
    assert why(step, "\n".join([line, line, passage(2, 8)])) == "repeated lines"
    grams = Repetition(part="completions", **{**GOPHER, **OFF})
    assert why(grams, "so good " * 10 + passage(3, 20)) == "one 2-gram again and again"
    long = passage(4, 12)
    assert why(grams, f"{long} {passage(5, 50)} {long}") == "repeated 5-grams"
    off = Repetition(part="completions", **OFF, top=(1.0,) * 3, repeated=(1.0,) * 6)
    assert why(off, "so good " * 50) is None
    with pytest.raises(DataError, match="they have 2 and 6"):
        Repetition(part="all", **{**GOPHER, "top": (0.1, 0.1)})


def test_paragraphs_are_blocks_between_blank_lines():
    limits = {**OFF, "paragraphs": 0.3, "top": (1.0,) * 3, "repeated": (1.0,) * 6}
    step = Repetition(part="completions", **limits)
    assert why(step, "a b\n\na b\n\nc") == "repeated paragraphs"  # 1 of 3
    assert why(step, "a b\na b\nc") is None


def test_characters():
    limits = {
        "from_words": 0,
        "symbols": 0.2,
        "links": 0.3,
        "capitals": 0.6,
        "alphabetic": 0.5,
        "min_word": 1.5,
        "max_word": 12.0,
    }
    step = Characters(part="completions", **limits)
    assert why(step, "A plain, honest sentence (with 3 asides)!") is None
    assert why(step, "see https://example.org/a/very/long/address ok") == "too many links"
    assert why(step, "#### $$$ %%% words") == "too many symbols"
    assert why(step, "THIS IS LOUD indeed") == "too many capitals"
    assert why(step, "1 22 333 ok") == "too few words with letters"
    assert why(step, "a b c d") == "words too short"
    assert why(step, "a" * 40) == "words too long"
    assert why(step, "   ") is None
    long = Characters(part="completions", **{**limits, "from_words": 3})
    assert why(long, "1 2") is None
    assert why(long, "1 2 3") == "too few words with letters"


def test_script():
    step = Script(part="all", scripts=("latin",), share=0.9)
    assert why(step, "naïve façade 123 …") is None
    assert why(step, "Это по-русски") == "other scripts"
    assert "cyrillic" in step.complaint("Это по-русски").detail
    assert why(step, "1234 !!") is None
    both = Script(part="all", scripts=("cjk", "hiragana"), share=1.0)
    assert why(both, "食べる") is None
    with pytest.raises(DataError, match="small-letter"):
        Script(part="all", scripts=("Latin",), share=0.5)


def test_vocabulary_tells_languages_apart():
    step = Vocabulary(part="all", from_words=4, words=("the", "of", "and", "to"), least=2)
    assert why(step, "The name of the rose") is None
    assert why(step, "Der Name der Rose") == "fewer than 2 of the expected words"
    assert why(step, "Der Name Rose") is None  # too short to tell


def test_patterns():
    step = Patterns(part="completions", must=(r"####\s*\d",), must_not=("as an ai",), case="ignore")
    assert left(step, "so #### 4", "so 4", "As an AI, #### 4") == ["0"]
    assert step.apply(rows("so 4"))[1].why == {r"does not match ####\s*\d": 1}
    exact = Patterns(part="completions", must=(), must_not=("as an ai",), case="exact")
    assert why(exact, "As an AI") is None
    with pytest.raises(DataError, match="no regular expression"):
        Patterns(part="all", must=("(",), must_not=(), case="exact")


def test_statistics_drop_nothing_and_measure():
    groups = [
        PromptGroup("one two", ("a b c d", "a b"), CHOSEN_REJECTED),
        PromptGroup("three", ("x", "y z"), CHOSEN_REJECTED),
        PromptGroup("four", ("q", "r"), CHOSEN_REJECTED),
        PromptGroup("five", ("q q", "r"), CHOSEN_REJECTED),
    ]
    kept, effect = Statistics(window=50).apply(groups)
    assert kept == groups
    numbers = effect.numbers
    assert numbers["prompt_words_mean"] == 5 / 4
    assert numbers["completion_count"] == 8
    assert numbers["completion_words_max"] == 4
    assert numbers["completion_vocabulary"] == 9  # a b c d x y z q r
    assert numbers["completion_distinct_1"] == pytest.approx(9 / 14, abs=1e-4)
    assert numbers["better_longer"] == pytest.approx(2 / 3, abs=1e-4)  # +2, −1, +1 and a tie
    assert numbers["better_minus_worse_words"] == 2 / 4
    assert effect.why == {"verdict: ranking": 4}
    assert Statistics(window=50).apply([])[1].numbers == {}
