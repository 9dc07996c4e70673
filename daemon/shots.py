"""Reference shots on the disk: the original files, and the rows that say which of them count.

A shot counts when its row is there. The file is on the disk before the row, the row before the answer; whatever is left
over by a process that was killed between the two was promised to nobody.
"""

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from config.errors import PictureError, StoreError
from config.schema import Region
from connectors.cameras.pictures import read_picture
from daemon.ledger import Ledger, Shot
from model.features import MIN_SIDE
from model.files import sync_folder, write_whole

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""(x, y, width, height) in px."""
At = Callable[[str], None]
"""Told of each step that a killed process may not get past; tests kill there."""

_SUFFIXES = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"))


def nowhere(step: str) -> None:
    """No step matters."""


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 over shape and pixels: the same picture in another file format is the same shot."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def crop(pixels: Pixels, region: Region | None, name: str) -> Pixels:
    """The region of interest of a picture. Raises PictureError when it is not in the picture, or smaller than a patch."""
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise PictureError(
            f"{name}: {width} x {height} pixels, expected {MIN_SIDE} x {MIN_SIDE} or more. Use a picture of the station's camera."
        )
    if region is None:
        return pixels
    if region.x + region.width > width or region.y + region.height > height:
        raise PictureError(
            f"{name}: {width} x {height} pixels do not hold the region x={region.x} y={region.y} "
            f"{region.width} x {region.height}. Take the picture with the station's camera, or mend the recipe's region."
        )
    return pixels[region.y : region.y + region.height, region.x : region.x + region.width]


def box(region: Region | None) -> Box | None:
    """A region as banks name it."""
    return (region.x, region.y, region.width, region.height) if region else None


def unbox(area: Box | None) -> Region | None:
    """A region as recipes have it."""
    return Region(x=area[0], y=area[1], width=area[2], height=area[3]) if area else None


def suffix_of(data: bytes) -> str:
    """The usual ending of a picture file of this content: PNG, JPEG, BMP, else TIFF."""
    return next((suffix for magic, suffix in _SUFFIXES if data.startswith(magic)), ".tif")


def make_folder(folder: Path) -> None:
    """The folder and those above it, their names on disk when this returns. OSError when the disk refuses."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


class Shots:
    """Owner of the folders `recipes/<name>/shots` and `held` of the state folder. May be used from any thread."""

    def __init__(self, store: Path, ledger: Ledger, at: At = nowhere) -> None:
        self._recipes = store / "recipes"
        self._ledger = ledger
        self._at = at
        self.storing = threading.Lock()
        """Held while a picture is stored, and while a recipe goes: nothing is stored for one that is gone."""

    def folder(self, recipe: str) -> Path:
        """Where a recipe's shots lie."""
        return self._recipes / recipe / "shots"

    def held_folder(self, recipe: str) -> Path:
        """Where pictures lie that the gate held back: the picture, its map (.map.png) and why (.json)."""
        return self._recipes / recipe / "held"

    def all(self, recipe: str) -> list[Shot]:
        """The recipe's shots, in the order in which they were registered."""

        def read(connection: sqlite3.Connection) -> list[Shot]:
            rows = connection.execute(
                "SELECT recipe, shot, file, width, height FROM shots WHERE recipe = ? ORDER BY registered_ns, shot",
                (recipe,),
            )
            return [Shot(*row) for row in rows]

        return self._ledger.ask(read)

    def read(self, shot: Shot) -> Pixels:
        """The whole picture. Raises PictureError when its file is damaged or gone."""
        return read_picture(self.folder(shot.recipe) / shot.file)

    def size(self, shot: Shot) -> int:
        """Bytes of its file, 0 when that is gone."""
        try:
            return (self.folder(shot.recipe) / shot.file).stat().st_size
        except OSError:
            return 0

    def picture(self, shot: Shot) -> bytes:
        """Its file. Raises PictureError when that is gone."""
        path = self.folder(shot.recipe) / shot.file
        try:
            return path.read_bytes()
        except OSError as error:
            raise PictureError(
                f"{path}: {(error.strerror or str(error)).lower()}. Forget that shot, or register it again"
            ) from None

    def keep(self, recipe: str, file: str, data: bytes) -> None:
        """Store the file of a shot whose row is still to come, on disk when this returns. StoreError when the disk refuses."""
        self._write(self.folder(recipe) / file, data)
        self._at("picture_stored")

    def add(self, recipe: str, shot: str, data: bytes, width: int, height: int) -> bool:
        """Keep a picture file (`data`) as a shot, on disk when this returns. Whether it was none before.

        Raises StoreError when the disk refuses.
        """
        known = {row.shot: row.file for row in self.all(recipe)}
        file = known.get(shot, f"{shot[:16]}{suffix_of(data)}")
        path = self.folder(recipe) / file
        if shot not in known or not path.is_file():
            self._write(path, data)
            self._at("picture_stored")
        row = (recipe, shot, file, width, height, time.time_ns())

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO shots VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.execute("DELETE FROM not_shots WHERE recipe = ? AND shot = ?", (recipe, shot))

        self._ledger.ask(insert, durable=True)
        self._at("shot_committed")
        for path in self.held_folder(recipe).glob(f"{shot[:16]}.*"):
            path.unlink(missing_ok=True)
        return shot not in known

    def remove(self, recipe: str, shot: str) -> None:
        """It counts no more, on disk when this returns; registering a folder at the start does not bring it back."""
        row = next((row for row in self.all(recipe) if row.shot == shot), None)
        if row is None:
            return

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM shots WHERE recipe = ? AND shot = ?", (recipe, shot))
            connection.execute("INSERT OR REPLACE INTO not_shots VALUES (?, ?, 'forgotten')", (recipe, shot))

        self._ledger.ask(delete, durable=True)
        self._at("shot_forgotten")
        (self.folder(recipe) / row.file).unlink(missing_ok=True)

    def hold(self, recipe: str, shot: str, data: bytes, map_png: bytes, why: bytes) -> None:
        """Keep a picture that is not to be a shot until a person says so. Raises StoreError when the disk refuses."""
        folder = self.held_folder(recipe)
        self._write(folder / f"{shot[:16]}{suffix_of(data)}", data)
        self._write(folder / f"{shot[:16]}.map.png", map_png)
        self._write(folder / f"{shot[:16]}.json", why)
        self._at("held_stored")
        self._ledger.ask(
            lambda c: c.execute("INSERT OR REPLACE INTO not_shots VALUES (?, ?, 'held')", (recipe, shot)), durable=True
        )

    def unwanted(self, recipe: str) -> dict[str, Literal["held", "forgotten"]]:
        """Pictures that were held back or forgotten, by hash."""

        def read(connection: sqlite3.Connection) -> dict[str, Literal["held", "forgotten"]]:
            return dict(connection.execute("SELECT shot, why FROM not_shots WHERE recipe = ?", (recipe,)).fetchall())

        return self._ledger.ask(read)

    def tidy(self, recipe: str) -> None:
        """Remove files that no row knows: left by a process that was killed before it had answered."""
        known = {row.file for row in self.all(recipe)}
        folder = self.folder(recipe)
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in known:
                log.warning("%s: no shot; it is removed", path)
                path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            make_folder(path.parent)
            write_whole(path, data)
        except OSError as error:
            raise StoreError(f"{path}: cannot be stored ({error.strerror}). Free space or mend its rights.") from None
