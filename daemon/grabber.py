"""The camera process, `python -m daemon.grabber <descriptor> <slots> <camera>`: it owns one device and talks to the daemon.

The camera's name is for people who look at processes.

The socket (Unix, SOCK_SEQPACKET) carries one JSON message a packet. From the daemon come the camera's configuration, first, and
software triggers; everything else goes to it. The heartbeat is sent by the loop that grabs, so that a driver call that
hangs stops it.
"""

import ctypes
import json
import select
import signal
import socket
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from config.errors import CameraError, CameraFinished
from config.schema import CameraConfig, GenicamCamera
from connectors.cameras import Camera, CameraInfo, CapturedFrame, create_camera
from connectors.cameras.clock import Clock
from daemon.ring import RingWriter

MESSAGE_BYTES = 64 << 10
HEARTBEAT_S = 0.5
MOST_LOST = 256
"""Lost frames of one gap that are told one by one; a longer gap's first ones are told as one."""
TRIGGER_LIMIT_S = 0.4
"""How long a software trigger waits for a camera that is still busy with the last one; the heartbeat waits with it."""
_POLL_S = 0.25
_TRIGGERED_POLL_S = 0.02
_EXPOSED_S = 5.0
_PR_SET_PDEATHSIG = 1


class Message(BaseModel):
    """Base of what the camera process says."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Opened(Message):
    """The device is ours. The ring's descriptor comes with this message."""

    kind: Literal["opened"] = "opened"
    info: CameraInfo
    slots: int


class Arrival(Message):
    """A frame in a slot of the ring, or without one and with a fault."""

    kind: Literal["frame"] = "frame"
    number: int
    timestamp_ns: int
    clock: Clock
    timestamp_error_ns: int | None = None
    arrived_at: datetime
    arrived_s: float
    slot: int | None = None
    shape: tuple[int, ...] = ()
    fault: str | None = None
    lost: int = 0
    """Frames that this one stands for, when its fault is `lost`."""


class Triggered(Message):
    """What became of the software trigger of that number; `reason` says why the camera did not take it."""

    kind: Literal["triggered"] = "triggered"
    number: int
    taken: bool
    reason: str = ""


class Heartbeat(Message):
    """The loop turns. Counters count from the start of this process."""

    kind: Literal["heartbeat"] = "heartbeat"
    counters: dict[str, int]


class Failed(Message):
    """The device cannot be used; the process ends."""

    kind: Literal["failed"] = "failed"
    reason: str


class Finished(Message):
    """The device has no more to show; the process ends."""

    kind: Literal["finished"] = "finished"
    reason: str


class Trigger(Message):
    """From the daemon: fire a software trigger. It is answered by a Triggered of the same number."""

    kind: Literal["trigger"] = "trigger"
    number: int


MESSAGES: TypeAdapter[Opened | Arrival | Triggered | Heartbeat | Failed | Finished] = TypeAdapter(
    Annotated[Opened | Arrival | Triggered | Heartbeat | Failed | Finished, Field(discriminator="kind")]
)
CONFIG: TypeAdapter[CameraConfig] = TypeAdapter(CameraConfig)


