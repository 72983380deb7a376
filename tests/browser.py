"""A real browser, driven by its DevTools protocol: no more of it than the tests need.

https://chromedevtools.github.io/devtools-protocol/; the WebSocket is tornado's, which Flower brings.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tornado.websocket import websocket_connect

from tests.conftest import missing

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ANSWER_S = 60


def need_browser():
    """The path of a Chromium, or the test ends here."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        missing("not installed: chromium")
    return found


class Browser:
    """One window. ``credentials``: what is typed when a page asks for a user and a password; None: nothing."""

    def __init__(self, directory, credentials=None):
        self.credentials = credentials
        self.complaints = []  # what its console says is wrong, and addresses beyond the page's own
        self.asked = 0  # how often a password was asked for
        self.origin = None
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._profile = Path(directory) / "profile"
        self._process = subprocess.Popen(
            [
                need_browser(), "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self._profile}",
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--hide-scrollbars", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._page = self._loop.run_until_complete(self._connect())
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", handleAuthRequests=True)

    async def _connect(self):
        """To the one page that is open."""
        until = time.monotonic() + _ANSWER_S
        port_file = self._profile / "DevToolsActivePort"
        while not port_file.exists() or len(port_file.read_text().split()) < 2:
            assert self._process.poll() is None, "the browser ended at its start"
            assert time.monotonic() < until, "the browser does not come up"
            await asyncio.sleep(0.05)
        port, path = port_file.read_text().split()
        whole = await websocket_connect(f"ws://127.0.0.1:{port}{path}", max_message_size=1 << 28)
        target = None
        while target is None:
            await whole.write_message(json.dumps({"id": 0, "method": "Target.getTargets"}))
            answer = json.loads(await whole.read_message())
            targets = answer.get("result", {}).get("targetInfos", [])
            target = next((t["targetId"] for t in targets if t["type"] == "page"), None)
        whole.close()
        return await websocket_connect(
            f"ws://127.0.0.1:{port}/devtools/page/{target}", max_message_size=1 << 28
        )

    def call(self, method, **parameters):
        """One command, and its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), _ANSWER_S))

    async def _call(self, method, parameters):
        number = await self._send(method, parameters)
        while True:
            message = json.loads(await self._page.read_message())
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            await self._event(message)

    async def _send(self, method, parameters):
        self._number += 1
        await self._page.write_message(
            json.dumps({"id": self._number, "method": method, "params": parameters})
        )
        return self._number

    async def _event(self, message):
        method, said = message.get("method"), message.get("params", {})
        if method == "Fetch.authRequired":
            self.asked += 1
            response = {"response": "CancelAuth"}
            if self.credentials is not None and self.asked == 1:
                user, password = self.credentials
                response = {"response": "ProvideCredentials", "username": user, "password": password}
            await self._send(
                "Fetch.continueWithAuth", {"requestId": said["requestId"], "authChallengeResponse": response}
            )
        elif method == "Fetch.requestPaused":
            url = said["request"]["url"]
            if self.origin is not None and not url.startswith((self.origin, "data:")):
                self.complaints.append(f"asks elsewhere: {url}")
            await self._send("Fetch.continueRequest", {"requestId": said["requestId"]})
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(f"{said['entry']['text']} ({said['entry'].get('url', '')})")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(
                said["exceptionDetails"].get("exception", {}).get("description", "exception")
            )
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"a dialog: {said['message']}")
            await self._send("Page.handleJavaScriptDialog", {"accept": True})

    def open(self, url):
        """Go to a page, and wait until it is loaded."""
        self.origin = "/".join(url.split("/")[:3])
        self.asked = 0
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'", url)

    def value(self, expression):
        """What an expression of JavaScript is worth in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (expression, result)
        return result["result"].get("value")

    def wait_for(self, expression, what, timeout=60):
        """Until an expression is true."""
        until = time.monotonic() + timeout
        while not self.value(expression):
            assert time.monotonic() < until, (what, self.text()[:3000])
            time.sleep(0.1)

    def text(self):
        """What a person can read of the page."""
        return self.value("document.body.innerText")

    def size(self, width, height, *, phone=False):
        """Of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def dark(self, *, dark):
        """Whether the person prefers dark colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def overflow(self):
        """By how many pixels the page is wider than the window."""
        return self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def screenshot(self, path, *, whole=False):
        """The window, or the whole page, as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self._page.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
