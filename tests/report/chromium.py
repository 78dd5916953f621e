"""A headless Chromium driven over the DevTools protocol, through a pipe; only the standard library.

Messages are JSON, ended by a zero byte: written to the browser's file descriptor 3, read from 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BINARY = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
REASON = "no Chromium on this machine: apt-get install chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0


class Chromium:
    """One browser with one page at a time; ``with`` ends it."""

    def __init__(self, folder: Path) -> None:
        assert BINARY is not None, REASON
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def descriptors() -> None:
            os.dup2(theirs_in, 203)  # first out of the way: they may be 3 and 4 already
            os.dup2(theirs_out, 204)
            os.dup2(203, 3)
            os.dup2(204, 4)

        self.process = subprocess.Popen(
            [BINARY, *FLAGS, f"--user-data-dir={folder / 'profile'}"],
            preexec_fn=descriptors, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._unread = b""
        self._count = 0
        self._events: list[dict] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        place = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self.call("Browser.setDownloadBehavior", **place)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # a browser whose pipe is gone ends by itself
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)

    def call(self, method: str, **parameters: Any) -> dict:
        """Call the protocol and return the answer; what else arrives is kept as events."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._count:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self._events.append(found)

    def _read(self) -> dict:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], deadline - time.monotonic())
            assert ready, "Chromium does not answer"
            more = os.read(self._in, 1 << 16)
            assert more, "Chromium has ended"
            self._unread += more
        line, self._unread = self._unread.split(b"\0", 1)
        return json.loads(line)

    def open(
        self, address: str, width: int = 1280, height: int = 900, *, dark: bool = False
    ) -> None:
        """Open a page in a window of this size and wait until it is loaded."""
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self._events.clear()
        self.call("Page.navigate", url=address)
        self.wait("Page.loadEventFired")

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def wait(self, event: str) -> None:
        """Wait for an event of the page."""
        while not any(e.get("method") == event for e in self._events):
            self._events.append(self._read())

    def js(self, expression: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def key(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, as a person would: ``"ArrowLeft"``, ``"Tab"``, ``"u"``."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
        code = codes.get(key, ord(key[0].upper()))
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        press = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        down = {"type": "keyDown" if text else "rawKeyDown", **press}
        self.call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **press)

    def problems(self) -> list[str]:
        """What the page complained of: exceptions, errors in the console, refused loads."""
        self.js("1")  # whatever was sent before this answer has arrived
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self._events if e.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [
            e["params"]["request"]["url"]
            for e in self._events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    def downloaded(self, name: str) -> Path:
        """Wait for a download and return its file."""
        path = self.downloads / name
        deadline = time.monotonic() + SECONDS
        while not path.is_file() or list(self.downloads.glob("*.crdownload")):
            assert time.monotonic() < deadline, f"{name} was not downloaded"
            time.sleep(0.05)
        return path

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(found["data"])
