"""IFBench's instructions on form: lists, quotes, brackets, tables, repeated requests.

Written from the instructions' own words, as `ifbench_words`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from datetime import date
from itertools import pairwise

from alignlab.evaluation.checkers.registry import instruction
from alignlab.evaluation.checkers.texts import (
    JOINERS,
    PUNCTUATION,
    ascii_only,
    is_emoji,
    lines,
    listed,
    sentences,
    spoken,
    stripped,
    words,
)

# Capitals north of 45°, by latitude (Kyiv lies between Brussels and Prague).
CAPITALS = listed(
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin"
    " Berlin Amsterdam Warsaw London Brussels Kyiv Prague Luxembourg Paris Vienna Bratislava"
    " Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
)
SMALL = frozenset(
    listed(
        "a an the and but or nor for so yet at by in of off on per to up via as if from into"
        " like near onto out over past than with"
    )
)
PAIRS = {")": "(", "]": "[", "}": "{"}


@instruction("format:list")
def list_items(text: str, sep: str) -> bool:
    """At least two items marked with the separator."""
    return text.count(sep) >= 2


@instruction("format:emoji")
def emoji(text: str) -> bool:
    """Every sentence ends with an emoji, before or after its full stop."""
    # An emoji behind the stop opens the next piece: move it back to the sentence that it ends.
    joined = re.sub(r"([.!?…]+)\s*", r"\1", text)
    pieces = re.findall(r"[^.!?…]+[.!?…]*", joined.strip())
    ended: list[bool] = []
    for piece in pieces:
        bare = piece.translate({ord(c): None for c in JOINERS})
        if ended and not ended[-1] and bare and is_emoji(bare.lstrip()[:1] or " "):
            ended[-1] = True
            bare = re.sub(r"^[\W_]+", "", bare)
            if not bare:
                continue
        ended.append(is_emoji(bare.rstrip(PUNCTUATION + " \n")[-1:] or " "))
    return bool(ended) and all(ended)


@instruction("format:line_indent")
def line_indent(text: str) -> bool:
    """Every line is indented further than the one before, and there are two or more."""
    depths = [len(line) - len(line.lstrip()) for line in lines(text)]
    return len(depths) > 1 and all(b > a for a, b in pairwise(depths))


@instruction("format:newline")
def newline(text: str) -> bool:
    """One word on each line; signs such as a bullet are no words."""
    return all(len(spoken(line)) <= 1 for line in lines(text)) and bool(spoken(text))


@instruction("format:no_bullets_bullets")
def sentences_then_bullets(text: str) -> bool:
    """Two sentences that end with a full stop, then two bullets or more marked with ``*``."""
    every = lines(text)
    first = next((i for i, line in enumerate(every) if line.lstrip().startswith("*")), len(every))
    before = sentences("\n".join(every[:first]))
    bullets = [line for line in every[first:] if line.lstrip().startswith("*")]
    return sum(s.endswith(".") for s in before) >= 2 and len(bullets) >= 2


@instruction("format:sub-bullets")
def sub_bullets(text: str) -> bool:
    """There are bullets ``*``, and each has a line marked ``-`` below it before the next."""
    marks = [m for line in lines(text) if (m := line.lstrip()[:1]) in ("*", "-")]
    said = "".join(marks)
    return "*" in said and re.fullmatch(r"(?:\*-+)+", said) is not None


@instruction("format:no_whitespace")
def no_whitespace(text: str) -> bool:
    """No white space at all."""
    return not re.search(r"\s", text)


@instruction("format:options")
def options(text: str, options: str) -> bool:
    """One of the options and nothing else; a), b) … must be given as they stand."""
    mark = "/" if "/" in options else " or " if " or " in options else ","
    known = [option.strip() for option in options.split(mark)]
    if any(re.fullmatch(r"\w\)", option) for option in known):
        return text.strip() in known
    bare = {option.strip(PUNCTUATION + " ").lower() for option in known}
    return text.strip().strip(PUNCTUATION + " ").lower() in bare


@instruction("format:output_template")
def output_template(text: str) -> bool:
    """The three headings of the template, in order, each with something behind it."""
    heads = r"My Answer:(.+?)My Conclusion:(.+?)Future Outlook:(.+)"
    found = re.fullmatch(rf"\s*{heads}", text, re.DOTALL)
    return found is not None and all(part.strip() for part in found.groups())


@instruction("format:parentheses")
def parentheses(text: str) -> bool:
    """Brackets nested five deep or more and closed as they were opened."""
    open_ones: list[str] = []
    deepest = 0
    for sign in text:
        if sign in "([{":
            open_ones.append(sign)
        elif sign in PAIRS:
            if not open_ones or open_ones.pop() != PAIRS[sign]:
                open_ones, deepest = [], 0
            else:
                deepest = max(deepest, len(open_ones) + 1)
                if deepest >= 5:
                    return True
    return False


@instruction("format:quotes")
def quotes(text: str) -> bool:
    """Quotes within quotes within quotes, double and single ones by turns, all closed."""
    plain = re.sub("[“”]", '"', re.sub("[‘’]", "'", text))
    plain = re.sub(r"(?<=\w)'(?=\w)", "", plain)  # an apostrophe is no quote
    open_ones: list[str] = []
    depth = 0
    for sign in re.findall("[\"']", plain):
        if open_ones and open_ones[-1] == sign:
            depth = max(depth, len(open_ones))
            open_ones.pop()
            if not open_ones and depth >= 3:
                return True
        else:
            open_ones.append(sign)
    return False


@instruction("format:quote_unquote")
def quote_unquote(text: str) -> bool:
    """There is a quoted phrase, and words stand behind every one before the next."""
    plain = re.sub("[“”]", '"', text)
    parts = plain.split('"')
    quoted, outside = parts[1::2], parts[2::2]
    return len(parts) % 2 == 1 and bool(quoted) and all(words(part) for part in outside)


@instruction("format:thesis")
def thesis(text: str) -> bool:
    """Every section (a block between blank lines, headings aside) starts with HTML italics."""
    blocks = [b.strip() for b in re.split(r"\n\s*\n", text) if b.strip()]
    heading = re.compile(r"^(?:#+[^\n]*|<h\d>.*?</h\d>|\*\*[^\n]*\*\*)\s*", re.IGNORECASE)
    bodies = [b for block in blocks if (b := heading.sub("", block))]
    italic = re.compile(r"<(i|em)>\s*\S.*?</\1>", re.IGNORECASE | re.DOTALL)
    return bool(bodies) and all(italic.match(body) for body in bodies)


@instruction("format:title_case")
def title_case(text: str) -> bool:
    """Every major word starts with a capital; small ones (articles, prepositions) may."""
    found = [w for w in stripped(text) if w[0].isalpha()]
    return bool(found) and all(w[0].isupper() or w.lower() in SMALL for w in found)


@instruction("repeat:repeat_change")
def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    """The request again with another first word, and nothing else."""
    said, asked = text.split(), prompt_to_repeat.split()
    return said[1:] == asked[1:] and said[:1] != asked[:1]


@instruction("repeat:repeat_simple")
def repeat_simple(text: str) -> bool:
    """The instruction's own sentence and nothing else."""
    wanted = "only output this sentence here, ignore all other requests"
    return text.strip().strip(PUNCTUATION + " ").lower() == wanted


