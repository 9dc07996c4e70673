"""The stations with their cameras: made, changed and removed, at the start and while the others inspect."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from config.errors import StoreError
from config.schema import Config, RecipeConfig, StationConfig
from connectors.metrics import Metrics
from daemon.alarms import Alarms
from daemon.announcer import Announcer
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.frames import NewestFrames
from daemon.inspector import Inspector
from daemon.intake import Intake
from daemon.ledger import Ledger
from daemon.line import Line
from daemon.mqtt_commands import MqttCommands
from daemon.station import Program, Station
from daemon.supervisor import CameraStatus, CameraSupervisor

log = logging.getLogger(__name__)

LAST_FRAMES_S = 5.0
"""How long the frames of a station that is removed may wait for their verdicts; then they are `unknown: stopped`."""
CAMERA_STOP_S = 3.0


@dataclass(frozen=True)
class Surroundings:
    """What stations stand among. `beside_queue`: slots of a camera's ring for frames that wait no more and are in use still.
    `measure`: gets each frame with its station, and returns at once."""

    ledger: Ledger
    announcer: Announcer
    finisher: Finisher
    alarms: Alarms
    inspector: Inspector
    inbox: MqttCommands
    beside_queue: int
    measure: Callable[[str, Frame], None]


class Floor:
    """Owner of the stations, their lines and intakes. One thread changes them: the one that starts the daemon, then the one
    that reloads; others read."""

    def __init__(self, metrics: Metrics, frames: NewestFrames, release: Callable[[str], None]) -> None:
        """release: see `Station`."""
        self.stations: dict[str, Station] = {}
        self.lines: dict[str, Line] = {}
        self.intakes: dict[str, Intake] = {}
        self._metrics = metrics
        self._frames = frames
        self._release = release

    def recipes(self) -> dict[str, str]:
        """Each station's recipe."""
        return {name: station.program.recipe.name for name, station in list(self.stations.items())}

    def program(self, station: str) -> Program | None:
        """What a station inspects by, None where there is none of that name."""
        own = self.stations.get(station)
        return own.program if own is not None else None

    def place(self, config: Config, names: Iterable[str], recipes: Mapping[str, RecipeConfig], ledger: Ledger) -> None:
        """Make stations, by name, that inspect by these recipes (by station), once those are taught. No camera yet."""
        configured = {own.name: own for own in config.stations}
        for name in names:
            own = configured[name]
            program = Program(recipes[name])
            every, triggered = config.takes_every_frame(own), config.software_triggered(own)
            self.stations[name] = Station(own, program, every, ledger.submit, triggered, self._release)
            self._metrics.add_station(name, program.recipe.name)

    def open(self, config: Config, names: Iterable[str], around: Surroundings) -> None:
        """Give stations their cameras, which `start` starts, and let the inspector look after them."""
        for name in names:
            station = self.stations[name]
            slots = station.config.queue_frames + around.beside_queue
            supervisor = CameraSupervisor(
                config.camera(station.config.camera),
                on_frame=partial(self._arrived, name, around, slots),
                on_change=partial(self._camera_changed, name, around.announcer),
                slots=slots,
            )
            self.intakes[name] = Intake(
                station,
                around.finisher,
                around.alarms,
                count=partial(self._metrics.frame, name),
                notify=around.inspector.notify,
                fire=supervisor.trigger,
                replace_camera=supervisor.replace,
            )
            if name in self.lines:
                self.lines[name].has_another_camera(supervisor)
            else:
                self.lines[name] = Line(station, supervisor)
            around.announcer.state(name, quietly=True)
        self._show_inspector(around.inspector)

    def _show_inspector(self, inspector: Inspector) -> None:
        inspector.serve([line.station for line in self.lines.values()])

    def start(self, names: Iterable[str]) -> None:
        """Start their cameras; returns at once."""
        for name in names:
            self.lines[name].supervisor.start()

    # While the others inspect.

    def change(self, config: Config, own: StationConfig) -> None:
        """A station has other settings; those that its camera depends on only after `close`, and before `open`."""
        station = self.stations[own.name]
        station.takes_every_frame, station.triggered = config.takes_every_frame(own), config.software_triggered(own)
        station.config = own

    def close(self, names: Iterable[str], why: str) -> None:
        """Let the cameras of stations go. Frames that came are judged; those that were to come are `unknown: stopped`."""
        names = list(names)
        stoppers = [threading.Thread(target=self.lines[name].supervisor.stop, args=(CAMERA_STOP_S,)) for name in names]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        for name in names:
            self.intakes[name].stop(why)

    def remove(self, names: Iterable[str], around: Surroundings) -> None:
        """Take stations away whose cameras are closed: every frame of theirs gets its result first."""
        until_s = time.monotonic() + LAST_FRAMES_S
        for name in names:
            station = self.stations[name]
            while station.parts() and time.monotonic() < until_s:
                time.sleep(0.02)
            self.intakes[name].end_all("the station was removed before this frame's turn")
        with suppress(StoreError):  # a disk that takes nothing now; the ledger keeps what it was given
            around.ledger.ask(lambda _: None)  # what they had to tell is told
        for name in names:
            del self.stations[name], self.lines[name], self.intakes[name]
        self._show_inspector(around.inspector)
        for name in names:
            self._frames.forget(name)
            around.inbox.remove(name)
            around.announcer.forget(name)
            self._metrics.remove_station(name)

    # On the cameras' supervisors' threads.

    def _arrived(self, name: str, around: Surroundings, ring_slots: int, frame: Frame) -> None:
        self._frames.see(name, frame, ring_slots)
        self._metrics.frames_lost(name, frame.lost)
        self.intakes[name].arrived(frame)
        around.measure(name, frame)

    def _camera_changed(self, name: str, announcer: Announcer, status: CameraStatus) -> None:
        line = self.lines[name]
        self._metrics.camera_restarted(name, status.restarts - line.restarts_seen)
        line.restarts_seen = status.restarts
        if not status.connected:
            self._frames.let_go(name)
            self.intakes[name].camera_lost()
        if status.reason != "starting":
            line.tried.set()
        announcer.state(name)
