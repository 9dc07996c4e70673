"""The ledger's table `archived`: which results are kept as files, and in which order they are given up."""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from config.errors import ArchiveError
from connectors.contract import ResultOut, Verdict

MARKED_KEPT = 200
"""So many marked results of a recipe are kept from age and quota, those marked last; older marks lose that."""

# rank: in this order they are given up; within a rank the oldest first. The table is added to ledgers that lack it.
_OTHER, _FAIL, _MARKED = 0, 1, 2
CREATE = (
    """CREATE TABLE IF NOT EXISTS archived (
    result_id TEXT PRIMARY KEY, station TEXT NOT NULL, recipe TEXT NOT NULL, bank TEXT, verdict TEXT NOT NULL, reason TEXT,
    score REAL, threshold REAL, created_ns INTEGER NOT NULL, folder TEXT NOT NULL, files INTEGER NOT NULL,
    bytes INTEGER NOT NULL, rank INTEGER NOT NULL, kept_ns INTEGER
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS archived_order ON archived (rank, created_ns)",
    "CREATE INDEX IF NOT EXISTS archived_time ON archived (created_ns)",
    "CREATE INDEX IF NOT EXISTS archived_folder ON archived (folder)",
    # Each in the order in which results are listed.
    "CREATE INDEX IF NOT EXISTS archived_station ON archived (station, created_ns)",
    "CREATE INDEX IF NOT EXISTS archived_recipe ON archived (recipe, created_ns)",
    "CREATE INDEX IF NOT EXISTS archived_verdict ON archived (verdict, created_ns)",
    "CREATE INDEX IF NOT EXISTS archived_kept ON archived (recipe, kept_ns) WHERE rank = 2",
)
AT_ONCE = 64
"""Rows given up in one transaction: results wait for the ledger's thread meanwhile."""


@dataclass(frozen=True)
class Archived:
    """A result that is kept: `folder` holds its files, `<result_id>.png`, `.map.png` (where maps are kept) and `.json`."""

    result_id: str
    station: str
    recipe: str
    bank: str | None
    verdict: Verdict
    reason: str | None
    score: float | None
    threshold: float | None
    created_at: datetime
    folder: Path
    bytes: int
    kept: bool
    """Marked, and therefore kept from age and quota."""

    @property
    def picture(self) -> Path:
        """The frame's original pixels."""
        return self.folder / f"{self.result_id}.png"

    @property
    def map(self) -> Path:
        """The anomaly map; there is no such file for unknowns, and where maps are not kept."""
        return self.folder / f"{self.result_id}.map.png"

    @property
    def document(self) -> Path:
        """The result, and how to read the map."""
        return self.folder / f"{self.result_id}.json"


@dataclass(frozen=True)
class Selection:
    """Which archived results are meant: those for which all holds that is not None."""

    station: str | None = None
    recipe: str | None = None
    verdict: Verdict | None = None
    since: datetime | None = None
    """Made at this moment or later; aware."""
    until: datetime | None = None
    """Made before this moment; aware."""
    before: str | None = None
    """A result_id: those that follow it, newest first, and so the next page."""


EVERY = Selection()


@dataclass(frozen=True)
class StoredSet:
    """What giving a result up needs to know."""

    result_id: str
    folder: str
    files: int
    bytes: int


def insert(connection: sqlite3.Connection, *, result: ResultOut, folder: str, size: int, files: int) -> None:
    """The files of a result are there."""
    rank = _FAIL if result.verdict == "fail" else _OTHER
    connection.execute(
        "INSERT OR REPLACE INTO archived VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            result.result_id, result.station, result.recipe, result.bank, result.verdict, result.reason, result.score,
            result.threshold, _ns(result.created_at), folder, files, size, rank,
        ),
    )  # fmt: skip


def keep(connection: sqlite3.Connection, result_id: str) -> None:
    """Keep a result from age and quota; of its recipe only the last MARKED_KEPT stay so."""
    connection.execute("UPDATE archived SET rank = 2, kept_ns = ? WHERE result_id = ?", (time.time_ns(), result_id))
    connection.execute(
        "UPDATE archived SET rank = (verdict = 'fail'), kept_ns = NULL WHERE result_id IN (SELECT result_id FROM archived"
        " WHERE recipe = (SELECT recipe FROM archived WHERE result_id = ?) AND rank = 2"
        " ORDER BY kept_ns DESC LIMIT -1 OFFSET ?)",
        (result_id, MARKED_KEPT),
    )


def let_go(connection: sqlite3.Connection, result_id: str) -> None:
    """Back to where its verdict puts it."""
    connection.execute("UPDATE archived SET rank = (verdict = 'fail'), kept_ns = NULL WHERE result_id = ?", (result_id,))


