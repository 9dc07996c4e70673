"""The registrar: keeps reference shots as the original files, and makes the bank that belongs to them.

A shot is acknowledged when its file and its row are on the disk. A bank is named by the hash of all that made it, so the
bank that fits the shots either is there already or is built; a bad build changes nothing.
"""

import hashlib
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from config.errors import PictureError, StoreError
from config.schema import RecipeConfig, Region
from connectors.cameras.pictures import list_pictures, read_picture
from daemon.ledger import Ledger, Shot
from daemon.station import Taught, Untaught
from model.bank import Bank, BankManifest, build_bank, load_bank
from model.calibration import RULE, Calibration, calibrate, even_odds, mirrors
from model.detector import Detector, Mode, Reference
from model.errors import BankError
from model.features import MIN_SIDE, PatchFeatures, join

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""
ENCODE_AT_ONCE = 8
Basis = dict[str, str | int | float | None]
"""What a calibration depends on besides shots and model."""


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 over shape and pixels: the same picture in another file format is the same shot."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Stored:
    """A calibration as the ledger keeps it, with what it depends on besides shots and model."""

    basis: Basis
    calibration: Calibration


STORED = TypeAdapter(_Stored)


@dataclass(frozen=True)
class Registered:
    """A picture that is now, or already was, a shot of the recipe."""

    shot: str
    new: bool


