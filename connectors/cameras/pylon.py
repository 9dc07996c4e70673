"""Basler cameras through pylon, and pylon's emulator playing a folder of pictures."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from config.errors import CameraError, PictureError
from config.schema import PylonCamera
from connectors.cameras import CameraInfo, CapturedFrame, Pixels
from connectors.cameras.clock import CameraClock, Stamp
from connectors.cameras.features import Setting, apply, settings_of
from connectors.cameras.numbers import BlockCounter
from connectors.cameras.pictures import list_pictures, picture_size
from connectors.cameras.pylon_nodes import PylonNodes, genicam, message_of, pylon

BUFFERS = 16
_ALIVE = ("TriggerMode", "PixelFormat", "Width")
_STATISTICS = {
    "packets_resent": "Statistic_Resend_Packet_Count",
    "packets_failed": "Statistic_Failed_Packet_Count",
    "buffers_failed": "Statistic_Failed_Buffer_Count",
    "buffer_underruns": "Statistic_Buffer_Underrun_Count",
}
_NO_BLOCK_ID = (1 << 64) - 1


class PylonDriver:
    """One Basler device, chosen by serial, user name or address, or the first emulated one when a folder is given."""

    def __init__(self, config: PylonCamera) -> None:
        self._config = config
        self._camera: Any = None
        self._held: Any = None  # what the pixels handed out last point into
        self._nodes: PylonNodes | None = None
        self._clock: CameraClock | None = None
        self._blocks = BlockCounter()
        self._fresh = False
        """A frame has come since the clock was asked: the camera answers."""
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
            raise self._error(f"pylon refused to open it: {message_of(error)}", "It is tried again") from None
        except CameraError:
            self.close()
            raise

    def next_frame(self, timeout_s: float) -> CapturedFrame | None:
        """The next frame, faulty if its buffer is incomplete; None after `timeout_s` if the device still answers."""
        if self._held is not None:
            self._held.Release()
            self._held = None
        try:
            if self._fresh and self._clock is not None:
                self._clock.refresh()
                self._fresh = False
            result = self._camera.RetrieveResult(round(timeout_s * 1000), pylon.TimeoutHandling_Return)
            if not result.IsValid():
                self._check_alive()
                return None
            self._fresh = True
            return self._captured(result)
        except genicam.GenericException as error:
            raise self._error(f"pylon stopped: {message_of(error)}", "It is opened again") from None

    def trigger(self, timeout_s: float) -> bool:
        """Wait until the camera can take a software trigger, and fire it; one that came too early would be dropped silently."""
        if self._config.trigger != "software":
            raise self._error(f'trigger = "{self._config.trigger}"', 'Software fires it where trigger = "software"')
        try:
            if self._camera.CanWaitForFrameTriggerReady() and not self._camera.WaitForFrameTriggerReady(
                round(timeout_s * 1000), pylon.TimeoutHandling_Return
            ):
                return False
            self._camera.ExecuteSoftwareTrigger()
        except genicam.GenericException as error:
            raise self._error(f"the software trigger was refused: {message_of(error)}", "It is opened again") from None
        return True

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
        self._blocks, self._fresh = BlockCounter(), False
        factory = pylon.TlFactory.GetInstance()
        device = self._choose(factory.EnumerateDevices())
        # InstantCamera's own configuration sets AcquisitionMode Continuous and every trigger off at opening.
        try:
            self._camera = pylon.InstantCamera(factory.CreateDevice(device))
            self._camera.Open()
        except genicam.GenericException as error:
            text = message_of(error)
            if re.search("another application|exclusively|0xE1018006", text) or not factory.IsDeviceAccessible(device):
                raise self._taken(device, text) from None
            raise
        emulated = device.GetModelName() == "Emulation"
        nodes = self._nodes = PylonNodes(self._camera)
        settings: dict[str, str] = {}
        if self._config.emulate is not None:
            settings |= apply(nodes, self._config.name, self._emulated(nodes))
        settings |= apply(nodes, self._config.name, settings_of(self._config))
        self._clock = CameraClock(nodes, ptp=bool(self._config.ptp))
        width, height = (int(nodes.node(name).GetValue()) for name in ("Width", "Height"))
        channels = 1 if nodes.node("PixelFormat").GetValue().startswith("Mono") else 3
        self._camera.MaxNumBuffer.Value = BUFFERS
        # One by one: which frames may be skipped is the station's decision, not the driver's.
        self._camera.StartGrabbing(pylon.GrabStrategy_OneByOne)
        serial, user_name = device.GetSerialNumber(), device.GetUserDefinedName()
        frame_bytes = width * height * channels
        return CameraInfo("pylon", device.GetModelName(), serial, user_name, frame_bytes, emulated, settings)

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

    def _emulated(self, nodes: PylonNodes) -> Iterator[Setting]:
        config = self._config
        yield Setting("emulate", ("TestImageSelector",), "Off")
        yield Setting("emulate", ("ImageFilename",), str(config.emulate))
        yield Setting("emulate", ("ImageFileMode",), "On")
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
                yield Setting(name, (name,), min(max(values), int(nodes.node(name).GetMax())))

    def _check_alive(self) -> None:
        if self._camera.IsCameraDeviceRemoved():
            raise self._error("the device is gone", "Check power and cable")
        if not self._camera.IsGrabbing():
            raise self._error("acquisition has stopped", "It is opened again")
        # A line that stands still sends nothing either; a feature read past the cache asks the device itself.
        if self._nodes is not None and (name := next(filter(self._nodes.has, _ALIVE), None)) is not None:
            self._nodes.node(name).ToString(False, True)

    def _captured(self, result: Any) -> CapturedFrame:
        block_id, succeeded = result.GetBlockID(), result.GrabSucceeded()
        if block_id == _NO_BLOCK_ID or (block_id == 0 and not succeeded):
            number = self._blocks.next_number()
        else:
            number = self._blocks.number(block_id)
        ticks, clock = result.GetTimeStamp(), self._clock
        stamp = Stamp(time.time_ns(), "host") if clock is None else clock.stamp(clock.ticks_ns(ticks))
        error_ns = stamp.error_ns
        if not succeeded:
            description = result.GetErrorDescription()
            result.Release()
            kind = "unreadable" if "image file" in description else "incomplete"
            return CapturedFrame(number, stamp.timestamp_ns, stamp.clock, None, f"{kind}: {description}", error_ns)
        return CapturedFrame(number, stamp.timestamp_ns, stamp.clock, self._pixels(result), None, error_ns)

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

    def _taken(self, device: Any, text: str) -> CameraError:
        mend = "Close the other program (pylon Viewer?); a crashed one keeps it for the heartbeat timeout, 3 s"
        return self._error(f"{_describe(device)} is taken by another application ({text})", mend)

    def _error(self, what: str, mend: str) -> CameraError:
        return CameraError(f"Camera {self._config.name}: {what}. {mend}")


def _describe(device: Any) -> str:
    address = f", ip {device.GetIpAddress()}" if device.IsIpAddressAvailable() else ""
    return f"{device.GetModelName()} (serial {device.GetSerialNumber()}, name {device.GetUserDefinedName()!r}{address})"
