"""Two real processes on the same global batch are one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_training import engine

from alignlab import typed
from alignlab.engine.distributed import KEPT_PRODUCTS, Engine, _buckets
from alignlab.errors import ConfigError
from alignlab.run import Run

TOY = Path(__file__).with_name("toy_training.py")


def run_many(folder: Path, processes: int, mode: str = "many") -> list[str]:
    """Run the toy as torchrun would, without its start-up time; returns each one's stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TOY.parents[2]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(TOY), str(folder), mode],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    errors = [worker.communicate(timeout=180)[1] for worker in workers]
    codes = {"many": 0, "many stop": 128 + signal.SIGTERM, "many nan": 1}
    assert [worker.returncode for worker in workers] == [codes[mode]] * processes, errors
    return errors


@pytest.mark.conformance(
    "equivalence",
    "the loop",
    "two processes, with unlike shares and a restart, are one: weights to 1e-6, the same metrics",
)
@pytest.mark.scale
def test_two_processes_are_one_on_the_same_global_batch(tmp_path):
    """Eleven micro-batches: six on one process, five on the other, one view on only one of them."""
    one, two = tmp_path / "toy-1", tmp_path / "toy-2"
    run_many(one, 1)
    stopped = run_many(two, 2, "many stop")  # in step 3 of the second process
    assert all("Stopped by SIGTERM after step 3 of 12" in text for text in stopped)  # both agree
    files = {p.name for p in (two / "state" / "step-00000003").iterdir()}
    assert files == {"shared.pt", "worker-0.pt", "worker-1.pt", "manifest.json"}
    assert run_many(two, 2) == ["", ""]  # nor is a thread of gloo left at the end
    alone, shared = torch.load(one / "weights.pt"), torch.load(two / "weights.pt")
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-6, atol=1e-6)
    assert json.loads((one / "result.json").read_text()) == [12, 1320, 1]
    assert json.loads((two / "result.json").read_text()) == [12, 1320, 2]
    rows = Run(one).metrics(), Run(two).metrics()
    assert len(rows[0]) == len(rows[1]) > 6  # one process writes
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"time", "split", "tokens_per_second"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name


@pytest.mark.scale
def test_a_bad_batch_on_one_process_stops_both_and_is_named(tmp_path):
    for message in run_many(tmp_path / "toy-1", 2, "many nan"):
        assert "The loss of micro-batch value:[" in message
        assert "is not finite at step 1" in message


def test_alone_every_reduction_is_the_identity():
    workers = engine().workers()
    assert (workers.rank, workers.world, workers.is_main) == (0, 1, True)
    assert workers.reduce_sums({"a": 1.5}) == {"a": 1.5}
    assert workers.highest(3, 0) == [3, 0]
    assert workers.gather("x") == ["x"]
    assert workers.union(["b", "a"]) == ["a", "b"]
    assert workers.share([1, 2, 3]) == [1, 2, 3]
    assert workers is engine(progress=True).workers()  # one per process


def test_buckets_keep_order_dtype_and_size(monkeypatch):
    monkeypatch.setattr("alignlab.engine.distributed.BUCKET_BYTES", 40)
    sizes = [4, 6, 1, 20, 3]  # floats: 16 + 24 = 40 bytes, 4, 80 (alone), 12
    tensors = [torch.zeros(n) for n in sizes] + [torch.zeros(1, dtype=torch.bfloat16)]
    found = [[t.numel() for t in bucket] for bucket in _buckets(tensors)]
    assert found == [[4, 6], [1], [20], [3], [1]]


def test_an_offload_without_anything_to_offload_is_refused():
    with pytest.raises(ConfigError, match=r"engine\.zero is 0; use engine=zero2"):
        engine(offload="optimizer")
    with pytest.raises(ConfigError, match=r"only ZeRO 3 shards, and engine\.zero is 2"):
        engine(zero=2, offload="all")
    assert engine(zero=3, offload="all").offload == "all"
    mapping = typed.to_mapping(engine())
    assert typed.build(Engine, mapping, "engine") == engine()
    with pytest.raises(ConfigError, match=r"engine\.token_budget.*>= 1"):
        typed.build(Engine, {**mapping, "token_budget": 0}, "engine")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(("own", "used"), [(None, KEPT_PRODUCTS), ("7", "7")])
def test_compiled_products_are_bounded_unless_a_person_says_how_many(own, used):
    """Each shape of a flat batch leaves one behind; the limit is read at the first product."""
    code = (
        "import os, toy_training; toy_training.engine().workers(); "
        "print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{TOY.parents[2]}:{TOY.parent}"}
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    if own:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == used, done.stderr.decode()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said():
    with pytest.raises(ConfigError, match=r"engine\.device=cpu"):
        engine(device="cuda").workers()


def test_configuration_needs_no_torch():
    """The command line makes these before anything heavy is loaded."""
    code = (
        "import sys; import alignlab.engine.optimizer, alignlab.engine.distributed, "
        "alignlab.engine.stopping; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(TOY.parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
