"""The line that keeps a run without a cluster from looking like one with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cluster_summary import summary

pytest_plugins = ["pytester"]


def report(name: str, reason: str = "") -> SimpleNamespace:
    longrepr = ("file.py", 3, f"Skipped: {reason}") if reason else None
    return SimpleNamespace(nodeid=name, longrepr=longrepr)


def test_it_counts_what_ran_and_names_the_reasons() -> None:
    stats = {
        "passed": [report("tests/cluster/test_a.py::a"), report("tests/test_other.py::b")],
        "failed": [report("tests/cluster/test_a.py::c")],
        "skipped": [
            report("tests/cluster/test_a.py::d", "no Slurm: not installed"),
            report("tests/cluster/test_a.py::e", "no Slurm: not installed"),
            report("tests/cluster/test_b.py::f", "needs ip"),
            report("tests/gpu.py::g", "no GPU"),
        ],
    }
    assert summary(stats, ["tests"]) == (
        "cluster tests: 2 ran, 3 skipped because: no Slurm: not installed (2); needs ip (1)"
    )


def test_it_says_when_none_was_selected_of_a_whole_run() -> None:
    stats = {"passed": [report("tests/test_other.py::b")]}
    assert summary(stats, ["tests"]) == "cluster tests: none ran, all deselected"
    assert summary(stats, ["tests/test_other.py"]) is None


def test_the_line_ends_a_run(pytester: pytest.Pytester) -> None:
    folder = pytester.mkpydir("tests")
    cluster = folder / "cluster"
    cluster.mkdir()
    (cluster / "test_it.py").write_text(
        "import pytest\ndef test_one(): pytest.skip('no Slurm here')\ndef test_two(): pass\n"
    )
    plugin = pytester.runpytest_inprocess("-p", "cluster_summary", "tests")
    plugin.stdout.fnmatch_lines(["cluster tests: 1 ran, 1 skipped because: no Slurm here (1)"])
