"""A chat endpoint on loopback that plays what real ones do: verdicts, limits, errors, garbage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answer:
    """What the server sends back: a status, headers, a body, after a pause."""

    def __init__(self, status=200, body=b"", headers=None, pause=0.0) -> None:
        self.status, self.body, self.headers, self.pause = status, body, headers or {}, pause


def says(text: Any, tokens_in: int | None = 100, tokens_out: int = 1, **answer: Any) -> Answer:
    """An ordinary reply with ``text`` as the message."""
    data: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if tokens_in is not None:
        data["usage"] = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return Answer(body=json.dumps(data).encode(), **answer)


class Seen:
    """Requests as they came, and the most that were under way at once."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most = self.now = 0
        self.lock = threading.Lock()


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Answer]):
    """Serve on a free port; ``reply`` gets the request's body and its number from 0."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with seen.lock:
                number = len(seen.bodies)
                seen.bodies.append({"path": self.path, **body})
                seen.headers.append(dict(self.headers))
                seen.times.append(time.monotonic())
                seen.now += 1
                seen.most = max(seen.most, seen.now)
            answer = reply(body, number)
            time.sleep(answer.pause)
            with seen.lock:
                seen.now -= 1
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client had given up

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
