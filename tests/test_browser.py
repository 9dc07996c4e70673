"""tests/browser.py and tests/accessibility.py: a window tells what goes wrong in its page, axe-core what cannot be used."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser

from tests.accessibility import axe_findings
from tests.browser import window

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' http://127.0.0.2:1"
HEAD = '<!doctype html><html lang="en"><title>A page</title><link rel="icon" href="/good.png"><main>'
SERVED = {
    "/good": '<h1>Good</h1><script src="/script.js"></script>',
    "/script.js": "document.querySelector('h1').textContent = 'Better'",
    "/inline": "<p onclick='x()'>x</p>",
    "/throws": '<script src="/throws.js"></script>',
    "/throws.js": "no.such.thing()",
    "/lacks": '<img src="/lacking.png" alt="">',
    "/foreign": '<img src="http://127.0.0.2:1/x.png" alt="">',
    "/unusable": '<img src="/good.png"><label>a name <input></label>',
    "/dim.css": "p { color: #777; background: #666; }",
    "/dim": '<link rel="stylesheet" href="/dim.css"><p>Who can read this?</p>',
    "/good.png": "",
}


class Pages(BaseHTTPRequestHandler):
    """Under a strict policy."""

    def do_GET(self) -> None:
        body = SERVED.get(self.path)
        self.send_response(200 if body is not None else 404)
        kind = {"js": "text/javascript", "css": "text/css", "png": "image/png"}.get(self.path.rpartition(".")[2], "text/html")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(((HEAD if kind == "text/html" else "") + (body or "")).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/inline", "console: .*Content Security Policy"),
        ("/throws", "script: no is not defined"),
        ("/lacks", "console: .*404 .*/lacking.png"),
        ("/foreign", "other host: http://127.0.0.2:1/x.png"),
    ],
)
def test_a_fault_of_a_page_is_told(chromium: Browser, home: str, path: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault), window(chromium, home) as page:
        page.goto(path)


def test_a_page_with_expected_faults_alone_passes_and_a_failed_test_tells_all(chromium: Browser, home: str) -> None:
    with window(chromium, home, expected=["404 .*/lacking.png"]) as page:
        page.goto("/lacks")
        page.goto("/good")
        assert page.locator("h1").text_content() == "Better"

    def fail() -> None:
        with window(chromium, home) as page:
            page.goto("/lacks")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        fail()
    assert "/lacking.png" in raised.value.__notes__[0]


def test_axe_finds_what_cannot_be_used_under_a_strict_policy(chromium: Browser, axe: str, home: str) -> None:
    with window(chromium, home) as page:
        page.goto("/good")
        assert axe_findings(page) == []
        for path, finding in (("/unusable", "image-alt (critical): img: "), ("/dim", "color-contrast (serious): p: ")):
            page.goto(path)
            [found] = axe_findings(page)
            assert found.startswith(finding)
