"""Commands on the state folder while no daemon runs: the same code on the same files, without cameras and broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.schema import Config
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.ledger import Ledger
from daemon.presets import load_preset
from daemon.registrar import Registrar
from daemon.teaching import RegistrarTeacher
from model.detector import Detector
from model.features import create_extractor


class _Configured:
    """Recipes and stations as the configuration file has them."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def recipes(self) -> list[str]:
        return [recipe.name for recipe in self._config.recipes]

    def stations(self) -> dict[str, str]:
        return {station.name: station.recipe for station in self._config.stations}


@contextmanager
def open_state(config: Config, config_path: Path) -> Iterator[Commands]:
    """Commands on the configuration's state folder, which is locked meanwhile. Builds are finished at the end.

    Raises StoreError when a daemon has it after all or it cannot be written, ConfigError and ModelError when the model
    cannot be loaded.
    """
    spec = load_preset(config.inference.preset, config_path.resolve().parent)
    store, inference = config.store.path, config.inference
    ledger = Ledger(store)
    try:
        cache = store / "cache"
        detector = Detector(create_extractor(spec, inference.device, inference.threads, cache, inference.runtime), cache)
        registrar = Registrar(store, ledger, detector, inference.bank_rows)
        teacher = RegistrarTeacher(registrar, {recipe.name: recipe for recipe in config.recipes}, lambda *_: None)
        teacher.start({})
        commands = Commands(_Configured(config), None, lambda *_: None)
        commands.open(Parts(teacher))
        try:
            yield commands
        finally:
            commands.close()
            teacher.stop()
    finally:
        ledger.close()
