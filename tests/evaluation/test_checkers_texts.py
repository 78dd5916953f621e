"""Words, sentences and languages as the checkers see them."""

from __future__ import annotations

import pytest

from alignlab.evaluation.checkers.language import language_of, script_of
from alignlab.evaluation.checkers.texts import is_emoji, lines, sentences, spoken, stripped, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Who met J. R. Poe at 5 p.m. today.", ["Dr. Who met J. R. Poe at 5 p.m. today."]),
        ("Pi is 3.14 here. Yes.", ["Pi is 3.14 here.", "Yes."]),
        ('He said "No." Then left', ['He said "No."', "Then left"]),
        ("A title\n\nA text. More", ["A title", "A text.", "More"]),
        ("- one\n- two", ["- one", "- two"]),
        ("1. first thing\n2. second", ["1. first thing", "2. second"]),
        ("Wait... what?!", ["Wait...", "what?!"]),
        ("it ends with b. And c.", ["it ends with b.", "And c."]),
        ("  ", []),
    ],
)
def test_sentences_by_hand(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_three_ways_to_count_words() -> None:
    text = "Well-known, isn't it? -- 3.5!"
    assert words(text) == ["Well", "known", "isn", "t", "it", "3", "5"]
    assert spoken(text) == ["Wellknown", "isnt", "it", "35"]
    assert stripped(text) == ["Well-known", "isn't", "it", "3.5"]
    assert lines("a\n\n  \n b") == ["a", " b"]


def test_emoji_are_told_from_letters_and_signs() -> None:
    assert all(map(is_emoji, "😀🎉❤✨"))
    assert not any(map(is_emoji, "aé.!本1#"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The house is on the hill and it was not for sale."),
        ("de", "Das Haus steht auf dem Hügel und ist nicht zu verkaufen."),
        ("es", "La casa está en la colina y no se vende por el momento."),
        ("fr", "La maison est sur la colline et elle n'est pas à vendre dans l'immédiat."),
        ("it", "La casa è sulla collina e non si vende, anche se gli altri lo dicono."),
        ("pt", "A casa fica no alto da colina e não está à venda por enquanto."),
        ("fi", "Talo on mäellä ja se ei ole myynnissä, mutta hän oli siellä."),
        ("pl", "Dom stoi na wzgórzu i nie jest na sprzedaż, ale to się zmieni."),
        ("vi", "Ngôi nhà ở trên đồi và không được bán cho các người khác."),
        ("sw", "Nyumba hii ni ya watu wa kijiji na pia kwa wageni katika mji."),
        ("ru", "Дом стоит на холме, и он не продаётся, но это не всё."),
        ("uk", "Будинок стоїть на пагорбі, і він не продається, але це не все."),
        ("bg", "Къщата е на хълма и не се продава, но това ще се промени."),
        ("ar", "البيت على التل و هو ليس للبيع في هذا الوقت"),
        ("fa", "این خانه در روستا است و برای فروش نیست که آن را می خواهم"),
        ("ur", "یہ گھر پہاڑی پر ہے اور اس کو نہیں بیچا جائے گا"),
        ("hi", "यह घर पहाड़ी पर है और इसको नहीं बेचा जाएगा"),
        ("mr", "हे घर टेकडीवर आहे आणि ते विकायचे नाही"),
        ("ne", "यो घर डाँडामा छ र बेच्ने पनि होइन"),
        ("bn", "বাড়িটি পাহাড়ের উপরে"),
        ("ta", "வீடு மலையில் உள்ளது"),
        ("th", "บ้านอยู่บนเนินเขา"),
        ("ko", "집은 언덕 위에 있다"),
        ("ja", "家は丘の上にある"),
        ("zh", "房子在山上"),
        ("he", "הבית על הגבעה"),
    ],
)
def test_a_sentence_of_each_language_is_told(code: str, text: str) -> None:
    assert language_of(text) == code


def test_what_has_no_letters_has_no_language() -> None:
    assert language_of("123 !?") is None
    assert script_of("123") is None
    assert language_of("xyzzy") is None
