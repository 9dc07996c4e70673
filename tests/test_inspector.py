"""daemon/station.py, inspector.py, finisher.py: order, fairness, overload, and models that fail.

The judge here is a stand-in where the fault cannot be had from a real model on this machine (out of memory, a broken
device); maps are otherwise made of the picture's own pixels, so that each result can be told from its frame.
"""

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from config.schema import RecipeConfig, Region, StationConfig
from connectors.contract import ResultOut, Topics
from daemon.finisher import Finisher, uuid7
from daemon.frame import Frame
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.station import Program, Station, Taught, Untaught
from daemon.threshold import ThresholdOverride
from model.bank import Bank
from model.detector import Judgement, Reference
from tests.broker import wait_for
from tests.parts import judgement


class PixelJudge:
    """Maps whose every pixel is the picture's first pixel / 255; `before` may raise or wait."""

    def __init__(self, before: Callable[[Sequence[NDArray[np.uint8]]], None] = lambda _: None) -> None:
        self.before = before
        self.batches: list[list[int]] = []

    def judge(self, pictures: Sequence[NDArray[np.uint8]], references: Sequence[Bank | Reference]) -> Judgement:
        self.batches.append([int(picture[0, 0]) for picture in pictures])
        self.before(pictures)
        return judgement(np.stack([np.full((8, 8), picture[0, 0] / 255, np.float32) for picture in pictures]))


class Floor:
    """Stations, inspector, finisher and ledger, joined as the service joins them."""

    def __init__(
        self, folder: Path, judge: PixelJudge, taught: Taught | Untaught, *stations: dict[str, Any], max_batch: int = 4
    ) -> None:
        self.results: list[ResultOut] = []
        self.broken: list[str] = []
        self.ledger = Ledger(folder, self.results.extend)
        self.finisher = Finisher(Topics("t"))
        recipe = RecipeConfig(name="r", object="thing")
        self.stations = [
            Station(
                StationConfig(camera="c", recipe="r", **{key: value for key, value in options.items() if key != "every"}),
                Program(recipe, taught),
                options.get("every", True),
                self.ledger.submit,
            )
            for options in stations
        ]
        self.judge = judge
        self.inspector = Inspector(self.finisher, max_batch=max_batch, max_wait_s=0.0, on_broken=self.broken.append)

    def start(self, lanes: int = 1) -> None:
        self.inspector.start(self.judge, self.stations, lanes=lanes)

    def offer(self, station: int, value: int) -> None:
        """A frame whose pixels and number are `value`."""
        offer = self.stations[station].offer(frame(value))
        assert offer is not None
        if offer.refused:
            self.finisher.unknown(offer.ticket, offer.refused, "full")
        self.inspector.notify()

    def of(self, station: int) -> list[ResultOut]:
        return [result for result in self.results if result.station == self.stations[station].name]

    def stop(self) -> None:
        self.inspector.stop()
        self.finisher.close()
        self.ledger.close()


def frame(value: int, fault: str | None = None) -> Frame:
    pixels = None if fault else np.full((20, 30), value, np.uint8)
    return Frame(
        camera="c", number=value, timestamp_ns=0, clock="host", trigger="free_run", arrived_at=datetime.now(UTC),
        arrived_s=0.0, acquire_s=0.0, pixels=pixels, fault=fault, is_simulated=True,
    )  # fmt: skip


@pytest.fixture
def floor(tmp_path: Path, taught: Taught) -> Iterator[Callable[..., Floor]]:
    floors: list[Floor] = []

    def make(judge: PixelJudge, *stations: dict[str, Any], **options: Any) -> Floor:
        floors.append(Floor(tmp_path / str(len(floors)), judge, options.pop("taught", taught), *stations, **options))
        return floors[-1]

    yield make
    for one in floors:
        one.stop()


