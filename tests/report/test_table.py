from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_study import FakeStore, write_json, write_run, write_study

from alignlab.errors import DataError
from alignlab.report.analysis import analyse, best_of_kl
from alignlab.report.concerns import concerns
from alignlab.report.folders import flatten, read_lines, settings_of
from alignlab.report.run_concerns import _weak_rewards
from alignlab.report.table import read_study, shared_stages


def topics(small: FakeStore) -> dict[str, str]:
    return {c.topic: c.text for c in concerns(analyse(read_study("demo", small), draws=50))}


def test_methods_group_seeds(store):
    study = read_study("demo", store)
    assert [m.label for m in study.methods] == [
        "SFT",
        "best of 8",
        "DPO",
        "IPO (mean)",
        "KTO",
        "ORPO",
        "PPO",
        "GRPO",
    ]
    assert all(m.seeds == [0, 1] for m in study.methods)
    dpo = study.methods[2]
    assert dpo.full_label == "DPO (beta=0.1)"
    assert dpo.settings.replace("\u00a0", " ") == "β 0.1 · lr 5e-5 · 2 epochs"
    assert dpo.policies[1].name == "preference-1a-dpo"
    assert [m.label for m in study.methods if m.baseline] == ["SFT"]
    assert [m.best_of for m in study.methods[:3]] == [1, 8, 1]


def test_shared_stages_are_listed_once(store):
    shared = shared_stages(read_study("demo", store))
    names = {title: [r.name for r in runs] for title, runs in shared.items()}
    assert names == {
        "sft": ["sft-0a", "sft-1a"],
        "annotate": ["annotate-0a", "annotate-1a"],
        "reward: reward model": ["reward-0a", "reward-1a"],
    }


def test_missing_runs_are_named(store):
    missing = read_study("demo", store).missing
    assert [line.split(":")[0] for line in missing] == ["simpo (seed 1)", "evaluate_simpo (seed 1)"]


def test_one_label_with_two_settings_is_two_methods(small):
    for beta in (0.1, 0.5):
        policy = write_run(
            small.root,
            "preference",
            f"beta{beta}".replace(".", ""),
            label="DPO",
            inputs={"reference": "sft-0a"},
            config={"seed": 0, "objective": {"beta": beta}},
        )
        write_run(
            small.root,
            "evaluate",
            f"beta{beta}".replace(".", ""),
            label="DPO",
            inputs={"policy": policy, "reference": "sft-0a"},
            samples=[{"prompt_id": "a", "gold": beta, "completion": "x", "finished": True}],
        )
    stages = {"a": "evaluate-beta01", "b": "evaluate-beta05"}
    write_json(small.studies / "grid" / "study.json", {"jobs": [{"seed": 0, "stages": stages}]})
    labels = [m.label for m in read_study("grid", small).methods]
    assert labels == ["DPO, β 0.1", "DPO, β 0.5"]


def test_unknown_study_says_which_there_are(small):
    with pytest.raises(
        DataError, match=r"no study 'demmo'.*Did you mean 'demo'\?.*Known studies: demo"
    ):
        read_study("demmo", small)


def test_broken_study_file_is_named(small):
    (small.studies / "demo" / "study.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not a study file"):
        read_study("demo", small)


def test_failed_diverged_and_unfinished_runs_are_counted(small):
    for name, error in (("dpo", "loss is not finite at step 3"), ("kto", "out of memory")):
        folder = small.root / f"preference-1a-{name}"
        (folder / "DONE").unlink()
        record = json.loads((folder / "record.json").read_text())
        write_json(folder / "record.json", {**record, "error": error})
        shutil.rmtree(small.root / f"evaluate-1a-{name}")
    (small.root / "evaluate-1a-grpo" / "DONE").unlink()
    found = topics(small)
    said = [c.text for c in concerns(analyse(read_study("demo", small), draws=50))]
    assert [text for text in said if text.startswith("DPO: 1 of 2 seeds diverged")]
    assert [text for text in said if "seeds failed (seed 1: out of memory)" in text]
    assert "conditional on the seeds that finished" in found["failed runs"]
    assert "evaluate-1a-grpo" in found["unfinished run"]
    assert "1 of 2 seeds" in found["unequal seeds"]
    assert "GRPO" in found["not evaluated"]
    grpo = next(m for m in read_study("demo", small).methods if m.label == "GRPO")
    assert grpo.seeds == [0]


