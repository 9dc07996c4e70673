"""What commands ask of the parts that do the work (`daemon.commands`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from daemon.archive_rows import Archived, Selection
from daemon.marks import Mark
from daemon.part import Identity
from daemon.recipes import Recipes
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

    def size(self, station: str) -> tuple[int, int] | None:
        """(width, height) of the newest frame, None before the first."""

    def last(self, station: str) -> Pixels | None:
        """The newest frame, None before the first."""

    def next(self, station: str, timeout_s: float) -> Pixels | None:
        """The next frame to arrive, None when none comes in time."""


class Archive(Protocol):
    """Pictures of past results."""

    def latest(self, selection: Selection, limit: int) -> Sequence[tuple[Archived, Mark | None]]:
        """Those that are kept, newest first, with their marks. Raises ArchiveError when the one to follow is not kept."""

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


class Lines(Protocol):
    """The stations' parts, as they come."""

    def trigger(self, station: str, identity: Identity) -> None:
        """Take a part's frames now; its result follows. Raises TriggerError when the camera does not take the trigger."""

    def identify(self, station: str, identity: Identity) -> bool:
        """Name a part: True for one that had come already, False for the next."""


@dataclass(frozen=True)
class Parts:
    """What does the work. Commands of a part that is None are refused."""

    teacher: Teacher
    recipes: Recipes
    archive: Archive | None = None
    lines: Lines | None = None
