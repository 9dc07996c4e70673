"""A real browser that tests and pictures can drive: Debian's chromium, over its DevTools pipe, without a driver of its own."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

ANSWER_S = 20.0


class Browser:
    """One headless chromium with one page."""

    def __init__(self, folder: Path, *, width: int = 1280, height: int = 900) -> None:
        program = shutil.which("chromium")
        assert program is not None
        asks, self._asks = _high_pipe()
        self._answers, answers = _high_pipe()
        # DevTools protocol on descriptors 3 and 4, each message ended by a zero byte (chromium's --remote-debugging-pipe).
        command = ["bash", "-c", f'exec "$@" 3<&{asks} 4>&{answers}', "chromium", program, "--headless", "--no-sandbox"]
        command += ["--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"]
        command += [f"--user-data-dir={folder / 'chromium'}"]
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(command, pass_fds=(asks, answers), stdout=log, stderr=log)
        os.close(asks)
        os.close(answers)
        self._said = b""
        self._count = 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Emulation.setLocaleOverride", locale="en-GB")

    def open(self, url: str) -> None:
        """Go there; returns before the page is drawn."""
        self._ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; raises AssertionError when it throws."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first element of a CSS selector."""
        place = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.run(f"(() => {{ const at = {place}; return [at.x + at.width / 2, at.y + at.height / 2] }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self._ask("Input.insertText", text=text)

    def picture(self) -> bytes:
        """The page as it is now, a PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        os.close(self._asks)
        os.close(self._answers)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._asks, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            answer = self._next(deadline_s)
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._said:
            readable, _, _ = select.select([self._answers], [], [], max(0.0, deadline_s - time.monotonic()))
            assert readable, f"chromium did not answer in {ANSWER_S} s"
            piece = os.read(self._answers, 1 << 20)
            assert piece, f"chromium ended with {self._process.wait(10)}"
            self._said += piece
        one, self._said = self._said.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(one)
        return answer


def _high_pipe() -> tuple[int, int]:
    """(reading end, writing end), neither of them a descriptor that chromium wants for the other."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
