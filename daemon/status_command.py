"""`aprilcam status`: how the running daemon is, as a table or as JSON."""

import json
import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal

from config.errors import CommandError, ConfigError
from config.schema import HttpConfig, load_config
from daemon.client import Client
from daemon.station_table import station_table

READY, NOT_READY = 0, 1
PIPED_WIDTH = 200


def show_status(config_path: Path, *, as_json: bool) -> int:
    """Print it. 0: every station gives verdicts; 1: one does not. Raises CommandError where no daemon answers, ConfigError."""
    http = _http(config_path)
    if http.port == 0:
        raise CommandError("refused", f"{config_path}: [http] port is 0, expected a fixed one to find the running daemon by")
    told = Client(http, None).status()
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        _print(told)
    return READY if told["ready"] else NOT_READY


def _http(path: Path) -> HttpConfig:
    """Where the daemon listens, also by a file that has been spoilt elsewhere since: then its refusal is to be seen."""
    try:
        return load_config(path).http
    except ConfigError:
        try:
            return HttpConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")).get("http", {}))
        except (OSError, ValueError):
            pass
        raise


def _print(told: dict[str, Any]) -> None:
    terminal = Terminal(highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        terminal.width = PIPED_WIDTH
    stations = [{"station": name, **view} for name, view in told["stations"].items()]
    if told["trouble"]:
        terminal.print(told["trouble"], style="bold red")
    terminal.print("ready" if told["ready"] else "not ready", style="bold green" if told["ready"] else "bold yellow")
    terminal.print(station_table(stations))
    for view in stations:
        for note in filter(None, (view["reason"], view["advice"])):
            terminal.print(f"{view['station']}: {note}", style="yellow")
    broker, file = told["broker"], told["configuration"]
    terminal.print(f"{'ledger':<15}{told['ledger']}")
    terminal.print(f"{'broker':<15}{'connected' if broker['connected'] else broker['trouble']}")
    terminal.print(f"{'configuration':<15}{file['file']}: {file['status'].replace('_', ' ')}, read at {file['read_at']}")
    for problem in file["problems"]:
        terminal.print(f"{'':<15}{problem}", style="bold red")
    if file["needs_restart"]:
        terminal.print(f"{'':<15}needs a restart: {', '.join(file['needs_restart'])}", style="yellow")
    for warning in told["warnings"]:
        terminal.print(warning, style="yellow")
