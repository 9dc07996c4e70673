"""`aprilcam doctor`: whether this machine is fit for a line, and the mend of what is not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from config.errors import ConfigError
from daemon.broker_option import BrokerOption, with_broker
from daemon.checks import load_checked
from daemon.doctor.finding import Report, Situation, Status

DEFAULT_CONFIG = Path("/etc/aprilcam/aprilcam.toml")
PIPED_WIDTH = 200
"""Columns of a table that no terminal shows."""
_STYLE: dict[Status, str] = {"ok": "green", "skipped": "dim", "warn": "yellow", "fail": "bold red"}


def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help=f"The configuration file. [default: {DEFAULT_CONFIG}, if any]"),
    ] = None,
    broker: BrokerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    without: Annotated[list[str] | None, typer.Option(help="Leave a check out, by its name. May be given again.")] = None,
) -> None:
    """Check machine, cameras, network, broker, disk. Exit 1 when something fails, 2 when the configuration cannot be used."""
    # Late: `aprilcam --help` has no need of all that this imports.
    from daemon.doctor.cameras import Cameras
    from daemon.doctor.examination import checks, examine

    situation = _situation(config, broker)
    terminal = Terminal(highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        terminal = Terminal(highlight=False, markup=False, emoji=False, width=PIPED_WIDTH)
    wanted = [check for check in checks(Cameras()) if check.name not in (without or ())]
    if as_json or not terminal.is_terminal:
        report = examine(situation, wanted)
    else:
        with terminal.status("") as status:
            report = examine(situation, wanted, lambda name: status.update(f"looking at: {name}"))
    if as_json:
        rows = [{"check": name, **asdict(finding)} for name, finding in report.findings]
        print(json.dumps({"status": report.worst, "findings": rows}, indent=2))
    else:
        terminal.print(_table(report))
        terminal.print(_summary(report), style=_STYLE[report.worst])
    raise typer.Exit(2 if situation.trouble is not None else 1 if report.worst == "fail" else 0)


def _situation(named: Path | None, broker: str | None) -> Situation:
    path = named if named is not None else DEFAULT_CONFIG
    if named is None and not _is_there(path):
        return Situation()
    try:
        return Situation(config_path=path, config=with_broker(load_checked(path), path, broker))
    except ConfigError as error:
        return Situation(config_path=path, trouble=error)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # its folder may not be looked into, which is to be told


def _table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "check", "found", "mend"):
        table.add_column(column, overflow="fold")
    for name, finding in report.findings:
        table.add_row(Text(finding.status, _STYLE[finding.status]), name, Text(finding.found), Text(finding.mend))
    return table


def _summary(report: Report) -> str:
    found = [finding.status for _, finding in report.findings]
    return ", ".join(f"{found.count(status)} {status}" for status in ("fail", "warn", "skipped", "ok") if status in found)
