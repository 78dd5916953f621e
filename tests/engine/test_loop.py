"""The loop: accumulation, metrics, exact resume, stops. Equal means equal in every bit."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from toy_training import ToyBackbone, ToyWork, engine, optimizer

from alignlab.engine.loop import train
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import ConfigError, Interrupted, TrainingError
from alignlab.run import Run

TOY = Path(__file__).with_name("toy_training.py")


def go(folder, work=None, backbone=None, *, steps=12, views=("policy",), **options):
    """Train the toy; returns (backbone, run, result)."""
    backbone = backbone or ToyBackbone(*views, dropout=0.2)
    run = Run(folder / "toy-1")
    values = {"optimizer": optimizer(), "engine": engine(), "seed": 3, **options}
    result = train(work or ToyWork(views=views), backbone, views, steps=steps, run=run, **values)
    return backbone, run, result


def assert_same_bits(one: ToyBackbone, other: ToyBackbone) -> None:
    for name, value in one.weights().items():
        assert torch.equal(value, other.weights()[name]), name


def assert_same_metrics(one: Run, other: Run) -> None:
    clocks = ("time", "tokens_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in run.metrics()]
        for run in (one, other)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 3


def fail_at(call: int, error: BaseException):
    """A hook for ToyWork.before_loss that raises at the given call."""
    calls = iter(range(1, 10**6))

    def hook(_micro):
        if next(calls) == call:
            raise error

    return hook


def test_training_learns(tmp_path):
    backbone = ToyBackbone()
    _, run, result = go(tmp_path, ToyWork(batch=16), backbone, steps=150)
    losses = [row["error"] for row in run.metrics("train")]
    assert losses[0] > 1.0
    assert losses[-1] < 0.01
    assert (result.steps, result.tokens) == (150, 150 * 160)
    assert not backbone.training  # left ready to be used


@pytest.mark.conformance(
    "equivalence",
    "the loop",
    "1×8 ≡ 8×1 ≡ micro-batches of unlike size: weights and logged losses",
)
def test_one_micro_batch_of_eight_is_eight_of_one(tmp_path):
    def weights(micro, folder):
        backbone = ToyBackbone()
        _, run, _ = go(tmp_path / folder, ToyWork(micro=micro), backbone)
        return backbone.weights(), [row["loss"] for row in run.metrics()]

    whole, losses = weights(8, "a")
    for micro in (1, 3):  # 3: parts of 3, 3 and 2 rows
        parts, others = weights(micro, f"b{micro}")
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
        assert others == pytest.approx(losses, rel=1e-5)


def test_first_line_by_hand(tmp_path):
    """Two steps at learning rate ~0: loss, error and norm are those of the initial weights."""
    backbone, work = ToyBackbone(), ToyWork(micro=3)
    frozen = optimizer(learning_rate=1e-30, schedule="linear", warmup=0.0, floor=0.0)
    before = backbone.weights()
    _, run, _ = go(tmp_path, work, backbone, steps=2, optimizer=frozen)
    model = backbone.models["policy"]
    torch.manual_seed(0)
    norms, errors = [], []
    for step in (1, 2):
        [whole] = ToyWork().micros(step)
        model.zero_grad()
        loss = (model(work.inputs[whole.data]) - work.targets[whole.data]).square().sum() / 8
        loss.backward()
        errors.append(loss.item())
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
    [row] = run.metrics("train")
    assert row["step"] == 2
    assert row["error"] == pytest.approx((errors[0] + errors[1]) / 2, rel=1e-6)
    assert row["learning_rate"] == pytest.approx(0.5e-30)  # linear: step 2 of 2 has p = 1/2
    assert row["tokens"] == 160
    # the work scales its loss by 1 + 0.01 * memory, so loss and norm lie 0 to 2 % above
    assert 1 < row["loss"] / row["error"] < 1.02
    assert 1 < row["grad_norm"] / (sum(norms) / 2) < 1.02
    assert row["tokens_per_second"] > 0
    assert all(torch.equal(v, before[k]) for k, v in backbone.weights().items())


def test_lines_come_every_log_every_steps_and_at_the_end(tmp_path):
    _, run, _ = go(tmp_path, steps=7, engine=engine(log_every=3))
    assert [row["step"] for row in run.metrics("train")] == [3, 6, 7]


def test_two_views_train_and_an_absent_one_stays(tmp_path):
    backbone = ToyBackbone("policy", "value", "reference")
    before = backbone.weights()
    go(tmp_path, ToyWork(views=("policy", "value")), backbone, views=("policy", "value"), steps=3)
    moved = {
        k.split(".")[0] for k, v in backbone.weights().items() if not torch.equal(v, before[k])
    }
    assert moved == {"policy", "value"}


def test_a_view_without_micro_batches_is_not_moved_by_decay_or_momentum(tmp_path):
    backbone = ToyBackbone("policy", "value")
    before = backbone.weights()
    go(tmp_path, ToyWork(views=("policy",)), backbone, views=("policy", "value"), steps=3)
    assert all(torch.equal(v, before[k]) for k, v in backbone.weights().items() if "value" in k)


def test_dropout_is_on_in_losses_and_off_in_micros_and_evaluation(tmp_path):
    backbone, work, seen = ToyBackbone(), ToyWork(), []
    micros = work.micros
    work.micros = lambda step: (seen.append(("micros", backbone.training)), micros(step))[1]
    work.before_loss = lambda _: seen.append(("loss", backbone.training))

    def evaluate():
        seen.append(("evaluate", backbone.training))
        return {"x": 1.0}

    go(tmp_path, work, backbone, steps=2, evaluate=evaluate, evaluate_every=1)
    assert set(seen) == {("micros", False), ("loss", True), ("evaluate", False)}


def test_evaluations_are_logged_and_change_no_weight(tmp_path):
    def evaluate():
        return {"score": torch.rand(()).item()}  # draws from the global stream

    plain, _, _ = go(tmp_path / "a")
    often, run, _ = go(tmp_path / "b", evaluate=evaluate, evaluate_every=5)
    assert [row["step"] for row in run.metrics("eval")] == [5, 10]
    assert_same_bits(plain, often)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "the loop", "dies in any micro-batch and continues: bit for bit"
)
@pytest.mark.parametrize("failing_call", [1, 5, 16, 23])
def test_a_run_that_dies_continues_to_the_same_bits(tmp_path, failing_call):
    options = {
        "optimizer": optimizer(ema=0.8),
        "engine": engine(checkpoint_every_seconds=0, log_every=5),
        "evaluate": lambda: {"score": 1.0},
        "evaluate_every": 4,
    }
    straight, run, result = go(tmp_path / "straight", ToyWork(micro=4), **options)
    work = ToyWork(micro=4)  # two calls of loss per step
    work.before_loss = fail_at(failing_call, RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        go(tmp_path / "cut", work, **options)
    torch.rand(99)  # another process would be in another random state, too
    resumed, again, counted = go(tmp_path / "cut", ToyWork(micro=4), **options)
    assert_same_bits(straight, resumed)
    assert_same_metrics(run, again)
    assert (result.steps, result.tokens) == (counted.steps, counted.tokens)


def test_what_follows_a_step_is_called_once_for_each(tmp_path):
    def told(name: str, work: ToyWork, **options):
        seen: list[tuple[int, float]] = []

        def after(step: int) -> None:
            seen.append((step, work.memory))
            work.memory += 1.0  # its own state, which a checkpoint of this step holds

        backbone, _, _ = go(tmp_path / name, work, steps=6, after_step=after, **options)
        return backbone, seen

    options = {
        "engine": engine(checkpoint_every_seconds=0),
        "evaluate": lambda: {"score": 1.0},
        "evaluate_every": 2,
    }
    straight, seen = told("straight", ToyWork(), **options)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    cut = ToyWork()
    cut.before_loss = fail_at(4, RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        told("cut", cut, **options)
    resumed, rest = told("cut", ToyWork(), **options)
    assert rest == seen[3:]  # not again for the three steps before
    assert_same_bits(straight, resumed)


def test_sparse_checkpoints_lose_steps_but_not_bits(tmp_path):
    straight, run, _ = go(tmp_path / "straight")
    work = ToyWork()

    def stop(micro):
        if len(list((tmp_path / "cut").rglob("step-*"))) == 1:  # the only checkpoint, at a signal
            raise RuntimeError("power cut")
        os.kill(os.getpid(), signal.SIGTERM)

    work.before_loss = stop
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", work)
    work.before_loss = fail_at(6, RuntimeError("power cut"))
    with pytest.raises(RuntimeError):
        go(tmp_path / "cut", work)
    resumed, again, _ = go(tmp_path / "cut")
    assert_same_bits(straight, resumed)
    assert_same_metrics(run, again)


@pytest.mark.conformance(
    "equivalence",
    "the loop",
    "stopped by a signal and continued: bit for bit",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_and_says_so(tmp_path, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    work = ToyWork(micro=2)  # four micro-batches per step: the signal comes in step 3
    calls = iter(range(1, 100))
    work.before_loss = lambda _: next(calls) == 10 and os.kill(os.getpid(), number)
    with pytest.raises(Interrupted, match=r"after step 3 of 12.*continues") as caught:
        go(tmp_path, work)
    assert caught.value.exit_code == 128 + number
    assert [p.name for p in (tmp_path / "toy-1" / "state").iterdir()] == ["step-00000003"]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    straight, run, _ = go(tmp_path / "straight", ToyWork(micro=2))
    resumed, again, _ = go(tmp_path, ToyWork(micro=2))
    assert_same_bits(straight, resumed)
    assert_same_metrics(run, again)


def test_a_second_ctrl_c_quits_at_once(tmp_path):
    work = ToyWork()
    work.before_loss = lambda _: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, work)


def test_training_in_a_thread_works(tmp_path):
    straight, _, _ = go(tmp_path / "a")
    done = []
    thread = threading.Thread(target=lambda: done.append(go(tmp_path / "b")))
    thread.start()
    thread.join()
    assert_same_bits(straight, done[0][0])


def test_a_loss_that_is_not_finite_names_step_and_micro_batch(tmp_path):
    work, label = ToyWork(micro=4), ToyWork(micro=4).micros(4)[1].label
    loss, weights = work.loss, []
    backbone = ToyBackbone()

    def poisoned(view, micro):
        weights.append(backbone.weights())
        value, metrics = loss(view, micro)
        return (value * math.nan if micro.label == label else value), metrics

    work.loss = poisoned
    with pytest.raises(TrainingError) as caught:
        go(tmp_path, work, backbone)
    message = str(caught.value)
    assert f"micro-batch {label} is not finite at step 4" in message
    rows = Run(tmp_path / "toy-1").metrics("train")
    assert [row["step"] for row in rows] == [2, 3, 4]  # 3: the finite steps before; 4: the bad one
    assert math.isfinite(rows[1]["loss"])
    assert f"loss {rows[1]['loss']:.4g}" in message
    assert math.isnan(rows[2]["loss"])
    assert math.isfinite(rows[2]["error"])
    after_step_3 = weights[6]  # two micro-batches a step: what the first one of step 4 saw
    assert all(torch.equal(v, after_step_3[k]) for k, v in backbone.weights().items())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    backbone, work = ToyBackbone(), ToyWork()
    loss = work.loss

    class BadGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    work.loss = lambda view, micro: (BadGradient.apply(loss(view, micro)[0]), {})
    before = backbone.weights()
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) .*policy:\[.*at step 1"):
        go(tmp_path, work, backbone)
    assert all(torch.equal(v, before[k]) for k, v in backbone.weights().items())


def test_gradients_are_clipped(tmp_path):
    # With eps = 1e4 >> |g| the first AdamW step is lr * g / eps, so its length is lr * norm / eps.
    backbone = ToyBackbone()
    before = backbone.weights()
    plain = {"warmup": 0.0, "weight_decay": 0.0, "eps": 1e4, "learning_rate": 1.0}
    go(tmp_path, None, backbone, steps=1, optimizer=optimizer(max_grad_norm=0.5, **plain))
    moved = sum(float((v - before[k]).square().sum()) for k, v in backbone.weights().items())
    assert math.sqrt(moved) == pytest.approx(0.5 / 1e4, rel=1e-3)


def test_a_metric_with_a_name_of_the_loop_is_refused(tmp_path):
    work = ToyWork()
    loss = work.loss
    work.loss = lambda view, micro: (loss(view, micro)[0], {"loss": (1.0, 1.0)})
    with pytest.raises(ValueError, match="loop's own"):
        go(tmp_path, work)


def test_ema_weights_are_left_for_saving(tmp_path):
    """With decay d, average = d^n w_0 + (1-d) sum d^(n-t) w_t, from the weights of each step."""
    backbone, work, history = ToyBackbone(), ToyWork(), []
    work.before_loss = lambda _: history.append(backbone.weights())
    go(tmp_path / "plain", work, backbone, steps=4)
    history.append(backbone.weights())  # w_0 .. w_4
    averaged = ToyBackbone()
    go(tmp_path / "ema", ToyWork(), averaged, steps=4, optimizer=optimizer(ema=0.5))
    for name, value in averaged.weights().items():
        w = [weights[name] for weights in history]
        # 1/16 w0 + 1/2 (w1/8 + w2/4 + w3/2 + w4)
        expected = w[0] / 16 + w[1] / 16 + w[2] / 8 + w[3] / 4 + w[4] / 2
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_the_average_is_what_is_evaluated(tmp_path):
    backbone, seen = ToyBackbone(), []

    def evaluate():
        seen.append(backbone.weights())
        return {"x": 1.0}

    options = {"optimizer": optimizer(ema=0.9), "evaluate": evaluate, "evaluate_every": 12}
    go(tmp_path, ToyWork(), backbone, **options)
    assert all(torch.equal(v, seen[0][k]) for k, v in backbone.weights().items())


@pytest.mark.conformance(
    "determinism",
    "the loop with dropout",
    "the seed decides, whatever was drawn before",
)
def test_the_seed_alone_decides(tmp_path):
    def weights(folder, seed):
        backbone = ToyBackbone(dropout=0.2)
        torch.rand(len(folder))  # whatever was drawn before must not matter
        return go(tmp_path / folder, backbone=backbone, seed=seed)[0]

    one, same, other = weights("a", 3), weights("bb", 3), weights("ccc", 4)
    assert_same_bits(one, same)
    assert any(not torch.equal(v, other.weights()[k]) for k, v in one.weights().items())


SCORES = [0.1, 0.5, 0.55, 0.3, 0.2, 0.9]  # min_delta 0.1: best is the second


def early(**changes):
    rule = {"metric": "score", "mode": "max", "patience": 3, "min_delta": 0.1}
    return EarlyStopping(**{**rule, **changes})


def test_early_stopping_brings_the_best_weights_back(tmp_path):
    backbone, seen = ToyBackbone(dropout=0.2), []

    def evaluate():
        seen.append(backbone.weights())
        return {"score": SCORES[len(seen) - 1]}

    _, run, result = go(
        tmp_path,
        backbone=backbone,
        evaluate=evaluate,
        evaluate_every=2,
        early_stopping=early(),
        engine=engine(log_every=100),
    )
    # evaluations at 2, 4 (best), 6, 8, 10: three without a gain of 0.1
    assert (result.steps, result.best_step, len(seen)) == (10, 4, 5)
    assert [row["step"] for row in run.metrics("train")] == [10]
    assert all(torch.equal(v, seen[1][k]) for k, v in backbone.weights().items())


@pytest.mark.conformance(
    "equivalence",
    "the loop with early stopping",
    "stopped and continued: bit for bit",
)
def test_early_stopping_resumes_to_the_same_end(tmp_path):
    def options():
        scores = iter([1.0, 3.0, 3.0, 2.9, 5.0])
        return {
            "evaluate_every": 2,
            "early_stopping": early(mode="min", patience=2),
            "engine": engine(checkpoint_every_seconds=0),
            "evaluate": lambda: {"score": next(scores)},
        }

    straight, _, result = go(tmp_path / "a", **options())
    assert (result.steps, result.best_step) == (6, 2)
    cut = options()
    work = ToyWork()
    work.before_loss = fail_at(6, RuntimeError("power cut"))  # after the evaluation at step 4
    with pytest.raises(RuntimeError):
        go(tmp_path / "b", work, **cut)
    resumed, _, again = go(tmp_path / "b", **cut)  # the iterator goes on where it was
    assert (again.steps, again.best_step) == (6, 2)
    assert_same_bits(straight, resumed)


def test_early_stopping_refuses_unknown_metrics_and_no_evaluation(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'score'"):
        go(
            tmp_path,
            evaluate=lambda: {"score": 1.0},
            evaluate_every=1,
            early_stopping=early(metric="scores"),
        )
    with pytest.raises(ConfigError, match="evaluate_every"):
        go(tmp_path, early_stopping=early())


def run_toy(folder: Path, mode: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(TOY.parents[2])}
    return subprocess.Popen(
        [sys.executable, str(TOY), str(folder), mode],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "the loop",
    "a process killed and started again: bit for bit",
)
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_killed_and_continued_ends_in_the_same_bits(tmp_path, number):
    straight, cut = tmp_path / "toy-a", tmp_path / "toy-b"
    assert run_toy(straight, "fast").wait(60) == 0
    process = run_toy(cut, "slow")
    deadline = time.monotonic() + 60
    while len(Run(cut).metrics()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL  # no checkpoint: begins again, same end
    else:
        assert process.returncode == 128 + number, errors
        assert "the same command continues it" in errors
        assert list((cut / "state").glob("step-*"))
    assert not (cut / "weights.pt").exists()
    assert run_toy(cut, "fast").wait(60) == 0
    one, other = torch.load(straight / "weights.pt"), torch.load(cut / "weights.pt")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert_same_metrics(Run(straight), Run(cut))
