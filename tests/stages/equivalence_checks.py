"""When two runs are the same run: their weights, their lines, their counts, their files."""

from __future__ import annotations

import pytest
from stage_lab import largest_difference, weights

from alignlab.run import Run

# Seven-digit floats: one unit in the last place of a weight near 1 is 1.2e-7, and the trainings
# here move their weights by 0.02 and more.
TOLERANCE = 1e-6
NORMALISATION = {"head.safetensors/gain", "head.safetensors/offset"}  # of a reward model


def model_difference(one: Run, other: Run) -> float:
    """Largest difference of any weight of the two models."""
    mine, theirs = weights(one), weights(other)
    for normalisation in NORMALISATION & mine.keys():  # from the scores of all completions
        expected = pytest.approx(float(mine.pop(normalisation)), rel=2e-5)
        assert float(theirs.pop(normalisation)) == expected
    return largest_difference(mine, theirs)


def assert_files_equal(one: Run, other: Run) -> None:
    """Sampled text is the same to the letter, and so is all that was made of it."""
    names = ("annotations.jsonl", "samples.jsonl", "record.json")
    written = [name for name in names if (one.path / name).is_file()]
    assert len(written) == 2
    for name in written:
        assert (one.path / name).read_text() == (other.path / name).read_text(), name


def assert_lines_equal(one: Run, other: Run) -> None:
    """The same metrics, a line per step, and the same record, up to rounding."""
    rows = one.metrics(), other.metrics()
    assert len(rows[0]) == len(rows[1]) >= 3
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"time", "split", "tokens_per_second"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name
    assert other.summary() == pytest.approx(one.summary(), rel=1e-4, abs=1e-5)
    # How full the micro-batches were depends on the token budget, which differs here, and what a
    # process holds on how it is shared.
    apart = {"summary", "packing", "sharding", "token_budget", "peak_memory_bytes"}
    mine, theirs = ({k: v for k, v in r.record.items() if k not in apart} for r in (one, other))
    assert mine == theirs
