"""The conformance page: what the marked tests of one test run have shown, written by that run.

A test that proves something about a method carries

    @pytest.mark.conformance("oracle", "DPO", "loss and gradient equal TRL's DPOTrainer")

and may say what it measured with ``record_property("measured", "largest difference 3e-8")``. Where
implementations disagree there is a test as well, with a row of the table of differences:

    @pytest.mark.difference(
        method="IPO", point="normaliser", equation="…", ours="…", trl="…", halos="…", original="…"
    )

`make conformance` runs the marked tests and writes the page. One that failed is shown as failed.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

SECTIONS = {
    "oracle": "The same numbers as TRL's own trainers",
    "closed form": "Closed forms",
    "law": "Laws of every objective",
    "equivalence": "Equivalences: what must not change a result",
    "architecture": "Architectures",
    "silent bug": "The gallery of silent bugs",
    "mutation": "Mutation testing",
    "determinism": "Determinism",
}
COLUMNS = ("method", "point", "equation", "ours", "trl", "halos", "original")
HEADINGS = ("Method", "Point", "Equation", "alignlab", "TRL 1.16", "HALOs", "Original code")


@dataclass
class Row:
    """One claim and the test cases behind it."""

    subject: str
    claim: str
    test: str
    issue: str = ""
    outcomes: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        passed = self.outcomes.count("passed")
        total = len(self.outcomes)
        if passed == total:
            return "holds" if total == 1 else f"holds in {total} cases"
        rest = sorted({o for o in self.outcomes if o != "passed"})
        return f"**{total - passed} of {total} {' and '.join(rest)}**"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance-page", help="write the conformance page of this run here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Reports carry the marks as properties, so that they reach the page from other processes."""
    for item in items:
        for mark in item.iter_markers("conformance"):
            section, subject, *claim = mark.args
            if section not in SECTIONS:
                raise pytest.UsageError(f"{item.nodeid}: section {section!r} of {list(SECTIONS)}")
            said = claim[0] if claim else first_sentence(item)
            stated = {"section": section, "subject": subject, "claim": said, **mark.kwargs}
            item.user_properties.append(("conformance", stated))
        for mark in item.iter_markers("difference"):
            if set(mark.kwargs) != set(COLUMNS):
                raise pytest.UsageError(f"{item.nodeid}: a difference states {', '.join(COLUMNS)}")
            item.user_properties.append(("difference", dict(mark.kwargs)))


def first_sentence(item: pytest.Item) -> str:
    text = (getattr(item, "function", None).__doc__ or "").strip().split("\n\n")[0]
    if not text:
        raise pytest.UsageError(f"{item.nodeid}: a conformance test needs a claim or a docstring")
    return " ".join(text.split())


class Page:
    """Collects the reports of a run and writes the page at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[tuple[str, ...], Row]] = defaultdict(dict)
        self.differences: dict[tuple[str, ...], Row] = {}
        self.final: dict[str, pytest.TestReport] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Setup, call and teardown report in turn; a failure in any of them is the outcome.
        earlier = self.final.get(report.nodeid)
        told = report.when == "call" or not report.passed
        if told and not (earlier is not None and earlier.failed):
            self.final[report.nodeid] = report

    def collect(self) -> None:
        for nodeid, report in sorted(self.final.items()):
            test = nodeid.split("[")[0]
            measured = [str(v) for k, v in report.user_properties if k == "measured"]
            for name, stated in report.user_properties:
                if name == "conformance":
                    key = (stated["subject"], stated["claim"], test)
                    rows = self.rows[stated["section"]]
                    row = rows.setdefault(key, Row(*key, issue=stated.get("issue", "")))
                elif name == "difference":
                    key = tuple(stated[column] for column in COLUMNS)
                    row = self.differences.setdefault(key, Row(stated["method"], "", test))
                else:
                    continue
                row.outcomes.append(report.outcome)
                row.measured += measured

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            self.collect()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("\n".join(self.lines(session.config)) + "\n", encoding="utf-8")

    def lines(self, config: pytest.Config) -> Iterator[str]:
        rows = [row for section in self.rows.values() for row in section.values()]
        cases = sum(len(row.outcomes) for row in rows)
        failed = sum(outcome != "passed" for row in rows for outcome in row.outcomes)
        packages = ", ".join(f"{n} {version(n)}" for n in ("torch", "transformers", "trl", "peft"))
        yield "# Conformance: what the tests have shown"
        yield ""
        yield "Written by a test run (`make conformance`), not by hand: edit the tests instead."
        yield ""
        yield f"{date.today()}: {len(rows)} claims, {cases} cases, {failed} that did not pass."
        yield f"Python {platform.python_version()}, {packages}, {platform.machine()}, CPU, float32"
        yield "unless a row says otherwise."
        for name, title in SECTIONS.items():
            if name in self.rows:
                yield from ("", f"## {title}", "")
                yield from claims(list(self.rows[name].values()), self.path)
            if name == "oracle" and self.differences:
                yield from ("", "## Where implementations disagree, and what we chose", "")
                yield from differences(self.differences, self.path)


def claims(rows: Sequence[Row], page: Path) -> Iterator[str]:
    issues = any(row.issue for row in rows)
    yield f"| subject | what holds |{' known from |' if issues else ''} result | test |"
    yield f"|---|---|{'---|' if issues else ''}---|---|"
    for row in rows:
        seen = list(dict.fromkeys(row.measured))
        result = row.result + (f" ({'; '.join(seen[:3])})" if seen else "")
        known = f" {link(row.issue)} |" if issues else ""
        said = f"| {cell(row.subject)} | {cell(row.claim)} |{known} {cell(result)} |"
        yield f"{said} {source(row.test, page)} |"


def differences(found: dict[tuple[str, ...], Row], page: Path) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS)} | result | test |"
    yield "|" + "---|" * (len(HEADINGS) + 2)
    for values, row in sorted(found.items()):
        columns = " | ".join(cell(value) for value in values)
        yield f"| {columns} | {row.result} | {source(row.test, page)} |"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def link(issue: str) -> str:
    """``owner/repo#12`` as a link; anything else (a paper, a file) as it stands."""
    repository, _, number = issue.rpartition("#")
    if repository.count("/") == 1 and number.isdigit():
        return f"[{issue}](https://github.com/{repository}/issues/{number})"
    return cell(issue)


def source(test: str, page: Path) -> str:
    path, _, name = test.partition("::")
    up = "/".join([".."] * len(page.parent.parts)) if not page.is_absolute() else ""
    return f"[{name.removeprefix('test_')}]({up}/{path})" if up else f"{path}::{name}"


def pytest_configure(config: pytest.Config) -> None:
    path: Any = config.getoption("--conformance-page", default=None)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Page(Path(path)), "conformance-page-writer")
