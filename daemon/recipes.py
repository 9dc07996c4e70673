"""Recipes at run time: made, copied, selected, deleted, exported, taken in, and given thresholds.

While no daemon runs there is neither builder nor program: the next start does what they would.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from config.errors import CommandError
from config.schema import RecipeConfig, Region
from daemon.banks import Banks
from daemon.builder import Builder
from daemon.programs import OnStationEvent, Programs
from daemon.recipe_file import Judged, check_size, pack, unpack
from daemon.recipe_store import RecipeStore
from daemon.shots import Shots
from daemon.station import Untaught
from daemon.threshold import ThresholdOverride, limits_of
from model.calibration import Calibration

log = logging.getLogger(__name__)

RETIRE_S = 30.0
"""How long a recipe that is to go waits for its running build to end."""


@dataclass(frozen=True)
class Running:
    """What only a running daemon has."""

    builder: Builder
    programs: Programs
    model: Mapping[str, JsonValue]
    """The fingerprint of the model that judges."""
    on_event: OnStationEvent
    on_deleted: Callable[[str], None] = lambda _: None
    """Told of each recipe that is gone."""


@dataclass(frozen=True)
class RecipeView:
    """A recipe as shown to people. `bank`, `threshold`: what judges or would; the bank's name."""

    recipe: RecipeConfig
    configured: bool
    stations: tuple[str, ...]
    shots: int
    bank: str | None
    threshold: float | None
    threshold_stale: bool
    override: ThresholdOverride | None


@dataclass(frozen=True)
class InForce:
    """The threshold after a change, None where nothing is calibrated; whether it was set against another calibration."""

    threshold: float | None
    stale: bool


