"""Brings the running daemon to a configuration that was read again, station by station; those that are as before see nothing."""

import logging
from collections.abc import Callable, Mapping

from config.errors import AprilcamError, StoppingError
from config.schema import RecipeConfig
from connectors.metrics import Metrics
from daemon.builder import Builder
from daemon.changes import Changes
from daemon.drop import DropFolders
from daemon.floor import Floor, Surroundings
from daemon.maker import Progress
from daemon.programs import Programs
from daemon.recipe_store import RecipeStore
from daemon.station import Taught, Untaught
from daemon.teacher import Teacher
from model.errors import ModelError

log = logging.getLogger(__name__)


class Refit:
    """What a reload changes. `apply` is called by one thread."""

    def __init__(
        self,
        floor: Floor,
        around: Surroundings,
        store: RecipeStore,
        teacher: Teacher,
        builder: Builder,
        programs: Programs,
        drops: DropFolders,
        metrics: Metrics,
    ) -> None:
        self._floor = floor
        self._around = around
        self._store = store
        self._teacher = teacher
        self._builder = builder
        self._programs = programs
        self._drops = drops
        self._metrics = metrics
        self._untaught: dict[str, Untaught] = {}

    def apply(self, changes: Changes, progress: Progress) -> dict[str, str]:
        """Take the changes; those that were taken before, when that was cut short, are passed over. The recipes that could not be
        taught, with the reason.

        New and changed recipes are taught first, while the stations go on as they were; then stations go, change and come.
        Raises StoreError when the disk refuses, StoppingError when the daemon stops.
        """
        config, floor = changes.config, self._floor
        self._untaught.clear()
        in_use = {own.recipe for own in config.stations} | set(self._store.stations().values())
        for recipe in changes.recipes:
            self._teach(recipe, recipe.name in in_use, progress)

        if removed := [name for name in changes.removed if name in floor.lines]:
            floor.close(removed, "the station was removed")
            floor.remove(removed, self._around)
        self._store.configure(config.recipes, {own.name: own.recipe for own in config.stations})
        anew = [own.name for own in changes.changed if own.name in changes.camera_anew]
        floor.close(anew, "the station's camera was changed")
        for own in changes.changed:
            floor.change(config, own)
            if not own.overlay:
                self._around.announcer.clear_overlay(own.name)
        added = [own.name for own in changes.added if own.name not in floor.lines]
        floor.place(config, added, self._recipes(), self._around.ledger)
        for name in added:
            self._around.inbox.add(name)
            if self._around.announcer.edge_node is not None:
                self._around.announcer.edge_node.add(name)
        self._follow(added, progress)
        floor.open(config, [*anew, *added], self._around)
        floor.start([*anew, *added])
        self._drops.watch({recipe.name: recipe.drop for recipe in config.recipes if recipe.drop})
        self._builder.drop_unused()
        return {recipe: untaught.reason for recipe, untaught in self._untaught.items()}

    def _recipes(self) -> Mapping[str, RecipeConfig]:
        """By station."""
        return {station: self._store.get(recipe) for station, recipe in self._store.stations().items()}

    def _teach(self, recipe: RecipeConfig, in_use: bool, progress: Progress) -> None:
        self._metrics.add_recipe(recipe.name)
        self._store.put(recipe)
        try:
            if in_use:
                self._teacher.start_anew(recipe, progress)
            else:
                self._builder.drop_unused()
                self._teacher.start_idle(recipe, progress)
        except StoppingError:
            raise
        except (AprilcamError, ModelError) as error:
            self._untaught[recipe.name] = Untaught(str(error))
            log.error("recipe %s: no bank: %s", recipe.name, error)  # noqa: TRY400 - the message says it all

    def _follow(self, added: list[str], progress: Progress) -> None:
        """Each station inspects by the recipe that it has now."""
        for name, recipe in self._recipes().items():
            if name in added or self._floor.stations[name].program.recipe.name != recipe.name:
                self._programs.give(name, recipe, self._ready(self._judging(recipe, progress)))
                self._metrics.add_station(name, recipe.name)

    def _ready(self, taught: Taught | Untaught) -> Callable[[str], Taught | Untaught]:
        """What judges a recipe at the moment of the change; `taught`, where that is in memory no more."""
        return lambda recipe: self._builder.judging(recipe) or taught

    def _judging(self, recipe: RecipeConfig, progress: Progress) -> Taught | Untaught:
        if (untaught := self._untaught.get(recipe.name)) is not None:
            return untaught
        try:
            return self._builder.teach(recipe, progress)
        except StoppingError:
            raise
        except (AprilcamError, ModelError) as error:
            log.error("recipe %s: no bank: %s", recipe.name, error)  # noqa: TRY400 - the message says it all
            return Untaught(str(error))