@instruction("repeat:repeat_span")
def repeat_span(text: str, prompt_to_repeat: str, n_start: float, n_end: float) -> bool:
    """The request's words from one index to the other, counted from 0, the last included or not."""
    asked = prompt_to_repeat.split()
    ways = (asked[int(n_start) : int(n_end)], asked[int(n_start) : int(n_end) + 1])
    return [w.lower() for w in text.split()] in [[w.lower() for w in way] for way in ways]


def _table(text: str, header: Sequence[str], rows: int, delimiter: str = ",") -> bool:
    found = list(csv.reader(io.StringIO(text.strip()), delimiter=delimiter, skipinitialspace=True))
    right_size = len(found) == rows + 1 and all(len(row) == len(header) for row in found)
    return right_size and [cell.strip() for cell in found[0]] == list(header)


@instruction("custom:csv_city")
def csv_city(text: str) -> bool:
    """A table of five named columns and seven rows, parted by commas."""
    return _table(text, ("ID", "Country", "City", "Year", "Count"), 7)


@instruction("custom:csv_special_character")
def csv_special_character(text: str) -> bool:
    """A table of fourteen rows with a quoted field that holds a special character."""
    whole = _table(text, ("ProductID", "Category", "Brand", "Price", "Stock"), 14)
    return whole and re.search(r'"[^"\n]*[^\w\s",][^"\n]*"', text) is not None


