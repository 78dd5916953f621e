"""The page of a running study: written by a child process, rarely, and never in the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alignlab.commands.refresh import Refresher, renew, retire
from alignlab.launch.task import Outcome

PAGES = frozenset({"evaluate-a", "evaluate-b"})
DONE = Outcome("evaluate-a", "evaluate", "done")


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def command(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.mark.slow
def test_the_first_evaluation_makes_the_first_page(tmp_path: Path, notes: list[str]) -> None:
    touch = f"open({str(tmp_path / 'page')!r}, 'a').write('x')"
    with Refresher(command(touch), PAGES, notes.append, first=0.0) as page:
        page.settled(Outcome("sft-a", "sft", "done"))
        page.settled(Outcome("evaluate-b", "evaluate", "failed"))
        time.sleep(0.5)
        assert page.written == 0  # nothing to show yet
        page.settled(DONE)
        assert until(lambda: page.written == 1)
        page.settled(Outcome("sft-b", "sft", "done"))  # any later stage changes the page
        assert until(lambda: page.written == 2)
    assert (tmp_path / "page").read_text() == "xx"
    assert notes == []


@pytest.mark.slow
def test_stages_that_settle_together_make_one_page(notes: list[str]) -> None:
    with Refresher(command("pass"), PAGES, notes.append, first=0.3) as page:
        for _ in range(50):
            page.settled(DONE)
        assert until(lambda: page.written == 1)
        time.sleep(0.6)
        assert page.written == 1


@pytest.mark.slow
def test_a_costly_page_waits_for_its_share_of_the_time(notes: list[str]) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    with Refresher(command(burn), PAGES, notes.append, share=0.05, first=0.0) as page:
        page.settled(DONE)
        assert until(lambda: page.written == 1)
        page.settled(DONE)
        time.sleep(1.0)  # 0.3 s of work at 5 % of the time: the next one is due after 5.7 s
        assert page.written == 1


@pytest.mark.slow
def test_an_error_of_the_page_is_one_note(notes: list[str]) -> None:
    with Refresher(command("raise ValueError('no gold')"), PAGES, notes.append, first=0.0) as page:
        page.settled(DONE)
        assert until(lambda: len(notes) == 1)
        page.settled(DONE)
        time.sleep(0.5)
        assert page.written == 0
    assert notes == ["the page could not be written while the study runs: ValueError: no gold"]


def test_a_command_that_cannot_start_is_a_note(notes: list[str]) -> None:
    with Refresher(["/nowhere/python"], PAGES, notes.append, first=0.0) as page:
        page.settled(DONE)
        assert until(lambda: bool(notes))
    assert "/nowhere/python" in notes[0]


@pytest.mark.slow
def test_the_end_of_the_study_ends_a_child_that_still_writes(notes: list[str]) -> None:
    began = time.monotonic()
    with Refresher(command("import time; time.sleep(60)"), PAGES, notes.append, first=0.0) as page:
        page.settled(DONE)
        time.sleep(0.5)
    assert time.monotonic() - began < 10
    assert notes == []  # that is no error of the page


def test_a_retired_page_says_no_more_that_the_study_runs(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    retire(page)  # no page: nothing to do
    assert not page.exists()
    head = '<html lang="en" {}>\n<p>mine {}</p>\n<p class="more">12</p>'
    span = '<span class="running" role="status">study is running: 3 of 9\nstages</span>'
    page.write_text(head.format('data-live="20"', span))
    retire(page)
    assert page.read_text() == head.format("", "")


def test_the_page_shows_that_the_command_is_still_there(tmp_path: Path, notes: list[str]) -> None:
    """After a kill nobody says so; a reader's browser then sees that the beat is an old one."""
    page = tmp_path / "index.html"
    renew(page)  # no page: nothing to do
    span = '<span class="running" role="status" data-beat="1000">study is running</span>'
    page.write_text(f"<p>data-beat is 1000 {span}</p>")
    with Refresher(command(""), PAGES, notes.append, page=page, beat=0.0):
        assert until(lambda: 'data-beat="1000"' not in page.read_text())
    beat = int(page.read_text().split('data-beat="')[1].split('"')[0])
    assert abs(beat - time.time()) < 60
    assert page.read_text().replace(str(beat), "1000") == f"<p>data-beat is 1000 {span}</p>"
    retire(page)
    assert page.read_text() == "<p>data-beat is 1000 </p>"
    renew(page)
    assert page.read_text() == "<p>data-beat is 1000 </p>"
    assert notes == []
