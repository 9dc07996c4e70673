"""daemon/intake.py, part.py, station.py, alarms.py, late.py: triggers, bursts, names and deadlines."""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from config.errors import TriggerError
from config.schema import RecipeConfig, StationConfig
from connectors.contract import ResultOut, Topics
from daemon.alarms import Alarms
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.inspector import Inspector
from daemon.intake import Intake
from daemon.late import LateJudgements
from daemon.ledger import Ledger
from daemon.part import Identity
from daemon.station import Program, Station, Taught, Ticket, Untaught
from tests.broker import wait_for
from tests.test_inspector import PixelJudge, frame

ANN = Identity("ann", "job 1")
BOB = Identity("bob")


class Post:
    """One station with its intake, joined as the service joins them; the camera is the test."""

    def __init__(self, folder: Path, judge: PixelJudge, taught: Taught | Untaught, triggered: bool, **config: Any) -> None:
        self.results: list[ResultOut] = []
        self.committed_s: list[float] = []
        self.counted: Counter[str] = Counter()
        self.replaced: list[str] = []
        self.released: list[str] = []
        self.fire: Callable[[], bool] = lambda: True
        self.folder = folder
        self.ledger = Ledger(folder, self._committed)
        late = LateJudgements(self.ledger)
        self.finisher = Finisher(Topics("t"), on_late=late.add)
        self.inspector = Inspector(self.finisher, max_batch=4, max_wait_s=0.0)
        self.alarms = Alarms()
        self.station = Station(
            StationConfig(name="a", camera="c", recipe="r", **config),
            Program(RecipeConfig(name="r", object="thing"), taught),
            True,
            self.ledger.submit,
            triggered,
            self.released.append,
        )
        self.intake = Intake(
            self.station,
            self.finisher,
            self.alarms,
            count=lambda outcome, frames: self.counted.update({outcome: frames}),
            notify=self.inspector.notify,
            fire=lambda: self.fire(),
            replace_camera=self.replaced.append,
        )
        self.inspector.start(judge, [self.station])

    def _committed(self, results: list[ResultOut]) -> None:
        self.committed_s += [time.monotonic()] * len(results)
        self.results += results

    def see(self, value: int, fault: str | None = None) -> float:
        """A frame arrives now, whose pixels and number are `value`; when that is."""
        now_s = time.monotonic()
        self.intake.arrived(replace(frame(value, fault), arrived_s=now_s))
        return now_s

    def wait(self, count: int) -> list[ResultOut]:
        wait_for(lambda: len(self.results) >= count, f"{count} results")
        return self.results

    def late(self) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.folder / "ledger.sqlite3")
        rows = connection.execute("SELECT result_id, verdict, score, late_s FROM late_judgements").fetchall()
        connection.close()
        return rows

    def close(self) -> None:
        self.intake.stop("the daemon was stopped")
        self.inspector.stop()
        self.finisher.close()
        self.alarms.stop()
        self.ledger.close()


Make = Callable[..., Post]


@pytest.fixture
def post(tmp_path: Path, taught: Taught) -> Iterator[Make]:
    posts: list[Post] = []

    def make(judge: PixelJudge | None = None, triggered: bool = False, taught: Taught | Untaught = taught, **config: Any) -> Post:
        posts.append(Post(tmp_path, judge or PixelJudge(), taught, triggered, **config))
        return posts[-1]

    yield make
    for one in posts:
        if one.ledger._thread.is_alive():
            one.close()


@pytest.fixture
def over(taught: Taught) -> int:
    """A picture of this value fails."""
    return int(taught.calibration.threshold * 255) + 1


# Triggers.


def test_a_trigger_gets_exactly_one_result_and_it_carries_the_identity(post: Make) -> None:
    own = post(triggered=True, queue_frames=20)
    own.fire = lambda: own.see(3) > 0
    for number in range(20):
        own.intake.trigger(Identity(f"part {number}", "job"))
    results = own.wait(20)
    assert [result.part_id for result in results] == [f"part {number}" for number in range(20)]
    assert {result.job_id for result in results} == {"job"}
    assert {result.verdict for result in results} == {"pass"}


