"""daemon/ledger.py: what is committed stays, in order, numbered without gaps."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.errors import StoreError
from connectors.contract import ResultOut
from daemon.ledger import FORGET_AT_ONCE, Ledger, last_document
from daemon.outbox import outbox_after, outbox_totals
from tests.broker import wait_for
from tests.records import entry


def flush(ledger: Ledger) -> None:
    ledger.call(lambda _: None).result(10)


def test_sequences_have_no_gaps_and_go_on_after_a_restart(tmp_path: Path) -> None:
    seen: list[ResultOut] = []
    for _ in range(2):
        ledger = Ledger(tmp_path, seen.extend)
        ledger.submit(entry(station, number) for number in range(3) for station in ("a", "b"))
        ledger.close()
    assert [result.sequence for result in seen if result.station == "a"] == [1, 2, 3, 4, 5, 6]
    assert [result.frame.number for result in seen if result.station == "b"] == [0, 1, 2, 0, 1, 2]


def test_old_results_are_forgotten_but_never_the_place_in_the_sequence(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.submit(entry(station, number) for number in range(4) for station in ("a", "b"))
    flush(ledger)
    middle_ns = time.time_ns()
    ledger.submit([entry("b", 9)])
    flush(ledger)
    assert ledger.forget_results(middle_ns).result(10) == 3 + 4  # the newest of "a" stays, though it is old
    assert ledger.forget_results(middle_ns).result(10) == 0
    ledger.close()
    seen: list[ResultOut] = []
    again = Ledger(tmp_path, seen.extend)
    again.submit([entry("a", 0), entry("b", 0)])
    again.close()
    assert [(result.station, result.sequence) for result in seen] == [("a", 5), ("b", 6)]


def test_many_old_results_are_forgotten_a_few_at_a_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.submit(entry("a", number) for number in range(FORGET_AT_ONCE + 20))
    flush(ledger)
    later_ns = time.time_ns()
    assert [ledger.forget_results(later_ns).result(10) for _ in range(3)] == [FORGET_AT_ONCE, 19, 0]
    ledger.close()


def test_a_mask_comes_before_its_result_and_leaves_when_acknowledged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.submit([entry("a", 0), entry("a", 1, mask=b"png")])
    flush(ledger)
    reader = ledger.reader()
    rows = outbox_after(reader, 0, 10)
    assert [row.topic.split("/")[2] for row in rows] == ["result", "mask", "result"]
    assert rows[1].payload == b"png"
    assert outbox_after(reader, rows[0].id, 1) == [rows[1]]
    ledger.acknowledge(rows[0].id)
    flush(ledger)
    totals = outbox_totals(reader)
    assert totals.rows == 2
    assert totals.bytes == sum(len(row.topic) + len(row.payload) for row in rows[1:])
    assert totals.oldest_ns == rows[1].enqueued_ns
    document = last_document(reader, "a")
    assert document is not None
    assert ResultOut.model_validate_json(document).frame.number == 1
    assert last_document(reader, "b") is None
    reader.close()
    ledger.close()


def test_a_call_that_fails_changes_nothing_and_harms_no_neighbour(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO banks VALUES ('r', 'b', '{}', 1)")
        raise ValueError("no")

    ledger.submit([entry("a", 0)])
    failed = ledger.call(half)
    count = ledger.call(lambda connection: connection.execute("SELECT count(*) FROM banks").fetchone()[0], durable=True)
    with pytest.raises(ValueError, match="no"):
        failed.result(10)
    assert count.result(10) == 0
    reader = ledger.reader()
    assert outbox_totals(reader).rows == 1
    reader.close()
    ledger.close()


def test_a_database_that_cannot_be_written_now_is_tried_again_and_loses_nothing(tmp_path: Path) -> None:
    seen: list[ResultOut] = []
    ledger = Ledger(tmp_path, seen.extend)
    ledger.call(lambda connection: connection.execute("PRAGMA busy_timeout=20")).result(10)
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.submit([entry("a", 0), entry("a", 1)])
    wait_for(lambda: ledger.failing, "the commit to fail")
    assert seen == []
    other.execute("ROLLBACK")
    wait_for(lambda: len(seen) == 2, "the commit to work again")
    assert [result.sequence for result in seen] == [1, 2]
    assert not ledger.failing
    other.close()
    ledger.close()


def test_a_folder_that_cannot_be_written_is_told_with_its_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file: cannot be written .*Give the daemon's user write access"):
        Ledger(tmp_path / "file")


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="made by ledger version 99"):
        Ledger(tmp_path)


WRITER = """
import sys, itertools
from pathlib import Path
from daemon.ledger import Ledger
from tests.records import entry
def told(results):
    for result in results:
        print(result.sequence, result.result_id, flush=True)
ledger = Ledger(Path(sys.argv[1]), told)
for number in itertools.count():
    ledger.submit([entry("a", number)])
    ledger.call(lambda _: None).result()
"""


def test_sigkill_loses_no_result_that_was_told_and_reuses_no_sequence(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(40)]
            time.sleep(0.01 * len(told) / 200)
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        whole = [line.split() for line in lines if line.endswith("\n")]
        told += [(int(sequence), result_id) for sequence, result_id in whole]
    ledger = Ledger(tmp_path)
    rows = ledger.call(lambda c: c.execute("SELECT sequence, result_id FROM results ORDER BY sequence").fetchall()).result()
    ledger.close()
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert set(told) <= set(rows)
    assert len(told) >= 200
