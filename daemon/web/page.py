"""The operator page: server-rendered, with one small script; what it shows and does, MQTT, metrics and commands do without it."""

import tomllib
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import cv2
import jinja2
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, request_response

from config.errors import ArchiveError, CommandError
from config.schema import Region
from daemon.archive import Archive
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.line import StationView
from daemon.web.access import Access, Endpoint, Visitor
from daemon.web.headers import StrictHeaders
from daemon.web.live import Document, Live, row
from daemon.web.pictures import heat_overlay, thumbnail
from daemon.web.previews import SIDE, Previews
from model.calibration import PIXEL_SHARE

REJECTS = 60
"""Archived results on one page."""
FILTERS = ("verdict", "station", "recipe", "since", "until", "before")
TREND = 60
"""Results whose scores a station's trend shows."""
STATIC = {"page.css": "text/css", "page.js": "text/javascript", "rejects.js": "text/javascript"}


class Page:
    """The routes of the page."""

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
        self._commands = commands
        self._access = access
        self.previews = Previews()
        self.live = Live(self.previews, self._states)
        self.archive: Archive | None = None
        """Once it is there."""
        here = files("daemon.web")
        self._texts = tomllib.loads((here / "texts.toml").read_text(encoding="utf-8"))
        self._static = {name: (here / "static" / name).read_bytes() for name in STATIC}
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda name: (here / "templates" / name).read_text(encoding="utf-8")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def routes(self) -> list[Route]:
        """Those of the page, each permitted by itself."""
        shown: dict[str, Endpoint] = {
            "/": self._wall,
            "/rejects": self._rejects,
            "/archive/{result_id}.jpg": self._archived,
            "/archive/{result_id}.heat.png": self._heat,
            "/live": self._live,
            "/preview/{station}.jpg": self._preview,
            "/static/{name}": self._file,
        }
        # The login form has the style as well.
        style = Route("/static/page.css", StrictHeaders(request_response(self._style)))
        return [style, *(self._access.route(path, show) for path, show in shown.items())]

    def _style(self, _: Request) -> Response:
        return Response(self._static["page.css"], media_type="text/css")

    def _states(self) -> Mapping[str, Document]:
        return {view.station: _state(view) for view in self._views()}

    def _wall(self, request: Request) -> Response:
        stations = [{"state": state, "rows": self._rows(name)} for name, state in self._states().items()]
        return self._html(request, "wall.html", stations=stations, trend=TREND)

    def _rows(self, station: str) -> list[Document]:
        """A station's newest results, oldest first."""
        with closing(self._ledger.reader()) as reader:
            rows = reader.execute(
                "SELECT station, sequence, result_id, recipe, verdict, reason, score, threshold, created_ns FROM results"
                " WHERE station = ? ORDER BY sequence DESC LIMIT ?",
                (station, TREND),
            ).fetchall()
        return [row(*(*told[:-1], datetime.fromtimestamp(told[-1] / 1e9, UTC))) for told in reversed(rows)]

    def _html(self, request: Request, template: str, **shown: Any) -> Response:
        visitor: Visitor = request.state.visitor
        return HTMLResponse(self._templates.get_template(template).render(text=self._texts, visitor=visitor, **shown))

    def _rejects(self, request: Request) -> Response:
        """Archived results of one verdict, newest first; times of the filter are the plant's."""
        given = {name: request.query_params.get(name, "") for name in FILTERS}
        given["verdict"] = given["verdict"] or "fail"
        try:
            asked = {name: _moment(value) if name in ("since", "until") else value for name, value in given.items() if value}
            results = self._commands.run("results", {**asked, "limit": REJECTS})["results"]
            recipes = [own["recipe"] for own in self._commands.run("recipe_list", {})["recipes"]]
        except (ValueError, OverflowError) as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        except CommandError as error:
            return PlainTextResponse(f"{error}\n", status_code=503 if error.code == "busy" else 400)
        kept = {name: value for name, value in given.items() if value}
        older = f"/rejects?{urlencode({**kept, 'before': results[-1]['result_id']})}" if len(results) == REJECTS else None
        exported = f"/api/results/export?{urlencode(asked)}"
        for own in results:
            moment = datetime.fromisoformat(own["created_at"])
            own["at"], own["utc"] = f"{moment.astimezone():%Y-%m-%d %H:%M:%S}", f"{moment:%Y-%m-%d %H:%M:%S} UTC"
        return self._html(
            request,
            "rejects.html",
            results=results,
            given=given,
            older=older,
            exported=exported,
            stations=list(self._states()),
            recipes=recipes,
        )

    def _archived(self, request: Request) -> Response:
        """An archived part, made small."""
        if self.archive is None:
            return PlainTextResponse("the daemon is starting\n", status_code=503)
        try:
            return Response(thumbnail(self.archive.pixels(request.path_params["result_id"]), SIDE), media_type="image/jpeg")
        except ArchiveError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)

    def _heat(self, request: Request) -> Response:
        """The anomaly map of an archived part, to lie over its picture."""
        if self.archive is None:
            return PlainTextResponse("the daemon is starting\n", status_code=503)
        result_id = request.path_params["result_id"]
        try:
            pixels, anomaly_map, told = self.archive.pixels(result_id), self.archive.map(result_id), self.archive.told(result_id)
        except ArchiveError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)
        if anomaly_map is None or not told.result.threshold:
            return PlainTextResponse("no anomaly map is kept of it\n", status_code=404)
        region = Region(**told.region) if told.region else None
        # Where words alone judge a pixel counts from the threshold itself.
        share = PIXEL_SHARE if told.result.bank else 1.0
        heat = heat_overlay(pixels, anomaly_map, region, share * told.result.threshold, SIDE)
        _, data = cv2.imencode(".png", cv2.cvtColor(heat, cv2.COLOR_RGBA2BGRA))
        return Response(data.tobytes(), media_type="image/png")

    def _live(self, request: Request) -> Response:
        if self.live.full:
            return PlainTextResponse("Too many browsers look at this page.\n", status_code=503, headers={"Retry-After": "5"})

        def permitted() -> bool:
            return isinstance(self._access.viewer(request), Visitor)

        return StreamingResponse(self.live.stream(permitted), media_type="text/event-stream")

    async def _preview(self, request: Request) -> Response:
        """The part of ?result=ID; without it the one that was judged last while somebody looked, or the newest frame."""
        station, result_id = request.path_params["station"], request.query_params.get("result")
        self.previews.look()
        # Of all who look, only the first needs a thread.
        picture = self.previews.encoded(station, result_id) or await to_thread.run_sync(self._encoded, station, result_id)
        if picture is None:
            return PlainTextResponse("no picture yet, or no such station\n", status_code=404)
        return Response(picture, media_type="image/jpeg")

    def _encoded(self, station: str, result_id: str | None) -> bytes | None:
        picture = self.previews.of(station, result_id)
        if picture is None and result_id is None and (pixels := self._frames.last(station)) is not None:
            picture = thumbnail(pixels, SIDE)
        return picture

    def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("no such file\n", status_code=404)
        return Response(self._static[name], media_type=STATIC[name])


def _moment(given: str) -> str:
    """RFC 3339 of a browser's local time, which is in the plant's zone. Raises ValueError."""
    return datetime.fromisoformat(given).astimezone().isoformat()


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
