"""The operator page: server-rendered, with small scripts; what it shows and does, MQTT, metrics and commands do without it."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, request_response

from daemon.archive import Archive
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.line import StationView
from daemon.overview import Told
from daemon.station import Program
from daemon.web.access import Access, Endpoint, Visitor
from daemon.web.drawing import Drawing
from daemon.web.headers import StrictHeaders
from daemon.web.html import Html
from daemon.web.live import Document, Live, row
from daemon.web.pictures import thumbnail
from daemon.web.previews import SIDE, Previews
from daemon.web.rejects import Rejects
from daemon.web.result_pictures import ResultPictures
from daemon.web.station import StationPage
from daemon.web.system import SystemPage
from daemon.web.teach import TeachPage

TREND = 60
"""Results whose scores a station's trend shows."""

KEPT_S = 1.0
"""A newest frame that was made small for one who looks serves all who look so soon after."""
NO_PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="3"/>'
"""Where there is none yet: browsers show a broken image otherwise."""


class Page:
    """The routes of all pages; the wall, and what happens now."""

    def __init__(
        self,
        views: Callable[[], list[StationView]],
        ledger: Ledger,
        frames: NewestFrames,
        commands: Commands,
        access: Access,
        program: Callable[[str], Program | None],
        told: Told,
        doctor: Sequence[str],
    ) -> None:
        """program: what a station inspects by, None where there is none of that name; doctor: the options that make
        `aprilcam doctor` look at this daemon's plant."""
        self._views = views
        self._ledger = ledger
        self._frames = frames
        self._access = access
        self._html = Html()
        self._drawing = drawing = Drawing()
        self._newest: dict[str, tuple[float, bytes | None]] = {}
        """By station, the newest frame made small, and when that was."""
        self._reading = threading.Lock()
        self._read: dict[str, tuple[int | None, list[Document]]] = {}
        """By station, its newest results, and the sequence of the newest."""
        self.previews = Previews()
        self.live = Live(self.previews, self._states)
        self.rejects = Rejects(self._html, commands, lambda: list(self._states()))
        self.pictures = ResultPictures(self.previews, drawing)
        self.station = StationPage(self._html, self._states, ledger, self.previews, program)
        self.system = SystemPage(self._html, told, doctor)
        self.teach = TeachPage(self._html, commands, frames, drawing)

    def routes(self) -> list[Route]:
        """Those of the page, each permitted by itself."""
        shown: dict[str, Endpoint] = {
            "/": self._wall,
            **self.rejects.shown(),
            **self.station.shown(),
            **self.pictures.shown(),
            **self.system.shown(),
            **self.teach.shown(),
            "/live": self._live,
            "/preview/{station}.jpg": self._preview,
            "/static/{name}": self._file,
        }
        # The login form has the style as well.
        style = Route("/static/page.css", StrictHeaders(request_response(lambda _: self._html.file("page.css"))))
        engineers = (self._access.route(path, show, "engineer") for path, show in self.teach.shown_to_engineers().items())
        viewers = (self._access.route(path, show) for path, show in shown.items())
        return [style, *viewers, *engineers, *self.system.routes(self._access)]

    def opened(self, archive: Archive) -> None:
        """The archive, and the marks on what is in it, are there."""
        self.pictures.archive = archive
        self.station.archived = True

    def _states(self) -> Mapping[str, Document]:
        return {view.station: _state(view) for view in self._views()}

    def _wall(self, request: Request) -> Response:
        stations = [{"state": state, "rows": self._rows(name)} for name, state in self._states().items()]
        return self._html.page(request, "wall.html", stations=stations, trend=TREND)

    def _rows(self, station: str) -> list[Document]:
        """A station's newest results, oldest first; read once for all who ask, as all do where a daemon comes back."""
        with self._reading, closing(self._ledger.reader()) as reader:
            [newest] = reader.execute("SELECT max(sequence) FROM results WHERE station = ?", (station,)).fetchone()
            of, rows = self._read.get(station, (None, []))
            if of != newest:
                told = reader.execute(
                    "SELECT station, sequence, result_id, recipe, verdict, reason, score, threshold, created_ns FROM results"
                    " WHERE station = ? ORDER BY sequence DESC LIMIT ?",
                    (station, TREND),
                ).fetchall()
                rows = [row(*(*own[:-1], datetime.fromtimestamp(own[-1] / 1e9, UTC))) for own in reversed(told)]
                self._read[station] = newest, rows
            return rows

    async def _live(self, request: Request) -> Response:
        if self.live.full:
            return PlainTextResponse("Too many browsers look at this page.\n", status_code=503, headers={"Retry-After": "5"})

        def permitted() -> bool:
            return isinstance(self._access.viewer(request), Visitor)

        looks = "quiet" not in request.query_params
        return StreamingResponse(self.live.stream(permitted, looks=looks), media_type="text/event-stream")

    async def _preview(self, request: Request) -> Response:
        """The part of ?result=ID; without it the one that was judged last while somebody looked, or the newest frame."""
        station, result_id = request.path_params["station"], request.query_params.get("result")
        self.previews.look()
        picture = self.previews.encoded(station, result_id)
        if picture is None:
            picture = await self._drawing.draw(partial(self._encoded, station, result_id))
        if picture is not None:
            return Response(picture, media_type="image/jpeg")
        if result_id is None and station in self._states():
            return Response(NO_PICTURE, media_type="image/svg+xml")
        return PlainTextResponse("no such picture, or no such station\n", status_code=404)

    def _encoded(self, station: str, result_id: str | None) -> bytes | None:
        picture = self.previews.of(station, result_id)
        if picture is not None or result_id is not None:
            return picture
        at_s, newest = self._newest.get(station, (-math.inf, None))
        if time.monotonic() - at_s > KEPT_S:
            pixels = self._frames.last(station)
            newest = thumbnail(pixels, SIDE) if pixels is not None else None
            self._newest[station] = time.monotonic(), newest
        return newest

    def _file(self, request: Request) -> Response:
        return self._html.file(request.path_params["name"])


def _state(view: StationView) -> Document:
    return {
        "station": view.station,
        "state": view.state,
        "inspects": view.state == "ContinuousExecution",
        "reason": view.reason,
        "recipe": view.recipe,
        "threshold": view.threshold,
        "threshold_stale": view.threshold_stale,
        "advice": view.advice,
    }
