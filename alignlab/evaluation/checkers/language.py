"""Which language a text is written in: by its script, then by its most frequent small words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Words that are frequent in one language and rare in its neighbours (Latin and Cyrillic scripts,
# Arabic script, Devanagari); whole words, lower case.
WORDS = {
    "en": "the and of to is that it for was with as are this you be on have not",
    "de": "der die und das ist nicht ein eine mit für auf sich den von zu ich auch wird sie",
    "es": "el la de que y los en un una por con para es las del se no como más",
    "fr": "le la les et des est une un dans que pour qui pas sur avec ce il vous au",
    "it": "il di che è la e un per una non sono con del della le gli come anche più",
    "pt": "o de que e do da em um para com não uma os no se na por mais as dos é",
    "nl": "de het een en van is dat niet zijn op te met voor die aan ook er bij",
    "pl": "i w na się nie to jest że do z o jak za co przez dla od są po",
    "fi": "ja on ei se että hän oli ovat mutta tai kun niin myös joka olla voi ole",
    "sv": "och att det som en är på inte för av med den till har jag ett om var",
    "vi": "là và của có không một được cho với các người này trong những để đã",
    "sw": "na ya wa ni kwa katika za la kuwa hii watu cha pia yake ambayo lakini",
    "tr": "ve bir bu için ile de da çok olarak daha gibi olan ne en kadar",
    "id": "yang dan di untuk dengan ini itu dari dalam tidak pada adalah akan ke",
    "ro": "și în de la cu nu este că pe un o pentru mai din sau care",
    "ru": "и в не на что я с он как это по но она к у из за от так его для",
    "uk": "і в не на що з як це та у до я він є але за від його для ми",
    "bg": "и на да се в не е за от са с че по като ще към този това",
    "ar": "في من على إلى أن هذا هذه التي الذي ما لا كان عن مع هو هي",
    "fa": "و در به از که این را با است برای آن یک می شود هم ها",
    "ur": "کے کی ہے میں اور سے کا کو یہ پر نے ہیں کہ ایک بھی",
    "hi": "के है में की और से का को यह हैं पर भी नहीं एक लिए कि",
    "mr": "आहे आणि या च्या मध्ये ते हे तो एक नाही होते केले आहेत",
    "ne": "छ र को मा हो छन् यो पनि लागि गर्न भने एक गरेको",
}
# Letters that, among the languages of one script, nearly one alone writes.
LETTERS = {
    "uk": "іїєґ", "ru": "ыэё", "ur": "ٹڈڑںےہھ", "fa": "ژۀ", "mr": "ळ", "de": "ß", "es": "ñ¿¡",
    "pt": "ãõ", "pl": "łąęśźż", "tr": "şğı", "ro": "șță",
    "vi": "ơưđạảấầẩậắằặẹẻẽếềệỉịọỏốồộớờợụủứừựỳỹ", "sv": "å",
}  # fmt: skip
SCRIPTS = {
    "HANGUL": ("ko",), "HIRAGANA": ("ja",), "KATAKANA": ("ja",), "CJK": ("zh",), "THAI": ("th",),
    "BENGALI": ("bn",), "TAMIL": ("ta",), "TELUGU": ("te",), "GUJARATI": ("gu",),
    "KANNADA": ("kn",), "MALAYALAM": ("ml",), "GURMUKHI": ("pa",), "GREEK": ("el",),
    "HEBREW": ("he",), "ARMENIAN": ("hy",), "GEORGIAN": ("ka",),
    "DEVANAGARI": ("hi", "mr", "ne"), "ARABIC": ("ar", "fa", "ur"), "CYRILLIC": ("ru", "uk", "bg"),
    "LATIN": ("en", "de", "es", "fr", "it", "pt", "nl", "pl", "fi", "sv", "vi", "sw", "tr", "id",
              "ro"),
}  # fmt: skip
LANGUAGES = frozenset(code for codes in SCRIPTS.values() for code in codes)
_LETTERS = re.compile(r"[^\W\d_]+")
_SETS = {code: frozenset(text.split()) for code, text in WORDS.items()}
# Marks belong to a word in scripts that write vowels as marks.
_TOKEN = re.compile(r"[\w\u0900-\u097f\u0600-\u06ff]+")


def language_of(text: str) -> str | None:
    """Return the language of ``text`` as an ISO 639-1 code; None where nothing decides.

    The script of most letters leaves one language or a few; among a few the one whose small words
    and own letters are most frequent wins. A short text without any has no known language.
    """
    script = script_of(text)
    codes = SCRIPTS.get(script or "", ())
    if len(codes) == 1:
        # Japanese writes Chinese characters among its own.
        return codes[0] if codes != ("zh",) or not _has_kana(text) else "ja"
    tokens = [t.lower() for t in _TOKEN.findall(text)]
    hits = {
        code: sum((t in _SETS[code]) + bool(set(t) & set(LETTERS.get(code, ""))) for t in tokens)
        for code in codes
    }
    best = max(hits, key=lambda code: hits[code], default=None)
    return best if best is not None and hits[best] > 0 else None


def script_of(text: str) -> str | None:
    """Script of most letters of a text (the first word of their Unicode names), None without."""
    counts = Counter(
        unicodedata.name(letter, "?").split()[0] for run in _LETTERS.findall(text) for letter in run
    )
    return counts.most_common(1)[0][0] if counts else None


def _has_kana(text: str) -> bool:
    return any("\u3040" <= letter <= "\u30ff" for letter in text)
