"""Who may see the page and change something through it.

Three cases, by [http]: on a loopback host without users_file and token_file everybody is an engineer, as long as no other site's
page asks; with either file people log in; on another host without both nobody sees the page.
"""

import hmac
import inspect
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, request_response

from config.schema import HttpConfig
from daemon.web.body import TooLargeError, read_body
from daemon.web.guard import Guard, Refusal, is_loopback, read_token
from daemon.web.headers import StrictHeaders
from daemon.web.login_page import login_page, texts
from daemon.web.sessions import MOST_S, Attempts, Clock, Session, Sessions
from daemon.web.users import Role, User, hash_password, read_users

log = logging.getLogger(__name__)

COOKIE = "aprilcam_session"
CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf"
LOGIN_BYTES = 4 << 10
FORM_BYTES = 64 << 10
FORM_S = 10.0
WAITING = 8
"""Logins whose password is being hashed or waits for it. One is hashed at a time: the cores belong to the inspection."""
THREADS = 4
"""For all who look at pages, so that however many look, /metrics and /healthz have theirs."""
SAFE = ("GET", "HEAD")
Endpoint = Callable[[Request], Response | Awaitable[Response]]


@dataclass(frozen=True)
class Visitor:
    """Who looks; `csrf` is what the page's forms and script send back."""

    name: str
    role: Role
    csrf: str = field(repr=False)


