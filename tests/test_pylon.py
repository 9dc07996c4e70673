"""connectors/cameras/pylon.py against pylon's own emulator."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.errors import CameraError
from config.schema import PylonCamera
from connectors.cameras import Camera, CameraInfo, CapturedFrame, create_camera
from connectors.cameras.pylon import PylonDriver
from tests.conftest import COLOURS, DrawPictures

Make = Callable[..., PylonDriver]
RGB8 = ("RGB8Packed", "BGR8Packed", "RGB16Packed", "BGRA8Packed")
BAYER = tuple(f"Bayer{order}{bits}" for order in ("GR", "RG", "GB", "BG") for bits in (8, 10, 12, 16))


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes a driver, quick (0.1 ms exposure) unless told otherwise, closed at the end."""
    made: list[PylonDriver] = []

    def create(**keys: Any) -> PylonDriver:
        selector = {} if keys.keys() & {"serial", "user_name", "ip", "emulate"} else {"serial": "0815-0000"}
        made.append(PylonDriver(PylonCamera(name="cam", driver="pylon", **{"exposure_us": 1000.0} | selector | keys)))
        return made[-1]

    yield create
    for driver in made:
        driver.close()


def shown(driver: Camera) -> CapturedFrame:
    frame = driver.next_frame(2.0)
    assert frame is not None
    return frame


def pixels(driver: Camera) -> np.ndarray[Any, np.dtype[np.uint8]]:
    frame = shown(driver)
    assert frame.fault is None
    assert frame.pixels is not None
    return frame.pixels


def node(driver: PylonDriver, name: str, value: object) -> None:
    driver._camera.GetNodeMap().GetNode(name).SetValue(value)


def refusal(driver: PylonDriver) -> str:
    with pytest.raises(CameraError) as caught:
        driver.open()
    return str(caught.value)


# choosing


def test_chosen_by_serial(make: Make) -> None:
    info = make(serial="0815-0001").open()
    assert (info.driver, info.model, info.serial, info.is_simulated) == ("pylon", "Emulation", "0815-0001", True)
    assert info.frame_bytes == 1024 * 1040


@pytest.mark.parametrize("selector", [{"serial": "123"}, {"user_name": "left"}, {"ip": "10.1.2.3"}])
def test_not_found_tells_what_was_seen(make: Make, selector: dict[str, str]) -> None:
    text = refusal(make(**selector))
    assert text.startswith(f"Camera cam: not found: {next(iter(selector))} ")
    assert next(iter(selector.values())) in text
    assert "0815-0000" in text
    assert "0815-0001" in text


def test_create_camera_gives_this_driver(draw_pictures: DrawPictures) -> None:
    assert isinstance(create_camera(PylonCamera(name="c", driver="pylon", emulate=draw_pictures())), PylonDriver)


class Device:
    """A device information as pylon gives it, for what the emulator cannot show."""

    def __init__(self, serial: str, user_name: str, ip: str) -> None:
        self.serial, self.user_name, self.ip = serial, user_name, ip

    def GetModelName(self) -> str:  # noqa: N802
        return "acA1300"

    def GetSerialNumber(self) -> str:  # noqa: N802
        return self.serial

    def GetUserDefinedName(self) -> str:  # noqa: N802
        return self.user_name

    def IsIpAddressAvailable(self) -> bool:  # noqa: N802
        return True

    def GetIpAddress(self) -> str:  # noqa: N802
        return self.ip


def test_chosen_by_name_and_address_never_by_half_a_match(make: Make) -> None:
    devices = [Device("1", "left", "10.0.0.1"), Device("2", "right", "10.0.0.11"), Device("3", "right", "10.0.0.12")]
    assert make(user_name="left")._choose(devices) is devices[0]
    assert make(ip="10.0.0.11")._choose(devices) is devices[1]
    with pytest.raises(CameraError, match=r"carried by 2 cameras: .*10\.0\.0\.11.*Choose it by serial"):
        make(user_name="right")._choose(devices)


# pixels


def test_folder_is_played_in_order_with_each_picture_in_its_size(make: Make, draw_pictures: DrawPictures) -> None:
    folder = draw_pictures(3)
    driver = make(emulate=draw_pictures(1, width=1500, height=1100), pixel_format="RGB8Packed")
    assert driver.open().frame_bytes == 1500 * 1100 * 3  # beyond the emulator's own 1024 x 1040, nothing is cropped
    frames = []
    for _ in range(4):
        frame = pixels(driver)
        frames.append((frame.shape, tuple(frame[5, 5])))
    sizes = [(1100, 1500, 3), (48, 64, 3), (48, 64, 3), (1100, 1500, 3)]
    assert frames == list(zip(sizes, [*COLOURS, COLOURS[0]], strict=True))
    assert folder.is_dir()


