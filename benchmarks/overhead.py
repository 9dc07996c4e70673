"""What the daemon adds to the model: from a frame in the ring to the broker's acknowledgement, minus the model's own time.

Everything is real (camera process, ring, station, inspector, finisher, ledger on this disk, mosquitto) but the model, which
costs next to nothing. Target on two cores: p50 <= 3 ms, p99 <= 15 ms.

    python -m benchmarks.overhead [--frames 1000] [--rate 50]
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from config.schema import FolderCamera, MqttConfig, RecipeConfig, StationConfig
from connectors.contract import ResultOut, StatusOut, Topics
from connectors.metrics import Metrics
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.outbox_bounds import OutboxBounds
from daemon.publisher import Publisher
from daemon.station import Program, Station, Taught
from daemon.supervisor import CameraSupervisor
from demo.run import private_broker
from model.bank import Bank, build_bank
from model.calibration import Calibration
from model.detector import Judgement, Reference
from model.features import PatchFeatures

WIDTH, HEIGHT = 1280, 1024
TARGET_P50_MS, TARGET_P99_MS = 3.0, 15.0


class CheapJudge:
    """A model that costs next to nothing."""

    def judge(self, pictures: Sequence[NDArray[np.uint8]], references: Sequence[Bank | Reference]) -> Judgement:
        """Maps that pass."""
        none = np.zeros(len(pictures), np.float32)
        return Judgement(np.zeros((len(pictures), 32, 32), np.float32), none, none, none)


class TimedLedger(Ledger):
    """Notes when the broker's acknowledgement of each message arrives."""

    def __init__(self, folder: Path, bounds: OutboxBounds | None = None) -> None:
        self.results: list[ResultOut] = []
        self.acknowledged_s: dict[int, float] = {}
        self.publisher: Publisher | None = None
        super().__init__(folder, self._note, bounds)

    def _note(self, results: list[ResultOut]) -> None:
        self.results += results
        if self.publisher is not None:
            self.publisher.wake()

    def acknowledge(self, outbox_id: int) -> None:
        """As the ledger does, with a time stamp."""
        self.acknowledged_s[outbox_id] = time.monotonic()
        super().acknowledge(outbox_id)


def measure(folder: Path, frames: int, rate_hz: float) -> list[float]:
    """Overhead of each frame in seconds."""
    pictures = folder / "pictures"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "part.png"), np.full((HEIGHT, WIDTH), 90, np.uint8))
    arrived_s: dict[int, float] = {}
    topics = Topics("bench")
    ledger = TimedLedger(folder / "state")
    finisher = Finisher(topics)
    bank = build_bank(PatchFeatures((torch.ones(2, 1, 1),), ((1, 1),)), fingerprint={}, shots=("a" * 64, "b" * 64))
    taught = Taught(Reference(bank), Calibration(0.5, 0.5, (0.1, 0.1), (0.0, 0.0), True, ""))
    recipe = RecipeConfig(name="part", object="part")
    station = Station(StationConfig(name="bench", camera="cam", recipe="part"), Program(recipe, taught), True, ledger.submit)
    inspector = Inspector(finisher, max_batch=8, max_wait_s=0.0)

    def arrived(frame: Frame) -> None:
        arrived_s[frame.number] = frame.arrived_s
        station.offer(frame)
        inspector.notify()

    camera = FolderCamera(name="cam", driver="folder", path=pictures, rate_hz=rate_hz)
    supervisor = CameraSupervisor(camera, arrived, lambda _: None)
    with private_broker(folder / "broker") as port:
        status = StatusOut(status="offline", version="0", since=datetime.now(UTC)).encode()
        publisher = Publisher(MqttConfig(port=port), ledger, (topics.status, status), dict, Metrics("0"))
        ledger.publisher = publisher
        publisher.start()
        inspector.start(CheapJudge(), [station])
        publisher.attempted.wait(10)
        supervisor.start()
        while len(ledger.acknowledged_s) < frames:
            time.sleep(0.1)
        supervisor.stop()
        inspector.stop()
        finisher.close()
        publisher.stop((topics.status, status), 5.0)
    ledger.close()
    # One station and no masks: message n is result n, which is frame n.
    return [
        ledger.acknowledged_s[number] - arrived_s[result.frame.number] - result.processing_times.inference_s
        for number, result in enumerate(ledger.results[:frames], 1)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.overhead")
    parser.add_argument("--frames", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=50.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), options.frames, options.rate)
    cuts = statistics.quantiles(seconds, n=100)
    p50, p99 = cuts[49] * 1e3, cuts[98] * 1e3
    print(f"{platform.processor() or platform.machine()}, {len(seconds)} frames of {WIDTH} x {HEIGHT} grey at {options.rate:g}/s")
    print("frame in the ring to the broker's acknowledgement, minus the model's time:")
    for name, got, target in (("p50", p50, TARGET_P50_MS), ("p99", p99, TARGET_P99_MS)):
        verdict = "ok" if got <= target else "MISSED"
        print(f"  {name} {got:6.2f} ms   target {target:4.1f} ms   ratio {got / target:.2f}   {verdict}")


if __name__ == "__main__":
    main()