def test_results_leave_in_frame_order_with_faults_between(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a", "queue_frames": 100})
    for value in range(0, 100, 2):
        line.offer(0, value)
        ticket = line.stations[0].enter(frame(value + 1, "incomplete: half"))
        assert ticket is not None
        line.finisher.unknown(ticket, "incomplete", "half")
    line.start()
    wait_for(lambda: len(line.results) == 100, "every result")
    assert [result.frame.number for result in line.results] == list(range(100))
    assert [result.verdict for result in line.results[:4]] == ["pass", "unknown", "pass", "unknown"]
    assert {result.verdict for result in line.results if result.frame.number % 2} == {"unknown"}
    assert line.results[98].verdict == "pass"


def test_score_above_the_threshold_fails_and_equal_passes(floor: Callable[..., Floor], taught: Taught) -> None:
    line = floor(PixelJudge(), {"name": "a"})
    limit = int(taught.calibration.threshold * 255)
    line.start()
    for value in (limit, limit + 1):
        line.offer(0, value)
    wait_for(lambda: len(line.results) == 2, "both")
    low, high = line.results
    assert (low.verdict, high.verdict) == ("pass", "fail")
    assert low.mask is None
    assert high.mask is not None
    assert (high.mask.width, high.mask.height) == (30, 20)
    assert high.regions[0].area_px == 600


def test_a_frame_is_judged_by_what_its_station_had_when_it_came(floor: Callable[..., Floor], taught: Taught) -> None:
    line = floor(PixelJudge(), {"name": "a"}, taught=Untaught("nothing yet"))
    [station] = line.stations
    region = Region(x=0, y=0, width=16, height=16)
    far = region.model_copy(update={"x": 500})
    high, low = RecipeConfig(name="high", object="thing", region=region), RecipeConfig(name="low", object="thing", region=far)
    programs = [
        station.program,
        Program(low, taught, ThresholdOverride(threshold=0.1)),
        Program(high, replace(taught, region=region), ThresholdOverride(factor=1.9)),
        Program(RecipeConfig(name="far", object="thing"), replace(taught, region=far)),
    ]
    for number, program in enumerate(programs):
        station.program = program
        line.offer(0, 200 + number)
        faulty = station.enter(frame(100, "incomplete: half"))
        assert faulty is not None
        line.finisher.unknown(faulty, "incomplete", "half")
    line.start()
    wait_for(lambda: len(line.results) == 8, "every result")
    judged = line.results[::2]
    assert [result.recipe for result in judged] == ["r", "low", "high", "far"]
    assert [result.reason for result in judged] == ["not_taught", None, None, "region_outside_frame"]
    assert [result.threshold for result in judged] == [None, 0.1, pytest.approx(0.95), None]
    assert [result.verdict for result in judged[1:3]] == ["fail", "pass"]
    assert judged[1].mask is not None
    assert (judged[1].mask.width, judged[1].mask.height) == (30, 20)
    assert [result.recipe for result in line.results[1::2]] == ["r", "low", "high", "far"]


class HalfJudge(PixelJudge):
    """Right of the middle a map has three quarters of what it has left of it."""

    def judge(self, pictures: Sequence[NDArray[np.uint8]], references: Sequence[Bank | Reference]) -> Judgement:
        steps = np.where(np.arange(8) < 4, 1.0, 0.75).astype(np.float32)
        return judgement(super().judge(pictures, references).maps * steps)


def test_the_masks_threshold_is_the_calibrations_and_moves_with_one_that_the_recipe_sets(
    floor: Callable[..., Floor], taught: Taught
) -> None:
    line = floor(HalfJudge(), {"name": "a"}, taught=replace(taught, calibration=replace(taught.calibration, pixel_threshold=0.4)))
    line.start()
    for count, threshold in enumerate((None, 0.52, 0.56), 1):  # the mask's: 0.4, 0.416, 0.448
        program = line.stations[0].program
        recipe = program.recipe.model_copy(update={"threshold": threshold})
        line.stations[0].program = replace(program, recipe=recipe)
        line.offer(0, 150)  # left 0.588, right 0.441
        wait_for(lambda count=count: len(line.results) == count, "the result")  # type: ignore[misc]
    assert [result.verdict for result in line.results] == ["fail"] * 3
    whole, other, half = [result.regions[0].area_px for result in line.results]
    assert whole == other == 600
    # Bilinear to 30 px wide: the step from left to right lies within the four pixels about the middle.
    assert 13 * 20 <= half <= 17 * 20


def test_a_full_queue_gives_unknown_overload_where_every_frame_counts(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a", "queue_frames": 3})
    for value in range(5):
        line.offer(0, value)
    line.start()
    wait_for(lambda: len(line.results) == 5, "one result a frame")
    assert [result.reason for result in line.results] == [None, None, None, "overload", "overload"]


def test_the_newest_frames_win_where_not_every_one_counts(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a", "queue_frames": 2, "every": False})
    for value in range(7):
        line.offer(0, value)
    line.start()
    wait_for(lambda: len(line.results) == 2, "the newest two")
    assert [result.frame.number for result in line.results] == [5, 6]
    assert [result.sequence for result in line.results] == [1, 2]


def test_a_ring_smaller_than_the_queue_gives_up_the_oldest_frame(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a", "queue_frames": 8, "every": False})
    for value in range(3):
        line.offer(0, value)
    assert line.stations[0].displace() == 1
    line.start()
    wait_for(lambda: len(line.results) == 2, "the others")
    assert [result.frame.number for result in line.results] == [1, 2]
    assert line.stations[0].displace() == 0


def test_a_station_is_stuck_only_when_no_frame_ends(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a"})
    assert line.stations[0].stuck_s(1e9) == 0.0
    line.offer(0, 1)
    assert line.stations[0].stuck_s(100.0) == 100.0
    line.start()
    wait_for(lambda: len(line.results) == 1, "the result")
    assert line.stations[0].stuck_s(1e9) == 0.0


def test_a_flooding_station_does_not_starve_another(floor: Callable[..., Floor]) -> None:
    judge = PixelJudge()
    line = floor(judge, {"name": "flood", "queue_frames": 100}, {"name": "calm"}, max_batch=2)
    for value in range(100):
        line.offer(0, value)
    for value in (201, 202):
        line.offer(1, value)
    line.start()
    wait_for(lambda: len(line.results) == 102, "all")
    assert [sorted(batch) for batch in judge.batches[:3]] == [[0, 201], [1, 202], [2, 3]]


def test_two_lanes_judge_at_the_same_time_and_each_stations_results_keep_their_order(floor: Callable[..., Floor]) -> None:
    together = threading.Barrier(2)

    def meet(pictures: Sequence[NDArray[np.uint8]]) -> None:
        together.wait(10)  # one lane alone would wait here in vain
        time.sleep(0.01 * (int(pictures[0][0, 0]) % 3))  # and they overtake each other

    line = floor(PixelJudge(meet), {"name": "a", "queue_frames": 20}, {"name": "b", "queue_frames": 20}, max_batch=1)
    for value in range(20):
        line.offer(0, value)
        line.offer(1, 100 + value)
    line.start(lanes=2)
    wait_for(lambda: len(line.results) == 40, "every result")
    assert {result.reason for result in line.results} == {None}
    assert [result.frame.number for result in line.of(0)] == list(range(20))
    assert [result.frame.number for result in line.of(1)] == list(range(100, 120))


def test_a_lane_that_hangs_is_seen_while_the_other_goes_on(floor: Callable[..., Floor]) -> None:
    release = threading.Event()

    def hang(pictures: Sequence[NDArray[np.uint8]]) -> None:
        if pictures[0][0, 0] == 13:
            release.wait(20)

    line = floor(PixelJudge(hang), {"name": "a", "queue_frames": 20}, max_batch=1)
    line.start(lanes=2)
    line.offer(0, 13)
    wait_for(lambda: [13] in line.judge.batches, "the lane to hang")
    for value in range(5):
        line.offer(0, value)
    wait_for(lambda: len(line.judge.batches) == 6, "the other lane to judge on")
    wait_for(lambda: line.inspector.idle_s() > 1.5, "the hanging lane to be seen")
    release.set()
    wait_for(lambda: len(line.results) == 6, "every result")
    wait_for(lambda: line.inspector.idle_s() < 1.5, "both lanes to turn")


def test_background_work_goes_on_beside_a_lane_that_judges(floor: Callable[..., Floor]) -> None:
    release = threading.Event()
    line = floor(PixelJudge(lambda _: assert_released(release)), {"name": "a"}, max_batch=1)
    threads: set[str] = set()

    def work() -> Generator[object, None, int]:
        for _ in range(3):
            threads.add(threading.current_thread().name)
            yield None
        return 7

    line.start(lanes=2)
    line.offer(0, 1)
    wait_for(lambda: bool(line.judge.batches), "a lane to judge")
    future = line.inspector.submit_background(work())
    release.set()
    assert future.result(10) == 7
    assert threads == {"inspector_0"}


def assert_released(release: threading.Event) -> None:
    assert release.wait(10)


def test_out_of_memory_halves_the_batch_and_is_remembered(floor: Callable[..., Floor]) -> None:
    def two_at_most(pictures: Sequence[object]) -> None:
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("too many")

    judge = PixelJudge(two_at_most)
    line = floor(judge, {"name": "a", "queue_frames": 100}, max_batch=8)
    for value in range(16):
        line.offer(0, value)
    line.start()
    wait_for(lambda: len(line.results) == 16, "all")
    assert {result.verdict for result in line.results} == {"pass"}
    assert [len(batch) for batch in judge.batches] == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]


def test_one_bad_frame_is_unknown_and_its_batch_keeps_its_verdicts(floor: Callable[..., Floor]) -> None:
    def not_two(pictures: Sequence[NDArray[np.uint8]]) -> None:
        if any(picture[0, 0] == 2 for picture in pictures):
            raise ValueError("no twos")

    line = floor(PixelJudge(not_two), {"name": "a"})
    for value in range(4):
        line.offer(0, value)
    line.start()
    wait_for(lambda: len(line.results) == 4, "all")
    assert [result.reason for result in line.results] == [None, None, "model_failed", None]
    assert line.results[2].detail == "ValueError: no twos"


def test_a_broken_device_answers_unknown_and_is_reported(floor: Callable[..., Floor]) -> None:
    def break_down(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    line = floor(PixelJudge(break_down), {"name": "a"})
    line.offer(0, 1)
    line.start()
    wait_for(lambda: len(line.broken) == 1, "the report")
    wait_for(lambda: len(line.results) == 1, "the answer")
    assert (line.results[0].verdict, line.results[0].reason) == ("unknown", "model_failed")


def test_a_station_without_a_bank_is_unknown(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a"}, taught=Untaught("no shots"))
    line.start()
    line.offer(0, 1)
    wait_for(lambda: len(line.results) == 1, "the answer")
    assert (line.results[0].reason, line.results[0].detail) == ("not_taught", "no shots")


def test_a_stop_answers_every_frame_that_waits(tmp_path: Path, taught: Taught) -> None:
    entered, go = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        entered.set()
        go.wait(10)

    line = Floor(tmp_path, PixelJudge(hold), taught, {"name": "a"}, max_batch=1)
    line.start()
    for value in range(4):
        line.offer(0, value)
    assert entered.wait(10)
    stopper = threading.Thread(target=line.stop)
    stopper.start()
    go.set()
    stopper.join(10)
    assert [result.reason for result in line.results] == [None, "stopped", "stopped", "stopped"]
    assert [result.sequence for result in line.results] == [1, 2, 3, 4]
    assert line.of(0)[0].verdict == "pass"


def counting(steps: int, spent_s: float, done: list[int]) -> Generator[None, None, str]:
    for step in range(steps):
        time.sleep(spent_s)
        done.append(step)
        yield
    return "all"


def test_background_work_waits_for_frames_but_not_for_ever(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(lambda _: time.sleep(0.01)), {"name": "a", "queue_frames": 1_000}, max_batch=1)
    for value in range(100):
        line.offer(0, value)
    done: list[int] = []
    line.start()
    work = line.inspector.submit_background(counting(1_000, 0.001, done))
    wait_for(lambda: len(line.results) == 100, "the burst")
    assert 10 <= len(done) < 300
    assert work.result(10) == "all"


def test_a_slice_begins_only_where_it_ends_before_the_next_frame(floor: Callable[..., Floor]) -> None:
    line = floor(PixelJudge(), {"name": "a"})
    station = line.stations[0]
    assert station.rest_s(time.monotonic(), 9.0) == 0.0  # nothing is known
    for value in range(3):
        line.offer(0, value)
        time.sleep(0.1)
    now_s = station._came_s
    gap_s = min(station._gaps)
    assert station.rest_s(now_s, 0.9 * gap_s) == 0.0
    assert station.rest_s(now_s + 0.5 * gap_s, 0.9 * gap_s) == pytest.approx(1.5 * gap_s)
    assert station.rest_s(now_s + 1.5 * gap_s, 0.1 * gap_s) == pytest.approx(0.5 * gap_s)  # late; it may come any moment
    assert station.rest_s(now_s + 2.1 * gap_s, 9.0) == 0.0  # the line stands


def test_background_works_take_turns_and_what_one_raises_is_its_own(floor: Callable[..., Floor]) -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("no")

    line = floor(PixelJudge(), {"name": "a"})
    line.start()
    done: list[int] = []
    long = line.inspector.submit_background(counting(200, 0.002, done))
    with pytest.raises(ValueError, match="no"):
        line.inspector.submit_background(failing()).result(10)
    assert len(done) < 200
    assert long.result(10) == "all"


def test_a_stop_cancels_background_work(tmp_path: Path, taught: Taught) -> None:
    line = Floor(tmp_path, PixelJudge(), taught, {"name": "a"})
    line.start()
    done: list[int] = []
    work = line.inspector.submit_background(counting(100_000, 0.002, done))
    wait_for(lambda: bool(done), "its begin")
    line.stop()
    assert work.cancelled()
    assert line.inspector.submit_background(counting(1, 0, done)).cancelled()


def test_result_ids_are_uuid_version_7_in_time_order() -> None:
    import uuid

    ids = [uuid7(1_700_000_000_000_000_000 + step * 1_000_000) for step in range(100)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 100
    first = uuid.UUID(ids[0])
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert first.int >> 80 == 1_700_000_000_000
    assert json.dumps(ids[0]) == f'"{first}"'
