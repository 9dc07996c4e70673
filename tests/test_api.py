"""daemon/web/api.py and guard.py: a real server, a real client."""

import base64
import contextlib
import hashlib
import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.errors import ConfigError
from config.schema import HttpConfig
from connectors.requests import MAX_PICTURE_BYTES, MAX_RECIPE_BYTES
from daemon.shots import pixel_hash
from daemon.web.api import AT_ONCE, Api
from daemon.web.app import HttpServer, create_app
from daemon.web.guard import Guard
from tests.broker import wait_for
from tests.parts import draw_part
from tests.plant import TestPlant, picture

TOKEN = "0123456789abcdef-token"  # noqa: S105


class Server:
    """The API of a plant on a free port."""

    def __init__(self, plant: TestPlant, **config: Any) -> None:
        settings = HttpConfig(port=0, **config)
        api = Api(plant.commands, Guard(settings, Path("x.toml")), lambda: {"version": "1"})
        app = create_app(lambda: b"", lambda: (True, {}), lambda: (True, {}), [api.mount()])
        self._server = HttpServer(settings, app)
        self._server.start()
        self.port = int(self._server.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=20)
        while True:
            try:
                self.http.get("/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.02)

    def close(self) -> None:
        self.http.close()
        self._server.stop()


@pytest.fixture
def server(plant: TestPlant) -> Iterator[Server]:
    server = Server(plant)
    yield server
    server.close()


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.headers["content-type"] == "application/json"
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    return str(answer.json()["error"]["message"])


def test_a_picture_is_registered_listed_and_forgotten(server: Server) -> None:
    shots = "/api/recipes/disc/shots"
    answer = server.http.post(shots, content=picture(1), headers={"Content-Type": "image/png"}, params={"name": "a.png"})
    assert answer.status_code == 200
    assert answer.json()["shots"][0]["shot"] == pixel_hash(draw_part(1))
    encoded = base64.b64encode(picture(2, suffix=".tiff")).decode()
    assert server.http.post(shots, json={"picture": encoded}).json()["shots"][0]["new"]
    # curl --data-binary says it is a form
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.http.post(shots, content=picture(3), headers=form).json()["shots"][0]["new"]
    listed = [row["shot"] for row in server.http.get(shots).json()["shots"]]
    assert listed == [pixel_hash(draw_part(seed)) for seed in (1, 2, 3)]
    assert server.http.delete(f"{shots}/{listed[0]}").json()["shot"] == listed[0]
    assert len(server.http.get(shots).json()["shots"]) == 2
    assert server.http.post("/api/recipes/disc/rebuild").json()["build"]
    assert server.http.get("/api/recipes/disc/banks").json()["recipe"] == "disc"
    assert "no earlier bank" in refused(server.http.post("/api/recipes/ring/rollback"), 409, "refused")


def test_every_command_has_an_address_and_status_and_recipes_are_shown(server: Server) -> None:
    assert server.http.post("/api/commands/shots", json={"station": "press"}).json() == {"recipe": "disc", "shots": []}
    assert server.http.get("/api/status").json() == {"version": "1"}
    assert [row["recipe"] for row in server.http.get("/api/recipes").json()["recipes"]] == ["disc", "ring"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/commands/reboot", b"{}", 404, "unknown_command"),
        ("/api/commands/shots", b"{", 400, "malformed"),
        ("/api/commands/shots", b'{"recipe": "\xff"}', 400, "malformed"),
        ("/api/commands/shots", b'{"a":' * 9 + b"1" + b"}" * 9, 400, "malformed"),
        ("/api/commands/shots", b'{"recipe": "cog"}', 404, "unknown_recipe"),
        ("/api/commands/shots", b'{"station": "oven"}', 404, "unknown_station"),
        ("/api/recipes/disc/rebuild", b'{"recipe": "ring"}', 400, "malformed"),
        ("/api/commands/mark", b'{"result_id": "x", "verdict": "bad"}', 409, "refused"),
        ("/api/commands/shots", b'{"a": [' + b"1," * 40_000 + b"1]}", 413, "too_large"),
        ("/api/nothing", b"", 404, "not_found"),
        ("/api/status", b"", 405, "not_allowed"),
    ],
)
def test_what_cannot_be_done_is_refused_as_json(server: Server, path: str, body: bytes, status: int, code: str) -> None:
    refused(server.http.post(path, content=body, headers={"Content-Type": "application/json"}), status, code)


def test_a_body_that_is_not_a_picture_is_refused(server: Server) -> None:
    message = refused(server.http.post("/api/recipes/disc/shots", content=b"text", params={"name": "a.png"}), 409, "refused")
    assert message.startswith("a.png: not a picture")
    refused(server.http.post("/api/recipes/disc/shots", content=picture(1), params={"colour": "x"}), 400, "malformed")


