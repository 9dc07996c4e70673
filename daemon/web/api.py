"""The HTTP API, /api: commands for people and scripts.

Reading needs no token; what changes state is looked at by the guard. Errors are `{"error": {"code", "message"}}`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from config.errors import CommandError
from connectors.requests import ATTACHABLE, most_attached
from daemon.commands import Commands
from daemon.payload import MAX_BYTES, parse_request
from daemon.rejects_zip import zipped
from daemon.web.body import TooLargeError, read_body
from daemon.web.guard import Refusal

AT_ONCE = 8
"""Commands that may be read or run at once; more are answered `busy`. It bounds memory, and leaves threads for /metrics."""
RECIPE_FILES = ("recipe_export", "recipe_import")
"""Commands whose files may be large: one at a time."""
BODY_S = 60.0
STATUS = {
    "unknown_command": 404,
    "malformed": 400,
    "unknown_recipe": 404,
    "unknown_station": 404,
    "unknown_result": 404,
    "refused": 409,
    "busy": 503,
    "too_large": 413,
    "failed": 500,
}
Document = dict[str, Any]


class Gate(Protocol):
    """Who may change something."""

    def refusal(self, request: Request) -> Refusal | None:
        """Why the request may not, None when it may."""


class Api:
    """The routes below /api."""

    def __init__(
        self,
        commands: Commands,
        guard: Gate,
        status: Callable[[], Document],
    ) -> None:
        """`status` says what GET /api/status shows; it is called on a thread."""
        self._commands = commands
        self._guard = guard
        self._status = status
        self._running = 0
        self._recipe_files = 0
        self._exporting = False
        self._limiter: CapacityLimiter | None = None

    def mount(self) -> Mount:
        """Everything below /api."""
        recipe = "/recipes/{recipe}"
        routes = [
            Route("/status", self._show_status),
            Route("/recipes", partial(self._command, "recipe_list"), methods=["GET"]),
            Route(f"{recipe}/export", partial(self._command, "recipe_export"), methods=["GET"]),
            Route(f"{recipe}/shots", partial(self._command, "shots"), methods=["GET"]),
            Route(f"{recipe}/shots", partial(self._command, "register"), methods=["POST"]),
            Route(f"{recipe}/shots/{{shot}}", partial(self._command, "forget"), methods=["DELETE"]),
            Route(f"{recipe}/banks", partial(self._command, "banks"), methods=["GET"]),
            Route(f"{recipe}/rebuild", partial(self._command, "rebuild"), methods=["POST"]),
            Route(f"{recipe}/rollback", partial(self._command, "rollback"), methods=["POST"]),
            Route("/stations/{station}/trigger", partial(self._command, "trigger"), methods=["POST"]),
            Route("/stations/{station}/part", partial(self._command, "part"), methods=["POST"]),
            Route("/results", partial(self._command, "results"), methods=["GET"]),
            Route("/results/export", self._export, methods=["GET"]),
            Route("/commands/{name}", partial(self._command, None), methods=["POST"]),
        ]
        return Mount("/api", app=Starlette(routes=routes, exception_handlers={HTTPException: _not_there}))

    def _show_status(self, _: Request) -> Response:
        return JSONResponse(self._status())

    async def _command(self, name: str | None, request: Request) -> Response:
        path = dict(request.path_params)
        name = str(path.pop("name", name))
        # An export gives pictures away, and costs much.
        reads = request.method == "GET" and name != "recipe_export"
        if not reads and (refusal := self._guard.refusal(request)) is not None:
            return _error(refusal.status, refusal.code, refusal.message)
        large = name in RECIPE_FILES
        try:
            if self._running >= AT_ONCE:
                raise self._busy(name, f"{AT_ONCE} commands are being done. Try again")
            if large and self._recipe_files:
                raise self._busy(name, "another recipe file is on its way. Try again")
            self._running += 1
            self._recipe_files += large
            try:
                return await self._do(name, path, request)
            finally:
                self._running -= 1
                self._recipe_files -= large
        except CommandError as error:
            return _error(STATUS[error.code], error.code, str(error))

    async def _export(self, request: Request) -> Response:
        """Pictures, maps and results that `results` would list, as one ZIP."""
        if (refusal := self._guard.refusal(request)) is not None:
            return _error(refusal.status, refusal.code, refusal.message)
        try:
            if self._exporting:
                raise self._busy("results", "another export of results is on its way. Try again")
            self._exporting = True
            try:
                asked, _ = await _read("results", request)
                pieces = zipped(await to_thread.run_sync(self._commands.selected, asked))
            except BaseException:
                self._exporting = False
                raise
        except CommandError as error:
            return _error(STATUS[error.code], error.code, str(error))
        return _Sending(pieces, self._exported)

    def _exported(self) -> None:
        self._exporting = False

    def _busy(self, name: str, reason: str) -> CommandError:
        error = CommandError("busy", reason)
        self._commands.refused(name, error)
        return error

    async def _do(self, name: str, path: Document, request: Request) -> Response:
        try:
            document, attachment = await _read(name, request)
            _name_as_in(path, document)
        except CommandError as error:
            self._commands.refused(name, error)
            raise
        if self._limiter is None:
            self._limiter = CapacityLimiter(AT_ONCE)  # belongs to the server's event loop
        if name == "recipe_export" and request.method == "GET":
            recipe = str(document["recipe"])
            file = await to_thread.run_sync(self._commands.export, recipe, limiter=self._limiter)
            return Response(file, media_type="application/zip", headers={"Content-Disposition": _file_name(recipe)})
        answer = await to_thread.run_sync(self._commands.run, name, document, attachment, limiter=self._limiter)
        return JSONResponse(answer)


class _Sending(StreamingResponse):
    """A ZIP on its way; `done` is called at its end, whether it came there or its reader hung up."""

    def __init__(self, pieces: Iterator[bytes], done: Callable[[], None]) -> None:
        headers = {"Content-Disposition": 'attachment; filename="results.zip"'}
        super().__init__(pieces, media_type="application/zip", headers=headers)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette calls it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()


def _file_name(recipe: str) -> str:
    """Of an export of a recipe that exists, whose name is safe as it is."""
    return f'attachment; filename="{recipe}.aprilcam.zip"'


def _name_as_in(path: Document, document: Document) -> None:
    for field, value in path.items():
        if document.setdefault(field, value) != value:
            raise CommandError("malformed", f"{field}: expected {value!r} as in the address")


async def _read(name: str, request: Request) -> tuple[Document, bytes | None]:
    """The request's fields, and the file that came as the body."""
    if request.method in ("GET", "DELETE"):
        fields = request.query_params.items() if request.method == "GET" else ()
        return {field: int(value) if field == "limit" and value.isdecimal() else value for field, value in fields}, None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    attached = name in ATTACHABLE and kind != "application/json"
    body = await _body(request, most_attached(name) if attached else MAX_BYTES)
    if attached and body:
        return {field: value == "true" if field == "force" else value for field, value in request.query_params.items()}, body
    return await to_thread.run_sync(parse_request, body), None


async def _body(request: Request, limit: int) -> bytes:
    """The whole body, never more than `limit` bytes of it."""
    try:
        return await read_body(request, limit, BODY_S)
    except TooLargeError:
        raise CommandError("too_large", f"a body of over {limit} bytes") from None
    except TimeoutError:
        raise CommandError("malformed", f"the body did not come within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise CommandError("malformed", "the sender hung up") from None


def _error(status: int, code: str, message: str) -> Response:
    # 413: what is still to come is not read for nothing.
    headers = {401: {"WWW-Authenticate": "Bearer"}, 413: {"Connection": "close"}, 503: {"Retry-After": "1"}}.get(status)
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def _not_there(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, "not_found" if status == 404 else "not_allowed", f"{request.method} {request.url.path[:200]}")
