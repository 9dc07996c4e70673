"""Brings the running daemon to a configuration that was read again, station by station; those that are as before see nothing."""

from collections.abc import Callable, Mapping

from config.errors import StoppingError
from config.schema import RecipeConfig
from connectors.metrics import Metrics
from daemon.builder import Builder
from daemon.changes import Changes
from daemon.drop import DropFolders
from daemon.floor import Floor, Surroundings
from daemon.maker import Progress
from daemon.programs import Programs, no_bank
from daemon.recipe_store import RecipeStore
from daemon.station import Taught, Untaught
from daemon.teacher import Teacher


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

        self._store.configure(config.recipes, {own.name: own.recipe for own in config.stations})
        # By what is there, not by the file before: an earlier reload may have been cut short.
        wanted = {own.name for own in config.stations}
        if removed := [name for name in floor.lines if name not in wanted]:
            floor.close(removed, "the station was removed")
            floor.remove(removed, self._around)
        anew = [own.name for own in changes.changed if own.name in changes.camera_anew and own.name in floor.lines]
        floor.close(anew, "the station's camera was changed")
        for own in config.stations:
            if own.name not in floor.lines or (own == floor.stations[own.name].config and own.name not in anew):
                continue
            floor.change(config, own)
            if not own.overlay:
                self._around.announcer.clear_overlay(own.name)
        added = [own.name for own in config.stations if own.name not in floor.lines]
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
        for gone in changes.recipes_gone:
            if gone not in self._store.recipes():
                self._metrics.remove_recipe(gone)
        return {recipe: untaught.reason for recipe, untaught in self._untaught.items()}

    def _recipes(self) -> Mapping[str, RecipeConfig]:
        """By station."""
        return {station: self._store.get(recipe) for station, recipe in self._store.stations().items()}

    def _teach(self, recipe: RecipeConfig, in_use: bool, progress: Progress) -> None:
        self._metrics.add_recipe(recipe.name)
        self._store.put(recipe)
        recipe = self._store.get(recipe.name)  # with the region that was set
        try:
            if in_use:
                self._teacher.start_anew(recipe, progress)
            else:
                self._builder.drop_unused()
                self._teacher.start_idle(recipe, progress)
        except StoppingError:
            raise
        except Exception as error:  # one recipe's trouble is not the others'
            self._untaught[recipe.name] = no_bank(recipe, error)

    def _follow(self, added: list[str], progress: Progress) -> None:
        """Each station inspects by the recipe that it has now."""
        for name in self._store.stations():
            while True:
                recipe = self._store.get(self._store.stations()[name])
                if name not in added and self._floor.stations[name].program.recipe.name == recipe.name:
                    break
                judging = self._ready(self._judging(recipe, progress))
                if self._store.stations()[name] != recipe.name:
                    continue  # a command selected another while this one was taught
                self._programs.give(name, recipe, judging)
                self._metrics.add_station(name, recipe.name)
                break

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
        except Exception as error:  # as above
            return no_bank(recipe, error)
