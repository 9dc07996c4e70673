"""daemon/archive.py: what is kept, what is given up, and that nobody waits for it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from config.errors import ArchiveError
from config.schema import Region
from connectors.contract import ResultOut, Verdict
from daemon import archive as archive_module
from daemon.archive import PAUSE_S, Archive, sampled
from daemon.archive_files import STEP, write_set
from daemon.archive_rows import MARKED_KEPT, Selection, listing
from tests.archived import SETTLED_S, Kept, a_result, picture
from tests.broker import wait_for


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def open_(**config: Any) -> Kept:
        if made:
            made.pop().close()
        made.append(Kept(tmp_path, **config))
        return made[-1]

    yield open_
    for kept in made:
        kept.close()


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)], ids=["grey", "colour"])
def test_a_fail_is_kept_as_the_very_pixels_with_map_and_result(opened: Callable[..., Kept], shape: tuple[int, ...]) -> None:
    kept = opened()
    anomaly_map = np.random.default_rng(1).uniform(-0.2, 3.0, (32, 32)).astype(np.float32)
    result = a_result()
    kept.put(result, picture(1, shape), anomaly_map, Region(x=1, y=2, width=30, height=20))

    found = kept.archive.find(result.result_id)
    assert found is not None
    assert found.folder == kept.root / "press" / f"{result.created_at:%Y-%m-%d}"
    assert (found.station, found.recipe, found.bank, found.verdict, found.score) == ("press", "gear", "abc", "fail", 0.7)
    assert found.bytes == sum(path.stat().st_size for path in (found.picture, found.map, found.document))
    np.testing.assert_array_equal(kept.archive.pixels(result.result_id), picture(1, shape))
    stored_map = kept.archive.map(result.result_id)
    assert stored_map is not None
    np.testing.assert_allclose(stored_map, anomaly_map, atol=STEP / 2 + 1e-6)
    # As docs/archive.md tells people to read it, without our code.
    told = json.loads(found.document.read_text())
    assert ResultOut.model_validate(told["result"]) == result
    assert told["region"] == {"x": 1, "y": 2, "width": 30, "height": 20}
    numbers = cv2.imread(str(found.map), cv2.IMREAD_UNCHANGED)
    assert numbers is not None
    assert numbers.dtype == np.uint16
    np.testing.assert_allclose(told["map"]["offset"] + told["map"]["step"] * numbers, anomaly_map, atol=STEP / 2 + 1e-6)


def test_unknowns_are_kept_without_a_map_and_those_without_pixels_are_not(opened: Callable[..., Kept]) -> None:
    kept = opened()
    result = kept.put(a_result("unknown"))
    assert kept.archive.map(result.result_id) is None
    blind = a_result("unknown")
    kept.archive.hold(blind.result_id, "unknown", None, None, None)
    kept.archive.committed([blind])
    assert kept.count() == 1
    assert kept.dropped == []


def test_maps_may_be_left_out(opened: Callable[..., Kept]) -> None:
    kept = opened(maps=False)
    kept.put(a_result(), anomaly_map=np.ones((8, 8), np.float32))
    assert [name.partition(".")[2] for name in kept.names()] == ["json", "png"]


def test_the_share_of_passes_is_drawn_by_the_result_id_alone() -> None:
    ids = [f"id-{number}" for number in range(20_000)]
    drawn = [result_id for result_id in ids if sampled(result_id, 0.05)]
    assert drawn == [result_id for result_id in ids if sampled(result_id, 0.05)]
    assert len(drawn) == pytest.approx(1000, abs=150)  # five standard deviations
    assert set(drawn) <= {result_id for result_id in ids if sampled(result_id, 0.1)}
    assert not any(sampled(result_id, 0.0) for result_id in ids)
    assert all(sampled(result_id, 1.0) for result_id in ids)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 1)])
def test_passes_are_kept_by_their_share(opened: Callable[..., Kept], share: float, count: int) -> None:
    kept = opened(pass_share=share)
    kept.put(a_result("pass"))
    assert kept.count() == count
    assert kept.dropped == []


def test_switched_off_it_keeps_nothing(opened: Callable[..., Kept]) -> None:
    kept = opened(enabled=False)
    kept.put(a_result())
    assert kept.names() == []


def test_pixels_are_copied_before_the_ring_takes_its_slot_back(opened: Callable[..., Kept]) -> None:
    kept, result, slot = opened(), a_result(), picture(7)
    kept.archive.hold(result.result_id, "fail", slot, None, None)
    slot[:] = 0
    kept.archive.committed([result])
    wait_for(lambda: kept.count() == 1, "the result to be kept", SETTLED_S)
    np.testing.assert_array_equal(kept.archive.pixels(result.result_id), picture(7))


def test_what_never_became_a_result_is_let_go(opened: Callable[..., Kept]) -> None:
    kept, result = opened(), a_result()
    kept.archive.hold(result.result_id, "fail", picture(), None, None)
    kept.archive.release(result.result_id)
    kept.archive.committed([result])
    assert kept.archive._held_bytes == 0
    assert kept.names() == []


def test_memory_is_bounded_and_the_second_half_is_the_fails(opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "QUEUE_BYTES", 4 * picture().nbytes)
    kept = opened(pass_share=1.0)
    verdicts: list[Verdict] = ["pass", "unknown", "pass", "unknown", "fail", "fail", "fail"]
    for verdict in verdicts:
        kept.archive.hold(a_result().result_id, verdict, picture(), None, None)
    assert [held.verdict for held in kept.archive._held.values()] == ["pass", "unknown", "fail", "fail"]
    assert kept.dropped == ["queue_full"] * 3


def test_latest_are_the_newest_of_a_station_or_verdict(opened: Callable[..., Kept]) -> None:
    kept = opened(pass_share=1.0)
    now = datetime.now(UTC)
    parts: list[tuple[str, Verdict]] = [("a", "fail"), ("b", "pass"), ("a", "pass"), ("b", "fail")]
    made = [
        kept.put(a_result(verdict, station=station, at=now + timedelta(seconds=number)))
        for number, (station, verdict) in enumerate(parts)
    ]
    ids = [result.result_id for result in made]
    assert [found.result_id for found in kept.archive.latest()] == ids[::-1]
    assert [found.result_id for found in kept.archive.latest(Selection(station="a"))] == [ids[2], ids[0]]
    assert [found.result_id for found in kept.archive.latest(Selection(verdict="fail"), limit=1)] == [ids[3]]


def test_results_are_found_by_all_that_is_asked_for_at_once_and_page_by_page(opened: Callable[..., Kept]) -> None:
    kept, start = opened(pass_share=1.0), datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    rows: list[tuple[str, str, Verdict, int]] = [
        ("a", "gear", "fail", 0), ("a", "disc", "fail", 1), ("b", "gear", "unknown", 2), ("a", "gear", "fail", 3),
        ("a", "gear", "pass", 4), ("a", "gear", "fail", 5), ("a", "gear", "fail", 5),
    ]  # fmt: skip
    for station, recipe, verdict, second in rows:
        kept.put(a_result(verdict, station=station, recipe=recipe, at=start + timedelta(seconds=second)))

    def seconds(**asked: Any) -> list[int]:
        return [(found.created_at - start).seconds for found in kept.archive.latest(Selection(**asked))]

    assert seconds(station="a", recipe="gear", verdict="fail") == [5, 5, 3, 0]
    assert seconds(recipe="disc") == [1]
    # In another zone, the same moment.
    since, until = (start + timedelta(seconds=second) for second in (3, 5))
    assert seconds(since=since.astimezone(timezone(timedelta(hours=2))), until=until) == [4, 3]
    assert seconds(station="a", recipe="gear", verdict="fail", since=since) == [5, 5, 3]
    assert seconds(since=datetime(1, 1, 1, tzinfo=UTC), until=datetime(9999, 1, 1, tzinfo=UTC)) == [5, 5, 4, 3, 2, 1, 0]
    # Two of the same moment are neither lost nor told twice where pages meet.
    whole, paged = [found.result_id for found in kept.archive.latest()], list[str]()
    while page := kept.archive.latest(Selection(before=paged[-1] if paged else None), limit=1):
        paged.append(page[0].result_id)
    assert paged == whole
    assert len(whole) == 7
    with pytest.raises(ArchiveError, match=r"no result 'gone' is archived \(any more\)\. Begin again without `before`"):
        seconds(before="gone")


@pytest.mark.parametrize("asked", [{}, {"station": "a"}, {"recipe": "gear"}, {"verdict": "fail", "since": datetime.now(UTC)}])
def test_an_index_serves_every_way_to_ask(opened: Callable[..., Kept], asked: dict[str, Any]) -> None:
    kept = opened()
    with closing(kept.ledger.reader()) as reader:
        for selection in (Selection(**asked), Selection(**asked, before=kept.put(a_result()).result_id)):
            query, values = listing(reader, selection)
            plan = " ".join(row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {query}", (*values, 20)))
            assert "INDEX archived_" in plan
            assert "TEMP B-TREE" not in plan
            assert not selection.before or "SEARCH archived" in plan


def test_what_is_not_archived_is_told(opened: Callable[..., Kept]) -> None:
    kept = opened()
    assert kept.archive.find("nothing") is None
    with pytest.raises(ArchiveError, match=r"nothing: not in the archive \(never kept, or given up since"):
        kept.archive.pixels("nothing")


def test_over_the_quota_passes_and_unknowns_go_first_then_the_oldest_fails_and_marked_ones_never(
    opened: Callable[..., Kept],
) -> None:
    noise = [picture(seed, (400, 500)) for seed in range(8)]  # 200 kB each: noise cannot be compressed
    kept = opened(max_bytes=1_050_000, pass_share=1.0)
    now = datetime.now(UTC) - timedelta(hours=1)
    verdicts: list[Verdict] = ["fail", "fail", "unknown", "pass", "fail"]
    made = [
        kept.put(a_result(verdict, at=now + timedelta(seconds=number)), noise[number]).result_id
        for number, verdict in enumerate(verdicts)
    ]
    kept.keep(made[0])
    left = []
    for number in range(5, 8):
        made.append(kept.put(a_result(at=now + timedelta(seconds=number)), noise[number]).result_id)
        left.append({made.index(found.result_id) for found in kept.archive.latest()})
    assert left == [{0, 1, 3, 4, 5}, {0, 1, 4, 5, 6}, {0, 4, 5, 6, 7}]
    assert kept.dropped == []
    assert kept.archive.bytes == sum(path.stat().st_size for path in kept.root.rglob("*.*") if path.is_file()) <= 1_050_000
    assert kept.archive.files == len(kept.names()) == 10

    for result_id in made[4:]:
        kept.keep(result_id)
    kept.put(a_result(), noise[1])
    assert kept.dropped == ["quota_full"]
    assert kept.archive.failing


def test_marked_results_are_kept_up_to_a_number_per_recipe(opened: Callable[..., Kept]) -> None:
    kept = opened()
    made = [kept.put(a_result()).result_id for _ in range(3)]
    rows = [(f"id-{number}", number) for number in range(MARKED_KEPT - 1)]

    def fill(connection: sqlite3.Connection) -> None:
        connection.executemany(
            "INSERT INTO archived SELECT ?, station, recipe, bank, verdict, reason, score, threshold, created_ns, folder, files,"
            " bytes, 2, ? FROM archived WHERE result_id = ?",
            [(*row, made[0]) for row in rows],
        )

    kept.ledger.call(fill).result()
    for result_id in made[1:]:
        kept.keep(result_id)
    marked = [found.result_id for found in kept.archive.latest(limit=1000) if found.kept]
    assert len(marked) == MARKED_KEPT
    assert set(made[1:]) < set(marked)
    assert "id-0" not in marked


def test_what_is_too_old_goes_at_the_next_start(opened: Callable[..., Kept]) -> None:
    kept = opened()
    old = kept.put(a_result(at=datetime.now(UTC) - timedelta(days=3))).result_id
    marked = kept.put(a_result(at=datetime.now(UTC) - timedelta(days=3))).result_id
    new = kept.put(a_result()).result_id
    kept.keep(marked)
    kept = opened(max_age_days=2.0)
    wait_for(lambda: kept.archive.find(old) is None, "the old one to go", SETTLED_S)
    assert {found.result_id for found in kept.archive.latest()} == {marked, new}
    wait_for(lambda: len(kept.names()) == 4, "its files to go", SETTLED_S)


def test_halves_that_a_crash_left_are_cleaned_and_the_books_agree_with_the_disk(opened: Callable[..., Kept]) -> None:
    kept = opened()
    whole, gone, cut = (kept.put(a_result(), anomaly_map=np.ones((8, 8), np.float32)) for _ in range(3))
    folder = kept.root / "press" / f"{whole.created_at:%Y-%m-%d}"
    orphan, half = str(uuid.uuid4()), str(uuid.uuid4())
    kept.close()
    write_set(folder, orphan, {".png": b"whole files, no row", ".json": b"{}"})
    (folder / f"{half}.png").write_bytes(b"first file")
    (folder / f"{half}.map.png.part").write_bytes(b"half of the sec")
    (folder / "README.txt").write_text("somebody's note")
    (folder / f"{gone.result_id}.png").unlink()
    os.truncate(folder / f"{cut.result_id}.map.png", 0)  # what a power cut leaves
    elsewhere = kept.root / "press" / "2020-01-01"
    write_set(elsewhere, orphan, {".png": b"x"})

    again = Kept(kept.root.parent)
    try:
        wait_for(lambda: not elsewhere.exists(), "the oldest folder to be reconciled", SETTLED_S)
        assert [found.result_id for found in again.archive.latest()] == [whole.result_id]
        assert again.names() == sorted(
            [*(f"{whole.result_id}{suffix}" for suffix in (".json", ".map.png", ".png")), "README.txt"]
        )
        assert (again.archive.files, again.archive.bytes) == (
            3, sum((folder / name).stat().st_size for name in again.names() if name != "README.txt"),
        )  # fmt: skip
    finally:
        kept.ledger = again.ledger  # the fixture closes it
        kept.archive = again.archive


WRITER = """
import sys
from pathlib import Path
from typing import Any
from tests.archived import Kept, a_result, picture
kept = Kept(Path(sys.argv[1]), max_bytes=1_000_000)
print("ready", flush=True)
while True:
    kept.put(a_result(), picture(1, (150, 200)))
