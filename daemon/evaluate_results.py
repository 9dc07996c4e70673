"""What an evaluation finds, and the JSON file that keeps it, category by category, so that a later run goes on from there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from config.errors import ResultsError
from model.detector import Mode
from model.evaluation import Ranking, Rates
from model.files import write_whole

FORMAT = 1
"""Raised whenever this code would find or write something else for the same settings."""


@dataclass(frozen=True)
class Setting:
    """One way to judge a category: by which halves of the method, from how many reference shots, drawn by which seed."""

    mode: Mode
    shots: int
    seed: int

    @property
    def group(self) -> tuple[Mode, int]:
        """What the table shows as one, over its seeds."""
        return self.mode, self.shots


@dataclass(frozen=True)
class Run:
    """One setting of one category.

    drawn: names of the reference shots. scores: of each test picture, as the daemon judges.
    image: figures of those scores; published: of the published ones, where the mode knows text. pixel, pro: None where no
    test picture is good or has a mask. threshold: calibrated from the shots alone, and the rates at it; None where the shots
    give none (image_weight is then 0), and `note` says why. ms_per_picture: from pixels to the map, median over batches.
    """

    setting: Setting
    drawn: tuple[str, ...]
    scores: tuple[float, ...]
    image: Ranking
    published: Ranking | None
    pixel: Ranking
    pro: float | None
    image_weight: float
    threshold: float | None
    rates: Rates
    note: str
    ms_per_picture: float


@dataclass(frozen=True)
class CategoryResult:
    """All settings of a category. pictures: the test pictures, under the category's folder; defects: their kinds, None = good."""

    category: str
    pictures: tuple[str, ...]
    defects: tuple[str | None, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class _Document:
    evaluate_format: int
    settings: dict[str, Any]
    categories: dict[str, CategoryResult]


_ADAPTER = TypeAdapter(_Document)


class ResultsFile:
    """The finished categories of one evaluation: whole on disk after every `add`, whenever the process ends.

    Owned by the process that evaluates. Raises ResultsError when the file cannot be written, or when it holds results of
    other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """settings: plain JSON values; everything that shapes the results of a category."""
        self.path = path
        self._settings = settings
        self.finished: dict[str, CategoryResult] = self._read() if path.exists() else {}
        self._write()

    def add(self, result: CategoryResult) -> None:
        self.finished[result.category] = result
        self._write()

    def _read(self) -> dict[str, CategoryResult]:
        mend = "Name another file, or delete this one"
        try:
            stated = json.loads(self.path.read_bytes())
            settings = dict(stated["settings"]) | {"evaluate_format": stated["evaluate_format"]}
        except OSError as error:
            raise ResultsError(f"{self.path}: cannot be read ({error.strerror}). {mend}") from None
        except (ValueError, KeyError, TypeError):
            raise ResultsError(f"{self.path}: expected results of aprilcam evaluate, got something else. {mend}") from None
        ours = self._settings | {"evaluate_format": FORMAT}
        for key in sorted({*ours, *settings}):
            if ours.get(key) != settings.get(key):
                raise ResultsError(
                    f"{self.path}: holds results of another evaluation: expected {key} {ours.get(key)}, got {settings.get(key)}. "
                    f"{mend}, or evaluate with its settings"
                )
        try:
            return _ADAPTER.validate_python(stated).categories
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ResultsError(f"{self.path}: damaged at {where}: {first['msg'].lower()}. {mend}") from None

    def _write(self) -> None:
        document = _Document(FORMAT, self._settings, self.finished)
        try:
            write_whole(self.path, _ADAPTER.dump_json(document, indent=1))
        except OSError as error:
            raise ResultsError(f"{self.path}: cannot be written ({error.strerror}). Name a file in a folder of yours") from None
