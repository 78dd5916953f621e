"""The language of a text, no verdict on short ones, and the filter that goes by it."""

from __future__ import annotations

import pytest

from alignlab.data.gate.gate import Gate
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.languages import UNDECIDED, language_of, languages
from alignlab.data.quality.language import Language
from alignlab.data.template import Tokenization
from alignlab.errors import DataError

SAID = {
    "en": "The film was very good and the music was good too.",
    "de": "Der Film war sehr gut, und die Musik war auch gut.",
    "fr": "Le film était très bon et la musique aussi était bonne.",
    "es": "La película fue muy buena y la música también lo fue.",
    "pt": "O filme foi muito bom e a música também foi muito boa.",
    "ru": "Фильм был очень хороший, и музыка тоже была хорошая.",
    "zh": "这部电影非常好看，音乐也非常好听，我很喜欢。",
    "ja": "この映画はとても良かったです。音楽も良かったです。",
}


@pytest.mark.parametrize("code", SAID)
def test_sentences_are_told_with_confidence(code):
    told = language_of(SAID[code])
    assert told.language == code
    assert told.confidence > 0.8
    assert language_of(SAID[code]) == told  # nothing is drawn


@pytest.mark.parametrize("text", ["", "ok", "12345 67", "The film was good.", "   "])
def test_short_texts_have_no_verdict(text):
    assert language_of(text).language == UNDECIDED


def test_what_is_no_language_is_undecided():
    assert language_of("0x3f 12 88 == 99; 4711 [17] {} -> 42 17 23 99 18 5555 1 2 3").language == (
        UNDECIDED
    )
    assert language_of(SAID["de"], sure=1.0).language == UNDECIDED
    assert language_of("The film was good.", least=0).language == "en"


@pytest.mark.slow
def test_reviews_of_films_are_english():
    from alignlab.compose import compose
    from alignlab.spec import build, parse

    data = build(parse(compose(["data=reviews", "data.limit.validation=60"])["data"], "data"))
    told = [language_of(str(g.completions[0])).language for g in data.load("pretrain")[:200]]
    assert told.count("en") >= 190  # some are snippets of a few words
    assert set(told) <= {"en", UNDECIDED}


def group(text: str) -> PromptGroup:
    return PromptGroup("q ", (f" {text}",), DEMONSTRATION, text[:5])


def test_the_filter_keeps_the_named_languages_and_what_is_undecided():
    step = Language(part="best", languages=("en", "de"), confidence=0.5, least_bytes=40)
    groups = [group(text) for text in [*SAID.values(), "ok", "si"]]
    kept, effect = step.apply(groups)
    assert [g.completions[0].strip() for g in kept] == [SAID["en"], SAID["de"], "ok", "si"]
    assert effect.why == {"another language": 6}
    assert "fr (1.0" in effect.examples[0]["detail"]
    strict = Language(part="best", languages=("en", "de"), confidence=1.0, least_bytes=40)
    assert len(strict.apply(groups)[0]) > len(kept)  # what is nearly sure stays too


def test_unknown_languages_are_refused():
    fields = {"part": "all", "confidence": 0.5, "least_bytes": 40}
    with pytest.raises(DataError, match="ISO 639"):
        Language(languages=("English",), **fields)
    with pytest.raises(DataError, match="cannot be told"):
        Language(languages=("xx",), **fields).apply([group(SAID["en"])])
    assert {"en", "de", "zh"} <= set(languages())


def test_the_gate_tells_the_languages_of_a_split(plain_tokenizer):
    groups = [group(SAID["en"])] * 6 + [group(SAID["de"])] * 3 + [group("ok")]
    tokens = Tokenization(plain_tokenizer, None, None).groups(groups)
    gate = Gate(plain_tokenizer, languages=True)
    for start in (0, 4):  # chunks change nothing
        gate.see(groups[start : start + 4 + start], tokens[start : start + 4 + start])
    gate.see(groups[8 + 4 :], tokens[8 + 4 :])
    assert gate.statistics().languages == {"en": 0.6, "de": 0.3, "": 0.1}
    quiet = Gate(plain_tokenizer)
    quiet.see(groups, tokens)
    assert quiet.statistics().languages == {}