def take_oldest(connection: sqlite3.Connection, *, enough: int) -> list[StoredSet]:
    """Remove the rows to be given up next, until they hold `enough` bytes; at most 64. Marked ones are not among them."""
    rows = connection.execute(
        "SELECT result_id, folder, files, bytes FROM archived WHERE rank < 2 ORDER BY rank, created_ns LIMIT ?", (AT_ONCE,)
    )
    taken: list[StoredSet] = []
    for row in rows:
        taken.append(StoredSet(*row))
        enough -= taken[-1].bytes
        if enough <= 0:
            break
    drop(connection, result_ids=[stored.result_id for stored in taken])
    return taken


def take_older(connection: sqlite3.Connection, *, before_ns: int) -> list[StoredSet]:
    """Remove rows made before a moment (ns since 1970), at most 64. Marked ones are not among them."""
    rows = connection.execute(
        "SELECT result_id, folder, files, bytes FROM archived WHERE rank IN (0, 1) AND created_ns < ? LIMIT ?",
        (before_ns, AT_ONCE),
    )
    taken = [StoredSet(*row) for row in rows]
    drop(connection, result_ids=[stored.result_id for stored in taken])
    return taken


def drop(connection: sqlite3.Connection, *, result_ids: Sequence[str]) -> None:
    """Remove these rows."""
    connection.executemany("DELETE FROM archived WHERE result_id = ?", [(result_id,) for result_id in result_ids])


def in_folder(reader: sqlite3.Connection, folder: str) -> dict[str, StoredSet]:
    """The rows of one folder, by result_id."""
    rows = reader.execute("SELECT result_id, folder, files, bytes FROM archived WHERE folder = ?", (folder,))
    return {str(row[0]): StoredSet(*row) for row in rows}


_COLUMNS = "result_id, station, recipe, bank, verdict, reason, score, threshold, created_ns, folder, bytes, rank"


def find(reader: sqlite3.Connection, root: Path, result_id: str) -> Archived | None:
    """One archived result; `root`: the archive's folder."""
    row = reader.execute(f"SELECT {_COLUMNS} FROM archived WHERE result_id = ?", (result_id,)).fetchone()  # noqa: S608
    return _archived(root, row) if row else None


def latest(reader: sqlite3.Connection, root: Path, selection: Selection, limit: int) -> list[Archived]:
    """The newest first. Raises ArchiveError when the result that they are to follow is not there."""
    query, values = listing(reader, selection)
    return [_archived(root, row) for row in reader.execute(query, (*values, limit))]


def listing(reader: sqlite3.Connection, selection: Selection) -> tuple[str, list[str | int]]:
    """(SQL, its values but the last, which is how many at most). Raises ArchiveError as `latest` does."""
    # Only what is asked for stands in the query, so that its index serves it.
    conditions: list[tuple[str, tuple[str | int, ...]]] = [
        (f"{column} = ?", (value,))
        for column, value in (("station", selection.station), ("recipe", selection.recipe), ("verdict", selection.verdict))
        if value is not None
    ]
    if selection.since is not None:
        conditions.append(("created_ns >= ?", (_ns(selection.since),)))
    if selection.until is not None:
        conditions.append(("created_ns < ?", (_ns(selection.until),)))
    if selection.before is not None:
        row = reader.execute("SELECT created_ns FROM archived WHERE result_id = ?", (selection.before,)).fetchone()
        if row is None:
            raise ArchiveError(f"no result {selection.before!r} is archived (any more). Begin again without `before`")
        conditions.append(("(created_ns, result_id) < (?, ?)", (row[0], selection.before)))
    where = " AND ".join(condition for condition, _ in conditions) or "true"
    query = f"SELECT {_COLUMNS} FROM archived WHERE {where} ORDER BY created_ns DESC, result_id DESC LIMIT ?"  # noqa: S608
    return query, [value for _, values in conditions for value in values]


def _ns(moment: datetime) -> int:
    """Since 1970; what SQLite cannot hold (before 1677, after 2262) becomes the nearest that it can."""
    return max(-(2**63), min(2**63 - 1, int(moment.timestamp() * 1e9)))


def _archived(root: Path, row: tuple[Any, ...]) -> Archived:
    names = ("result_id", "station", "recipe", "bank", "verdict", "reason", "score", "threshold")
    created_ns, folder, size, rank = row[len(names) :]
    return Archived(
        **dict(zip(names, row, strict=False)),
        created_at=datetime.fromtimestamp(created_ns / 1e9, UTC),
        folder=root / folder,
        bytes=size,
        kept=rank == _MARKED,
    )
