"""Which recipes there are: those of the configuration file, and those made since, which the ledger keeps.

A recipe of several files comes and goes whole. While it is made, and while it goes, the table `unfinished_recipes` names it:
a process killed in between leaves that row, and the next start removes what lies under the name.
"""

import json
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from config.errors import CommandError, StoreError
from config.schema import RecipeConfig, Region
from daemon.ledger import Ledger, Shot
from daemon.marks import forget_marks
from daemon.shots import At, nowhere
from daemon.threshold import ThresholdOverride

log = logging.getLogger(__name__)

CREATE = (
    "CREATE TABLE IF NOT EXISTS recipes (recipe TEXT PRIMARY KEY, settings TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS selections (station TEXT PRIMARY KEY, recipe TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS overrides (recipe TEXT PRIMARY KEY, threshold TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS regions (recipe TEXT PRIMARY KEY, region TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS unfinished_recipes (recipe TEXT PRIMARY KEY) WITHOUT ROWID",
)
OF_A_RECIPE = ("recipes", "overrides", "regions", "shots", "not_shots", "banks", "current_banks")
"""Tables whose rows go with a recipe; marks go as `daemon.marks` says."""
_OVERRIDE = TypeAdapter(ThresholdOverride)


class RecipeStore:
    """Owner of the five tables, and of the folders `recipes/<name>` as a whole. May be called from any thread."""

    def __init__(
        self,
        store: Path,
        ledger: Ledger,
        configured: Sequence[RecipeConfig],
        stations: Mapping[str, str],
        at: At = nowhere,
    ) -> None:
        """stations: each one's recipe as the configuration file has it. Raises StoreError when the disk refuses."""
        self._folder = store / "recipes"
        self._ledger = ledger
        self._at = at
        self._configured = {recipe.name: recipe for recipe in configured}
        self._stations = dict(stations)
        self._naming = threading.Lock()
        self._being_made: set[str] = set()
        self._doubtful: set[str] = set()
        """Made, but for a commit that the disk did not take in time and may still take."""
        made, selected, overrides, regions, unfinished = ledger.ask(_read)
        for name in unfinished:
            log.warning("recipe %s: was not finished when the daemon ended; what is left of it is removed", name)
            try:
                self._clear(name)
            except StoreError as error:
                log.error("recipe %s: %s", name, error)  # noqa: TRY400 - the next start tries again
        self._made = {name: _from_json(name, settings) for name, settings in made if name not in unfinished}
        self._overrides = {name: _OVERRIDE.validate_json(row) for name, row in overrides if name not in unfinished}
        self._regions = {name: Region.model_validate_json(row) for name, row in regions if name not in unfinished}
        for name in self._made.keys() & self._configured.keys():
            log.warning("recipe %s: made at run time, and in the configuration file, whose settings count", name)
        self._hidden: dict[str, RecipeConfig] = {}
        self._selected = self._still_there(dict(selected))

    def _still_there(self, selected: Mapping[str, str]) -> dict[str, str]:
        """Of the selections those that count."""
        found = {}
        for station, recipe in selected.items():
            if station not in self._stations:
                continue
            if recipe in self.recipes():
                found[station] = recipe
            else:
                own = self._stations[station]
                log.warning("station %s: recipe %r was selected and is gone; it inspects by %r", station, recipe, own)
        return found

    def put(self, recipe: RecipeConfig) -> None:
        """The configuration file has this recipe, or its settings are others now."""
        self._configured[recipe.name] = recipe

    def configure(self, configured: Sequence[RecipeConfig], stations: Mapping[str, str]) -> None:
        """The configuration file has these recipes and stations now. A selected recipe goes before the file's, as ever.

        Raises StoreError when the disk refuses.
        """
        _, selected, _, _, _ = self._ledger.ask(_read)
        self._configured = {recipe.name: recipe for recipe in configured}
        self._stations = dict(stations)
        self._selected = self._still_there(dict(selected))

    # What there is.

    def get(self, name: str) -> RecipeConfig:
        """The recipe of that name, with the region that was set. Raises CommandError when there is none (any more)."""
        own = self.without_region(name)
        region = self._regions.get(name)
        return own if region is None else own.model_copy(update={"region": region})

    def without_region(self, name: str) -> RecipeConfig:
        """The same as the configuration file has it, or as it was made."""
        recipe = self._configured.get(name) or self._made.get(name)
        if recipe is None:
            raise CommandError("unknown_recipe", f"no recipe is named {name!r}. Known: {', '.join(self.recipes()[:20])}")
        return recipe

    def recipes(self) -> list[str]:
        """Their names, those of the configuration file first."""
        return list(dict.fromkeys([*self._configured, *sorted(self._made)]))

    def is_configured(self, name: str) -> bool:
        """Whether the configuration file has it."""
        return name in self._configured

    def stations(self) -> dict[str, str]:
        """Each station's recipe: the selected one, else the configured one."""
        return {**self._stations, **self._selected}

    def stations_of(self, name: str) -> list[str]:
        """The stations that have it."""
        return [station for station, recipe in self.stations().items() if recipe == name]

    def override(self, name: str) -> ThresholdOverride | None:
        """The threshold that an engineer set."""
        return self._overrides.get(name)

    # Changes: durable when they return. Raise StoreError when the disk refuses.

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Around writing a new recipe's files and `add`: whatever ends it before that leaves nothing behind.

        Raises CommandError when the name is taken, also by what is left of a recipe that the configuration once had.
        """
        with self._naming:
            if name in self.recipes() or name in self._hidden or name in self._being_made:
                raise CommandError("refused", f"a recipe is named {name!r} already. Take another name, or delete that one first")
            if self._ledger.ask(lambda connection: _has_rows(connection, name)):
                raise CommandError(
                    "refused",
                    f"the state folder holds shots or banks of a recipe {name!r} that the configuration file once had. Take "
                    f"another name, or put it back into the configuration file",
                )
            self._being_made.add(name)
        try:
            self._ledger.ask(lambda c: c.execute("INSERT OR REPLACE INTO unfinished_recipes VALUES (?)", (name,)), durable=True)
            self._at("recipe_begun")
            yield
        except Exception:
            if name not in self._doubtful:  # else the next start finds it whole, or removes it
                self._clear(name)
            raise
        finally:
            self._being_made.discard(name)

    def add(self, recipe: RecipeConfig, shots: Sequence[Shot] = (), override: ThresholdOverride | None = None) -> None:
        """Make a recipe, whole: its settings, its shots (their files are there), its threshold."""
        now_ns = time.time_ns()
        rows = [
            (recipe.name, shot.shot, shot.file, shot.width, shot.height, now_ns + number) for number, shot in enumerate(shots)
        ]

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO recipes VALUES (?, ?)", (recipe.name, _to_json(recipe)))
            connection.executemany("INSERT INTO shots VALUES (?, ?, ?, ?, ?, ?)", rows)
            if override is not None:
                _set_override(connection, recipe.name, override)
            connection.execute("DELETE FROM unfinished_recipes WHERE recipe = ?", (recipe.name,))

        self._doubtful.add(recipe.name)
        self._ledger.ask(insert, durable=True)
        self._doubtful.discard(recipe.name)
        self._made[recipe.name] = recipe
        if override is not None:
            self._overrides[recipe.name] = override
        self._at("recipe_committed")

    def hide(self, name: str) -> None:
        """`get` knows a made recipe no more: it is about to be removed."""
        self._hidden[name] = self._made.pop(name)

    def show(self, name: str) -> None:
        """It does again."""
        self._made[name] = self._hidden.pop(name)

    def remove(self, name: str) -> None:
        """A hidden recipe goes: its rows in one transaction, then its files."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO unfinished_recipes VALUES (?)", (name,))
            _delete_rows(connection, name)

        try:
            self._ledger.ask(delete, durable=True)
        except StoreError:
            self.show(name)
            raise
        self._overrides.pop(name, None)
        self._regions.pop(name, None)
        self._at("recipe_rows_deleted")
        try:
            self._clear(name)
        finally:
            del self._hidden[name]  # from here on another may have the name

    def select(self, station: str, recipe: str) -> None:
        """What the station starts with from now on. Its configured recipe is followed wherever the file goes."""

        def write(connection: sqlite3.Connection) -> None:
            if self._stations[station] == recipe:
                connection.execute("DELETE FROM selections WHERE station = ?", (station,))
            else:
                connection.execute("INSERT OR REPLACE INTO selections VALUES (?, ?)", (station, recipe))

        self._ledger.ask(write, durable=True)
        self._selected[station] = recipe

    def set_override(self, name: str, override: ThresholdOverride | None) -> None:
        """None: the recipe's own threshold, or the calibrated one."""
        self._ledger.ask(lambda connection: _set_override(connection, name, override), durable=True)
        if override is None:
            self._overrides.pop(name, None)
        else:
            self._overrides[name] = override

    def set_region(self, name: str, region: Region | None) -> None:
        """None: the recipe's own."""

        def write(connection: sqlite3.Connection) -> None:
            if region is None:
                connection.execute("DELETE FROM regions WHERE recipe = ?", (name,))
            else:
                connection.execute("INSERT OR REPLACE INTO regions VALUES (?, ?)", (name, region.model_dump_json()))

        self._ledger.ask(write, durable=True)
        if region is None:
            self._regions.pop(name, None)
        else:
            self._regions[name] = region

    def _clear(self, name: str) -> None:
        """Whatever lies under the name goes, its row among the unfinished ones last."""
        folder = self._folder / name
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be removed ({error.strerror}). Mend its rights and try again.") from None
        self._at("recipe_folder_removed")

        def forget(connection: sqlite3.Connection) -> None:
            _delete_rows(connection, name)
            connection.execute("DELETE FROM unfinished_recipes WHERE recipe = ?", (name,))

        self._ledger.ask(forget, durable=True)


