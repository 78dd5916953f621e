"""What an optimizer step takes is mathematics; what a micro-batch holds is memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from equivalence_cases import method
from equivalence_checks import TOLERANCE, model_difference
from stage_lab import Caught, Chain

from alignlab.data.batch import TokenBatch
from alignlab.data.group import TokenGroup
from alignlab.data.mapped import completion_counts, sizes_of
from alignlab.engine import fitting
from alignlab.errors import ConfigError, TrainingError
from alignlab.run import Run

pytestmark = pytest.mark.slow

TOKENS = {"sft": 150, "reward": 200, "dpo": 260, "kto": 260}


def tokens_of(groups: Sequence[TokenGroup]) -> int:
    return sum(len(g.prompt) + sum(len(c) for c in g.completions) for g in groups)


@pytest.mark.parametrize("name", list(TOKENS))
def test_a_step_takes_the_prompts_that_fit(chain: Chain, caught: Caught, name: str) -> None:
    most = TOKENS[name]
    stage, inputs = method(chain, name, batch={"tokens": most}, steps=None, epochs=1.5)
    assert stage.batch == TokenBatch(tokens=most)  # type: ignore[attr-defined]
    run, work = chain.lab.run(stage, inputs, token_budget=64), caught.work

    steps = run.record["updates"]
    shown = [work.chosen(step) for step in range(1, steps + 2)]
    for this, following in pairwise(shown):
        assert tokens_of(this) <= most < tokens_of(this) + tokens_of(following[:1])
    seen = [group for step in shown[:steps] for group in step]
    assert len(seen) >= 1.5 * len(work.groups) > len(seen) - len(shown[steps - 1])

    assert run.record["prompts"] == len(seen)
    assert run.record["completions"] == sum(len(g.completions) for g in seen)
    assert run.record["tokens_trained"] == tokens_of(seen)
    trained = [row["tokens"] for row in run.metrics("train")]
    assert trained[0] == tokens_of(shown[0])
    assert trained[-1] == tokens_of(seen)


def test_prompts_and_completions_are_counted_as_they_are_shown(
    chain: Chain, caught: Caught
) -> None:
    stage, inputs = method(chain, "reward", batch=7, steps=4, pairs="shuffled")
    run = chain.lab.run(stage, inputs)
    seen = [group for step in range(1, 5) for group in caught.work.chosen(step)]
    assert run.record["prompts"] == len(seen) == 28
    assert run.record["completions"] == sum(len(g.completions) for g in seen) == 56
    assert run.record["updates"] == 4
    assert run.record["tokens_trained"] == tokens_of(seen)


def test_what_is_larger_than_a_batch_is_a_step_of_its_own(chain: Chain, caught: Caught) -> None:
    stage, inputs = method(chain, "reward", batch={"tokens": 20}, steps=3)
    run = chain.lab.run(stage, inputs)
    assert [len(caught.work.chosen(step)) for step in (1, 2, 3)] == [1, 1, 1]
    large = sum(tokens_of([g]) > 20 for g in caught.work.groups)
    assert f"{large} of {len(caught.work.groups)} prompts" in " ".join(run.record["warnings"])
    assert run.record["prompts"] == 3


def test_sizes_are_known_without_reading_the_rows(chain: Chain, caught: Caught) -> None:
    for name in ("sft", "reward", "dpo"):  # mapped, chosen, and changed when they are read
        chain.lab.run(
            *method(chain, name, pairs="best_worst") if name == "dpo" else method(chain, name)
        )
        groups = caught.work.groups
        assert sizes_of(groups).tolist() == [tokens_of([g]) for g in groups]
        assert completion_counts(groups).tolist() == [len(g.completions) for g in groups]


@pytest.mark.parametrize("epochs", [0.5, 2.0])
def test_pretraining_reads_its_tokens_in_steps_of_so_many(
    chain: Chain, caught: Caught, epochs: float
) -> None:
    from dataclasses import replace

    stage, inputs = method(chain, "pretrain")
    chain.lab.run(stage, inputs)
    whole = sum(len(g.completions[0]) for g in caught.work.groups)
    cut: Any = replace(stage, batch=TokenBatch(tokens=60), tokens=round(epochs * whole))
    run = chain.lab.run(cut, inputs)
    assert run.record["prompts"] >= epochs * len(caught.work.groups) - 1
    last = caught.work.chosen(run.record["updates"])
    assert run.record["prompts"] - len(last) < epochs * len(caught.work.groups)


def bytes_per_token(monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    """A device on which a token takes so many bytes: then a limit decides the budget alone."""

    def most_taken(_: Any, compute: Any, __: int) -> int:
        compute()
        return 0

    taken = fitting.Trial.taken
    monkeypatch.setattr(fitting, "most_taken", most_taken)
    monkeypatch.setattr(fitting, "held", lambda _: 0)
    monkeypatch.setattr(
        fitting.Trial,
        "taken",
        lambda self, rows: taken(self, rows) + each * rows * tokens_of([self.row]),
    )


@pytest.mark.conformance(
    "equivalence",
    "SFT, reward, DPO, PPO, GRPO",
    "a token budget that was measured to fit gives the same weights, to 1e-6, whatever it is",
)
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_a_measured_budget_changes_no_weight(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, name: str, record_property: Any
) -> None:
    from alignlab.stages import budget

    def trained(room: int) -> Run:
        monkeypatch.setattr(budget, "room", lambda *_: room + 12 * parameters)
        stage, inputs = method(chain, name)
        return chain.lab.run(stage, inputs, token_budget="auto")

    plain = chain.lab.run(*method(chain, name))
    parameters = (
        2 * plain.record["params_trained"] if name == "ppo" else plain.record["params_trained"]
    )
    bytes_per_token(monkeypatch, 1000)
    small, large = (trained(round(room / fitting.SHARE)) for room in (80_000, 1_000_000))
    budgets = [run.record["token_budget"]["tokens"] for run in (small, large)]
    assert budgets[0] <= 80 < budgets[1]
    largest = max(model_difference(plain, run) for run in (small, large))
    record_property("measured", f"budgets {budgets}: largest difference {largest:.0e}")
    assert largest < TOLERANCE
    for run in (small, large):
        for key in ("prompts", "completions", "updates", "tokens_trained"):
            assert run.record[key] == plain.record[key]


def test_a_budget_is_measured_once(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    straight = fitting.Trial._pass
    monkeypatch.setattr(
        fitting.Trial, "_pass", lambda self, rows: (passes.append(rows), straight(self, rows))[1]
    )
    stage, inputs = method(chain, "sft", optimizer__learning_rate=3e-3)
    first = chain.lab.run(stage, inputs, token_budget="auto").record["token_budget"]
    tried = len(passes)
    second = chain.lab.run(stage, inputs, token_budget="auto").record["token_budget"]
    assert len(passes) == tried
    assert first["tokens"] == second["tokens"]
    assert first["bytes"] == second["bytes"]


def test_a_row_that_does_not_fit_is_said_before_training(chain: Chain) -> None:
    stage, inputs = method(chain, "sft")
    with pytest.raises(
        TrainingError, match=r"one row of \d+ tokens does not fit .*memory_gb=0\.01"
    ):
        chain.lab.run(stage, inputs, token_budget="auto", memory_gb=0.01)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"tokens": 0}, r"batch\.tokens: expected a whole number >= 1"),
        ({"tokens": 10, "prompts": 2}, r"batch\.prompts: unknown key of TokenBatch"),
        ({}, r"batch\.tokens: missing"),
        (0, r"batch: expected a whole number >= 1 or a mapping"),
    ],
)
def test_a_batch_is_in_prompts_or_in_tokens(chain: Chain, batch: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chain.lab.stage("sft", batch=batch)
