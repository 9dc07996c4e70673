"""Keeps one camera process alive: starts it, listens to it, judges it by heartbeat and frame age, and replaces it."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from config.schema import CameraConfig, FolderCamera
from connectors.cameras import CameraInfo
from daemon.frame import Frame
from daemon.grabber import (
    MESSAGE_BYTES,
    MESSAGES,
    TRIGGER_LIMIT_S,
    Arrival,
    Failed,
    Finished,
    Heartbeat,
    Opened,
    Trigger,
    Triggered,
)
from daemon.ring import RingReader

OPEN_LIMIT_S = 30.0
MAX_RETRY_S = 60.0
HEALTHY_AFTER_S = 60.0
_POLL_S = 0.2
_FAREWELL_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CameraStatus:
    """How a camera is. `counters` and `restarts` count from the start of the daemon, over all its processes.

    Counters come with the heartbeat: a process that is killed takes its last half second of them along.
    """

    camera: str
    connected: bool = False
    reason: str = "starting"
    """Why it is not connected, for people; empty while it is."""
    info: CameraInfo | None = None
    """What was opened last."""
    restarts: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    finished: bool = False
    """A folder that plays once is at its end; it is not started again."""
    last_frame_s: float | None = None
    """When the last frame or fault came, on time.monotonic()'s clock."""


