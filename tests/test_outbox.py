"""daemon/outbox.py, outbox_bounds.py, losses.py: how much may wait, what goes first, and that nobody is told a false word."""

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from connectors.contract import ResultOut, Topics
from daemon.ledger import Ledger, last_document
from daemon.losses import Losses
from daemon.outbox import Message, OutboxRow, OutboxTotals, outbox_after, outbox_totals, take_losses
from daemon.outbox_bounds import OutboxBounds
from tests.records import entry


class Bounded:
    """A ledger with a bound, and what is said of its losses."""

    def __init__(self, folder: Path, most_bytes: int, most_age_s: float = 3_600.0) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.corrected: dict[str, ResultOut] = {}
        topics = Topics("test")
        losses = Losses(topics, lambda what, reason: self.counts.update([(what, reason)]), self.corrected.__setitem__)
        self.bounds = OutboxBounds(topics, most_bytes, most_age_s, losses)
        self.ledger = Ledger(folder, bounds=self.bounds)

    def flush(self) -> None:
        for _ in range(200):  # what is too much goes in several transactions
            self.ledger.call(lambda _: None).result(10)

    def rows(self) -> list[OutboxRow]:
        return self.ledger.call(lambda connection: outbox_after(connection, 0, 100_000)).result(10)

    def kinds(self) -> Counter[str]:
        return Counter(row.topic.split("/")[2] for row in self.rows())

    def told(self) -> Mapping[str, Mapping[str, object]]:
        return self.ledger.call(take_losses).result(10)


def results(rows: list[OutboxRow]) -> list[dict[str, object]]:
    return [json.loads(row.payload) for row in rows if row.topic.endswith("/result")]


def test_the_oldest_masks_go_first_then_events_and_results_last(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path, 25_000)
    bounded.ledger.publish([Message("test/a/event", b"e" * 500)] * 4)
    bounded.ledger.submit(entry("a", number, mask=b"x" * 2_000) for number in range(10))
    bounded.flush()
    assert bounded.ledger.call(outbox_totals).result(10).bytes <= 25_000
    rows = bounded.rows()
    left = [row.topic for row in rows if "/mask/" in row.topic]
    assert 5 <= len(left) < 10
    said = [result["mask"] for result in results(rows)]
    assert [mask["topic"] for mask in said if isinstance(mask, dict) and mask["form"] == "topic"] == left
    assert [mask["form"] for mask in said if isinstance(mask, dict)] == ["polygon"] * (10 - len(left)) + ["topic"] * len(left)
    assert bounded.kinds()["event"] == 4
    assert bounded.counts == {("mask", "outbox_full"): 10 - len(left)}

    bounded.ledger.submit(entry("a", number) for number in range(10, 45))
    bounded.flush()
    assert bounded.kinds()["mask"] == bounded.kinds()["event"] == 0
    rows = bounded.rows()
    sequences = [result["sequence"] for result in results(rows)]
    first = 46 - len(sequences)
    assert first > 1
    assert sequences == list(range(first, 46))
    assert bounded.counts == {
        ("mask", "outbox_full"): 10,
        ("event", "outbox_full"): 4,
        ("result", "outbox_full"): first - 1,
    }
    assert bounded.told() == {
        "a": {
            "masks": 10,
            "polygons": 0,
            "results": first - 1,
            "events": 4,
            "first_sequence": 1,
            "last_sequence": first - 1,
            "reasons": "outbox_full",
        }
    }
    assert bounded.told() == {}
    bounded.ledger.close()


def test_the_newest_result_is_corrected_where_its_own_mask_had_to_go(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path, 5_000)
    bounded.ledger.submit([entry("a", 0, mask=b"x" * 6_000)])
    bounded.flush()
    assert bounded.corrected["test/a/last"].mask is not None
    assert bounded.corrected["test/a/last"].mask.form == "polygon"
    reader = bounded.ledger.reader()
    document = last_document(reader, "a")
    reader.close()
    assert document is not None
    assert json.loads(document)["mask"]["form"] == "polygon"
    bounded.ledger.close()


