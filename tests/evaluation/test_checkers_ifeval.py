"""Every instruction of IFEval: a text that follows it and texts that do not, checked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.evaluation.checkers import ifeval
from alignlab.evaluation.checkers.registry import CHECKERS, Undecidable, follows

# id, arguments, texts that follow, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["Hello", "sea"]}, ["hello, the seaside"], ["hello"]),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        ["Cat and cat.", "cat cat cat"],
        ["one cat"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        ["one cat", "none"],
        ["cat cat"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["war", "gun"]},
        ["A warm day."],  # warm holds war, but is another word
        ["It is WAR.", "a gun"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "o", "let_frequency": 3, "let_relation": "at least"},
        ["OooK"],
        ["oo"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht der Weg, den wir auch mit dir gehen."],
        ["This is not the way that we go.", "Ce n'est pas le chemin que nous avons pris."],
    ),
    ("language:response_language", {"language": "ja"}, ["これは本です。"], ["这是一本书。"]),
    ("language:response_language", {"language": "ko"}, ["이것은 책입니다."], ["これは本です。"]),
    ("language:response_language", {"language": "ru"}, ["Я не знаю, что это такое."], ["Не є так"]),
    ("language:response_language", {"language": "hi"}, ["यह एक किताब है और वह नहीं"], ["a book"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?"],
        ["Dr. Who met Mr. Poe. They left."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        ["one two three"],
        ["one two three four"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["First.\n***\nSecond."],
        ["First.", "First.\n\nSecond.", "a\n***\n\n***\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        ["First.\n\nThen, more.", 'a\n\n"Then" b'],
        ["First.\n\nNow then.", "Then.\n\nFirst.", "a\n\nthen\n\nb", "a\n\nthenceforth b"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] lives in [city]"],
        ["[name] lives in city"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "p. s. more"],
        ["Bye.", "GPS. more"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. more"],
        ["Bye.\nP.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b", "**bold**\n* a\n* b"],
        ["* a", "* a\n* b\n- c", "***\n* a"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe."],
        ["yes", "my answer is sure."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two**", "*a* *b*"],
        ["*one* only", "** **  *x*", "2 * 3"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na", "Sections one and two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1, 2]\n```"],
        ["{a: 1}", 'Here: {"a": 1}'],
    ),
    ("detectable_format:title", {}, ["<<A title>>\ntext"], ["A title", "<<  >>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo"],
        ["one", "same******same", "a******b******c"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["write a poem. Roses are red"],
        ["Roses are red. Write a poem."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions?"},
        ["Yes. Any other questions?", '"any other questions?"'],
        ["Any other questions? No."],
    ),
    ("startend:quotation", {}, ['"Hello there"', ' "x" '], ['"Hello', "Hello", '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA met"],
        ["NASA and Esa met"],
    ),
    ("change_case:english_capital", {}, ["THE CAT IS HERE"], ["THE cat", "DAS IST NICHT DER WEG"]),
    (
        "change_case:english_lowercase",
        {},
        ["the cat is here"],
        ["The cat", "das ist nicht der weg"],
    ),
    ("punctuation:no_comma", {}, ["No comma here."], ["Well, no."]),
]
IDS = [f"{case[0]}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "arguments", "passing", "failing"), CASES, ids=IDS)
def test_a_checker_by_hand(
    name: str, arguments: dict[str, Any], passing: list[str], failing: list[str]
) -> None:
    nulls = {"num_words": None, "keyword": None, "language": None}  # the data state all arguments
    for text in passing:
        assert follows(name, text, {**nulls, **arguments}), text
    for text in failing:
        assert not follows(name, text, {**nulls, **arguments}), text


def test_all_25_instructions_have_a_checker_and_a_case() -> None:
    known = {n for n, check in CHECKERS.items() if check.__module__ == ifeval.__name__}
    assert len(known) == 25
    assert known == {case[0] for case in CASES}


@pytest.mark.parametrize(("name", "arguments"), [(c[0], c[1]) for c in CASES], ids=IDS)
def test_an_empty_text_follows_nothing(name: str, arguments: dict[str, Any]) -> None:
    assert not follows(name, "  \n", arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("keywords:unheard_of", {}, "no checker"),
        ("keywords:existence", {"keywords": None}, "keywords"),
        (
            "keywords:frequency",
            {"keyword": "a", "frequency": 1, "relation": "around"},
            "unknown relation",
        ),
        ("language:response_language", {"language": "tlh"}, "tlh"),
    ],
)
def test_what_cannot_be_checked_is_said_and_not_passed(
    name: str, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Undecidable, match=reason):
        follows(name, "a text", arguments)
