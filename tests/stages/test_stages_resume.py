"""A training that is stopped after any step and started again ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from equivalence_cases import METHODS, READING, method
from stage_lab import Chain, objective, weight_hashes

from alignlab.engine.state import TrainState
from alignlab.run import Run, Store

ROOT = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    """The power went off."""


@contextmanager
def stopping_after(step: int) -> Iterator[None]:
    """Stops a training right after the checkpoint of ``step``."""
    save = TrainState.save

    def stop(self: TrainState, run: Run, engine: Any) -> None:
        save(self, run, engine)
        if self.step == step:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "save", stop)
        yield


def stages(chain: Chain) -> dict[str, tuple[Any, dict[str, Run]]]:
    """Everything that trains; the online methods with several updates per rollout."""
    pairs, preference_inputs = chain.prefer(steps=5)
    kto, _ = chain.prefer(steps=5, objective=objective("kto"), optimizer__ema=0.9)
    ppo, online_inputs = chain.online(
        "ppo", iterations=2, ppo_epochs=2, minibatches=2, kl_target=0.5, kl_horizon=50
    )
    grpo, _ = chain.online("grpo", iterations=3, updates=2)
    return {
        "sft": (chain.lab.stage("sft", steps=5, optimizer__schedule="cosine"), {}),
        "reward": (chain.lab.stage("reward", steps=5), chain.inputs("init", "annotations")),
        "dpo": (pairs, preference_inputs),
        "kto": (kto, preference_inputs),
        "ppo": (ppo, online_inputs),
        "grpo": (grpo, online_inputs),
    }


# PPO: 4 updates per iteration, so 2 and 6 are in the middle of one, 4 is between two.
# GRPO: 2 per iteration, so 3 is in the middle.
CASES = [
    *((name, step) for name in ("sft", "reward", "dpo", "kto") for step in (1, 3)),
    *(("ppo", step) for step in (1, 2, 3, 4, 6)),
    *(("grpo", step) for step in (1, 2, 3)),
]


@pytest.fixture(scope="module")
def straight(chain: Chain) -> Any:
    """Runs that nobody disturbed, made once."""
    made: dict[str, Run] = {}

    def of(name: str) -> Run:
        if name not in made:
            stage, inputs = stages(chain)[name]
            made[name] = chain.lab.run(stage, inputs)
        return made[name]

    return of


def timeless(run: Run) -> list[dict[str, Any]]:
    """Metric lines without what a clock wrote."""
    clock = ("time", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in run.metrics()]


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "SFT, reward model, DPO, KTO, PPO, GRPO",
    "stopped after any step and continued: weights, metrics and record bit for bit",
)
@pytest.mark.parametrize(("name", "step"), CASES)
def test_a_stopped_run_goes_on_bit_for_bit(
    chain: Chain, straight: Any, name: str, step: int
) -> None:
    stage, inputs = stages(chain)[name]
    run = chain.lab.new_run(stage.kind)
    with stopping_after(step), pytest.raises(Stopped):
        chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    assert not run.done
    assert not run.model_dir.exists()
    chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    whole = straight(name)
    assert weight_hashes(run) == weight_hashes(whole)
    assert timeless(run) == timeless(whole)
    same = ("updates", "tokens_trained", "tokens_sampled", "prompts", "completions", "summary")
    for field in same:
        assert run.record.get(field) == whole.record.get(field), field


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "PPO, GRPO", "stopped after each of five steps in turn: bit for bit the same"
)
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_stopping_after_every_step_is_no_different(chain: Chain, straight: Any, name: str) -> None:
    stage, inputs = stages(chain)[name]
    run = chain.lab.new_run(stage.kind)
    for step in range(1, 6):
        with stopping_after(step), pytest.raises(Stopped):
            chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    chain.lab.run(stage, inputs, run)
    assert weight_hashes(run) == weight_hashes(straight(name))
    assert timeless(run) == timeless(straight(name))


HERE_ALREADY = {name for name, _ in CASES}


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "every method",
    "stopped after every step in turn and continued: weights and metrics bit for bit",
)
@pytest.mark.parametrize(
    ("which", "name"),
    [
        *(("chain", name) for name in (*READING, *METHODS) if name not in HERE_ALREADY),
        *(("lora_chain", name) for name in ("sft", "reward", "kto", "grpo")),
    ],
)
def test_every_other_method_goes_on_too(
    request: pytest.FixtureRequest, which: str, name: str
) -> None:
    chain: Chain = request.getfixturevalue(which)
    stage, inputs = method(chain, name)
    whole = chain.lab.run(stage, inputs)
    run = chain.lab.new_run(stage.kind)
    for step in range(1, whole.record["updates"]):
        with stopping_after(step), pytest.raises(Stopped):
            chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    chain.lab.run(stage, inputs, run)
    assert weight_hashes(run) == weight_hashes(whole)
    assert timeless(run) == timeless(whole)
    assert run.record == whole.record


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "LoRA with dropout: DPO, PPO", "stopped and continued: the same masks and bits"
)
@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_dropout_goes_on_with_the_same_masks(lora_chain: Chain, name: str) -> None:
    if name == "dpo":
        stage, inputs = lora_chain.prefer(steps=4, backbone__adapter__dropout=0.3)
    else:
        stage, inputs = lora_chain.online("ppo", ppo_epochs=2, backbone__adapter__dropout=0.3)
    whole = lora_chain.lab.run(stage, inputs)
    run = lora_chain.lab.new_run(stage.kind)
    with stopping_after(3), pytest.raises(Stopped):
        lora_chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    lora_chain.lab.run(stage, inputs, run)
    assert weight_hashes(run) == weight_hashes(whole)


def test_stopped_after_training_but_before_done(
    chain: Chain, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward model that was normalised and saved, and then the process died."""
    stage, inputs = stages(chain)["reward"]
    run = chain.lab.new_run(stage.kind)

    def die(_: Run) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", die)
        with pytest.raises(Stopped):
            chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    chain.lab.run(stage, inputs, run)
    assert weight_hashes(run) == weight_hashes(straight("reward"))
    assert timeless(run) == timeless(straight("reward"))


