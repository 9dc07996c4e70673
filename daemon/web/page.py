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
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from config.errors import ArchiveError, CommandError
from config.schema import Region
from daemon.archive import Archive
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.line import StationView
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
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Nothing comes from elsewhere, nothing inline runs, and nobody frames the page (CSP level 3)."""


class Page:
    """The routes of the page."""

    def __init__(
        self,
        views: Callable[[], list[StationView]],
        ledger: Ledger,
        frames: NewestFrames,
        commands: Commands,
        permit: Callable[[Request], str | None],
    ) -> None:
        """permit: why a request may not see the page, None where it may."""
        self._views = views
        self._ledger = ledger
        self._frames = frames
        self._commands = commands
        self._permit = permit
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
        shown = {
            "/": self._wall,
            "/rejects": self._rejects,
            "/archive/{result_id}.jpg": self._archived,
            "/archive/{result_id}.heat.png": self._heat,
            "/live": self._live,
            "/preview/{station}.jpg": self._preview,
            "/static/{name}": self._file,
        }
        return [Route(path, self._guarded(show)) for path, show in shown.items()]

    def _guarded(self, show: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            refusal = self._permit(request)
            response = PlainTextResponse(f"{refusal}\n", status_code=403) if refusal is not None else show(request)
            response.headers.update(HEADERS)
            return response

        return answer

    def _states(self) -> Mapping[str, Document]:
        return {view.station: _state(view) for view in self._views()}

    def _wall(self, _: Request) -> Response:
        stations = [{"state": state, "rows": self._rows(name)} for name, state in self._states().items()]
        return self._html("wall.html", stations=stations, trend=TREND)

    def _rows(self, station: str) -> list[Document]:
        """A station's newest results, oldest first."""
        with closing(self._ledger.reader()) as reader:
            rows = reader.execute(
                "SELECT station, sequence, result_id, recipe, verdict, reason, score, threshold, created_ns FROM results"
                " WHERE station = ? ORDER BY sequence DESC LIMIT ?",
                (station, TREND),
            ).fetchall()
        return [row(*(*told[:-1], datetime.fromtimestamp(told[-1] / 1e9, UTC))) for told in reversed(rows)]

    def _html(self, template: str, **shown: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(text=self._texts, **shown))

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

    def _live(self, _: Request) -> Response:
        if self.live.full:
            return PlainTextResponse("Too many browsers look at this page.\n", status_code=503, headers={"Retry-After": "5"})
        return StreamingResponse(self.live.stream(), media_type="text/event-stream")

    def _preview(self, request: Request) -> Response:
        """The part that was judged last while somebody looked; before the first, the newest frame."""
        station = request.path_params["station"]
        if station not in self._states():
            return PlainTextResponse("no such station\n", status_code=404)
        self.previews.look()
        picture = self.previews.newest(station)
        if picture is None and (pixels := self._frames.last(station)) is not None:
            picture = thumbnail(pixels, SIDE)
        if picture is None:
            return PlainTextResponse("no picture yet\n", status_code=404)
        return Response(picture, media_type="image/jpeg")

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
