"""How TRL can be set up, and the search for the fastest way: one axis after the other.

`wrapped` packing is no candidate: it cuts rows and lets them attend to their neighbours, so it
computes another loss. Neither is continuous batching: it leaves the trained weights in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases import Case

Options = dict[str, Any]
ROWS = (1, 2, 4, 8, 16, 32, 64)


def update_rows(case: Case) -> int:
    """Rows of one optimizer step as TRL counts them."""
    if case.work.startswith("reward"):
        completions = 4 if case.work == "reward_k4" else 9
        return case.batch * completions * (completions - 1) // 2
    return case.batch * {"kto": 2, "grpo": case.group}.get(case.work, 1)


def axes(case: Case) -> list[tuple[str, list[Any]]]:
    """Options to try, in the order they are tried; the first of each is the guess."""
    lora = case.adapter == "lora"
    dtypes = ["bfloat16", "amp", "float32"] if lora else ["amp", "float32"]
    rows = [n for n in ROWS if update_rows(case) % n == 0 and n <= update_rows(case)]
    near = sorted(rows, key=lambda n: abs(n - 4))
    if case.work == "sampling":
        return [
            ("dtype", dtypes),
            ("cache", [None, "static"]),
            ("merged", [lora, False][: 1 + lora]),
        ]
    if case.work == "grpo":
        return [("dtype", dtypes), ("rows", [n for n in (8, 16, 4, 32) if n in rows])]
    if case.work == "kto":  # its micro-batch is part of its loss
        return [("dtype", dtypes), ("attention", ["sdpa", "eager"])]
    if case.work == "ppo":
        # At most a minibatch, half of the episodes; eight, its default, first.
        fitting = [n for n in (8, 16, 4, 32) if n in rows and 2 * n <= case.batch]
        return [("dtype", dtypes), ("rows", fitting)]
    if case.work == "sft":
        return [
            ("dtype", dtypes),
            ("packing", ["padding_free", None, "bfd", "bfd_split"]),
            ("rows", near[:5]),
            ("length", [1024, 512, 2048]),
            ("attention", ["sdpa", "eager"]),
        ]
    return [("dtype", dtypes), ("rows", near[:5]), ("attention", ["sdpa", "eager"])]


def applies(axis: str, options: Options) -> bool:
    """Whether an axis means anything for the options chosen so far."""
    packed = options.get("packing") in ("bfd", "bfd_split")
    return {"rows": not packed, "length": packed}.get(axis, True)


def guess(case: Case) -> Options:
    """The options that are used where nothing was tried."""
    return {name: values[0] for name, values in axes(case)}


def search(
    case: Case, speed: Callable[[Options], float | None]
) -> tuple[Options, list[dict[str, Any]]]:
    """Find the fastest options, one axis at a time; ``speed`` gives items per second or None.

    Returns the options and a record of everything that was tried.
    """
    best = guess(case)
    tried = [{"options": dict(best), "items_per_second": speed(best)}]
    fastest = tried[0]["items_per_second"] or 0.0
    for axis, values in axes(case):
        if not applies(axis, best):
            continue
        for value in values[1:]:
            options = {**best, axis: value}
            found = speed(options)
            tried.append({"options": options, "items_per_second": found})
            if found is not None and found > fastest:
                best, fastest = options, found
    return best, tried
