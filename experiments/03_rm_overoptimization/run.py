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
from alignlab.report.statistics import fit_overoptimisation, hierarchical_bootstrap  # noqa: E402
from alignlab.rewards.ensemble import Ensemble  # noqa: E402
from alignlab.rewards.learned import score_groups  # noqa: E402
from alignlab.run import Run, Store  # noqa: E402

REWARDS = ("reward", "reward_b", "reward_c", "reward_d")
POLICIES = ("single", "penalised", "mean", "min", "uwo")
ENSEMBLES = {how: Ensemble(combine=how, penalty=0.5) for how in ("mean", "min", "uwo")}
MEASURES = ("gold", "audit", "proxy", "kl", "tokens", "finished")
BINS = np.array([*np.arange(0.0, 6.0, 0.5), *np.arange(6.0, 18.0, 1.0)])  # of √KL


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
            what = {"proxy": name, "n": n, "kl": best_of_n_kl(n)}
            found.append({**what, "gold": np.mean(values), "per_prompt": values})
    return found, gap


def training(runs: Mapping[str, Run]) -> dict[str, Any]:
    """Curves of every RL run, one row per iteration, and what its test evaluation says."""
    out = {}
    for name in POLICIES:
        rows = runs[name].metrics("train")
        tests = list(runs[f"evaluate_{name}"].samples())
        out[name] = {
            "root_kl": [max(row["kl"], 0.0) ** 0.5 for row in rows],
            "gold": [row["monitored_reward"] for row in rows],
            "proxy": [row["reward"] for row in rows],
            "test": {k: [float(row[k]) for row in tests] for k in MEASURES},
        }
    return out


def interval(cells: Any) -> list[float]:
    """Mean of (seeds, prompts) and its 95 % interval; with one seed it speaks of prompts only."""
    found = hierarchical_bootstrap(np.asarray(cells, dtype=float))
    return [round(x, 3) for x in (found.value, found.low, found.high)]


def summary_of(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the README's tables."""
    each = list(seeds.values())
    out: dict[str, Any] = {"seeds": list(seeds), "best_of_n": {}, "test": {}, "curves": {}}
    out["accuracy"] = [[round(a, 3) for a in seed["accuracy"]] for seed in each]
    out["scores_differ_by"] = max(seed["gap"] for seed in each)
    for proxy in ("single", "mean", "min", "uwo", "gold"):
        for n in (1, 4, 16, 64):
            cells, one = (_cells(each, p, n) for p in (proxy, "single"))
            out["best_of_n"][f"{proxy}, n = {n}"] = interval(cells)
            out["best_of_n"][f"{proxy} minus single, n = {n}"] = interval(cells - one)
    for name in POLICIES:
        tests = [seed["training"][name]["test"] for seed in each]
        first = [seed["training"]["single"]["test"] for seed in each]
        out["test"][name] = {k: interval([test[k] for test in tests]) for k in tests[0]}
        for what in ("gold", "audit"):
            gap = np.array([t[what] for t in tests]) - np.array([t[what] for t in first])
            out["test"][name][f"{what} minus single's"] = interval(gap)
        out["curves"][name] = curve_of([seed["training"][name] for seed in each], each)
    return out


def _cells(each: Sequence[Mapping[str, Any]], proxy: str, n: int) -> np.ndarray:
    return np.array(
        [
            next(r["per_prompt"] for r in seed["best_of_n"] if (r["proxy"], r["n"]) == (proxy, n))
            for seed in each
        ]
    )


def curve_of(curves: Sequence[Mapping[str, Any]], each: Sequence[Mapping[str, Any]]) -> Any:
    """Gold and proxy in bins of √KL, and Gao et al.'s form d (α − β log d) through the gains."""
    places = [c["root_kl"] for c in curves]
    d, gold = binned(places, [c["gold"] for c in curves], BINS)
    _, proxy = binned(places, [c["proxy"] for c in curves], BINS)
    out: dict[str, Any] = {
        "root_kl": np.round(d, 3).tolist(),
        "gold": np.round(gold, 4).tolist(),
        "proxy": np.round(proxy, 4).tolist(),
    }
    if len(d) >= 3:
        start = float(np.mean([seed["start"] for seed in each]))
        fit = fit_overoptimisation(d, gold - start, "rl")
        out["fit"] = {
            "alpha": round(fit.alpha.value, 3),
            "beta": round(fit.beta.value, 3),
            "beta_interval": [round(fit.beta.low, 3), round(fit.beta.high, 3)],
        }
    return out


def main() -> None:
    """Read the runs, write numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=os.environ.get("ALIGNLAB_RUNS", "runs"))
    parser.add_argument("--study", default="rm_overoptimization", help="its name, or a beginning")
    parser.add_argument("--name", default="", help="put before the names of the files")
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
    for seed in seeds.values():  # cells by prompt are in the run folders; here they would be long
        for row in seed["best_of_n"]:
            del row["per_prompt"]
        for run in seed["training"].values():
            run["test"] = {k: float(np.mean(v)) for k, v in run["test"].items()}
            run.update({k: np.round(run[k], 4).tolist() for k in ("root_kl", "gold", "proxy")})
    text = json.dumps({"summary": summary, "seeds": seeds}, separators=(",", ":"), default=float)
    (HERE / f"{options.name}results.json").write_text(text + "\n", encoding="utf-8")
    draw(seeds, summary, HERE / f"{options.name}overoptimisation.png")
    print(json.dumps(summary, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
