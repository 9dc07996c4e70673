"""Commands on the state folder while no daemon runs: the same checks on the same files, without cameras, model and broker.

What needs the model waits for the daemon's next start: it builds from the shots, with no gate on those that were registered,
and a station begins with the recipe that was selected here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.errors import CommandError
from config.schema import Config
from daemon.banks import BankRow, Banks
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.ledger import Ledger
from daemon.presets import load_preset
from daemon.recipe_store import RecipeStore
from daemon.recipes import Recipes
from daemon.shots import Shots
from daemon.teacher import Teacher


class _Unmanned(Teacher):
    """A teacher without a builder."""

    def __init__(self, shots: Shots, banks: Banks, store: RecipeStore) -> None:
        self._kept = banks
        super().__init__(shots, banks, store.get)

    def rebuild(self, recipe: str) -> str:
        raise CommandError("refused", f"no daemon runs, so nothing builds recipe {recipe!r}: the next start does where it must")

    def rollback(self, recipe: str, bank: str | None = None) -> BankRow:
        """The next start judges by it, when it fits the model and can be read."""
        rows = self._kept.all(recipe)
        now = next((number for number, row in enumerate(rows) if row.current), -1)
        row = rows[now + 1] if bank is None else next(row for row in rows if row.bank == bank)
        self._kept.make_current(recipe, row.bank, rolled_back=True)
        return next(kept for kept in self._kept.all(recipe) if kept.bank == row.bank)


@contextmanager
def open_state(config: Config, base: Path) -> Iterator[Commands]:
    """Commands on the configuration's state folder, which is locked meanwhile. base: the configuration file's folder.

    Raises StoreError when a daemon has it after all or it cannot be written, ConfigError for a preset that is not there.
    """
    spec = load_preset(config.inference.preset, base)
    folder = config.store.path
    ledger = Ledger(folder)
    try:
        store = RecipeStore(folder, ledger, config.recipes, {station.name: station.recipe for station in config.stations})
        shots, banks = Shots(folder, ledger), Banks(folder, ledger)
        recipes = Recipes(store, shots, banks, knows_words=spec.linear_layers is not None)
        commands = Commands(store, None, lambda *_: None)
        commands.open(Parts(_Unmanned(shots, banks, store), recipes))
        yield commands
        commands.close()
    finally:
        ledger.close()