def command(store: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "alignlab", "run", "experiment=smoke", "pipeline=instructgpt"),
        *(f"store={store}", "tracking=disabled", "engine.progress=false", "report=false"),
        *("engine.checkpoint_every_seconds=0", "size.ppo.iterations=6", "size.sft.steps=12"),
    ]


def model_hashes(store: Path) -> dict[str, str]:
    hashes = {}
    for run in Store(store).runs():
        assert run.done
        assert run.verify() == []
        for name, found in weight_hashes(run).items() if run.model_dir.is_dir() else ():
            hashes[f"{run.name}/{name}"] = found
    return hashes


def lines_of(store: Path) -> int:
    """Metric lines of all runs so far: how far the command has come, whatever the machine."""
    return sum(path.read_bytes().count(b"\n") for path in store.glob("*/metrics.jsonl"))


def start(store: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(store),
        cwd=store.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()[-2000:]


@pytest.mark.long
@pytest.mark.conformance(
    "equivalence",
    "alignlab run pipeline=instructgpt",
    "killed (SIGKILL) at two random moments and started again: the models' bytes are the same",
)
def test_sigkill_at_a_random_moment_changes_nothing(tmp_path: Path) -> None:
    finish(start(tmp_path / "straight"))
    expected = model_hashes(tmp_path / "straight")
    assert len(expected) >= 4  # SFT, reward model and head, PPO
    total = lines_of(tmp_path / "straight")

    seed = int.from_bytes(os.urandom(4), "little")
    chance, store = random.Random(seed), tmp_path / "killed"
    # One moment in the earlier stages and one in the later ones.
    for low, high in ((1, total // 2), (total // 2 + 1, total - 2)):
        moment = chance.randint(low, high)
        process = start(store)
        while process.poll() is None and lines_of(store) < moment:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"seed {seed}: it was too late"
    finish(start(store))
    assert model_hashes(store) == expected, f"seed {seed}"
    studies = list((store / "studies").glob("*/study.json"))
    assert studies
    assert all(json.loads(path.read_text())["jobs"] for path in studies)