class Grabber:
    """The loop between one camera and the socket. Owner of both, and of the ring."""

    def __init__(self, camera: Camera, channel: socket.socket, slots: int, *, software_trigger: bool = False) -> None:
        """`software_trigger`: nothing comes but what the daemon's messages set off, so they are what is waited for."""
        self._camera = camera
        self._software_trigger = software_trigger
        self._expected = 0
        self._expected_until_s = 0.0
        self._last_number: int | None = None
        self._slots = slots
        self._channel = channel
        self._counters: Counter[str] = Counter(frames=0, faults=0)

    def run(self) -> None:
        """Open and grab until the daemon closes the socket.

        Raises CameraError, CameraFinished, and ConnectionError when the daemon has gone.
        """
        info = self._camera.open()
        ring = RingWriter(info.frame_bytes, self._slots)
        opened = Opened(info=info, slots=ring.slots)
        socket.send_fds(self._channel, [opened.model_dump_json().encode()], [ring.fd])
        ring.close()
        beat_s = time.monotonic()
        try:
            while self._obey():
                captured = self._camera.next_frame(self._patience_s())
                if captured is not None:
                    self._expected = max(0, self._expected - 1)
                    self._tell_lost(captured.number)
                    self._pass_on(captured, ring)
                if time.monotonic() >= beat_s:
                    beat_s = time.monotonic() + HEARTBEAT_S
                    self._beat()
        finally:
            self._beat()

    def _patience_s(self) -> float:
        if not self._software_trigger:
            return _POLL_S
        if self._expected and time.monotonic() < self._expected_until_s:
            return _TRIGGERED_POLL_S  # the next trigger may come meanwhile
        self._expected = 0
        select.select([self._channel], [], [], _POLL_S)
        return 0.0

    def _tell_lost(self, number: int) -> None:
        """A number that was left out is a frame that the camera took, and that nobody will judge."""
        last, self._last_number = self._last_number, number
        if last is None or number <= last + 1:
            return
        lost = number - last - 1
        self._counters["frames_lost"] += lost
        first_told = max(last + 1, number - MOST_LOST)
        for each in range(first_told, number):
            earlier = first_told - last - 1 if each == first_told else 0
            besides = f" (and the {earlier} before it)" if earlier else ""
            self._send(
                Arrival(
                    number=each,
                    timestamp_ns=time.time_ns(),
                    clock="host",
                    arrived_at=datetime.now(UTC),
                    arrived_s=time.monotonic(),
                    fault=f"lost: frame {each}{besides} never arrived, the next one to come was {number}",
                    lost=1 + earlier,
                )
            )

    def _pass_on(self, captured: CapturedFrame, ring: RingWriter) -> None:
        arrived_s, arrived_at = time.monotonic(), datetime.now(UTC)
        slot, shape, fault = None, (), captured.fault
        if captured.pixels is not None:
            try:
                slot, shape = ring.write(captured.pixels), captured.pixels.shape
            except ValueError as error:
                raise CameraError(f"The frame's size changed: {error}. The camera is opened again") from None
            if slot is None:
                fault = f"overload: all {ring.slots} slots hold frames that are not judged yet"
        self._counters["frames"] += 1
        if fault is not None:
            self._counters["faults"] += 1
            self._counters[f"faults_{fault.partition(':')[0]}"] += 1
        self._send(
            Arrival(
                number=captured.number,
                timestamp_ns=captured.timestamp_ns,
                clock=captured.clock,
                timestamp_error_ns=captured.timestamp_error_ns,
                arrived_at=arrived_at,
                arrived_s=arrived_s,
                slot=slot,
                shape=shape if slot is not None else (),
                fault=fault,
            )
        )

    def _beat(self) -> None:
        statistics = getattr(self._camera, "statistics", dict)
        self._send(Heartbeat(counters={**self._counters, **statistics()}))

    def _send(self, message: Message) -> None:
        self._channel.send(message.model_dump_json().encode())

    def _obey(self) -> bool:
        """Do what the daemon asks; False once it has let us go."""
        while True:
            try:
                order = self._channel.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            if not order:
                return False
            self._trigger(Trigger.model_validate_json(order).number)

    def _trigger(self, number: int) -> None:
        if not self._software_trigger:
            self._send(Triggered(number=number, taken=False, reason='its trigger is not "software"'))
            return
        # A camera that is lost raises here, and its last word is a Failed.
        taken = self._camera.trigger(TRIGGER_LIMIT_S)
        if taken:
            self._expected += 1
            self._expected_until_s = time.monotonic() + _EXPOSED_S
        reason = "" if taken else f"it was busy for {TRIGGER_LIMIT_S:g} s"
        self._send(Triggered(number=number, taken=taken, reason=reason))


def main() -> int:
    """Serve one camera until the daemon lets go, the device fails or has no more to show. Returns the exit status."""
    # The daemon decides when a camera stops, also when Ctrl-C or systemd signals its whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A daemon that is killed must not leave a camera locked; the socket's end alone does not wake a driver that hangs.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Not validate_json: its paths must still be text after our own validator has made paths of them.
    config = CONFIG.validate_python(json.loads(channel.recv(MESSAGE_BYTES)))
    camera = create_camera(config)
    software_trigger = isinstance(config, GenicamCamera) and config.trigger == "software"
    try:
        _serve(Grabber(camera, channel, int(sys.argv[2]), software_trigger=software_trigger), channel)
    except ConnectionError:
        return 0  # the daemon has let us go
    finally:
        camera.close()
    return 0


def _serve(grabber: Grabber, channel: socket.socket) -> None:
    parting: Message
    try:
        grabber.run()
        return
    except CameraFinished as error:
        parting = Finished(reason=str(error))
    except CameraError as error:
        parting = Failed(reason=str(error))
    # Said before the device is closed: closing may hang.
    channel.send(parting.model_dump_json().encode())


if __name__ == "__main__":
    sys.exit(main())
