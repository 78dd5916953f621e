"""Every technique of conf/adapter on one start and one set of pairs; writes the table. README.md.

``python experiments/techniques/run.py --store DIR``, then with ``--part cost`` on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHOSEN_ON, REPORTED_ON = 0, (1, 2)  # training seeds
CHOOSING = ["stages.evaluate.split=validation"]  # the test prompts are for what is reported
KL_COMPARED = 5.0  # nats: where techniques are compared at equal drift, between their rates
KL_BUDGET = 10.0  # nats: a policy that has drifted further repeats a few words of praise
# Four each, a factor of about three apart; soft prompts and (IA)³ multiply them (`adapter.rate`).
USUAL, LARGE = (3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2)
RATES = {
    "full": (1e-4, 3e-4, 1e-3, 3e-3),
    "bitfit": LARGE,
    "layernorm": LARGE,
    "vera": LARGE,
}
ULMFIT = [f"+optimizer@stages.{stage}.optimizer=ulmfit" for stage in ("reward", "preference")]
BIASED = ("bitfit",)  # these start from a copy of the base model with biases of zero
SCHEDULES = {"ulmfit": ("full", ULMFIT)}  # of full fine-tuning, measured as techniques
QUALITY = {"reward_accuracy": 3, "dpo_accuracy": 3, "gold": 2, "kl": 1}  # digits shown
STAGES = ("reward", "preference")  # what is trained by the technique
FIRST = ("full", "lora")


def techniques() -> list[str]:
    """Names of conf/adapter and schedules: those that others are compared with, then all others."""
    names = [path.stem for path in (ROOT / "conf" / "adapter").glob("*.yaml")]
    return [*FIRST, *sorted({*names, *SCHEDULES} - {*FIRST})]


def rates_of(name: str) -> tuple[float, ...]:
    """Learning rates that are tried."""
    return RATES.get(name, USUAL)


def with_biases(store: Path) -> Path:
    """A copy of the base model in which every linear layer has a bias of zero: the same function.

    BitFit trains biases, and the packaged model has none.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignlab.models.load import resolve

    folder = store / "cache" / "reviews_lm_with_biases"
    if not (folder / "config.json").is_file():
        base = resolve("package:reviews_lm", store)
        added = {"attention_bias": True, "mlp_bias": True}
        model = AutoModelForCausalLM.from_pretrained(base, **added)
        biases = [p for n, p in model.named_parameters() if n.endswith(".bias")]
        if not biases or any(p.count_nonzero() for p in biases):
            raise SystemExit("transformers did not start the added biases at zero")
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def run(
    args: argparse.Namespace,
    name: str,
    rates: Sequence[Mapping[str, float]],
    seeds: Sequence[int],
    given: Sequence[str] = (),
) -> list[Any]:
    """Every setting of ``rates`` with every seed, in one process: records by stage, or a refusal.

    The rates of a setting are swept together: one is the interpolation of the other.
    """
    where = {**os.environ, "ALIGNLAB_RUNS": str(args.store)}
    adapter, beside = SCHEDULES.get(name, (name, []))
    common = ["experiment=techniques", f"adapter@technique={adapter}", *beside, "report=false"]
    common += ["tracking=disabled", f"engine.threads={args.threads}", *args.overrides, *given]
    if name in BIASED:
        common.append(f"backbone.path={with_biases(args.store)}")
    jobs = [
        [f"seed={seed}", *(f"stages.{s}.optimizer.learning_rate={r}" for s, r in setting.items())]
        for setting in rates
        for seed in seeds
    ]
    found: list[Any] = []
    for job in jobs:  # those of one sweep would have to be told apart by their fields
        command = [sys.executable, "-m", "alignlab", "plan", "--json", *common, *job]
        planned = subprocess.run(command, env=where, capture_output=True, text=True)
        if planned.returncode:
            return [reason(planned.stderr, "alignlab: ")] * len(jobs)
        stages = json.loads(planned.stdout)["stages"]
        found.append({s["name"]: args.store / f"{s['kind']}-{s['key']}" for s in stages})
    swept = [f"seed={','.join(map(str, seeds))}", *together(rates)]
    command = [sys.executable, "-m", "alignlab", "run", "-m", *common, *swept]
    done = subprocess.run(command, env=where, capture_output=True, text=True)
    print(name, *swept, "done" if not done.returncode else done.returncode, flush=True)
    for i, folders in enumerate(found):
        if all((folder / "DONE").is_file() for folder in folders.values()):
            found[i] = {stage: read(folder) for stage, folder in folders.items()}
        else:
            found[i] = reason(done.stdout + done.stderr, "failed ")
    return found


