"""Whether both sides compute the same: without that, a ratio of speeds says nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tuning
from cases import Case
from processes import SIDES, Lab

STRICT, LOOSE = 1e-4, 2e-2  # tolerance of a loss in float32; of a run's mean loss in bfloat16
GROSS = 1e-1  # of a single update where a side computes in bfloat16
NORMS = 1e-3  # relative tolerance of gradient norms in float32


def gap(a: Sequence[float], b: Sequence[float], least: float = 1.0) -> float | None:
    """Largest difference of two lists of numbers, relative to those above ``least``.

    None where there is nothing to compare.
    """
    gaps = [abs(x - y) / max(least, abs(y)) for x, y in zip(a, b, strict=False)]
    return max(gaps) if gaps else None


def strict_parity(lab: Lab, folder: Path, case: Case, options: tuning.Options) -> dict[str, Any]:
    """Both sides in float32 on the same updates: what the claim of equality rests on."""
    base = {"dtype": "float32", "tolerance": STRICT}
    packed = options.get("packing") in ("bfd", "bfd_split")
    plain = {**options, "packing": None, "rows": options.get("rows") or 4} if packed else options
    ours = lab.run(folder, "ours", {}, mode="parity", dtype="float32")
    theirs = lab.run(folder, "trl_tuned", plain, mode="parity")
    if failed := ours.get("failed") or theirs.get("failed"):
        return {**base, "passed": False, "what": "a side failed", "error": failed}
    if case.work == "sampling":
        same = [a == b for a, b in zip(ours["sampled_ids"], theirs["sampled_ids"], strict=True)]
        return {
            "dtype": "float32",
            "what": "greedy completions that differ, of all",
            "largest": len(same) - sum(same),
            "tolerance": 0,
            "compared": len(same),
            "tokens": sum(map(len, ours["sampled_ids"])),
            "passed": all(same),
        }
    largest = gap(ours["losses"], theirs["losses"])
    what = f"loss of each of {len(ours['losses'])} updates"
    if case.work == "ppo":
        what = "log-probs, values and scores of given completions, each number"
    elif case.work == "grpo":
        what = "loss of one update on given completions, advantages and old log-probs"
    found = {**base, "what": what, "largest": largest}
    found["losses"] = {"ours": ours["losses"][:8], "trl": theirs["losses"][:8]}
    if len(ours["losses"]) != len(theirs["losses"]):
        return {**found, "passed": False, "what": "the sides give different numbers of losses"}
    norms = gap(ours["gradient_norms"], theirs["gradient_norms"], least=1e-6)
    if norms is not None:
        found |= {"largest_gradient_norm": norms, "tolerance_gradient_norm": NORMS}
        if norms > NORMS:
            return {**found, "passed": False}
    if packed:
        found |= epoch_parity(lab, folder, options)
        epoch = found["largest_epoch"]
        largest = None if epoch is None or largest is None else max(largest, epoch)
        found["largest"] = largest
    return {**found, "passed": largest is not None and largest <= STRICT}


def epoch_parity(lab: Lab, folder: Path, options: tuning.Options) -> dict[str, Any]:
    """SFT with packing: mean loss per token of the epoch, weights unmoved, must be the same."""
    still = {"learning_rate": 1e-12}
    ours = lab.run(folder, "ours", still, mode="parity", dtype="float32")
    theirs = lab.run(folder, "trl_tuned", {**options, **still}, mode="parity")
    if ours.get("failed") or theirs.get("failed"):
        return {"largest_epoch": None}
    weighted = sum(x * n for x, n in zip(ours["losses"], ours["items_per_update"], strict=True))
    mean = weighted / sum(ours["items_per_update"])
    return {
        "largest_epoch": abs(mean - theirs["epoch_loss"]),
        "epoch": "mean loss per token of the epoch, at a learning rate of 1e-12 (packed)",
    }


def timed_parity(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Losses of the timed runs themselves, each side in the number format it was timed in.

    In bfloat16 a completion's log-prob is off by tenths of a nat, on both sides and at random; the
    mean over the updates has to agree, a single update only roughly.
    """
    found: dict[str, Any] = {}
    for side in SIDES[1:]:
        pairs = [
            (ours["losses"], theirs["losses"])
            for ours, theirs in zip(runs["ours"], runs.get(side, ()), strict=False)
            if ours.get("losses") and theirs.get("losses")
            if len(ours["losses"]) == len(theirs["losses"])
            if theirs.get("same_rows_per_update", True)
        ]
        if not pairs:
            continue
        largest = max(gap(a, b) or 0.0 for a, b in pairs)
        mean = max(gap([statistics.mean(a)], [statistics.mean(b)]) or 0.0 for a, b in pairs)
        found[side] = {
            "mean": mean,
            "tolerance": LOOSE,
            "largest": largest,
            "tolerance_largest": GROSS,
            "passed": mean <= LOOSE and largest <= GROSS,
        }
    return found
