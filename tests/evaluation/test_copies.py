"""Which n-grams of texts stand in a corpus, against a search of every one of them."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.compose import compose
from alignlab.errors import ConfigError
from alignlab.evaluation.copies import Copies
from alignlab.plan import build_stage


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_by_hand() -> None:
    # the corpus: 1 2 3 4 | 5 6; the 9s lie between its texts and belong to none
    copies = Copies([array(2, 3, 4, 5, 6), array(4, 5), array(9, 9), array(), array(3, 7)])
    copies.read(array(9, 1, 2, 3, 4, 9, 5, 6), array(1, 6), array(5, 8))
    # 2 3 | 3 4 | 4 5 | 5 6: all but 4 5, which crosses from one text of the corpus to the next
    assert copies.found(0, 2) == (3, 4)
    assert copies.found(0, 3) == (1, 3)
    assert copies.found(0, 1) == (5, 5)
    assert copies.found(0, 6) == (0, 0)
    assert copies.longest(0) == 3  # 2 3 4
    assert (copies.found(1, 2), copies.longest(1)) == ((0, 1), 1)
    assert (copies.found(2, 1), copies.longest(2)) == ((0, 2), 0)
    assert (copies.found(3, 1), copies.longest(3)) == ((0, 0), 0)
    assert (copies.found(4, 1), copies.longest(4)) == ((1, 2), 1)


def test_the_same_token_counts_where_it_stands() -> None:
    copies = Copies([array(0, 0, 0, 1, 0, 0)])
    copies.read(array(0, 0), array(0), array(2))
    assert copies.found(0, 2) == (3, 5)  # 00 00 01 10 00
    assert copies.longest(0) == 2


def test_equals_a_search_in_parts_and_at_once() -> None:
    random = np.random.default_rng(0)
    texts = [random.integers(0, 6, random.integers(0, 15)) for _ in range(12)]
    corpus = [random.integers(0, 6, random.integers(1, 20)) for _ in range(40)]

    def taken(*parts: list[np.ndarray]) -> Copies:
        copies = Copies(texts)
        for part in parts:
            ids = np.concatenate([piece for text in part for piece in (text, array(3))])
            ends = np.cumsum([len(text) + 1 for text in part]) - 1
            copies.read(ids, ends - [len(text) for text in part], ends)
        return copies

    def stands(run: np.ndarray) -> bool:
        return any(
            np.array_equal(text[i : i + len(run)], run)
            for text in corpus
            for i in range(len(text) - len(run) + 1)
        )

    whole, parted = taken(corpus), taken(corpus[:15], corpus[15:])
    for number, text in enumerate(texts):
        longest = 0
        for n in range(1, len(text) + 1):
            there = [stands(text[i : i + n]) for i in range(len(text) - n + 1)]
            longest = n if any(there) else longest
            assert whole.found(number, n) == (sum(there), len(there))
            assert parted.found(number, n) == (sum(there), len(there))
        assert whole.longest(number) == parted.longest(number) == longest
    assert max(map(whole.longest, range(len(texts)))) > 4


def test_nothing_to_look_for_and_nothing_to_look_in() -> None:
    copies = Copies([])
    copies.read(array(1, 2), array(0), array(2))
    copies = Copies([array(1, 2)])
    copies.read(array(), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert copies.longest(0) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [("ngrams=[]", "ngrams"), ("ngrams=[4,4]", "each once"), ("ngrams=[0]", "lengths")],
)
def test_a_task_that_measures_nothing_is_refused(change: str, said: str) -> None:
    node = compose(
        [
            "pipeline=sft", "experiment=smoke", "+stage@stages.b=benchmark",
            "+stages.b.inputs.policy=s", "+task@stages.b.tasks.copying=copying",
            f"stages.b.tasks.copying.{change}",
        ]
    )["stages"]["b"]  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        build_stage(node, "stages.b").fingerprint()