def test_a_frame_that_nobody_asked_for_gets_no_result_at_a_triggered_station(post: Make) -> None:
    own = post(triggered=True)
    own.see(3)
    own.see(4, "incomplete: half")
    own.fire = lambda: own.see(5) > 0
    own.intake.trigger(ANN)
    [result] = own.wait(1)
    assert (result.frame.number, result.part_id) == (5, "ann")
    assert own.counted["unclaimed"] == 2


def test_a_trigger_that_the_camera_does_not_take_is_refused_and_gets_no_result(post: Make) -> None:
    own = post(triggered=True)
    own.fire = lambda: False
    with pytest.raises(TriggerError, match="did not take the trigger"):
        own.intake.trigger(ANN)
    own.fire = lambda: own.see(5) > 0
    own.intake.trigger(BOB)
    assert [result.part_id for result in own.wait(1)] == ["bob"]


def test_a_station_that_takes_no_software_trigger_says_so(post: Make) -> None:
    with pytest.raises(TriggerError, match="takes no software trigger"):
        post().intake.trigger(ANN)


def test_a_triggered_frame_that_does_not_come_is_unknown_and_its_camera_is_replaced(post: Make) -> None:
    own = post(triggered=True, frame_timeout_ms=50.0)
    own.intake.trigger(ANN)
    own.intake.trigger(BOB)
    first, second = own.wait(2)
    assert (first.part_id, first.verdict, first.reason) == ("ann", "unknown", "no_frame")
    assert (second.part_id, second.reason) == ("bob", "no_frame")
    assert first.detail == "1 of 1 frames did not come within 50 ms"
    assert own.replaced[0] == "a triggered frame did not come within 50 ms"


def test_what_a_triggered_camera_spoils_is_its_parts_result(post: Make) -> None:
    own = post(triggered=True)
    own.fire = lambda: own.see(7, "incomplete: half of it") > 0
    own.intake.trigger(ANN)
    [result] = own.wait(1)
    assert (result.part_id, result.verdict, result.reason) == ("ann", "unknown", "incomplete")


# Bursts.


def test_the_worst_frame_of_a_burst_decides_and_all_are_named(post: Make, over: int) -> None:
    own = post(frames_per_part=3)
    for value in (1, over, over + 9, 2, 3, 4):
        own.see(value)
    fails, passes = own.wait(2)
    assert (fails.verdict, passes.verdict) == ("fail", "pass")
    assert [own.frame.number for own in fails.frames] == [1, over, over + 9]
    assert [own.verdict for own in fails.frames] == ["pass", "fail", "fail"]
    assert [own.decides for own in fails.frames] == [False, False, True]
    assert fails.frame.number == over + 9
    assert fails.mask is not None
    assert passes.frame.number == 4  # the nearest to failing
    assert (fails.sequence, passes.sequence) == (1, 2)
    # The archive lets go of those that did not decide.
    assert len(own.released) == 4
    assert not {fails.result_id, passes.result_id} & set(own.released)


def test_a_burst_with_a_frame_that_nobody_judged_is_no_pass_but_a_defect_fails_it(post: Make, over: int) -> None:
    own = post(frames_per_part=2)
    own.see(1)
    own.see(2, "incomplete: half")
    own.see(3, "incomplete: half")
    own.see(over)
    first, second = own.wait(2)
    assert (first.verdict, first.reason) == ("unknown", "incomplete")
    assert (second.verdict, second.reason) == ("fail", None)


def test_a_burst_that_stays_short_is_unknown_and_the_next_part_is_whole(post: Make) -> None:
    own = post(frames_per_part=3, frame_timeout_ms=60.0)
    own.see(1)
    own.see(2)
    [short] = own.wait(1)
    assert (short.verdict, short.reason, short.detail) == ("unknown", "no_frame", "1 of 3 frames did not come within 60 ms")
    assert [own.reason for own in short.frames] == [None, None, "no_frame"]
    for value in (3, 4, 5):
        own.see(value)
    assert own.wait(2)[1].verdict == "pass"


def test_a_software_trigger_is_fired_for_each_frame_of_a_part(post: Make) -> None:
    own = post(triggered=True, frames_per_part=3)
    fired: list[float] = []

    def fire() -> bool:
        fired.append(own.see(len(fired)))
        return True

    own.fire = fire
    own.intake.trigger(ANN)
    [result] = own.wait(1)
    assert len(fired) == len(result.frames) == 3


