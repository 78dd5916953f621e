"""Methods of grids, searches and assessments: who belongs together, and what failed."""

from __future__ import annotations

import json

import pytest
from fake_study import FakeStore, write_json, write_run, write_study

from alignlab.report.analysis import analyse
from alignlab.report.concerns import concerns
from alignlab.report.naming import head_of
from alignlab.report.summary import text_summary
from alignlab.report.table import read_study, shared_stages
from alignlab.report.verdict import verdict


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> FakeStore:
    """Three seeds of everything that a study may hold."""
    root = tmp_path_factory.mktemp("grid")
    write_study(
        root, seeds=3, prompts=16, missing=False,
        grids=True, judged=True, benchmarked=True, searched=True,
    )  # fmt: skip
    return FakeStore(root)


@pytest.fixture(scope="module")
def study(grid):
    return read_study("demo", grid)


@pytest.fixture(scope="module")
def analysis(study):
    return analyse(study, draws=300)


def by_label(study):
    return {m.label: m for m in study.methods}


@pytest.mark.slow
def test_points_of_a_sweep_are_one_family(study):
    families = {}
    for method in study.methods:
        families.setdefault(method.family, []).append(method.label)
    assert families["GRPO"] == ["GRPO, β 0.1", "GRPO, β 0.02", "GRPO, β 0.3"]
    assert families["best of n"] == ["best of 8", "best of 2", "best of 4", "best of 16"]
    assert families["KTO"] == ["KTO"]
    assert sorted(families) == [
        "DPO", "GRPO", "IPO (mean)", "KTO", "ORPO", "PPO", "SFT", "best of n",
    ]  # fmt: skip
    assert len({m.id for m in study.methods}) == len(study.methods)


def test_a_searched_policy_is_the_trial_that_was_chosen(study):
    dpo = by_label(study)["DPO, tuned"]
    for seed, policy in dpo.policies.items():
        select = dpo.selection[seed]
        assert select.kind == "select"
        assert policy.name == select.record["chosen"]
        assert policy.kind == "preference"
    assert dpo.settings.replace("\u00a0", " ").startswith("β 0.1 · 2 epochs; lr ")
    assert "chosen of 6 trials" in dpo.settings
    assert not by_label(study)["KTO"].selection


def test_seeds_that_chose_other_settings_are_one_method(tmp_path):
    write_study(tmp_path, prompts=4, missing=False, searched=True)
    for name in ("select-1a-dpo", "evaluate-1a-dpo"):
        record = tmp_path / name / "record.json"
        write_json(record, {**json.loads(record.read_text()), "label": "DPO (beta=0.3)"})
    found = by_label(read_study("demo", FakeStore(tmp_path)))
    assert found["DPO"].seeds == [0, 1]


def test_evaluations_that_a_search_chose_by_are_no_methods(study):
    shown = {run.name for m in study.methods for run in m.evaluations.values()}
    assert not [name for name in shown if "trial" in name]
    assert [name for name in study.runs if name.startswith("evaluate") and "trial" in name]


def test_judgements_and_benchmarks_belong_to_their_method(study):
    for method in study.methods:
        for seed, run in method.judgements.items():
            assert run.inputs["samples"] == method.evaluations[seed].name
        for seed, run in method.benchmarks.items():
            assert run.inputs["policy"] == method.evaluations[seed].inputs["policy"]
    labels = by_label(study)
    assert len(labels["DPO, tuned"].judgements) == len(labels["DPO, tuned"].benchmarks) == 3
    assert len(labels["SFT"].benchmarks) == 3
    assert not labels["SFT"].judgements
    assert len(labels["best of 8"].judgements) == 3
    assert not labels["best of 8"].benchmarks  # it is SFT that was benchmarked


def test_assessments_and_trials_are_no_shared_stages(study):
    assert list(shared_stages(study)) == ["sft", "annotate", "reward: reward model"]


def test_a_diverged_seed_is_counted_for_its_method(study):
    ppo = by_label(study)["PPO, β 0.01"]
    assert ppo.failed == {2: "loss is not finite at step 31"}
    assert ppo.seeds == [0, 1]
    assert ppo.settings.endswith("; 1 of 3 seeds failed")
    own = [f for f in study.failures if not f.trial]
    assert [(f.stage, f.seed, f.method, f.diverged) for f in own] == [
        ("ppo,kl_coef=0.01", 2, ppo.id, True)
    ]
    assert len([f for f in study.failures if f.trial]) == 6  # the highest rate of 2 searches × 3
    assert study.missing == ()  # what assesses a failed stage is not missing beside


def test_failures_are_concerns(analysis):
    found = {(c.level, c.topic): c.text for c in concerns(analysis)}
    text = found["serious", "failed runs"]
    assert text.startswith("PPO, β 0.01: 1 of 3 seeds diverged (seed 2: loss is not finite")
    assert "conditional on the seeds that finished" in text
    assert found["note", "failed trials"].startswith("6 trials of searches diverged or failed")
    assert ("serious", "unequal seeds") not in found  # said already


