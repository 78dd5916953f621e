"""The endpoint judge against a server on loopback that plays what real ones do."""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time

import pytest
from chat_server import Answer, says, serving
from judge_cases import prompt

from alignlab.errors import ConfigError
from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.endpoint import EndpointJudge, content, usage
from alignlab.rewards.judge.judge import JudgeError, Question
from alignlab.rewards.judge.rulings import Match, rule
from alignlab.rewards.judge.spending import Limits, Price
from alignlab.rewards.judge.transport import post, retry_after

KEY = "sk-very-secret-0123456789"
QUESTIONS = [Question("p", f"one {i}", f"two {i}") for i in range(12)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def limits(**changes):
    values = {
        "concurrency": 4,
        "timeout": 5.0,
        "retries": 2,
        "backoff": 0.001,
        "longest_wait": 1.0,
        "calls": None,
        "usd": None,
    }
    return Limits(**{**values, **changes})


def judge(url, *, bounds=None, **changes):
    values = {
        "base_url": url,
        "model": "m-1",
        "api_key_env": "JUDGE_KEY",
        "max_tokens": 8,
        "request": {},
        "attempts": 2,
        "price": Price(input=1.0, output=10.0),
        "limits": bounds or limits(),
        "prompt": prompt(),
    }
    return EndpointJudge(**{**values, **changes})


def longer(body, number):
    text = body["messages"][-1]["content"]
    first, second = text.split("\nA: ")[1].split("\nOne letter")[0].split("\nB: ")
    return says("A" if len(first) > len(second) else "B")


def test_verdicts_cost_and_request(tmp_path):
    with serving(longer) as (url, seen):
        asker = Asker(judge(url, prompt=prompt(system="Be fair.")), tmp_path)
        found = rule(asker, [Match("p", "a long one", "short"), Match("p", "x", "longer")])
    assert [r.win for r in found] == [1.0, 0.0]
    body = seen.bodies[0]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m-1", 0, 8)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert {h["Authorization"] for h in seen.headers} == {f"Bearer {KEY}"}
    # 4 requests of 100 tokens in and 1 out: 4 · (100 · 1 + 1 · 10) / 10⁶ dollars
    assert asker.spent() == {
        "questions": 4,
        "cache_hits": 0,
        "calls": 4,
        "unreadable": 0,
        "judge_tokens_in": 400,
        "judge_tokens_out": 4,
        "cost_usd": pytest.approx(0.00044),
    }


def test_nothing_that_is_stored_holds_the_key(tmp_path):
    with serving(longer) as (url, _):
        made = judge(url)
        Asker(made, tmp_path).ask(QUESTIONS[:2])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(KEY in path.read_text() for path in files)
    assert KEY not in repr(made)


def test_replies_are_shared_by_later_studies(tmp_path):
    with serving(longer) as (url, seen):
        one = Asker(judge(url), tmp_path).ask(QUESTIONS)
        asker = Asker(judge(url, bounds=limits(concurrency=1), price=None), tmp_path)
        assert asker.ask(QUESTIONS) == one
        assert (asker.hits, asker.calls, len(seen.bodies)) == (12, 0, 12)
        Asker(judge(url, model="m-2"), tmp_path).ask(QUESTIONS[:1])
        assert len(seen.bodies) == 13


def test_no_more_requests_at_once_than_allowed(tmp_path):
    with serving(lambda body, n: says("A", pause=0.02)) as (url, seen):
        Asker(judge(url, bounds=limits(concurrency=3)), tmp_path).ask(QUESTIONS)
    assert 1 < seen.most <= 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
def test_rate_limits_and_server_errors_are_tried_again(tmp_path, status):
    def reply(body, number):
        return Answer(status, b"busy") if number < 2 else says("A")

    with serving(reply) as (url, seen):
        asker = Asker(judge(url), tmp_path)
        assert asker.ask(QUESTIONS[:1])[0].side == "first"
    assert len(seen.bodies) == 3
    assert asker.calls == 1  # a refusal is not paid for


class Clock(threading.Event):
    """Waits in no time and knows how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout=None) -> bool:
        self.waits.append(timeout)
        return False


def test_the_wait_doubles_and_retry_after_is_obeyed(monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: low)  # the least jitter: a half

    def reply(body, number):
        return Answer(429, b"", {"Retry-After": "7"} if number == 2 else {})

    clock = Clock()
    with serving(reply) as (url, _), pytest.raises(JudgeError, match="6 times in a row"):
        post(url, {}, {}, limits(backoff=1.0, retries=5, longest_wait=10.0), clock)
    # 1 · 2^n / 2, but what the server asks for, and never more than the longest wait
    assert clock.waits == [0.5, 1.0, 7.0, 4.0, 8.0]
    clock = Clock()
    with serving(lambda body, n: Answer(500)) as (url, _), pytest.raises(JudgeError):
        post(url, {}, {}, limits(backoff=8.0, retries=3, longest_wait=10.0), clock)
    assert clock.waits == [4.0, 8.0, 10.0]


def test_retry_after_as_number_and_as_date():
    assert retry_after("2") == 2.0
    assert retry_after(None) is None
    assert retry_after("soon") is None
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 25 < retry_after(later) <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_a_server_that_asks_for_an_hour_ends_the_session(tmp_path):
    with serving(lambda body, n: Answer(429, b"", {"Retry-After": "3600"})) as (url, seen):
        began = time.monotonic()
        with pytest.raises(JudgeError, match="asks to wait 3600 s"):
            Asker(judge(url), tmp_path).ask(QUESTIONS)
        assert time.monotonic() - began < 60
    assert len(seen.bodies) <= 4


def test_errors_that_stay_end_the_session_and_keep_what_was_paid(tmp_path):
    def reply(body, number):
        return says("A") if "one 0" in body["messages"][0]["content"] else Answer(503, b"down")

    with serving(reply) as (url, _):
        with pytest.raises(JudgeError, match=r"503.*3 times in a row"):
            Asker(judge(url, bounds=limits(concurrency=1)), tmp_path).ask(QUESTIONS)
        kept = Asker(judge(url), tmp_path)
        assert kept.ask(QUESTIONS[:1])[0].side == "first"
        assert kept.hits == 1


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "Check the key"), (404, "base_url"), (400, "judge.model")]
)
def test_a_refusal_is_final_and_does_not_repeat_the_key(tmp_path, status, advice):
    said = json.dumps({"error": f"no access for {KEY}"}).encode()
    with (
        serving(lambda body, n: Answer(status, said)) as (url, seen),
        pytest.raises(JudgeError, match=advice) as caught,
    ):
        Asker(judge(url, bounds=limits(concurrency=1)), tmp_path).ask(QUESTIONS)
    assert KEY not in str(caught.value)
    assert "no access for ***" in str(caught.value)
    assert len(seen.bodies) == 1


def test_a_redirect_does_not_carry_the_key_away(tmp_path):
    with serving(lambda body, n: says("A")) as (elsewhere, stolen):
        moved = Answer(302, b"", {"Location": f"{elsewhere}/chat/completions"})
        with serving(lambda body, n: moved) as (url, _), pytest.raises(JudgeError, match="302"):
            Asker(judge(url), tmp_path).ask(QUESTIONS[:1])
    assert stolen.bodies == []


@pytest.mark.slow
def test_a_slow_answer_is_a_time_out(tmp_path):
    def reply(body, number):
        return says("A", pause=0.5) if number == 0 else says("B")

    with serving(reply) as (url, seen):
        asker = Asker(judge(url, bounds=limits(timeout=0.15)), tmp_path)
        assert asker.ask(QUESTIONS[:1])[0].side == "second"
    assert len(seen.bodies) == 2
    with serving(lambda body, n: says("A", pause=0.4)) as (url, _):
        slow = judge(url, bounds=limits(timeout=0.1, retries=1))
        with pytest.raises(JudgeError, match=r"no answer within 0\.1 s"):
            Asker(slow, tmp_path).ask(QUESTIONS[:1])


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(JudgeError, match="no connection"):
            Asker(judge(url), tmp_path).ask(QUESTIONS[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "garbage",
    [
        says("I cannot decide."),
        says(None),
        says(["A"]),
        Answer(body=b"<html>busy</html>"),
        Answer(body=b"\xff\xfe"),
        Answer(body=b"[]"),
        Answer(body=b'{"choices": []}'),
        Answer(body=b'{"error": {"message": "overloaded"}}'),
    ],
)
def test_what_cannot_be_read_is_asked_again_and_then_no_verdict(tmp_path, garbage):
    with serving(lambda body, n: garbage) as (url, seen):
        asker = Asker(judge(url, attempts=3), tmp_path)
        [reply] = asker.ask(QUESTIONS[:1])
    assert reply.side == "none"
    assert (len(seen.bodies), reply.calls, asker.no_verdict) == (3, 3, 1)
    assert asker.spent()["cost_usd"] > 0  # unreadable replies are paid for too
    with serving(lambda body, n: garbage if n < 1 else says("B")) as (url, seen):
        assert Asker(judge(url), tmp_path).ask(QUESTIONS[:1])[0].side == "second"


def test_an_endpoint_that_is_never_understood_is_given_up(tmp_path):
    with serving(lambda body, n: says("maybe")) as (url, seen):
        many = [Question("p", f"{i}", "x") for i in range(200)]
        with pytest.raises(JudgeError, match=r"first 2[0-9] questions.*'maybe'"):
            Asker(judge(url, attempts=1), tmp_path).ask(many)
    assert len(seen.bodies) < 40


def test_a_cap_on_requests_stops_and_the_next_session_goes_on(tmp_path):
    with serving(longer) as (url, seen):
        for asked in (5, 10, 12):
            asker = Asker(judge(url, bounds=limits(calls=5)), tmp_path)
            if asked < 12:
                with pytest.raises(JudgeError, match=r"cap of 5 requests.*judge\.limits\.calls"):
                    asker.ask(QUESTIONS)
                assert asker.calls == 5
            else:
                assert len(asker.ask(QUESTIONS)) == 12
                assert (asker.hits, asker.calls) == (10, 2)
            assert len(seen.bodies) == asked


def test_a_cap_on_dollars_is_never_passed(tmp_path):
    # A reply costs (100 + 10) / 10⁶; before it is known, its question of about 60 bytes is set
    # aside as (60 / 2 + 64 + 8 · 10) / 10⁶.
    cap = 0.0006
    with serving(longer) as (url, _):
        asker = Asker(judge(url, bounds=limits(usd=cap)), tmp_path)
        with pytest.raises(JudgeError, match=r"cap of 0\.0006 US dollars"):
            asker.ask(QUESTIONS)
        assert 0 < asker.usd <= cap
        assert asker.calls >= 3


def test_the_cap_is_of_a_session_and_not_of_one_call(tmp_path):
    with serving(longer) as (url, _):
        asker = Asker(judge(url, bounds=limits(calls=5)), tmp_path)
        asker.ask(QUESTIONS[:3])
        with pytest.raises(JudgeError, match="cap of 5"):
            asker.ask(QUESTIONS[3:])


def test_without_usage_the_highest_price_counts(tmp_path):
    with serving(lambda body, n: says("A", tokens_in=None)) as (url, _):
        asker = Asker(judge(url), tmp_path)
        [reply] = asker.ask(QUESTIONS[:1])
        text = len(prompt().render(QUESTIONS[0]))
        assert reply.usd == pytest.approx((text // 2 + 64 + 8 * 10) / 1e6)
        unknown = Asker(judge(url, price=None), tmp_path / "2")
        unknown.ask(QUESTIONS[:1])
        assert unknown.usd is None


@pytest.mark.slow
def test_an_interruption_keeps_the_requests_under_way(tmp_path):
    """The main thread is interrupted while four requests are being answered."""
    begun = threading.Event()

    def reply(body, number):
        begun.set()
        return says("A", pause=0.2)

    class Interrupted(BaseException):
        """Not an Exception, like a signal's."""

    with serving(reply) as (url, seen):
        made = judge(url)
        from concurrent.futures import Future

        result = Future.result

        def interrupted(self, timeout=None):
            begun.wait(5)
            raise Interrupted

        Future.result = interrupted
        try:
            with pytest.raises(Interrupted):
                Asker(made, tmp_path).ask(QUESTIONS)
        finally:
            Future.result = result
        asked = len(seen.bodies)
        assert 1 <= asked <= 4
        again = Asker(judge(url), tmp_path)
        assert len(again.ask(QUESTIONS)) == 12
        assert again.hits == asked
        assert len(seen.bodies) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "ftp://x"}, "no http"),
        ({"base_url": "http://user:secret@host/v1"}, "must hold no key"),
        ({"base_url": "http://host/v1?key=secret"}, "must hold no key"),
        ({"bounds": limits(usd=1.0), "price": None}, "judge.price is null"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        judge(**{"url": changes.pop("base_url", "http://h/v1"), **changes})


def test_a_missing_key_is_named_before_any_request(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with serving(longer) as (url, seen):
        with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
            Asker(judge(url), tmp_path).ask(QUESTIONS[:1])
        Asker(judge(url, api_key_env=None), tmp_path).ask(QUESTIONS[:1])
    assert "Authorization" not in seen.headers[0]


def test_further_fields_of_the_request(tmp_path):
    with serving(longer) as (url, seen):
        fields = {"max_tokens": None, "max_completion_tokens": 50, "seed": 1}
        made = judge(url, request=fields)
        Asker(made, tmp_path).ask(QUESTIONS[:1])
        assert made.fingerprint() != judge(url).fingerprint()
    assert "max_tokens" not in seen.bodies[0]
    assert seen.bodies[0]["max_completion_tokens"] == 50


def test_what_decides_replies_is_in_the_fingerprint():
    base = judge("http://h/v1")
    same = judge("http://h/v1/", bounds=limits(concurrency=9), price=None, api_key_env=None)
    assert same.fingerprint() == base.fingerprint()
    for other in (
        judge("http://g/v1"),
        judge("http://h/v1", model="m-2"),
        judge("http://h/v1", prompt=prompt(version="2")),
        judge("http://h/v1", prompt=prompt(reference=None)),
        judge("http://h/v1", max_tokens=9),
    ):
        assert other.fingerprint() != base.fingerprint()


def test_replies_of_many_shapes():
    assert content({"choices": [{"message": {"content": "A"}}]}) == "A"
    assert usage({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}) == (1, 2)
    for data in ({}, [], None, "x", {"usage": []}, {"usage": {"prompt_tokens": "1"}},
                 {"usage": {"prompt_tokens": -1, "completion_tokens": 0}}):  # fmt: skip
        assert content(data) is None
        assert usage(data) is None
