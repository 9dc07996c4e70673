"""The page of archived parts, and their pictures."""

from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import urlencode

import cv2
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from config.errors import ArchiveError, CommandError
from config.schema import Region
from daemon.archive import Archive
from daemon.commands import Commands
from daemon.web.access import Endpoint
from daemon.web.html import Html
from daemon.web.pictures import heat_overlay, thumbnail
from daemon.web.previews import SIDE
from model.calibration import PIXEL_SHARE

SHOWN = 60
"""Archived results on one page."""
FILTERS = ("verdict", "station", "recipe", "since", "until", "before")


class Rejects:
    """Filter, mark, promote, export."""

    def __init__(self, html: Html, commands: Commands, stations: Callable[[], list[str]]) -> None:
        self._html = html
        self._commands = commands
        self._stations = stations
        self.archive: Archive | None = None
        """Once it is there."""

    def shown(self) -> Mapping[str, Endpoint]:
        """What a viewer may see, by path."""
        return {
            "/rejects": self._page,
            "/archive/{result_id}.jpg": self._part,
            "/archive/{result_id}.heat.png": self._heat,
        }

    def _page(self, request: Request) -> Response:
        """Archived results of one verdict, newest first; times of the filter are the plant's."""
        given = {name: request.query_params.get(name, "") for name in FILTERS}
        given["verdict"] = given["verdict"] or "fail"
        try:
            asked = {name: _moment(value) if name in ("since", "until") else value for name, value in given.items() if value}
            results = self._commands.run("results", {**asked, "limit": SHOWN})["results"]
            recipes = [own["recipe"] for own in self._commands.run("recipe_list", {})["recipes"]]
        except (ValueError, OverflowError) as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        except CommandError as error:
            return PlainTextResponse(f"{error}\n", status_code=503 if error.code == "busy" else 400)
        kept = {name: value for name, value in given.items() if value}
        older = f"/rejects?{urlencode({**kept, 'before': results[-1]['result_id']})}" if len(results) == SHOWN else None
        exported = f"/api/results/export?{urlencode(asked)}"
        for own in results:
            moment = datetime.fromisoformat(own["created_at"])
            own["at"], own["utc"] = f"{moment.astimezone():%Y-%m-%d %H:%M:%S}", f"{moment:%Y-%m-%d %H:%M:%S} UTC"
        return self._html.page(
            request,
            "rejects.html",
            results=results,
            given=given,
            older=older,
            exported=exported,
            stations=self._stations(),
            recipes=recipes,
        )

    def _part(self, request: Request) -> Response:
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


def _moment(given: str) -> str:
    """RFC 3339 of a browser's local time, which is in the plant's zone. Raises ValueError."""
    return datetime.fromisoformat(given).astimezone().isoformat()