class Access:
    """Decides for the page and for /api."""

    def __init__(self, config: HttpConfig, config_path: Path, clock: Clock = time.monotonic) -> None:
        """Raises ConfigError when the token file or the users file cannot be used."""
        self._guard = Guard(config, config_path)
        self._token = read_token(config, config_path)
        self._users: dict[str, User] | None = read_users(config, config_path)
        self._login = self._token is not None or self._users is not None
        self._closed = not self._login and not is_loopback(config.host)
        self._sessions = Sessions(clock)
        self._attempts = Attempts(clock)
        self._everybody = Visitor("", "engineer", secrets.token_urlsafe(32))
        # What an unknown name is tried against, for the same time.
        self._nobody = hash_password(secrets.token_urlsafe(32)) if self._users is not None else None
        self._waiting = 0
        self._limiter: CapacityLimiter | None = None
        self._threads: CapacityLimiter | None = None

    # what others ask

    def refusal(self, request: Request) -> Refusal | None:
        """Why a request to /api may not change anything, None when it may: by the Bearer token, or by an engineer's session."""
        session = self._session(request) if "authorization" not in request.headers else None
        if session is None:
            if self._users is not None and self._token is None:
                mend = "Log in as an engineer, or set [http] token_file for programs"
                return Refusal(401, "unauthorized", f"no session of the page came with it. {mend}")
            return self._guard.refusal(request)
        if session.role != "engineer":
            return Refusal(403, "forbidden", texts()["engineer_only"])
        # An answer to GET cannot be read by another site's page, and a download link has no headers.
        given = request.headers.get(CSRF_HEADER, "")
        if _is_foreign(request) or (request.method not in SAFE and not _same(given, session.csrf)):
            return Refusal(403, "forbidden", texts()["stale"])
        return None

    def viewer(self, request: Request) -> Visitor | Response:
        """Who looks, or the answer for whoever may not."""
        if self._closed:
            return _told("closed", 403)
        if not self._login:
            refusal = self._guard.refusal(request)
            return self._everybody if refusal is None else PlainTextResponse(refusal.message, 403)
        session = self._session(request)
        if session is not None:
            return Visitor(session.name, session.role, session.csrf)
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return _told("needed", 401)

    def route(self, path: str, endpoint: Endpoint, role: Role = "viewer", methods: Sequence[str] = ("GET",)) -> Route:
        """A route for who has that role (an engineer has both), with strict headers.

        The endpoint finds the Visitor as `request.state.visitor`. Other methods than GET must carry the CSRF token: as header, or
        as the field `csrf` of a urlencoded form of 64 KiB at most, whose fields are then `request.state.form` (a dict of str).
        A plain function is run on one of THREADS threads."""

        async def answer(request: Request) -> Response:
            visitor = self.viewer(request)
            if isinstance(visitor, Response):
                return visitor
            if role == "engineer" and visitor.role != "engineer":
                return _told("engineer_only", 403)
            request.state.visitor, request.state.form = visitor, {}
            if request.method not in SAFE:
                if _is_foreign(request):
                    return _told("stale", 403)
                given = request.headers.get(CSRF_HEADER)
                if _is_form(request):
                    form = await _form(request, FORM_BYTES)
                    if isinstance(form, Response):
                        return form
                    request.state.form = form
                    given = given or form.get(CSRF_FIELD)
                if not _same(given or "", visitor.csrf):
                    return _told("stale", 403)
            made: Response | Awaitable[Response]
            if inspect.iscoroutinefunction(endpoint):
                made = endpoint(request)
            else:
                if self._threads is None:
                    self._threads = CapacityLimiter(THREADS)  # belongs to the server's event loop
                made = await to_thread.run_sync(endpoint, request, limiter=self._threads)
            return await made if isinstance(made, Awaitable) else made

        return Route(path, StrictHeaders(request_response(answer)), methods=list(methods))

    def routes(self) -> list[Route]:
        """/login and /logout."""
        show, take = (StrictHeaders(request_response(one)) for one in (self._show_login, self._take_login))
        return [
            Route("/login", show, methods=["GET"]),
            Route("/login", take, methods=["POST"]),
            self.route("/logout", self._logout, methods=["POST"]),
        ]

    # logging in and out

    async def _show_login(self, _: Request) -> Response:
        if self._closed:
            return _told("closed", 403)
        return HTMLResponse(login_page()) if self._login else RedirectResponse("/", 303)

    async def _take_login(self, request: Request) -> Response:
        if self._closed:
            return _told("closed", 403)
        if not self._login:
            return RedirectResponse("/", 303)
        if _is_foreign(request):
            return _told("stale", 403)
        form = await _form(request, LOGIN_BYTES)
        if isinstance(form, Response):
            return form
        address = request.client.host if request.client is not None else ""
        if self._waiting >= WAITING:
            return HTMLResponse(login_page(texts()["busy"]), 503, {"Retry-After": "1"})
        if wait := math.ceil(self._attempts.begin(address)):
            message = texts()["wait"].format(seconds=wait)
            return HTMLResponse(login_page(message), 429, {"Retry-After": str(wait)})
        self._waiting += 1
        try:
            found = await self._who(form.get("name", "").strip(), form.get("password", ""))
        finally:
            self._waiting -= 1
        if found is None:
            # Not the name: people type passwords there.
            log.warning("A login to the page from %s failed.", address)
            return HTMLResponse(login_page(texts()["wrong"]), 403)
        name, role = found
        self._attempts.succeeded(address)
        self._sessions.close(request.cookies.get(COOKIE, ""))
        log.info("%s logged in to the page as %s from %s.", name, role, address)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        key = self._sessions.open(name, role)
        answer.set_cookie(COOKIE, key, max_age=int(MOST_S), path="/", secure=secure, httponly=True, samesite="strict")
        return answer

    async def _who(self, name: str, password: str) -> tuple[str, Role] | None:
        if not name and self._token is not None:
            return ("token", "engineer") if hmac.compare_digest(password.encode("utf-8", "replace"), self._token) else None
        if self._users is None or self._nobody is None:
            return None
        if self._limiter is None:
            self._limiter = CapacityLimiter(1)  # belongs to the server's event loop
        user = self._users.get(name)
        secret = user.secret if user is not None else self._nobody
        right = await to_thread.run_sync(secret.is_of, password, limiter=self._limiter)
        return (user.name, user.role) if right and user is not None else None

    async def _logout(self, request: Request) -> Response:
        self._sessions.close(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(COOKIE, "")) if self._login else None


def _is_foreign(request: Request) -> bool:
    """Whether a browser says that another site's page asks. The scheme is not compared: a proxy with TLS may be between."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return True
    return request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/x-www-form-urlencoded"


async def _form(request: Request, limit: int) -> dict[str, str] | Response:
    """The fields of a urlencoded body, never reading more than `limit` bytes and 10 s; or what to answer."""
    try:
        body = await read_body(request, limit, FORM_S)
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=100))
    except TooLargeError:
        return _told("malformed", 413, {"Connection": "close"})
    except (TimeoutError, ClientDisconnect, ValueError):
        return _told("malformed", 400, {"Connection": "close"})


def _told(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(texts()[text], status, headers)
