"""Many cameras, one device: frames judged a second, and how long each takes, for 1 to 16 emulated stations.

`default`: the whole daemon (`aprilcam run`) with the default preset and mosquitto; each camera is a process that plays a folder
of solar cells (pylon's emulator would take a quarter of a core for each). First more frames than can be judged (each station
takes the newest), then 60 % of that. `free`: the same parts in one process with a model that costs next to nothing, to see the
daemon's own ceiling. Target on two cores: 1,000 results/s.

    python -m benchmarks.streaming [--stations 1,2,4,8,16] [--seconds 20] [--models default,free] [--threads N]
"""

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.overhead import CheapJudge, TimedLedger
from config.schema import FolderCamera, MqttConfig, RecipeConfig, StationConfig
from connectors.contract import StatusOut, Topics
from connectors.metrics import Metrics
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.inspector import Inspector
from daemon.publisher import Publisher
from daemon.station import Program, Station, Taught
from daemon.supervisor import CameraSupervisor
from demo.pictures import BUILD, lay_out
from demo.run import free_port, private_broker
from model.bank import build_bank
from model.calibration import Calibration
from model.detector import Reference
from model.features import PatchFeatures

TARGET_RESULTS = 1_000.0
OFFERED_HZ = {"default": 80.0, "free": 2_500.0}
"""All cameras together: more than can be judged."""
EASY = 0.6
SMALL = 64
"""Pixels of the frames where the model is free: reading pictures is the cameras' work, and would take the daemon's cores."""
SHARES = (50.0, 99.0, 99.9)
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Measured:
    """Results a second, and the seconds from a frame in the driver's hands to its finished judgement."""

    per_s: float
    totals_s: list[float]

    def latencies(self) -> str:
        """In ms."""
        cuts = sorted(self.totals_s)
        found = (cuts[min(len(cuts) - 1, int(share / 100 * len(cuts)))] * 1e3 for share in SHARES)
        return " / ".join(f"{ms:.1f}" for ms in found)


@dataclass(frozen=True)
class Line:
    """Emulated stations on one recipe. `rate_hz`: of all cameras together. `every`: so many of them answer every frame, the
    others take the newest. `once`: the pictures are shown once."""

    stations: int
    rate_hz: float
    threads: int | None = None
    shots: Path = BUILD / "shots"
    pictures: Path = BUILD / "line"
    every: int = 0
    once: bool = False
    archive: bool = False


class WholeDaemon:
    """`aprilcam run` on a line, its state in `folder`."""

    def __init__(self, folder: Path, broker_port: int, line: Line) -> None:
        self.state = folder / "state"
        self.port = free_port()
        config = folder / "aprilcam.toml"
        config.write_text(_config(folder, self.port, broker_port, line))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", "run", "--config", str(config)], stdout=subprocess.DEVNULL
        )
        while not self._ready():
            if self.process.poll() is not None:
                raise SystemExit("the daemon ended by itself")
            time.sleep(0.1)

    def _ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    def measure(self, seconds: float) -> Measured:
        """From now on, so long; ends the daemon."""
        time.sleep(WARM_UP_S)
        start, began_s = self._newest(), time.monotonic()
        time.sleep(seconds)
        end, took_s = self._newest(), time.monotonic() - began_s
        self.stop()
        return Measured((end - start) / took_s, self._totals(start, end))

    def judge(self, count: int) -> list[dict[str, Any]]:
        """The first `count` results, in the order of the pictures; ends the daemon."""
        while self._newest() < count:
            time.sleep(0.2)
        self.stop()
        with closing(sqlite3.connect(self.state / "ledger.sqlite3")) as connection:
            rows = connection.execute("SELECT document FROM results ORDER BY sequence LIMIT ?", (count,))
            return [json.loads(document) for (document,) in rows]

    def stop(self) -> None:
        """End it cleanly."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def _newest(self) -> int:
        each = "SELECT max(sequence) AS newest FROM results GROUP BY station"
        with closing(sqlite3.connect(f"file:{self.state / 'ledger.sqlite3'}?mode=ro", uri=True)) as connection:
            total = connection.execute(f"SELECT coalesce(sum(newest), 0) FROM ({each})")  # noqa: S608 - all of it is ours
            return int(total.fetchone()[0])

    def _totals(self, start: int, end: int) -> list[float]:
        with closing(sqlite3.connect(self.state / "ledger.sqlite3")) as connection:
            rows = connection.execute("SELECT document FROM results ORDER BY created_ns LIMIT ? OFFSET ?", (end - start, start))
            return [sum(json.loads(document)["processing_times"].values()) for (document,) in rows]


def _config(folder: Path, http: int, broker: int, line: Line) -> str:
    text = f"""
[store]
path = "{folder / "state"}"
[mqtt]
port = {broker}
[http]
port = {http}
[archive]
enabled = {str(line.archive).lower()}
[inference]
{f"threads = {line.threads}" if line.threads else ""}
[[recipes]]
name = "cell"
object = "solar cell"
shots = "{line.shots}"
"""
    for number in range(line.stations):
        text += f"""
