"""A real browser that opens a page, is clicked in, and says what it shows: Chromium's own protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_SECONDS = 40


class Browser:
    """Opens one page at a time. errors: what pages have written to the console as errors, or thrown."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        theirs, self._to = os.pipe()
        self._from, ours = os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe --mute-audio"
        command = f"exec '{CHROMIUM}' {options} '--user-data-dir={profile}' about:blank 3<&{theirs} 4>&{ours}"
        self._process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(ours)
        self._left, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._to)
        os.close(self._from)
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self._hear(found)
        raise TimeoutError(method)

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Page.navigate", url=f"file://{page}")
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def say(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.say(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def point(self, selector: str, x: float = 0.5, y: float = 0.5, click: bool = False) -> None:
        """Move the mouse to a place in an element, scrolled into view, and click there."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.say(f"{find}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = json.loads(self.say(f"JSON.stringify({find}.getBoundingClientRect())"))
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def picture(self, file: Path) -> None:
        """Of what is in the window."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=True)["data"])

    def _next(self) -> Any:
        while b"\0" not in self._left:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def _hear(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(str(told["entry"]))
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(f"asks the network: {told['request']['url']}")
