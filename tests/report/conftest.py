"""Fixtures of the report's tests: a whole fake study, and one to break."""

from __future__ import annotations

import pytest
from fake_study import FakeStore, write_study


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> FakeStore:
    """The complete fake study; tests only read it (and write its report)."""
    root = tmp_path_factory.mktemp("store")
    write_study(root)
    return FakeStore(root)


@pytest.fixture
def small(tmp_path) -> FakeStore:
    """A study of its own for a test that breaks something in it."""
    write_study(tmp_path, prompts=12, missing=False)
    return FakeStore(tmp_path)
