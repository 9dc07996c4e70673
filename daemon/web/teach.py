"""The page where a recipe is taught: its shots, banks, region of interest, and what the calibration expects."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from config.errors import CommandError, PictureError
from connectors.cameras.pictures import read_picture
from connectors.contract import EventKind
from connectors.requests import MAX_NEXT, MAX_PICTURE_BYTES
from daemon.builder import Detail, OnEvent
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.shots import Shots
from daemon.web.access import Endpoint
from daemon.web.drawing import Drawing
from daemon.web.html import Html
from daemon.web.live import Document
from daemon.web.moments import plant_and_utc
from daemon.web.pictures import thumbnail
from daemon.web.previews import SIDE

DRAWN_ON = 1_280
"""Pixels of the longer side, at most, of the picture on which a region is drawn."""
THUMBNAILS = 256
"""Small pictures of shots that are kept in memory, some 40 KB each."""
BAR = 1.5
"""Thresholds that a score's bar is long."""


@dataclass
class _Build:
    """What a recipe's builds told. share: 0 to 1. failed: why the last one failed. ended: how many have, since the start."""

    doing: str | None = None
    share: float = 0.0
    failed: str | None = None
    ended: int = 0


class TeachPage:
    """Shots, banks and region of each recipe; what changes them goes through the commands."""

    def __init__(self, html: Html, commands: Commands, frames: NewestFrames, drawing: Drawing) -> None:
        self._html = html
        self._commands = commands
        self._frames = frames
        self._drawing = drawing
        self._shots: Shots | None = None
        self._pending: Callable[[str], str | None] = lambda _: None
        self._builds: dict[str, _Build] = {}
        self._small: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def open(self, shots: Shots, pending: Callable[[str], str | None]) -> None:
        """Show pictures from now on. pending: the id of a recipe's build that waits or runs."""
        self._pending = pending
        self._shots = shots

    def told(self, on_event: OnEvent) -> OnEvent:
        """`on_event`, of which this page hears how builds go on."""

        def tell(recipe: str, kind: EventKind, detail: Detail) -> None:
            ended = self._builds.get(recipe, _Build()).ended
            match kind:
                case "build_started":
                    self._builds[recipe] = _Build(ended=ended)
                case "build_progress":
                    self._builds[recipe] = _Build(str(detail["doing"]), float(detail["share"] or 0), ended=ended)
                case "build_failed":
                    self._builds[recipe] = _Build(failed=str(detail["reason"]), ended=ended + 1)
                case "bank_built" | "threshold_refined":
                    self._builds[recipe] = _Build(ended=ended + 1)
            on_event(recipe, kind, detail)

        return tell

    def shown(self) -> Mapping[str, Endpoint]:
        """What a viewer may see, by path."""
        return {
            "/teach": self._list,
            "/teach/{recipe}": self._recipe,
            "/teach/{recipe}/state": self._state,
            "/teach/{recipe}/frame/{station}.jpg": self._frame,
            "/shots/{recipe}/{shot}.jpg": self._shot,
            "/held/{recipe}/{shot}.jpg": self._held_small,
        }

    def shown_to_engineers(self) -> Mapping[str, Endpoint]:
        """The rest: whole files."""
        return {"/held/{recipe}/{shot}": self._held}

    # pages

    def _list(self, request: Request) -> Response:
        try:
            recipes = self._commands.run("recipe_list", {})["recipes"]
        except CommandError as error:
            return _refused(error)
        return self._html.page(request, "teach.html", recipes=recipes)

    def _recipe(self, request: Request) -> Response:
        name = request.path_params["recipe"]
        state = self._now(name)  # first: a build that ends meanwhile is heard of afterwards
        try:
            [recipe] = [own for own in self._commands.run("recipe_list", {})["recipes"] if own["recipe"] == name] or [None]
            if recipe is None:
                return PlainTextResponse("no such recipe\n", status_code=404)
            shots = self._commands.run("shots", {"recipe": name})["shots"]
            banks = self._commands.run("banks", {"recipe": name})["banks"]
        except CommandError as error:
            return _refused(error)
        for bank in banks:
            bank["at"], bank["utc"] = plant_and_utc(datetime.fromisoformat(bank["built_at"]))
        # Worst first; those that no bank has seen yet before all.
        shots.sort(key=lambda shot: (shot["score"] is not None, -(shot["score"] or 0.0)))
        return self._html.page(
            request,
            "teach_recipe.html",
            recipe=recipe,
            shots=shots,
            banks=banks,
            current=next((bank for bank in banks if bank["current"]), None),
            canvases=self._canvases(recipe, shots),
            state=state,
            most_next=MAX_NEXT,
            most_bytes=MAX_PICTURE_BYTES,
            bar=BAR,
        )

    def _canvases(self, recipe: Document, shots: list[Document]) -> list[Document]:
        """Pictures on which a region may be drawn, with their true sizes in px."""
        found = []
        for station in recipe["stations"]:
            if (size := self._frames.size(station)) is not None:
                source = f"/teach/{recipe['recipe']}/frame/{station}.jpg"
                found.append({"station": station, "source": source, "width": size[0], "height": size[1]})
        for shot in shots[:1]:
            source = f"/shots/{recipe['recipe']}/{shot['shot']}.jpg?large=1"
            found.append({"station": None, "source": source, "width": shot["width"], "height": shot["height"]})
        return found

    def _state(self, request: Request) -> Response:
        """Whether the recipe's bank is being built, and what the page would show anew."""
        return JSONResponse(self._now(request.path_params["recipe"]))

    def _now(self, recipe: str) -> Document:
        building = self._pending(recipe) is not None
        told = self._builds.get(recipe, _Build())
        return {"building": building} | asdict(told)

    # pictures

    async def _frame(self, request: Request) -> Response:
        def made() -> bytes | None:
            pixels = self._frames.last(request.path_params["station"])
            return thumbnail(pixels, DRAWN_ON) if pixels is not None else None

        picture = await self._drawing.draw(made)
        return _jpeg(picture) if picture is not None else PlainTextResponse("no picture yet\n", status_code=404)

    async def _shot(self, request: Request) -> Response:
        """A whole shot, made small."""
        if (shots := self._shots) is None:
            return PlainTextResponse("the daemon is starting\n", status_code=503)
        recipe, shot = request.path_params["recipe"], request.path_params["shot"]
        most = DRAWN_ON if "large" in request.query_params else SIDE

        def made() -> bytes | None:
            row = next((row for row in shots.all(recipe) if row.shot == shot), None)
            if row is None:
                return None
            key = (recipe, shot, most)
            if key not in self._small:
                self._small[key] = thumbnail(shots.read(row), most)
            self._small.move_to_end(key)
            while len(self._small) > THUMBNAILS:
                self._small.popitem(last=False)
            return self._small[key]

        try:
            picture = await self._drawing.draw(made)
        except PictureError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)
        return _jpeg(picture) if picture is not None else PlainTextResponse("no such shot\n", status_code=404)

    async def _held_small(self, request: Request) -> Response:
        """A picture that was held back, made small."""
        if (path := self._held_file(request)) is None:
            return PlainTextResponse("no such picture\n", status_code=404)
        try:
            return _jpeg(await self._drawing.draw(lambda: thumbnail(read_picture(path), SIDE)))
        except PictureError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)

    def _held(self, request: Request) -> Response:
        """The file of a picture that was held back, for an engineer who takes it all the same."""
        path = self._held_file(request)
        try:
            data = path.read_bytes() if path is not None else None
        except OSError:
            data = None
        if data is None:
            return PlainTextResponse("no such picture\n", status_code=404)
        return Response(data, media_type="application/octet-stream")

    def _held_file(self, request: Request) -> Path | None:
        recipe, shot = request.path_params["recipe"], request.path_params["shot"]
        if self._shots is None or self._shots.unwanted(recipe).get(shot) != "held":
            return None
        beside = (".json", ".map.png")
        files = sorted(self._shots.held_folder(recipe).glob(f"{shot[:16]}.*"))
        return next((path for path in files if not path.name.endswith(beside)), None)


def _jpeg(data: bytes) -> Response:
    return Response(data, media_type="image/jpeg")


def _refused(error: CommandError) -> Response:
    return PlainTextResponse(f"{error}\n", status_code=503 if error.code == "busy" else 400)
