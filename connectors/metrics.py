"""The Prometheus metrics of the daemon, in a registry of their own; docs/metrics.md is made from here.

Every label value comes from a closed set (outcomes, stages, reasons, commands) or from the configuration and the recipes, so
that nobody outside can make new series. A station's and a recipe's series exist at zero from `add_station` and `add_recipe`
on, and go with them.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from connectors.contract import Reason, ResultOut
from connectors.requests import REQUESTS, Code
from connectors.scraped import Reading, ScrapedCollector

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
SCORES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
BUILD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
STAGES = ("acquire", "queue", "inference", "finish", "total")
OUTCOMES = ("judged", "skipped", "refused", "faulty", "unclaimed")
OVERLAYS = ("published", "replaced", "dropped", "failed")
"""What becomes of an operator's picture. replaced: another part of its station was shown instead, as the rate allows. dropped: no
room in memory."""
BUILDS = ("built", "failed")
UNKNOWN_COMMAND = "unknown"
"""Label of every command that there is not."""

# A timestamp beside every counter: twice the series, and nothing of ours asks for them.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Declared:
    """A metric as it is documented. name: as it is scraped."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]


class Metrics:
    """Every metric. What is told of a station or a recipe that is gone is not counted: it would come back as a series."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Declared] = []
        """What is counted here; what is read at the scrape: `connectors.scraped.SCRAPED`."""
        self._all: list[tuple[MetricWrapperBase, Sequence[str]]] = []
        self._recipes: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        """(station, recipe) whose series exist."""
        self._verdict_s: dict[str, float] = {}
        """When each station's newest result was committed, or the station came; monotonic."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def declare(kind: str, name: str, text: str, labels: tuple[str, ...]) -> None:
            self.declared.append(Declared(name, kind, text, labels))

        def counter(name: str, text: str, *labels: str) -> Counter:
            declare("counter", f"{name}_total", text, labels)
            made = Counter(name, text, labels, registry=self.registry)
            self._all.append((made, labels))
            return made

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            declare("gauge", name, text, labels)
            made = Gauge(name, text, labels, registry=self.registry)
            self._all.append((made, labels))
            return made

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            declare("histogram", name, text, labels)
            made = Histogram(name, text, labels, buckets=buckets, registry=self.registry)
            self._all.append((made, labels))
            return made

        self.frames = counter("aprilcam_frames", "Frames that reached the daemon, by what became of them", "station", "outcome")
        self.results = counter("aprilcam_results", "Results committed to the ledger", "station", "recipe", "verdict", "reason")
        text = "Time since the station's newest result was committed, before the first since the station came"
        self.verdict_age = gauge("aprilcam_last_verdict_age_seconds", text, "station")
        self.score = histogram("aprilcam_score", "Anomaly score of judged frames", SCORES, "station", "recipe")
        text = "Time a frame spends in a stage; total is frame to finished judgement"
        self.latency = histogram("aprilcam_latency_seconds", text, SECONDS, "station", "stage")
        self.publish = histogram("aprilcam_publish_seconds", "Committed to acknowledged by the broker", SECONDS)
        self.batch = histogram("aprilcam_batch_size", "Frames judged at once", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.late = counter("aprilcam_late_judgements", "Frames judged after their station's deadline", "station")
        self.camera_restarts = counter("aprilcam_camera_restarts", "Camera processes started again", "station")
        self.lost_frames = counter("aprilcam_lost_frames", "Frames that a camera numbered and that never arrived", "station")
        self.finish_errors = counter("aprilcam_finish_errors", "Frames whose map could not be turned into a result")
        text = "Messages given up, by what was lost and why (docs/delivery.md)"
        self.messages_lost = counter("aprilcam_messages_lost", text, "what", "reason")
        self.commands = counter("aprilcam_commands", "Commands, by what became of them", "command", "outcome")
        text = "Time from a build's start to its bank"
        self.bank_build = histogram("aprilcam_bank_build_seconds", text, BUILD_SECONDS, "recipe")
        self.bank_builds = counter("aprilcam_bank_builds", "Builds of banks, by how they ended", "recipe", "outcome")
        text = "Share of the running build that is done, 1 when none runs"
        self.build_progress = gauge("aprilcam_build_progress_ratio", text, "recipe")
        self.archive_dropped = counter("aprilcam_archive_dropped", "Frames that were to be archived and were not", "reason")
        self.overlays = counter("aprilcam_overlays", "Overlay pictures, by what became of them", "station", "outcome")
        text = "Frames that were to be measured for the exposure drift, and for which there was no time"
        self.exposure_skipped = counter("aprilcam_exposure_skipped", text)
        self.mqtt = gauge("aprilcam_mqtt_connected", "1 while the broker connection stands")
        text = "1 while the Sparkplug edge node has told its birth"
        self.sparkplug = gauge("aprilcam_sparkplug_online", text, "edge_node")
        text = "Changes that the Sparkplug edge node did not send one by one, the newest values excepted"
        self.sparkplug_dropped = counter("aprilcam_sparkplug_dropped", text, "edge_node")
        self.sparkplug_failures = counter("aprilcam_sparkplug_failures", "Failures of the Sparkplug edge node's own", "edge_node")
        text = "The release that runs"
        declare("gauge", "aprilcam_build_info", text, ("version",))
        Info("aprilcam_build", text, registry=self.registry).info({"version": version})
        for name in REQUESTS:
            for outcome in ("ok", "duplicate", *get_args(Code)):
                self.commands.labels(name, outcome)
        for outcome in get_args(Code):
            self.commands.labels(UNKNOWN_COMMAND, outcome)

    # What there is.

    def add_station(self, station: str, recipe: str) -> None:
        """Create a station's series at zero, so that rates are right from the first event on. Again for another recipe."""
        self.add_recipe(recipe)
        for outcome in OUTCOMES:
            self.frames.labels(station, outcome)
        for outcome in OVERLAYS:
            self.overlays.labels(station, outcome)
        for verdict in ("pass", "fail"):
            self.results.labels(station, recipe, verdict, "")
        for reason in get_args(Reason):
            self.results.labels(station, recipe, "unknown", reason)
        for stage in STAGES:
            self.latency.labels(station, stage)
        self.score.labels(station, recipe)
        self.camera_restarts.labels(station)
        self.late.labels(station)
        self.lost_frames.labels(station)
        self._pairs.add((station, recipe))
        if station not in self._verdict_s:
            self._verdict_s[station] = time.monotonic()
            age = self.verdict_age.labels(station)
            age.set_function(lambda: time.monotonic() - self._verdict_s.get(station, time.monotonic()))

    def remove_station(self, station: str) -> None:
        """Its series go."""
        self._verdict_s.pop(station, None)
        self._pairs = {pair for pair in self._pairs if pair[0] != station}
        self._remove("station", station)

    def add_recipe(self, recipe: str) -> None:
        """The same for a recipe's builds."""
        if recipe in self._recipes:
            return
        for outcome in BUILDS:
            self.bank_builds.labels(recipe, outcome)
        self.bank_build.labels(recipe)
        self.build_progress.labels(recipe).set(1)
        self._recipes.add(recipe)

    def remove_recipe(self, recipe: str) -> None:
        """Its series go, also those of the stations that once had it."""
        self._recipes.discard(recipe)
        self._pairs = {pair for pair in self._pairs if pair[1] != recipe}
        self._remove("recipe", recipe)

    def _remove(self, label: str, value: str) -> None:
        for metric, labels in self._all:
            if label in labels:
                metric.remove_by_labels({label: value})

    def expect(self, counter: Counter, *values: Iterable[str]) -> None:
        """Create a counter's series at zero: all combinations of the values of its labels."""
        for labels in product(*values):
            counter.labels(*labels)

    def scrape_with(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Register what is read at each scrape."""
        self.registry.register(ScrapedCollector(read))

    # What happens.

    def frame(self, station: str, outcome: str, frames: int) -> None:
        """So many frames of a station came to that end, one of OUTCOMES."""
        if station in self._verdict_s:
            self.frames.labels(station, outcome).inc(frames)

    def frames_lost(self, station: str, frames: int) -> None:
        """The camera numbered so many that never arrived."""
        if frames and station in self._verdict_s:
            self.lost_frames.labels(station).inc(frames)

    def camera_restarted(self, station: str, times: int) -> None:
        """Its camera's process was started again."""
        if times and station in self._verdict_s:
            self.camera_restarts.labels(station).inc(times)

    def judged_late(self, station: str) -> None:
        """A frame was judged after its deadline."""
        if station in self._verdict_s:
            self.late.labels(station).inc()

    def result(self, result: ResultOut) -> None:
        """A result was committed."""
        station, times = result.station, result.processing_times
        if station not in self._verdict_s:
            return
        self._verdict_s[station] = time.monotonic()
        stages = (times.acquire_s, times.queue_s, times.inference_s, times.finish_s, times.total_s)
        for stage, seconds in zip(STAGES, stages, strict=True):
            self.latency.labels(station, stage).observe(seconds)
        if result.score is not None:
            self.frames.labels(station, "judged").inc()
        if (station, result.recipe) in self._pairs:
            self.results.labels(station, result.recipe, result.verdict, result.reason or "").inc()
            if result.score is not None:
                self.score.labels(station, result.recipe).observe(result.score)

    def build_done(self, recipe: str, share: float) -> None:
        """So much of a recipe's running build is done, 0 to 1."""
        if recipe in self._recipes:
            self.build_progress.labels(recipe).set(share)

    def build_ended(self, recipe: str, outcome: str, seconds: float | None) -> None:
        """A build came to its end, one of BUILDS. seconds: how long a bank took."""
        if recipe not in self._recipes:
            return
        self.build_progress.labels(recipe).set(1)
        self.bank_builds.labels(recipe, outcome).inc()
        if seconds is not None:
            self.bank_build.labels(recipe).observe(seconds)

    def command(self, name: str, outcome: str) -> None:
        """A command came to its end: `ok`, `duplicate` or an error's code."""
        self.commands.labels(name if name in REQUESTS else UNKNOWN_COMMAND, outcome).inc()

    def overlay(self, station: str, outcome: str) -> None:
        """An overlay picture came to its end, one of OVERLAYS."""
        if station in self._verdict_s:
            self.overlays.labels(station, outcome).inc()

    def mqtt_connected(self, connected: bool) -> None:
        """The broker connection came or went."""
        self.mqtt.set(1 if connected else 0)

    def published(self, latency_s: float) -> None:
        """A message was acknowledged this long after its commit."""
        self.publish.observe(latency_s)

    def lost(self, what: str, reason: str) -> None:
        """A message, or a part of it, was given up."""
        self.messages_lost.labels(what, reason).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