def test_a_burst_that_the_camera_took_in_part_leaves_the_next_parts_frames_alone(post: Make) -> None:
    own = post(triggered=True, frames_per_part=3)
    taken = iter([True, False, True, True, True])
    own.fire = lambda: next(taken)
    own.intake.trigger(ANN)
    own.intake.trigger(BOB)
    for value in (1, 2, 3, 4):
        own.see(value)
    first, second = own.wait(2)
    assert (first.part_id, first.verdict, first.reason) == ("ann", "unknown", "no_frame")
    assert sorted(frame.frame.number for frame in first.frames) == [0, 0, 1]
    assert first.detail == "the camera took 1 of 3 triggers"
    assert (second.part_id, second.verdict) == ("bob", "pass")
    assert [frame.frame.number for frame in second.frames] == [2, 3, 4]


def test_a_camera_that_is_lost_ends_its_parts_and_the_next_frames_are_other_parts(post: Make) -> None:
    own = post(triggered=True, frame_timeout_ms=300.0)
    own.intake.trigger(ANN)
    own.intake.camera_lost()
    [lost] = own.wait(1)
    assert (lost.part_id, lost.reason, lost.detail) == ("ann", "no_frame", "the camera was lost before this frame came")
    own.intake.trigger(BOB)
    own.see(5)
    assert [result.part_id for result in own.wait(2)] == ["ann", "bob"]
    time.sleep(0.4)
    assert own.replaced == []  # the new one is not at fault


