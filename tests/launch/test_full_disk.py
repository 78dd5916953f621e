"""A full disk ends a stage with a message that names it, hurts nothing, and is gone when it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import toy_cli
import toys
from lab import Lab

from alignlab import disk, files
from alignlab.data.token_shards import read_arrays, write_arrays
from alignlab.errors import TrainingError
from alignlab.run import Run


@pytest.fixture
def mounted(tmp_path):
    """A disk of one megabyte; ``mount(folder, options)`` mounts it or changes how."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    mount("size=1m")
    yield folder, mount
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left, to the last byte."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass
    assert shutil.disk_usage(folder).free == 0
    return ballast


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toys.use_toys(monkeypatch.setattr)
    monkeypatch.delenv("ALIGNLAB_RUNS", raising=False)


# What a run does when the disk becomes full: the name of a method of `Run`, and at which call.
MOMENTS = [
    ("log", 1),
    ("log", 3),
    ("sample", 1),
    ("update_record", 1),
    ("update_record", 3),
    ("finish", 1),
    ("claim", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "call"), MOMENTS)
def test_a_stage_ends_with_a_message_and_goes_on_when_there_is_space(
    mounted, monkeypatch, what, call
):
    folder, _ = mounted
    lab = Lab(folder / "store")
    lab.root.mkdir()
    plan = lab.plan({"a": toys.toy(1, steps=4), "b": toys.toy(10, left="a")})
    real, calls = getattr(Run, what), []

    def full(self, *args, **more):
        calls.append(what)
        if len(calls) == call:
            fill(folder)
        return real(self, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Run, what, full)
        assert lab.execute(plan, "inprocess") == {"a": "failed", "b": "blocked"}
    reason = lab.settled[0].reason
    assert f"the disk {folder} is full (0 B of 1 MiB free)" in reason
    assert "give the same command again" in reason
    [node, _] = plan.nodes.values()
    run = lab.store.run(node.kind, node.key)
    assert not run.done
    assert not run.live
    assert all(line.endswith("\n") for file in run.path.glob("*.jsonl") for line in file.open())
    assert isinstance(run.record, dict)  # whole, or not there
    assert not [f for f in folder.rglob("*") if f.suffix in (".tmp", ".part")]
    (folder / "ballast").unlink()
    assert lab.execute(plan, "inprocess") == {"a": "done", "b": "done"}
    assert run.verify() == []
    assert [row["step"] for row in run.metrics()][-4:] == [1, 2, 3, 4]
    assert lab.total(plan, "b") == 11


def test_an_entry_of_a_cache_is_whole_or_not_there(mounted):
    import numpy as np

    folder, _ = mounted
    arrays = {"ids": np.arange(50_000, dtype=np.int32)}
    ballast = fill(folder)
    with pytest.raises(TrainingError, match=f"the disk {folder} is full"), disk.explained(folder):
        write_arrays(folder / "x.tokens", arrays, {})
    assert [file.name for file in folder.iterdir()] == ["ballast"]
    assert read_arrays(folder / "x.tokens") is None
    ballast.unlink()
    write_arrays(folder / "x.tokens", arrays, {})
    assert read_arrays(folder / "x.tokens").arrays["ids"].tolist() == arrays["ids"].tolist()
    write_arrays(folder / "x.tokens", arrays, {})  # another process was as fast
    assert [file.name for file in folder.iterdir()] == ["x.tokens"]


def test_a_file_that_cannot_be_replaced_stays(mounted):
    folder, _ = mounted
    files.write_atomically(folder / "record.json", {"a": 1})
    files.append(folder / "rows.jsonl", {"step": 1})
    fill(folder)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(folder / "record.json", {"a": 2, "long": "x" * 10_000})
    with pytest.raises(OSError, match="No space left"):
        files.append(folder / "rows.jsonl", {"step": 2, "long": "x" * 10_000})
    (folder / "ballast").unlink()
    files.append(folder / "rows.jsonl", {"step": 3})
    assert files.read_json(folder / "record.json") == {"a": 1}
    assert list(files.rows(folder / "rows.jsonl")) == [{"step": 1}, {"step": 3}]


def test_libraries_that_say_it_in_words(mounted):
    """Errors of torch and safetensors carry no number."""
    import torch
    from safetensors.torch import save_file

    folder, _ = mounted
    fill(folder)
    with pytest.raises(Exception, match=r"No space|StorageFull") as caught:
        save_file({"x": torch.zeros(10_000)}, folder / "model.safetensors")
    assert disk.trouble(caught.value) == errno.ENOSPC
    file = folder / "step.pt"
    with pytest.raises((OSError, RuntimeError)) as caught, file.open("wb") as out:  # as checkpoints
        torch.save({"x": torch.zeros(10_000)}, out)
    assert disk.trouble(caught.value) == errno.ENOSPC
    assert disk.trouble(ValueError("No space left for doubt")) == 0
    assert disk.trouble(OSError(errno.EIO, "Input/output error")) == 0
    looped = ValueError("a")
    looped.__context__ = looped
    assert disk.trouble(looped) == 0


def command(conf: Path, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(Path(toy_cli.__file__)), str(conf), *arguments]
    env = {**os.environ, "PYTHONPATH": str(toys.ROOT), "ALIGNLAB_RUNS": str(store)}
    return subprocess.run(script, capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
def test_the_command_line_on_a_full_and_on_a_read_only_disk(mounted, tmp_path):
    folder, mount = mounted
    conf, store = toy_cli.write_conf(tmp_path / "conf"), folder / "store"
    ballast = fill(folder)
    full = command(conf, store, "run", "study=x")
    assert full.returncode == 1
    assert full.stderr.startswith(f"alignlab: the disk {folder} is full")
    assert "Traceback" not in full.stderr
    ballast.unlink()
    done = command(conf, store, "run", "study=x")
    assert done.returncode == 0, done.stderr
    fill(folder)
    again = command(conf, store, "plan", "--json")  # reading needs no space
    assert [stage["cached"] for stage in json.loads(again.stdout)["stages"]] == [True, True]
    ballast.unlink()
    mount("remount,ro")
    again = command(conf, store, "plan", "--json")
    assert [stage["cached"] for stage in json.loads(again.stdout)["stages"]] == [True, True]
    listed = command(conf, store, "runs", "ls")
    assert listed.stdout.count("done") == 2
    refused = command(conf, store, "run", "study=y", "seed=1")
    assert refused.returncode == 1
    assert "is mounted read-only. Name a folder that can be, with store=FOLDER" in refused.stderr
    assert "Traceback" not in refused.stderr
