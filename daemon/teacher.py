"""The teacher: what becomes a reference shot, and what does not.

A shot is acknowledged when its file and its row are on the disk. What the present bank finds far from normal is held back
for a person's yes: one bad reference hides that defect for ever.
"""

import json
import logging
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from config.errors import PictureError
from config.schema import RecipeConfig
from connectors.cameras.pictures import decode_picture, list_pictures
from daemon.banks import BankRow, Banks
from daemon.builder import Builder, Detail, OnEvent
from daemon.ledger import Shot
from daemon.looks import Look, look_at, warnings
from daemon.maker import Progress
from daemon.shots import Box, Pixels, Shots, box, crop, pixel_hash
from daemon.station import Taught, Untaught

log = logging.getLogger(__name__)

FAR = 1.5
"""A picture is held back when its score is over so many times the calibrated threshold. Good parts that are rejected falsely,
which a person will want to teach, score just over it. Measured with the default preset (bottle, 3 draws of shots): at 4
shots 3 % of good pictures are held and 96 % of defective ones, at 8 shots 2 and 96; at 1.25 in place of 1.5 3 and 99, at 2
1 and 94. Where defects hardly show (pill, 2 shots) none and 21 %: the gate is no inspector."""
LOOKED_AT = 16
"""The newest shots tell what is usual."""


@dataclass(frozen=True)
class Held:
    """Why a picture was held back: it scores over the limit, far above the threshold."""

    score: float
    threshold: float
    limit: float


@dataclass(frozen=True)
class Registered:
    """What became of a picture. With `held` it is no shot. build: id of the build that will include it; None for a picture
    that was held or known already, or where nothing builds (no daemon runs)."""

    shot: str
    new: bool
    held: Held | None
    warnings: tuple[str, ...]
    build: str | None


