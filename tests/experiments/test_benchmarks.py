"""The benchmark runs end to end, its losses agree, and its recorded results keep the contract."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"
WORKS = {"dpo", "reward_k4", "reward_k9", "kto", "sft", "grpo", "sampling", "ppo", "study"}
EXTRA = {"ipo", "simpo", "orpo"}


def check(results: dict) -> None:
    """The format that scripts rely on: DESIGN §6, and no ratio without parity."""
    assert results["machine"]["hardware"]
    assert "run.py" in results["command"]
    keys = [(r["work"], r["model"], r["adapter"]) for r in results["rows"]]
    assert len(keys) == len(set(keys)) > 0
    for row in results["rows"]:
        assert row["work"] in WORKS | EXTRA
        assert row["unit"].endswith("/s")
        assert row["ours"] is None or row["ours"] > 0
        parity = row["parity"]
        assert isinstance(parity["passed"], bool)
        if row["ratio"] is None:
            continue
        assert parity["passed"]
        assert parity["strict"]["largest"] <= parity["strict"]["tolerance"] <= 1e-4
        assert all(t["mean"] <= t["tolerance"] <= 2e-2 for t in parity["timed"].values())
        assert all(t["largest"] <= t["tolerance_largest"] <= 0.1 for t in parity["timed"].values())
        assert row["ratio"] == pytest.approx(row["ours"] / row["trl_tuned"])
        low, high = row["spread"]["ours"]
        assert low <= row["ours"] <= high
        assert row["peak_memory"]["ours"] > row["peak_memory"]["imports"]["ours"] > 0
        options = row["tuned_options"]
        # TRL's own defaults may be the best of what was tried
        assert options == {"default": True} or options["dtype"] in ("bfloat16", "amp", "float32")


def test_recorded_results_keep_the_contract():
    file = FOLDER / "results.json"
    if not file.is_file():
        pytest.skip("nothing has been measured yet: python experiments/benchmarks/run.py")
    check(json.loads(file.read_text(encoding="utf-8")))


def bench(tmp_path: Path, *arguments: str) -> dict:
    command = [sys.executable, str(FOLDER / "run.py"), "--model", "tiny", "--quick", "--quiet"]
    places = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    small = ["--threads", "1", "--default-repeats", "0", "--updates", "2"]
    done = subprocess.run(
        [*command, *places, *small, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))


@pytest.mark.long
def test_quick_run_of_one_work(tmp_path):
    results = bench(tmp_path, "--works", "dpo")
    check(results)
    [row] = results["rows"]
    assert row["ratio"] is not None
    losses = row["parity"]["strict"]["losses"]
    assert len(losses["ours"]) == len(losses["trl"]) == 2
    assert losses["ours"][0] != losses["ours"][1]  # an update was made in between
    assert row["parity"]["strict"]["largest_gradient_norm"] <= 1e-3
    assert (tmp_path / "out" / "results.png").is_file()
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "| dpo | pairs/s |" in table


def test_words_give_back_the_ids(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import case_words
    import cases

    tokenizer = case_words.word_tokenizer(40, eos=2, pad=5)
    ids = [7, 39, 12, 2, 22, 2]
    text = cases.words(ids, 2)
    assert text == "t7 t39 t12 <eos> t22 <eos>"
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode([7, 39, 2], skip_special_tokens=True) == "t7 t39"


@pytest.mark.parametrize(
    ("theirs", "passed"),
    [([0.5, 0.4], True), ([0.5, 0.45], False), ([0.59, 0.32], True), ([0.62, 0.29], False)],
    ids=["equal", "mean differs", "single updates differ a little", "a single update differs"],
)
def test_parity_of_timed_runs(monkeypatch, theirs, passed):
    monkeypatch.syspath_prepend(str(FOLDER))
    import parity

    runs = {"ours": [{"losses": [0.5, 0.4]}], "trl_tuned": [{"losses": theirs}]}
    found = parity.timed_parity(runs)["trl_tuned"]
    assert found["passed"] is passed
    assert found["mean"] == pytest.approx(abs(sum(theirs) - 0.9) / 2)


def test_tuning_keeps_the_fastest_and_skips_what_does_not_apply(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import cases
    import tuning

    case = cases.Case(
        work="sft",
        model="tiny",
        adapter="lora",
        data="random",
        batch=8,
        updates=4,
        new_tokens=0,
        group=1,
        seed=0,
        eos=2,
        pad=0,
        stop=[],
        order=[],
        learning_rate=1e-4,
    )
    speeds = {"float32": 1.0, "amp": 2.0, "bfloat16": 3.0}

    def speed(options):
        if options["attention"] == "eager":
            return None  # a candidate that fails
        packed = {"bfd": 5.0, "bfd_split": 4.0}.get(options["packing"], 0.0)
        return speeds[options["dtype"]] + packed + (options["length"] == 512)

    best, tried = tuning.search(case, speed)
    assert (best["dtype"], best["packing"], best["length"]) == ("bfloat16", "bfd", 512)
    assert best["attention"] == "sdpa"
    rows = {t["options"]["rows"] for t in tried}
    assert rows == {tuning.guess(case)["rows"]}  # a packed run has no rows to choose
    assert max(t["items_per_second"] or 0 for t in tried) == 9.0
