"""GigE Vision cameras of any maker, through aravis."""

import re
import time
from contextlib import suppress
from typing import Any

from config.errors import CameraError
from config.schema import AravisCamera
from connectors.cameras import CameraInfo, CapturedFrame
from connectors.cameras.aravis_nodes import AravisNodes, aravis_library
from connectors.cameras.clock import CameraClock, Stamp
from connectors.cameras.conversion import FORMATS, channels_of, convert
from connectors.cameras.features import Refused, apply, find, settings_of
from connectors.cameras.numbers import BlockCounter

BUFFERS = 16
_READY_POLL_S = 0.002
_SOCKET_BYTES = 4 << 20
_STATISTICS = {
    "packets_resent": "n_resent_packets",
    "packets_failed": "n_missing_packets",
    "buffers_failed": "n_failures",
    "buffer_underruns": "n_underruns",
}
_FAULTS = {
    "MISSING_PACKETS": "incomplete: packets were lost on the way",
    "TIMEOUT": "incomplete: its packets stopped coming",
    "WRONG_PACKET_ID": "incomplete: its packets do not fit together",
    "SIZE_MISMATCH": "incomplete: it is not of the size the camera told at opening",
    "PAYLOAD_NOT_SUPPORTED": "unreadable: it holds no picture",
}
"""A buffer's status that makes a faulty frame; all others but SUCCESS (FILLING, ABORTED, CLEARED) are no frames at all."""


