"""The page of archived parts."""

from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from config.errors import CommandError
from daemon.commands import Commands
from daemon.web.access import Endpoint
from daemon.web.html import Html
from daemon.web.moments import plant_and_utc

SHOWN = 60
"""Archived results on one page."""
FILTERS = ("verdict", "station", "recipe", "since", "until", "before")


class Rejects:
    """Filter, mark, promote, export."""

    def __init__(self, html: Html, commands: Commands, stations: Callable[[], list[str]]) -> None:
        self._html = html
        self._commands = commands
        self._stations = stations

    def shown(self) -> Mapping[str, Endpoint]:
        """What a viewer may see, by path."""
        return {"/rejects": self._page}

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
            own["at"], own["utc"] = plant_and_utc(datetime.fromisoformat(own["created_at"]))
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


def _moment(given: str) -> str:
    """RFC 3339 of a browser's local time, which is in the plant's zone. Raises ValueError."""
    return datetime.fromisoformat(given).astimezone().isoformat()
