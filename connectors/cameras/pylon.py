"""Basler cameras through pylon, and pylon's emulator playing a folder of pictures."""

import os
import re
import time
import warnings
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from config.errors import CameraError, PictureError
from config.schema import PylonCamera
from connectors.cameras import CameraInfo, CapturedFrame, Pixels
from connectors.cameras.pictures import list_pictures, picture_size

with warnings.catch_warnings():
    # pypylon 26.9's SWIG types warn while they are made; where warnings are errors, that is a segmentation fault.
    warnings.simplefilter("ignore")
    from pypylon import genicam, pylon

BUFFERS = 16
_FEATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Configuration key and the node's names: SFNC's, then older Basler cameras'. What bounds others comes first.
    ("heartbeat_ms", ("HeartbeatTimeout", "GevHeartbeatTimeout")),
    ("pixel_format", ("PixelFormat",)),
    ("width", ("Width",)),
    ("height", ("Height",)),
    ("exposure_us", ("ExposureTime", "ExposureTimeAbs")),
    ("gain", ("Gain", "GainRaw")),
    ("packet_size_bytes", ("GevSCPSPacketSize",)),
    ("inter_packet_delay_ticks", ("GevSCPD",)),
    ("rate_hz", ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")),
)
_PREPARE: dict[str, tuple[str, str | bool]] = {
    "exposure_us": ("ExposureAuto", "Off"),
    "gain": ("GainAuto", "Off"),
    "rate_hz": ("AcquisitionFrameRateEnable", True),
}
_RELATIVE_TOLERANCE = 0.01  # cameras round exposure, gain and rate to their own steps (123.456 us becomes 123 us)
_GAIN_TOLERANCE = 0.1  # dB, one step of the coarser cameras
_ALIVE = ("TriggerMode", "PixelFormat", "Width")
_STATISTICS = {
    "packets_resent": "Statistic_Resend_Packet_Count",
    "packets_failed": "Statistic_Failed_Packet_Count",
    "buffers_failed": "Statistic_Failed_Buffer_Count",
    "buffer_underruns": "Statistic_Buffer_Underrun_Count",
}
_NO_BLOCK_ID = (1 << 64) - 1


