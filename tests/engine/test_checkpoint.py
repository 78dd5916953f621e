"""Checkpoints are whole or passed over, and give back exactly what was saved."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from toy_training import engine

from alignlab.engine import checkpoint
from alignlab.engine.metrics import Metrics
from alignlab.errors import TrainingError


@pytest.fixture
def workers():
    return engine().workers()


def save(folder, step, workers, keep=3):
    whole = {"weights": {"w": torch.full((3,), float(step))}}
    checkpoint.save(
        folder,
        step,
        {"seconds": 1.0},
        {"note": step},
        whole=whole,
        shares={},
        workers=workers,
        keep=keep,
    )


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


def test_save_load_and_keep(tmp_path, workers):
    assert checkpoint.load(tmp_path, workers) is None
    for step in (2, 9, 10, 100):
        save(tmp_path, step, workers, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    loaded = checkpoint.load(tmp_path, workers)
    assert (loaded.step, loaded.world, loaded.worker(0)) == (100, 1, {"note": 100})
    assert loaded.shared == {"seconds": 1.0}
    assert loaded.tensors.whole("weights", "w").tolist() == [100.0] * 3


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "no manifest", "empty manifest"])
def test_a_torn_checkpoint_is_passed_over_with_a_warning(tmp_path, workers, damage):
    save(tmp_path, 1, workers)
    save(tmp_path, 2, workers)
    folder = tmp_path / "step-00000002"
    file = folder / "shared.pt"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        (folder / "worker-0.pt").unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("")
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        loaded = checkpoint.load(tmp_path, workers)
    assert loaded.step == 1


def test_a_kill_while_writing_leaves_the_earlier_checkpoint(tmp_path, workers, monkeypatch):
    save(tmp_path, 1, workers)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_facts", killed)  # between the files and the manifest
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, workers)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.load(tmp_path, workers).step == 1
    save(tmp_path, 2, workers)  # the half-written draft is no obstacle
    assert checkpoint.load(tmp_path, workers).step == 2
    assert not list(tmp_path.glob(".*"))


def test_the_checkpoint_of_another_version_is_refused(tmp_path, workers):
    save(tmp_path, 1, workers)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"layout": 2', '"layout": 1'))
    with pytest.raises(TrainingError, match=r"another version of alignlab.*delete .*to begin"):
        checkpoint.load(tmp_path, workers)


def test_random_states_come_back():
    checkpoint.seed_all(5, 0)
    first = draws()
    checkpoint.seed_all(5, 0)
    assert draws() == first
    state = checkpoint.rng_state()
    second = draws()
    assert second != first
    checkpoint.set_rng_state(state)
    assert draws() == second
    checkpoint.seed_all(5, 1)  # the next process draws other numbers
    assert draws() != first


def test_metrics_are_weighted_by_count_and_survive_a_checkpoint(workers):
    metrics = Metrics()
    metrics.add({"a": (torch.tensor(6.0), 3), "b": (1.0, torch.tensor(4))})
    other = Metrics()
    other.load(metrics.state())
    other.add({"a": (torch.tensor(1.0), 4), "nothing": (0.0, 0)})
    # a = (6 + 1) / (3 + 4), b = 1 / 4; "nothing" was never counted
    assert other.flush(workers) == {"a": 1.0, "b": 0.25}
    assert other.flush(workers) == {}


def test_metrics_sums_do_not_drift(workers):
    metrics = Metrics()
    for _ in range(1000):
        metrics.add({"x": (torch.tensor(2.0**24 + 1 + 1, dtype=torch.float32), 1)})
    assert metrics.flush(workers)["x"] == 2.0**24 + 2