[[cameras]]
name = "cam{number}"
driver = "folder"
path = "{line.pictures}"
loop = {str(not line.once).lower()}
rate_hz = {line.rate_hz / line.stations}
[[stations]]
name = "station{number}"
camera = "cam{number}"
recipe = "cell"
frames = "{"every" if number < line.every else "newest"}"
queue_frames = {8 if number < line.every else 2}
"""
    return text


def measure_default(folder: Path, stations: int, seconds: float, threads: int | None) -> tuple[Measured, Measured]:
    """Flooded, and at EASY of what it could do then."""
    with private_broker(folder / "broker") as port:
        flooded = WholeDaemon(folder, port, Line(stations, OFFERED_HZ["default"], threads)).measure(seconds)
        easy = WholeDaemon(folder, port, Line(stations, EASY * flooded.per_s, threads)).measure(seconds)
    return flooded, easy


def measure_free(folder: Path, stations: int, seconds: float) -> Measured:
    """The daemon's parts with a model that costs next to nothing."""
    topics = Topics("bench")
    ledger = TimedLedger(folder / "state")
    finisher = Finisher(topics)
    bank = build_bank(PatchFeatures((torch.ones(2, 1, 1),), ((1, 1),)), fingerprint={}, shots=("a" * 64, "b" * 64))
    taught = Taught(Reference(bank), Calibration(0.5, 0.5, (0.1, 0.1), (0.0, 0.0), True, ""))
    program = Program(RecipeConfig(name="part", object="part"), taught)
    inspector = Inspector(finisher, max_batch=8)
    small = folder / "small"
    small.mkdir()
    cv2.imwrite(str(small / "part.png"), np.full((SMALL, SMALL), 90, np.uint8))
    made = []

    def arrived(station: Station, frame: Frame) -> None:
        if frame.fault is None and station.offer(frame) is not None:
            inspector.notify()

    for number in range(stations):
        own = StationConfig(name=f"station{number}", camera="cam", recipe="part", queue_frames=4)
        station = Station(own, program, False, ledger.submit)
        rate_hz = OFFERED_HZ["free"] / stations
        camera = FolderCamera(name=f"cam{number}", driver="folder", path=small, rate_hz=rate_hz)
        made.append((station, CameraSupervisor(camera, partial(arrived, station), lambda _: None)))
    with private_broker(folder / "broker") as port:
        status = (topics.status, StatusOut(status="offline", version="0", since=datetime.now(UTC)).encode())
        publisher = Publisher(MqttConfig(port=port), ledger, status, dict, Metrics("0"))
        ledger.publisher = publisher
        publisher.start()
        publisher.attempted.wait(10)
        inspector.start(CheapJudge(), [station for station, _ in made])
        for _, supervisor in made:
            supervisor.start()
        while not all(supervisor.status.connected for _, supervisor in made):
            time.sleep(0.1)
        time.sleep(WARM_UP_S)
        start, first, began_s = len(ledger.acknowledged_s), len(ledger.results), time.monotonic()
        time.sleep(seconds)
        acknowledged, took_s = len(ledger.acknowledged_s) - start, time.monotonic() - began_s
        totals = [result.processing_times.total_s for result in ledger.results[first:]]
        for _, supervisor in made:
            supervisor.stop()
        inspector.stop()
        finisher.close()
        publisher.stop(status, 5.0)
    ledger.close()
    return Measured(acknowledged / took_s, totals)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.streaming")
    parser.add_argument("--stations", default="1,2,4,8,16")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--models", default="default,free")
    parser.add_argument("--threads", type=int, help="of the model; left out: as the daemon chooses")
    options: Any = parser.parse_args()
    lay_out(None)
    print(f"{os.cpu_count()} cores; latency in ms, driver to finished judgement, p50 / p99 / p99.9")
    counts = [int(count) for count in options.stations.split(",")]
    for model in options.models.split(","):
        rates = []
        for count in counts:
            with tempfile.TemporaryDirectory() as name:
                if model == "default":
                    flooded, easy = measure_default(Path(name), count, options.seconds, options.threads)
                    rates.append(flooded.per_s)
                    print(
                        f"default  {count:2d} stations  {flooded.per_s:7.1f} judged/s   flooded {flooded.latencies()}   at "
                        f"{easy.per_s:.1f}/s {easy.latencies()}",
                        flush=True,
                    )
                else:
                    free = measure_free(Path(name), count, options.seconds)
                    rates.append(free.per_s)
                    print(
                        f"free     {count:2d} stations  {free.per_s:7.1f} acknowledged/s   flooded {free.latencies()}   target "
                        f"{TARGET_RESULTS:g}/s {'ok' if free.per_s >= TARGET_RESULTS else 'MISSED'}",
                        flush=True,
                    )
        middle = statistics.median(rates)
        print(f"{model}: the most stations do {rates[-1] / rates[0]:.2f} of what the fewest do; median {middle:.1f}/s")


if __name__ == "__main__":
    main()