def test_what_is_too_old_goes_whatever_it_is(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path, 10_000_000)
    bounded.ledger.submit(entry("a", number, mask=b"png" if number % 2 else None) for number in range(6))
    bounded.flush()
    older = "UPDATE outbox SET enqueued_ns = enqueued_ns - 7200 * 1000000000 WHERE id <= 4"
    bounded.ledger.call(lambda connection: connection.execute(older)).result(10)
    bounded.flush()
    # 1: result 1. 2, 3: mask and result 2. 4: result 3.
    assert [result["sequence"] for result in results(bounded.rows())] == [4, 5, 6]
    assert bounded.counts == {("result", "too_old"): 3, ("mask", "too_old"): 1}
    told = bounded.told()["a"]
    assert (told["first_sequence"], told["last_sequence"], told["reasons"]) == (1, 3, "too_old")
    bounded.ledger.close()


def test_losses_that_no_event_told_outlive_the_process(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path, 3_000)
    bounded.ledger.submit(entry(station, number) for number in range(20) for station in ("a", "b"))
    bounded.flush()
    bounded.ledger.close()
    again = Bounded(tmp_path, 3_000)
    told = again.told()
    assert sorted(told) == ["a", "b"]
    assert sum(int(str(detail["results"])) for detail in told.values()) == sum(bounded.counts.values())
    again.ledger.close()


def test_a_bound_that_was_lowered_takes_effect_a_little_at_a_time(tmp_path: Path) -> None:
    first = Bounded(tmp_path, 10_000_000)
    first.ledger.submit(entry("a", number, mask=b"x" * 100) for number in range(3_000))
    first.ledger.close()
    again = Bounded(tmp_path, 200_000)
    again.ledger.call(lambda _: None).result(10)
    assert 0 < sum(again.counts.values()) < 3_000
    again.flush()
    assert again.ledger.call(outbox_totals).result(10).bytes <= 200_000
    assert again.kinds()["mask"] == 0
    assert again.counts["mask", "outbox_full"] == 3_000
    again.ledger.close()


def test_a_start_does_not_add_to_the_totals(tmp_path: Path) -> None:
    for _ in range(3):
        ledger = Ledger(tmp_path)
        ledger.submit([entry("a", 0)])
        rows = ledger.call(lambda connection: connection.execute("SELECT count(*) FROM outbox_totals").fetchone()[0]).result(10)
        assert rows == 1
        ledger.close()


def test_totals_are_right_after_whatever_was_done_and_in_a_ledger_that_had_none(tmp_path: Path) -> None:
    dice = random.Random(7)
    ledger = Ledger(tmp_path)

    def truth(connection: sqlite3.Connection) -> OutboxTotals:
        count = "SELECT count(*), coalesce(sum(length(topic) + length(payload)), 0), min(enqueued_ns) FROM outbox"
        return OutboxTotals(*connection.execute(count).fetchone())

    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO outbox (topic, payload, enqueued_ns) VALUES ('t', x'00', 1)")
        raise ValueError

    for _ in range(20):
        ledger.submit(entry("a", number, mask=b"x" * dice.randrange(50)) for number in range(dice.randrange(5)))
        ledger.call(fails)
        for outbox_id in dice.sample(range(1, 100), 10):
            ledger.acknowledge(outbox_id)
        assert ledger.call(outbox_totals).result(10) == ledger.call(truth).result(10)
    expected = ledger.call(truth).result(10)
    ledger.close()
    connection = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    connection.execute("DROP TABLE outbox_totals")
    for trigger in ("outbox_in", "outbox_out", "outbox_changed"):
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.close()
    again = Ledger(tmp_path)
    assert expected.rows > 0
    assert again.call(outbox_totals).result(10) == expected
    again.close()
