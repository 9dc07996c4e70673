"""Pictures of one result, by one address for each: of a part that was just judged, or of an archived one."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from config.errors import ArchiveError
from config.schema import Region
from daemon.archive import Archive
from daemon.web.access import Endpoint
from daemon.web.drawing import Drawing
from daemon.web.layers import Layers
from daemon.web.pictures import thumbnail
from daemon.web.previews import SIDE, Previews

SIDES = {"small": 160, "": SIDE, "large": 1600}
"""Pixels of the longer side, at most, by ?size=."""
KEPT_BYTES = 16 << 20
"""Drawn pictures that are kept for those who look next."""


class ResultPictures:
    """The part, its heat map, the outline of its mask."""

    def __init__(self, previews: Previews, drawing: Drawing) -> None:
        self._previews = previews
        self._drawing = drawing
        self.archive: Archive | None = None
        """Once it is there."""
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._kept_bytes = 0

    def shown(self) -> Mapping[str, Endpoint]:
        """What a viewer may see, by path."""
        heat, mask = (partial(self._layer, name) for name in ("heat", "mask"))
        return {"/result/{result_id}.heat.png": heat, "/result/{result_id}.mask.png": mask, "/result/{result_id}.jpg": self._part}

    async def _part(self, request: Request) -> Response:
        """The part in one of SIDES. Who asks for a large one wants all that is kept; else the newest parts are there before
        they are in the archive."""
        result_id, size = request.path_params["result_id"], request.query_params.get("size", "")
        if size not in SIDES:
            return PlainTextResponse(f"size {size!r}: expected small or large\n", status_code=400)
        preview = self._previews.find(result_id)
        if preview is None or size == "large":

            def draw(archive: Archive) -> bytes:
                return thumbnail(archive.pixels(result_id), SIDES[size])

            archived = await self._drawn(result_id, f"jpg {size}", "image/jpeg", draw)
            if preview is None or archived.status_code == 200:
                return archived
        data = preview.jpeg or await self._drawing.draw(partial(self._previews.jpeg, preview))
        return Response(data, media_type="image/jpeg")

    async def _layer(self, name: str, request: Request) -> Response:
        """What the model saw, to lie over the part."""
        result_id = request.path_params["result_id"]
        preview = self._previews.find(result_id)

        def draw(archive: Archive) -> bytes | None:
            if preview is not None and preview.layers is not None and preview.result is not None:
                layers, result = preview.layers, preview.result
            else:
                told, anomaly_map = archive.told(result_id), archive.map(result_id)
                if anomaly_map is None:
                    return None
                result, region = told.result, Region(**told.region) if told.region else None
                layers = Layers(archive.pixels(result_id).shape, anomaly_map, region)
            return layers.heat(result, SIDE) if name == "heat" else layers.mask(result, SIDE)

        return await self._drawn(result_id, name, "image/png", draw)

    async def _drawn(self, result_id: str, kind: str, media_type: str, draw: Callable[[Archive], bytes | None]) -> Response:
        if self.archive is None:
            return PlainTextResponse("the daemon is starting\n", status_code=503)
        key = (result_id, kind)
        data = self._kept.get(key)
        if data is None:
            try:
                data = await self._drawing.draw(partial(self._draw, key, draw, self.archive))
            except ArchiveError as error:
                return PlainTextResponse(f"{error}\n", status_code=404)
        if data is None:
            return PlainTextResponse("nothing of that kind is kept of it\n", status_code=404)
        return Response(data, media_type=media_type)

    def _draw(self, key: tuple[str, str], draw: Callable[[Archive], bytes | None], archive: Archive) -> bytes | None:
        data = self._kept.get(key) or draw(archive)  # another may have asked for it meanwhile
        if data is not None and key not in self._kept:
            self._kept[key] = data
            self._kept_bytes += len(data)
            while self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return data
