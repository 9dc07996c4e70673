"""`aprilcam cameras`: what cameras can be seen, and the features of one. No configuration and no daemon is needed."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console as Terminal
from rich.table import Table

from config.errors import CameraError
from connectors.cameras.aravis_nodes import features_by_aravis, seen_by_aravis
from connectors.cameras.seen import Feature, SeenCamera

PIPED_WIDTH = 200
"""Columns of a table that no terminal shows."""
COLUMNS = ("driver", "serial", "name", "model", "address", "access")


def list_cameras(*, as_json: bool) -> int:
    """Print every camera that pylon or aravis sees; what keeps one of them from looking is a note. The exit code, 0."""
    cameras, notes = _look()
    terminal = _terminal()
    if as_json:
        print(json.dumps({"cameras": [asdict(camera) for camera in cameras], "notes": notes}, indent=2))
        return 0
    if cameras:
        terminal.print(_table(COLUMNS, [tuple(asdict(camera)[column] for column in COLUMNS) for camera in cameras]))
    else:
        terminal.print("No camera is seen. Check power, cable, and that its address is in a subnet of this computer")
    for note in notes:
        terminal.print(f"note: {note}", style="dim")
    return 0


def list_features(serial: str, *, as_json: bool) -> int:
    """Print the features of the camera with this serial number, 0. Raises CameraError when nobody sees it, or it is taken."""
    features = _features(serial)
    if as_json:
        print(json.dumps({"serial": serial, "features": [asdict(feature) for feature in features]}, indent=2))
        return 0
    rows = [(row.name, row.value, "" if row.writable else "read only", row.takes) for row in features]
    _terminal().print(_table(("feature", "value", "", "takes"), rows))
    return 0


def _look() -> tuple[list[SeenCamera], list[str]]:
    from connectors.cameras.pylon_nodes import seen_by_pylon

    cameras: list[SeenCamera] = []
    notes: list[str] = []
    drivers: tuple[Callable[[], Iterable[SeenCamera]], ...] = (seen_by_pylon, seen_by_aravis)
    for seen in drivers:
        try:
            cameras += seen()
        except CameraError as error:
            notes.append(str(error))
    return cameras, notes


def _features(serial: str) -> list[Feature]:
    from connectors.cameras.pylon_nodes import features_by_pylon

    notes = ""
    # pylon first: what both see is a Basler camera, and that is its maker's library.
    for read in (features_by_pylon, features_by_aravis):
        try:
            features = read(serial)
        except CameraError as error:
            if read is features_by_pylon:
                raise
            features, notes = None, f". aravis was not asked: {error}"
        if features is not None:
            return features
    raise CameraError(f"No camera with serial {serial} is seen. `aprilcam cameras` lists those that are{notes}")


def _terminal() -> Terminal:
    terminal = Terminal(highlight=False, markup=False, emoji=False, soft_wrap=True)
    return terminal if terminal.is_terminal else Terminal(highlight=False, markup=False, emoji=False, width=PIPED_WIDTH)


def _table(columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
