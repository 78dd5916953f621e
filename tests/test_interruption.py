"""Signals: heeded at once, noted, or deferred to a place where work can be left."""
# ruff: noqa: PT012, SIM117 (what happens on the way out of the blocks is what is tested)

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from alignlab import interruption
from alignlab.errors import Interrupted


def send(number: int) -> None:
    os.kill(os.getpid(), number)  # handled before the call returns


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` leaves at once, not after some seconds."""
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", -1.0)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_is_heeded_wherever_the_thread_is(number: int) -> None:
    handlers = [signal.getsignal(n) for n in interruption.SIGNALS]
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as caught:
        with interruption.heeding():
            send(number)
            pytest.fail("the signal was not heeded")
    assert caught.value.signal_number == number
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(n) for n in interruption.SIGNALS] == handlers


def test_a_second_signal_does_not_disturb_what_is_put_in_order() -> None:
    order = []
    with pytest.raises(Interrupted, match="SIGTERM"):
        with interruption.heeding():
            try:
                send(signal.SIGTERM)
            finally:
                send(signal.SIGUSR1)
                order.append("saved")
    assert order == ["saved"]


def test_a_second_ctrl_c_quits_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        with interruption.noting("saving", alone=True):
            send(signal.SIGINT)
            send(signal.SIGINT)
    assert "SIGINT: saving (Ctrl-C again: quit now, unsaved)" in capsys.readouterr().err


def test_noted_signals_wait_until_they_are_asked_for(impatient: None) -> None:
    with interruption.heeding():
        with pytest.raises(Interrupted, match="SIGUSR2"):
            with interruption.noting("saving", alone=True):
                interruption.check()
                assert interruption.requested() == 0
                send(signal.SIGUSR2)
                send(signal.SIGTERM)  # the first one counts
                assert interruption.requested() == signal.SIGUSR2
                interruption.check()
    assert interruption.requested() == 0  # the next stage begins anew
    interruption.check()


def test_a_signal_that_nobody_asked_for_is_not_lost() -> None:
    with interruption.heeding(), pytest.raises(Interrupted):
        with interruption.noting("saving", alone=True):
            send(signal.SIGTERM)


def test_work_that_ends_soon_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(Interrupted):
        with interruption.noting("saving", alone=True):
            send(signal.SIGTERM)
            now += interruption.PATIENCE_SECONDS
            interruption.check()  # still within it
            now += 0.1
            interruption.check()
            pytest.fail("it went on")


def test_one_of_several_processes_leaves_only_what_nobody_waits_for(impatient: None) -> None:
    left = []
    with pytest.raises(Interrupted):
        with interruption.noting("saving", alone=False):
            send(signal.SIGTERM)
            interruption.check()  # a collective may follow
            with pytest.raises(Interrupted):
                with interruption.leavable():
                    interruption.check()
            left.append("the pass")
            interruption.check()
    assert left == ["the pass"]


def test_deferred_signals_meet_the_next_check(impatient: None) -> None:
    reached = []
    with pytest.raises(Interrupted):
        with interruption.heeding():
            with interruption.deferred():
                send(signal.SIGTERM)
                reached.append("end of the token")
                interruption.check()
                reached.append("next token")
    assert reached == ["end of the token"]


def test_deferred_signals_are_heeded_at_the_latest_afterwards() -> None:
    reached = []
    with pytest.raises(Interrupted):
        with interruption.heeding():
            with interruption.deferred():
                send(signal.SIGTERM)
            reached.append("outside")
    assert reached == []


def test_deferring_in_a_loop_that_notes_leaves_the_signal_to_it() -> None:
    reached = []
    with pytest.raises(Interrupted):
        with interruption.noting("saving", alone=True):
            with interruption.deferred():
                send(signal.SIGTERM)
            reached.append("end of the step")
    assert reached == ["end of the step"]


def test_other_threads_are_left_alone() -> None:
    handlers = [signal.getsignal(n) for n in interruption.SIGNALS]
    seen = []

    def work() -> None:
        with interruption.heeding(), interruption.noting("saving", alone=True):
            seen.append([signal.getsignal(n) for n in interruption.SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]
