"""A made-up history of a plant in the daemon's own metrics, for pictures and for measuring queries.

Lines make parts in two shifts a day and rest in between and on Sundays. With `eventful` they work through the last six hours, and
things go wrong there: see `Events`. Only families that the dashboards ask for are there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.metrics import OUTCOMES, SCORES, SECONDS, STAGES
from demo.dashboards.prometheus import Prometheus

Floats = NDArray[np.float64]
Put = Callable[[str, dict[str, str], Floats], Iterator[str]]
"""(metric, labels, a value for each time): the lines."""
BLOCK_S = 7200
"""Of a Prometheus block: a text for each."""
VERDICTS = (("pass", ""), ("fail", ""), ("unknown", "incomplete"), ("unknown", "overload"), ("unknown", "no_frame"))
STAGE_S = (0.004, 0.006, 0.028, 0.003, 0.045)
"""Median time of each of STAGES."""
THRESHOLD = 0.62


@dataclass(frozen=True)
class Events:
    """Hours before the end, (from, to): what the daemons go through."""

    lunch: tuple[float, float] = (3.2, 2.7)
    """All stand still."""
    burst: tuple[float, float] = (2.1, 1.5)
    """The first daemon's first station fails a third of its parts."""
    camera: tuple[float, float] = (4.6, 4.2)
    """The first daemon's second station has no camera."""
    broker: tuple[float, float] = (1.2, 0.7)
    """The second daemon's broker is away."""
    gone: tuple[float, float] = (5.2, 4.9)
    """The third daemon does not answer."""


