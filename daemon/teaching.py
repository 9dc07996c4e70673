"""The registrar as commands want it (`daemon.command_parts.Teacher`): shots at once, banks on a thread of their own.

Stands in until the teacher is there: it knows the banks of this process only, and holds no shot back.
"""

import logging
import queue
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2

from config.errors import CommandError, PictureError
from config.schema import RecipeConfig
from daemon.command_parts import Held, Pixels
from daemon.ledger import Shot
from daemon.registrar import Registrar
from daemon.station import Taught, Untaught
from model.calibration import Calibration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredShot:
    """What became of a picture."""

    shot: str
    new: bool
    held: Held | None
    warnings: tuple[str, ...]
    build: str | None


@dataclass(frozen=True)
class KeptBank:
    """A bank that was made while this process ran."""

    bank: str
    built_at: datetime
    current: bool
    calibration: Calibration


class RegistrarTeacher:
    """Owner of the registrar once it is started."""

    def __init__(
        self,
        registrar: Registrar,
        recipes: Mapping[str, RecipeConfig],
        on_taught: Callable[[str, Taught | Untaught], None],
    ) -> None:
        """`on_taught` gets what judges a recipe from now on."""
        self._registrar = registrar
        self._recipes = recipes
        self._on_taught = on_taught
        self._lock = threading.Lock()
        self._kept: dict[str, list[tuple[datetime, Taught]]] = {}
        self._current: dict[str, Taught] = {}
        self._builds = 0
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="builder", daemon=True)

    def start(self, taught: Mapping[str, Taught | Untaught]) -> None:
        """Begin to build; `taught` is what judges now."""
        for recipe, one in taught.items():
            if isinstance(one, Taught):
                self._keep(recipe, one)
        self._thread.start()

    def stop(self) -> None:
        """Finish the build that is under way."""
        self._work.put(None)
        self._thread.join()

    def register(self, recipe: str, picture: bytes, *, name: str, force: bool = False) -> RegisteredShot:  # noqa: ARG002
        """See `Teacher`."""
        suffix = _suffix(picture, name)
        with self._lock, tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{Path(name).stem[:100] or 'picture'}{suffix}"
            file.write_bytes(picture)
            try:
                done = self._registrar.register(self._recipes[recipe], file)
            except PictureError as error:
                raise PictureError(str(error).replace(f"{folder}/", "")) from None
        return RegisteredShot(done.shot, done.new, None, (), self.rebuild(recipe) if done.new else None)

    def register_pixels(self, recipe: str, pixels: Pixels, *, name: str, force: bool = False) -> RegisteredShot:
        """See `Teacher`."""
        written, file = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[:, :, ::-1])
        if not written:
            raise PictureError(f"{name}: cannot be written as PNG")
        return self.register(recipe, file.tobytes(), name=name, force=force)

    def forget(self, recipe: str, shot: str) -> str | None:
        """See `Teacher`."""
        with self._lock:
            self._registrar.forget(recipe, shot)
        return self.rebuild(recipe)

    def shots(self, recipe: str) -> list[Shot]:
        """See `Teacher`."""
        return self._registrar.shots(recipe)

    def banks(self, recipe: str) -> list[KeptBank]:
        """See `Teacher`."""
        return [self._row(recipe, moment, taught) for moment, taught in reversed(self._kept.get(recipe, []))]

    def rebuild(self, recipe: str) -> str:
        """See `Teacher`."""
        self._builds += 1
        self._work.put(recipe)
        return f"build-{self._builds}"

    def rollback(self, recipe: str, bank: str | None = None) -> KeptBank:
        """See `Teacher`."""
        kept = self._kept.get(recipe, [])
        current = self._current.get(recipe)
        named = [row for row in kept if row[1].bank is not None and row[1] is not current]
        if bank is not None:
            named = [row for row in named if row[1].bank is not None and row[1].bank.hash.startswith(bank)]
        if not named:
            raise CommandError("refused", f"recipe {recipe!r} has no other bank {bank or ''} to go back to. `banks` lists them")
        moment, taught = named[-1]
        self._current[recipe] = taught
        self._on_taught(recipe, taught)
        return self._row(recipe, moment, taught)

    def _row(self, recipe: str, moment: datetime, taught: Taught) -> KeptBank:
        name = taught.bank.hash if taught.bank is not None else "words"
        return KeptBank(name, moment, taught is self._current.get(recipe), taught.calibration)

    def _keep(self, recipe: str, taught: Taught) -> None:
        self._current[recipe] = taught
        self._kept.setdefault(recipe, []).append((datetime.now(UTC), taught))

    def _run(self) -> None:
        while (recipe := self._work.get()) is not None:
            try:
                with self._lock:
                    taught = self._registrar.teach(self._recipes[recipe], lambda *_: None)
                if isinstance(taught, Taught):
                    self._keep(recipe, taught)
                self._on_taught(recipe, taught)
            except Exception:  # a bad build changes nothing
                log.exception("recipe %s: the bank could not be built; the old one goes on", recipe)


def _suffix(picture: bytes, name: str) -> str:
    """The file's suffix, by its first bytes."""
    for magic, suffix in ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"II*\0", ".tif"), (b"MM\0*", ".tif")):
        if picture.startswith(magic):
            return suffix
    raise PictureError(f"{name}: not a picture. Use a whole png, jpg, bmp or tif file")