class Registrar:
    """Owner of the folder `recipes/` of the state folder. Used by one thread at a time."""

    def __init__(self, store: Path, ledger: Ledger, detector: Detector, bank_rows: int | None = None) -> None:
        """bank_rows: most rows of a layer of the banks; None: as the preset says."""
        self._recipes = store / "recipes"
        self._ledger = ledger
        self._detector = detector
        self._bank_rows = bank_rows or detector.extractor.spec.bank_rows

    def shots(self, recipe: str) -> list[Shot]:
        """The recipe's shots, in the order in which they were registered."""

        def read(connection: sqlite3.Connection) -> list[Shot]:
            rows = connection.execute(
                "SELECT recipe, shot, file, width, height FROM shots WHERE recipe = ? ORDER BY registered_ns, shot",
                (recipe,),
            )
            return [Shot(*row) for row in rows]

        return self._ledger.call(read).result()

    def register(self, recipe: RecipeConfig, picture: Path) -> Registered:
        """Make a picture file a reference shot; durable when this returns.

        Raises PictureError when it cannot be read or does not hold the recipe's region, StoreError when the disk refuses.
        """
        pixels = read_picture(picture)
        crop(pixels, recipe.region, str(picture))
        shot = pixel_hash(pixels)
        folder = self._recipes / recipe.name / "shots"
        known = {row.shot: row.file for row in self.shots(recipe.name)}
        if shot in known and (folder / known[shot]).is_file():
            return Registered(shot, new=False)
        file = known.get(shot, f"{shot[:16]}{picture.suffix.lower()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _store_durably(picture, folder / file)
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot store shot {picture.name} ({error.strerror}). Free space or mend its rights."
            ) from None
        height, width = pixels.shape[:2]
        row = (recipe.name, shot, file, width, height, time.time_ns())
        self._ledger.call(
            lambda connection: connection.execute("INSERT OR IGNORE INTO shots VALUES (?, ?, ?, ?, ?, ?)", row), durable=True
        ).result()
        return Registered(shot, new=shot not in known)

    def forget(self, recipe: str, shot: str) -> None:
        """Take a shot out; its row goes first, durably, then its file."""
        folder = self._recipes / recipe / "shots"
        files = [folder / row.file for row in self.shots(recipe) if row.shot == shot]
        self._ledger.call(
            lambda connection: connection.execute("DELETE FROM shots WHERE recipe = ? AND shot = ?", (recipe, shot)),
            durable=True,
        ).result()
        for file in files:
            file.unlink(missing_ok=True)

    def register_folder(self, recipe: RecipeConfig, progress: Progress) -> None:
        """Register every picture of the recipe's configured folder; those that cannot be used are logged and left out."""
        pictures = list_pictures(recipe.shots) if recipe.shots is not None else []
        for done, picture in enumerate(pictures):
            progress(f"recipe {recipe.name}: reading reference shots", done, len(pictures))
            try:
                self.register(recipe, picture)
            except PictureError as error:
                log.warning("recipe %s: reference shot refused: %s", recipe.name, error)
        if pictures:
            progress(f"recipe {recipe.name}: reading reference shots", len(pictures), len(pictures))

    def teach(self, recipe: RecipeConfig, progress: Progress) -> Taught | Untaught:
        """What judges the recipe: bank and calibration are loaded where they are there, else built, checked and stored.

        Raises PictureError when no shot can be used, ModelError when they make no bank or the model does not know the
        recipe's mode, StoreError when the disk refuses.
        """
        shots = self.shots(recipe.name)
        mode = recipe.mode or self._best_mode(bool(shots))
        if not shots and mode != "zero_shot":
            return Untaught(f"recipe {recipe.name!r} has no reference shots; put pictures of good parts into its shots folder")
        words = None
        if mode != "few_shot":
            progress(f"recipe {recipe.name}: putting {recipe.object!r} into words", 0, 1)
            words = self._detector.text(recipe.object)
            progress(f"recipe {recipe.name}: putting {recipe.object!r} into words", 1, 1)
        if not shots:
            calibration = even_odds(len(self._detector.extractor.spec.layers))
            return Taught(calibration.apply(Reference(text=words)), calibration)
        basis = self._basis(recipe, mode)
        return self._load(recipe, shots, basis, words) or self._build(recipe, shots, basis, words, progress)

    def _best_mode(self, any_shots: bool) -> Mode:
        if not self._detector.knows_text:
            return "few_shot"
        return "both" if any_shots else "zero_shot"

    def _basis(self, recipe: RecipeConfig, mode: Mode) -> Basis:
        spec = self._detector.extractor.spec
        basis: Basis = {
            "rule": RULE,
            "mode": mode,
            "score_share": spec.score_share,
            "background": spec.background,
        }
        if mode != "few_shot":
            basis |= {"object": recipe.object, "linear_layers_sha256": self._detector.linear_layers_sha256}
        return basis

    def _load(self, recipe: RecipeConfig, shots: list[Shot], basis: Basis, words: Tensor | None) -> Taught | None:
        names = tuple(shot.shot for shot in shots)
        manifest = BankManifest(self._detector.fingerprint, names, _box(recipe.region), self._bank_rows)
        folder = self._recipes / recipe.name / "banks" / manifest.hash[:16]

        def read(connection: sqlite3.Connection) -> str | None:
            row = connection.execute(
                "SELECT calibration FROM banks WHERE recipe = ? AND bank = ?", (recipe.name, manifest.hash)
            ).fetchone()
            return str(row[0]) if row else None

        written = self._ledger.call(read).result()
        if written is None:
            return None
        try:
            stored = STORED.validate_json(written)
        except ValidationError:
            log.warning("recipe %s: its stored calibration cannot be read. It is made again from the shots", recipe.name)
            return None
        if stored.basis != basis:
            return None
        bank = None
        if basis["mode"] != "zero_shot":
            if not folder.is_dir():
                return None
            try:
                bank = load_bank(folder, manifest.fingerprint, self._detector.extractor.device, manifest.hash)
            except BankError as error:
                log.warning("recipe %s: %s. It is built again from the shots", recipe.name, error)
                shutil.rmtree(folder)
                return None
        return Taught(stored.calibration.apply(Reference(bank, words)), stored.calibration)

    def _build(
        self,
        recipe: RecipeConfig,
        shots: list[Shot],
        basis: Basis,
        words: Tensor | None,
        progress: Progress,
    ) -> Taught:
        what = f"recipe {recipe.name}: encoding reference shots"
        used, features, mirrored = self._encode(recipe, shots, partial(progress, what))
        fingerprint, region = self._detector.fingerprint, _box(recipe.region)
        manifest, bank = BankManifest(fingerprint, tuple(used), region, self._bank_rows), None
        if basis["mode"] != "zero_shot":
            bank = build_bank(
                features,
                fingerprint=fingerprint,
                shots=used,
                region=region,
                max_rows=self._bank_rows,
                progress=partial(progress, f"recipe {recipe.name}: choosing rows"),
            )
        calibration = calibrate(self._detector, features, Reference(bank, words), mirrored)
        progress(what, len(shots), len(shots))
        if bank is not None:
            self._save(recipe, bank)
        stored = STORED.dump_json(_Stored(basis, calibration)).decode()
        row = (recipe.name, manifest.hash, stored, time.time_ns())
        self._ledger.call(
            lambda connection: connection.execute("INSERT OR REPLACE INTO banks VALUES (?, ?, ?, ?)", row), durable=True
        ).result()
        taught = Taught(calibration.apply(Reference(bank, words)), calibration)
        log.info(
            "recipe %s: %s, %d shots, threshold %.4f",
            recipe.name,
            f"bank {bank.name} built" if bank else "words calibrated",
            calibration.shots,
            calibration.threshold,
        )
        return taught

    def _encode(
        self, recipe: RecipeConfig, shots: list[Shot], progress: Callable[[int, int], None]
    ) -> tuple[list[str], PatchFeatures, PatchFeatures | None]:
        """The shots that can be used, their features, and those of a lone shot's mirror images."""
        source = self._recipes / recipe.name / "shots"
        used: list[str] = []
        lone: Pixels | None = None
        parts = []
        for start in range(0, len(shots), ENCODE_AT_ONCE):
            progress(start, len(shots))
            pictures = []
            for shot in shots[start : start + ENCODE_AT_ONCE]:
                try:
                    pictures.append(crop(read_picture(source / shot.file), recipe.region, shot.file))
                    used.append(shot.shot)
                    lone = pictures[-1]
                except PictureError as error:
                    log.warning("recipe %s: a shot is left out: %s", recipe.name, error)
            if pictures:
                parts.append(self._detector.encode(pictures))
        if not parts:
            raise PictureError(f"recipe {recipe.name}: none of its {len(shots)} shots can be used. Register others")
        mirrored = self._detector.encode(mirrors(lone)) if len(used) == 1 and lone is not None else None
        return used, join(parts), mirrored

    def _save(self, recipe: RecipeConfig, bank: Bank) -> None:
        folder = self._recipes / recipe.name / "banks" / bank.name
        try:
            try:
                bank.save(folder)
            except BankError as error:
                log.warning("recipe %s: %s. It is replaced", recipe.name, error)
                shutil.rmtree(folder)
                bank.save(folder)
        except OSError as error:
            raise StoreError(f"{folder}: cannot store the bank ({error.strerror}). Free space or mend its rights.") from None


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


def _box(region: Region | None) -> tuple[int, int, int, int] | None:
    return (region.x, region.y, region.width, region.height) if region else None


def _store_durably(source: Path, target: Path) -> None:
    temporary = target.with_suffix(target.suffix + ".part")
    shutil.copyfile(source, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
