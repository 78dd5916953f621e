"""Signals in the middle of a step or of an evaluation: it is dropped, and no bit changes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import ToyBackbone, ToyWork, engine, optimizer

from alignlab import interruption
from alignlab.engine.loop import train
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import Interrupted
from alignlab.run import Run


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", -1.0)


def go(folder: Path, work: ToyWork, **options: Any) -> tuple[ToyBackbone, Run]:
    backbone, run = ToyBackbone(dropout=0.2), Run(folder / "toy-1")
    given = {"optimizer": optimizer(ema=0.9), "engine": engine(), "seed": 3, **options}
    train(work, backbone, ["policy"], steps=12, run=run, **given)
    return backbone, run


def assert_same(one: tuple[ToyBackbone, Run], other: tuple[ToyBackbone, Run]) -> None:
    for name, value in one[0].weights().items():
        assert torch.equal(value, other[0].weights()[name]), name
    clocks = ("time", "tokens_per_second")
    rows = [[{k: v for k, v in row.items() if k not in clocks} for row in run.metrics()]
            for _, run in (one, other)]  # fmt: skip
    assert rows[0] == rows[1]
    assert len(rows[0]) > 3


class Sampling(ToyWork):
    """Draws random numbers and moves its state before a signal comes, as a rollout does."""

    stop_at = 0

    def micros(self, step: int) -> Any:
        made = super().micros(step)
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
            interruption.check()
        return made


def test_a_step_that_is_being_prepared_is_dropped(tmp_path: Path) -> None:
    straight = go(tmp_path / "straight", ToyWork())
    work = Sampling()
    work.stop_at = 5
    with pytest.raises(Interrupted, match=r"SIGUSR1 after step 4 of 12.*continues") as caught:
        go(tmp_path / "cut", work)
    assert caught.value.exit_code == 128 + signal.SIGUSR1
    torch.rand(99)
    assert_same(straight, go(tmp_path / "cut", ToyWork()))


def test_a_step_that_is_being_accumulated_is_dropped(tmp_path: Path) -> None:
    straight = go(tmp_path / "straight", ToyWork(micro=2))
    work = ToyWork(micro=2)
    calls = iter(range(1, 100))
    work.before_loss = lambda _: next(calls) == 10 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 2 of 12"):  # four micro-batches a step
        go(tmp_path / "cut", work)
    assert_same(straight, go(tmp_path / "cut", ToyWork(micro=2)))


def test_before_the_first_step_there_is_a_checkpoint_of_nothing(tmp_path: Path) -> None:
    straight = go(tmp_path / "straight", ToyWork())
    work = Sampling()
    work.stop_at = 1
    with pytest.raises(Interrupted, match="after step 0 of 12"):
        go(tmp_path / "cut", work)
    assert_same(straight, go(tmp_path / "cut", ToyWork()))


class Evaluation:
    """A metric that gets worse; a signal comes in the middle of its ``stop_at``-th measurement."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at, self.began, self.ended = stop_at, 0, 0

    def __call__(self) -> dict[str, float]:
        self.began += 1
        value = float(torch.rand(()))  # must not disturb the training's random numbers
        if self.began == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        interruption.check()
        self.ended += 1
        return {"badness": 0.0 * value + self.ended}


def test_an_unfinished_evaluation_is_made_up_for(tmp_path: Path) -> None:
    options = {"evaluate_every": 3}
    straight = go(tmp_path / "straight", ToyWork(), evaluate=Evaluation(), **options)
    cut = Evaluation(stop_at=2)
    with pytest.raises(Interrupted, match="after step 6 of 12"):
        go(tmp_path / "cut", ToyWork(), evaluate=cut, **options)
    again = Evaluation()
    again.ended = cut.ended
    resumed = go(tmp_path / "cut", ToyWork(), evaluate=again, **options)
    assert again.began == 3  # of the steps 6, 9 and 12
    assert_same(straight, resumed)
    steps = [row["step"] for row in resumed[1].metrics("eval")]
    assert steps == [3, 6, 9, 12]


def test_patience_counts_an_interrupted_evaluation_once(tmp_path: Path) -> None:
    rule = EarlyStopping(metric="badness", mode="min", patience=2, min_delta=0.0)
    options = {"evaluate_every": 2, "early_stopping": rule}
    straight = go(tmp_path / "straight", ToyWork(), evaluate=Evaluation(), **options)
    assert [row["step"] for row in straight[1].metrics("eval")] == [2, 4, 6]  # best, worse, worse
    cut = Evaluation(stop_at=3)
    with pytest.raises(Interrupted, match="after step 6"):
        go(tmp_path / "cut", ToyWork(), evaluate=cut, **options)
    again = Evaluation()
    again.ended = cut.ended
    resumed = go(tmp_path / "cut", ToyWork(), evaluate=again, **options)
    assert again.began == 1
    assert_same(straight, resumed)
