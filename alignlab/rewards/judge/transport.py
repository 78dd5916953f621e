"""One JSON request to an HTTP endpoint: retried with patience, and no secret in any message."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from alignlab.rewards.judge.judge import JudgeError
from alignlab.rewards.judge.spending import Limits

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
LARGEST = 8 << 20  # bytes of a reply
EXCERPT = 300  # characters of a server's complaint that a message repeats


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        """Follow none."""


@dataclass(frozen=True)
class _Trouble:
    """Why a try failed, and how long the server asks to wait."""

    what: str
    wait: float | None = None


def post(
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    limits: Limits,
    stop: threading.Event,
) -> Any:
    """Send ``body`` as JSON and return what came back, parsed; None where that is no JSON.

    Rate limits, server errors, time-outs and broken connections are tried again after
    backoff · 2^n seconds, jittered, or after what ``Retry-After`` says.

    Raises:
        JudgeError: the endpoint refuses, or fails more often than ``limits.retries``; or ``stop``
            was set while waiting.
    """
    for attempt in range(limits.retries + 1):
        found = _try(url, body, headers, limits.timeout)
        if not isinstance(found, _Trouble):
            return found[0]
        if attempt == limits.retries:
            raise JudgeError(
                f"{url}: {found.what}, {attempt + 1} times in a row. What was answered before is"
                " kept; the same command goes on from here."
            )
        # Jitter, so that threads that were refused together do not come back together.
        wait = limits.backoff * 2**attempt * random.uniform(0.5, 1.0)
        wait = min(wait, limits.longest_wait)
        if found.wait is not None:
            if found.wait > limits.longest_wait:
                raise JudgeError(
                    f"{url}: {found.what}, and it asks to wait {found.wait:.0f} s; this session"
                    f" waits at most {limits.longest_wait:g} s (judge.limits.longest_wait)."
                )
            wait = max(wait, found.wait)
        if stop.wait(wait):
            raise JudgeError("stopped while waiting for the endpoint.")
    raise AssertionError("unreachable")


def _try(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout: float
) -> tuple[Any] | _Trouble:
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        url, data, {"Content-Type": "application/json", **headers}, method="POST"
    )
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as answer:
            return (_parsed(_read(answer, deadline)),)
    except urllib.error.HTTPError as error:
        with error:
            said = _excerpt(error, deadline, headers)
            what = f"the server answers {error.code} {error.reason}{said}"
        if error.code in RETRIED:
            return _Trouble(what, retry_after(error.headers.get("Retry-After")))
        raise JudgeError(f"{url}: {what}.{_advice(error.code)}") from None
    except TimeoutError:
        return _Trouble(f"no answer within {timeout:g} s")
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            return _Trouble(f"no answer within {timeout:g} s")
        return _Trouble(f"no connection ({error.reason})")
    except (http.client.HTTPException, ConnectionError) as error:
        return _Trouble(f"the connection broke ({type(error).__name__})")


def _read(answer: IO[bytes], deadline: float) -> bytes:
    """Read a body to its end; one that trickles in forever is a time-out all the same."""
    parts, size = [], 0
    while part := answer.read1(1 << 16):  # type: ignore[attr-defined]
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST:
            raise JudgeError(f"the endpoint sent more than {LARGEST >> 20} MiB for one verdict.")
    return b"".join(parts)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:  # of text that is no JSON, and of bytes that are no text
        return None


def _excerpt(error: urllib.error.HTTPError, deadline: float, headers: Mapping[str, str]) -> str:
    try:
        content = _read(error, deadline)
    except (TimeoutError, OSError, http.client.HTTPException) as trouble:
        return f" (its explanation could not be read: {type(trouble).__name__})"
    text = " ".join(content.decode("utf-8", "replace").split())
    for value in headers.values():  # a server may repeat the key that it refuses
        for secret in value.split():
            if len(secret) > 7:
                text = text.replace(secret, "***")
    return f": {text[:EXCERPT]}" if text else ""


def _advice(code: int) -> str:
    if code in (401, 403):
        return " Check the key in the environment variable that judge.api_key_env names."
    if code == 404:
        return " Check judge.base_url (it ends before /chat/completions) and judge.model."
    return " Check judge.model and judge.request."


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    if value.strip().replace(".", "", 1).isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
