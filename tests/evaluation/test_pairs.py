"""Rows and summary of preference pairs by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from alignlab import typed
from alignlab.compose import compose
from alignlab.data.group import TokenGroup, Verdict
from alignlab.errors import DataError
from alignlab.evaluation.pairs import PairSet, rows_of, spearman, summarise


def group(name: str, lengths: list[int], ranks: tuple[int, ...]) -> TokenGroup:
    ids = [np.ones(n, dtype=np.int32) for n in lengths]
    return TokenGroup(ids[0], tuple(ids), Verdict("ranking", ranks=ranks), 0, name)


def test_rows_by_hand() -> None:
    groups = [group("a", [3, 5], (0, 1)), group("b", [2, 2, 4], (1, 1, 0))]
    rows = rows_of("set", groups, [1.0, 0.0, 2.0, 0.5, 2.0], 2.0, ["x", "y"])
    # a: 0 over 1; b: 2 over 0 (a tie of scores) and 2 over 1
    assert [(r["item"], r["subset"], r["value"], r["margin"]) for r in rows] == [
        ("a", "x", 1.0, 1.0),
        ("b", "y", 0.5, 0.0),
        ("b", "y", 1.0, 1.5),
    ]
    # gain 2: the logit of the first pair is 1 / 2
    assert rows[0]["probability"] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert (rows[2]["chosen_tokens"], rows[2]["rejected_tokens"]) == (4, 2)
    assert (rows[0]["chosen_score"], rows[0]["rejected_score"]) == (1.0, 0.0)


def test_summary_by_hand() -> None:
    groups = [group("a", [3, 5], (0, 1)), group("b", [6, 2], (0, 1)), group("c", [4, 2], (0, 1))]
    rows = rows_of("set", groups, [1.0, 0.0, 0.0, 3.0, 2.0, 0.0], 1.0, ["x", "x", "y"])
    found = summarise(rows, 1.0)
    assert found["set/accuracy"] == pytest.approx(2 / 3)
    assert found["set/pairs"] == 3
    assert found["set/accuracy_shorter"] == 1.0  # a alone has a shorter better one
    assert found["set/accuracy_longer"] == 0.5  # b wrong, c right
    assert found["set/chosen_longer"] == pytest.approx(2 / 3)
    assert found["set:x/accuracy"] == 0.5
    assert found["set:y/accuracy"] == 1.0
    assert found["set/accuracy_macro"] == 0.75
    # margins 1 −3 2 against length differences −2 4 2: ranks 2 1 3 and 1 3 2
    assert found["set/length_correlation"] == pytest.approx(spearmanr([1, -3, 2], [-2, 4, 2])[0])


def test_spearman_is_scipys() -> None:
    source = np.random.default_rng(1)
    a, b = source.integers(0, 6, 50).tolist(), source.integers(0, 6, 50).tolist()
    assert spearman(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert spearman([1, 1], [2, 3]) is None


def pair_set(path: Path, **changes: Any) -> PairSet:
    overrides = ["pipeline=instructgpt", "+stage@stages.rb=reward_benchmark"]
    config = compose(
        [*overrides, "+pairs@stages.rb.sets.s=file", f"stages.rb.sets.s.data.path={path}"]
    )
    return typed.build(PairSet, {**config["stages"]["rb"]["sets"]["s"], **changes}, "s")


@pytest.mark.slow
def test_a_file_is_one_set_and_its_field_names_the_subsets(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"p{n}", "chosen": "yes", "rejected": "no", "subset": "ab"[n % 2]}
        for n in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = pair_set(path)
    assert len(one.load("s")) == 6  # all rows, though the file is not named a test set
    parts = pair_set(path, subset="subset", items=3)
    groups = parts.load("s")
    assert len(groups) == 3
    assert {parts.subset_of(g.meta) for g in groups} <= {"a", "b"}
    with pytest.raises(DataError, match="subset"):
        pair_set(path, subset="subsett").load("s")


@pytest.mark.slow
def test_a_set_without_verdicts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(4)))
    with pytest.raises(DataError, match="better and a worse"):
        pair_set(path).load("s")
