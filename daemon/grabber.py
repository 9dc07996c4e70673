"""The camera process, `python -m daemon.grabber <descriptor> <slots>`: it owns one device and talks to the daemon.

The socket (Unix, SOCK_SEQPACKET) carries one JSON message a packet: the camera's configuration comes first, from the
daemon; everything else goes to it. The heartbeat is sent by the loop that grabs, so that a driver call that hangs
stops it.
"""

import ctypes
import json
import signal
import socket
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from config.errors import CameraError, CameraFinished
from config.schema import CameraConfig
from connectors.cameras import Camera, CameraInfo, CapturedFrame, create_camera
from daemon.ring import RingWriter

MESSAGE_BYTES = 64 << 10
HEARTBEAT_S = 0.5
_POLL_S = 0.25
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
    clock: Literal["camera", "host"]
    arrived_at: datetime
    arrived_s: float
    slot: int | None = None
    shape: tuple[int, ...] = ()
    fault: str | None = None


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


MESSAGES: TypeAdapter[Opened | Arrival | Heartbeat | Failed | Finished] = TypeAdapter(
    Annotated[Opened | Arrival | Heartbeat | Failed | Finished, Field(discriminator="kind")]
)
CONFIG: TypeAdapter[CameraConfig] = TypeAdapter(CameraConfig)


class Grabber:
    """The loop between one camera and the socket. Owner of both, and of the ring."""

    def __init__(self, camera: Camera, channel: socket.socket, slots: int) -> None:
        self._camera = camera
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
            while not self._dismissed():
                captured = self._camera.next_frame(_POLL_S)
                if captured is not None:
                    self._pass_on(captured, ring)
                if time.monotonic() >= beat_s:
                    beat_s = time.monotonic() + HEARTBEAT_S
                    self._beat()
        finally:
            self._beat()

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

    def _dismissed(self) -> bool:
        try:
            return not self._channel.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False


def main() -> int:
    """Serve one camera until the daemon lets go, the device fails or has no more to show. Returns the exit status."""
    # The daemon decides when a camera stops, also when Ctrl-C or systemd signals its whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A daemon that is killed must not leave a camera locked; the socket's end alone does not wake a driver that hangs.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Not validate_json: its paths must still be text after our own validator has made paths of them.
    camera = create_camera(CONFIG.validate_python(json.loads(channel.recv(MESSAGE_BYTES))))
    try:
        _serve(camera, channel, int(sys.argv[2]))
    except ConnectionError:
        return 0  # the daemon has let us go
    finally:
        camera.close()
    return 0


def _serve(camera: Camera, channel: socket.socket, slots: int) -> None:
    parting: Message
    try:
        Grabber(camera, channel, slots).run()
        return
    except CameraFinished as error:
        parting = Finished(reason=str(error))
    except CameraError as error:
        parting = Failed(reason=str(error))
    # Said before the device is closed: closing may hang.
    channel.send(parting.model_dump_json().encode())


if __name__ == "__main__":
    sys.exit(main())
