"""A result on disk: `<result_id>.png` (the frame's pixels), `<result_id>.map.png` (its anomaly map) and `<result_id>.json`.

The JSON (`aprilcam.archived/1`) holds the result as it was published, the recipe's region of interest, and how the map's
numbers become anomaly: `offset + step * number`. docs/archive.md tells people how to read it.
"""

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.errors import ArchiveError, PictureError
from config.schema import Region
from connectors.cameras.pictures import read_picture
from connectors.contract import ResultOut

STEP = 1 / 4096
"""Finest step of a stored map. Scores are told apart far more coarsely, and a map of 256 x 256 takes 30 to 36 kB; 95 at the
finest that 16 bits give, 100 as float16 in a compressed npz."""

SUFFIXES = (".png", ".map.png", ".json")
PART = ".part"
"""Ends the name of a file that is being written."""

Pixels = NDArray[np.uint8]


class MapScale(BaseModel):
    """anomaly = offset + step * number of the 16 bit PNG. The map covers the region of interest, stretched to its size."""

    model_config = ConfigDict(frozen=True)
    offset: float
    step: float


class ArchivedOut(BaseModel):
    """The JSON file of an archived result. `region`: null where the whole frame was judged; `map`: null where there is none."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True, validate_by_name=True)
    schema_: str = Field(default="aprilcam.archived/1", alias="schema")
    result: ResultOut
    region: dict[str, int] | None
    map: MapScale | None


def encode_set(
    result: ResultOut, pixels: Pixels, anomaly_map: NDArray[np.float32] | None, region: Region | None
) -> dict[str, bytes]:
    """A result's files by suffix, the JSON last. pixels: H x W, or H x W x 3, RGB; anomaly_map: S x S."""
    scale, files = None, {".png": _png(pixels if pixels.ndim == 2 else pixels[:, :, ::-1])}
    if anomaly_map is not None:
        least, most = float(anomaly_map.min()), float(anomaly_map.max())
        scale = MapScale(offset=least, step=max(STEP, (most - least) / 65_535))
        files[".map.png"] = _png(np.round((anomaly_map - least) / scale.step).clip(0, 65_535).astype(np.uint16))
    told = ArchivedOut(result=result, region=region.model_dump() if region else None, map=scale)
    files[".json"] = (told.model_dump_json(indent=1) + "\n").encode()
    return files


def write_set(folder: Path, result_id: str, files: dict[str, bytes]) -> None:
    """Write what `encode_set` made. OSError when the disk refuses: nothing of the set is left then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, data in files.items():
            # Not synced: what a power cut leaves is found at the next start, and the line's disk is left in peace.
            part = folder / f"{result_id}{suffix}{PART}"
            part.write_bytes(data)
            part.rename(part.with_suffix(""))
    except OSError:
        with suppress(OSError):
            remove_set(folder, result_id)
        raise


def remove_set(folder: Path, result_id: str) -> None:
    """Remove a result's files, finished or not; those that are not there are no fault."""
    for suffix in SUFFIXES:
        for ending in ("", PART):
            (folder / f"{result_id}{suffix}{ending}").unlink(missing_ok=True)


def read_pixels(folder: Path, result_id: str) -> Pixels:
    """The frame as it came from the camera: H x W, or H x W x 3, RGB. Raises ArchiveError when it cannot be read."""
    try:
        return read_picture(folder / f"{result_id}.png")
    except PictureError as error:
        raise ArchiveError(f"archived result {result_id}: {error}; or mark another result") from None


def read_map(folder: Path, result_id: str) -> NDArray[np.float32] | None:
    """The anomaly map, S x S, exact to half a step; None where none was kept. Raises ArchiveError when it cannot be read."""
    told = read_json(folder, result_id)
    if told.map is None:
        return None
    try:
        numbers = cv2.imdecode(np.fromfile(folder / f"{result_id}.map.png", np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise ArchiveError(f"archived result {result_id}: its map cannot be read ({error})") from None
    if numbers is None or numbers.dtype != np.uint16:
        raise ArchiveError(f"archived result {result_id}: its map is damaged, expected a PNG of 16 bits")
    return (told.map.offset + told.map.step * numbers.astype(np.float64)).astype(np.float32)


def read_json(folder: Path, result_id: str) -> ArchivedOut:
    """The JSON file. Raises ArchiveError when it cannot be read."""
    try:
        return ArchivedOut.model_validate_json((folder / f"{result_id}.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise ArchiveError(f"archived result {result_id}: its JSON cannot be read ({error})") from None


def _png(pixels: NDArray[np.generic]) -> bytes:
    # Level 1: 48 ms for 1.3 megapixels; level 3 takes 80 to save 3 %.
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not encoded:
        raise ArchiveError(f"cannot encode pixels of {pixels.shape} as PNG")
    return data.tobytes()
