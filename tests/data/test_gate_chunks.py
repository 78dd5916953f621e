"""The gate over chunks: how the rows are cut changes nothing, and memory stays small."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from gate_cases import findings, message, pair, shown, talk, thumb

from alignlab.data.gate.gate import Gate, check
from alignlab.data.gate.tally import Column, Histogram, Ledger
from alignlab.data.group import PromptGroup, Verdict
from alignlab.data.template import Tokenization

LONG = "the film was very good and the acting was very bad and the film was a bad movie "
HELD_OUT = {
    "validation": [shown("the movie!", LONG)],
    "test": [PromptGroup("the film was a movie 7"), PromptGroup("A bad   MOVIE 9")],
}


def everything():
    """Rows with nearly every kind of fault, in no order."""
    clean = [pair(f"the film {i}\n", " was good", f" was bad {i}") for i in range(20)]
    faults = [
        pair("a film\n", " good", " good"),
        pair("a movie\n", " good", " bad"),
        pair("a movie\n", " bad", " good"),
        thumb("the acting\n", " good", True),
        thumb("the acting\n", " good", False),
        pair("the film was, a movie 7", " good", " bad"),
        pair("a bad movie 9\n", " good", " bad"),
        shown("the end\n", LONG * 2),
        pair("three\n", " aa", " bb"),
        pair("three\n", " bb", " cc"),
        pair("three\n", " cc", " aa"),
        shown("odd\n", "\x07 bell"),
        shown("odd\n", " itâ€™s"),
        shown("odd\n", " gone \ufffd"),
        shown("odd\n", " hidden \u202e"),
        shown("eos<|eos|>\n", " x"),
        shown("film", "film"),
        shown("one\n", ""),
        shown("long\n", " film" * 900),
        clean[3],
        PromptGroup("many\n", (" a", " b", " c"), Verdict("scores", scores=(1.0, 2.0, 2.0))),
        shown("Когда фильм?\n", " Хорошо"),
    ]
    rows = [row for two in zip(clean, faults, strict=False) for row in two] + faults[20:]
    return [replace(row, meta={"place": f"rows.jsonl, line {i}"}) for i, row in enumerate(rows, 1)]


@pytest.mark.parametrize("size", [1, 7, 13])
def test_chunks_change_no_finding(plain_tokenizer, size):
    options = {"need": "pairs", "held_out": HELD_OUT, "lengths": (64, 90)}
    whole = findings(everything(), plain_tokenizer, **options)
    assert findings(everything(), plain_tokenizer, size=size, **options) == whole
    codes = {f.code for f in whole}
    assert codes >= {
        "chosen_is_rejected", "contradiction", "preference_cycle", "prompt_in_two_splits",
        "near_prompt_in_two_splits", "held_out_answer", "control_character", "mojibake",
        "replacement_character", "invisible_character", "special_token_in_text",
        "no_space_between", "empty_completion", "length_outlier", "repeated_row",
        "verdict_missing", "completion_truncated",
    }  # fmt: skip


def test_chunks_of_conversations(chatml_tokenizer):
    rows = [
        shown(talk("user", "film", "user", "good"), talk("assistant", "bad")),
        shown(talk("assistant", "film"), talk("assistant", "bad")),
        shown(talk("user", "film", "system", "good"), talk("assistant", "bad")),
        shown((message("user", "film"),), (message("assistant", "bad"), message("user", "good"))),
    ]
    whole = findings(rows * 5, chatml_tokenizer)
    assert findings(rows * 5, chatml_tokenizer, size=1) == whole
    assert {"two_users", "assistant_first", "system_inside"} <= {f.code for f in whole}


def test_places_follow_the_rows(plain_tokenizer):
    found = {f.code: f for f in findings(everything(), plain_tokenizer)}
    # "odd" + bell is the twelfth fault: rows alternate clean, fault, so it is line 24
    assert found["control_character"].places == ("rows.jsonl, line 24",)
    assert found["control_character"].rows == (23,)
    assert found["control_character"].where() == "rows.jsonl, line 24"


def test_statistics_do_not_depend_on_chunks(plain_tokenizer):
    rows = everything()
    tokens = Tokenization(plain_tokenizer, 64, 90).groups(rows)
    one, many = Gate(plain_tokenizer), Gate(plain_tokenizer)
    one.see(rows, tokens)
    for row, token in zip(rows, tokens, strict=True):
        many.see([row], [token])
    assert one.statistics() == many.statistics()
    made = one.statistics()
    assert made.rows == len(rows)
    assert made.tokens == sum(len(t.prompt) + sum(map(len, t.completions)) for t in tokens)
    assert made.targets == sum(sum(map(len, t.completions)) for t in tokens)
    # " film" is a token: 900 and EOS, of which 90 are kept; LONG * 2 loses the rest of its own
    lost = [sum(t.meta.get("completion_cut", ())) for t in tokens]
    assert lost[37] == 901 - 90
    assert made.lost_tokens == sum(lost)
    assert made.truncated_rows == sum(n > 0 for n in lost)


def test_findings_can_be_asked_for_again(plain_tokenizer):
    rows = everything()
    tokens = Tokenization(plain_tokenizer, 64, 90).groups(rows)
    gate = Gate(plain_tokenizer)
    gate.see(rows[:30], tokens[:30])
    first = gate.findings()
    assert gate.findings() == first
    gate.see(rows[30:], tokens[30:])
    assert gate.findings() == check(rows, tokens, plain_tokenizer)


def test_a_gate_goes_on_after_pickling(plain_tokenizer):
    rows = everything()
    tokens = Tokenization(plain_tokenizer, 64, 90).groups(rows)
    gate = Gate(plain_tokenizer, held_out=HELD_OUT)
    gate.see(rows[:30], tokens[:30])
    again = pickle.loads(pickle.dumps(gate))
    for one in (gate, again):
        one.see(rows[30:], tokens[30:])
    assert again.findings() == gate.findings()


@pytest.mark.slow
def test_memory_is_hashes_and_counters(plain_tokenizer):
    """2,000 pairs of 400 tokens: what is kept of a row is far smaller than the row."""
    rows = [pair(f"{i} film\n", f" good {i}" * 40, f" bad {i}" * 40) for i in range(2000)]
    tokens = Tokenization(plain_tokenizer, 64, 512).groups(rows)
    empty = len(pickle.dumps(Gate(plain_tokenizer)))
    gate = Gate(plain_tokenizer, held_out={"test": rows[:1]})
    for start in range(0, 2000, 500):
        gate.see(rows[start : start + 500], tokens[start : start + 500])
    # row hash 8 + position 8, pair 3 · 8 + 8, ledger 24: 80 bytes, and what does not grow
    assert len(pickle.dumps(gate)) - empty < 2000 * 100 + 200_000
    assert sys.getsizeof(gate) < 1000


def test_ledger_keeps_any_place():
    places = ["a.jsonl, line 3", "row 12", "", "line 007", "Zeile ١", "shard"]
    tokens = [
        Tokenization.__new__(Tokenization) and _token(i, place) for i, place in enumerate(places)
    ]
    ledger = Ledger()
    ledger.add(tokens)
    assert ledger.places(range(6)) == tuple(places)
    assert ledger.rows([0, 5]) == (0, 50)


def _token(i, place):
    from alignlab.data.group import NONE, TokenGroup

    return TokenGroup(np.zeros(1, np.int32), (), NONE, 10 * i, "", meta={"place": place})


def test_histogram_by_hand():
    lengths = Histogram()
    assert lengths.quantile(0.5) == 0
    lengths.add(np.array([3, 1]))
    lengths.add(np.array([7, 3, 10]))
    # sorted: 1 3 3 7 10
    assert [lengths.quantile(q) for q in (0, 0.2, 0.21, 0.5, 0.8, 1)] == [1, 1, 3, 3, 7, 10]
    assert (lengths.total(), lengths.above(3), lengths.above(6.5), lengths.above(10)) == (
        24,
        2,
        2,
        0,
    )
    lengths.add(np.array([10**9]))  # does not allocate a billion counters
    assert lengths.quantile(1) == Histogram.CAP


def test_column_is_compact():
    column = Column("Q")
    column.add(np.array([1, 2**64 - 1], dtype=np.uint64))
    assert column.values().tolist() == [1, 2**64 - 1]
    signed = Column("q")
    signed.add(np.array([-5]))
    assert (signed.values().tolist(), len(signed)) == ([-5], 1)