class CameraSupervisor:
    """Owner of one camera's process, socket and ring, all used by its one thread.

    A process that ends, fails, or is silent for `silent_after_s` is replaced after `retry_s`; the wait doubles up to
    60 s and starts anew once a process has run for 60 s. A triggered line may stand still for ever: there only the
    heartbeat is judged; a free-running camera must also show a frame or a fault within `silent_after_s` (or two frame
    periods).
    """

    def __init__(
        self,
        config: CameraConfig,
        on_frame: Callable[[Frame], None],
        on_change: Callable[[CameraStatus], None],
        slots: int = 16,
    ) -> None:
        """`slots`: frames that may be held at once, in the queue, in a batch and at its end; one more is an overload fault.

        `on_frame` and `on_change` are called by the supervisor's thread; what they raise is logged, nothing more.
        """
        self._config = config
        self._on_frame = on_frame
        self._on_change = on_change
        self._slots = slots
        self._status = CameraStatus(config.name)
        self._past: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted: str | None = None
        """Why the process is to be replaced though it runs."""
        self._channel: socket.socket | None = None
        self._asked: dict[int, Future[Triggered]] = {}
        """Software triggers on their way; with `_channel` under `_trigger_lock`."""
        self._triggers = 0
        self._trigger_lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {config.name}", daemon=True)
        self._trigger = "free_run" if isinstance(config, FolderCamera) else config.trigger
        self._frame_limit_s = float("inf")
        if self._trigger == "free_run":
            self._frame_limit_s = max(config.silent_after_s, 2 / config.rate_hz if config.rate_hz else 0.0)

    @property
    def status(self) -> CameraStatus:
        """How the camera is now. May be read by any thread."""
        return self._status

    @property
    def pid(self) -> int | None:
        """Of its process, None while it has none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def replace(self, reason: str) -> None:
        """Let no frame of the present process through any more, and start another; `reason` for people. Returns at once."""
        self._unwanted = reason
        self._kill()

    def trigger(self, timeout_s: float = TRIGGER_LIMIT_S + 1.0) -> bool:
        """Fire one software trigger; whether the camera took it. Its frame then comes as any other. Any thread may call.

        False when the camera is not connected, not configured for it (`trigger = "software"`), still busy, or does not answer
        in time; the log says which. One that does not answer is replaced: its frame must not come after all.
        """
        answer: Future[Triggered] = Future()
        with self._trigger_lock:
            channel = self._channel
            if channel is None or not self._status.connected:
                log.warning("camera %s: not triggered: it is not connected", self._config.name)
                return False
            self._triggers += 1
            number = self._triggers
            self._asked[number] = answer
            try:
                channel.send(Trigger(number=number).model_dump_json().encode())
            except OSError as error:
                _settle(answer, Triggered(number=number, taken=False, reason=str(error)))
        try:
            told = answer.result(timeout_s)
        except TimeoutError:
            told = Triggered(number=number, taken=False, reason=f"no answer within {timeout_s:g} s")
            self.replace(f"a software trigger got no answer within {timeout_s:g} s")
        with self._trigger_lock:
            self._asked.pop(number, None)
        if not told.taken:
            log.warning("camera %s: not triggered: %s", self._config.name, told.reason)
        return told.taken

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let the camera go and wait for it; what has not ended within `timeout_s` is killed. Safe to call twice."""
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive() and (process := self._process) is not None:
            # The thread is held up in on_frame; the device must be let go all the same.
            process.kill()

    def _run(self) -> None:
        retry_s = self._config.retry_s
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                reason = self._serve()
            except Exception as error:  # whatever it is, this camera is tried again and no other is disturbed
                log.exception("camera %s: supervising failed", self._config.name)
                reason = f"Camera {self._config.name}: the supervisor failed: {error!r}"
            self._past = Counter(self._status.counters)
            if self._status.finished or self._stopping.is_set():
                break
            self._change(connected=False, reason=reason)
            if time.monotonic() - started_s >= HEALTHY_AFTER_S:
                retry_s = self._config.retry_s
            if self._stopping.wait(retry_s):
                break
            retry_s = max(retry_s, min(2 * retry_s, MAX_RETRY_S))
            self._change(restarts=self._status.restarts + 1)
        if not self._status.finished:
            self._change(connected=False, reason="stopped")

    def _serve(self) -> str:
        """Run one process to its end. Returns why it ended."""
        self._unwanted = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                # The child finds our packages where we found them, whatever its working directory holds.
                environment = {
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
                }
                self._process = process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "daemon.grabber", str(theirs.fileno()), str(self._slots), self._config.name],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            try:
                with suppress(BrokenPipeError):  # it has died already, and its exit status says more
                    ours.send(self._config.model_dump_json().encode())
                with self._trigger_lock:
                    self._channel = ours
                return self._listen(ours) or self._died(process)
            finally:
                self._hang_up()
                with suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)
                try:
                    process.wait(_FAREWELL_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _hang_up(self) -> None:
        """No trigger goes to this process any more, and those that wait hear so."""
        with self._trigger_lock:
            self._channel = None
            waiting, self._asked = self._asked, {}
        for number, answer in waiting.items():
            _settle(answer, Triggered(number=number, taken=False, reason="the camera was lost meanwhile"))

    def _listen(self, channel: socket.socket) -> str | None:
        """Take messages until the process is to be replaced: returns why, None when it hung up without a word."""
        name, limit_s = self._config.name, self._config.silent_after_s
        channel.settimeout(_POLL_S)
        ring: RingReader | None = None
        info: CameraInfo | None = None
        heard_s = frame_s = time.monotonic()
        while not self._stopping.is_set():
            try:
                packet, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 1)
            except TimeoutError:
                # Judged only when nothing waits to be read, so that a daemon that was held up blames no camera.
                now_s = time.monotonic()
                if info is None and now_s - heard_s > OPEN_LIMIT_S:
                    self._kill()
                    return f"Camera {name}: the driver did not open the device within {OPEN_LIMIT_S:.0f} s and was killed"
                if info is not None and now_s - heard_s > limit_s:
                    self._kill()
                    return f"Camera {name}: the driver hung (no heartbeat for {limit_s:g} s) and was killed"
                continue
            except ConnectionError:
                packet, descriptors = b"", []
            if not packet and self._unwanted is None:
                return None
            if self._unwanted is not None:
                for descriptor in descriptors:
                    os.close(descriptor)
                return f"Camera {name}: {self._unwanted}; it was killed"
            heard_s = time.monotonic()
            match MESSAGES.validate_json(packet):
                case Opened() as message:
                    try:
                        ring = RingReader(descriptors[0], message.info.frame_bytes, message.slots)
                    finally:
                        os.close(descriptors[0])
                    info, frame_s = message.info, heard_s
                    self._change(connected=True, reason="", info=info)
                case Arrival() as message:
                    self._pass_on(message, ring, info)
                    heard_s = frame_s = time.monotonic()  # on_frame's time is not the camera's silence
                case Triggered() as message:
                    with self._trigger_lock:
                        asked = self._asked.get(message.number)
                    if asked is not None:
                        _settle(asked, message)
                case Heartbeat() as message:
                    counters = Counter(self._past)
                    counters.update(message.counters)
                    self._update(counters=dict(counters))
                case Failed() as message:
                    return message.reason
                case Finished() as message:
                    self._change(connected=False, finished=True, reason=message.reason)
                    return message.reason
            if info is not None and heard_s - frame_s > self._frame_limit_s:
                self._kill()
                return f"Camera {name}: no frame for {self._frame_limit_s:g} s though it runs freely; it was killed"
        return "stopped"

    def _pass_on(self, message: Arrival, ring: RingReader | None, info: CameraInfo | None) -> None:
        if ring is None or info is None:
            raise ValueError("a frame came before the camera was opened")
        now_s = time.monotonic()
        self._update(last_frame_s=now_s)
        frame = Frame(
            camera=self._config.name,
            number=message.number,
            timestamp_ns=message.timestamp_ns,
            clock=message.clock,
            trigger=self._trigger,
            arrived_at=message.arrived_at,
            arrived_s=message.arrived_s,
            acquire_s=now_s - message.arrived_s,
            pixels=None if message.slot is None else ring.view(message.slot, message.shape),
            fault=message.fault,
            is_simulated=info.is_simulated,
            timestamp_error_ns=message.timestamp_error_ns,
            lost=message.lost,
        )
        try:
            self._on_frame(frame)
        except Exception:  # a station's trouble is not the camera's
            log.exception("camera %s: frame %d could not be handed over", self._config.name, frame.number)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _died(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            return f"Camera {self._config.name}: its process hung up and was killed"
        if code < 0:
            return f"Camera {self._config.name}: its process was killed by {signal.Signals(-code).name}"
        return f"Camera {self._config.name}: its process ended with status {code}; its last words are in the log"

    def _update(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]

    def _change(self, **changes: object) -> None:
        self._update(**changes)
        try:
            self._on_change(self._status)
        except Exception:  # a listener's trouble is not the camera's
            log.exception("camera %s: its status could not be handed over", self._config.name)


def _settle(answer: Future[Triggered], told: Triggered) -> None:
    with suppress(InvalidStateError):  # it was settled a moment ago, by a camera that went
        answer.set_result(told)