def test_triggers_that_come_at_once_keep_their_frames(post: Make) -> None:
    own = post(triggered=True, queue_frames=100)
    lock, fired = threading.Lock(), list[str]()

    def fire() -> bool:
        time.sleep(0.002)  # on its way to the camera
        with lock:
            own.see(len(fired))
            fired.append(threading.current_thread().name)
        return True

    own.fire = fire
    senders = [threading.Thread(target=own.intake.trigger, args=(Identity(f"p{n}"),), name=f"p{n}") for n in range(12)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert [result.part_id for result in own.wait(12)] == fired


# Names.


def test_a_name_that_came_before_its_part_is_taken_and_an_old_one_is_not(post: Make) -> None:
    own = post(part_before_ms=100.0)
    assert not own.intake.identify(ANN)
    time.sleep(0.15)
    assert not own.intake.identify(BOB)
    own.see(1)
    own.see(2)
    assert [result.part_id for result in own.wait(2)] == ["bob", None]


def test_a_name_that_comes_after_its_part_is_waited_for(post: Make) -> None:
    own = post(part_after_ms=2_000.0)
    own.see(1)
    own.see(2)
    assert own.intake.identify(ANN)
    assert [result.part_id for result in own.wait(1)] == ["ann"]
    assert own.intake.identify(BOB)
    results = own.wait(2)
    assert [(result.frame.number, result.part_id) for result in results] == [(1, "ann"), (2, "bob")]


def test_a_part_that_nobody_names_waits_no_longer_than_configured(post: Make) -> None:
    own = post(part_after_ms=200.0)
    came_s = own.see(1)
    [result] = own.wait(1)
    assert result.part_id is None
    assert 0.2 <= own.committed_s[0] - came_s < 1.0


def test_a_stop_answers_what_waits_for_frames_and_names(post: Make) -> None:
    own = post(frames_per_part=2, part_after_ms=10_000.0)
    for value in (1, 2, 3):
        own.see(value)
    wait_for(lambda: own.station.waiting() == 0, "the frames to be taken")
    own.close()
    assert [result.reason for result in own.results] == [None, "stopped"]
    assert [result.verdict for result in own.results] == ["pass", "unknown"]


# Deadlines.


def test_at_the_deadline_the_line_gets_unknown_and_the_late_judgement_is_only_kept(post: Make, over: int) -> None:
    def slow(pictures: Sequence[NDArray[np.uint8]]) -> None:
        time.sleep(0.6 if pictures[0][0, 0] == over else 0)

    own = post(PixelJudge(slow), deadline_ms=150.0)
    own.see(1)
    own.wait(1)
    came_s = own.see(over)
    passed, late = own.wait(2)
    assert (passed.verdict, late.verdict, late.reason) == ("pass", "unknown", "deadline")
    assert late.detail == "not judged within 150 ms of its arrival"
    assert 0.15 <= own.committed_s[1] - came_s < 0.45  # not when the judgement came
    wait_for(lambda: len(own.late()) == 1, "the late judgement")
    [(result_id, verdict, score, late_s)] = own.late()
    assert (result_id, verdict) == (late.result_id, "fail")
    assert score == pytest.approx(over / 255)
    assert late_s == pytest.approx(0.45, abs=0.2)
    assert len(own.results) == 2


def test_a_frame_that_waits_past_its_deadline_is_not_judged_at_all(post: Make) -> None:
    judge = PixelJudge(lambda pictures: time.sleep(0.4 if pictures[0][0, 0] == 1 else 0))
    own = post(judge, deadline_ms=100.0)
    own.see(1)
    wait_for(lambda: len(judge.batches) == 1, "the first to be taken")
    own.see(2)
    results = own.wait(2)
    assert [result.reason for result in results] == ["deadline", "deadline"]
    own.close()
    assert judge.batches == [[1]]


def test_a_part_waits_for_its_name_no_longer_than_its_deadline(post: Make) -> None:
    own = post(deadline_ms=100.0, part_after_ms=5_000.0)
    came_s = own.see(1)
    [result] = own.wait(1)
    assert (result.verdict, result.part_id) == ("pass", None)
    assert own.committed_s[0] - came_s < 1.0


def test_a_frame_that_comes_after_its_parts_deadline_is_not_taken_for_the_next_parts(post: Make) -> None:
    own = post(frames_per_part=2, deadline_ms=80.0, frame_timeout_ms=2_000.0)
    own.see(1)
    [short] = own.wait(1)
    assert (short.verdict, [frame.reason for frame in short.frames]) == ("unknown", [None, "no_frame"])
    for value in (2, 3, 4):  # the late one, then a whole part
        own.see(value)
    assert [frame.frame.number for frame in own.wait(2)[1].frames] == [3, 4]
    assert own.counted["unclaimed"] == 1


def test_a_name_that_comes_after_its_parts_deadline_is_not_the_next_parts(post: Make) -> None:
    own = post(deadline_ms=60.0, part_after_ms=2_000.0)
    own.see(1)
    own.wait(1)
    assert own.intake.identify(ANN)  # of the part that went without it
    own.see(2)
    assert own.intake.identify(BOB)
    assert [result.part_id for result in own.wait(2)] == [None, "bob"]


def test_refused_triggers_leave_nothing_behind(post: Make) -> None:
    own = post(triggered=True)
    own.fire = lambda: False
    for _ in range(5):
        with pytest.raises(TriggerError):
            own.intake.trigger(ANN)
    assert not own.station._open
    assert not own.station._order


def test_alarms_come_in_time_and_outlive_one_that_fails() -> None:
    alarms = Alarms()
    rung: list[tuple[str, float]] = []
    start_s = time.monotonic()

    def ring(name: str) -> None:
        rung.append((name, time.monotonic() - start_s))
        if name == "bad":
            raise ValueError("on purpose")

    for name, delay_s in (("last", 0.3), ("first", 0.1), ("bad", 0.05), ("now", -1.0)):
        alarms.at(start_s + delay_s, lambda name=name: ring(name))  # type: ignore[misc]
    wait_for(lambda: len(rung) == 4, "the alarms")
    alarms.at(time.monotonic() + 60, lambda: ring("never"))
    alarms.stop()
    assert [name for name, _ in rung] == ["now", "bad", "first", "last"]
    assert all(when_s >= delay_s for (_, when_s), delay_s in zip(rung, (0, 0.05, 0.1, 0.3), strict=True))


def ticket_of(station: Station, own: Frame) -> Ticket:
    ticket = station.enter(own)
    assert ticket is not None
    return ticket


def test_what_has_ended_holds_no_slot_of_the_ring_while_it_waits_for_others(post: Make) -> None:
    own = post(frames_per_part=2)
    ticket = ticket_of(own.station, frame(1))
    assert ticket.frame.pixels is not None
    own.finisher.unknown(ticket, "unreadable", "")
    assert ticket.frame.pixels is None