def test_a_winner_that_lost_a_seed_says_so(small):
    """The best method fails on one seed: its mean is not silently that of the lucky ones."""
    folder = small.root / "ppo-1a-ppo"
    (folder / "DONE").unlink()
    whole = json.loads((folder / "record.json").read_text())
    write_json(folder / "record.json", {**whole, "error": "loss is not finite at step 2"})
    (small.root / "evaluate-1a-ppo" / "DONE").unlink()
    text = " ".join(verdict(analyse(read_study("demo", small), draws=50)))
    assert "PPO has the highest gold reward" in text
    assert "Caution: 1 of 2 seeds of PPO failed; its numbers are conditional" in text


def test_a_method_of_which_no_seed_finished_is_named(small):
    for seed in (0, 1):
        record = small.root / f"ppo-{seed}a-ppo" / "record.json"
        whole = json.loads(record.read_text())
        write_json(record, {**whole, "error": "loss is not finite at step 2"})
        (record.parent / "DONE").unlink()
        for file in (small.root / f"evaluate-{seed}a-ppo").iterdir():
            file.unlink()
        (small.root / f"evaluate-{seed}a-ppo").rmdir()
    study = read_study("demo", small)
    assert "PPO" not in by_label(study)
    text = next(c.text for c in concerns(analyse(study, draws=50)) if c.topic == "failed runs")
    assert text.startswith("PPO: 2 runs diverged (ppo-0a-ppo, ppo-1a-ppo; seed 0, 1: loss")


def test_of_many_points_one_per_family_is_compared(analysis):
    trained = [s.method for s in analysis.trained]
    assert sorted(m.family for m in trained) == [
        "DPO", "GRPO", "IPO (mean)", "KTO", "ORPO", "PPO",
    ]  # fmt: skip
    assert {m.label for m in trained} >= {"DPO, tuned", "PPO, tuned"}
    # GRPO's point is the one nearest to the KL that every sweep reaches, whatever its gold
    root = {
        s.method.label: abs(s.value("kl") ** 0.5 - analysis.equal_kl**0.5)
        for s in analysis.points
        if s.method.family == "GRPO"
    }
    assert min(root, key=root.get) in {m.label for m in trained}
    compared = len(analysis.compared)
    assert len(analysis.pairs) == compared * (compared - 1) // 2
    assert compared == 8  # six families, SFT, one best of n
    assert all(s.p_over_sft is not None for s in analysis.points)
    assert len(analysis.points) > 12


def test_few_points_are_all_compared(store):
    analysis = analyse(read_study("demo", store), draws=50)
    assert analysis.equal_kl is None
    assert len(analysis.compared) == len(analysis.scores) == 8


@pytest.mark.slow
def test_the_verdict_says_how_settings_were_picked(grid, analysis):
    first = verdict(analysis)[0]
    assert "of the settings compared near a KL of" in first
    assert text_summary("demo", grid).count("best of") >= 4


def test_upstream_settings_make_families(small):
    """The same PPO on two reward models is two methods, though its own configuration is one."""
    stages = {"evaluate_sft": "evaluate-0a-sft"}
    for rows in (100, 400):
        reward = write_run(
            small.root, "reward", f"r{rows}", label="reward model",
            inputs={"init": "sft-0a"}, config={"seed": 0, "rows": rows},
        )  # fmt: skip
        for beta in (0.1, 1.0):
            key = f"r{rows}b{beta:g}".replace(".", "")
            policy = write_run(
                small.root, "ppo", key, label=f"PPO (β={beta})", config={"kl_coef": beta},
                inputs={"reference": "sft-0a", "reward": reward},
            )  # fmt: skip
            stages[key] = write_run(
                small.root, "evaluate", key, label=f"PPO (β={beta})",
                inputs={"policy": policy, "reference": "sft-0a", "reward": reward},
                samples=[{"prompt_id": "a", "gold": beta, "kl": 1.0, "completion": "x"}],
            )  # fmt: skip
    write_json(small.studies / "two" / "study.json", {"jobs": [{"seed": 0, "stages": stages}]})
    found = {m.label: m.family for m in read_study("two", small).methods}
    assert found == {
        "SFT": "SFT",
        "PPO, reward rows 100, β 0.1": "PPO, reward rows 100",
        "PPO, reward rows 100, β 1.0": "PPO, reward rows 100",
        "PPO, reward rows 400, β 0.1": "PPO, reward rows 400",
        "PPO, reward rows 400, β 1.0": "PPO, reward rows 400",
    } or found == {
        label.replace("β 1.0", "β 1"): family for label, family in found.items()
    }  # fmt: skip


def test_head_of_a_label():
    assert head_of("IPO (tau=0.1, normalize=mean)") == "IPO (mean)"
    assert head_of("DPO (beta=0.1)") == "DPO"
    assert head_of("best of 16 (DPO)", 16) == "best of n (DPO)"
