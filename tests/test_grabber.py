"""daemon/grabber.py: what it tells of frames whose numbers were left out."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from config.errors import CameraFinished
from connectors.cameras import CameraInfo, CapturedFrame
from daemon.grabber import MESSAGE_BYTES, MESSAGES, MOST_LOST, Arrival, Grabber, Heartbeat


class Counting:
    """A camera that numbers its frames as told, and is at its end then."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)

    def open(self) -> CameraInfo:
        return CameraInfo("counting", "", "", "", 4, True)

    def next_frame(self, timeout_s: float) -> CapturedFrame | None:
        if not self._numbers:
            raise CameraFinished("done")
        return CapturedFrame(self._numbers.pop(0), time.time_ns(), "host", np.zeros((2, 2), np.uint8))

    def trigger(self, timeout_s: float) -> bool:
        raise AssertionError

    def close(self) -> None:
        pass


def told(*numbers: int) -> tuple[list[Arrival], dict[str, int]]:
    """What a grabber tells of frames with these numbers, and its last counters."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arrivals: list[Arrival] = []
    counters: dict[str, int] = {}
    with ours:
        worker = threading.Thread(target=_serve, args=(Grabber(Counting(numbers), theirs, 600), theirs))
        worker.start()
        ours.settimeout(10)
        _, [descriptor], _, _ = socket.recv_fds(ours, MESSAGE_BYTES, 1)
        os.close(descriptor)
        while packet := ours.recv(MESSAGE_BYTES):
            match MESSAGES.validate_json(packet):
                case Arrival() as arrival:
                    arrivals.append(arrival)
                case Heartbeat() as beat:
                    counters = beat.counters
        worker.join()
    return arrivals, counters


def _serve(grabber: Grabber, channel: socket.socket) -> None:
    with channel, suppress(CameraFinished):
        grabber.run()


def test_numbers_without_gaps_lose_nothing() -> None:
    arrivals, counters = told(65_400, 65_401, 65_402)
    assert [arrival.fault for arrival in arrivals] == [None] * 3
    assert "frames_lost" not in counters


def test_each_number_that_was_left_out_is_told_as_a_lost_frame_in_order() -> None:
    arrivals, counters = told(7, 8, 11, 12)
    assert [(arrival.number, (arrival.fault or "").partition(":")[0], arrival.lost) for arrival in arrivals] == [
        (7, "", 0), (8, "", 0), (9, "lost", 1), (10, "lost", 1), (11, "", 0), (12, "", 0),
    ]  # fmt: skip
    assert arrivals[2].fault == "lost: frame 9 never arrived, the next one to come was 11"
    assert (counters["frames"], counters["frames_lost"]) == (4, 2)


def test_a_long_gap_is_counted_in_full_and_told_in_bounded_many() -> None:
    arrivals, counters = told(1, 2_002)
    lost = arrivals[1:-1]
    assert len(lost) == MOST_LOST
    assert sum(arrival.lost for arrival in lost) == 2_000 == counters["frames_lost"]
    assert [arrival.number for arrival in lost] == list(range(2_002 - MOST_LOST, 2_002))
    assert "(and the 1744 before it)" in str(lost[0].fault)


def test_a_number_that_comes_again_or_goes_back_is_no_loss() -> None:
    arrivals, _ = told(5, 5, 3, 4)
    assert [arrival.fault for arrival in arrivals] == [None] * 4
