"""Trainings in several processes, compared with the same trainings in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equivalence_cases import OFFLINE, ONLINE, method
from equivalence_checks import TOLERANCE, assert_lines_equal, model_difference
from stage_lab import Chain
from two_processes import described, start

from alignlab.run import Run

WHOLE = 1_000_000  # tokens; in one process every step is one micro-batch
BUDGET = 90  # tokens; several micro-batches a step, and not as many in every process
METHODS = (*OFFLINE, *ONLINE)
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Case:
    """One training: the chain that it starts from, what it changes, and how it is executed."""

    chain: str
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> str:
        """Name of what is computed; equal for all ways to execute it."""
        return repr((self.chain, self.method, sorted(self.changes.items())))

    def __str__(self) -> str:
        how = ", ".join(f"{k}={v}" for k, v in {**self.changes, **self.engine}.items())
        return f"{self.method} {self.chain}" + (f" ({how})" if how else "")


# No two processes share any of these evenly, and some have nothing in a step at all.
UNEVEN = (
    Case("full", "sft", {"batch": {"tokens": 150}}),
    Case("lora", "sft", {"batch": 1}),
    Case("full", "reward", {"batch": {"tokens": 200}}),
    Case("full", "reward", {"batch": 9, "pairs": "shuffled"}),
    Case("full", "dpo", {"batch": {"tokens": 260}}),
    Case("full", "dpo", {"batch": 1}),
    Case("lora", "kto", {"batch": {"tokens": 260}}),
    Case("full", "ppo", {"rollout_batch": 7}),
    Case("lora", "ppo_ptx", {"rollout_batch": 5}),
    Case("full", "grpo", {"rollout_batch": 5}),
    Case("lora", "dapo", {"rollout_batch": 3}),
)


def sharded(zero: int, methods: Iterable[str] = METHODS) -> list[Case]:
    """Every method, all parameters and adapters, at one ZeRO stage."""
    return [Case(of, name, {}, {"zero": zero}) for of in ("full", "lora") for name in methods]


class Alone:
    """The trainings in one process, each done once."""

    def __init__(self, chains: Mapping[str, Chain]) -> None:
        self.chains = chains
        self.runs: dict[str, Run] = {}

    def run(self, case: Case) -> Run:
        """The training of a case in this process, without ZeRO."""
        if case.training not in self.runs:
            chain = self.chains[case.chain]
            stage, inputs = method(chain, case.method, **case.changes)
            self.runs[case.training] = chain.lab.run(stage, inputs, token_budget=WHOLE)
        return self.runs[case.training]


def together(
    folder: Path, chains: Mapping[str, Chain], cases: Sequence[Case], processes: int
) -> list[tuple[Case, Run]]:
    """Do the cases in ``processes`` processes that train together."""
    runs, listed = [], []
    for case in cases:
        chain = chains[case.chain]
        key = f"p{processes}{next(NUMBERS):03d}"  # two tests may share the chains of a session
        stage, _ = method(chain, case.method, **case.changes)
        runs.append((case, chain.lab.store.run(stage.kind, key)))
        stated = {"chain": case.chain, "method": case.method, "key": key}
        listed.append({**stated, "changes": dict(case.changes), "engine": dict(case.engine)})
    plan = {"chains": {name: described(of) for name, of in chains.items()}, "cases": listed}
    start(folder, {**plan, "token_budget": BUDGET}, processes, patience=900)
    return runs


def differences(
    alone: Alone, runs: Iterable[tuple[Case, Run]], tolerance: float
) -> tuple[float, list[str]]:
    """The largest difference of any weight, and what is not as it is in one process."""
    largest, wrong = 0.0, []
    for case, run in runs:
        one = alone.run(case)
        try:
            assert run.verify() == [], "files that do not fit their hashes"
            difference = model_difference(one, run)
            largest = max(largest, difference)
            assert difference < tolerance, f"weights differ by {difference:.1e}"
            assert_lines_equal(one, run)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    return largest, wrong


def largest_apart(runs: Iterable[tuple[str, Run, Run]]) -> float:
    """Largest difference of trainings (name, in one process, in several), each within 1e-6."""
    most = 0.0
    for name, alone, together in runs:
        finished = Run(together.path)  # another process has finished it
        difference = model_difference(alone, finished)
        assert difference < TOLERANCE, name
        assert_lines_equal(alone, finished)
        most = max(most, difference)
    return most
