"""The ledger: one SQLite file that holds the truth (results, outbox, shots, banks).

One thread owns the only writing connection. A result gets its sequence, its record and its outbox messages in one
transaction before anybody hears of it. `synchronous=NORMAL` in WAL mode: a killed daemon loses nothing; after a power cut
the last moments may be missing. Shots and banks are committed with `synchronous=FULL`.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from config.errors import StoreError
from connectors.contract import ResultOut
from daemon.outbox import Message, delete_acknowledged, prepare_outbox, put_in_outbox
from daemon.outbox_bounds import OutboxBounds

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_S = 10.0
"""How long an answer waits for the ledger's disk."""
BATCH = 256
"""What is committed at once, at most."""
LINGER_S = 0.02
"""How long acknowledged messages wait for something else to be committed, so that they cost no transaction of their own."""
FORGET_AT_ONCE = 500
"""Results removed in one transaction: others wait for the ledger's thread meanwhile."""
SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE results (
    station TEXT NOT NULL, sequence INTEGER NOT NULL, result_id TEXT NOT NULL UNIQUE, created_ns INTEGER NOT NULL,
    recipe TEXT NOT NULL, bank TEXT, verdict TEXT NOT NULL, reason TEXT, score REAL, threshold REAL, document BLOB NOT NULL,
    PRIMARY KEY (station, sequence)
) WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, enqueued_ns INTEGER NOT NULL
);
CREATE TABLE shots (
    recipe TEXT NOT NULL, shot TEXT NOT NULL, file TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    registered_ns INTEGER NOT NULL, PRIMARY KEY (recipe, shot)
);
CREATE TABLE banks (
    recipe TEXT NOT NULL, bank TEXT NOT NULL, calibration TEXT NOT NULL, built_ns INTEGER NOT NULL,
    PRIMARY KEY (recipe, bank)
);
CREATE TABLE current_banks (
    recipe TEXT PRIMARY KEY, bank TEXT NOT NULL, rolled_back INTEGER NOT NULL
);
CREATE TABLE not_shots (
    recipe TEXT NOT NULL, shot TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (recipe, shot)
);
"""


@dataclass(frozen=True)
class Record:
    """A result with its sequence, its JSON, and its messages in the order in which they are to be published."""

    result: ResultOut
    document: bytes
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Entry:
    """A judged frame on its way into the ledger; `complete` gets the sequence and makes the record."""

    station: str
    complete: Callable[[int], Record]


@dataclass(frozen=True)
class Shot:
    """A registered reference shot; `file` is relative to the recipe's shots folder."""

    recipe: str
    shot: str
    file: str
    width: int
    height: int


@dataclass(frozen=True)
class _Call:
    run: Callable[[sqlite3.Connection], object]
    future: "Future[object]"
    durable: bool


@dataclass(frozen=True)
class _Written:
    """What one transaction did. `bounded`: of OutboxBounds.enforce."""

    results: list[ResultOut]
    answers: list[tuple[_Call, object]]
    bounded: tuple[bool, Callable[[], None]] | None


