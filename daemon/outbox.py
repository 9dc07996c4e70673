"""The outbox: what waits in the ledger for the broker's acknowledgement, and what of it had to be given up.

Functions that take the writing connection run on the ledger's thread, inside its transaction.
"""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

What = Literal["mask", "polygons", "result", "event", "state", "last", "overlay", "reply", "other"]
"""What was given up. other: what was refused after it had left, a retained message or a reply."""
LossReason = Literal["too_large", "outbox_full", "too_old", "refused"]
"""too_large: for the broker. outbox_full, too_old: past `outbox_max_bytes`, `outbox_max_age_h`. refused: by the broker."""

SCHEMA = (
    # Kept by triggers: right after every commit, whoever wrote, and never counted row by row but the first time.
    "CREATE TABLE IF NOT EXISTS outbox_totals (rows INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    """INSERT INTO outbox_totals SELECT (SELECT count(*) FROM outbox),
    (SELECT coalesce(sum(length(topic) + length(payload)), 0) FROM outbox) WHERE NOT EXISTS (SELECT * FROM outbox_totals)""",
    """CREATE TRIGGER IF NOT EXISTS outbox_in AFTER INSERT ON outbox BEGIN
    UPDATE outbox_totals SET rows = rows + 1, bytes = bytes + length(new.topic) + length(new.payload); END""",
    """CREATE TRIGGER IF NOT EXISTS outbox_out AFTER DELETE ON outbox BEGIN
    UPDATE outbox_totals SET rows = rows - 1, bytes = bytes - length(old.topic) - length(old.payload); END""",
    """CREATE TRIGGER IF NOT EXISTS outbox_changed AFTER UPDATE OF payload ON outbox BEGIN
    UPDATE outbox_totals SET bytes = bytes + length(new.payload) - length(old.payload); END""",
    """CREATE TABLE IF NOT EXISTS outbox_losses (
    station TEXT NOT NULL, what TEXT NOT NULL, reason TEXT NOT NULL, messages INTEGER NOT NULL, first_sequence INTEGER,
    last_sequence INTEGER, PRIMARY KEY (station, what, reason)
) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class Message:
    """One message to publish."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class OutboxRow:
    """A message waiting for the broker's acknowledgement."""

    id: int
    topic: str
    payload: bytes
    enqueued_ns: int


@dataclass(frozen=True)
class OutboxTotals:
    """How much waits. `bytes`: topics and payloads. `oldest_ns`: since 1970, None when nothing waits."""

    rows: int
    bytes: int
    oldest_ns: int | None


@dataclass(frozen=True)
class Loss:
    """Something of a station that was given up; `sequence` where it belongs to a result that is known."""

    station: str
    what: What
    reason: LossReason
    sequence: int | None = None


def prepare_outbox(connection: sqlite3.Connection) -> None:
    """Make what is not there yet."""
    for statement in SCHEMA:
        connection.execute(statement)


def put_in_outbox(connection: sqlite3.Connection, messages: Sequence[Message]) -> None:
    """Behind what is there, in this order."""
    now_ns = time.time_ns()
    connection.executemany(
        "INSERT INTO outbox (topic, payload, enqueued_ns) VALUES (?, ?, ?)",
        [(message.topic, message.payload, now_ns) for message in messages],
    )


def outbox_after(reader: sqlite3.Connection, outbox_id: int, limit: int) -> list[OutboxRow]:
    """The next messages to publish, oldest first."""
    rows = reader.execute(
        "SELECT id, topic, payload, enqueued_ns FROM outbox WHERE id > ? ORDER BY id LIMIT ?", (outbox_id, limit)
    )
    return [OutboxRow(*row) for row in rows]


def outbox_totals(reader: sqlite3.Connection) -> OutboxTotals:
    """Costs the same however much waits."""
    rows, size = reader.execute("SELECT rows, bytes FROM outbox_totals").fetchone()
    oldest = reader.execute("SELECT enqueued_ns FROM outbox ORDER BY id LIMIT 1").fetchone()
    return OutboxTotals(rows, size, oldest[0] if oldest else None)


def delete_acknowledged(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Remove what the broker has, at most some hundred at once."""
    marks = ",".join("?" * len(ids))
    connection.execute(f"DELETE FROM outbox WHERE id IN ({marks})", ids)  # noqa: S608 - question marks


def record_losses(connection: sqlite3.Connection, losses: Sequence[Loss]) -> None:
    """Remember them until an event tells of them.

    An event that the broker will not take is not remembered: the event that told of it would end the same way.
    """
    connection.executemany(
        """INSERT INTO outbox_losses AS known VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET messages = messages + 1,
        first_sequence = min(coalesce(known.first_sequence, excluded.first_sequence),
            coalesce(excluded.first_sequence, known.first_sequence)),
        last_sequence = max(coalesce(known.last_sequence, excluded.last_sequence),
            coalesce(excluded.last_sequence, known.last_sequence))""",
        [
            (loss.station, loss.what, loss.reason, loss.sequence, loss.sequence)
            for loss in losses
            if loss.what != "event" or loss.reason in ("outbox_full", "too_old")
        ],
    )


def take_losses(connection: sqlite3.Connection) -> dict[str, dict[str, str | int | float | bool | None]]:
    """The detail of the event that is to tell each station's losses; they count as told once this is committed."""
    told: dict[str, dict[str, str | int | float | bool | None]] = {}
    reasons: dict[str, set[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for station, what, reason, messages, first, last in connection.execute("SELECT * FROM outbox_losses"):
        detail = told.setdefault(
            station, {"masks": 0, "polygons": 0, "results": 0, "events": 0, "first_sequence": None, "last_sequence": None}
        )
        key = what if what == "polygons" else f"{what}s"
        counts[station, key] = detail[key] = counts.get((station, key), 0) + messages
        if what == "result":
            seen = [detail["first_sequence"], detail["last_sequence"], first, last]
            sequences = [int(sequence) for sequence in seen if sequence is not None]
            detail["first_sequence"], detail["last_sequence"] = min(sequences, default=None), max(sequences, default=None)
        reasons.setdefault(station, set()).add(reason)
        detail["reasons"] = ", ".join(sorted(reasons[station]))
    connection.execute("DELETE FROM outbox_losses")
    return told
