"""Judgements that came after their station's deadline: kept in the ledger, never sent as a second verdict."""

import time

from daemon.ledger import Ledger
from daemon.part import Outcome
from daemon.station import Ticket

CREATE = """CREATE TABLE IF NOT EXISTS late_judgements (
    result_id TEXT PRIMARY KEY, station TEXT NOT NULL, verdict TEXT NOT NULL, score REAL, threshold REAL, late_s REAL NOT NULL,
    created_ns INTEGER NOT NULL
) WITHOUT ROWID"""


class LateJudgements:
    """Owner of the ledger's table `late_judgements`, by the result_id of the frame that had ended as `unknown: deadline`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        ledger.call(lambda connection: connection.execute(CREATE)).result()

    def add(self, ticket: Ticket, outcome: Outcome) -> None:
        """Returns at once."""
        if ticket.outcome is None:
            raise ValueError("a judgement is late only after its ticket has ended")
        deadline_s = (ticket.station.config.deadline_ms or 0.0) / 1e3
        late_s = time.monotonic() - ticket.part.came_s - deadline_s
        judged = outcome.result
        row = (
            ticket.outcome.result.result_id, judged.station, judged.verdict, judged.score, judged.threshold, late_s,
            time.time_ns(),
        )  # fmt: skip
        insert = "INSERT OR REPLACE INTO late_judgements VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._ledger.call(lambda connection: connection.execute(insert, row))
