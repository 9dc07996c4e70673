"""Commands on the state folder while no daemon runs: the same checks on the same files, without cameras, model and broker.

What needs the model waits for the daemon's next start: it builds from the shots, with no gate on those that were registered.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from config.errors import CommandError
from config.schema import Config
from daemon.banks import BankRow, Banks
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.ledger import Ledger
from daemon.shots import Shots
from daemon.teacher import Teacher


class _Configured:
    """Recipes and stations as the configuration file has them."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def recipes(self) -> list[str]:
        return [recipe.name for recipe in self._config.recipes]

    def stations(self) -> dict[str, str]:
        return {station.name: station.recipe for station in self._config.stations}


class _Unmanned(Teacher):
    """A teacher without a builder."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        store = config.store.path
        self._kept = Banks(store, ledger)
        super().__init__(Shots(store, ledger), self._kept, config.recipe)

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
def open_state(config: Config) -> Iterator[Commands]:
    """Commands on the configuration's state folder, which is locked meanwhile.

    Raises StoreError when a daemon has it after all or it cannot be written.
    """
    ledger = Ledger(config.store.path)
    commands = Commands(_Configured(config), None, lambda *_: None)
    commands.open(Parts(_Unmanned(config, ledger)))
    try:
        yield commands
    finally:
        commands.close()
        ledger.close()
