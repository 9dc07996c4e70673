"""daemon/web/access.py: a real server, a real client; every route as nobody, viewer, engineer and with a wrong CSRF token."""

import logging
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from config.errors import ConfigError
from config.schema import HttpConfig
from daemon.web.access import LOGIN_BYTES, WAITING, Access
from daemon.web.api import Api
from daemon.web.app import HttpServer, create_app
from daemon.web.headers import STRICT
from daemon.web.sessions import IDLE_S, MOST_ADDRESSES, MOST_S, MOST_SESSIONS, Attempts, Sessions
from daemon.web.users import hash_password, read_users
from tests.plant import TestPlant

TOKEN = "0123456789abcdef-token"  # noqa: S105
PASSWORDS = {"vera": "viewer's secret", "emil": "engineer's secret"}


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """The API, the login and two routes as the page has them."""

    def __init__(self, plant: TestPlant, **config: Any) -> None:
        settings = HttpConfig(port=0, **config)
        self.clock = Clock()
        self.free = threading.Event()
        """/wait waits for it."""
        self.free.set()
        access = Access(settings, Path("x.toml"), self.clock)

        def show(request: Request) -> Response:
            return PlainTextResponse(request.state.visitor.csrf)

        def wait(_: Request) -> Response:
            self.free.wait(20)
            return PlainTextResponse("done")

        def change(request: Request) -> Response:
            return PlainTextResponse(request.state.form.get("what", "changed"))

        beside = [
            Api(plant.commands, access, dict).mount(),
            *access.routes(),
            access.route("/look", show),
            access.route("/wait", wait),
            access.route("/change", change, role="engineer", methods=["POST"]),
        ]
        self.app = create_app(lambda: b"", lambda: (True, {}), lambda: (True, {}), beside)
        self._server = HttpServer(settings, self.app)
        self._server.start()
        self._url = f"http://127.0.0.1:{self._server.url.rpartition(':')[2]}"
        self._clients: list[httpx.Client] = []
        nobody = self.client()
        while True:
            try:
                nobody.get("/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.02)

    def client(self) -> httpx.Client:
        """A browser with no cookies yet."""
        client = httpx.Client(base_url=self._url, trust_env=False, timeout=20)
        self._clients.append(client)
        return client

    def logged_in(self, name: str) -> httpx.Client:
        client = self.client()
        password = PASSWORDS.get(name, TOKEN)
        answer = client.post("/login", data={"name": name, "password": password})
        assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._server.stop()


Open = Callable[..., Server]


@pytest.fixture
def serve(plant: TestPlant) -> Iterator[Open]:
    servers: list[Server] = []

    def make(**config: Any) -> Server:
        servers.append(Server(plant, **config))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("users") / "users"
    roles = {"vera": "viewer", "emil": "engineer"}
    file.write_text("# who\n\n" + "".join(f"{name}:{roles[name]}:{hash_password(PASSWORDS[name])}\n" for name in roles))
    return file


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path / "token"


def requests_of(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from requests_of(list(route.routes), prefix + route.path)
        else:
            assert isinstance(route, Route)
            path = prefix + re.sub(r"\{\w+\}", "x", route.path)
            yield from ((method, path) for method in sorted(route.methods or ()) if method != "HEAD")


def test_every_route_as_every_role(serve: Open, users_file: Path) -> None:
    server = serve(users_file=users_file)
    everyone = {"/metrics", "/healthz", "/readyz", "/login"}
    looks = {"/look", "/wait"}
    walked = 0
    visitors = {"nobody": server.client(), "viewer": server.logged_in("vera"), "engineer": server.logged_in("emil")}
    tokens = {who: client.get("/look").text for who, client in visitors.items() if who != "nobody"}
    tokens["nobody"] = tokens["engineer"]  # stolen, but of another session
    for method, path in requests_of(list(server.app.routes)):
        if (method, path) in (("POST", "/login"), ("POST", "/logout")):
            continue  # below
        walked += 1
        for who, client in visitors.items():
            for right in (True, False):
                headers = {"X-CSRF-Token": tokens[who] if right else tokens["nobody" if who == "viewer" else "viewer"]}
                status = client.request(method, path, headers=headers).status_code
                refused = status in (401, 403)
                free = path in everyone or (method == "GET" and path.startswith("/api") and not path.endswith("/export"))
                if free:
                    expected = False
                elif path in looks:
                    expected = who == "nobody"
                else:
                    expected = who != "engineer" or (method != "GET" and not right)
                assert refused == expected, (who, right, method, path, status)
    assert walked >= 18


def test_however_many_wait_for_a_page_probes_are_answered(serve: Open) -> None:
    server = serve()
    server.free.clear()
    many = 60  # more than the server has threads for all
    with ThreadPoolExecutor(many) as pool:
        waiting = [pool.submit(server.client().get, "/wait") for _ in range(many)]
        time.sleep(0.5)
        assert server.client().get("/healthz", timeout=5).status_code == 200
        assert not any(one.done() for one in waiting)
        server.free.set()
        assert [one.result().text for one in waiting] == ["done"] * many


def test_login_gives_a_strict_cookie_and_logout_ends_it(serve: Open, users_file: Path) -> None:
    server = serve(users_file=users_file)
    browser = server.client()
    assert browser.get("/look", headers={"Accept": "text/html"}).headers["location"] == "/login"
    page = browser.get("/login")
    assert {name: page.headers[name] for name in STRICT} == STRICT
    answer = browser.post("/login", data={"name": "vera", "password": PASSWORDS["vera"]})
    key, *flags = answer.headers["set-cookie"].split("; ")
    assert {flag.lower() for flag in flags} == {"httponly", "max-age=43200", "path=/", "samesite=strict"}
    assert len(key.partition("=")[2]) >= 43
    assert browser.post("/logout").status_code == 403
    csrf = browser.get("/look").text
    kept = dict(browser.cookies)
    assert browser.post("/logout", data={"csrf": csrf}).headers["location"] == "/login"
    assert server.client().get("/look", headers={"Cookie": "; ".join(f"{k}={v}" for k, v in kept.items())}).status_code == 401


def test_over_a_proxy_with_tls_the_cookie_is_secure(serve: Open, token_file: Path) -> None:
    headers = {"X-Forwarded-Proto": "https"}
    answer = serve(token_file=token_file).client().post("/login", data={"password": TOKEN}, headers=headers)
    assert "; Secure" in answer.headers["set-cookie"]


def test_a_form_of_the_page_carries_the_csrf_token_as_a_field(serve: Open, token_file: Path) -> None:
    server = serve(token_file=token_file)
    browser = server.logged_in("")
    csrf = browser.get("/look").text
    assert browser.post("/change", data={"csrf": csrf, "what": "it"}).text == "it"
    assert browser.post("/change", data={"csrf": csrf + "x", "what": "it"}).status_code == 403
    assert browser.post("/change", data={"csrf": csrf}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert browser.post("/change", data={"csrf": csrf, "what": "x" * 70_000}).status_code == 413
    assert browser.post("/api/recipes/disc/rebuild").status_code == 403
    assert browser.get("/api/recipes/disc/export").status_code in (200, 409)


@pytest.mark.parametrize("rest", [{"idle": IDLE_S}, {"idle": IDLE_S - 1, "times": 7}])
def test_a_session_expires(serve: Open, token_file: Path, rest: dict[str, float]) -> None:
    server = serve(token_file=token_file)
    browser = server.logged_in("")
    for _ in range(int(rest.get("times", 1)) - 1):
        if server.clock.now + rest["idle"] < 1_000 + MOST_S:
            server.clock.now += rest["idle"]
            assert browser.get("/look").status_code == 200
    server.clock.now += rest["idle"]
    assert browser.get("/look").status_code == 401


def test_failed_logins_wait_and_nothing_secret_is_logged(
    serve: Open, users_file: Path, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(users_file=users_file, token_file=token_file)
    browser = server.logged_in("emil")
    session, csrf = next(iter(browser.cookies.values())), browser.get("/look").text
    stranger = server.client()
    tries = [("", "wrong token"), ("emil", "wrong one"), ("typed-a-password", "wrong one"), ("vera", TOKEN), ("", "")]
    for name, password in tries:
        assert stranger.post("/login", data={"name": name, "password": password}).status_code == 403
    assert not stranger.cookies
    right = {"name": "vera", "password": PASSWORDS["vera"]}
    for wait in (1, 2):
        answer = stranger.post("/login", data=right if wait == 1 else {"password": "x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, str(wait))
        server.clock.now += wait
        if wait == 1:
            assert stranger.post("/login", data={"password": "x"}).status_code == 403
    assert stranger.post("/login", data=right).status_code == 303
    # The client, in this process too, logs its own cookies.
    told = "\n".join(one.getMessage() for one in caplog.records if not one.name.startswith("http"))
    assert "failed" in told
    assert "emil logged in" in told
    for secret in (TOKEN, *PASSWORDS.values(), session, csrf, "typed-a-password", "wrong one"):
        assert secret not in told


def test_logins_at_once_are_bounded_and_the_others_are_told_to_come_again(serve: Open, users_file: Path) -> None:
    server = serve(users_file=users_file)

    def log_in(number: int) -> int:
        headers = {"X-Forwarded-For": f"10.0.0.{number}"}  # as by a proxy: each from elsewhere
        return server.client().post("/login", data={"name": "vera", "password": "wrong one"}, headers=headers).status_code

    with ThreadPoolExecutor(3 * WAITING) as pool:
        answers = list(pool.map(log_in, range(3 * WAITING)))
    assert set(answers) == {403, 503}
    assert answers.count(403) >= WAITING
    assert server.logged_in("vera").get("/look").status_code == 200


def test_a_name_that_nobody_has_is_refused_no_faster_than_one_that_somebody_has(serve: Open, users_file: Path) -> None:
    browser = serve(users_file=users_file).client()

    def took_s(name: str) -> float:
        tries = []
        for number in range(3):
            began_s = time.perf_counter()
            headers = {"X-Forwarded-For": f"10.0.0.{number}"}
            assert browser.post("/login", data={"name": name, "password": "wrong one"}, headers=headers).status_code == 403
            tries.append(time.perf_counter() - began_s)
        return statistics.median(tries)

    assert took_s("nobody") > 0.3 * took_s("vera")  # a hash takes a hundred times as long as the rest


def test_a_login_is_bounded_and_of_our_own_page(serve: Open, token_file: Path) -> None:
    browser = serve(token_file=token_file).client()
    assert browser.post("/login", data={"password": "x" * (LOGIN_BYTES + 1)}).status_code == 413
    assert browser.post("/login", content=b"password=\xff").status_code == 400
    assert browser.post("/login", data={"password": TOKEN}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert browser.post("/login", data={"password": TOKEN}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_on_the_loopback_without_files_everybody_is_an_engineer_but_no_other_site(serve: Open) -> None:
    browser = serve().client()
    csrf = browser.get("/look").text
    assert browser.post("/change").status_code == 403
    assert browser.post("/change", headers={"X-CSRF-Token": csrf}).text == "changed"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert browser.get("/look", headers=headers).status_code == 403
        assert browser.post("/change", headers=headers | {"X-CSRF-Token": csrf}).status_code == 403
    assert browser.get("/login").headers["location"] == "/"


def test_on_an_address_that_others_reach_nobody_sees_the_page_without_a_file(serve: Open) -> None:
    browser = serve(host="0.0.0.0").client()  # noqa: S104
    for path in ("/look", "/login"):
        answer = browser.get(path)
        assert answer.status_code == 403
        assert "Set [http] users_file or token_file" in answer.text
    assert browser.post("/login", data={"password": ""}).status_code == 403
    assert browser.get("/metrics").status_code == 200
    assert browser.get("/api/recipes").status_code == 200


def test_sessions_and_addresses_are_bounded() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    keys = [sessions.open("x", "viewer") for _ in range(MOST_SESSIONS + 1)]
    assert len(set(keys)) == len(keys)
    assert [sessions.find(key) is None for key in (keys[0], keys[1], keys[-1])] == [True, False, False]
    attempts = Attempts(clock)
    for _ in range(5):
        assert attempts.begin("2001:db8::1") == 0
    assert attempts.begin("2001:db8::ffff") > 0  # the same /64
    assert attempts.begin("2001:db8:0:1::1") == 0
    for number in range(MOST_ADDRESSES):
        attempts.begin(f"10.0.{number >> 8}.{number & 255}")
    assert attempts.begin("2001:db8::1") == 0


HASH = "scrypt$32768$8$3$" + "A" * 22 + "==$" + "B" * 43 + "="


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"a:viewer:{HASH}\nb c:viewer:{HASH}\n", "line 2: expected a name"),
        (f"a:admin:{HASH}\n", "line 1: expected the role"),
        ("a:viewer:hunter2\n", "line 1: expected scrypt"),
        (f"a:viewer:{HASH.replace('32768', '1024')}\n", "line 1: N, r or p out of bounds"),
        (f"a:viewer:{HASH.replace('32768', '33554432')}\n", "line 1: N, r or p out of bounds"),
        (f"a:viewer:{HASH[:-4]}\n", "line 1: "),
        (f"a:viewer:{HASH}\na:engineer:{HASH}\n", "line 2: the name stands there twice"),
        ("# nobody\n", "nobody stands in it"),
    ],
)
def test_a_users_file_that_cannot_be_used_is_told_without_its_hashes(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "users").write_text(content)
    with pytest.raises(ConfigError, match=r"^x\.toml: http\.users_file: ") as raised:
        read_users(HttpConfig(users_file=tmp_path / "users"), Path("x.toml"))
    message = str(raised.value)
    assert told in message
    assert "aprilcam user" in message
    assert not any(secret in message for secret in ("hunter2", "AAAA", "BBBB"))


def test_the_command_prints_a_line_that_lets_in(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "daemon.cli", "user", "anna", "--role", "viewer"]
    made = subprocess.run(command, input="a long password\n", capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    (tmp_path / "users").write_text(made.stdout)
    users = read_users(HttpConfig(users_file=tmp_path / "users"), Path("x.toml"))
    assert users is not None
    assert users["anna"].role == "viewer"
    assert users["anna"].secret.is_of("a long password")
    assert not users["anna"].secret.is_of("a long passwore")
    assert "a long password" not in made.stdout + made.stderr
    short = subprocess.run(command, input="short\n", capture_output=True, text=True, timeout=60)
    assert (short.returncode, short.stdout) == (2, "")
    assert "expected 10 to 256" in short.stderr
