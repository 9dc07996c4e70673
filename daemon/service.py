"""The daemon: puts the parts together, starts and stops them in order, and says how they are."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from config.schema import Config, RecipeConfig
from connectors.contract import ResultOut, Topics
from connectors.metrics import Metrics
from connectors.nvml import Gpus
from connectors.scraped import Reading
from connectors.systemd import Notifier
from daemon.alarms import Alarms
from daemon.announcer import Announcer
from daemon.archive import REASONS, Archive
from daemon.banks import Banks
from daemon.builder import Builder
from daemon.checks import check
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.device import choose_batching, load_detector
from daemon.drop import DropFolders
from daemon.edge_node import EdgeNode
from daemon.evidence import Evidence
from daemon.exposure import exposures
from daemon.exposure_drift import ExposureDrift
from daemon.finisher import Finisher
from daemon.floor import Floor, Surroundings
from daemon.frames import NewestFrames
from daemon.health import Health
from daemon.inspector import Inspector
from daemon.intake import Intakes
from daemon.late import LateJudgements
from daemon.ledger import Ledger
from daemon.line import STOPPED
from daemon.losses import Losses
from daemon.marks import Marks
from daemon.mqtt_commands import MqttCommands
from daemon.outbox import outbox_totals
from daemon.outbox_bounds import OutboxBounds
from daemon.overlays import Overlays
from daemon.overview import Overseer
from daemon.part import Outcome
from daemon.presets import load_preset
from daemon.programs import Programs, no_bank
from daemon.recipe_store import RecipeStore
from daemon.recipes import Recipes, Running
from daemon.refit import Refit
from daemon.reload import Reloader
from daemon.score_drift import ScoreDrift
from daemon.shots import Shots
from daemon.station import Taught, Ticket
from daemon.teacher import Teacher
from daemon.web.access import Access
from daemon.web.api import Api
from daemon.web.app import HttpServer, create_app
from daemon.web.page import Page
from model.detector import Detector

log = logging.getLogger(__name__)

VERSION = version("aprilcam")
STOP_LIMIT_S = 25.0
FORGET_EVERY_S = 60.0
IMPATIENT_S = 1.0
NICE = 5
"""Of the threads that judge on a CPU: less of a busy core than a camera's process gets."""
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

    def __init__(self, config: Config, config_path: Path, observer: Observer, read: Callable[[], Config]) -> None:
        """config: as `read` gave it, which reads the file again at a reload and raises ConfigError."""
        self.config = config
        self.metrics = Metrics(VERSION)
        self.frames = NewestFrames()
        self.commands = Commands(self, self.frames, self.metrics.command)
        self._config_path = config_path
        self._base = config_path.resolve().parent
        self._observer = observer
        self._notifier = Notifier()
        self._reloader = Reloader(config, config_path, read, lambda own: check(own, config_path), self._notifier)
        self._stop = threading.Event()
        self._signalled_s: float | None = None
        self._reload = False
        self._forgetting: Future[int] | None = None
        self._forget_s = 0.0
        self._floor = Floor(self.metrics, self.frames, self._release)
        self._inspector: Inspector | None = None
        self._running = ExitStack()
        self.http_url = ""
        self.outbox_left = 0
        """Messages that the broker had not acknowledged at the stop."""

    def start(self) -> None:
        """Bring everything up: state folder, HTTP, model, banks, broker, cameras. Returns once each camera has been tried.

        SIGINT and SIGTERM end it early, and `run` then returns at once. SIGHUP makes `run` read the configuration file again and
        look at renewed certificates; of a terminal that is closed it ends it. Raises ConfigError, StoreError, AddressError and
        ModelError; what was started by then is stopped again.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGHUP, self._signalled if os.isatty(0) else self._told_to_reload)
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
        for exposure in exposures(config):
            log.warning("%s.", exposure)
        topics = Topics(config.mqtt.prefix)
        losses = Losses(topics, self.metrics.lost)
        most_age_s = config.mqtt.outbox_max_age_h * 3_600
        self.ledger = Ledger(store, self._committed, OutboxBounds(topics, config.mqtt.outbox_max_bytes, most_age_s, losses))
        stack.callback(self.ledger.close)
        stack.callback(self._count_outbox)
        self._store = RecipeStore(store, self.ledger, config.recipes, {own.name: own.recipe for own in config.stations})
        floor, names = self._floor, [station.name for station in config.stations]
        inbox = MqttCommands(config.mqtt, self.commands, names, lambda reply: self._announcer.publisher.reply(reply))
        self._announcer = Announcer(config.mqtt, VERSION, self.ledger, self.metrics, inbox, losses, floor.stations, floor.lines)
        self.health = Health(config, VERSION, self.ledger, self._announcer.publisher, floor.lines, self._reloader)
        access = Access(config.http, self._config_path)
        overseer = Overseer(config, self.health, self.ledger, floor.lines)
        self._page = page = Page(
            self.health.views,
            self.ledger,
            self.frames,
            self.commands,
            access,
            floor.program,
            overseer.overview,
            # The broker in force, which may be another than the file's.
            ("--config", str(self._config_path), "--broker", f"{config.mqtt.host}:{config.mqtt.port}"),
        )
        routes = [Api(self.commands, access, self.health.status).mount(), *access.routes(), *page.routes()]
        # Bound before the broker hears of us: a second daemon that finds its port taken must not disturb the first.
        http = HttpServer(config.http, create_app(self.metrics.text, self.health.alive, self.health.ready, routes))
        self.http_url = http.url
        http.start()
        stack.callback(http.stop)
        stack.callback(page.live.close)
        stack.callback(page.system.examiner.close)
        inbox.start()
        stack.callback(inbox.stop)
        self._announcer.publisher.start()
        stack.callback(lambda: self._announcer.publisher.stop(self._announcer.status("stopped"), DRAIN_S))
        if config.sparkplug is not None:
            edge = EdgeNode(config.sparkplug, config.mqtt, VERSION, names, self.commands, self.metrics, store)
            self._announcer.edge_node = overseer.edge = edge
            edge.start()
            stack.callback(edge.stop)
        dropped = self.metrics.archive_dropped
        self.metrics.expect(dropped, REASONS)
        self.archive = Archive(store, self.ledger, config.archive, lambda reason: dropped.labels(reason).inc())
        overseer.archive = self.archive
        self.marks = Marks(self.ledger, self.archive)
        page.opened(self.archive)
        stack.callback(self.archive.close)
        self._late = LateJudgements(self.ledger)
        self._score_drift = ScoreDrift(self.ledger, self._store.recipes)
        self._gpus = overseer.gpus = Gpus()
        stack.callback(self._gpus.close)
        self._overlays = Overlays(self._announcer.overlay, self.metrics.overlay)
        stack.callback(self._overlays.close)
        self._finisher = finisher = Finisher(
            self._announcer.topics,
            on_error=self.metrics.finish_errors.inc,
            archive=self.archive,
            on_late=self._judged_late,
            overlays=self._overlays,
            previews=page.previews,
        )
        alarms = Alarms()
        stack.callback(alarms.stop)
        self._inspector = inspector = Inspector(
            self._finisher,
            on_batch=self.metrics.batch.observe,
            on_broken=self._break,
            # Whoever takes frames off a camera goes first.
            nice=NICE if config.inference.device == "cpu" else 0,
        )
        self.health.inspector = inspector
        # Stopped in the opposite order: cameras, then the inspector with what waits, then the ledger, then the broker.
        stack.callback(self._settle)
        stack.callback(inspector.stop)
        detector = inspector.on_device(load_detector, config, spec, self._progress)
        batching = inspector.on_device(choose_batching, config, detector, self._progress)
        overseer.detector, overseer.batching = detector, batching
        lanes = detector.extractor.callers
        # One for the frame that commands may ask for, beside those that are on their way.
        beside = (1 + lanes) * batching.max_batch + 3
        shots = Shots(store, self.ledger)
        self._exposure_drift = ExposureDrift(floor.stations, shots, self.metrics.exposure_skipped.inc)
        stack.callback(self._exposure_drift.close)
        around = Surroundings(self.ledger, self._announcer, finisher, alarms, inspector, inbox, beside, self._exposure_drift.see)
        self._make_teacher(detector, inspector, shots)
        stack.callback(self._builder.stop)
        recipes = {station: self._store.get(recipe) for station, recipe in self._store.stations().items()}
        floor.place(config, names, recipes, self.ledger)
        for recipe in self._store.recipes():
            self._start_recipe(self._store.get(recipe), detector)
        floor.open(config, names, around)
        self.metrics.scrape_with(self._readings)
        inspector.start(detector, list(floor.stations.values()), batching, lanes)
        floor.start(names)
        self._builder.start()
        stack.callback(lambda: floor.close(list(floor.lines), STOPPED))
        drops = DropFolders(self.commands)
        self.commands.open(Parts(self.teacher, self._recipes, Evidence(self.archive, self.marks), Intakes(floor.intakes)))
        stack.callback(self.commands.close)
        stack.callback(self.frames.close)
        drops.watch({recipe.name: recipe.drop for recipe in config.recipes if recipe.drop})
        stack.callback(drops.stop)
        refit = Refit(floor, around, self._store, self.teacher, self._builder, self._programs, drops, self.metrics)
        self._reloader.start(refit.apply)
        stack.callback(self._reloader.stop)
        for tried in (*(line.tried for line in floor.lines.values()), self._announcer.publisher.attempted):
            while not tried.wait(0.05) and not self._stop.is_set():
                pass

    def _make_teacher(self, detector: Detector, inspector: Inspector, shots: Shots) -> None:
        folder, store, announcer = self.config.store.path, self._store, self._announcer
        banks = Banks(folder, self.ledger, announcer.bank_corrupt)
        programs = Programs(store, self._floor.stations, announcer.state, announcer.station_event)
        told = self._page.teach.told(announcer.recipe_event)
        self._builder = Builder(
            folder,
            shots,
            banks,
            detector,
            inspector,
            recipe_of=store.get,
            on_taught=programs.taught,
            on_event=told,
            refine=self.marks.refine,
            in_use=programs.in_use,
            bank_rows=self.config.inference.bank_rows,
        )
        self._page.teach.open(shots, self._builder.pending)
        self.teacher = Teacher(shots, banks, store.get, self._builder, announcer.recipe_event)
        running = Running(self._builder, programs, detector.fingerprint, announcer.station_event, self._recipe_deleted)
        self._programs = programs
        self._recipes = Recipes(store, shots, banks, knows_words=detector.knows_text, running=running)

    def _start_recipe(self, recipe: RecipeConfig, detector: Detector) -> None:
        """Its shots, and where a station has it, what judges it; one recipe's trouble is not the others'."""
        self.metrics.add_recipe(recipe.name)
        try:
            if recipe.name not in self._programs.in_use():
                self.teacher.start_idle(recipe, self._progress)
                return
            taught = self.teacher.start(recipe, self._progress)
            if isinstance(taught, Taught) and self._inspector is not None:
                # The first real part is to be as quick as the others.
                size = (taught.region.height, taught.region.width) if taught.region else (256, 256)
                self._inspector.on_device(detector.judge, [np.zeros(size, np.uint8)], [taught.reference])
        except _StoppedEarly:
            raise
        except Exception as error:
            self._programs.taught(recipe, no_bank(recipe, error))

    def run(self) -> int:
        """Wait for SIGINT or SIGTERM while feeding the watchdog. The exit code."""
        if not self._stop.is_set():
            self._notifier.ready()
        tick_s = min(1.0, (self._notifier.watchdog_s or 3.0) / 3)
        while not self._stop.wait(tick_s):
            well, detail = self.health.alive()
            if well:
                self._notifier.alive()
            elif self.health.broken is None:
                self._break(str(detail["trouble"]))
            self._notifier.status(self.health.summary())
            self._forget_results()
            self._announcer.tell_losses()
            if self._reload:
                self._reload = False
                self._announcer.publisher.reload()
                self._reloader.reload()
        return 1 if self.health.broken else 0

    def _forget_results(self) -> None:
        """At each tick while there are old ones, else once a minute."""
        if self._forgetting is not None:
            if not self._forgetting.done():
                return
            more = self._forgetting.exception() is None and self._forgetting.result() > 0
            self._forget_s = time.monotonic() + (0.0 if more else FORGET_EVERY_S)
            self._forgetting = None
        if time.monotonic() >= self._forget_s:
            before_s = time.time() - self.config.store.results_days * 86_400
            self._forgetting = self.ledger.forget_results(int(before_s * 1e9))
            self._late.forget(int(before_s * 1e9))

    def _signalled(self, number: int, _frame: object) -> None:
        now_s = time.monotonic()
        if self._signalled_s is None:
            self._signalled_s = now_s
            self._stop.set()
        elif now_s - self._signalled_s > IMPATIENT_S:
            # A person who asks again means it; one stop that reaches us twice (process group and parent) does not.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _told_to_reload(self, _number: int, _frame: object) -> None:
        self._reload = True

    def stop(self) -> None:
        """Stop everything in order; what was accepted is committed, and published where the broker is there."""
        self._notifier.stopping()
        self._announcer.stopping = True
        # What is stuck may never end. Accepted results are in the ledger by then, and nothing else is worth waiting for.
        limit = threading.Timer(STOP_LIMIT_S, os._exit, (1,))
        limit.daemon = True
        limit.start()
        self._running.close()
        limit.cancel()
        self._notifier.close()

    def _count_outbox(self) -> None:
        self.outbox_left = self.ledger.call(outbox_totals).result().rows

    def _settle(self) -> None:
        self._finisher.close()
        self.ledger.call(lambda _: None).result()

    def _break(self, reason: str) -> None:
        log.critical("giving up: %s", reason)
        self.health.broken = reason
        self._stop.set()

    # Results out.

    def _release(self, result_id: str) -> None:
        self.archive.release(result_id)
        self._overlays.release(result_id)
        self._page.previews.release(result_id)

    def _judged_late(self, ticket: Ticket, outcome: Outcome) -> None:
        self.metrics.judged_late(ticket.station.name)
        self._late.add(ticket, outcome)

    def _committed(self, results: list[ResultOut]) -> None:
        """On the ledger's thread."""
        self.archive.committed(results)
        self._overlays.committed(results)
        self._score_drift.committed(results)
        self._announcer.results(results)
        self._page.live.committed(results)
        for result in results:
            self._observer.result(result)

    def _recipe_deleted(self, recipe: str) -> None:
        self.metrics.remove_recipe(recipe)
        self._score_drift.forget(recipe)

    def _readings(self) -> Iterator[Reading]:
        """For Prometheus, on the HTTP thread."""
        yield from self.health.readings()
        for part in (self.archive, self._score_drift, self._exposure_drift, self._gpus):
            yield from part.readings()

    # What commands ask.

    def recipes(self) -> list[str]:
        """Names."""
        return self._store.recipes()

    def stations(self) -> dict[str, str]:
        """Each station's recipe."""
        return self._floor.recipes()
