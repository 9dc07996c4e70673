"""What the daemon consists of and how each part of it is, for the page `System`."""

import os
import platform
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from config.schema import Config
from connectors.nvml import Gpus
from connectors.tls import tls_use
from daemon.archive import Archive
from daemon.batching import Batching
from daemon.edge_node import EdgeNode
from daemon.exposure import exposures
from daemon.health import Health
from daemon.ledger import Ledger
from daemon.line import Line
from daemon.outbox import OutboxTotals, outbox_totals
from model.detector import Detector

KEPT_S = 1.0
"""However many look, it is gathered once in so long."""
RATE_S = 4.0
"""A frame rate is measured over at least so long, and over at most ten times of it."""
NEARLY_FULL = 0.8
PACKAGES = ("torch", "open_clip_torch", "pypylon", "opencv-python-headless", "openvino")

Fact = str | int | float | bool | datetime | None
"""None: not known, and not shown."""


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong. what: in words; mend: the text of the page that says what to do, empty where `what` says it.
    files: it names files of secrets, which are nothing for a viewer."""

    level: Literal["fail", "warn"]
    what: str
    mend: str = ""
    files: bool = False


@dataclass(frozen=True)
class Part:
    """What is known of one part. The names of facts end with their unit: _bytes, _s, _hz, _c; `title` is a station's name."""

    kind: str
    facts: Mapping[str, Fact]
    title: str = ""


@dataclass(frozen=True)
class Overview:
    """troubles: the worst first. starting: the model is not loaded yet, or no station is there."""

    troubles: tuple[Trouble, ...] = ()
    parts: tuple[Part, ...] = ()
    starting: bool = False


