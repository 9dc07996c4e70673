"""What each station inspects by, and when that changes: a new bank, another threshold, another recipe."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from config.errors import AprilcamError
from config.schema import RecipeConfig
from connectors.contract import EventKind
from daemon.builder import Detail
from daemon.recipe_store import RecipeStore
from daemon.station import Program, Station, Taught, Untaught
from model.errors import ModelError

log = logging.getLogger(__name__)

OnStationEvent = Callable[[str, str, EventKind, Detail], None]
"""(station, recipe, kind, detail)."""


class Programs:
    """Assigns the stations' programs; nobody else does. May be called from any thread.

    One lock is held from reading what judges to the assignment, so that none is overwritten by an older one.
    """

    def __init__(
        self,
        store: RecipeStore,
        stations: Mapping[str, Station],
        on_changed: Callable[[str], None] = lambda _: None,
        on_event: OnStationEvent = lambda *_: None,
    ) -> None:
        """stations: by name; there may come more. on_changed: told of each station with a new program."""
        self._store = store
        self._stations = stations
        self._on_changed = on_changed
        self._on_event = on_event
        self._lock = threading.Lock()
        self._coming: str | None = None

    def in_use(self) -> set[str]:
        """Recipes that stations have or are about to have."""
        coming = self._coming
        return {station.program.recipe.name for station in list(self._stations.values())} | ({coming} if coming else set())

    @contextmanager
    def coming(self, recipe: str) -> Iterator[None]:
        """A station is about to have it; one at a time."""
        self._coming = recipe
        try:
            yield
        finally:
            self._coming = None

    def taught(self, recipe: RecipeConfig, taught: Taught | Untaught) -> None:
        """What judges a recipe is new; it was made by these settings of it, which come with it."""
        with self._lock:
            override = self._store.override(recipe.name)
            self._assign(recipe.name, lambda program: replace(program, recipe=recipe, taught=taught, override=override))

    def override_changed(self, recipe: str) -> None:
        """The threshold that was set for a recipe is another."""
        with self._lock:
            self._assign(recipe, lambda program: replace(program, override=self._store.override(recipe)))

    def give(self, station: str, recipe: RecipeConfig, judging: Callable[[str], Taught | Untaught | None]) -> Program:
        """The station's next frame is judged by this recipe. judging: what judges a recipe now; it has to be in memory."""
        with self._lock:
            taught = judging(recipe.name)
            if taught is None:
                raise RuntimeError(f"recipe {recipe.name} is not prepared")
            program = Program(recipe, taught, self._store.override(recipe.name))
            self._stations[station].program = program
            self._on_changed(station)
            return program

    def _assign(self, recipe: str, change: Callable[[Program], Program]) -> None:
        for name, station in list(self._stations.items()):
            before = station.program
            if before.recipe.name != recipe:
                continue
            station.program = after = change(before)
            self._on_changed(name)
            if after.threshold_stale and not before.threshold_stale and after.override is not None:
                self._tell_stale(name, after)

    def _tell_stale(self, station: str, program: Program) -> None:
        recipe, override, calibration = program.recipe.name, program.override, program.calibration
        if override is None or calibration is None:
            return
        log.warning(
            "station %s: the threshold %s of recipe %s was set when the calibrated one was %s; now it is %.4f. It stays in force "
            "until it is set again",
            station,
            override.threshold,
            recipe,
            "unknown" if override.calibrated is None else f"{override.calibrated:.4f}",
            calibration.threshold,
        )
        detail: Detail = {
            "threshold": override.threshold,
            "calibrated_then": override.calibrated,
            "calibrated_now": calibration.threshold,
            "bank": program.bank.name if program.bank is not None else None,
        }
        self._on_event(station, recipe, "threshold_stale", detail)


def no_bank(recipe: RecipeConfig, error: Exception) -> Untaught:
    """What stands for a recipe's bank where there is none, for this reason, which the log tells."""
    if isinstance(error, AprilcamError | ModelError):
        log.error("recipe %s: no bank: %s", recipe.name, error)
        return Untaught(str(error))
    log.error("recipe %s: no bank", recipe.name, exc_info=error)
    return Untaught(f"{type(error).__name__}: {error}")
