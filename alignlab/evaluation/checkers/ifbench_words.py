"""IFBench's instructions (Pyatkin et al. 2025) on words and sentences.

Written from the instructions' own words, so scores are not those of IFBench's own checkers: those
find sentences with NLTK's model (here: a rule, `texts.sentences`) and let a text pass that has none
of what is asked for (no bullets, no quotes, no second sentence), which does not follow here. Two
instructions need more than rules and have no checker: ``words:start_verb`` (a part-of-speech
tagger) and ``words:odd_even_syllables`` (a pronouncing dictionary).
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from alignlab.evaluation.checkers.registry import instruction
from alignlab.evaluation.checkers.texts import listed, sentences, spoken, stripped, words

COORDINATING = frozenset({"and", "but", "for", "nor", "or", "so", "yet"})
PRONOUNS = frozenset(
    listed(
        "i me my mine myself we us our ours ourselves you your yours yourself yourselves he"
        " him his himself she her hers herself it its itself they them their theirs themselves"
    )
)
# The names that the instruction's own words list.
NAMES = listed(
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte"
    " Alexander Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen"
    " Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David"
    " Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan"
)
# Closed classes of English: articles, pronouns, prepositions, conjunctions, auxiliaries, particles.
STOP_WORDS = PRONOUNS | frozenset(
    listed(
        "a an the this that these those what which who whom whose when where why how all any"
        " both each few more most other some such no nor not only own same so than too very am"
        " is are was were be been being have has had having do does did doing will would shall"
        " should can could may might must and but if or because as until while of at by for"
        " with about against between into through during before after above below to from up"
        " down in out on off over under again further then once here there just now don isn"
        " aren wasn weren hasn haven hadn doesn didn won wouldn shouldn couldn mustn needn shan"
        " s t d ll m re ve y ain theirs"
    )
)
VOWELS, CONSONANTS = frozenset("aeiou"), frozenset("bcdfghjklmnpqrstvwxyz")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


@instruction("count:word_count_range")
def word_count_range(text: str, min_words: float, max_words: float) -> bool:
    """Between so many and so many words, both included."""
    return min_words <= len(words(text)) <= max_words


@instruction("count:unique_word_count")
def unique_word_count(text: str, N: float) -> bool:
    """At least so many different words."""
    return len({word.lower() for word in stripped(text)}) >= N


@instruction("count:conjunctions")
def conjunctions(text: str, small_n: float) -> bool:
    """At least so many different coordinating conjunctions (for and nor but or yet so)."""
    return len(COORDINATING & {word.lower() for word in stripped(text)}) >= small_n


@instruction("count:person_names")
def person_names(text: str, N: float) -> bool:
    """At least so many different names of the instruction's list."""
    return len(set(NAMES) & set(words(text))) >= N


@instruction("count:numbers")
def numbers(text: str, N: float) -> bool:
    """Exactly so many numbers; 1,000 and 2.5 are one number each."""
    return len(re.findall(r"\d+(?:[.,:/]\d+)*", text)) == N


@instruction("count:pronouns")
def pronouns(text: str, N: float) -> bool:
    """At least so many personal and possessive pronouns."""
    return sum(word.lower() in PRONOUNS for word in words(text)) >= N


@instruction("count:punctuation")
def punctuation(text: str) -> bool:
    """Each of . , ! ? ; : at least once, and an interrobang besides."""
    rest = re.sub(r"\?!|!\?|‽", "", text, count=1)
    return rest != text and all(mark in rest for mark in ".,!?;:")


