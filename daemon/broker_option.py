"""The option --broker, of commands that look at a configuration whose broker may be another."""

from pathlib import Path
from typing import Annotated

import typer

from config.errors import ConfigError, Problem
from config.schema import Config

BrokerOption = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Use this broker, not [mqtt] host and port.")]


def with_broker(loaded: Config, path: Path, broker: str | None) -> Config:
    """The configuration of that file, with the broker of the option, if any. Raises ConfigError."""
    if broker is None:
        return loaded
    host, _, port = broker.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(path, [Problem("--broker", f"{broker!r} is not HOST:PORT", "Write for example 127.0.0.1:1883")])
    return loaded.model_copy(update={"mqtt": loaded.mqtt.model_copy(update={"host": host, "port": int(port)})})
