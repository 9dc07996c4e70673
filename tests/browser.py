"""Debian's chromium, driven by Playwright, with windows that watch what goes wrong in them."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebError, expect, sync_playwright

PROGRAM = shutil.which("chromium")
WAIT_S = 20.0
"""How long a step may take, and what is expected may need to come true."""


GONE_BY_NOW = "404 .*/preview/"
"""A fault to expect on a slow machine: a browser asks for one of the newest pictures, which others have followed meanwhile."""


@dataclass(frozen=True)
class Size:
    """Of a window, in CSS pixels."""

    width: int
    height: int
    phone: bool = False
    """Touched, and laid out as its viewport tag says."""


DESKTOP = Size(1280, 800)
PHONE = Size(390, 844, phone=True)
SIZES = {"desktop": DESKTOP, "phone": PHONE}


@contextmanager
def chromium() -> Iterator[Browser]:
    """One headless browser. Until it is closed the thread has a running event loop: asyncio.run would refuse to start there."""
    assert PROGRAM is not None, "chromium is not installed (Debian: apt-get install chromium)"
    expect.set_options(timeout=WAIT_S * 1e3)
    with sync_playwright() as playwright:
        # No sandbox: tests run as root in containers, and look only at pages of our own.
        browser = playwright.chromium.launch(executable_path=PROGRAM, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def window(browser: Browser, home: str, size: Size = DESKTOP, *, expected: Sequence[str] = ()) -> Iterator[Page]:
    """A page with cookies of its own, not gone anywhere yet. home: what its addresses are relative to, as http://127.0.0.1:9464.

    At the end nothing may have gone wrong but what `expected` names, each a regular expression found in a fault: scripts that
    threw, errors on the console (answers of 400 and more and refusals of the Content-Security-Policy among them) and requests
    to another host than home's. AssertionError tells the others."""
    context = browser.new_context(
        base_url=home,
        viewport={"width": size.width, "height": size.height},
        is_mobile=size.phone,
        has_touch=size.phone,
        locale="en-GB",
    )
    context.set_default_timeout(WAIT_S * 1e3)
    faults = _watch(context, urlsplit(home).netloc)
    try:
        page = context.new_page()
        try:
            yield page
        except BaseException as error:
            if faults:
                error.add_note("The browser's own complaints: " + "; ".join(faults))
            raise
        page.evaluate("0")  # an answer comes after all that the page has told before
    finally:
        context.close()
    unexpected = [fault for fault in faults if not any(re.search(pattern, fault) for pattern in expected)]
    assert not unexpected, unexpected


def _watch(context: BrowserContext, host: str) -> list[str]:
    """A list that the faults to come are put into."""
    faults: list[str] = []

    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            faults.append(f"console: {message.text} ({message.location['url']})")

    def threw(error: WebError) -> None:
        faults.append(f"script: {error.error}")

    def requested(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != host:
            faults.append(f"other host: {request.url}")

    context.on("console", console)
    context.on("weberror", threw)
    context.on("request", requested)
    return faults