def test_what_cannot_be_read_is_said(small):
    (small.root / "preference-0a-dpo" / "config.json").unlink()
    (small.root / "ppo-0a-ppo" / "env.json").write_text("[]", encoding="utf-8")
    record = small.root / "grpo-0a-grpo" / "record.json"
    whole = json.loads(record.read_text())
    for key in ("flops", "label"):
        whole.pop(key)
    write_json(record, whole)
    write_json(small.root / "grpo-1a-grpo" / "record.json", whole)
    rows = [
        json.loads(x)
        for x in (small.root / "evaluate-0a-kto" / "samples.jsonl").read_text().splitlines()
    ]
    rows[0]["gold"] = "nan"
    for row in rows:
        row.pop("audit")
    for seed in (0, 1):
        (small.root / f"evaluate-{seed}a-kto" / "samples.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
        )
    found = concerns(analyse(read_study("demo", small), draws=50))
    text = " | ".join(f"{c.topic}: {c.text}" for c in found)
    assert "config.json is missing: preference-0a-dpo" in text
    assert "env.json cannot be read" in text
    assert "GRPO: flops not recorded" in text
    assert "KTO: not in the evaluation: audit" in text
    assert "KTO: 2 of 24 samples have no finite gold reward" in text


def test_what_a_further_round_starts_from_is_the_method_and_no_second_axis(small):
    policy = small.root / "preference-0a-dpo" / "record.json"
    whole = json.loads(policy.read_text())
    whole["inputs"] |= {"init": "preference-0a-ipo", "annotations": "annotate-1a"}
    write_json(policy, whole)
    assert "policies were trained from different" in topics(small)["more than one axis"]
    study = small.studies / "demo" / "study.json"
    found = json.loads(study.read_text())
    for job in found["jobs"]:
        [stage] = [
            name
            for name, run in job["stages"].items()
            if run.endswith("a-dpo") and "preference" in run
        ]
        job["stages"] = {
            f"{name},round=2" if name == stage else name: run for name, run in job["stages"].items()
        }
    write_json(study, found)
    assert "more than one axis" not in topics(small)


def test_a_second_reference_is_a_second_axis(small):
    record = small.root / "evaluate-0a-dpo" / "record.json"
    whole = json.loads(record.read_text())
    whole["inputs"]["reference"] = "sft-1a"
    write_json(record, whole)
    assert "sft-0a, sft-1a" in topics(small)["more than one axis"]


def test_two_seeds_and_one_seed_are_called_few(small, tmp_path_factory):
    assert "1 degree of freedom" in topics(small)["few seeds"]
    root = tmp_path_factory.mktemp("one")
    write_study(root, seeds=1, prompts=8, missing=False)
    assert "prompts only" in topics(FakeStore(root))["one seed"]


def test_an_exploit_of_gold_is_a_serious_concern(store):
    found = [
        c for c in concerns(analyse(read_study("demo", store))) if c.topic == "over-optimisation"
    ]
    assert [c.level for c in found] == ["serious"]
    assert found[0].text.startswith("PPO")


def test_settings_and_flatten():
    assert flatten({"a": {"b": 1}, "c": [1]}) == {"a.b": 1, "c": [1]}
    config = {
        "objective": {"_target_": "x.ipo", "tau": 0.1, "normalize": "mean"},
        "steps": 1,
        "epochs": 3.0,
    }
    assert settings_of(config).replace("\u00a0", " ") == "τ 0.1 · mean · 1 step"
    assert settings_of({}) == ""


def test_torn_last_line_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    assert list(read_lines(file)) == [{"step": 1}]
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_best_of_kl_of_the_paper():
    # papers: 0.19, 0.64, 1.84, 3.17 nats for n = 2, 4, 16, 64
    assert [round(best_of_kl(n), 2) for n in (1, 2, 4, 16, 64)] == [0.0, 0.19, 0.64, 1.84, 3.17]


def test_reading_a_study_imports_nothing_heavy():
    code = (
        "import sys; import alignlab.report.table; "
        "heavy = ('torch', 'numpy', 'matplotlib', 'pandas', 'transformers'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("accuracy", "pairs", "doubted"),
    [
        (0.49, 87, True),
        (0.58, 87, True),  # 0.58 − 1.96 · √(0.25 / 87) = 0.475
        (0.65, 759, False),  # 0.65 − 1.96 · √(0.25 / 759) = 0.614
        (None, 0, False),  # nothing was held out: nothing is known
    ],
)
def test_a_reward_model_at_chance_is_a_serious_doubt(accuracy, pairs, doubted):
    record = {"seed": 0, "summary": {"validation_accuracy": accuracy, "validation_pairs": pairs}}
    run = SimpleNamespace(kind="reward", name="reward-0a", done=True, record=record)
    found = list(_weak_rewards(SimpleNamespace(runs={run.name: run})))
    assert [concern.level for concern in found] == ["serious"] * doubted
