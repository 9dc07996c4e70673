"""Marks: what people say of archived results, good or bad, and what follows from it.

The ledger's table `marks` keeps them. A marked result's files are kept from age and quota (the last 200 of a recipe), so
that its pixels can be scored by whatever bank judges then: the threshold is refined by scores of the present bank alone.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from config.errors import ArchiveError, PictureError
from daemon.archive import Archive
from daemon.archive_rows import Archived, keep, let_go
from daemon.ledger import Ledger
from model.calibration import Calibration
from model.files import sync_folder
from model.labelled import Labelled, labelled_threshold

log = logging.getLogger(__name__)

Mark = Literal["good", "bad"]
Pixels = NDArray[np.uint8]
Scorer = Callable[[Pixels], float]
"""The score of a whole frame (H x W, or H x W x 3, RGB; the scorer crops to the region) by the bank that judges. Raises
PictureError for a frame that does not count."""

CREATE = """CREATE TABLE IF NOT EXISTS marks (
    result_id TEXT PRIMARY KEY, recipe TEXT NOT NULL, mark TEXT NOT NULL, marked_by TEXT NOT NULL, marked_ns INTEGER NOT NULL,
    basis TEXT, score REAL
) WITHOUT ROWID"""


@dataclass(frozen=True)
class Marked:
    """A mark; `by`: who set it, in words of theirs."""

    result_id: str
    recipe: str
    mark: Mark
    by: str


class Marks:
    """Owner of the ledger's table `marks`. May be called from any thread."""

    def __init__(self, ledger: Ledger, archive: Archive) -> None:
        self._ledger = ledger
        self._archive = archive
        ledger.call(lambda connection: connection.execute(CREATE)).result()

    def mark(self, result_id: str, mark: Mark | None, *, by: str) -> None:
        """Mark an archived result, or take its mark back (None); durable when this returns.

        Raises ArchiveError when the result is not archived, or its files cannot be made durable.
        """
        if mark is None:
            self._ledger.call(partial(_unmark, result_id=result_id), durable=True).result()
            return
        archived = self._existing(result_id)
        marked = Marked(result_id, archived.recipe, mark, by)
        if not self._ledger.call(partial(_mark, marked=marked), durable=True).result():
            raise _gone(result_id)  # given up since it was looked up
        # Evidence from now on: unlike the rest of the archive it is to outlive a power cut.
        try:
            for path in (archived.picture, archived.map, archived.document):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            sync_folder(archived.folder)
        except OSError as error:
            raise ArchiveError(f"result {result_id}: marked, but its files cannot be made durable ({error})") from None

    def marked(self, recipe: str) -> list[Marked]:
        """The recipe's marks on results whose pixels are there, oldest first."""
        with closing(self._ledger.reader()) as reader:
            return [Marked(*row[:4]) for row in _rows(reader, recipe)]

    def of(self, result_id: str) -> Mark | None:
        """What a result is marked as."""
        with closing(self._ledger.reader()) as reader:
            row: tuple[Mark] | None = reader.execute("SELECT mark FROM marks WHERE result_id = ?", (result_id,)).fetchone()
        return row[0] if row is not None else None

    def labels(self, recipe: str, basis: str, scorer: Scorer) -> tuple[list[float], list[float]]:
        """Scores of the parts marked good, and of those marked bad, by the bank that judges.

        basis: names what the scorer scores by (bank and calibration). Only marks that were not scored by it are, from their
        archived pixels, and each score is kept. Marks whose pixels cannot be read, or do not count, are left out.
        """
        with closing(self._ledger.reader()) as reader:
            rows = _rows(reader, recipe)
        by_mark: dict[Mark, list[float]] = {"good": [], "bad": []}
        for result_id, _, mark, _, scored_by, score in rows:
            if scored_by != basis:
                score = self._score(result_id, scorer)
                self._ledger.call(partial(_keep_score, result_id=result_id, basis=basis, score=score)).result()
            if score is not None:
                by_mark[mark].append(score)
        return by_mark["good"], by_mark["bad"]

    def refine(self, recipe: str, calibration: Calibration, basis: str, scorer: Scorer) -> Labelled | None:
        """What the recipe's marks make of a calibration from shots alone (see `labels`); None without marks that count."""
        good, bad = self.labels(recipe, basis, scorer)
        return labelled_threshold(calibration.threshold, calibration.shot_scores, good, bad) if good or bad else None

    def _score(self, result_id: str, scorer: Scorer) -> float | None:
        try:
            return scorer(self._archive.pixels(result_id))
        except (ArchiveError, PictureError) as error:
            log.warning("mark of result %s is left out: %s", result_id, error)
            return None

    def _existing(self, result_id: str) -> Archived:
        archived = self._archive.find(result_id)
        if archived is None:
            raise _gone(result_id)
        return archived


def _gone(result_id: str) -> ArchiveError:
    return ArchiveError(
        f"result {result_id}: not in the archive (never kept, or given up since), so nobody can look at it. Mark another"
    )


def _mark(connection: sqlite3.Connection, *, marked: Marked) -> bool:
    """Whether the result was still archived; in one transaction with giving up, so that it cannot be given up after."""
    if connection.execute("SELECT 1 FROM archived WHERE result_id = ?", (marked.result_id,)).fetchone() is None:
        return False
    connection.execute(
        "INSERT INTO marks VALUES (?, ?, ?, ?, ?, NULL, NULL)"
        " ON CONFLICT DO UPDATE SET mark = excluded.mark, marked_by = excluded.marked_by, marked_ns = excluded.marked_ns",
        (marked.result_id, marked.recipe, marked.mark, marked.by, time.time_ns()),
    )
    keep(connection, marked.result_id)
    return True


def _unmark(connection: sqlite3.Connection, *, result_id: str) -> None:
    connection.execute("DELETE FROM marks WHERE result_id = ?", (result_id,))
    let_go(connection, result_id)


def forget_marks(connection: sqlite3.Connection, recipe: str) -> None:
    """The recipe is deleted: its results are evidence of nothing any more."""
    connection.execute(CREATE)
    for (result_id,) in connection.execute("SELECT result_id FROM marks WHERE recipe = ?", (recipe,)).fetchall():
        _unmark(connection, result_id=result_id)


def _rows(reader: sqlite3.Connection, recipe: str) -> list[tuple[str, str, Mark, str, str | None, float | None]]:
    """(result_id, recipe, mark, by, basis, score) of marks whose files are kept."""
    return reader.execute(
        "SELECT result_id, marks.recipe, mark, marked_by, basis, marks.score FROM marks JOIN archived USING (result_id)"
        " WHERE marks.recipe = ? AND rank = 2 ORDER BY marked_ns, result_id",
        (recipe,),
    ).fetchall()


def _keep_score(connection: sqlite3.Connection, *, result_id: str, basis: str, score: float | None) -> None:
    connection.execute("UPDATE marks SET basis = ?, score = ? WHERE result_id = ?", (basis, score, result_id))