class Teacher:
    """Registers, forgets and lists shots, and asks the builder for their banks. May be used from any thread."""

    def __init__(
        self,
        shots: Shots,
        banks: Banks,
        recipe_of: Callable[[str], RecipeConfig],
        builder: Builder | None = None,
        on_event: OnEvent = lambda *_: None,
    ) -> None:
        """recipe_of: a recipe by name; what it raises for an unknown one is passed on. builder: None where no daemon runs:
        then there is no gate, and the next start builds."""
        self._shots = shots
        self._banks = banks
        self._recipe_of = recipe_of
        self._builder = builder
        self._on_event = on_event
        self._looks: dict[tuple[str, Box | None], Look] = {}

    def register(self, recipe: str, picture: bytes, *, name: str, force: bool = False) -> Registered:
        """Make a picture file (PNG, JPEG, BMP or TIFF, whole) a reference shot; durable when this returns.

        name: for messages. force: a person has looked at it, the gate is left out.
        Raises PictureError when it cannot be read or does not hold the recipe's region, StoreError when the disk refuses,
        StoppingError when the daemon stops.
        """
        return self._register(self._recipe_of(recipe), decode_picture(picture, name), picture, name, force)

    def register_pixels(self, recipe: str, pixels: Pixels, *, name: str, force: bool = False) -> Registered:
        """The same for pixels, H x W or H x W x 3 (RGB): they are kept as PNG."""
        return self._register(self._recipe_of(recipe), pixels, _png(pixels), name, force)

    def forget(self, recipe: str, shot: str) -> str | None:
        """The shot counts no more; durable when this returns. The build that will leave it out, None for no shot."""
        with self._shots.storing:
            self._recipe_of(recipe)
            if all(row.shot != shot for row in self._shots.all(recipe)):
                return None
            self._shots.remove(recipe, shot)
        return self._request(recipe)

    def shots(self, recipe: str) -> list[Shot]:
        """In the order in which they were registered."""
        return self._shots.all(recipe)

    def shot_scores(self, recipe: str) -> dict[str, float]:
        """By shot, see `Banks.shot_scores`."""
        return self._banks.shot_scores(recipe)

    def banks(self, recipe: str) -> list[BankRow]:
        """Those that are kept, newest first."""
        return self._banks.all(recipe)

    def rebuild(self, recipe: str) -> str:
        """Build from the present shots; the build's id."""
        self._recipe_of(recipe)
        return self._needs_builder().request(recipe)

    def refine(self, recipe: str) -> str | None:
        """A part was marked: let the marks move the threshold. The id of the build that does; None where nothing builds."""
        return self._builder.refine(recipe) if self._builder is not None else None

    def rollback(self, recipe: str, bank: str | None = None) -> BankRow:
        """Judge by an earlier bank, see `Builder.rollback`."""
        return self._needs_builder().rollback(recipe, bank)

    def start(self, recipe: RecipeConfig, progress: Progress) -> Taught | Untaught:
        """At the daemon's start: register the configured folder, and say what judges the recipe.

        Pictures that cannot be used are logged and left out; so are those that were held back or forgotten before.
        Raises what `Builder.teach` raises.
        """
        self._take_folder(recipe, progress)
        return self._needs_builder().teach(
            recipe, lambda what, done, total: progress(f"recipe {recipe.name}: {what}", done, total)
        )

    def start_anew(self, recipe: RecipeConfig, progress: Progress) -> Taught | Untaught:
        """`start` for a recipe whose settings in the file are others than those it judges by."""
        self._take_folder(recipe, progress)
        return self._needs_builder().teach_anew(
            recipe, lambda what, done, total: progress(f"recipe {recipe.name}: {what}", done, total)
        )

    def start_idle(self, recipe: RecipeConfig, progress: Progress) -> None:
        """The same for a recipe that no station has: its bank is built in the background, where it is to be built."""
        self._take_folder(recipe, progress)
        self._needs_builder().resume(recipe)

    def _take_folder(self, recipe: RecipeConfig, progress: Progress) -> None:
        self._shots.tidy(recipe.name)
        pictures = list_pictures(recipe.shots) if recipe.shots is not None else []
        folder = self._shots.folder(recipe.name)
        there = {row.shot for row in self._shots.all(recipe.name) if (folder / row.file).is_file()}
        settled = there | self._shots.unwanted(recipe.name).keys()
        for done, picture in enumerate(pictures):
            progress(f"recipe {recipe.name}: reading reference shots", done, len(pictures))
            self._register_listed(recipe, picture, settled)
        if pictures:
            progress(f"recipe {recipe.name}: reading reference shots", len(pictures), len(pictures))

    def _register_listed(self, recipe: RecipeConfig, picture: Path, settled: Set[str]) -> None:
        try:
            data = picture.read_bytes()
            pixels = decode_picture(data, str(picture))
            if pixel_hash(pixels) not in settled:
                self._register(recipe, pixels, data, str(picture), False, build=False)
        except OSError as error:
            log.warning("recipe %s: reference shot refused: %s: %s", recipe.name, picture, error.strerror)
        except PictureError as error:
            log.warning("recipe %s: reference shot refused: %s", recipe.name, error)

    def _register(
        self, recipe: RecipeConfig, pixels: Pixels, data: bytes, name: str, force: bool, *, build: bool = True
    ) -> Registered:
        part, shot = crop(pixels, recipe.region, name), pixel_hash(pixels)
        others = self._shots.all(recipe.name)
        known = any(row.shot == shot for row in others)
        if known and all((self._shots.folder(recipe.name) / row.file).is_file() for row in others if row.shot == shot):
            return Registered(shot, False, None, (), self._builder.pending(recipe.name) if self._builder else None)
        warned = self._warnings(recipe, shot, part, others)
        if not known and not force and (held := self._gate(recipe, shot, pixels, data, name)) is not None:
            return Registered(shot, False, held, warned, None)
        height, width = pixels.shape[:2]
        with self._shots.storing:  # two at once must not both take one picture for new
            crop(pixels, self._recipe_of(recipe.name).region, name)  # which may have been set meanwhile
            new = self._shots.add(recipe.name, shot, data, width, height)
        for warning in warned:
            log.warning("recipe %s: shot %s: %s", recipe.name, name, warning)
        return Registered(shot, new, None, warned, self._request(recipe.name) if build else None)

    def _gate(self, recipe: RecipeConfig, shot: str, pixels: Pixels, data: bytes, name: str) -> Held | None:
        builder = self._builder
        if builder is None:
            return None
        taught = builder.taught(recipe.name) or builder.load_current(recipe)
        if taught is None or not taught.calibration.shots:
            return None
        # Its region is the one before, until the bank of one that was set stands.
        judged = builder.judge(crop(pixels, taught.region, name), taught.reference)
        score, threshold = float(judged.scores[0]), taught.calibration.threshold
        held = Held(score, threshold, FAR * threshold)
        if score <= held.limit:
            return None
        # Twice the limit is white.
        shown = np.clip(judged.maps[0] * (255 / (2 * held.limit)), 0, 255).astype(np.uint8)
        why = {"shot": shot, "name": name, "bank": taught.bank.name if taught.bank else None} | asdict(held)
        with self._shots.storing:
            self._recipe_of(recipe.name)
            self._shots.hold(recipe.name, shot, data, _png(shown), json.dumps(why, indent=1).encode())
        log.warning("recipe %s: %s held back: score %.4f, limit %.4f", recipe.name, name, score, held.limit)
        detail: Detail = {"shot": shot, "name": name, "score": score, "threshold": threshold, "limit": held.limit}
        self._on_event(recipe.name, "shot_held", detail)
        return held

    def _warnings(self, recipe: RecipeConfig, shot: str, part: Pixels, others: list[Shot]) -> tuple[str, ...]:
        """The look of each shot is taken once in the daemon's life."""
        looks, area = [], box(recipe.region)
        for row in others[-LOOKED_AT:]:
            look = self._looks.get((row.shot, area))
            if look is None:
                try:
                    look = look_at(crop(self._shots.read(row), recipe.region, row.file))
                except PictureError:
                    continue  # the build tells of it
                self._looks[row.shot, area] = look
            looks.append(look)
        own = self._looks[shot, area] = look_at(part)
        return warnings(own, looks)

    def _request(self, recipe: str) -> str | None:
        return self._builder.request(recipe) if self._builder is not None else None

    def _needs_builder(self) -> Builder:
        if self._builder is None:
            raise RuntimeError("a teacher without a builder only keeps shots")
        return self._builder


def _png(pixels: Pixels) -> bytes:
    turned = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
    written, data = cv2.imencode(".png", turned)
    if not written:
        raise PictureError(f"a picture of shape {pixels.shape} cannot be written as PNG. Use H x W or H x W x 3")
    return data.tobytes()