class AravisDriver:
    """One GigE Vision device, chosen by serial or address.

    aravis keeps the camera alive by a thread of its own, and tells when that is no longer answered, 5 s after the camera was
    switched off. A cable that is back within the camera's heartbeat timeout (3 s) goes on with the next frame; a camera that
    was cut off for longer has let go of us and is opened again.
    """

    def __init__(self, config: AravisCamera) -> None:
        self._config = config
        self._device: Any = None
        self._camera: Any = None
        self._stream: Any = None
        self._nodes: AravisNodes | None = None
        self._clock: CameraClock | None = None
        self._blocks = BlockCounter()
        self._formats: dict[int, str] = {}
        self._waits_for_trigger = False
        self._fresh = False
        """A frame has come since the clock was asked: the camera answers."""

    def open(self) -> CameraInfo:
        """Take the device, apply and read back every configured feature, start acquisition. Raises CameraError."""
        aravis, glib = aravis_library()
        try:
            return self._open(aravis, glib)
        except glib.Error as error:
            self.close()
            raise self._error(f"aravis refused to open it: {str(error.message).rstrip('.')}", "It is tried again") from None
        except Refused as refused:
            self.close()
            raise self._error(f"it does not tell what it sends: {refused}", "It is tried again") from None
        except CameraError:
            self.close()
            raise

    def next_frame(self, timeout_s: float) -> CapturedFrame | None:
        """The next frame, faulty if packets of it are missing; None after `timeout_s` if the device is still ours."""
        if self._fresh and self._clock is not None:
            self._clock.refresh()
            self._fresh = False
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_us = max(0, round((deadline_s - time.monotonic()) * 1e6))
            buffer = self._stream.timeout_pop_buffer(left_us) if left_us else self._stream.try_pop_buffer()
            if buffer is None:
                if not self._device.is_controller():
                    what = "it no longer answers, or another application has taken it"
                    raise self._error(what, "Check power and cable; it is opened again")
                return None
            try:
                captured = self._captured(buffer)
            finally:
                self._give_back(buffer)
            if captured is not None:
                self._fresh = True
                return captured

    def trigger(self, timeout_s: float) -> bool:
        """Fire a software trigger, once the camera says that it waits for one (where it can say so)."""
        if self._config.trigger != "software":
            raise self._error(f'trigger = "{self._config.trigger}"', 'Software fires it where trigger = "software"')
        if self._nodes is None:
            return False
        try:
            deadline_s = time.monotonic() + timeout_s
            while self._waits_for_trigger and not self._nodes.read("AcquisitionStatus"):
                if time.monotonic() > deadline_s:
                    return False
                time.sleep(_READY_POLL_S)
            self._nodes.write("TriggerSoftware", True)
        except Refused as refused:
            raise self._error(f"the software trigger was refused: {refused}", "It is opened again") from None
        return True

    def statistics(self) -> dict[str, int]:
        """aravis' stream counters since opening."""
        stream = self._stream
        return {} if stream is None else {key: int(stream.get_info_uint64_by_name(name)) for key, name in _STATISTICS.items()}

    def close(self) -> None:
        """Let the device go. Safe to call twice and after an error."""
        camera, device, stream = self._camera, self._device, self._stream
        self._camera = self._device = self._stream = self._nodes = self._clock = None
        if camera is None:
            return
        _, glib = aravis_library()
        if stream is not None and device.is_controller():  # a device that is gone would be asked for seconds
            with suppress(glib.Error):
                camera.stop_acquisition()
        # Their threads end, and control is given back, when the last reference goes.
        del stream, device, camera

    def _open(self, aravis: Any, glib: Any) -> CameraInfo:
        config = self._config
        self._blocks, self._fresh = BlockCounter(), False
        which = config.ip if config.ip is not None else self._find_serial(aravis)
        try:
            camera = aravis.Camera.new(which)
        except glib.Error as error:
            if not re.search("not found|Can't connect", str(error.message)):
                raise
            raise self._not_found(aravis, f"ip {config.ip}" if config.ip else f"serial {config.serial!r}") from None
        self._camera, self._device = camera, camera.get_device()
        if not self._device.is_controller():
            mend = "Close it; a program that crashed keeps the camera for its heartbeat timeout, 3 s"
            raise self._error(f"{which} is taken by another application, perhaps on another computer", mend)
        camera.set_range_check_policy(aravis.RangeCheckPolicy.ENABLE)
        camera.set_access_check_policy(aravis.AccessCheckPolicy.ENABLE)
        camera.stop_acquisition()  # of a program that ended without doing so; most features are locked meanwhile
        camera.clear_triggers()
        camera.set_acquisition_mode(aravis.AcquisitionMode.CONTINUOUS)
        nodes = self._nodes = AravisNodes(self._device)
        settings = apply(nodes, config.name, settings_of(config))
        self._clock = CameraClock(nodes, ptp=bool(config.ptp))
        self._waits_for_trigger = config.trigger == "software" and self._tells_readiness(nodes)
        pixel_format = str(nodes.read("PixelFormat"))
        if (channels := channels_of(pixel_format)) is None:
            mend = "Set pixel_format to one of these"
            raise self._error(f"it sends {pixel_format}, and this driver takes {FORMATS}", mend)
        self._formats = {camera.get_pixel_format(): pixel_format}
        width, height = nodes.read("Width"), nodes.read("Height")
        self._stream = self._start(aravis, camera, nodes)
        serial = config.serial or self._device_text(nodes, "DeviceSerialNumber", "DeviceID")
        name, model = self._device_text(nodes, "DeviceUserID"), f"{camera.get_vendor_name()} {camera.get_model_name()}"
        return CameraInfo("aravis", model, serial, name, int(width or 0) * int(height or 0) * channels, False, settings)

    def _start(self, aravis: Any, camera: Any, nodes: AravisNodes) -> Any:
        if camera.is_gv_device():
            # For root aravis would read the network card's packets themselves; one way for root and for the service's user.
            camera.gv_set_stream_options(aravis.GvStreamOption.PACKET_SOCKET_DISABLED)
        stream = camera.create_stream(None, None)
        if stream is None:
            raise self._error("no stream could be made", "It is tried again")
        wanted = self._config.packet_size_bytes
        # aravis sends a test packet of the size, and makes it smaller when that does not arrive.
        if wanted is not None and (got := nodes.read("GevSCPSPacketSize")) != wanted:
            what = f"packet_size_bytes = {wanted}: the network carries packets of {got} bytes only"
            raise self._error(what, "Raise the MTU of the interface and of every switch, or lower packet_size_bytes")
        payload = camera.get_payload()
        if camera.is_gv_device():
            # aravis asks for no buffer of its own, and the kernel's default holds 0.2 MB; it gives rmem_max at most.
            stream.set_property("socket-buffer", aravis.GvStreamSocketBuffer.FIXED)
            stream.set_property("socket-buffer-size", min(max(4 * payload, _SOCKET_BYTES), 1 << 30))
        for _ in range(BUFFERS):
            stream.push_buffer(aravis.Buffer.new_allocate(payload))
        camera.start_acquisition()
        return stream

    def _give_back(self, buffer: Any) -> None:
        # A frame whose first packet is lost would else carry the number of the one that was in the buffer before.
        buffer.set_frame_id(0)
        self._stream.push_buffer(buffer)

    def _find_serial(self, aravis: Any) -> str:
        aravis.update_device_list()
        wanted = self._config.serial
        found = [index for index in range(aravis.get_n_devices()) if aravis.get_device_serial_nbr(index) == wanted]
        if len(found) == 1:
            return str(aravis.get_device_id(found[0]))
        if found:
            seen = ", ".join(_describe(aravis, index) for index in found)
            raise self._error(f"serial {wanted!r} is carried by {len(found)} cameras: {seen}", "Choose it by ip")
        raise self._not_found(aravis, f"serial {wanted!r}")

    def _not_found(self, aravis: Any, wanted: str) -> CameraError:
        aravis.update_device_list()
        seen = ", ".join(_describe(aravis, index) for index in range(aravis.get_n_devices())) or "no camera at all"
        mend = "Check power, cable and subnet, or correct the configuration"
        return self._error(f"not found: {wanted}. Seen: {seen}", mend)

    @staticmethod
    def _tells_readiness(nodes: AravisNodes) -> bool:
        if not (nodes.has("AcquisitionStatusSelector") and nodes.has("AcquisitionStatus")):
            return False
        with suppress(Refused):
            nodes.write("AcquisitionStatusSelector", "FrameTriggerWait")
            return True
        return False

    @staticmethod
    def _device_text(nodes: AravisNodes, *names: str) -> str:
        for name in names:
            with suppress(Refused):
                if (known := find(nodes, name)) is not None:
                    return str(nodes.read(known))
        return ""

    def _captured(self, buffer: Any) -> CapturedFrame | None:
        status = buffer.get_status().value_nick.upper().replace("-", "_")
        if status != "SUCCESS" and status not in _FAULTS:
            return None
        block_id = buffer.get_frame_id()
        number = self._blocks.number(block_id) if block_id else self._blocks.next_number()
        clock = self._clock if block_id else None
        stamp = Stamp(time.time_ns(), "host") if clock is None else clock.stamp(buffer.get_timestamp())
        pixels, fault = None, _FAULTS.get(status)
        if fault is None:
            pixel_format = self._formats.get(buffer.get_image_pixel_format())
            if pixel_format is None:
                raise self._error("its pixel format has changed", "It is opened again")
            width, height = buffer.get_image_width(), buffer.get_image_height()
            try:
                pixels = convert(buffer.get_image_data(), pixel_format, width, height)
            except ValueError as error:
                fault = f"unreadable: {error} for {width} x {height} {pixel_format}"
        return CapturedFrame(number, stamp.timestamp_ns, stamp.clock, pixels, fault, stamp.error_ns)

    def _error(self, what: str, mend: str) -> CameraError:
        return CameraError(f"Camera {self._config.name}: {what}. {mend}")


def _describe(aravis: Any, index: int) -> str:
    model, serial = aravis.get_device_model(index), aravis.get_device_serial_nbr(index)
    return f"{model} (serial {serial}, {aravis.get_device_address(index)})"