@pytest.mark.parametrize("pixel_format", RGB8 + BAYER)
def test_every_colour_format_becomes_rgb(make: Make, draw_pictures: DrawPictures, pixel_format: str) -> None:
    driver = make(emulate=draw_pictures(1), pixel_format=pixel_format)
    info = driver.open()
    picture = pixels(driver)
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert picture.nbytes <= info.frame_bytes
    inner = picture[4:-4, 4:-4].astype(int)
    assert np.abs(inner - COLOURS[0]).max() <= 1
    assert info.settings["PixelFormat"] == pixel_format


@pytest.mark.parametrize("pixel_format", ["Mono8", "Mono10", "Mono12", "Mono16"])
def test_every_grey_format_becomes_8_bits(make: Make, draw_pictures: DrawPictures, pixel_format: str) -> None:
    driver = make(emulate=draw_pictures(1), pixel_format=pixel_format)
    driver.open()
    picture = pixels(driver)
    assert picture.shape == (48, 64)
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - 122).max() <= 8  # 0.3 R + 0.59 G + 0.11 B; the emulator computes 116


def test_area_of_interest_crops(make: Make, draw_pictures: DrawPictures) -> None:
    driver = make(emulate=draw_pictures(1), width=32, height=20)
    assert driver.open().frame_bytes == 32 * 20
    assert pixels(driver).shape == (20, 32)


def test_numbers_count_and_host_clock_stands_in_for_absent_ticks(make: Make) -> None:
    driver = make()
    driver.open()
    frames = [shown(driver) for _ in range(3)]
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert {frame.clock for frame in frames} == {"host"}
    assert frames[0].timestamp_ns < frames[2].timestamp_ns


# features


def test_features_are_applied_and_read_back(make: Make) -> None:
    driver = make(
        exposure_us=500.0, gain=6.0, rate_hz=25.0, width=320, height=240, packet_size_bytes=1400,
        inter_packet_delay_ticks=100, features={"ReverseX": True, "OffsetX": 16, "TestImageSelector": "Testimage1"},
    )  # fmt: skip
    settings = driver.open().settings
    assert float(settings["ExposureTime"]) == 500
    assert float(settings["Gain"]) == pytest.approx(6, abs=0.1)
    assert float(settings["AcquisitionFrameRate"]) == 25
    expected = {
        "Width": "320", "Height": "240", "GevSCPSPacketSize": "1400", "GevSCPD": "100", "ReverseX": "True",
        "OffsetX": "16", "TestImageSelector": "Testimage1", "TriggerMode": "Off",
    }  # fmt: skip
    assert expected.items() <= settings.items()


def test_automatic_exposure_and_gain_are_turned_off_when_set(make: Make) -> None:
    driver = make(gain=1.0)
    assert {"ExposureAuto": "Off", "GainAuto": "Off"}.items() <= driver.open().settings.items()


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"exposure_us": 5e7}, ["exposure_us = 50000000.0", "ExposureTime refused it", "1.0 to 10000000.0", "Correct"]),
        ({"pixel_format": "Nonsense"}, ["pixel_format = Nonsense", "PixelFormat refused it", "it takes Mono8, Mono10"]),
        ({"heartbeat_ms": 3000}, ["no feature HeartbeatTimeout or GevHeartbeatTimeout", "Leave heartbeat_ms out"]),
        ({"features": {"Zap": 1}}, ["features.Zap = 1", "no feature Zap"]),
        ({"features": {"Width": 2.5}}, ["features.Width = 2.5", "Width reads back 2", "1 to 4096"]),
        ({"width": 5000}, ["width = 5000", "1 to 4096"]),
        ({"trigger": "line1", "debounce_us": 5.0}, ["no feature LineDebouncerTime or LineDebouncerTimeAbs", "Leave"]),
        ({"pixel_format": "Mono12p"}, ["Correct pixel_format or leave it out, or is another camera in its place?"]),
        ({"ptp": True}, ["no feature PtpEnable or GevIEEE1588", "Leave ptp out"]),
        ({"trigger": "line4"}, ["trigger = Line4", "it takes Software, Line1, Line2, Line3"]),
        ({"features": {"PayloadSize": 3}}, ["PayloadSize reads back 1064960"]),
    ],
)
def test_refused_feature_is_told_with_what_is_allowed(make: Make, keys: dict[str, Any], parts: list[str]) -> None:
    text = refusal(make(**keys))
    assert text.startswith("Camera cam: ")
    assert [part for part in parts if part not in text] == [], text
    assert "thrown" not in text


