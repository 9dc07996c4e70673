"""Stations as a table for people: at the start of `aprilcam run`, and by `aprilcam status`."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

STATES = {
    "ContinuousExecution": ("running", "green"),
    "Halted": ("at its end", "green"),
    "Preoperational": ("no camera", "yellow"),
}


def station_table(views: Iterable[Mapping[str, Any]]) -> Table:
    """views: the fields of `daemon.line.StationView`."""
    table = Table(
        title="stations",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("station", "", "camera", "recipe", "shots", "judged by", "threshold"):
        table.add_column(column, justify="right" if column in ("shots", "threshold") else "left", overflow="fold")
    for view in views:
        word, style = STATES.get(view["state"], (view["state"], "yellow"))
        threshold = "-" if view["threshold"] is None else f"{view['threshold']:.4f}"
        shots = str(view["shots"] or "-")
        state = Text(word, style)
        table.add_row(view["station"], state, view["camera"], view["recipe"], shots, _judged_by(view), threshold)
    return table


def _judged_by(view: Mapping[str, Any]) -> str:
    if view["mode"] is None:
        return "-"
    bank = f"bank {view['bank']}"
    return {"few_shot": bank, "zero_shot": "words alone", "both": f"words, {bank}"}[view["mode"]]