@dataclass
class Daemon:
    """One daemon's series, continued from text to text."""

    instance: str
    number: int
    stations: tuple[str, ...]
    end_s: float
    step_s: int
    eventful: bool
    random: np.random.Generator
    _totals: dict[str, Floats] = field(default_factory=dict)
    _events: Events = field(default_factory=Events)

    def _during(self, times: Floats, hours: tuple[float, float]) -> NDArray[np.bool_]:
        before = (self.end_s - times) / 3600
        return self.eventful & (before <= hours[0]) & (before > hours[1])

    def _busy(self, times: Floats) -> Floats:
        """(times, stations): parts a second."""
        day, hour = times // 86400 % 7, times / 3600 % 24
        shifts = np.where((day != 3) & (hour >= 6) & (hour < 22), 1.0, 0.0)
        at_work = np.where(self._during(times, self._events.lunch), 0.0, 1.0) if self.eventful else shifts
        pace = 0.3 + 0.1 * (np.arange(len(self.stations)) % 5)
        busy: Floats = at_work[:, None] * pace[None, :]
        return busy

    def _sum(self, name: str, grown: NDArray[np.int64] | Floats) -> Floats:
        """(times, ...): a counter from what it grew by."""
        total = np.cumsum(grown, axis=0) + self._totals.get(name, 0.0)
        self._totals[name] = total[-1]
        return np.asarray(total, np.float64)

    def text(self, times: Floats) -> Iterator[str]:
        """Lines in OpenMetrics."""
        here = ~(self._during(times, self._events.gone) & (self.number == 2))
        stamps = [f" {time:.0f}\n" for time in times]

        def put(name: str, labels: dict[str, str], values: Floats) -> Iterator[str]:
            head = name + "{" + ",".join(f'{key}="{value}"' for key, value in {**labels, **whose}.items()) + "} "
            for value, stamp, known in zip(values.tolist(), stamps, present.tolist(), strict=True):
                if known:
                    yield f"{head}{value:.6g}{stamp}" if value != int(value) else f"{head}{int(value)}{stamp}"

        whose, present = {"instance": self.instance, "job": "aprilcam"}, np.ones(len(times), np.bool_)
        yield from put("up", {}, here.astype(np.float64))
        present = here
        away = self._during(times, self._events.broker) & (self.number == 1)
        yield from self._machine(times, away, put)
        parts = self.random.poisson(self._busy(times) * self.step_s)
        second = (np.arange(len(self.stations)) == 1) & (self.number == 0)
        no_camera = self._during(times, self._events.camera)[:, None] & second[None, :]
        parts = np.where(no_camera, 0, parts)
        yield from self._judged(times, parts, put)
        yield from self._cameras(times, parts, no_camera, put)

    def _machine(self, times: Floats, away: NDArray[np.bool_], put: Put) -> Iterator[str]:
        since_s = np.where(away, (self._events.broker[0] * 3600 - self.end_s) + times, 0.0)
        started_s = self.end_s - 6.2e5 - 4000 * self.number
        noise = self.random.normal(0, 3e6, len(times))
        yield from put("aprilcam_build_info", {"version": "0.1.0"}, np.ones(len(times)))
        yield from put("aprilcam_mqtt_connected", {}, np.where(away, 0.0, 1.0))
        waiting = np.asarray(np.round(since_s * 1.1 + self.random.uniform(0, 2, len(times))), np.float64)
        yield from put("aprilcam_outbox_depth", {}, waiting)
        yield from put("aprilcam_outbox_oldest_age_seconds", {}, since_s + 0.01)
        yield from put("aprilcam_archive_bytes", {}, 2e10 + (times - self.end_s) * 9000 + 3e9 * self.number)
        yield from put("aprilcam_device_memory_bytes", {"device": "cuda:0"}, np.full(len(times), 5.1e9 + 4e8 * self.number))
        yield from put("process_start_time_seconds", {}, np.full(len(times), started_s))
        yield from put("process_resident_memory_bytes", {}, 1.9e9 + 1.1e8 * self.number + noise)
        load = self.random.uniform(0.5, 0.7, len(times)) * self.step_s + 0.1 * self.number
        yield from put("process_cpu_seconds_total", {}, self._sum("cpu", load))
        sent = self.random.multinomial(np.full(len(times), 20), _shares(np.log([0.004]), 0.3, np.log(SECONDS))[0])
        yield from self._histogram("aprilcam_publish_seconds", {}, SECONDS, self._sum("publish", sent), put)

    def _judged(self, times: Floats, parts: NDArray[np.int64], put: Put) -> Iterator[str]:
        first = (np.arange(len(self.stations)) == 0) & (self.number == 0)
        risk = np.where(self._during(times, self._events.burst)[:, None] & first[None, :], 0.33, 0.01)
        risk = risk + 0.004 * (np.arange(len(self.stations)) % 4)[None, :]
        unknown = self.random.binomial(parts, 0.0015)
        failed = self.random.binomial(parts - unknown, risk)
        passed = parts - unknown - failed
        reasons = self.random.multinomial(unknown, [0.6, 0.25, 0.15])
        verdicts = self._sum("verdicts", np.concatenate([np.stack([passed, failed], axis=2), reasons], axis=2))
        drift = np.clip((times - self.end_s) / 21600 + 1, 0, 1) * 0.28 * self.eventful if self.number == 0 else 0.0 * times
        scores = _shares((np.log(0.3) + drift)[:, None], 0.11, np.log(SCORES))
        wrong = _shares(np.log([1.05]), 0.12, np.log(SCORES))[0]
        grown = self.random.multinomial(passed, np.broadcast_to(scores, (*passed.shape, len(SCORES) + 1)))
        buckets = self._sum("score", grown + self.random.multinomial(failed, wrong))
        spans = _shares(np.log(STAGE_S) + 0.12 * self.number, 0.16, np.log(SECONDS))
        spent = self.random.multinomial((passed + failed)[:, :, None], spans)
        latency = self._sum("latency", spent)
        for index, station in enumerate(self.stations):
            own = {"station": station}
            recipe = {"station": station, "recipe": f"gear-{index % 3}"}
            for column, (verdict, reason) in enumerate(VERDICTS):
                labels = {**recipe, "verdict": verdict, "reason": reason}
                yield from put("aprilcam_results_total", labels, verdicts[:, index, column])
            yield from self._histogram("aprilcam_score", recipe, SCORES, buckets[:, index], put)
            for column, stage in enumerate(STAGES):
                labels = {**own, "stage": stage}
                yield from self._histogram("aprilcam_latency_seconds", labels, SECONDS, latency[:, index, column], put)
        for kind in range(min(3, len(self.stations))):
            yield from put("aprilcam_score_drift_psi", {"recipe": f"gear-{kind}"}, 0.02 + drift * (1.2 if kind == 0 else 0.1))

    def _cameras(self, times: Floats, parts: NDArray[np.int64], away: NDArray[np.bool_], put: Put) -> Iterator[str]:
        frames = self._sum("frames", parts)
        rare = self._sum("rare", self.random.binomial(1, 0.0006, (len(times), len(self.stations), 4)))
        waited = np.zeros(len(self.stations))
        ages = np.empty(parts.shape)
        for row, came in enumerate(parts):
            waited = np.where(came > 0, self.random.uniform(0, 3, len(waited)), waited + self.step_s)
            ages[row] = waited
        queue = np.asarray(self.random.binomial(3, 0.15, parts.shape) * (parts > 0), np.float64)
        slow = (times - self.end_s) / 21600
        for index, station in enumerate(self.stations):
            own = {"station": station}
            for column, outcome in enumerate(OUTCOMES):
                values = frames[:, index] if outcome == "judged" else rare[:, index, min(column, 3)] * (column < 3)
                yield from put("aprilcam_frames_total", {**own, "outcome": outcome}, values)
            yield from put("aprilcam_late_judgements_total", own, 0 * rare[:, index, 0])
            yield from put("aprilcam_camera_restarts_total", own, rare[:, index, 0])
            yield from put("aprilcam_lost_frames_total", own, rare[:, index, 1])
            yield from put("aprilcam_incomplete_frames_total", own, rare[:, index, 2])
            yield from put("aprilcam_camera_packets_resent_total", own, 3 * rare[:, index, 3])
            yield from put("aprilcam_camera_connected", own, np.where(away[:, index], 0.0, 1.0))
            yield from put("aprilcam_frame_age_seconds", own, ages[:, index])
            yield from put("aprilcam_queue_depth", own, queue[:, index])
            yield from put("aprilcam_station_taught", own, np.ones(len(times)))
            yield from put("aprilcam_threshold", own, np.full(len(times), THRESHOLD))
            yield from put("aprilcam_threshold_stale", own, np.zeros(len(times)))
            yield from put("aprilcam_bank_patches", own, np.full(len(times), 16384.0))
            for measure, most in (("mean", 3.1), ("saturation", 0.4), ("focus", 1.2)):
                values = 0.5 + np.clip(slow + 1, 0, 1) * most * (self.number == 0) * self.eventful
                yield from put("aprilcam_exposure_drift", {**own, "measure": measure}, values)

    def _histogram(self, name: str, labels: dict[str, str], edges: tuple[float, ...], buckets: Floats, put: Put) -> Iterator[str]:
        """buckets: (times, edges + 1), each on its own."""
        below = np.cumsum(buckets, axis=1)
        for column, edge in enumerate((*(str(edge) for edge in edges), "+Inf")):
            yield from put(f"{name}_bucket", {**labels, "le": edge}, below[:, column])
        yield from put(f"{name}_count", labels, below[:, -1])
        yield from put(f"{name}_sum", labels, np.asarray(buckets @ np.array([*edges, edges[-1]]), np.float64))


