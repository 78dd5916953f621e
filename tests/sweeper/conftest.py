"""A configuration folder of toys, and a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import sweep_toys

from alignlab import compose


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the command line work on bowls; return the store's folder."""
    folder = sweep_toys.write_conf(tmp_path / "conf")
    monkeypatch.setattr(compose, "conf_dir", lambda: folder)
    monkeypatch.setattr("alignlab.plan.locate", sweep_toys.locate)
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "store"))
    sweep_toys.MADE.clear()
    sweep_toys.STOP["after"] = -1
    return tmp_path / "store"
