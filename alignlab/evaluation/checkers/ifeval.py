"""The 25 verifiable instructions of IFEval (Zhou et al. 2023), each a function of the text.

A checker takes the text and the instruction's arguments by their names in the data, and answers
whether the text follows the instruction. They are written from the instructions' own words.
"""

from __future__ import annotations

import json
import re

from alignlab.evaluation.checkers.language import LANGUAGES, language_of, script_of
from alignlab.evaluation.checkers.registry import Undecidable, instruction
from alignlab.evaluation.checkers.texts import sentences, words


def compared(count: int, relation: str, bound: float) -> bool:
    """Whether ``count`` is "less than" or "at least" ``bound``; other relations are refused."""
    if relation not in ("less than", "at least"):
        raise Undecidable(f"unknown relation {relation!r}")
    return count < bound if relation == "less than" else count >= bound


def _contains(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _english(text: str) -> bool:
    """Whether a text is English, or too short to tell and in Latin letters."""
    code = language_of(text)
    return code == "en" or (code is None and script_of(text) == "LATIN")


@instruction("keywords:existence")
def existence(text: str, keywords: list[str]) -> bool:
    """Every keyword occurs."""
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


@instruction("keywords:frequency")
def frequency(text: str, keyword: str, frequency: float, relation: str) -> bool:
    """The keyword occurs so often."""
    count = len(re.findall(re.escape(keyword), text, re.IGNORECASE))
    return compared(count, relation, frequency)


@instruction("keywords:forbidden_words")
def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    """None of the words occurs, as a whole word."""
    return not any(_contains(text, word) for word in forbidden_words)


@instruction("keywords:letter_frequency")
def letter_frequency(text: str, letter: str, let_frequency: float, let_relation: str) -> bool:
    """The letter occurs so often, in either case."""
    return compared(text.lower().count(letter.lower()), let_relation, let_frequency)


@instruction("language:response_language")
def response_language(text: str, language: str) -> bool:
    """The whole answer is in the language (`language.language_of`)."""
    code = language.split("-")[0].lower()
    if code not in LANGUAGES:
        raise Undecidable(f"the language {language!r} is not told apart from others here")
    return language_of(text) == code


@instruction("length_constraints:number_sentences")
def number_sentences(text: str, num_sentences: float, relation: str) -> bool:
    """So many sentences."""
    return compared(len(sentences(text)), relation, num_sentences)


@instruction("length_constraints:number_words")
def number_words(text: str, num_words: float, relation: str) -> bool:
    """So many words."""
    return compared(len(words(text)), relation, num_words)


@instruction("length_constraints:number_paragraphs")
def number_paragraphs(text: str, num_paragraphs: float) -> bool:
    """So many paragraphs, parted by the markdown divider ``***``; none in the middle is empty."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    middle = parts[1:-1]
    if any(not part.strip() for part in middle):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


@instruction("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    text: str, num_paragraphs: float, nth_paragraph: float, first_word: str
) -> bool:
    """So many paragraphs, parted by blank lines, and the n-th starts with the word."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    place = int(nth_paragraph)
    if len(parts) != num_paragraphs or not 1 <= place <= len(parts):
        return False
    opening = re.match(r"\W*([\w'’-]+)", parts[place - 1])
    return opening is not None and opening[1].lower().strip("'’-") == first_word.lower()


@instruction("detectable_content:number_placeholders")
def number_placeholders(text: str, num_placeholders: float) -> bool:
    """At least so many placeholders in square brackets."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@instruction("detectable_content:postscript")
def postscript(text: str, postscript_marker: str) -> bool:
    """A postscript that starts with the marker, P.S. or P.P.S., on a line of its own."""
    spelled = r"\s*".join(re.escape(c) for c in postscript_marker.replace(" ", ""))
    loose = spelled.replace(re.escape("."), r"\.?")
    return re.search(rf"^\s*{loose}", text, re.IGNORECASE | re.MULTILINE) is not None


@instruction("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, num_bullets: float) -> bool:
    """Exactly so many bullets, lines that start with ``*`` or ``-``."""
    return len(re.findall(r"^\s*(?:\*(?!\*)|-(?!-)).*$", text, re.MULTILINE)) == num_bullets


@instruction("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    """One of the three given answers occurs."""
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


@instruction("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, num_highlights: float) -> bool:
    """At least so many highlights, ``*so*`` or ``**so**``, that are not empty."""
    strong = [h for h in re.findall(r"\*\*([^\n*]*)\*\*", text) if h.strip()]
    rest = re.sub(r"\*\*[^\n*]*\*\*", " ", text)
    weak = [h for h in re.findall(r"\*([^\n*]+)\*", rest) if h.strip()]
    return len(strong) + len(weak) >= num_highlights


@instruction("detectable_format:multiple_sections")
def multiple_sections(text: str, section_spliter: str, num_sections: float) -> bool:
    """At least so many sections, each opened by the word and a number (``Section 1``)."""
    return len(re.findall(rf"\b{re.escape(section_spliter)}\s+\d+", text)) >= num_sections


@instruction("detectable_format:json_format")
def json_format(text: str) -> bool:
    """The whole answer is JSON, alone or in a markdown code block."""
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(inner)
    except ValueError:
        return False
    return True


@instruction("detectable_format:title")
def title(text: str) -> bool:
    """A title in double angular brackets that is not empty."""
    return any(t.strip(" <>") for t in re.findall(r"<<([^\n]+?)>>", text))


@instruction("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different answers parted by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    whole = [part for part in parts if part]
    return len(whole) == 2 and whole[0] != whole[1] and all(parts[1:-1])


@instruction("combination:repeat_prompt")
def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The answer starts with the request, word for word."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@instruction("startend:end_checker")
def end_checker(text: str, end_phrase: str) -> bool:
    """The answer ends with the very phrase."""
    return text.strip().strip('"').strip().lower().endswith(end_phrase.strip().lower())


@instruction("startend:quotation")
def quotation(text: str) -> bool:
    """The whole answer stands in double quotation marks."""
    said = text.strip()
    return len(said) > 1 and said[0] == '"' and said[-1] == '"'


@instruction("change_case:capital_word_frequency")
def capital_word_frequency(text: str, capital_frequency: float, capital_relation: str) -> bool:
    """So many words in capital letters throughout."""
    count = sum(word.isupper() for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text))
    return compared(count, capital_relation, capital_frequency)


@instruction("change_case:english_capital")
def english_capital(text: str) -> bool:
    """English, in capital letters alone."""
    return text.isupper() and _english(text)


@instruction("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """English, in small letters alone."""
    return text.islower() and _english(text)


@instruction("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text
