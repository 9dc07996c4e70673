"""connectors/cameras/clock.py: camera time to UTC, with a camera whose clock is known."""

import time

import pytest

from connectors.cameras import clock
from connectors.cameras.clock import CameraClock
from connectors.cameras.features import Refused, Value

AHEAD_NS = 5_000_000_000_000


class Device:
    """The nodes of a camera with a clock; a latch takes `slow_s` to reach it, and as long to be told."""

    def __init__(self, names: tuple[str, ...], tick_hz: int = 1_000_000_000, slow_s: float = 0.0) -> None:
        self._names = names
        self._tick_hz = tick_hz
        self._slow_s = slow_s
        self._latched = 0
        self.refuses = False
        self.stands_still = False
        self.ptp_status = "Listening"
        self.asked: list[str] = []

    def ticks(self) -> int:
        return (time.time_ns() + AHEAD_NS) * self._tick_hz // 1_000_000_000

    def has(self, name: str) -> bool:
        return name in self._names

    def write(self, name: str, value: Value) -> None:
        self.asked.append(name)
        if self.refuses:
            raise Refused("gone")
        if "Latch" in name and "DataSet" not in name:
            time.sleep(self._slow_s)
            self._latched = 77 if self.stands_still else self.ticks()
            time.sleep(self._slow_s)

    def read(self, name: str) -> Value | None:
        match name:
            case "GevTimestampTickFrequency":
                return self._tick_hz
            case "TimestampLatchValue" | "GevTimestampValue":
                return self._latched
        return self.ptp_status

    def allowed(self, name: str) -> str:
        return ""

    def step(self, name: str) -> float:
        return 0.0


STANDARD = ("TimestampLatch", "TimestampLatchValue")
OLDER = ("GevTimestampControlLatch", "GevTimestampValue", "GevTimestampTickFrequency")


@pytest.mark.parametrize(("names", "tick_hz"), [(STANDARD, 1_000_000_000), (OLDER, 125_000_000)])
def test_camera_time_becomes_utc_within_the_stated_error(names: tuple[str, ...], tick_hz: int) -> None:
    device = Device(names, tick_hz, slow_s=0.002)
    camera = CameraClock(device, ptp=False)
    true_ns = time.time_ns()
    stamp = camera.stamp(camera.ticks_ns(device.ticks()))
    assert stamp.clock == "camera_utc"
    assert stamp.error_ns is not None
    assert 2_000_000 <= stamp.error_ns < 100_000_000
    assert abs(stamp.timestamp_ns - true_ns) <= stamp.error_ns + 1_000_000


def test_the_stated_error_grows_with_the_time_since_the_clocks_were_compared() -> None:
    device = Device(STANDARD)
    camera = CameraClock(device, ptp=False)
    assert camera.pair is not None
    later_ns = camera.pair.camera_ns + 8_000_000_000
    stamp = camera.stamp(later_ns)
    assert stamp.error_ns == camera.pair.error_ns + 800_000
    assert stamp.timestamp_ns == camera.pair.host_ns + 8_000_000_000


def test_the_clocks_are_compared_again_when_the_last_time_is_old_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(STANDARD)
    camera = CameraClock(device, ptp=False)
    first = camera.pair
    camera.refresh()
    assert camera.pair is first
    monkeypatch.setattr(clock, "REFRESH_S", 0.0)
    camera.refresh()
    assert camera.pair is not None
    assert first is not None
    assert camera.pair.camera_ns > first.camera_ns


def test_a_clock_that_stands_still_is_not_believed() -> None:
    device = Device(STANDARD)
    device.stands_still = True
    assert CameraClock(device, ptp=False).stamp(5).clock == "camera"


def test_a_camera_that_refuses_falls_back_to_its_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(STANDARD)
    camera = CameraClock(device, ptp=False)
    device.refuses = True
    device.asked.clear()
    monkeypatch.setattr(clock, "REFRESH_S", 0.0)
    camera.refresh()
    assert len(device.asked) == 1  # each question may take seconds
    stamp = camera.stamp(5)
    assert (stamp.timestamp_ns, stamp.clock, stamp.error_ns) == (5, "camera", None)


def test_a_frame_without_a_time_gets_the_hosts() -> None:
    before_ns = time.time_ns()
    stamp = CameraClock(Device(()), ptp=False).stamp(0)
    assert stamp.clock == "host"
    assert before_ns <= stamp.timestamp_ns <= time.time_ns()


@pytest.mark.parametrize("names", [("PtpStatus", "PtpDataSetLatch"), ("GevIEEE1588StatusLatched", "GevIEEE1588DataSetLatch")])
def test_ptp_time_is_called_so_only_while_a_master_is_followed(monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]) -> None:
    monkeypatch.setattr(clock, "REFRESH_S", 0.0)
    device = Device((*STANDARD, *names))
    camera = CameraClock(device, ptp=True)

    def follows() -> str:
        return camera.stamp(device.ticks()).clock

    assert follows() == "camera_utc"
    device.ptp_status = "Slave"
    camera.refresh()
    assert follows() == "ptp"
    assert device.asked[-1] == names[1]  # the status is read as the camera has it now
    device.ptp_status = "Faulty"
    camera.refresh()
    assert follows() == "camera_utc"
