"""Gold against √KL for best of n and for RL, on one proxy and on ensembles. See README.md.

``python experiments/03_rm_overoptimization/run.py [--store DIR]`` reads the finished runs of
``experiment=rm_overoptimization`` and writes results.json and overoptimisation.png beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import torch  # noqa: E402 (after the path)
from estimates import best_of_n_gold, binned  # noqa: E402
from figure import draw  # noqa: E402

from alignlab import typed  # noqa: E402
from alignlab.data.group import PromptGroup  # noqa: E402
from alignlab.data.template import Tokenization  # noqa: E402
from alignlab.models.backbone import Backbone  # noqa: E402
from alignlab.models.load import BackboneConfig  # noqa: E402
from alignlab.objectives.divergence import best_of_n_kl  # noqa: E402
from alignlab.report.statistics import bootstrap_interval, fit_overoptimisation  # noqa: E402
from alignlab.rewards.ensemble import Ensemble  # noqa: E402
from alignlab.rewards.learned import score_groups  # noqa: E402
from alignlab.run import Run, Store  # noqa: E402

REWARDS = ("reward", "reward_b", "reward_c", "reward_d")
POLICIES = ("single", "penalised", "mean", "min", "uwo")
ENSEMBLES = {how: Ensemble(combine=how, penalty=0.5) for how in ("mean", "min", "uwo")}
BINS = np.arange(0.0, 6.1, 0.5)  # of √KL


def runs_of(store: Store, study: str) -> dict[int, dict[str, Run]]:
    """Finished runs of the study by seed and stage name; SFT runs may come from another study."""
    found: dict[int, dict[str, Run]] = defaultdict(dict)
    for run in store.runs():
        record = run.record
        if run.done and str(record.get("study", "")).startswith(study):
            found[_seed(run, store)][str(record["name"])] = run
    whole = {"many", "evaluate", *REWARDS, *POLICIES, *(f"evaluate_{p}" for p in POLICIES)}
    return {s: found[s] for s in sorted(found) if whole <= found[s].keys()}


def _seed(run: Run, store: Store) -> int:
    """Seed of the study: that of the SFT run that a run goes back to."""
    while run.record["kind"] != "sft":
        inputs = run.record["inputs"]
        parent = next(inputs[role] for role in ("init", "policy", "annotations") if role in inputs)
        run = store.run(*parent.split("-", 1))
    return int(run.record["seed"])


def member_scores(reward: Run, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Scores of one reward run for sampled rows, whose texts are tokenised again."""
    config = json.loads((reward.path / "config.json").read_text(encoding="utf-8"))["backbone"]
    stated = typed.build(BackboneConfig, config, "backbone")
    backbone = Backbone.load(stated, Store(reward.path.parent).cache, "cpu")
    backbone.add("reward", source=reward.model_dir, trainable=False, head=True)
    tokenization = Tokenization(backbone.tokenizer, None, None)
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_prompt[row["prompt"]].append(place)
    texts = [
        PromptGroup(p, tuple(rows[i]["completion"] for i in at)) for p, at in by_prompt.items()
    ]
    groups = []
    for group, at in zip(tokenization.groups(texts), by_prompt.values(), strict=True):
        pairs = zip(group.completions, at, strict=True)
        ids = tuple(c if rows[i]["finished"] else c[:-1] for c, i in pairs)  # cut off: without EOS
        groups.append(replace(group, completions=ids))
    with backbone.view("reward") as view:
        flat = score_groups(view, groups, 16_384, "cpu").numpy()
    out = np.empty(len(rows))
    out[[i for at in by_prompt.values() for i in at]] = flat
    return out


def best_of_n(runs: Mapping[str, Run]) -> tuple[list[dict[str, Any]], float]:
    """Exact gold of best of n by one proxy and by ensembles; and how well the scores agree."""
    rows = list(runs["many"].samples())
    members = torch.from_numpy(np.stack([member_scores(runs[name], rows) for name in REWARDS]))
    stored = np.array([row["proxy"] for row in rows])
    gap = float(np.median(np.abs(stored - members[0].numpy())))
    proxies = {"single": members[0].numpy()}
    proxies |= {how: combine(members).numpy() for how, combine in ENSEMBLES.items()}
    prompts = sorted({row["prompt_id"] for row in rows})
    at = {p: [i for i, row in enumerate(rows) if row["prompt_id"] == p] for p in prompts}
    gold = np.array([row["gold"] for row in rows])
    found = []
    for name, proxy in {**proxies, "gold": gold}.items():
        for n in (1, 2, 4, 8, 16, 32, 64):
            values = [best_of_n_gold(gold[i], proxy[i], n) for i in at.values()]
            found.append({"proxy": name, "n": n, "kl": best_of_n_kl(n), "gold": np.mean(values)})
    return found, gap