"""


def test_sigkill_at_any_instant_leaves_whole_sets_in_files_and_books(tmp_path: Path) -> None:
    for number in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.3 + 0.0371 * number)
            os.kill(writer.pid, signal.SIGKILL)
    kept = Kept(tmp_path, max_bytes=1_000_000)
    try:
        there = kept.archive.latest(limit=1000)
        assert there
        wait_for(lambda: len(kept.names()) == 2 * kept.count(), "the books and the disk to agree", SETTLED_S)
        for found in kept.archive.latest(limit=1000):
            assert found.bytes == found.picture.stat().st_size + found.document.stat().st_size
            np.testing.assert_array_equal(kept.archive.pixels(found.result_id), picture(1, (150, 200)))
    finally:
        kept.close()


def test_a_short_disk_stops_archiving_and_ends_by_itself(opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = opened(min_free_bytes=1000)
    first = kept.put(a_result()).result_id
    free = 999
    monkeypatch.setattr(Archive, "_free_bytes", lambda _: free)
    kept.put(a_result())
    kept.put(a_result())
    assert kept.dropped == ["disk_full"] * 2
    assert kept.archive.failing
    assert [found.result_id for found in kept.archive.latest()] == [first], "others' files do not push ours out"
    free = 10_000_000
    wait_for(lambda: not kept.archive.failing, "the free space to be seen", SETTLED_S)
    kept.archive._refused_until_s -= PAUSE_S
    kept.put(a_result())
    assert kept.count() == 2


def test_near_the_end_of_the_disk_the_newest_takes_the_oldests_place(
    opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(min_free_bytes=100_000)
    disk = 1_000_000
    monkeypatch.setattr(Archive, "_free_bytes", lambda self: disk - self.bytes)
    made = [kept.put(a_result(), picture(seed, (400, 500))).result_id for seed in range(8)]
    assert kept.dropped == []
    assert [found.result_id for found in kept.archive.latest()] == made[:-5:-1]  # 890 kB fit, in steps of 200 kB


def test_a_disk_that_refuses_is_told_and_left_alone_for_a_while(opened: Callable[..., Kept]) -> None:
    kept = opened()
    kept.root.mkdir(exist_ok=True)
    (kept.root / "press").write_text("a file where a folder should be")
    kept.put(a_result())
    kept.put(a_result())
    assert kept.dropped == ["disk_failed"] * 2
    assert kept.archive.failing
    (kept.root / "press").unlink()
    kept.archive._refused_until_s -= PAUSE_S
    kept.put(a_result())
    assert not kept.archive.failing
    assert kept.count() == 1
