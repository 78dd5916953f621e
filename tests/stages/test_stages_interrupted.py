"""A signal at any place of any stage where work can be left: run again, it ends in the same bytes.

The places are the calls of `interruption.check`: between two tokens of a rollout, two micro-batches
of a step, of a scoring pass, of an evaluation. Every stage is stopped twice, somewhere else each
time, and compared with one that nobody stopped.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import pytest
import torch
from equivalence_cases import METHODS, method
from stage_lab import Chain, weight_hashes

from alignlab import interruption
from alignlab.errors import Interrupted
from alignlab.rollout import slots, unfinished
from alignlab.run import Run
from alignlab.stages import annotate

SMALL = {"token_budget": 96}  # several micro-batches per step
KIND_OF = annotate.kind_of
SOME = ("sft", "reward", "kto", "ppo", "grpo", "annotate", "evaluate", "pretrain")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", -1.0)


@contextmanager
def signal_at(place: int | None) -> Iterator[list[int]]:
    """Send SIGUSR1 when `check` is called for the ``place``-th time; yields how often it was."""
    check, calls, seen = interruption.check, count(1), [0]

    def counting() -> None:
        seen[0] = next(calls)
        if seen[0] == place:
            os.kill(os.getpid(), signal.SIGUSR1)
        check()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interruption, "check", counting)
        yield seen


def session(
    chain: Chain, stage: Any, inputs: Any, run: Run | None = None, place: int | None = None
) -> tuple[Run, int]:
    """Run a stage, or go on with it, as a launcher does; also how many places it came by."""
    stopped = pytest.raises(Interrupted) if place is not None else nullcontext()
    run = run or chain.lab.new_run(stage.kind)
    with signal_at(place) as seen, stopped, interruption.heeding():
        chain.lab.run(stage, inputs, run, **SMALL)
    return run, seen[0]


def content(run: Run) -> dict[str, Any]:
    """Everything that a finished run says, but for clocks."""
    clocks = ("time", "tokens_per_second")
    found: dict[str, Any] = {
        "metrics": [{k: v for k, v in row.items() if k not in clocks} for row in run.metrics()],
        "samples": run.samples(),
        "record": run.record,
    }
    if run.model_dir.is_dir():
        found["weights"] = weight_hashes(run)
    if (run.path / annotate.FILE).is_file():
        found["annotations"] = (run.path / annotate.FILE).read_bytes()
    return found


@pytest.mark.conformance(
    "equivalence",
    "every stage",
    "interrupted in the middle of a rollout, a step or a pass and continued: bit for bit",
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SOME else pytest.mark.slow)
        for name in (*SOME, *(name for name in METHODS if name not in SOME))
    ],
)
def test_a_signal_in_the_middle_changes_no_bit(
    chain: Chain, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, inputs = method(chain, name)
    if name == "annotate":  # as if the data had no verdicts: completions are sampled
        monkeypatch.setattr(annotate, "kind_of", lambda _, alone: "missing")
    whole, places = session(chain, stage, inputs)
    assert places > 5
    run, _ = session(chain, stage, inputs, place=max(1, places // 3))
    assert not run.done
    torch.rand(7)  # another process would be in another random state, too
    _, _ = session(chain, stage, inputs, run, place=max(1, places // 4))
    session(chain, stage, inputs, run)
    assert content(run) == content(whole)
    assert not run.state_dir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo", "evaluate"])
def test_a_rollout_goes_on_at_the_same_token(
    chain: Chain, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that were drawn before the signal are not drawn again."""
    stage, inputs = method(chain, name)
    drawn, draw = [0], slots._Slots._draw

    def counting(self: Any) -> Any:
        drawn[0] += 1
        if drawn[0] == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    monkeypatch.setattr(slots._Slots, "_draw", counting)
    stop = 0
    whole, _ = session(chain, stage, inputs)
    total = drawn[0]
    for stop in (3, total // 2 + 1):
        drawn[0] = 0
        run = chain.lab.new_run(stage.kind)
        with pytest.raises(Interrupted), interruption.heeding():
            chain.lab.run(stage, inputs, run, **SMALL)
        assert drawn[0] == stop
        session(chain, stage, inputs, run)
        assert drawn[0] == total
        assert content(run) == content(whole)


@pytest.mark.slow
def test_a_rollout_that_is_too_large_to_keep_is_drawn_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, inputs = method(chain, "grpo")
    whole, places = session(chain, stage, inputs)
    monkeypatch.setattr(unfinished, "MOST_BYTES", 100)
    run, _ = session(chain, stage, inputs, place=4)
    assert not list(run.state_dir.glob("rollout-*"))
    _, again = session(chain, stage, inputs, run)
    assert again == places
    assert content(run) == content(whole)


@pytest.mark.slow
def test_a_rollout_of_another_iteration_is_not_taken(chain: Chain) -> None:
    """What lies in the file is known by prompts and seeds."""
    stage, inputs = method(chain, "ppo")
    whole, places = session(chain, stage, inputs)
    run, _ = session(chain, stage, inputs, place=places // 2)
    [file] = run.state_dir.glob("rollout-0.pt")
    kept = torch.load(file, weights_only=False)
    kept["state"]["drawn"].ids.zero_()
    torch.save({**kept, "asked": "something else"}, file)
    session(chain, stage, inputs, run)
    assert content(run) == content(whole)


def test_whole_chunks_of_annotations_are_kept(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, inputs = method(chain, "annotate")
    monkeypatch.setattr(annotate, "SAMPLED", 6)
    monkeypatch.setattr(annotate, "kind_of", lambda _, alone: "missing")
    whole, places = session(chain, stage, inputs)
    lines = (whole.path / annotate.FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) > 13
    run, _ = session(chain, stage, inputs, place=places // 2)
    file = run.path / annotate.FILE
    kept = file.read_bytes().splitlines(keepends=True)
    assert 6 <= len(kept) < len(lines)
    # A kill may leave half a chunk, and half a line.
    file.write_bytes(b"".join(kept) + b"".join(lines[len(kept) : len(kept) + 2]) + b'{"row": 1')
    _, left = session(chain, stage, inputs, run)
    assert left < 0.7 * places  # the kept ones are not sampled again
    assert content(run) == content(whole)


@pytest.mark.slow
def test_annotations_with_a_verdict_of_their_own_are_kept_too(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts of the data and sampled ones side by side, in chunks."""
    stage, inputs = method(chain, "annotate")
    monkeypatch.setattr(annotate, "SAMPLED", 6)
    monkeypatch.setattr(annotate, "kind_of", _of_every_other)
    whole, places = session(chain, stage, inputs)
    run, _ = session(chain, stage, inputs, place=places // 2)
    session(chain, stage, inputs, run)
    assert content(run) == content(whole)
    rows = [json.loads(line) for line in (run.path / annotate.FILE).read_text().splitlines()]
    assert 0 < sum("gold" in row["meta"] for row in rows) < len(rows)


def _of_every_other(group: Any, alone: bool) -> str:
    return "missing" if len(group.prompt) % 2 else KIND_OF(group, alone=alone)
