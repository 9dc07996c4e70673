"""A station with its camera: what both together are doing, for the broker, for people and for Prometheus."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from connectors import scraped
from connectors.contract import StateOut, StationState
from daemon.station import Program, Station, Taught, Untaught
from daemon.supervisor import CameraStatus, CameraSupervisor
from model.detector import Mode

STOPPED = "the daemon was stopped"


@dataclass(frozen=True)
class StationView:
    """A station as shown to people."""

    station: str
    camera: str
    device: str | None
    """The camera with its driver, model and serial number, once it was opened."""
    recipe: str
    state: StationState
    reason: str | None
    bank: str | None
    mode: Mode | None
    threshold: float | None
    threshold_stale: bool
    """It was set against another calibration than the one that judges."""
    shots: int
    advice: str | None
    """What would make the calibration better, None when it is good."""


class Line:
    """One station and its camera. `camera` and `restarts_seen` are written by the supervisor's thread only."""

    def __init__(self, station: Station, supervisor: CameraSupervisor) -> None:
        self.station = station
        self.supervisor = supervisor
        self.restarts_seen = 0
        self.tried = threading.Event()
        """The camera has been opened, or could not be."""
        self._published: StateOut | None = None
        self._lock = threading.Lock()

    def has_another_camera(self, supervisor: CameraSupervisor) -> None:
        """The present one was stopped; its thread has ended."""
        self.supervisor, self.restarts_seen = supervisor, 0

    @property
    def camera(self) -> CameraStatus:
        """How the camera is now."""
        return self.supervisor.status

    def _state(self, program: Program) -> tuple[StationState, str | None]:
        """(state, why it is not ContinuousExecution)."""
        camera, taught = self.camera, program.taught
        if isinstance(taught, Untaught):
            return "Error", taught.reason
        if camera.finished:
            return "Halted", camera.reason
        if not camera.connected:
            return "Preoperational", camera.reason or "the camera is being opened"
        return "ContinuousExecution", None

    @property
    def published(self) -> StateOut | None:
        """The state that was told last."""
        return self._published

    def changed_state(self, *, stopping: bool) -> StateOut | None:
        """The state to tell, None when it is the one that was told. `since` moves when the state itself changes."""
        station, program = self.station, self.station.program
        state, reason = ("Halted", STOPPED) if stopping else self._state(program)
        with self._lock:
            previous = self._published
            same = previous is not None and previous.state == state
            document = StateOut(
                station=station.name,
                state=state,
                reason=reason,
                recipe=program.recipe.name,
                mode=program.taught.mode if isinstance(program.taught, Taught) else None,
                bank=program.bank.name if program.bank else None,
                threshold=program.threshold,
                threshold_stale=program.threshold_stale,
                camera=station.config.camera,
                since=previous.since if previous is not None and same else datetime.now(UTC),
            )
            if document == previous:
                return None
            self._published = document
            return document

    def view(self) -> StationView:
        """As shown to people."""
        program, camera = self.station.program, self.camera
        taught, calibration = program.taught, program.calibration
        state, reason = self._state(program)
        device = None
        if (info := camera.info) is not None:
            device = f"{camera.camera}: {' '.join(filter(None, (info.driver, info.model, info.serial)))}"
            device += ", simulated" if info.is_simulated else ""
        return StationView(
            station=self.station.name,
            camera=camera.camera,
            device=device,
            recipe=program.recipe.name,
            state=state,
            reason=reason,
            bank=program.bank.name if program.bank else None,
            mode=taught.mode if isinstance(taught, Taught) else None,
            threshold=program.threshold,
            threshold_stale=program.threshold_stale,
            shots=calibration.shots if calibration else 0,
            advice=calibration.advice if calibration and calibration.provisional else None,
        )

    def readings(self) -> Iterator[scraped.Reading]:
        """What is read at each scrape."""
        station, program, camera, name = self.station, self.station.program, self.camera, self.station.name
        yield scraped.QUEUE_DEPTH.of(station.waiting(), name)
        yield scraped.CAMERA_CONNECTED.of(camera.connected, name)
        if camera.last_frame_s is not None:
            yield scraped.FRAME_AGE.of(time.monotonic() - camera.last_frame_s, name)
        for counted, what in scraped.COUNTED_BY_CAMERAS.items():
            yield what.of(camera.counters.get(counted, 0), name)
        if (pid := self.supervisor.pid) is not None and (memory := _resident_bytes(pid)) is not None:
            yield scraped.CAMERA_MEMORY.of(memory, name)
        yield scraped.STATION_TAUGHT.of(isinstance(program.taught, Taught), name)
        if (threshold := program.threshold) is not None:
            yield scraped.THRESHOLD.of(threshold, name)
        yield scraped.THRESHOLD_STALE.of(program.threshold_stale, name)
        if isinstance(program.taught, Taught):
            bank = program.bank.name if program.bank is not None else ""
            yield scraped.BANK_INFO.of(1, name, program.recipe.name, bank, program.taught.mode)
        if program.bank is not None:
            yield scraped.BANK_PATCHES.of(sum(len(layer) for layer in program.bank.layers), name)


def _resident_bytes(pid: int) -> int | None:
    """Of a process (proc(5), statm: pages), None when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