class BlockCounter:
    """Frame numbers that go on where GigE Vision's 16-bit block ids wrap from 65535 to 1. 64-bit ids pass unchanged."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._wraps = 0
        self._unnumbered = 0

    def number(self, block_id: int) -> int:
        """The number of the frame with this block id; ids come in order, lost ones left out."""
        last = self._last
        if last is not None and last <= 0xFFFF and block_id < last - 0x7FFF:
            self._wraps += 1
        self._last, self._unnumbered = block_id, 0
        return block_id + self._wraps * 0xFFFF

    def next_number(self) -> int:
        """The number for a frame that came without an id."""
        self._unnumbered += 1
        return (-1 if self._last is None else self._last + self._wraps * 0xFFFF) + self._unnumbered


class PylonDriver:
    """One Basler device, chosen by serial, user name or address, or the first emulated one when a folder is given."""

    def __init__(self, config: PylonCamera) -> None:
        self._config = config
        self._camera: Any = None
        self._held: Any = None  # what the pixels handed out last point into
        self._settings: dict[str, str] = {}
        self._blocks = BlockCounter()
        self._tick_hz = 1_000_000_000
        self._mono, self._colour = (pylon.ImageFormatConverter() for _ in range(2))
        self._mono.SetOutputPixelFormat(pylon.PixelType_Mono8)
        self._colour.SetOutputPixelFormat(pylon.PixelType_RGB8packed)

    def open(self) -> CameraInfo:
        """Take the device, apply and read back every configured feature, start acquisition. Raises CameraError."""
        if self._config.emulate is not None and os.environ.get("PYLON_CAMEMU", "0") in ("", "0"):
            # pylon reads it when devices are first enumerated; this process drives one camera only.
            os.environ["PYLON_CAMEMU"] = "1"
        try:
            return self._open()
        except genicam.GenericException as error:
            self.close()
            raise self._error(f"pylon refused to open it: {_text(error)}", "It is tried again") from None
        except CameraError:
            self.close()
            raise

    def next_frame(self, timeout_s: float) -> CapturedFrame | None:
        """The next frame, faulty if its buffer is incomplete; None after `timeout_s` if the device still answers."""
        if self._held is not None:
            self._held.Release()
            self._held = None
        try:
            result = self._camera.RetrieveResult(round(timeout_s * 1000), pylon.TimeoutHandling_Return)
            if not result.IsValid():
                self._check_alive()
                return None
            return self._captured(result)
        except genicam.GenericException as error:
            raise self._error(f"pylon stopped: {_text(error)}", "It is opened again") from None

    def statistics(self) -> dict[str, int]:
        """pylon's stream counters since opening, those that this kind of device has."""
        with suppress(genicam.GenericException):
            nodes = self._camera.GetStreamGrabberNodeMap()
            found = {key: nodes.GetNode(name) for key, name in _STATISTICS.items()}
            return {key: int(node.GetValue()) for key, node in found.items() if node.IsValid() and node.IsReadable()}
        return {}

    def close(self) -> None:
        """Let the device go. Safe to call twice and after an error."""
        camera, self._camera = self._camera, None
        if self._held is not None:
            self._held.Release()
            self._held = None
        if camera is None:
            return
        # A device that is gone refuses each of these; the next one is still worth trying.
        for step in (camera.StopGrabbing, camera.Close, camera.DestroyDevice):
            with suppress(genicam.GenericException):
                step()

    def _open(self) -> CameraInfo:
        self._settings, self._blocks = {}, BlockCounter()
        factory = pylon.TlFactory.GetInstance()
        device = self._choose(factory.EnumerateDevices())
        # InstantCamera's own configuration sets AcquisitionMode Continuous and every trigger off at opening.
        try:
            self._camera = pylon.InstantCamera(factory.CreateDevice(device))
            self._camera.Open()
        except genicam.GenericException as error:
            text = _text(error)
            if re.search("another application|exclusively|0xE1018006", text) or not factory.IsDeviceAccessible(device):
                mend = "Close the other program (pylon Viewer?); a crashed one keeps it for the heartbeat timeout, 3 s"
                raise self._error(f"{_describe(device)} is taken by another application ({text})", mend) from None
            raise
        emulated = device.GetModelName() == "Emulation"
        if self._config.emulate is not None:
            self._emulate()
        self._apply_all()
        tick_hz = self._find(("GevTimestampTickFrequency",))
        if tick_hz is not None and tick_hz.IsReadable():
            self._tick_hz = int(tick_hz.GetValue())
        width, height = (int(self._find((name,)).GetValue()) for name in ("Width", "Height"))
        channels = 1 if self._find(("PixelFormat",)).GetValue().startswith("Mono") else 3
        self._camera.MaxNumBuffer.Value = BUFFERS
        # One by one: which frames may be skipped is the station's decision, not the driver's.
        self._camera.StartGrabbing(pylon.GrabStrategy_OneByOne)
        serial, user_name = device.GetSerialNumber(), device.GetUserDefinedName()
        frame_bytes = width * height * channels
        return CameraInfo("pylon", device.GetModelName(), serial, user_name, frame_bytes, emulated, self._settings)

    def _choose(self, devices: Any) -> Any:
        config = self._config
        if config.emulate is not None:
            wanted = "pylon's camera emulator"
            matches = [device for device in devices if device.GetDeviceClass() == "BaslerCamEmu"]
            if matches:
                return matches[0]
        elif config.serial is not None:
            wanted = f"serial {config.serial!r}"
            matches = [device for device in devices if device.GetSerialNumber() == config.serial]
        elif config.user_name is not None:
            wanted = f"user_name {config.user_name!r}"
            matches = [device for device in devices if device.GetUserDefinedName() == config.user_name]
        else:
            wanted = f"ip {config.ip}"
            matches = [device for device in devices if device.IsIpAddressAvailable() and device.GetIpAddress() == config.ip]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(map(_describe, matches))
            raise self._error(f"{wanted} is carried by {len(matches)} cameras: {names}", "Choose it by serial")
        seen = ", ".join(map(_describe, devices)) or "no camera at all"
        mend = "Check power, cable and subnet, or correct the configuration"
        raise self._error(f"not found: {wanted}. Seen: {seen}", mend)

    def _emulate(self) -> None:
        config = self._config
        self._apply("emulate", ("TestImageSelector",), "Off")
        self._apply("emulate", ("ImageFilename",), str(config.emulate))
        self._apply("emulate", ("ImageFileMode",), "On")
        # The emulator crops what is larger than its area (1024 x 1040), so the area becomes the largest picture's.
        sizes = []
        for path in list_pictures(config.emulate) if config.emulate else []:
            with suppress(PictureError):  # it will be a faulty frame
                sizes.append(picture_size(path))
        for name, configured, values in (
            ("Width", config.width, [width for width, _ in sizes]),
            ("Height", config.height, [height for _, height in sizes]),
        ):
            if configured is None and values:
                self._apply(name, (name,), min(max(values), int(self._find((name,)).GetMax())))

    def _apply_all(self) -> None:
        config = self._config
        if self._find(("TriggerSelector",)) is not None:
            self._apply("trigger", ("TriggerSelector",), "FrameStart")
        if config.trigger == "free_run":
            self._apply("trigger", ("TriggerMode",), "Off")
        else:
            self._apply("trigger", ("TriggerSource",), config.trigger.capitalize())
            self._apply("trigger", ("TriggerMode",), "On")
        for key, names in _FEATURES:
            value = getattr(config, key)
            if value is None:
                continue
            if key in _PREPARE and self._find(_PREPARE[key][:1]) is not None:
                self._apply(key, _PREPARE[key][:1], _PREPARE[key][1])
            self._apply(key, names, value, _GAIN_TOLERANCE if key == "gain" else 0.0)
        for name, value in config.features.items():
            self._apply(f"features.{name}", (name,), value)

    def _find(self, names: tuple[str, ...]) -> Any:
        for name in names:
            for nodes in (self._camera.GetNodeMap(), self._camera.GetTLNodeMap()):
                node = nodes.GetNode(name)
                if node.IsValid():
                    return node
        return None

    def _apply(self, key: str, names: tuple[str, ...], value: str | float | bool, tolerance: float = 0.0) -> None:
        node = self._find(names)
        if node is None:
            raise self._error(f"{key} = {value}: the camera has no feature {' or '.join(names)}", f"Leave {key} out")
        name = node.GetNode().GetName()
        allowed = ""
        try:
            if hasattr(node, "Execute"):
                node.Execute()
                return
            allowed = _allowed(node)
            whole = isinstance(value, float) and value.is_integer() and isinstance(node, pylon.IntegerParameter)
            node.FromString(str(int(value) if whole else value))
            if not node.IsReadable():
                return
            node.ToString(False, True)  # past the cache: what the camera holds, not what was sent
            got = node.GetValue()
        except genicam.GenericException as error:
            mend = f"Correct {key} or leave it out"
            raise self._error(f"{key} = {value}: {name} refused it ({_text(error)}){allowed}", mend) from None
        if not _agrees(value, got, node, tolerance):
            mend = f"Correct {key} or leave it out"
            raise self._error(f"{key} = {value}: {name} reads back {got}{allowed}", mend)
        self._settings[name] = str(got)

    def _check_alive(self) -> None:
        if self._camera.IsCameraDeviceRemoved():
            raise self._error("the device is gone", "Check power and cable")
        if not self._camera.IsGrabbing():
            raise self._error("acquisition has stopped", "It is opened again")
        # A line that stands still sends nothing either; a feature read past the cache asks the device itself.
        node = self._find(_ALIVE)
        if node is not None:
            node.ToString(False, True)

    def _captured(self, result: Any) -> CapturedFrame:
        block_id, succeeded = result.GetBlockID(), result.GrabSucceeded()
        if block_id == _NO_BLOCK_ID or (block_id == 0 and not succeeded):
            number = self._blocks.next_number()
        else:
            number = self._blocks.number(block_id)
        timestamp_ns = result.GetTimeStamp() * 1_000_000_000 // self._tick_hz
        clock: Literal["camera", "host"] = "camera"
        if not timestamp_ns:
            timestamp_ns, clock = time.time_ns(), "host"
        if not succeeded:
            description = result.GetErrorDescription()
            result.Release()
            kind = "unreadable" if "image file" in description else "incomplete"
            return CapturedFrame(number, timestamp_ns, clock, None, f"{kind}: {description}")
        return CapturedFrame(number, timestamp_ns, clock, self._pixels(result))

    def _pixels(self, result: Any) -> Pixels:
        kind = result.GetPixelType()
        channels = 3 if pylon.IsColorImage(kind) else 1
        # The size is the buffer's: emulated pictures smaller than the area keep their own.
        width, height = result.GetWidth(), result.GetHeight()
        if kind in (pylon.PixelType_Mono8, pylon.PixelType_RGB8packed):
            self._held = result
            memory, padding = result.GetImageMemoryView(), result.GetPaddingX()
        else:
            image = (self._colour if channels == 3 else self._mono).Convert(result)
            result.Release()
            self._held = image
            memory, padding = image.GetMemoryView(), image.GetPaddingX()
        row_bytes = width * channels
        rows = np.frombuffer(memory, np.uint8, count=height * (row_bytes + padding)).reshape(height, row_bytes + padding)
        pixels = rows[:, :row_bytes]
        return pixels.reshape(height, width, 3) if channels == 3 else pixels

    def _error(self, what: str, mend: str) -> CameraError:
        return CameraError(f"Camera {self._config.name}: {what}. {mend}")


