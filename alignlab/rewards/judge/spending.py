"""What a judge behind an endpoint may cost: caps on requests and on US dollars, kept by threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.rewards.judge.judge import JudgeError


@dataclass(frozen=True, kw_only=True)
class Price:
    """What the endpoint charges, in US dollars per million tokens."""

    input: Annotated[float, Range(min=0)]
    output: Annotated[float, Range(min=0)]

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """Return the price of a request in US dollars."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How an endpoint is asked: how many at once, how patiently, and how much in all."""

    concurrency: Annotated[int, Range(min=1, max=256)]  # requests at the same time
    timeout: Annotated[float, Range(min=0, min_open=True)]  # seconds for one request
    retries: Annotated[int, Range(min=0)]  # after a rate limit, a server error, a time-out
    backoff: Annotated[float, Range(min=0)]  # seconds before the first retry; then it doubles
    longest_wait: Annotated[float, Range(min=0)]  # seconds between two tries at most
    calls: Annotated[int, Range(min=1)] | None  # answered requests of one session; null = no cap
    usd: Annotated[float, Range(min=0, min_open=True)] | None  # of one session; null = no cap


class Purse:
    """The budget of one session. What is under way is reserved at its highest price."""

    def __init__(self, limits: Limits, price: Price | None) -> None:
        if limits.usd is not None and price is None:
            raise ConfigError(
                "judge.limits.usd is a cap on the cost, and judge.price is null: say what the"
                " endpoint charges, or set judge.limits.usd=null."
            )
        self._limits, self._price = limits, price
        self._lock = threading.Lock()
        self.calls, self.usd = 0, 0.0
        self._under_way, self._reserved = 0, 0.0

    def reserve(self, tokens_in: int, tokens_out: int) -> float:
        """Set aside what a request can cost; returns it for `settle`.

        Raises:
            JudgeError: the cap would be passed.
        """
        worst = self._price.of(tokens_in, tokens_out) if self._price else 0.0
        caps = self._limits
        with self._lock:
            if caps.calls is not None and self.calls + self._under_way + 1 > caps.calls:
                raise JudgeError(self._stopped(f"{caps.calls} requests", "calls"))
            total = self.usd + self._reserved + worst
            if caps.usd is not None and total > caps.usd:
                raise JudgeError(self._stopped(f"{caps.usd:g} US dollars", "usd"))
            self._under_way += 1
            self._reserved += worst
        return worst

    def settle(self, reserved: float, tokens: tuple[int, int] | None, *, answered: bool) -> None:
        """Replace what was set aside by what was charged (all of it, where usage is not told)."""
        paid = self._price.of(*tokens) if self._price and tokens else reserved
        with self._lock:
            self._under_way -= 1
            self._reserved -= reserved
            if answered:
                self.calls += 1
                self.usd += paid

    def _stopped(self, cap: str, field: str) -> str:
        return (
            f"the judge has reached its cap of {cap} for one session (spent: {self.calls} requests,"
            f" {self.usd:.4f} US dollars). Every reply is kept: the same command goes on from here"
            f" with another such budget; judge.limits.{field} changes the cap."
        )
