"""What became of a stage, told to another process and written for those who come later."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import toys

from alignlab.errors import (
    AlignlabError,
    ConfigError,
    DataError,
    DivergenceError,
    Interrupted,
    TrainingError,
)
from alignlab.launch.outcomes import (
    as_error,
    exit_code,
    outcome_file,
    read_outcome,
    told,
    write_outcome,
)
from alignlab.launch.task import Outcome, Place


@pytest.mark.parametrize(
    ("error", "arrives", "text"),
    [
        (ConfigError("no."), ConfigError, "no."),
        (DataError("row 3."), ConfigError, "row 3."),  # refused as well
        (DivergenceError("nan."), DivergenceError, "nan."),
        (TrainingError("lost."), TrainingError, "lost."),
        (ValueError("x"), TrainingError, "ValueError: x"),
        (Interrupted("stopped.", signal.SIGUSR1), Interrupted, "stopped."),
    ],
)
def test_an_error_arrives_at_the_others(
    error: Exception, arrives: type[AlignlabError], text: str
) -> None:
    found = as_error(told(error), "process 1 of 2 (b)")
    assert type(found) is arrives
    assert str(found) == f"process 1 of 2 (b): {text}"
    if isinstance(error, Interrupted):
        assert found.exit_code == 128 + signal.SIGUSR1


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        ("done", "", 0),
        ("cached", "", 0),
        ("failed", "failed", 1),
        ("failed", "refused", 2),
        ("failed", "diverged", 3),
        ("interrupted", "", 85),
    ],
)
def test_exit_codes(status: str, kind: str, code: int) -> None:
    assert exit_code(Outcome("sft-a", "sft", status, error_kind=kind)) == code  # type: ignore[arg-type]


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    place = Place(store=str(tmp_path), study="s", engine=toys.ENGINE, tracking=toys.TRACKING)
    assert read_outcome(place, "sft-a") is None
    outcome = Outcome("sft-a", "sft", "failed", 2.5, "no luck", 1, "failed")
    write_outcome(place, outcome)
    assert read_outcome(place, "sft-a") == outcome
    assert outcome_file(place, "sft-a") == tmp_path / "studies/s/outcomes/sft-a.json"
    assert [file.name for file in outcome_file(place, "sft-a").parent.iterdir()] == ["sft-a.json"]