class Ledger:
    """Owner of the ledger file. `submit` and `acknowledge` return at once; `call` gives a future."""

    def __init__(
        self,
        folder: Path,
        on_committed: Callable[[list[ResultOut]], None] = lambda _: None,
        bounds: OutboxBounds | None = None,
    ) -> None:
        """Open or create `folder`/ledger.sqlite3. `bounds`: of what waits for the broker; None has no end.

        Raises StoreError when it cannot be written, is of another version, or another daemon has it.
        """
        self.path = folder / "ledger.sqlite3"
        self._on_committed = on_committed
        self._bounds = bounds
        self._work: queue.SimpleQueue[Entry | _Call | int | None] = queue.SimpleQueue()
        self.last_progress_s = time.monotonic()
        self.failing = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            try:
                self._connection = self._open()
            except BaseException:
                self._lock.close()
                raise
        except (OSError, sqlite3.Error) as error:
            mend = "Give the daemon's user write access to it, or set [store] path to a folder it may write"
            raise StoreError(f"state folder {folder}: cannot be written ({error}). {mend}.") from None
        self._sequences = _newest(self._connection)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def _open(self) -> sqlite3.Connection:
        # isolation_level=None: transactions are begun by us. The thread check is off because opening and closing happen
        # on the caller's thread, everything between on the ledger's.
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        if version in (0, SCHEMA_VERSION):
            prepare_outbox(connection)
        connection.execute("COMMIT")
        if version not in (0, SCHEMA_VERSION):
            connection.close()
            mend = "Use the aprilcam release that wrote it, or another [store] path"
            raise StoreError(f"{self.path}: made by ledger version {version}, this daemon needs {SCHEMA_VERSION}. {mend}.")
        return connection

    def submit(self, entries: Iterable[Entry]) -> None:
        """Commit these, in this order, soon."""
        for entry in entries:
            self._work.put(entry)

    def acknowledge(self, outbox_id: int) -> None:
        """The broker has this message: it leaves the outbox with the next transaction, LINGER_S from now at the latest."""
        self._work.put(outbox_id)

    def call(self, run: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> "Future[T]":
        """Run on the ledger's thread in a transaction; `durable` waits for the disk."""
        future: Future[T] = Future()
        self._work.put(_Call(run, future, durable))  # type: ignore[arg-type]
        return future

    def ask(self, run: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """`call` and wait for it.

        Raises StoreError when the disk takes no commit: at once for what is to be durable, else after 10 s.
        """
        if durable and self.failing:
            raise StoreError(f"{self.path}: takes no commit, its disk is full or failing. Free space and try again.")
        try:
            return self.call(run, durable=durable).result(ANSWER_S)
        except FutureTimeout:
            raise StoreError(
                f"{self.path}: no commit within {ANSWER_S:g} s, its disk is full or failing. Free space and try again; "
                f"it may still take what was asked for."
            ) from None

    def publish(self, messages: Sequence[Message]) -> "Future[None]":
        """Put messages that belong to no result into the outbox."""
        return self.call(lambda connection: put_in_outbox(connection, messages))

    def forget_results(self, before_ns: int) -> "Future[int]":
        """Remove results that were made before that moment (ns since 1970), oldest first, at most FORGET_AT_ONCE; how many.

        The newest of each station stays: the next one's sequence follows it.
        """

        def forget(connection: sqlite3.Connection) -> int:
            gone = 0
            for station, newest in self._sequences.items():
                rows = connection.execute(
                    "SELECT sequence, created_ns FROM results WHERE station = ? AND sequence < ? ORDER BY sequence LIMIT ?",
                    (station, newest, FORGET_AT_ONCE - gone),
                ).fetchall()
                old = list(itertools.takewhile(lambda row: row[1] < before_ns, rows))
                if old:
                    delete = "DELETE FROM results WHERE station = ? AND sequence <= ?"
                    gone += connection.execute(delete, (station, old[-1][0])).rowcount
            return gone

        return self.call(forget)

    def reader(self) -> sqlite3.Connection:
        """A read-only connection for the calling thread, which closes it."""
        return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None)

    def close(self) -> None:
        """Commit what was submitted and close the file."""
        self._work.put(None)
        self._thread.join()
        self._connection.close()
        self._lock.close()

    def _run(self) -> None:
        stopping = False
        acknowledged: list[int] = []
        since_s = 0.0
        while not stopping:
            self.last_progress_s = time.monotonic()
            batch: list[Entry | _Call] = []
            item: Entry | _Call | int | None = None
            with contextlib.suppress(queue.Empty):
                item = self._work.get(timeout=LINGER_S if acknowledged else 1.0)
                while True:
                    if item is None:
                        stopping = True
                    elif isinstance(item, int):
                        since_s = since_s if acknowledged else time.monotonic()
                        acknowledged.append(item)
                    else:
                        batch.append(item)
                    if len(batch) + len(acknowledged) >= BATCH:
                        break
                    item = self._work.get_nowait()
            overdue = acknowledged and time.monotonic() - since_s >= LINGER_S
            if batch or overdue or stopping or len(acknowledged) >= BATCH:
                self._commit(batch, acknowledged)
                acknowledged = []
            del item, batch  # while this waits for work, nothing is to hold the last frame

    def _commit(self, batch: list[Entry | _Call], acknowledged: list[int]) -> None:
        """One transaction for the batch. A disk that is full or failing is tried again until it works: an accepted result
        is never dropped, and none is published before it is committed."""
        delay_s = 0.1
        while True:
            try:
                written = self._write(batch, acknowledged)
                break
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if not self.failing:
                    log.error("ledger %s: cannot commit (%s); trying again until it works", self.path, error)  # noqa: TRY400
                self.failing = True
                self.last_progress_s = time.monotonic()  # waiting for the disk is not being stuck
                time.sleep(delay_s)
                delay_s = min(delay_s * 2, 2.0)
        if self.failing:
            self.failing = False
            log.warning("ledger %s: commits work again", self.path)
        for call, answer in written.answers:
            if isinstance(answer, BaseException):
                call.future.set_exception(answer)
            else:
                call.future.set_result(answer)
        try:
            if written.results:
                self._on_committed(written.results)
            if written.bounded is not None:
                more, committed = written.bounded
                committed()
                if more:
                    self.call(lambda _: None)  # the next transaction gives up the next ones; others come in between
        except Exception:  # they are committed; who is told of them must not end the ledger
            log.exception("committed results could not be told")

    def _write(self, batch: list[Entry | _Call], acknowledged: list[int]) -> _Written:
        durable = any(isinstance(item, _Call) and item.durable for item in batch)
        connection = self._connection
        if durable:
            connection.execute("PRAGMA synchronous=FULL")
        sequences = dict(self._sequences)
        results: list[ResultOut] = []
        answers: list[tuple[_Call, object]] = []
        connection.execute("BEGIN IMMEDIATE")
        if acknowledged:
            delete_acknowledged(connection, acknowledged)
        for item in batch:
            match item:
                case Entry():
                    sequence = sequences.get(item.station, 0) + 1
                    record = item.complete(sequence)
                    self._insert(record)
                    sequences[item.station] = sequence
                    results.append(record.result)
                case _Call():
                    connection.execute("SAVEPOINT call")
                    try:
                        answers.append((item, item.run(connection)))
                    except Exception as error:
                        connection.execute("ROLLBACK TO call")
                        answers.append((item, error))
                    connection.execute("RELEASE call")
        bounded = self._bounds.enforce(connection) if self._bounds is not None and batch else None
        connection.execute("COMMIT")
        if durable:
            connection.execute("PRAGMA synchronous=NORMAL")
        self._sequences = sequences
        return _Written(results, answers, bounded)

    def _insert(self, record: Record) -> None:
        result = record.result
        self._connection.execute(
            "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                result.station, result.sequence, result.result_id, int(result.created_at.timestamp() * 1e9), result.recipe,
                result.bank, result.verdict, result.reason, result.score, result.threshold, record.document,
            ),
        )  # fmt: skip
        put_in_outbox(self._connection, record.messages)