def _shares(middles: Floats, width: float, edges: Floats) -> Floats:
    """(..., edges + 1): how much of a logistic distribution falls between them."""
    below = 1 / (1 + np.exp((middles[..., None] - edges) / width))
    shares: Floats = np.diff(below, axis=-1, prepend=0.0, append=1.0)
    return shares


def plant(daemons: int, stations: int, end_s: float, step_s: int, *, eventful: bool, seed: int = 1) -> list[Daemon]:
    """So many daemons with so many stations each."""
    random = np.random.default_rng(seed)
    sides = ("left", "right", "top", "rear")

    def names(number: int) -> tuple[str, ...]:
        kind = ("press", "weld", "paint", "pack")[number % 4]
        return tuple(f"{kind}-{sides[index % 4]}" + (f"-{index // 4 + 1}" if stations > 4 else "") for index in range(stations))

    return [Daemon(f"line{number + 1}:9464", number, names(number), end_s, step_s, eventful, random) for number in range(daemons)]


def fill_with(prometheus: Prometheus, daemons: list[Daemon], start_s: float) -> int:
    """Give a Prometheus that is not started yet the history from `start_s` on; how many samples."""
    path, samples = Path(prometheus.folder) / "history.txt", 0
    step_s, end_s = daemons[0].step_s, daemons[0].end_s
    for block_s in range(int(start_s // BLOCK_S) * BLOCK_S, int(end_s) + 1, BLOCK_S):
        first_s = block_s + (-block_s % step_s) if block_s >= start_s else start_s
        times = np.arange(first_s, min(block_s + BLOCK_S, end_s + 1), float(step_s))
        if len(times) == 0:
            continue
        with path.open("w") as file:
            for daemon in daemons:
                for line in daemon.text(times):
                    file.write(line)
                    samples += 1
            file.write("# EOF\n")
        prometheus.backfill(path)
    path.unlink(missing_ok=True)
    return samples
