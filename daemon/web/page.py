"""The operator page: server-rendered, with small scripts; what it shows and does, MQTT, metrics and commands do without it."""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, request_response

from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.line import StationView
from daemon.web.access import Access, Visitor
from daemon.web.headers import StrictHeaders
from daemon.web.html import Html
from daemon.web.live import Document, Live, row
from daemon.web.pictures import thumbnail
from daemon.web.previews import SIDE, Previews
from daemon.web.rejects import Rejects
from daemon.web.teach import TeachPage

TREND = 60
"""Results whose scores a station's trend shows."""


class Page:
    """The routes of all pages; the wall, and what happens now."""

    def __init__(
        self,
        views: Callable[[], list[StationView]],
        ledger: Ledger,
        frames: NewestFrames,
        commands: Commands,
        access: Access,
    ) -> None:
        self._views = views
        self._ledger = ledger
        self._frames = frames
        self._access = access
        self._html = Html()
        self.previews = Previews()
        self.live = Live(self.previews, self._states)
        self.rejects = Rejects(self._html, commands, lambda: list(self._states()))
        self.teach = TeachPage(self._html, commands, frames)

    def routes(self) -> list[Route]:
        """Those of the page, each permitted by itself."""
        shown = {
            "/": self._wall,
            **self.rejects.shown(),
            **self.teach.shown(),
            "/live": self._live,
            "/preview/{station}.jpg": self._preview,
            "/static/{name}": self._file,
        }
        # The login form has the style as well.
        style = Route("/static/page.css", StrictHeaders(request_response(lambda _: self._html.file("page.css"))))
        engineers = (self._access.route(path, show, "engineer") for path, show in self.teach.shown_to_engineers().items())
        return [style, *(self._access.route(path, show) for path, show in shown.items()), *engineers]

    def _states(self) -> Mapping[str, Document]:
        return {view.station: _state(view) for view in self._views()}

    def _wall(self, request: Request) -> Response:
        stations = [{"state": state, "rows": self._rows(name)} for name, state in self._states().items()]
        return self._html.page(request, "wall.html", stations=stations, trend=TREND)

    def _rows(self, station: str) -> list[Document]:
        """A station's newest results, oldest first."""
        with closing(self._ledger.reader()) as reader:
            rows = reader.execute(
                "SELECT station, sequence, result_id, recipe, verdict, reason, score, threshold, created_ns FROM results"
                " WHERE station = ? ORDER BY sequence DESC LIMIT ?",
                (station, TREND),
            ).fetchall()
        return [row(*(*told[:-1], datetime.fromtimestamp(told[-1] / 1e9, UTC))) for told in reversed(rows)]

    def _live(self, request: Request) -> Response:
        if self.live.full:
            return PlainTextResponse("Too many browsers look at this page.\n", status_code=503, headers={"Retry-After": "5"})

        def permitted() -> bool:
            return isinstance(self._access.viewer(request), Visitor)

        return StreamingResponse(self.live.stream(permitted), media_type="text/event-stream")

    def _preview(self, request: Request) -> Response:
        """The part of ?result=ID; without it the one that was judged last while somebody looked, or the newest frame."""
        station = request.path_params["station"]
        if station not in self._states():
            return PlainTextResponse("no such station\n", status_code=404)
        self.previews.look()
        result_id = request.query_params.get("result")
        picture = self.previews.of(station, result_id)
        if picture is None and result_id is None and (pixels := self._frames.last(station)) is not None:
            picture = thumbnail(pixels, SIDE)
        if picture is None:
            return PlainTextResponse("no picture yet\n", status_code=404)
        return Response(picture, media_type="image/jpeg")

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
