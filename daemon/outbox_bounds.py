"""How much the outbox may hold, and how long: past it the oldest masks go first, then events, results last."""

import sqlite3
import time
from collections.abc import Callable

from connectors.contract import Topics
from daemon.losses import GivenUp, Losses
from daemon.outbox import LossReason, outbox_totals

TURNS = ("mask", "other", "result")
"""What goes first where there is too much."""
LOOK_AT = 500
"""Messages looked at in one transaction: others wait for the ledger's thread meanwhile."""


class OutboxBounds:
    """Keeps the outbox within its bounds. Used by the ledger's thread alone."""

    def __init__(self, topics: Topics, most_bytes: int, most_age_s: float, losses: Losses) -> None:
        """most_bytes: of topics and payloads. most_age_s: since a message was committed."""
        self._topics = topics
        self._most_bytes = most_bytes
        self._most_age_s = most_age_s
        self._losses = losses
        self._passed = dict.fromkeys(TURNS, 0)
        """No message up to this outbox id is of that kind: what was looked at once is not looked at again."""

    def enforce(self, connection: sqlite3.Connection) -> tuple[bool, Callable[[], None]] | None:
        """Inside a transaction that put something in: give up what is too much. None when nothing is; else whether more has to
        go in a next transaction, and what to do once this one is committed."""
        totals = outbox_totals(connection)
        oldest_ns = time.time_ns() - int(self._most_age_s * 1e9)
        too_old = totals.oldest_ns is not None and totals.oldest_ns < oldest_ns
        if totals.bytes <= self._most_bytes and not too_old:
            return None
        given_up, passed, more = GivenUp(), dict(self._passed), False
        if too_old:
            old = "SELECT id FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT ?) AND enqueued_ns < ? ORDER BY id"
            ids = [row[0] for row in connection.execute(old, (LOOK_AT, oldest_ns))]
            more = self._drop(connection, ids, "too_old", given_up) == LOOK_AT
        left = LOOK_AT
        for turn in TURNS:
            while left > 0 and (excess := outbox_totals(connection).bytes - self._most_bytes) > 0:
                rows = connection.execute(
                    "SELECT id, topic, length(topic) + length(payload) FROM outbox WHERE id > ? ORDER BY id LIMIT 64",
                    (passed[turn],),
                ).fetchall()
                if not rows:
                    break
                ids = []
                for outbox_id, topic, size in rows:
                    if excess <= 0:
                        break
                    left -= 1
                    passed[turn] = outbox_id
                    if self._turn(topic) == turn:
                        ids.append(outbox_id)
                        excess -= size
                self._drop(connection, ids, "outbox_full", given_up)
        more = more or (left < LOOK_AT and outbox_totals(connection).bytes > self._most_bytes)

        def committed() -> None:
            self._passed = passed
            self._losses.committed(given_up)

        return more, committed

    def _turn(self, topic: str) -> str:
        kind = self._topics.parse(topic)[1]
        return kind if kind in TURNS else "other"

    def _drop(self, connection: sqlite3.Connection, ids: list[int], reason: LossReason, given_up: GivenUp) -> int:
        """How many were to be dropped."""
        gone = self._losses.give_up(connection, ids, reason)
        given_up.losses += gone.losses
        given_up.corrected |= gone.corrected
        return len(ids)