class Recipes:
    """Does the commands about recipes; those that select, delete and set take turns. May be called from any thread."""

    def __init__(
        self, store: RecipeStore, shots: Shots, banks: Banks, *, knows_words: bool, running: Running | None = None
    ) -> None:
        """knows_words: whether the model judges by words too."""
        self._store = store
        self._shots = shots
        self._banks = banks
        self._knows_words = knows_words
        self._running = running
        self._changing = threading.Lock()
        self._packing = threading.Lock()

    def create(
        self, recipe: str, *, object: str, mode: Literal["zero_shot", "few_shot", "both"] | None, region: Region | None
    ) -> str | None:
        """Make a recipe without shots. The build that prepares its words, None where they do not judge."""
        made = RecipeConfig(name=recipe, object=object, mode=mode, region=region)
        self._check_mode(made)
        with self._store.making(recipe):
            self._store.add(made)
        log.info("recipe %s: made", recipe)
        return self._build(recipe)

    def copy(self, recipe: str, to: str) -> str | None:
        """Make a recipe with another's settings, shots and threshold. The build of its bank."""
        own, shots = self._store.get(recipe), self._shots.all(recipe)
        with self._store.making(to):
            for shot in shots:
                self._shots.keep(to, shot.file, self._shots.picture(shot))
            copied = own.model_copy(update={"name": to, "shots": None, "drop": None})
            self._store.add(copied, shots, self._store.override(recipe))
        log.info("recipe %s: made from %s, %d shots", to, recipe, len(shots))
        return self._build(to)

    def delete(self, recipe: str) -> None:
        """Remove a recipe with its shots, banks and marks."""
        with self._changing:
            self._store.get(recipe)
            if self._store.is_configured(recipe):
                raise CommandError("refused", f"recipe {recipe!r} is of the configuration file. Delete it there, and reload")
            if users := self._store.stations_of(recipe):
                mend = "Select another recipe for it first"
                raise CommandError("refused", f"recipe {recipe!r}: station {', '.join(users)} inspects by it. {mend}")
            self._store.hide(recipe)
        if self._running is not None and not self._running.builder.retire(recipe, RETIRE_S):
            self._store.show(recipe)
            raise CommandError("busy", f"recipe {recipe!r}: its running build did not end within {RETIRE_S:g} s. Try again")
        with self._shots.storing:
            self._store.remove(recipe)
        if self._running is not None:
            self._running.on_deleted(recipe)
        log.info("recipe %s: deleted", recipe)

    def select(self, station: str, recipe: str) -> None:
        """Let the station's next frame be judged by this recipe, and every later start of the daemon begin with it.

        What judges the recipe is loaded first: the station leaves its recipe for one that judges. Nothing is built: where a
        bank is still to be made it is asked for, and the command refused (`busy`).
        """
        with self._changing:
            wanted, running = self._store.get(recipe), self._running
            if running is None:
                if not self._shots.all(recipe) and not self._words_judge(wanted):
                    raise _nothing_judges(recipe)
                self._store.select(station, recipe)
                return
            builder = running.builder
            with running.programs.coming(recipe):
                ready = builder.prepare(wanted)
                if ready is None:
                    build = builder.pending(recipe, of_shots=True) or builder.request(recipe)
                    raise CommandError(
                        "busy",
                        f"recipe {recipe!r} has no bank yet that fits the present model: build {build} makes it. Select the "
                        f"recipe again when bank_built is told",
                    )
                if isinstance(ready, Untaught):
                    raise _nothing_judges(recipe)
                running.on_event(station, recipe, "recipe_prepared", {"bank": ready.bank.name if ready.bank else None})
                self._store.select(station, recipe)
                # Its settings as they are now: a reload may have changed them, and what judges it, meanwhile.
                program = running.programs.give(station, self._store.get(recipe), builder.judging)
            builder.drop_unused()
            bank = program.bank.name if program.bank else None
            running.on_event(station, recipe, "recipe_selected", {"bank": bank, "threshold": program.threshold})
        log.info("station %s: inspects by recipe %s", station, recipe)

    def export(self, recipe: str) -> bytes:
        """The recipe as one file. Raises PictureError for a shot that is damaged, CommandError (too_large)."""
        with self._packing:  # each takes several times the file's size in memory
            return self._export(recipe)

    def _export(self, recipe: str) -> bytes:
        own, shots = self._store.get(recipe), self._shots.all(recipe)
        check_size(recipe, len(shots), sum(self._shots.size(shot) for shot in shots))
        calibration, bank, judged = *self._judging(recipe), None
        if calibration is not None:
            judged = Judged(
                threshold=calibration.threshold,
                pixel_threshold=calibration.pixel_threshold,
                shots=calibration.shots,
                bank=bank,
                model=dict(self._running.model) if self._running is not None else None,
            )
        return pack(own, self._store.override(recipe), judged, shots, [self._shots.picture(shot) for shot in shots])

    def import_(self, file: bytes, recipe: str | None) -> tuple[str, str | None]:
        """The name under which it was taken in, and the build of its bank.

        Raises RecipeFileError when anything in the file is not as it says.
        """
        with self._packing:
            given = unpack(file)
        name = recipe or given.recipe.name
        made = given.recipe.model_copy(update={"name": name})
        self._check_mode(made)
        with self._store.making(name):
            for shot, picture in zip(given.shots, given.pictures, strict=True):
                self._shots.keep(name, shot.file, picture)
            self._store.add(made, given.shots, given.override)
        log.info("recipe %s: taken in, %d shots", name, len(given.shots))
        return name, self._build(name)

    def set_threshold(self, recipe: str, *, threshold: float | None, factor: float | None) -> InForce:
        """Set it as a number or as a factor of the calibrated one; neither: back to the configured or calibrated one."""
        with self._changing:
            own, (calibration, bank) = self._store.get(recipe), self._judging(recipe)
            override = None
            if threshold is not None or factor is not None:
                override = ThresholdOverride(threshold, factor).at(calibration, bank)
            self._store.set_override(recipe, override)
            if self._running is not None:
                self._running.programs.override_changed(recipe)
            calibration, bank = self._judging(recipe)
        log.info("recipe %s: threshold set: %s", recipe, override or "none of its own")
        limits = limits_of(own, override, calibration)
        return InForce(limits.score if limits else None, override.stale(calibration, bank) if override is not None else False)

    def set_region(self, recipe: str, region: Region | None, frames: Mapping[str, tuple[int, int]]) -> str | None:
        """Set the region of interest; None: back to the one of the configuration file or with which it was made.

        The build of its bank, None where nothing judges or no daemon runs. Until that bank stands, the stations go on with the
        region and the bank that they have. frames: (width, height) of the newest frame of stations that have the recipe.
        Raises CommandError when a frame or a shot does not hold the region.
        """
        with self._changing, self._shots.storing:  # no shot comes between the look at them and the commit
            own = self._store.without_region(recipe)
            wanted = region or own.region
            if wanted is not None:
                shots = self._shots.all(recipe)
                _check_held(wanted, {f"the newest frame of station {name}": size for name, size in frames.items()}, "camera")
                _check_held(wanted, {f"shot {shot.shot[:16]}": (shot.width, shot.height) for shot in shots}, "shots")
            self._store.set_region(recipe, region)
        log.info("recipe %s: region set: %s", recipe, region or "none of its own")
        return self._build(recipe)

    def all(self) -> list[RecipeView]:
        """Every recipe, those of the configuration file first."""
        return [self._view(self._store.get(name)) for name in self._store.recipes()]

    def _view(self, recipe: RecipeConfig) -> RecipeView:
        name, override = recipe.name, self._store.override(recipe.name)
        calibration, bank = self._judging(name)
        limits = limits_of(recipe, override, calibration)
        return RecipeView(
            recipe=recipe,
            configured=self._store.is_configured(name),
            stations=tuple(self._store.stations_of(name)),
            shots=len(self._shots.all(name)),
            bank=bank[:16] if bank is not None else None,
            threshold=limits.score if limits is not None else None,
            threshold_stale=override.stale(calibration, bank) if override is not None else False,
            override=override,
        )

    def _judging(self, recipe: str) -> tuple[Calibration | None, str | None]:
        """(calibration, bank's hash) that judge, or would if a station had the recipe."""
        taught = self._running.builder.taught(recipe) if self._running is not None else None
        if taught is not None:
            return taught.calibration, taught.bank.hash if taught.bank is not None else None
        row = next((row for row in self._banks.all(recipe) if row.current), None)
        return (row.calibration, row.bank) if row is not None else (None, None)

    def _build(self, recipe: str) -> str | None:
        if self._running is None or not (self._shots.all(recipe) or self._words_judge(self._store.get(recipe))):
            return None
        return self._running.builder.request(recipe)

    def _words_judge(self, recipe: RecipeConfig) -> bool:
        """Whether it needs no shots."""
        return recipe.mode == "zero_shot" or (recipe.mode is None and self._knows_words)

    def _check_mode(self, recipe: RecipeConfig) -> None:
        if recipe.mode in ("zero_shot", "both") and not self._knows_words:
            raise CommandError(
                "refused",
                f"mode {recipe.mode!r} needs words, and the model of [inference] preset judges by none. Use mode few_shot, or "
                f"leave it out",
            )


def _check_held(region: Region, pictures: Mapping[str, tuple[int, int]], of: Literal["camera", "shots"]) -> None:
    """Whether each, of (width, height), holds the region."""
    mend = {
        "camera": "Draw it within the frame",
        "shots": "Draw it within every shot, or forget those that do not hold it",
    }[of]
    for name, (width, height) in pictures.items():
        if region.x + region.width > width or region.y + region.height > height:
            reason = f"{name} has {width} x {height} pixels, and does not hold the region {region}"
            raise CommandError("refused", f"{reason}. {mend}")


def _nothing_judges(recipe: str) -> CommandError:
    return CommandError(
        "refused", f"recipe {recipe!r} has no reference shots: nothing can judge. Teach it first: aprilcam register -r {recipe}"
    )