def training(runs: Mapping[str, Run]) -> dict[str, Any]:
    """Curves of every RL run, one row per iteration, and what its test evaluation says."""
    out = {}
    for name in POLICIES:
        rows = runs[name].metrics("train")
        summary = runs[f"evaluate_{name}"].summary()
        out[name] = {
            "root_kl": [max(row["kl"], 0.0) ** 0.5 for row in rows],
            "gold": [row["monitored_reward"] for row in rows],
            "proxy": [row["reward"] for row in rows],
            "test": {k: summary[k] for k in ("gold", "audit", "proxy", "kl", "tokens", "finished")},
        }
    return out


def interval(values: Sequence[float]) -> list[float]:
    """Mean over seeds and its 95 % bootstrap interval."""
    found = bootstrap_interval(np.asarray(values, dtype=float))
    return [round(x, 4) for x in (found.value, found.low, found.high)]


def summary_of(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the README's tables."""
    out: dict[str, Any] = {"seeds": list(seeds), "best_of_n": {}, "test": {}, "curves": {}}
    each = list(seeds.values())
    out["accuracy"] = interval([a for seed in each for a in seed["accuracy"]])
    out["scores_differ_by"] = max(seed["gap"] for seed in each)
    for proxy in ("single", "mean", "min", "uwo", "gold"):
        for n in (1, 4, 16, 64):
            values = [
                r["gold"]
                for s in each
                for r in s["best_of_n"]
                if r["proxy"] == proxy and r["n"] == n
            ]
            out["best_of_n"][f"{proxy}, n = {n}"] = interval(values)
    for name in POLICIES:
        test = [s["training"][name]["test"] for s in each]
        out["test"][name] = {k: interval([t[k] for t in test]) for k in test[0]}
        out["test"][name]["gold minus single's"] = interval(
            [
                s["training"][name]["test"]["gold"] - s["training"]["single"]["test"]["gold"]
                for s in each
            ]
        )
        curves = [s["training"][name] for s in each]
        d, gold = binned([c["root_kl"] for c in curves], [c["gold"] for c in curves], BINS)
        _, proxy = binned([c["root_kl"] for c in curves], [c["proxy"] for c in curves], BINS)
        out["curves"][name] = {
            "root_kl": np.round(d, 3).tolist(),
            "gold": np.round(gold, 4).tolist(),
            "proxy": np.round(proxy, 4).tolist(),
        }
        start = float(np.mean([s["start"] for s in each]))
        if len(d) >= 3:
            fit = fit_overoptimisation(d, gold - start, "rl")
            out["curves"][name]["fit"] = {
                "alpha": round(fit.alpha.value, 3),
                "beta": round(fit.beta.value, 3),
                "beta_interval": [round(fit.beta.low, 3), round(fit.beta.high, 3)],
            }
    return out


def main() -> None:
    """Read the runs, write numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=os.environ.get("ALIGNLAB_RUNS", "runs"))
    parser.add_argument("--study", default="rm_overoptimization")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    seeds = {}
    for seed, runs in runs_of(Store(Path(options.store)), options.study).items():
        chosen, gap = best_of_n(runs)
        accuracy = [runs[name].summary()["validation_accuracy"] for name in REWARDS]
        start = float(runs["evaluate"].summary()["gold"])
        seeds[seed] = {
            "best_of_n": chosen,
            "gap": gap,
            "accuracy": accuracy,
            "start": start,
            "training": training(runs),
        }
    if not seeds:
        raise SystemExit(f"no whole seed of {options.study} in {options.store}")
    summary = summary_of(seeds)
    text = json.dumps({"summary": summary, "seeds": seeds}, separators=(",", ":"), default=float)
    (HERE / "results.json").write_text(text + "\n", encoding="utf-8")
    draw(seeds, summary, HERE / "overoptimisation.png")
    print(json.dumps(summary, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
