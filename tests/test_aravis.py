"""connectors/cameras/aravis.py over a wire, and the camera process around it: aravis' fake camera, lost, cut and killed."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.errors import CameraError
from config.schema import AravisCamera
from connectors.cameras import Camera, CapturedFrame, create_camera
from connectors.cameras.aravis import AravisDriver
from daemon.frame import Frame
from daemon.supervisor import CameraStatus, CameraSupervisor
from tests.fake_camera import AHEAD_S
from tests.genicam import CLOCK, HEARTBEAT, PTP, READINESS, TRIGGERS, write_description
from tests.test_cli import aprilcam
from tests.wire import CAMERA, OTHER, Wire
from tests.wire import wire as wire

WAIT_S = 30.0
FIRST_NUMBER = 65_400
"""The fake camera's frame numbers start a little above."""
Make = Callable[..., AravisDriver]


def camera(**keys: Any) -> AravisCamera:
    which = {} if "ip" in keys else {"serial": "GV01"}
    small = {"width": 320, "height": 240, "rate_hz": 50.0, "retry_s": 0.5}
    return AravisCamera.model_validate({"name": "cam", "driver": "aravis", **which, **small, **keys})


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes a driver, closed at the end."""
    made: list[AravisDriver] = []

    def create(**keys: Any) -> AravisDriver:
        driver = create_camera(camera(**keys))
        assert isinstance(driver, AravisDriver)
        made.append(driver)
        return driver

    yield create
    for driver in made:
        driver.close()


def shown(driver: Camera) -> CapturedFrame:
    """The first whole frame: a kernel with a small receive buffer and a busy machine may drop a packet of one."""
    for _ in range(20):
        frame = driver.next_frame(3.0)
        assert frame is not None
        if frame.fault is None:
            return frame
    raise AssertionError("20 faulty frames")


def refusal(driver: AravisDriver) -> str:
    with pytest.raises(CameraError) as caught:
        driver.open()
    return str(caught.value)


class Process:
    """A camera process as the daemon keeps it, and what it told."""

    def __init__(self, config: AravisCamera) -> None:
        self.frames: list[tuple[int, str | None]] = []
        self.lost = 0
        self.changes: list[CameraStatus] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.supervisor = CameraSupervisor(config, self._frame, self.changes.append)
        self.supervisor.start()

    def _frame(self, frame: Frame) -> None:
        if frame.pixels is not None:
            self.shapes.add(frame.pixels.shape)
        self.lost += frame.lost
        self.frames.append((frame.number, frame.fault))

    @property
    def status(self) -> CameraStatus:
        return self.supervisor.status

    def kinds(self, start: int = 0) -> Counter[str]:
        return Counter((fault or "whole").partition(":")[0] for _, fault in self.frames[start:])

    def nearly_all_whole(self) -> bool:
        """A kernel with a small receive buffer and a busy machine may drop a packet."""
        return self.kinds()["whole"] > 0.95 * len(self.frames)

    def until(self, true: Callable[[], object]) -> None:
        end_s = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < end_s, f"not within {WAIT_S} s; {self.status}; {self.kinds()}"
            time.sleep(0.01)

    def whole(self, count: int) -> None:
        self.until(lambda: self.kinds()["whole"] >= count)

    def frames_come(self, count: int = 10) -> None:
        self.whole(self.kinds()["whole"] + count)


Start = Callable[..., Process]


@pytest.fixture
def start(wire: Wire) -> Iterator[Start]:
    """A function that starts a camera process, ended after the test and before the wire."""
    started: list[Process] = []

    def begin(**keys: Any) -> Process:
        started.append(Process(camera(**keys)))
        return started[-1]

    yield begin
    for process in started:
        process.supervisor.stop()


# choosing


@pytest.mark.parametrize("which", [{"serial": "GV01"}, {"ip": CAMERA}])
def test_chosen_by_serial_or_address(wire: Wire, make: Make, which: dict[str, str]) -> None:
    wire.start_camera("GV02", OTHER)
    wire.start_camera("GV01")
    info = make(**which).open()
    assert (info.driver, info.model, info.serial, info.is_simulated) == ("aravis", "Aravis Fake", "GV01", False)
    assert info.frame_bytes == 320 * 240


@pytest.mark.parametrize("which", [{"serial": "GV09"}, {"ip": "192.168.77.99"}])
def test_not_found_tells_what_was_seen(wire: Wire, make: Make, which: dict[str, str]) -> None:
    wire.start_camera()
    text = refusal(make(**which))
    assert text.startswith(f"Camera cam: not found: {next(iter(which))} ")
    assert "Seen: Fake (serial GV01, 192.168.77.10). Check power" in text


def test_a_wire_without_cameras_says_so(wire: Wire, make: Make) -> None:
    assert "Seen: no camera at all" in refusal(make())


def test_taken_by_another_application_and_free_again_when_that_lets_go(wire: Wire, make: Make) -> None:
    wire.start_camera()
    first = make()
    first.open()
    assert "Aravis-Fake-GV01 is taken by another application" in refusal(make())
    assert shown(first).fault is None
    first.close()
    second = make()
    second.open()
    assert shown(second).fault is None


# settings


def test_settings_are_written_by_the_names_the_camera_has_and_read_back(wire: Wire, make: Make) -> None:
    wire.start_camera()
    settings = make(exposure_us=1500.0, gain=3.0, features={"OffsetX": 16, "ExposureTime": 1200.0}).open().settings
    assert settings == {
        "Width": "320", "Height": "240", "TriggerSelector": "FrameStart", "TriggerMode": "Off", "GainAuto": "Off",
        "GainRaw": "3", "AcquisitionFrameRate": "50.0", "OffsetX": "16", "ExposureTimeAbs": "1200.0",
    }  # fmt: skip


def test_trigger_settings_are_written_and_read_back(wire: Wire, make: Make, tmp_path: Path) -> None:
    wire.start_camera(xml=write_description(tmp_path, TRIGGERS, HEARTBEAT))
    driver = make(trigger="line1", trigger_activation="rising_edge", trigger_delay_us=250.0, debounce_us=20.0, heartbeat_ms=4000)
    expected = {
        "TriggerMode": "On", "TriggerSource": "Line1", "TriggerActivation": "RisingEdge", "TriggerDelayAbs": "250.0",
        "LineSelector": "Line1", "LineDebouncerTimeAbs": "20.0", "GevHeartbeatTimeout": "4000",
    }  # fmt: skip
    assert expected.items() <= driver.open().settings.items()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"pixel_format": "Mono12"},
            "it takes BayerBG8, BayerGB8, BayerGR8, BayerRG8, Mono8, RGB8, Mono16. Correct pixel_format",
        ),
        ({"pixel_format": "Mono12"}, "or is another camera in its place?"),
        ({"features": {"Zap": 1}}, "features.Zap = 1: the camera has no feature Zap"),
        ({"width": 5000}, "it takes 1 to 2048"),
        ({"gain": 2.5}, "GainRaw refused it (it takes whole numbers); it takes 0 to 10"),
        ({"trigger": "line1"}, "trigger = Line1: TriggerSource refused it"),
        ({"trigger": "software", "trigger_delay_us": 5.0}, "no feature TriggerDelay or TriggerDelayAbs"),
        ({"ptp": True}, "no feature PtpEnable or GevIEEE1588. Leave ptp out"),
        ({"features": {"ExposureTime": "long"}}, "features.ExposureTime = long: ExposureTimeAbs refused it"),
        ({"features": {"PayloadSize": 3}}, "features.PayloadSize = 3: PayloadSize "),
    ],
)
def test_a_setting_the_camera_does_not_take_is_told(wire: Wire, make: Make, keys: dict[str, Any], words: str) -> None:
    wire.start_camera()
    assert words in refusal(make(**keys))


# frames


@pytest.mark.parametrize(
    ("pixel_format", "shape"),
    [("Mono8", (240, 320)), ("Mono16", (240, 320)), ("RGB8", (240, 320, 3)), ("BayerRG8", (240, 320, 3))],
)
def test_pixels_of_each_format(wire: Wire, make: Make, pixel_format: str, shape: tuple[int, ...]) -> None:
    wire.start_camera()
    driver = make(pixel_format=pixel_format)
    info = driver.open()
    pixels = shown(driver).pixels
    assert pixels is not None
    assert pixels.shape == shape
    assert pixels.nbytes == info.frame_bytes
    assert pixels.std() > 10  # the fake camera draws ramps


def test_frames_come_at_the_rate_and_their_numbers_go_on_over_the_16_bit_wrap(wire: Wire, start: Start) -> None:
    wire.start_camera()
    process = start(rate_hz=50.0)
    process.frames_come(5)
    begin_s, begin = time.monotonic(), len(process.frames)
    process.frames_come(250)
    rate_hz = (len(process.frames) - begin) / (time.monotonic() - begin_s)
    assert 30 < rate_hz < 55  # the fake camera's own is 25
    numbers = [number for number, _ in process.frames]
    assert FIRST_NUMBER < numbers[0] < 0xFFFF < numbers[-1]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert process.nearly_all_whole()
    assert process.shapes == {(240, 320)}


def test_lost_packets_make_incomplete_frames_never_whole_ones(wire: Wire, start: Start) -> None:
    wire.start_camera(lost=0.005)
    process = start()
    process.until(lambda: len(process.frames) >= 150)
    kinds = process.kinds()
    assert kinds["incomplete"] > 10
    assert kinds["whole"] > 10
    numbers = [number for number, _ in process.frames]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # each is told of once, in order
    process.until(lambda: process.status.counters.get("faults_incomplete", 0) > 10)
    assert process.status.counters["packets_failed"] > 0
    assert process.status.restarts == 0


def test_a_pulled_cable_loses_frames_which_are_counted_and_the_rest_comes_by_itself(wire: Wire, start: Start) -> None:
    wire.start_camera()
    process = start()
    process.frames_come()
    wire.pull()
    time.sleep(1)
    wire.plug()
    process.frames_come(50)
    assert process.status.restarts == 0
    kinds = process.kinds()
    assert kinds["lost"] == process.lost
    assert 20 < kinds["lost"] + kinds["incomplete"] < 200
    numbers = [number for number, _ in process.frames]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    process.until(lambda: process.status.counters.get("frames_lost", 0) == process.lost)


def test_a_camera_that_died_is_taken_again_with_its_settings(wire: Wire, start: Start) -> None:
    wire.start_camera()
    process = start(exposure_us=1500.0)
    process.frames_come()
    wire.kill_camera()
    process.until(lambda: not process.status.connected)
    assert "it no longer answers, or another application has taken it. Check power and cable" in process.status.reason
    process.until(lambda: "not found: serial 'GV01'. Seen: no camera at all" in process.status.reason)
    process.shapes.clear()
    wire.start_camera()  # with the settings of the factory, as after a loss of power
    process.frames_come()
    assert process.shapes == {(240, 320)}
    info = process.status.info
    assert info is not None
    assert info.settings["ExposureTimeAbs"] == "1500.0"
    assert process.lost == 0  # its numbers began anew, which is no gap


def test_a_camera_swapped_for_another_model_is_told_by_its_pixel_format(wire: Wire, start: Start, tmp_path: Path) -> None:
    wire.start_camera()
    process = start(pixel_format="BayerRG8")
    process.frames_come()
    wire.kill_camera()
    process.until(lambda: not process.status.connected)
    description = write_description(tmp_path)
    grey = description.read_text().replace('"BayerRG8"', '"BayerXX8"')
    description.write_text(grey)
    wire.start_camera(xml=description)
    process.until(lambda: "pixel_format = BayerRG8: PixelFormat refused it" in process.status.reason)
    assert "or is another camera in its place?" in process.status.reason


def test_jumbo_packets_carry_a_frame_in_fewer_of_them(wire: Wire, start: Start) -> None:
    wire.mtu(9000)
    wire.start_camera()
    process = start(packet_size_bytes=8000)
    process.frames_come()
    packets, size = wire.received()
    process.frames_come(50)
    later_packets, later_size = wire.received()
    assert (later_size - size) / (later_packets - packets) > 6000
    assert process.nearly_all_whole()
    info = process.status.info
    assert info is not None
    assert info.settings["GevSCPSPacketSize"] == "8000"


def test_two_cameras_share_a_wire(wire: Wire, start: Start) -> None:
    wire.start_camera("GV01")
    wire.start_camera("GV02", OTHER)
    small, large = start(serial="GV01"), start(serial="GV02", width=400, height=300)
    for process in (small, large):
        process.frames_come(50)
        assert process.nearly_all_whole()
    assert (small.shapes, large.shapes) == ({(240, 320)}, {(300, 400)})
    wire.kill_camera("GV02")
    large.until(lambda: not large.status.connected)
    small.frames_come()
    assert (small.status.restarts, small.lost) == (0, 0)


# triggers


def test_a_software_trigger_gives_one_frame(wire: Wire, start: Start) -> None:
    wire.start_camera()
    process = start(trigger="software", rate_hz=None)
    process.until(lambda: process.status.connected)
    for count in range(3):
        assert process.supervisor.trigger()
        process.whole(count + 1)
    time.sleep(1.0)
    assert process.kinds() == {"whole": 3}


def test_a_camera_that_can_say_so_is_triggered_when_it_is_ready_only(
    wire: Wire, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wire.start_camera(xml=write_description(tmp_path, READINESS))
    busy = start(trigger="software", rate_hz=None)
    busy.until(lambda: busy.status.connected)
    assert not busy.supervisor.trigger()
    assert "camera cam: not triggered: it was busy for 0.4 s" in caplog.text
    busy.supervisor.stop()
    assert busy.frames == []
    ready = start(trigger="software", rate_hz=None, features={"Ready": 1})
    ready.until(lambda: ready.status.connected)
    assert ready.supervisor.trigger()
    ready.whole(1)


def test_a_free_running_camera_is_not_triggered(wire: Wire, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    wire.start_camera()
    process = start()
    process.frames_come()
    assert not process.supervisor.trigger()
    assert 'camera cam: not triggered: its trigger is not "software"' in caplog.text


# clocks


def test_a_camera_without_a_clock_to_ask_gives_its_own_ticks(wire: Wire, make: Make) -> None:
    wire.start_camera()
    driver = make()
    driver.open()
    frame = shown(driver)
    assert (frame.clock, frame.timestamp_error_ns) == ("camera", None)


def test_a_camera_that_can_be_asked_for_its_clock_gives_utc(wire: Wire, make: Make, tmp_path: Path) -> None:
    wire.start_camera(xml=write_description(tmp_path, CLOCK))
    driver = make()
    driver.open()
    frame, now_ns = shown(driver), time.time_ns()
    assert frame.clock == "camera_utc"
    # The fake camera's frames are stamped so far behind the clock that it tells of: the mapping has used the answer.
    assert (now_ns - frame.timestamp_ns) / 1e9 == pytest.approx(AHEAD_S, abs=0.5)
    assert frame.timestamp_error_ns is not None
    assert frame.timestamp_error_ns / 1e9 == pytest.approx(AHEAD_S * 100e-6, rel=0.2)  # and it was extrapolated that far


def test_a_camera_that_follows_a_ptp_master_gives_its_time(wire: Wire, make: Make, tmp_path: Path) -> None:
    wire.start_camera(xml=write_description(tmp_path, CLOCK, PTP))
    driver = make(ptp=True)
    assert driver.open().settings["GevIEEE1588"] == "True"
    frame = shown(driver)
    assert (frame.clock, frame.timestamp_error_ns) == ("ptp", None)
    driver.close()
    lonely = make(ptp=False)
    lonely.open()
    assert shown(lonely).clock == "camera_utc"


# the command


def test_cameras_lists_what_the_wire_has_and_the_features_of_one(wire: Wire, make: Make) -> None:
    wire.start_camera("GV01")
    wire.start_camera("GV02", OTHER)
    make(serial="GV02").open()
    done = aprilcam("cameras", "--json")
    assert done.returncode == 0
    seen = {row["serial"]: row for row in json.loads(done.stdout)["cameras"]}
    free = {"driver": "aravis", "serial": "GV01", "name": "", "model": "Aravis Fake", "address": CAMERA, "access": "free"}
    assert seen["GV01"] == free
    assert seen["GV02"] == {**free, "serial": "GV02", "address": OTHER, "access": "taken"}
    listed = aprilcam("cameras")
    assert listed.returncode == 0
    for words in ("GV01", "GV02", CAMERA, "taken", "free"):
        assert words in listed.stdout
    done = aprilcam("cameras", "--features", "GV02", "--json")  # reading disturbs nobody
    features = {row["name"]: row for row in json.loads(done.stdout)["features"]}
    assert features["Width"] == {"name": "Width", "value": "320", "takes": "1 to 2048", "writable": True}
    assert features["PixelFormat"]["value"] == "Mono8"
    done = aprilcam("cameras", "--features", "GV09")
    assert done.returncode == 2
    assert "No camera with serial GV09" in done.stderr
