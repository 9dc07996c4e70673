"""The Prometheus metrics of the daemon (names and labels of docs/metrics.md), in a registry of their own."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
SCORES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
STAGES = ("acquire", "queue", "inference", "finish", "total")
OUTCOMES = ("judged", "skipped", "refused", "faulty", "unclaimed")
OVERLAYS = ("published", "replaced", "dropped", "failed")
"""What becomes of an operator's picture. replaced: another part of its station was shown instead, as the rate allows. dropped: no
room in memory."""

GaugeRow = tuple[str, str, tuple[str, ...], tuple[str, ...], float]
"""(name, help, label names, label values, value) of a gauge that is read when scraped."""


class _Scraped(Collector):
    """Gauges whose values are asked for at the scrape, so that nothing has to be kept up to date on the hot path."""

    def __init__(self, read: Callable[[], Iterable[GaugeRow]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, labels, values, value in self._read():
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=labels))
            family.add_metric(values, value)
        yield from families.values()


class Metrics:
    """Every metric. Counters of a station exist at zero from `add_station` on."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.frames = counter("aprilcam_frames", "Frames that reached the daemon, by what became of them", "station", "outcome")
        self.results = counter("aprilcam_results", "Results committed to the ledger", "station", "recipe", "verdict", "reason")
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
        seconds = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
        self.bank_build = histogram("aprilcam_bank_build_seconds", "Time from a build's start to its bank", seconds, "recipe")
        self.bank_builds = counter("aprilcam_bank_builds", "Builds of banks, by how they ended", "recipe", "outcome")
        text = "Share of the running build that is done, 1 when none runs"
        self.build_progress = Gauge("aprilcam_build_progress_ratio", text, ("recipe",), registry=self.registry)
        self.archive_dropped = counter("aprilcam_archive_dropped", "Frames that were to be archived and were not", "reason")
        self.overlays = counter("aprilcam_overlays", "Overlay pictures, by what became of them", "station", "outcome")
        self.mqtt = Gauge("aprilcam_mqtt_connected", "1 while the broker connection stands", registry=self.registry)
        text = "1 while the Sparkplug edge node has told its birth"
        self.sparkplug = Gauge("aprilcam_sparkplug_online", text, ("edge_node",), registry=self.registry)
        text = "Changes that the Sparkplug edge node did not send one by one, the newest values excepted"
        self.sparkplug_dropped = counter("aprilcam_sparkplug_dropped", text, "edge_node")
        self.sparkplug_failures = counter("aprilcam_sparkplug_failures", "Failures of the Sparkplug edge node's own", "edge_node")
        Info("aprilcam_build", "The release that runs", registry=self.registry).info({"version": version})

    def add_station(self, station: str, recipe: str) -> None:
        """Create a station's series at zero, so that rates are right from the first event on."""
        for outcome in OUTCOMES:
            self.frames.labels(station, outcome)
        for outcome in OVERLAYS:
            self.overlays.labels(station, outcome)
        for verdict in ("pass", "fail"):
            self.results.labels(station, recipe, verdict, "")
        for stage in STAGES:
            self.latency.labels(station, stage)
        self.score.labels(station, recipe)
        self.camera_restarts.labels(station)
        self.late.labels(station)
        self.lost_frames.labels(station)

    def remove_station(self, station: str) -> None:
        """The station has gone, and its series with it."""
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and "station" in metric._labelnames:
                metric.remove_by_labels({"station": station})

    def add_recipe(self, recipe: str) -> None:
        """The same for a recipe's builds."""
        for outcome in ("built", "failed"):
            self.bank_builds.labels(recipe, outcome)

    def scrape_with(self, read: Callable[[], Iterable[GaugeRow]]) -> None:
        """Register the gauges that are read at each scrape."""
        self.registry.register(_Scraped(read))

    def frame(self, station: str, outcome: str, frames: int) -> None:
        """So many frames of a station came to that end, one of OUTCOMES."""
        self.frames.labels(station, outcome).inc(frames)

    def command(self, name: str, outcome: str) -> None:
        """A command came to its end: `ok`, `duplicate` or an error's code."""
        self.commands.labels(name, outcome).inc()

    def overlay(self, station: str, outcome: str) -> None:
        """An overlay picture came to its end, one of OVERLAYS."""
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