class Overseer:
    """Gathers the overview. Asked from any thread. What is None is not there yet: the daemon is starting."""

    def __init__(self, config: Config, health: Health, ledger: Ledger, lines: Mapping[str, Line]) -> None:
        self._config = config
        self._health = health
        self._ledger = ledger
        self._lines = lines
        self._since = datetime.now(UTC)
        self._since_s = time.monotonic()
        self._versions = {name: _version(name) for name in PACKAGES}
        self._lock = threading.Lock()
        self._newest: tuple[float, Overview] | None = None
        self._frames: dict[str, tuple[float, int]] = {}
        """By camera: how many it had given, and when that was."""
        self._rates: dict[str, float] = {}
        self.archive: Archive | None = None
        self.edge: EdgeNode | None = None
        self.gpus: Gpus | None = None
        self.detector: Detector | None = None
        self.batching: Batching | None = None

    def overview(self) -> Overview:
        """At most a second old."""
        with self._lock:
            now_s = time.monotonic()
            if self._newest is None or now_s - self._newest[0] >= KEPT_S:
                self._newest = now_s, self._gather(now_s)
            return self._newest[1]

    def _gather(self, now_s: float) -> Overview:
        troubles: list[Trouble] = []
        parts = [
            *self._cameras(troubles, now_s),
            self._broker(troubles),
            self._outbox(troubles),
            self._disk(troubles),
            self._device(),
            *self._gpu_parts(),
            self._configuration(troubles),
            self._software(troubles, now_s),
        ]
        starting = self.detector is None or not self._lines
        return Overview(tuple(sorted(troubles, key=lambda trouble: trouble.level)), tuple(parts), starting)

    def _cameras(self, troubles: list[Trouble], now_s: float) -> list[Part]:
        parts = []
        for name, line in list(self._lines.items()):
            view, camera = line.view(), line.camera
            if view.state not in ("ContinuousExecution", "Halted"):
                mend = "mend_camera" if view.state == "Preoperational" else "mend_recipe"
                troubles.append(Trouble("fail", f"{name}: {view.reason}", mend))
            counters, info = camera.counters, camera.info
            facts: dict[str, Fact] = {"camera": camera.camera, "connected": camera.connected, "reason": camera.reason or None}
            if info is not None:
                facts |= {"driver": info.driver, "model": info.model or None, "serial": info.serial or None}
                facts["simulated"] = True if info.is_simulated else None
            age_s = now_s - camera.last_frame_s if camera.last_frame_s is not None else None
            facts |= {"frames": counters.get("frames", 0), "rate_hz": self._rate(camera.camera, counters.get("frames", 0), now_s)}
            facts |= {"frame_age_s": age_s, "frames_lost": counters.get("frames_lost", 0)}
            facts |= {"incomplete": counters.get("faults_incomplete", 0), "packets_resent": counters.get("packets_resent")}
            facts |= {"buffer_underruns": counters.get("buffer_underruns"), "restarts": camera.restarts}
            parts.append(Part("cameras", facts, name))
        return parts

    def _rate(self, camera: str, frames: int, now_s: float) -> float | None:
        then_s, before = self._frames.get(camera, (-1e9, 0))
        gone_s = now_s - then_s
        if gone_s >= RATE_S:
            self._frames[camera] = now_s, frames
            self._rates.pop(camera, None)
            if gone_s <= 10 * RATE_S and frames >= before:
                self._rates[camera] = (frames - before) / gone_s
        return self._rates.get(camera)

    def _broker(self, troubles: list[Trouble]) -> Part:
        mqtt, trouble = self._config.mqtt, self._health.broker_trouble
        if trouble is not None:
            troubles.append(Trouble("fail", trouble, "mend_broker"))
        facts: dict[str, Fact] = {"address": f"{mqtt.host}:{mqtt.port}", "connected": trouble is None, "trouble": trouble}
        facts |= {"tls": f"tls_{tls_use(mqtt)}", "protocol": f"MQTT {mqtt.protocol}", "prefix": mqtt.prefix}
        sparkplug, edge = self._config.sparkplug, self.edge
        if sparkplug is not None and edge is not None:
            if edge.trouble is not None:
                troubles.append(Trouble("fail", f"Sparkplug {sparkplug.edge_node_id}: {edge.trouble}", "mend_broker"))
            facts |= {"sparkplug": f"{sparkplug.group_id}/{sparkplug.edge_node_id}", "sparkplug_online": edge.trouble is None}
        return Part("broker", facts)

    def _outbox(self, troubles: list[Trouble]) -> Part:
        mqtt = self._config.mqtt
        most_s = mqtt.outbox_max_age_h * 3_600
        bounds: dict[str, Fact] = {"most_bytes": mqtt.outbox_max_bytes, "most_age_s": most_s}
        try:
            with closing(self._ledger.reader()) as reader:
                totals: OutboxTotals = outbox_totals(reader)
        except sqlite3.Error as error:
            troubles.append(Trouble("fail", str(error), "mend_ledger"))
            return Part("outbox", bounds)
        age_s = max(0.0, time.time() - totals.oldest_ns / 1e9) if totals.oldest_ns is not None else 0.0
        if totals.bytes > NEARLY_FULL * mqtt.outbox_max_bytes or age_s > NEARLY_FULL * most_s:
            troubles.append(Trouble("warn", f"{totals.rows}", "mend_outbox"))
        return Part("outbox", {"rows": totals.rows, "size_bytes": totals.bytes, "oldest_age_s": age_s, **bounds})

    def _disk(self, troubles: list[Trouble]) -> Part:
        config, folder, archive = self._config.archive, self._config.store.path, self.archive
        if self._ledger.failing:
            troubles.append(Trouble("fail", f"{folder}", "mend_ledger"))
        facts: dict[str, Fact] = {"folder": str(folder), "ledger_well": not self._ledger.failing}
        try:
            disk = shutil.disk_usage(folder)
        except OSError as error:
            troubles.append(Trouble("fail", f"{folder}: {error.strerror}", "mend_ledger"))
        else:
            facts |= {"disk_free_bytes": disk.free, "disk_used_bytes": disk.used, "disk_total_bytes": disk.total}
            if disk.free < config.min_free_bytes:
                troubles.append(Trouble("warn", f"{folder}", "mend_disk"))
        facts["archive_on"] = config.enabled
        if archive is not None and config.enabled:
            if archive.failing:
                troubles.append(Trouble("fail", f"{archive.root}", "mend_archive"))
            facts |= {
                "archive_bytes": int(archive.bytes),
                "archive_files": int(archive.files),
                "archive_well": not archive.failing,
            }
        most: dict[str, Fact] = {"archive_most_bytes": config.max_bytes, "archive_most_age_s": config.max_age_days * 86_400}
        return Part("disk", facts | most | {"least_free_bytes": config.min_free_bytes})

    def _device(self) -> Part:
        inference, detector, batching = self._config.inference, self.detector, self.batching
        facts: dict[str, Fact] = {"device": inference.device, "preset": inference.preset, "runtime": inference.runtime}
        if detector is not None:
            extractor = detector.extractor
            facts["runtime"] = type(extractor).__name__.removesuffix("Extractor")
            facts |= {"device": str(extractor.device), "backbone": extractor.spec.backbone, "precision": extractor.spec.precision}
            facts |= {"image_size": extractor.spec.image_size, "lanes": extractor.callers, "weights": extractor.weights_sha256}
        if batching is not None:
            facts |= {"batch": batching.max_batch, "batch_wait_s": batching.max_wait_s}
        return Part("device", facts)

    def _gpu_parts(self) -> list[Part]:
        states = self.gpus.states() if self.gpus is not None else []
        return [
            Part(
                "gpu",
                {"gpu": own.name, "used_bytes": own.used_bytes, "gpu_bytes": own.total_bytes, "heat_c": own.temperature_c},
                own.device,
            )
            for own in states
        ]

    def _configuration(self, troubles: list[Trouble]) -> Part:
        told = self._health.configuration()
        name, level = told["file"], "fail" if told["status"] == "refused" else "warn"
        for problem in told["problems"]:
            troubles.append(Trouble("fail" if level == "fail" else "warn", f"{name}: {problem}", f"mend_{told['status']}"))
        if told["needs_restart"]:
            troubles.append(Trouble("warn", f"{name}: {', '.join(told['needs_restart'])}", "mend_restart"))
        troubles += [Trouble("warn", exposure, files=True) for exposure in exposures(self._config)]
        read_at = datetime.fromisoformat(told["read_at"])
        return Part("configuration", {"file": name, "status": f"file_{told['status']}", "read_at": read_at})

    def _software(self, troubles: list[Trouble], now_s: float) -> Part:
        well, told = self._health.alive()
        if not well:
            troubles.append(Trouble("fail", str(told["trouble"]), "mend_daemon"))
        facts: dict[str, Fact] = {"aprilcam": told["version"], "python": platform.python_version(), **self._versions}
        facts |= {"kernel": platform.release(), "process": os.getpid()}
        return Part("software", facts | {"since": self._since, "uptime_s": now_s - self._since_s})


Told = Callable[[], Overview]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