@instruction("count:keywords_multiple")
def keywords_multiple(
    text: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """The five keywords occur exactly 1, 2, 3, 5 and 7 times."""
    known = (keyword1, keyword2, keyword3, keyword4, keyword5)
    counts = [text.lower().count(keyword.strip().lower()) for keyword in known]
    return counts == [1, 2, 3, 5, 7]


@instruction("count:words_japanese")
def words_japanese(text: str, N: float) -> bool:
    """Every N-th word, as white space parts them, has Japanese characters."""
    chosen = text.split()[int(N) - 1 :: int(N)]
    return bool(chosen) and all(JAPANESE.search(word) for word in chosen)


@instruction("ratio:stop_words")
def stop_words(text: str, percentage: float) -> bool:
    """At most so many per cent of the words are stop words of English."""
    found = [word.lower() for word in words(text)]
    return bool(found) and 100 * sum(w in STOP_WORDS for w in found) / len(found) <= percentage


@instruction("ratio:overlap")
def overlap(text: str, reference_text: str, percentage: float) -> bool:
    """So many per cent (± 2) of the text's character trigrams occur in the reference."""
    own = {text[i : i + 3] for i in range(len(text) - 2)}
    theirs = {reference_text[i : i + 3] for i in range(len(reference_text) - 2)}
    return bool(own) and abs(100 * len(own & theirs) / len(own) - percentage) <= 2


def _ends(text: str) -> Counter[str]:
    kinds = [re.sub(r"[\"'”’)\]*_\s]+$", "", s)[-1:] for s in sentences(text)]
    return Counter(kinds)


@instruction("ratio:sentence_type")
def sentence_type(text: str) -> bool:
    """Twice as many declarative sentences as questions, and at least one question."""
    ends = _ends(text)
    return ends["."] == 2 * ends["?"] > 0


@instruction("ratio:sentence_balance")
def sentence_balance(text: str) -> bool:
    """As many declarative sentences as questions and exclamations, and at least one of each."""
    ends = _ends(text)
    return ends["."] == ends["?"] == ends["!"] > 0


@instruction("ratio:sentence_words")
def sentence_words(text: str) -> bool:
    """Three sentences of the same number of characters, no word twice."""
    found = sentences(text)
    every = [word.lower() for sentence in found for word in stripped(sentence)]
    same_size = len({len(sentence) for sentence in found}) == 1
    return len(found) == 3 and same_size and len(set(every)) == len(every)


@instruction("sentence:keyword")
def sentence_keyword(text: str, word: str, N: float) -> bool:
    """The N-th sentence holds the keyword."""
    found = sentences(text)
    return len(found) >= N and word.lower() in found[int(N) - 1].lower()


@instruction("sentence:increment")
def sentence_increment(text: str, small_n: float) -> bool:
    """Every sentence has exactly so many words more than the one before."""
    sizes = [len(spoken(sentence)) for sentence in sentences(text)]
    return all(b == a + small_n for a, b in pairwise(sizes))


@instruction("sentence:alliteration_increment")
def alliteration_increment(text: str) -> bool:
    """Every sentence has a longer run of words of one first letter than the one before."""
    runs = []
    for sentence in sentences(text):
        firsts = [word[0].lower() for word in stripped(sentence)]
        best = run = min(1, len(firsts))
        for a, b in pairwise(firsts):
            run = run + 1 if a == b else 1
            best = max(best, run)
        runs.append(best if best > 1 else 0)
    return all(b > a for a, b in pairwise(runs))


@instruction("words:alphabet")
def alphabet(text: str) -> bool:
    """Every word starts with the letter after that of the word before; A follows Z."""
    firsts = [word[0].lower() for word in spoken(text)]
    letters = all("a" <= first <= "z" for first in firsts)
    steps = pairwise(firsts)
    return bool(firsts) and letters and all((ord(b) - ord(a)) % 26 == 1 for a, b in steps)


@instruction("words:consonants")
def consonants(text: str) -> bool:
    """Every word has two consonants beside each other."""
    pairs = [pairwise(w) for w in map(str.lower, stripped(text))]
    return all(any(a in CONSONANTS and b in CONSONANTS for a, b in pair) for pair in pairs)


@instruction("words:keywords_specific_position")
def keywords_specific_position(text: str, keyword: str, n: float, m: float) -> bool:
    """The m-th word of the n-th sentence is the keyword."""
    found = sentences(text)
    inside = stripped(found[int(n) - 1]) if len(found) >= n else []
    return len(inside) >= m and inside[int(m) - 1].lower() == keyword.lower()


@instruction("words:words_position")
def words_position(text: str, keyword: str) -> bool:
    """The second word and the last but one are the keyword."""
    found = [word.lower() for word in stripped(text)]
    return len(found) > 1 and found[1] == found[-2] == keyword.lower()


@instruction("words:last_first")
def last_first(text: str) -> bool:
    """The last word of each sentence is the first of the next."""
    found = [[w.lower() for w in stripped(s)] for s in sentences(text)]
    steps = list(pairwise(found))
    return bool(steps) and all(a and b and a[-1] == b[0] for a, b in steps)


@instruction("words:paragraph_last_first")
def paragraph_last_first(text: str) -> bool:
    """Each paragraph (a line) ends with the word that it starts with."""
    found = [[w.lower() for w in stripped(line)] for line in text.split("\n") if line.strip()]
    return all(line and line[0] == line[-1] for line in found)


@instruction("words:no_consecutive")
def no_consecutive(text: str) -> bool:
    """No two neighbouring words share their first letter."""
    firsts = [word[0].lower() for word in spoken(text)]
    return all(a != b for a, b in pairwise(firsts))


@instruction("words:palindrome")
def palindrome(text: str) -> bool:
    """At least ten palindromes of five letters or more."""
    found = [word.lower() for word in spoken(text)]
    return sum(len(word) >= 5 and word == word[::-1] for word in found) >= 10


@instruction("words:prime_lengths")
def prime_lengths(text: str) -> bool:
    """Every word has a prime number of characters."""
    sizes = {len(word) for word in spoken(text)}
    return bool(sizes) and all(n > 1 and all(n % d for d in range(2, n)) for n in sizes)


@instruction("words:repeats")
def repeats(text: str, small_n: float) -> bool:
    """No word occurs more than so many times."""
    counts = Counter(word.lower() for word in spoken(text))
    return max(counts.values(), default=0) <= small_n


@instruction("words:vowel")
def vowel(text: str) -> bool:
    """One paragraph with at most three of the vowels a e i o u."""
    return "\n" not in text.strip() and len(VOWELS & set(text.lower())) <= 3