def test_value_that_reads_back_different_is_refused(make: Make) -> None:
    # The emulator rounds 1.4 us to 1 us.
    assert "exposure_us = 1.4: ExposureTime reads back 1.0" in refusal(make(exposure_us=1.4))


def test_closed_after_a_refusal_and_usable_again(make: Make) -> None:
    driver = make(pixel_format="Nonsense")
    refusal(driver)
    assert driver._camera is None
    driver.close()


# trouble


def test_incomplete_buffer_is_a_fault_and_the_next_frame_is_good(make: Make) -> None:
    driver = make(rate_hz=20.0)
    driver.open()
    shown(driver)
    node(driver, "ForceFailedBufferCount", 1)
    driver._camera.GetNodeMap().GetNode("ForceFailedBuffer").Execute()
    frames = [shown(driver) for _ in range(6)]
    faulty = [frame for frame in frames if frame.fault]
    assert len(faulty) == 1
    assert faulty[0].pixels is None
    assert str(faulty[0].fault).startswith("incomplete: The buffer was incompletely grabbed")
    assert [frame.number for frame in frames] == list(range(1, 7))
    assert driver.statistics()["buffers_failed"] == 1


def test_stream_error_is_a_camera_error(make: Make) -> None:
    driver = make()
    driver.open()
    shown(driver)
    driver._camera.GetStreamGrabberNodeMap().GetNode("ImposedError").SetValue("cable eaten")
    with pytest.raises(CameraError, match="Camera cam: pylon stopped: cable eaten"):
        [driver.next_frame(0.5) for _ in range(50)]
    with pytest.raises(CameraError, match="acquisition has stopped"):
        driver.next_frame(0.01)
    driver.close()
    driver.open()
    assert pixels(driver).size


def test_missing_pictures_are_faults_not_a_crash(make: Make, tmp_path: Path) -> None:
    driver = make(emulate=tmp_path / "missing")
    driver.open()
    frames = [shown(driver) for _ in range(3)]
    assert all(frame.pixels is None for frame in frames)
    assert all(str(frame.fault).startswith("unreadable: ") for frame in frames)


def test_idle_trigger_line_is_no_fault(make: Make) -> None:
    driver = make(trigger="line1")
    settings = driver.open().settings
    assert {"TriggerMode": "On", "TriggerSource": "Line1", "TriggerSelector": "FrameStart"}.items() <= settings.items()
    assert [driver.next_frame(0.05) for _ in range(3)] == [None, None, None]


def test_closing_twice_and_unopened_is_safe(make: Make) -> None:
    driver = make()
    driver.close()
    info: CameraInfo = driver.open()
    assert info.name == ""
    driver.close()
    driver.close()


# triggers and their settings


def test_software_trigger_is_taken_once_the_camera_is_ready(make: Make) -> None:
    driver = make(trigger="software")
    assert driver.open().settings["TriggerSource"] == "Software"
    assert driver.next_frame(0.05) is None
    assert [driver.trigger(1.0) for _ in range(3)] == [True] * 3
    assert [shown(driver).number for _ in range(3)] == [0, 1, 2]
    assert driver.next_frame(0.05) is None


def test_software_trigger_is_not_fired_at_a_busy_camera(make: Make) -> None:
    driver = make(trigger="software")
    driver.open()
    assert driver.trigger(1.0)
    assert not driver.trigger(0.0)
    assert driver.trigger(1.0)
    assert [shown(driver).number for _ in range(2)] == [0, 1]
    assert driver.next_frame(0.05) is None


def test_trigger_of_a_camera_that_runs_freely_is_an_error(make: Make) -> None:
    driver = make()
    driver.open()
    with pytest.raises(CameraError, match='trigger = "free_run"'):
        driver.trigger(0.1)


def test_trigger_settings_are_written_and_read_back(make: Make) -> None:
    keys = {"trigger": "line2", "trigger_activation": "falling_edge", "trigger_delay_us": 120.0}
    settings = make(**keys).open().settings
    expected = {"TriggerMode": "On", "TriggerSource": "Line2", "TriggerActivation": "FallingEdge", "TriggerDelay": "120.0"}
    assert expected.items() <= settings.items()


def test_a_standard_name_in_features_reaches_the_camera(make: Make) -> None:
    settings = make(features={"ExposureTime": 700.0, "BlackLevel": 5.0}).open().settings
    assert float(settings["ExposureTime"]) == 700
    assert float(settings["BlackLevel"]) == 5
