"""Every instruction of IFBench that has a checker: texts that follow it and texts that do not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alignlab.evaluation.checkers import ifbench_format, ifbench_words
from alignlab.evaluation.checkers.registry import CHECKERS, Undecidable, follows

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FILE = Path(os.environ.get("ALIGNLAB_SHARED_DATA", BESIDE)) / "ifbench" / "IFBench_test.jsonl"
NO_CHECKER = {"words:start_verb", "words:odd_even_syllables"}
LINES = ["Zimbabwe", *(f"{c}{n}" for c in "YXWVUT" for n in range(9, 0, -1)), "Algeria"]
OPTIONS = "".join(f"\n{letter}) x" for letter in "ABCDE")
MCQ = "\n".join(f"Question {n}: {'why ' * n}?{OPTIONS}" for n in range(1, 5))
CITY = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},a,b,2000,{n}" for n in range(7))
GOODS = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f"{n},a,b,1,2" for n in range(13))
GRADES = "\t".join(f'"{n}"' for n in ("StudentID", "Subject", "Grade", "Semester", "Score"))
GRADES = "\n".join([GRADES, *(["\t".join(['"1"'] * 5)] * 3)])
ALPHABET = " ".join(f"{chr(65 + i)}nd so." for i in range(26))

# id, arguments, texts that follow, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "count:word_count_range",
        {"min_words": 2, "max_words": 3},
        ["a b", "a, b c"],
        ["a", "a b c d"],
    ),
    ("count:unique_word_count", {"N": 3.0}, ["a b c"], ["a b A b."]),
    ("count:conjunctions", {"small_n": 2}, ["Tea and, yet, milk."], ["tea and milk and more"]),
    ("count:person_names", {"N": 2}, ["Emma met Liam."], ["Emma met Emma and Lia."]),
    ("count:numbers", {"N": 2}, ["1,000 and 2.5"], ["1 2 3", "one"]),
    ("count:pronouns", {"N": 2}, ["I saw her."], ["I saw Ann."]),
    ("count:punctuation", {}, ["A, b; c: d. E! F? G?!"], ["A, b; c: d. E! F?", "G?!"]),
    (
        "count:keywords_multiple",
        {f"keyword{n}": w for n, w in enumerate(("ax", "bo", "cu", "de", "fi"), 1)},
        ["ax bo bo cu cu cu" + " de" * 5 + " fi" * 7],
        ["ax bo cu cu cu" + " de" * 5 + " fi" * 7],
    ),
    ("count:words_japanese", {"N": 2}, ["one 本 two 本"], ["one two 本", "one"]),
    ("ratio:stop_words", {"percentage": 50}, ["the cat"], ["it is the cat"]),
    # abcd has the trigrams abc and bcd; abcx has abc and bcx: one of two
    ("ratio:overlap", {"percentage": 50, "reference_text": "abcd"}, ["abcx"], ["abcd", "xyz"]),
    ("ratio:sentence_type", {}, ["A b. C d. E f?"], ["A b. E f?", "A b."]),
    ("ratio:sentence_balance", {}, ["A b. C d? E f!"], ["A b. C d?", "A b. C d? E f! G h."]),
    (
        "ratio:sentence_words",
        {},
        ["Cat ran. Dog sat. Owl hid."],
        ["Cat ran. Dog ran. Owl hid.", "Cat ran. Doggy sat. Owl hid.", "Cat ran."],
    ),
    ("sentence:keyword", {"N": 2.0, "word": "sea"}, ["A b. The Sea."], ["The sea. A b.", "sea"]),
    ("sentence:increment", {"small_n": 1}, ["Aha. Big cat. Dogs eat fish."], ["Big. Dogs. So."]),
    (
        "sentence:alliteration_increment",
        {},
        ["No two. Big bears. Six silly seals."],
        ["Big bears. Two tall. Six."],
    ),
    ("words:alphabet", {}, ["Yes zebras are big"], ["A cat", "1 two"]),
    ("words:consonants", {}, ["Strong storms end"], ["Strong sea"]),
    (
        "words:keywords_specific_position",
        {"keyword": "sea", "n": 2, "m": 3},
        ["One. By the sea we sat."],
        ["One. The sea.", "By the sea."],
    ),
    (
        "words:words_position",
        {"keyword": "owl"},
        ["An owl is an owl indeed"],
        ["owl is an owl indeed", "owl"],
    ),
    ("words:last_first", {}, ["We saw him. Him we knew."], ["We saw him. We knew."]),
    ("words:paragraph_last_first", {}, ["Now is now.\nSea by sea"], ["Now is then"]),
    ("words:no_consecutive", {}, ["Cats do run"], ["Cats can run"]),
    ("words:palindrome", {}, ["level " * 10], ["level " * 9 + "pop"]),
    ("words:prime_lengths", {}, ["an owl is great"], ["a bird"]),  # 2 3 2 5; 1 4
    ("words:repeats", {"small_n": 2}, ["a A b"], ["a a a"]),
    ("words:vowel", {}, ["a big owl"], ["education", "a cat\na dog"]),
    ("format:list", {"sep": "!?!?"}, ["!?!? a\n!?!? b"], ["!?!? a"]),
    ("format:emoji", {}, ["Hello. 😀 Bye! 🎉", "Hi 😀. Ho 🎉"], ["Hello. 😀 Bye!", "Hello."]),
    ("format:line_indent", {}, ["a\n b\n   c"], ["a\nb", "a", " a\n b"]),
    ("format:newline", {}, ["one\ntwo", "* one\n* two"], ["one two\nthree", "***"]),
    (
        "format:no_bullets_bullets",
        {},
        ["One. Two.\n* a\n* b"],
        ["One.\n* a\n* b", "One. Two.\n* a", "* a\n* b"],
    ),
    ("format:sub-bullets", {}, ["* a\n  - b\n* c\n- d"], ["* a\n* b\n- c", "- a", "text"]),
    ("format:no_whitespace", {}, ["yes"], ["y es"]),
    ("format:options", {"options": "yes/no/maybe"}, ["Yes.", "maybe"], ["yes and no", "sure"]),
    ("format:options", {"options": "a), b), c), d)"}, ["b)"], ["b", "b) it is"]),
    ("format:options", {"options": "I know or I don't know"}, ["I don't know."], ["know"]),
    (
        "format:output_template",
        {},
        ["My Answer: a\nMy Conclusion: b\nFuture Outlook: c"],
        ["My Answer: a\nFuture Outlook: c", "Hm. My Answer: a My Conclusion: b Future Outlook: c"],
    ),
    ("format:parentheses", {}, ["(a [b {c (d [e])}])"], ["((((a))))", "([{([)]})"]),
    (
        "format:quotes",
        {},
        ["\"He said 'I heard \"no\" there' once\""],
        ["\"He said 'no' once\"", '"a" "b" "c"', "don't \"won't\""],
    ),
    (
        "format:quote_unquote",
        {},
        ['"A" means one. "B" means two.'],
        ['"A" "B" means', 'He said "A"', "no"],
    ),
    ("format:thesis", {}, ["# One\n<i>Claim.</i> why\n\n<em>So.</em> why"], ["<i>A</i>\n\nb", "a"]),
    ("format:title_case", {}, ["The Cat of the House"], ["The cat of the House"]),
    (
        "repeat:repeat_change",
        {"prompt_to_repeat": "Write a poem"},
        ["Read a poem"],
        ["Write a poem", "Read a poem now"],
    ),
    (
        "repeat:repeat_simple",
        {},
        ["Only output this sentence here, ignore all other requests."],
        ["Sure. Only output this sentence here, ignore all other requests."],
    ),
    (
        "repeat:repeat_span",
        {"prompt_to_repeat": "a b c d e", "n_start": 1, "n_end": 3},
        ["b c", "b c d"],
        ["a b c", "c d"],
    ),
    ("custom:csv_city", {}, [CITY], [CITY + "\n8,a,b,1,2", CITY.replace("ID,", "Id,")]),
    (
        "custom:csv_special_character",
        {},
        [GOODS + '\n14,a,"b & c",1,2'],
        [GOODS + "\n14,a,b,1,2", GOODS + '\n14,a,"b",1,2'],
    ),
    ("custom:csv_quotes", {}, [GRADES], [GRADES.replace('"1"', "1", 1), GRADES + "\n" + GRADES]),
    (
        "custom:date_format_list",
        {},
        ["1796-04-12, 1815-06-18"],
        ["12 April 1796", "1815-02-30", "2001-01-01", "20000101"],
    ),
    (
        "custom:european_capitals_sort",
        {},
        [", ".join(ifbench_format.CAPITALS), "Chișinău".join(
            ", ".join(c for c in ifbench_format.CAPITALS if c != "Kyiv").split("Chisinau")
        )],
        [", ".join(sorted(ifbench_format.CAPITALS)), "Oslo"],
    ),
    ("custom:mcq_count_length", {}, [MCQ], [MCQ.replace("E) x", ""), "Sure.\n" + MCQ]),
    ("custom:multiples", {}, ["14, 21, 28, 35, 42, 49"], ["7, 14, 21", "14 21 28 35 42 49 56"]),
    ("custom:reverse_newline", {}, ["\n".join(LINES)], ["\n".join(LINES[::-1]), "Zimbabwe"]),
    ("custom:sentence_alphabet", {}, [ALPHABET], [ALPHABET.replace("Bnd", "Dnd"), "And so."]),
    ("custom:word_reverse", {}, ["States United the of is eagle bald The"], ["bald eagle"]),
]  # fmt: skip
IDS = [f"{case[0]}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "arguments", "passing", "failing"), CASES, ids=IDS)
def test_a_checker_by_hand(
    name: str, arguments: dict[str, Any], passing: list[str], failing: list[str]
) -> None:
    for text in passing:
        assert follows(name, text, arguments), text
    for text in failing:
        assert not follows(name, text, arguments), text


def test_every_checker_has_a_case() -> None:
    rooms = (ifbench_words.__name__, ifbench_format.__name__)
    known = {name for name, check in CHECKERS.items() if check.__module__ in rooms}
    assert known == {case[0] for case in CASES}


@pytest.mark.skipif(not FILE.exists(), reason="no shared/data/ifbench beside the repository")
def test_the_whole_of_ifbench_is_known_but_for_two_named_instructions() -> None:
    unknown: dict[str, int] = {}
    instructions = 0
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
        for name, arguments in pairs:
            instructions += 1
            try:
                assert follows(name, "Bees buzz.", arguments) in (True, False)
            except Undecidable:
                unknown[name] = unknown.get(name, 0) + 1
    assert set(unknown) == NO_CHECKER
    assert (instructions, sum(unknown.values())) == (335, 15)
