"""What commands ask of the parts that do the work (`daemon.commands`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config.schema import Region
from connectors.contract import Verdict
from daemon.archive_rows import Archived
from daemon.marks import Mark
from daemon.teacher import Teacher

Pixels = NDArray[np.uint8]


class Plant(Protocol):
    """Which recipes and stations there are now."""

    def recipes(self) -> Sequence[str]:
        """Names."""

    def stations(self) -> Mapping[str, str]:
        """Each station's recipe."""


class Frames(Protocol):
    """Where frames of a station come from: `daemon.frames.NewestFrames`."""

    def last(self, station: str) -> Pixels | None:
        """The newest frame, None before the first."""

    def next(self, station: str, timeout_s: float) -> Pixels | None:
        """The next frame to arrive, None when none comes in time."""


class Recipes(Protocol):
    """Recipes made at run time."""

    def create(self, recipe: str, *, object: str, mode: str | None, region: Region | None) -> None:
        """Make a recipe."""

    def copy(self, recipe: str, to: str) -> None:
        """With settings and shots."""

    def select(self, station: str, recipe: str) -> None:
        """Returns once the station's next frame will be judged by it."""

    def delete(self, recipe: str) -> None:
        """Remove a recipe that no station has."""

    def export(self, recipe: str) -> bytes:
        """As one file."""

    def import_(self, file: bytes, recipe: str | None) -> str:
        """The name under which it was taken in."""

    def set_threshold(self, recipe: str, *, threshold: float | None, factor: float | None) -> float | None:
        """The threshold in force."""


class Archive(Protocol):
    """Pictures of past results."""

    def latest(self, station: str | None, verdict: Verdict | None, limit: int) -> Sequence[tuple[Archived, Mark | None]]:
        """Those that are kept, newest first, with their marks."""

    def place(self, archived: Archived) -> str:
        """Its picture's path in the state folder."""

    def picture(self, result_id: str) -> bytes | None:
        """The picture file of a result, None when it is not kept."""

    def recipe_of(self, result_id: str) -> str | None:
        """The recipe by which it was judged."""

    def marked(self, result_id: str) -> Mark | None:
        """What it was marked as."""

    def mark(self, result_id: str, verdict: Mark | None) -> bool:
        """None takes a mark back. False when the result is not archived."""


@dataclass(frozen=True)
class Parts:
    """What does the work. Commands of a part that is None are refused."""

    teacher: Teacher
    recipes: Recipes | None = None
    archive: Archive | None = None