def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/api/recipes/disc/shots")
    connection.putheader("Content-Length", str(MAX_PICTURE_BYTES + 1))
    connection.endheaders(b"x")
    assert connection.getresponse().status == 413
    connection.close()
    # In pieces, without a length.
    with socket.create_connection(("127.0.0.1", server.port), 20) as raw:
        raw.sendall(b"POST /api/recipes/disc/shots HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        sent = 0
        with contextlib.suppress(OSError):  # it hangs up
            while sent < 1_000:
                raw.sendall(piece)
                sent += 1
        assert 64 <= sent < 1_000
    assert server.http.get("/healthz").status_code == 200


def test_commands_that_wait_leave_room_for_health_and_more_of_them_are_told_busy(server: Server) -> None:
    request = {"station": "press", "next": 1, "timeout_s": 1.5}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(server.http.post, "/api/commands/register", json=request) for _ in range(AT_ONCE)]
        time.sleep(0.5)
        refused(server.http.post("/api/commands/shots", json={"recipe": "disc"}), 503, "busy")
        assert server.http.get("/healthz").status_code == 200
        for one in waiting:
            refused(one.result(), 409, "refused")
    assert server.http.post("/api/commands/shots", json={"recipe": "disc"}).status_code == 200


def test_a_recipe_goes_out_and_comes_in_as_the_file_it_is(server: Server, plant: TestPlant) -> None:
    server.http.post("/api/recipes/disc/shots", content=picture(1))
    answer = server.http.get("/api/recipes/disc/export")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="disc.aprilcam.zip"'
    encoded = server.http.post("/api/commands/recipe_export", json={"recipe": "disc"}).json()
    assert base64.b64decode(encoded["file"]) == answer.content
    assert hashlib.sha256(answer.content).hexdigest() == encoded["sha256"]
    made = server.http.post("/api/commands/recipe_import", content=answer.content, params={"recipe": "plate"})
    assert made.json()["recipe"] == "plate"
    assert made.json()["build"]
    again = server.http.post("/api/commands/recipe_import", json={"recipe": "dish", "file": encoded["file"]})
    assert again.json()["recipe"] == "dish"
    for recipe in ("plate", "dish"):
        assert server.http.get(f"/api/recipes/{recipe}/shots").json()["shots"][0]["shot"] == pixel_hash(draw_part(1))
    refused(server.http.get("/api/recipes/cog/export"), 404, "unknown_recipe")
    refused(server.http.post("/api/commands/recipe_import", content=answer.content), 409, "refused")
    assert plant.counted("recipe_export", "ok") == 2
    assert plant.counted("recipe_export", "unknown_recipe") == 1


def test_an_export_needs_what_changing_needs_as_it_gives_pictures_away(server: Server) -> None:
    refused(server.http.get("/api/recipes/disc/export", headers={"Host": "evil.example"}), 403, "forbidden")
    assert server.http.get("/api/recipes", headers={"Host": "evil.example"}).status_code == 200


def test_a_recipe_file_over_its_bound_is_refused_and_one_comes_at_a_time(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/api/commands/recipe_import")
    connection.putheader("Content-Length", str(MAX_RECIPE_BYTES + 1))
    connection.endheaders(b"x")
    assert connection.getresponse().status == 413
    connection.close()
    slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        slow.putrequest("POST", "/api/commands/recipe_import")
        slow.putheader("Content-Length", str(MAX_PICTURE_BYTES + 1))
        slow.endheaders(b"x")
        time.sleep(1)  # until it is being read; nothing tells
        answer = server.http.get("/api/recipes/disc/export")
        assert "another recipe file is on its way" in refused(answer, 503, "busy")
    finally:
        slow.close()
    wait_for(lambda: server.http.get("/api/recipes/disc/export").status_code == 200, "its place")


# who may command


@pytest.mark.parametrize(
    ("headers", "well"),
    [
        ({}, True),
        ({"Host": "localhost:1"}, True),
        ({"Host": "[::1]:1"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, True),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
    ],
)
def test_without_a_token_other_sites_pages_may_not_command(server: Server, headers: dict[str, str], well: bool) -> None:
    answer = server.http.post("/api/commands/shots", json={"recipe": "disc"}, headers=headers)
    if well:
        assert answer.status_code == 200
    else:
        refused(answer, 403, "forbidden")


def test_with_a_token_file_what_changes_state_needs_it_and_reading_does_not(tmp_path: Path, plant: TestPlant) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    server = Server(plant, token_file=tmp_path / "token")
    try:
        for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}):
            refused(server.http.post("/api/recipes/disc/rebuild", headers=wrong), 401, "unauthorized")
            refused(server.http.delete("/api/recipes/disc/shots/00000000", headers=wrong), 401, "unauthorized")
        assert server.http.get("/api/recipes/disc/shots").status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}", "Origin": "http://page.example"}
        assert server.http.post("/api/recipes/disc/rebuild", headers=right).status_code == 200
    finally:
        server.close()


def test_on_an_address_that_others_reach_nothing_changes_without_a_token(plant: TestPlant) -> None:
    server = Server(plant, host="0.0.0.0")  # noqa: S104
    try:
        message = refused(server.http.post("/api/recipes/disc/rebuild"), 403, "forbidden")
        assert "Set [http] token_file" in message
        assert server.http.get("/api/recipes/disc/shots").status_code == 200
    finally:
        server.close()


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40, None])
def test_a_token_file_without_a_good_token_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"http\.token_file: .*token"):
        Guard(HttpConfig(token_file=file), Path("x.toml"))