def read(folder: Path) -> dict[str, Any]:
    """A finished run's record, and its lines of training."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    parsed = [json.loads(line) for line in lines]
    return {**record, "train": [line for line in parsed if line["split"] == "train"]}


def together(rates: Sequence[Mapping[str, float]]) -> list[str]:
    """Overrides of one sweep over ``rates``: one setting as it is, several with equal rates."""
    stages = list(rates[0])
    if len(rates) == 1:
        return [f"stages.{s}.optimizer.learning_rate={rates[0][s]}" for s in stages]
    first, *others = (f"stages.{s}.optimizer.learning_rate" for s in stages)
    values = ",".join(str(setting[stages[0]]) for setting in rates)
    return [f"{first}={values}", *(f"{other}=${{{first}}}" for other in others)]


def reason(said: str, start: str) -> str:
    """The first sentence of what was refused."""
    line = next((x for x in said.splitlines() if x.startswith(start)), said.strip()[-200:])
    return line.removeprefix(start).split("; ")[0]


def measured(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One row: the rates that did best on one seed, and what they give on others."""
    rates = rates_of(name)
    settings = [dict.fromkeys(STAGES, rate) for rate in rates]
    tried = run(args, name, settings, [CHOSEN_ON], CHOOSING)
    worked = {r: a for r, a in zip(rates, tried, strict=True) if not isinstance(a, str)}
    if not worked:
        return {"technique": name, "refused": tried[0]}
    best = chosen(worked)
    found = run(args, name, [best], REPORTED_ON)
    broken = [answer for answer in found if isinstance(answer, str)]
    if broken:
        return {"technique": name, "refused": broken[0]}
    row: dict[str, Any] = {"technique": name, "rates": best, "seeds": list(REPORTED_ON)}
    row["tried"] = {f"{rate:g}": scores(answer) for rate, answer in worked.items()}
    first = found[0]["reward"]
    row["trained"] = first["params_trained"]
    row["share"] = first["params_trained"] / first["params_total"]
    for key, stage, field in (
        ("reward_accuracy", "reward", "validation_accuracy"),
        ("dpo_accuracy", "preference", "accuracy"),
        ("gold", "evaluate", "gold"),
        ("kl", "evaluate", "kl"),
    ):
        row[key] = [answer[stage]["summary"][field] for answer in found]
    return row


def scores(answer: Mapping[str, Any]) -> dict[str, float]:
    """What rates are chosen by."""
    sampled = answer["evaluate"]["summary"]
    accuracy = answer["reward"]["summary"]["validation_accuracy"]
    return {"reward_accuracy": accuracy, "gold": sampled["gold"], "kl": sampled["kl"]}


def chosen(worked: Mapping[float, Mapping[str, Any]]) -> dict[str, float]:
    """The best rate of each stage.

    Reward model: the highest accuracy on held-out pairs. DPO: the most gold on validation prompts
    within the KL budget; where no rate stays within it, the one that drifts least.
    """
    found = {rate: scores(answer) for rate, answer in worked.items()}
    within = [rate for rate, score in found.items() if score["kl"] <= KL_BUDGET]
    return {
        "reward": max(found, key=lambda rate: found[rate]["reward_accuracy"]),
        "preference": max(within, key=lambda rate: found[rate]["gold"])
        if within
        else min(found, key=lambda rate: found[rate]["kl"]),
    }


