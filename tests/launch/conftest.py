"""A place to execute toys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lab as laboratory
import pytest
import toys

from alignlab.plan import Plan


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> laboratory.Lab:
    toys.use_toys(monkeypatch.setattr)
    monkeypatch.setenv("PYTHONPATH", str(toys.ROOT))
    return laboratory.Lab(tmp_path / "store")


@pytest.fixture
def key_of() -> Callable[[Plan, str], str]:
    return laboratory.key