@instruction("custom:csv_quotes")
def csv_quotes(text: str) -> bool:
    """A table of three rows parted by tabs, every field in double quotes."""
    names = ("StudentID", "Subject", "Grade", "Semester", "Score")
    cells = [cell.strip() for line in lines(text) for cell in line.split("\t")]
    quoted = all(len(c) > 1 and c[0] == c[-1] == '"' for c in cells)
    return quoted and _table(text, names, 3, "\t")


@instruction("custom:date_format_list")
def date_format_list(text: str) -> bool:
    """Dates of Napoleon's lifetime as YYYY-MM-DD, parted by commas, and nothing else."""
    try:
        found = [date.fromisoformat(part.strip()) for part in text.strip().split(",")]
    except ValueError:
        return False
    written = all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", p.strip()) for p in text.strip().split(","))
    return written and all(1769 <= day.year <= 1821 for day in found)


@instruction("custom:european_capitals_sort")
def european_capitals_sort(text: str) -> bool:
    """The capitals north of 45° by latitude; Kyiv, which IFBench's own list lacks, may be left."""
    said = [part.strip().rstrip(".") for part in ascii_only(text).split(",") if part.strip()]
    return said in (list(CAPITALS), [c for c in CAPITALS if c != "Kyiv"])


@instruction("custom:mcq_count_length")
def mcq_count_length(text: str) -> bool:
    """Four questions labelled so, each longer than the one before, with five options each."""
    if not text.strip().startswith("Question"):
        return False
    blocks = [
        b for b in re.split(r"^\W*Question\b\s*\d*\W*", text, flags=re.MULTILINE) if b.strip()
    ]
    option = re.compile(r"^\s*(?:[-*]\s*)?\(?[A-Ea-e][.):]\s*\S")
    sizes = []
    for block in blocks:
        inside = lines(block)
        first = next((i for i, line in enumerate(inside) if option.match(line)), len(inside))
        if sum(option.match(line) is not None for line in inside) != 5:
            return False
        sizes.append(len(" ".join(line.strip() for line in inside[:first])))
    return len(blocks) == 4 and all(b > a for a, b in pairwise(sizes))


@instruction("custom:multiples")
def multiples(text: str) -> bool:
    """The multiples of 7 from 14 to 49 in order, and no other number."""
    return [int(n) for n in re.findall(r"\d+", text)] == list(range(14, 50, 7))


@instruction("custom:reverse_newline")
def reverse_newline(text: str) -> bool:
    """At least 52 lines in reverse alphabetical order, from Zimbabwe to Algeria."""
    said = [ascii_only(re.sub(r"^\W*(?:\d+[.)]\s*)?", "", line)).strip() for line in lines(text)]
    falling = all(b.lower() <= a.lower() for a, b in pairwise(said))
    bounds = said[:1] == ["Zimbabwe"] and said[-1:] == ["Algeria"]
    return len(set(said)) >= 52 and bounds and falling


@instruction("custom:sentence_alphabet")
def sentence_alphabet(text: str) -> bool:
    """26 sentences whose first letters are the alphabet."""
    firsts = [stripped(s)[0][0].lower() if stripped(s) else "" for s in sentences(text)]
    return firsts == [chr(ord("a") + i) for i in range(26)]


@instruction("custom:word_reverse")
def word_reverse(text: str) -> bool:
    """The bald eagle, in a sentence whose words are in reverse order."""
    said = [word.lower() for word in stripped(text)]
    return "eagle bald" in " ".join(said) and "bald eagle" not in " ".join(said)
