"""Judgements that came after their station's deadline: kept in the ledger, never sent as a second verdict."""

import time

from daemon.ledger import Ledger
from daemon.part import Outcome, worst
from daemon.station import Ticket

CREATE = (
    """CREATE TABLE IF NOT EXISTS late_judgements (
    result_id TEXT PRIMARY KEY, station TEXT NOT NULL, verdict TEXT NOT NULL, score REAL, threshold REAL, late_s REAL NOT NULL,
    created_ns INTEGER NOT NULL
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS late_time ON late_judgements (created_ns)",
)


class LateJudgements:
    """Owner of the ledger's table `late_judgements`, by the result_id of the part that had ended as `unknown: deadline`.

    Of several frames of a part that are judged late the worst is kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        ledger.call(lambda connection: [connection.execute(statement) for statement in CREATE]).result()

    def add(self, ticket: Ticket, outcome: Outcome) -> None:
        """Returns at once."""
        if ticket.outcome is None:
            raise ValueError("a judgement is late only after its ticket has ended")
        deadline_s = (ticket.station.config.deadline_ms or 0.0) / 1e3
        late_s = time.monotonic() - ticket.part.came_s - deadline_s
        judged = outcome.result
        outcomes = [own.outcome for own in ticket.part.tickets if own.outcome is not None]
        row = (
            worst(outcomes).result.result_id, judged.station, judged.verdict, judged.score, judged.threshold, late_s,
            time.time_ns(),
        )  # fmt: skip
        insert = (
            "INSERT INTO late_judgements VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET verdict = excluded.verdict,"
            " score = excluded.score, threshold = excluded.threshold, late_s = excluded.late_s"
            " WHERE excluded.score / excluded.threshold > score / threshold"
        )
        self._ledger.call(lambda connection: connection.execute(insert, row))

    def forget(self, before_ns: int) -> None:
        """Remove those that were made before that moment (ns since 1970). Returns at once."""
        delete = "DELETE FROM late_judgements WHERE created_ns < ?"
        self._ledger.call(lambda connection: connection.execute(delete, (before_ns,)))