def _lock(folder: Path) -> TextIO:
    """The folder belongs to one daemon: two would number results twice. The lock goes with the process, however it ends."""
    file = (folder / "lock").open("a+")
    for attempt in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            # The command line looks at the lock for a moment, to learn whether a daemon runs.
            if attempt < 9:
                time.sleep(0.02)
    else:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        mend = "Stop it, or give this one another [store] path"
        raise StoreError(f"state folder {folder}: another aprilcam (process {owner}) uses it. {mend}.") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _newest(connection: sqlite3.Connection) -> dict[str, int]:
    """Each station's last sequence, by its key alone: millions of results are not read at a start."""
    found: dict[str, int] = {}
    station = ""
    while row := connection.execute(
        "SELECT station FROM results WHERE station > ? ORDER BY station LIMIT 1", (station,)
    ).fetchone():
        station = str(row[0])
        found[station] = int(connection.execute("SELECT max(sequence) FROM results WHERE station = ?", (station,)).fetchone()[0])
    return found


def last_document(reader: sqlite3.Connection, station: str) -> bytes | None:
    """The newest result's JSON of a station."""
    row = reader.execute("SELECT document FROM results WHERE station = ? ORDER BY sequence DESC LIMIT 1", (station,)).fetchone()
    return bytes(row[0]) if row else None
