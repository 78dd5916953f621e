"""Gains at equal length: what is left when longer completions no longer earn by being longer."""

from __future__ import annotations

import numpy as np
import pytest
from fake_study import FakeStore, write_json, write_run

from alignlab.report.analysis import analyse
from alignlab.report.length import at_equal_length, part, slope
from alignlab.report.style import looks
from alignlab.report.table import read_study


def test_slope_is_pooled_within_methods():
    # a: x − mean = −1 0 1, y − mean = −2 0 2; b: −2 0 2 and −1 0 1. Sums: 4 + 4 over 2 + 8.
    tokens = {"a": np.array([[1.0, 2, 3]]), "b": np.array([[100.0, 102, 104]])}
    gold = {"a": np.array([[1.0, 3, 5]]), "b": np.array([[-7.0, -6, -5]])}
    assert slope(gold, tokens) == pytest.approx(0.8)


def test_slope_leaves_out_what_is_missing():
    tokens = {"a": np.array([[1.0, np.nan, 2, 3]]), "b": np.array([[5.0, np.nan]])}
    gold = {"a": np.array([[1.0, 9, 3, np.nan]]), "b": np.array([[1.0, 2]])}
    assert slope(gold, tokens) == pytest.approx(2.0)
    assert np.isnan(slope({"a": np.array([[1.0, 2]])}, {"a": np.array([[3.0, 3]])}))


def planted(root, *, gain: float) -> FakeStore:
    """Gold is 0.05 per token plus ``gain`` for DPO, which writes 10 tokens more than SFT."""
    jobs = []
    for seed in range(3):
        sft = write_run(root, "sft", f"{seed}", label="SFT", inputs={})
        stages = {}
        for label, longer, own in (("SFT", 0, 0.0), ("DPO", 10, gain)):
            rows = []
            for i in range(40):
                tokens = 20 + longer + (7 * i + seed) % 11
                gold = 0.05 * tokens + own + 0.001 * ((i * (seed + 3)) % 5)
                rows.append({"prompt_id": str(i), "prompt": "p", "completion": "a", "gold": gold,
                             "tokens": tokens, "finished": True})  # fmt: skip
            policy = sft
            if label != "SFT":
                policy = write_run(root, "preference", f"{seed}d", label=label,
                                   inputs={"reference": sft})  # fmt: skip
            stages[label] = write_run(root, "evaluate", f"{seed}{label}", label=label, samples=rows,
                                      inputs={"policy": policy, "reference": sft})  # fmt: skip
        jobs.append({"seed": seed, "stages": stages})
    write_json(root / "studies" / "s" / "study.json", {"jobs": jobs})
    return FakeStore(root)


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_a_gain_by_length_alone_is_gone_at_equal_length(tmp_path, gain):
    analysis = analyse(read_study("s", planted(tmp_path, gain=gain)))
    dpo = next(s for s in analysis.scores if not s.method.baseline)
    assert dpo.over_sft["gold"].value == pytest.approx(0.5 + gain, abs=0.01)
    equal = at_equal_length(analysis)[dpo.method.id]
    assert equal.value == pytest.approx(gain, abs=0.01)
    assert list(at_equal_length(analysis)) == [dpo.method.id]


@pytest.mark.slow
def test_the_section_has_the_numbers(tmp_path):
    analysis = analyse(read_study("s", planted(tmp_path / "runs", gain=0.3)))
    found = part(analysis, looks([s.method for s in analysis.scores]), tmp_path)
    (row,) = [r for r in found.tables["length"] if r["method"] == "DPO"]
    assert row["tokens_over_sft"] == pytest.approx(10)
    assert row["gold_over_sft_at_equal_length"] == pytest.approx(0.3, abs=0.01)
    assert (tmp_path / "length.png").is_file()
    assert 'class="number" href="#config-dpo"' in found.html
