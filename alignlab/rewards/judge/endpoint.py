"""A model behind an OpenAI-compatible chat endpoint as a judge, within a budget."""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.rewards.judge.judge import Heard, JudgeError, Question, Reply, judge_fingerprint
from alignlab.rewards.judge.prompts import JudgePrompt
from alignlab.rewards.judge.spending import Limits, Price, Purse
from alignlab.rewards.judge.transport import post

PATIENCE = 20  # questions without one readable verdict, after which going on is waste
OVERHEAD = 64  # tokens that a chat format may add to the texts


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """Judges by the reply of a chat model: one label and nothing else, at temperature 0.

    A reply that is no label is asked for again, ``attempts`` times in all, and then counts as no
    verdict, never as a tie. The key is read from the environment when the first request is made
    and is written nowhere.
    """

    base_url: str  # up to /chat/completions, for example https://HOST/v1
    model: str  # as the endpoint names it
    api_key_env: str | None  # environment variable that holds the key; null = no key is sent
    max_tokens: Annotated[int, Range(min=1)]  # of a reply
    request: Mapping[str, Any]  # further fields of the request; null takes a field away
    attempts: Annotated[int, Range(min=1)]  # times that an unreadable reply is asked for
    price: Price | None  # null = unknown, and the cost with it
    limits: Limits  # they decide when a session ends and change no verdict
    prompt: JudgePrompt

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"judge.base_url: {self.base_url!r} is no http or https address.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "judge.base_url must hold no key: put it into an environment variable and name"
                " that one in judge.api_key_env."
            )
        Purse(self.limits, self.price)  # refuses a cap without a price

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{self.model} ({self.prompt.name})"

    @property
    def deterministic(self) -> bool:
        """Whether replies repeat: served models do not promise it, even at temperature 0."""
        return False

    @property
    def balanced(self) -> bool:
        """Each order is a request of its own."""
        return False

    @property
    def remembered(self) -> bool:
        """Replies are paid for."""
        return True

    def fingerprint(self) -> str:
        """Hash of the endpoint, the model, the request and the prompt; neither key nor limits."""
        asked = [self.base_url.rstrip("/"), self.model, self.max_tokens, dict(self.request)]
        return judge_fingerprint(self, 1, asked, self.prompt)

    def answer(self, questions: Sequence[Question], heard: Heard) -> None:
        """Ask several questions at a time; every reply is heard before any error is raised."""
        session = _Session(self, self._account, heard)
        with ThreadPoolExecutor(self.limits.concurrency) as pool:
            under_way = [pool.submit(session.ask, i, q) for i, q in enumerate(questions)]
            try:
                for future in under_way:
                    future.result()
            except BaseException as error:
                # Requests under way are paid for: the pool waits until their replies are heard.
                session.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(error, Exception) and session.cause not in (None, error):
                    raise session.cause from None  # the others only stopped because of it
                raise

    @cached_property
    def _account(self) -> _Account:
        return _Account(Purse(self.limits, self.price))


@dataclass
class _Account:
    """What a judge has spent and heard, over all calls of `EndpointJudge.answer`."""

    purse: Purse
    readable: int = 0
    unreadable: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Session:
    """One call of `EndpointJudge.answer`: its key and its threads' stop sign."""

    def __init__(self, judge: EndpointJudge, account: _Account, heard: Heard) -> None:
        self.judge, self.heard = judge, heard
        self.account, self.purse = account, account.purse
        self.stop = threading.Event()
        self.cause: BaseException | None = None  # the first error of any thread
        self.url = judge.base_url.rstrip("/") + "/chat/completions"
        self.headers = self._headers()

    def _headers(self) -> dict[str, str]:
        name = self.judge.api_key_env
        if name is None:
            return {}
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {name} is not set; judge.api_key_env names it as the"
                " one that holds the endpoint's key."
            )
        return {"Authorization": f"Bearer {key}"}

    def ask(self, index: int, question: Question) -> None:
        """Ask one question, in a thread of the pool; nothing once the session has stopped."""
        if self.stop.is_set():
            return
        try:
            reply = self._reply(question)
            self.heard(index, reply)
            self._watch(reply)
        except BaseException as error:
            with self.account.lock:
                self.cause = self.cause or error
            self.stop.set()
            raise

    def _reply(self, question: Question) -> Reply:
        total = Reply("none")
        for _ in range(self.judge.attempts):
            one = self._request(question)
            total = Reply(
                one.side,
                one.said,
                total.tokens_in + one.tokens_in,
                total.tokens_out + one.tokens_out,
                None if total.usd is None or one.usd is None else total.usd + one.usd,
                total.calls + one.calls,
            )
            if one.side != "none":
                break
        return total

    def _request(self, question: Question) -> Reply:
        judge = self.judge
        messages = [{"role": "user", "content": judge.prompt.render(question)}]
        if judge.prompt.system is not None:
            messages.insert(0, {"role": "system", "content": judge.prompt.system})
        body = {
            "model": judge.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": judge.max_tokens,
            **judge.request,
        }
        size = sum(len(message["content"].encode()) for message in messages)
        # A token is more than two bytes in the languages of most tokenizers: a careful estimate.
        reserved = self.purse.reserve(size // 2 + OVERHEAD, judge.max_tokens)
        tokens, answered = None, False
        try:
            kept = {key: value for key, value in body.items() if value is not None}
            data = post(self.url, kept, self.headers, judge.limits, self.stop)
            tokens, answered = usage(data), True
        finally:
            self.purse.settle(reserved, tokens, answered=answered)
        said = content(data)
        side = judge.prompt.read(said) if said is not None else None
        reply = Reply(side or "none", (said if said is not None else str(data))[:200], calls=1)
        if tokens is None:
            return replace(reply, usd=reserved if judge.price else None)
        usd = judge.price.of(*tokens) if judge.price else None
        return replace(reply, tokens_in=tokens[0], tokens_out=tokens[1], usd=usd)

    def _watch(self, reply: Reply) -> None:
        """Stop paying an endpoint that is never understood."""
        account = self.account
        with account.lock:
            account.readable += reply.side != "none"
            account.unreadable += reply.side == "none"
            hopeless = not account.readable and account.unreadable >= PATIENCE
        if hopeless:
            raise JudgeError(
                f"{self.judge.model}: no reply to the first {account.unreadable} questions is one"
                f" of the labels {', '.join(self.judge.prompt.labels)}; the last: {reply.said!r}."
                " Change the prompt, or judge.max_tokens if replies are cut off."
            )


def usage(data: Any) -> tuple[int, int] | None:
    """Tokens in and out that the endpoint counted; None where it does not say."""
    found = data.get("usage") if isinstance(data, dict) else None
    if not isinstance(found, dict):
        return None
    sent, received = found.get("prompt_tokens"), found.get("completion_tokens")
    if type(sent) is not int or type(received) is not int or min(sent, received) < 0:
        return None
    return sent, received


def content(data: Any) -> str | None:
    """Text of the reply; None where there is none."""
    try:
        text = data["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None