Rows = list[tuple[str, str]]


def _read(connection: sqlite3.Connection) -> tuple[Rows, Rows, Rows, Rows, list[str]]:
    """(recipes, selections, overrides, regions, unfinished)."""
    for statement in CREATE:
        connection.execute(statement)
    made, selected, overrides, regions = (
        connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608 - our own names
        for table in ("recipes", "selections", "overrides", "regions")
    )
    unfinished = [str(name) for (name,) in connection.execute("SELECT recipe FROM unfinished_recipes")]
    return made, selected, overrides, regions, unfinished


def _has_rows(connection: sqlite3.Connection, name: str) -> bool:
    return any(
        connection.execute(f"SELECT 1 FROM {table} WHERE recipe = ? LIMIT 1", (name,)).fetchone()  # noqa: S608 - our own names
        for table in OF_A_RECIPE
    )


def _delete_rows(connection: sqlite3.Connection, name: str) -> None:
    for table in OF_A_RECIPE:
        connection.execute(f"DELETE FROM {table} WHERE recipe = ?", (name,))  # noqa: S608 - our own names
    forget_marks(connection, name)


def _set_override(connection: sqlite3.Connection, name: str, override: ThresholdOverride | None) -> None:
    if override is None:
        connection.execute("DELETE FROM overrides WHERE recipe = ?", (name,))
    else:
        connection.execute("INSERT OR REPLACE INTO overrides VALUES (?, ?)", (name, json.dumps(asdict(override))))


def _to_json(recipe: RecipeConfig) -> str:
    return recipe.model_dump_json(exclude={"name", "shots", "drop"}, exclude_none=True)


def _from_json(name: str, settings: str) -> RecipeConfig:
    return RecipeConfig.model_validate({"name": name, **json.loads(settings)})
