"""The daemon: puts the parts together, starts and stops them in order, and says how they are."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from config.errors import AprilcamError
from config.schema import Config, RecipeConfig
from connectors.contract import EventKind, EventOut, Reason, ResultOut, StatusOut, Topics
from connectors.metrics import GaugeRow, Metrics
from connectors.systemd import Notifier
from daemon.archive import REASONS, Archive
from daemon.banks import Banks
from daemon.builder import Builder, Detail
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.drop import DropFolders
from daemon.evidence import Evidence
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.frames import NewestFrames
from daemon.inspector import Inspector
from daemon.ledger import Ledger, Message, last_document, outbox_depth
from daemon.line import Line, StationView
from daemon.marks import Marks
from daemon.mqtt_commands import MqttCommands
from daemon.presets import load_preset
from daemon.publisher import Publisher
from daemon.shots import Shots
from daemon.station import Station, Taught, Untaught
from daemon.supervisor import CameraStatus, CameraSupervisor
from daemon.teacher import Teacher
from daemon.web.api import Api
from daemon.web.app import HttpServer, create_app
from daemon.web.guard import Guard
from model.detector import Detector
from model.errors import ModelError
from model.features import create_extractor
from model.spec import ModelSpec

log = logging.getLogger(__name__)

VERSION = version("aprilcam")
STUCK_S = 60.0
"""A part of the pipeline that makes no progress for so long is stuck: the daemon ends with exit 1 and is started again."""
STOPPED = "the daemon was stopped"
STOP_LIMIT_S = 25.0
IMPATIENT_S = 1.0
DRAIN_S = 5.0
"""How long a stop waits for the broker to take what is committed; the rest waits in the outbox for the next start."""


class Observer(Protocol):
    """Who shows a person what happens (the console)."""

    def progress(self, what: str, done: int, total: int) -> None:
        """A step of the start-up."""

    def result(self, result: ResultOut) -> None:
        """A committed result. Must return at once."""


class _StoppedEarly(Exception):
    """A signal came while the daemon was starting."""


class Service:
    """Everything that runs in the daemon process."""

    def __init__(self, config: Config, config_path: Path, observer: Observer) -> None:
        self.config = config
        self.metrics = Metrics(VERSION)
        self.topics = Topics(config.mqtt.prefix)
        self.started_at = datetime.now(UTC)
        self.frames = NewestFrames()
        self.commands = Commands(self, self.frames, self.metrics.command)
        self._config_path = config_path
        self._base = config_path.resolve().parent
        self._observer = observer
        self._notifier = Notifier()
        self._stop = threading.Event()
        self._stopping = False
        self._broken: str | None = None
        self._signalled_s: float | None = None
        self._lines: dict[str, Line] = {}
        self._inspector: Inspector | None = None
        self._running = ExitStack()
        self.http_url = ""
        self.outbox_left = 0
        """Messages that the broker had not acknowledged at the stop."""

    def start(self) -> None:
        """Bring everything up: state folder, HTTP, model, banks, broker, cameras. Returns once each camera has been tried.

        SIGINT and SIGTERM end it early, and `run` then returns at once. Raises ConfigError, StoreError, AddressError and
        ModelError; what was started by then is stopped again.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        with ExitStack() as stack:
            try:
                self._start(stack)
            except _StoppedEarly:
                log.info("stopped while starting")
            self._running = stack.pop_all()

    def _progress(self, what: str, done: int, total: int) -> None:
        self._observer.progress(what, done, total)
        if self._stop.is_set():
            raise _StoppedEarly

    def _start(self, stack: ExitStack) -> None:
        config, store = self.config, self.config.store.path
        spec = load_preset(config.inference.preset, self._base)
        self.ledger = Ledger(store, self._committed)
        stack.callback(self.ledger.close)
        stack.callback(self._count_outbox)
        names = [station.name for station in config.stations]
        inbox = MqttCommands(self.topics, self.commands, names, lambda reply: self._publisher.reply(reply))
        self._publisher = Publisher(config.mqtt, self.ledger, self._status("offline"), self._birth, self.metrics, inbox)
        api = Api(self.commands, Guard(config.http, self._config_path), self._tell_status, self._tell_recipes)
        # Bound before the broker hears of us: a second daemon that finds its port taken must not disturb the first.
        http = HttpServer(config.http, create_app(self.metrics.text, self.alive, self.ready, [api.mount()]))
        self.http_url = http.url
        http.start()
        stack.callback(http.stop)
        inbox.start()
        stack.callback(inbox.stop)
        self._publisher.start()
        stack.callback(lambda: self._publisher.stop(self._status("stopped"), DRAIN_S))
        dropped = self.metrics.archive_dropped
        for reason in REASONS:
            dropped.labels(reason)
        self.archive = Archive(store, self.ledger, config.archive, lambda reason: dropped.labels(reason).inc())
        self.marks = Marks(self.ledger, self.archive)
        stack.callback(self.archive.close)
        self._finisher = Finisher(self.topics, on_error=self.metrics.finish_errors.inc, archive=self.archive)
        self._inspector = inspector = Inspector(
            self._finisher,
            max_batch=config.inference.max_batch,
            max_wait_s=config.inference.max_wait_ms / 1e3,
            on_batch=self.metrics.batch.observe,
            on_broken=self._break,
        )
        # Stopped in the opposite order: cameras, then the inspector with what waits, then the ledger, then the broker.
        stack.callback(self._settle)
        stack.callback(inspector.stop)
        detector = inspector.on_device(self._load, spec)
        self._make_teacher(detector, inspector)
        stack.callback(self._builder.stop)
        self._add_stations(detector)
        self.metrics.scrape_with(self._gauges)
        inspector.start(detector, [line.station for line in self._lines.values()])
        for line in self._lines.values():
            line.supervisor.start()
        self._builder.start()
        stack.callback(self._stop_cameras)
        drops = DropFolders({recipe.name: recipe.drop for recipe in config.recipes if recipe.drop}, self.commands)
        self.commands.open(Parts(self.teacher, archive=Evidence(self.archive, self.marks)))
        stack.callback(self.commands.close)
        stack.callback(self.frames.close)
        drops.start()
        stack.callback(drops.stop)
        for tried in (*(line.tried for line in self._lines.values()), self._publisher.attempted):
            while not tried.wait(0.05) and not self._stop.is_set():
                pass

    def _load(self, spec: ModelSpec) -> Detector:
        self._progress(f"loading model {spec.name}", 0, 1)
        inference, cache = self.config.inference, self.config.store.path / "cache"
        detector = Detector(create_extractor(spec, inference.device, inference.threads, cache, inference.runtime), cache)
        self._progress(f"loading model {spec.name}", 1, 1)
        return detector

    def _make_teacher(self, detector: Detector, inspector: Inspector) -> None:
        store, recipe_of = self.config.store.path, self.config.recipe
        shots = Shots(store, self.ledger)
        banks = Banks(store, self.ledger, self._bank_corrupt)
        self._builder = Builder(
            store,
            shots,
            banks,
            detector,
            inspector,
            recipe_of=recipe_of,
            on_taught=self._taught,
            on_event=self._event,
            refine=self.marks.refine,
            bank_rows=self.config.inference.bank_rows,
        )
        self.teacher = Teacher(shots, banks, recipe_of, self._builder, self._event)

    def _add_stations(self, detector: Detector) -> None:
        config = self.config
        taught: dict[str, Taught | Untaught] = {}
        for station_config in config.stations:
            recipe = config.recipe(station_config.recipe)
            if recipe.name not in taught:
                for outcome in ("built", "failed"):
                    self.metrics.bank_builds.labels(recipe.name, outcome)
                taught[recipe.name] = self._teach(recipe, detector)
            station = Station(station_config, recipe, config.takes_every_frame(station_config), self.ledger.submit)
            station.taught = taught[recipe.name]
            self.metrics.add_station(station.name, recipe.name)
            camera = config.camera(station_config.camera)
            # One for the frame that commands may ask for, beside those that are on their way.
            slots = station_config.queue_frames + 2 * config.inference.max_batch + 3
            supervisor = CameraSupervisor(
                camera,
                on_frame=partial(self._arrived, station, slots),
                on_change=partial(self._camera_changed, station.name),
                slots=slots,
            )
            self._lines[station.name] = line = Line(station, supervisor)
            self._tell_state(line, quietly=True)

    def _teach(self, recipe: RecipeConfig, detector: Detector) -> Taught | Untaught:
        try:
            taught = self.teacher.start(recipe, self._progress)
            if isinstance(taught, Taught) and self._inspector is not None:
                # The first real part is to be as quick as the others.
                size = (recipe.region.height, recipe.region.width) if recipe.region else (256, 256)
                self._inspector.on_device(detector.judge, [np.zeros(size, np.uint8)], [taught.reference])
            return taught
        except _StoppedEarly:
            raise
        except Exception as error:  # one recipe's trouble is not the other stations'
            if isinstance(error, AprilcamError | ModelError):
                log.error("recipe %s: no bank: %s", recipe.name, error)  # noqa: TRY400 - the message says it all
                return Untaught(str(error))
            log.exception("recipe %s: no bank", recipe.name)
            return Untaught(f"{type(error).__name__}: {error}")

    def run(self) -> int:
        """Wait for SIGINT or SIGTERM while feeding the watchdog. The exit code."""
        if not self._stop.is_set():
            self._notifier.ready()
        tick_s = min(1.0, (self._notifier.watchdog_s or 3.0) / 3)
        while not self._stop.wait(tick_s):
            well, detail = self.alive()
            if well:
                self._notifier.alive()
            elif self._broken is None:
                self._break(str(detail["trouble"]))
            self._notifier.status(self._summary())
        return 1 if self._broken else 0

    def _signalled(self, number: int, _frame: object) -> None:
        now_s = time.monotonic()
        if self._signalled_s is None:
            self._signalled_s = now_s
            self._stop.set()
        elif now_s - self._signalled_s > IMPATIENT_S:
            # A person who asks again means it; one stop that reaches us twice (process group and parent) does not.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def stop(self) -> None:
        """Stop everything in order; what was accepted is committed, and published where the broker is there."""
        self._notifier.stopping()
        self._stopping = True
        # What is stuck may never end. Accepted results are in the ledger by then, and nothing else is worth waiting for.
        limit = threading.Timer(STOP_LIMIT_S, os._exit, (1,))
        limit.daemon = True
        limit.start()
        self._running.close()
        limit.cancel()
        self._notifier.close()

    def _stop_cameras(self) -> None:
        stoppers = [threading.Thread(target=line.supervisor.stop, args=(3.0,)) for line in self._lines.values()]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()

    def _count_outbox(self) -> None:
        self.outbox_left = self.ledger.call(lambda connection: outbox_depth(connection)[0]).result()

    def _settle(self) -> None:
        self._finisher.close()
        self.ledger.call(lambda _: None).result()

    def _break(self, reason: str) -> None:
        log.critical("giving up: %s", reason)
        self._broken = reason
        self._stop.set()

    # Frames in, results out.

    def _arrived(self, station: Station, ring_slots: int, frame: Frame) -> None:
        """On the camera supervisor's thread."""
        self.frames.see(station.name, frame, ring_slots)
        frames = self.metrics.frames
        if frame.fault is not None or frame.pixels is None:
            detail = frame.fault or "unreadable: no pixels"
            reason = _reason_of(detail)
            self.metrics.lost_frames.labels(station.name).inc(frame.lost)
            if frame.lost and not station.takes_every_frame:
                return  # the next one is as good: nothing is owed for it
            if reason == "overload" and not station.takes_every_frame:
                # The ring is smaller than the queue (large frames): an older frame makes room for the ones to come.
                frames.labels(station.name, "skipped").inc(1 + station.displace())
                return
            frames.labels(station.name, "faulty").inc()
            self._finisher.unknown(station.enter(frame), reason, detail)
            return
        offer = station.offer(frame)
        if offer.refused is not None:
            frames.labels(station.name, "refused").inc()
            self._finisher.unknown(offer.ticket, offer.refused, f"{station.config.queue_frames} frames were waiting already")
            return
        if offer.displaced is not None:
            frames.labels(station.name, "skipped").inc()
        if self._inspector is not None:
            self._inspector.notify()

    def _committed(self, results: list[ResultOut]) -> None:
        """On the ledger's thread."""
        self.archive.committed(results)
        newest: dict[str, ResultOut] = {}
        for result in results:
            newest[result.station] = result
            times = result.processing_times
            self.metrics.results.labels(result.station, result.recipe, result.verdict, result.reason or "").inc()
            stages = {
                "acquire": times.acquire_s,
                "queue": times.queue_s,
                "inference": times.inference_s,
                "finish": times.finish_s,
                "total": times.total_s,
            }
            for stage, seconds in stages.items():
                self.metrics.latency.labels(result.station, stage).observe(seconds)
            if result.score is not None:
                self.metrics.frames.labels(result.station, "judged").inc()
                self.metrics.score.labels(result.station, result.recipe).observe(result.score)
            self._observer.result(result)
        for station, result in newest.items():
            self._publisher.retain(self.topics.last(station), result.encode())
        self._publisher.wake()

    # Banks.

    def _taught(self, recipe: str, taught: Taught | Untaught) -> None:
        """A bank is new: each frame is judged by the one or the other, as the station is asked once for each."""
        for line in list(self._lines.values()):
            if line.station.recipe.name == recipe:
                line.station.taught = taught
                self._tell_state(line)

    def _bank_corrupt(self, recipe: str, bank: str, reason: str) -> None:
        self._event(recipe, "bank_corrupt", {"bank": bank, "reason": reason[:500]})

    def _event(self, recipe: str, kind: EventKind, detail: Detail) -> None:
        """To metrics, and to each station of the recipe. On whichever thread it happened."""
        progress = self.metrics.build_progress.labels(recipe)
        match kind:
            case "build_started":
                progress.set(0)
            case "build_progress":
                progress.set(float(detail["share"] or 0))
                if not self._publisher.connected:
                    return  # nobody wants to hear it afterwards
            case "bank_built" | "build_failed":
                progress.set(1)
                self.metrics.bank_builds.labels(recipe, "built" if kind == "bank_built" else "failed").inc()
                if kind == "bank_built":
                    self.metrics.bank_build.labels(recipe).observe(float(detail["seconds"] or 0))
        stations = [station.name for station in self.config.stations if station.recipe == recipe]
        now = datetime.now(UTC)
        messages = [
            Message(
                self.topics.event(station),
                EventOut(station=station, recipe=recipe, kind=kind, detail=detail, created_at=now).encode(),
            )
            for station in stations
        ]
        self.ledger.publish(messages).add_done_callback(lambda _: self._publisher.wake())

    # State.

    def _camera_changed(self, name: str, status: CameraStatus) -> None:
        """On the camera supervisor's thread."""
        line = self._lines[name]
        self.metrics.camera_restarts.labels(line.station.name).inc(status.restarts - line.restarts_seen)
        line.restarts_seen = status.restarts
        if not status.connected:
            self.frames.let_go(name)
        if status.reason != "starting":
            line.tried.set()
        self._tell_state(line)

    def _tell_state(self, line: Line, *, quietly: bool = False) -> None:
        document = line.changed_state(stopping=self._stopping)
        if document is None:
            return
        if not self._stopping and not quietly:
            level = logging.INFO if document.state in ("ContinuousExecution", "Halted") else logging.WARNING
            reason = f" ({document.reason})" if document.reason else ""
            log.log(level, "station %s: %s%s", document.station, document.state, reason)
        self._publisher.retain(self.topics.state(document.station), document.encode())

    def _status(self, status: str) -> tuple[str, bytes]:
        document = StatusOut.model_validate({"status": status, "version": VERSION, "since": self.started_at})
        return self.topics.status, document.encode()

    def _birth(self) -> dict[str, bytes]:
        """Every retained message, for a broker that may have lost them. On the publisher's thread."""
        topic, online = self._status("online")
        birth = {topic: online}
        reader = self.ledger.reader()
        try:
            for name, line in list(self._lines.items()):
                if line.published is not None:
                    birth[self.topics.state(name)] = line.published.encode()
                if (document := last_document(reader, name)) is not None:
                    birth[self.topics.last(name)] = document
        finally:
            reader.close()
        return birth

    def views(self) -> list[StationView]:
        """Every station as shown to people."""
        return [line.view() for line in list(self._lines.values())]

    def recipes(self) -> list[str]:
        """Names."""
        return [recipe.name for recipe in self.config.recipes]

    def stations(self) -> dict[str, str]:
        """Each station's recipe."""
        return {name: line.station.recipe.name for name, line in list(self._lines.items())}

    def _tell_status(self) -> dict[str, Any]:
        """For GET /api/status."""
        well, alive = self.alive()
        stations = {view.station: {key: value for key, value in vars(view).items() if key != "station"} for view in self.views()}
        broker = {"connected": self._publisher.connected, "trouble": self._publisher.trouble}
        return {**alive, "ready": self.ready()[0], "stations": stations, "broker": broker, "alive": well}

    def _tell_recipes(self) -> list[dict[str, Any]]:
        """For GET /api/recipes."""
        users = self.stations().items()
        return [
            {"recipe": recipe, "stations": [station for station, used in users if used == recipe]} for recipe in self.recipes()
        ]

    @property
    def broker_trouble(self) -> str | None:
        """Why the broker is not connected, None while it is."""
        return self._publisher.trouble

    def alive(self) -> tuple[bool, dict[str, Any]]:
        """Whether the pipeline makes progress."""
        trouble = self._broken
        if trouble is None and self._inspector is not None:
            now_s = time.monotonic()
            idle_s = {
                "inspector": self._inspector.idle_s(),
                "ledger": now_s - self.ledger.last_progress_s,
            }
            for name, line in list(self._lines.items()):
                idle_s[f"station {name}"] = line.station.stuck_s(now_s)
            part, longest_s = max(idle_s.items(), key=lambda item: item[1])
            if longest_s > STUCK_S:
                trouble = f"{part} has made no progress for {longest_s:.0f} s"
            elif not self._publisher.running:
                trouble = "the publisher has ended"
        return trouble is None, {
            "status": "ok" if trouble is None else "failed",
            "version": VERSION,
            "trouble": trouble,
        }

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every station can give verdicts."""
        views = self.views()
        well = bool(views) and all(view.state in ("ContinuousExecution", "Halted") for view in views) and not self.ledger.failing
        stations = {view.station: {"state": view.state, "reason": view.reason} for view in views}
        ledger = "failing: its disk takes no commit" if self.ledger.failing else "ok"
        return well, {"status": "ready" if well else "not ready", "stations": stations, "ledger": ledger}

    def _summary(self) -> str:
        states = ", ".join(f"{view.station}: {view.state}" for view in self.views())
        ledger = "; ledger failing: disk full?" if self.ledger.failing else ""
        return f"{states}; broker {'connected' if self._publisher.connected else 'away'}{ledger}"

    def _gauges(self) -> Iterable[GaugeRow]:
        """Read at each scrape, on the HTTP thread."""
        for line in list(self._lines.values()):
            yield from line.gauges()
        reader = self.ledger.reader()
        try:
            depth, oldest_ns = outbox_depth(reader)
        finally:
            reader.close()
        age_s = max(0.0, time.time() - oldest_ns / 1e9) if oldest_ns is not None else 0.0
        yield from self.archive.gauges()
        yield "aprilcam_ledger_failing", "1 while the ledger's disk takes no commit", (), (), float(self.ledger.failing)
        yield "aprilcam_outbox_depth", "Messages the broker has not acknowledged", (), (), depth
        yield "aprilcam_outbox_oldest_age_seconds", "Age of the oldest of them", (), (), age_s


def _reason_of(fault: str) -> Reason:
    kind = fault.split(":", 1)[0]
    if kind == "overload":
        return "overload"
    return "incomplete" if kind in ("incomplete", "lost") else "unreadable"
