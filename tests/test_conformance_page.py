"""The committed conformance page speaks of tests that are there, and of all that are marked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "experiments" / "conformance" / "README.md"
LINK = re.compile(r"\[(\w+)\]\(\.\./\.\./(tests/[\w/]+\.py)\)")


@pytest.fixture(scope="module")
def named() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, path in LINK.findall(PAGE.read_text(encoding="utf-8")):
        found.setdefault(path, set()).add(f"test_{name}")
    return found


def test_every_test_on_the_page_exists(named: dict[str, set[str]]) -> None:
    assert sum(map(len, named.values())) > 100
    for path, tests in named.items():
        defined = set(re.findall(r"def (test_\w+)", (ROOT / path).read_text(encoding="utf-8")))
        assert tests <= defined, path


def test_every_marked_file_is_on_the_page(named: dict[str, set[str]]) -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"mark\.(conformance|difference)\(", path.read_text(encoding="utf-8"))
    }
    assert marked - {"tests/test_conformance_page.py"} == set(named), "run `make conformance`"


def test_nothing_on_the_page_failed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert ", 0 that did not pass." in text
