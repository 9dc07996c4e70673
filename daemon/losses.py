"""What the outbox gives up, and how that is done without a false word: a result never names a mask that was not sent.

It is done on the ledger's thread; what a transaction gave up is counted once it is committed.
"""

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from connectors.contract import ResultOut, Topics
from daemon.abridge import abridged, read_result, told_by_polygons
from daemon.outbox import Loss, LossReason, OutboxRow, What, record_losses

log = logging.getLogger(__name__)

PACKET_ROOM = 16
"""Bytes of a PUBLISH packet beside topic and payload: header, lengths, packet id, message expiry (MQTT 5 section 3.3)."""
NEAR = 8
"""A mask's result follows it in the outbox within so many messages: they are committed together."""
LOG_EVERY_S = 10.0


def packet_bytes(topic: str, payload: bytes, more: int = 0) -> int:
    """The most that a PUBLISH of it takes; `more`: of further properties."""
    return len(topic.encode()) + len(payload) + more + PACKET_ROOM


@dataclass
class GivenUp:
    """What one transaction gave up. `corrected`: the newest result of a station, by station, where that was rewritten."""

    losses: list[Loss] = field(default_factory=list)
    corrected: dict[str, ResultOut] = field(default_factory=dict)

    def and_(self, other: "GivenUp") -> "GivenUp":
        """Both together."""
        return GivenUp(self.losses + other.losses, {**self.corrected, **other.corrected})


class Losses:
    """Gives messages up and counts them. Methods with a connection run inside the ledger's transaction."""

    def __init__(
        self, topics: Topics, count: Callable[[str, str], None], correct: Callable[[str, ResultOut], None] = lambda *_: None
    ) -> None:
        """count: gets (what, reason) of each loss. correct: gets (topic, result) of a `last` that named a mask which is gone."""
        self._topics = topics
        self._count = count
        self.correct = correct
        """May be set later: who starts tells the newest results anyhow."""
        self._logging = threading.Lock()
        self._unlogged: Counter[tuple[str, str]] = Counter()
        self._logged_s = -LOG_EVERY_S
        self.untold = True
        """Whether there may be losses that no event has told yet; also those of an earlier process."""

    def abridge(self, connection: sqlite3.Connection, outbox_ids: Sequence[int], limit: int) -> GivenUp:
        """Make these messages fit into the broker's largest packet of `limit` bytes, or give them up."""
        given_up = GivenUp()
        for outbox_id in outbox_ids:
            row = _row(connection, outbox_id)
            if row is None:
                continue
            station, what = self._topics.parse(row.topic)
            result = read_result(row.payload) if what == "result" else None
            fitting = abridged(result, limit - packet_bytes(row.topic, b"")) if result is not None else None
            if result is None or fitting is None:
                self._give_up(connection, row, "too_large", given_up)
                continue
            connection.execute("UPDATE outbox SET payload = ? WHERE id = ?", (fitting[1], outbox_id))
            if result.mask is not None and result.mask.form not in ("topic", "polygon"):
                given_up.losses.append(Loss(station, "mask", "too_large", result.sequence))
            if any(before.polygon != after.polygon for before, after in zip(result.regions, fitting[0].regions, strict=True)):
                given_up.losses.append(Loss(station, "polygons", "too_large", result.sequence))
        record_losses(connection, given_up.losses)
        return given_up

    def give_up(self, connection: sqlite3.Connection, outbox_ids: Iterable[int], reason: LossReason) -> GivenUp:
        """Take these messages out for good."""
        given_up = GivenUp()
        for outbox_id in outbox_ids:
            if (row := _row(connection, outbox_id)) is not None:
                self._give_up(connection, row, reason, given_up)
        record_losses(connection, given_up.losses)
        return given_up

    def _give_up(self, connection: sqlite3.Connection, row: OutboxRow, reason: LossReason, given_up: GivenUp) -> None:
        connection.execute("DELETE FROM outbox WHERE id = ?", (row.id,))
        station, kind = self._topics.parse(row.topic)
        what: What = "mask" if kind == "mask" else "result" if kind == "result" else "event"
        result = read_result(row.payload) if what == "result" else None
        if what == "mask":
            result = self._rewrite(connection, row, given_up)
        given_up.losses.append(Loss(station, what, reason, result.sequence if result is not None else None))

    def _rewrite(self, connection: sqlite3.Connection, mask: OutboxRow, given_up: GivenUp) -> ResultOut | None:
        """Let the mask's result, sent or not, say that its polygons tell the mask. The result as it was."""
        result_id = mask.topic.rpartition("/")[2]
        row = connection.execute("SELECT document FROM results WHERE result_id = ?", (result_id,)).fetchone()
        result = read_result(row[0]) if row is not None else None
        if result is None or result.mask is None or result.mask.topic != mask.topic:
            return None
        now = told_by_polygons(result)
        document = now.encode()
        connection.execute("UPDATE results SET document = ? WHERE result_id = ?", (document, result_id))
        behind = "SELECT id, payload FROM outbox WHERE id > ? AND id <= ?"
        for outbox_id, payload in connection.execute(behind, (mask.id, mask.id + NEAR)).fetchall():
            if mask.topic.encode() in payload:
                connection.execute("UPDATE outbox SET payload = ? WHERE id = ?", (document, outbox_id))
        newest = connection.execute("SELECT max(sequence) FROM results WHERE station = ?", (result.station,)).fetchone()[0]
        if newest == result.sequence:
            given_up.corrected[result.station] = now
        return result

    def committed(self, given_up: GivenUp) -> None:
        """Count what a transaction gave up, now that it is true."""
        for loss in given_up.losses:
            self.lost(loss.what, loss.reason)
        if given_up.losses:
            self.untold = True
        for station, result in given_up.corrected.items():
            self.correct(self._topics.last(station), result)

    def lost(self, what: What, reason: LossReason) -> None:
        """Count and log one, on any thread; the log gets a line now and then, not one for each."""
        self._count(what, reason)
        with self._logging:
            self._unlogged[what, reason] += 1
            now_s = time.monotonic()
            if now_s - self._logged_s < LOG_EVERY_S:
                return
            self._logged_s = now_s
            lost = ", ".join(f"{number} x {key[0]} ({key[1]})" for key, number in self._unlogged.items())
            self._unlogged.clear()
        log.error("given up and never published: %s. The ledger keeps the results; see docs/delivery.md.", lost)


def _row(connection: sqlite3.Connection, outbox_id: int) -> OutboxRow | None:
    row = connection.execute("SELECT id, topic, payload, enqueued_ns FROM outbox WHERE id = ?", (outbox_id,)).fetchone()
    return OutboxRow(*row) if row is not None else None