def cost(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Peak memory and speed of a short training of the reward model, in a process of its own.

    Speed is the median of the steps after the first: tokens of a step by its seconds, forward,
    backward and update. Few prompts are held out, since scoring them is the same for all.
    """
    short = ["size.reward.steps=16", "size.preference.steps=8", "size.evaluate.prompts=1"]
    short += ["size.annotate.prompts=640", "stages.annotate.validation_share=0.05"]
    (answer,) = run(args, name, [{}], [CHOSEN_ON], short)
    if isinstance(answer, str):
        return {"refused": answer}
    record = answer["reward"]
    steps = [line["tokens_per_second"] for line in record["train"][1:]]
    return {
        "trained": record["params_trained"],
        "share": record["params_trained"] / record["params_total"],
        "peak_mib": record["peak_memory_bytes"] / 2**20,
        "tokens_per_second": statistics.median(steps),
        "tokens_per_second_spread": [min(steps), max(steps)],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: means of the seeds, and the values of each behind them."""
    head = "| technique | trained | share | reward model, accuracy | DPO, accuracy | gold | KL |"
    lines = [
        f"{head} gold at KL {KL_COMPARED:g} | peak MiB | tokens/s | rates (reward, DPO) |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        if "trained" not in row:
            lines.append(f"| {row['technique']} | not measured: {row.get('refused')} |" + " |" * 9)
            continue
        cells = [row["technique"], f"{row['trained']:,}", percent(row["share"])]
        cells += [spread(row.get(key), digits) for key, digits in QUALITY.items()]
        between = gold_at(KL_COMPARED, row.get("tried", {}).values())
        cells += [
            "–" if between is None else f"{between:.2f}",
            f"{row['peak_mib']:.0f}" if "peak_mib" in row else "–",
            f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "–",
            ", ".join(f"{rate:g}" for rate in row.get("rates", {}).values()) or "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gold_at(kl: float, tried: Iterable[Mapping[str, float]]) -> float | None:
    """Gold where a policy's KL to the SFT model is ``kl``, on one seed; None beyond its rates.

    Straight lines in √KL between the rates: gold rises with it about evenly (Bai et al. 2022).
    """
    points = sorted((math.sqrt(max(0.0, score["kl"])), score["gold"]) for score in tried)
    for (near, low), (far, high) in pairwise(points):
        if near < far and near <= math.sqrt(kl) <= far:
            return low + (high - low) * (math.sqrt(kl) - near) / (far - near)
    return None


def percent(share: float) -> str:
    """Two digits, or whole per cents from 10 on."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def spread(values: Sequence[float] | None, digits: int) -> str:
    """The mean, and the least and the most of the seeds."""
    if not values:
        return "–"
    least, mean, most = min(values), statistics.mean(values), max(values)
    return f"{mean:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def main() -> None:
    """Measure what is asked for, keep the other rows, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=ROOT / "runs")
    parser.add_argument("--only", default="", help="names of techniques, with commas; all")
    parser.add_argument("--part", choices=("quality", "cost"), default="quality")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("overrides", nargs="*", help="for every run, e.g. size.sft.steps=4")
    args = parser.parse_args()
    args.store = args.store.resolve()
    wanted = args.only.split(",") if args.only else techniques()
    file = args.out / "results.json"
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    rows = {row["technique"]: row for row in known}
    for name in wanted:
        found = measured(args, name) if args.part == "quality" else cost(args, name)
        kept = {k: v for k, v in rows.get(name, {}).items() if k != "refused"}
        rows[name] = {"technique": name, **kept, **found}
        ordered = [rows[n] for n in techniques() if n in rows]
        where = {
            "machine": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "threads": args.threads,
            "torch": version("torch"),
            "overrides": args.overrides,
        }
        written = json.dumps({"rows": ordered, "where": where}, indent=1)
        file.write_text(written + "\n", encoding="utf-8")
        (args.out / "results.md").write_text(table(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