def _describe(device: Any) -> str:
    address = f", ip {device.GetIpAddress()}" if device.IsIpAddressAvailable() else ""
    return f"{device.GetModelName()} (serial {device.GetSerialNumber()}, name {device.GetUserDefinedName()!r}{address})"


def _text(error: Exception) -> str:
    """A GenICam message without the place in pylon's source that threw it."""
    return re.sub(r"\s*:? ?\w+Exception thrown.*$", "", str(error), flags=re.DOTALL).strip().rstrip(".")


def _allowed(node: Any) -> str:
    if isinstance(node, pylon.EnumParameter):
        return f"; it takes {', '.join(node.GetSettableValues())}"
    if isinstance(node, pylon.IntegerParameter | pylon.FloatParameter) and node.IsReadable():
        return f"; it takes {node.GetMin()} to {node.GetMax()}"
    return ""


def _agrees(wanted: str | float | bool, got: Any, node: Any, tolerance: float) -> bool:
    if isinstance(got, bool):
        return got == (str(wanted).lower() in ("true", "1", "1.0"))
    if not isinstance(got, int | float):
        return str(wanted) == str(got)
    try:
        number = float(int(wanted, 0)) if isinstance(wanted, str) and wanted.lower().startswith("0x") else float(wanted)
    except ValueError:
        return False
    if isinstance(got, int):
        return number == got
    step = node.GetInc() if node.HasInc() else 0.0
    return bool(abs(number - got) <= max(tolerance, step, abs(number) * _RELATIVE_TOLERANCE))
