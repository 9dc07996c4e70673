"""From the ledger to the broker: results a second at QoS 1, how fast an outage's outbox drains, how long a message takes.

Ledger (on this disk), publisher and mosquitto are real; the results are made beforehand and cost nothing. `flooded`: as many as
go through. `paced`: PACED_HZ results a second, for the time from a result's commit to the broker's acknowledgement. `outage`:
that many results wait when the broker comes. Target on two cores: 2,000 results/s while an outage drains.

    python -m benchmarks.delivery [--results 20000] [--outage 100000]
"""

import argparse
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.overhead import TimedLedger
from config.schema import MqttConfig
from connectors.contract import FrameOut, MaskOut, ProcessingTimes, RegionOut, ResultOut, StatusOut, Topics
from connectors.metrics import Metrics
from daemon.finisher import uuid7
from daemon.ledger import Entry, Record
from daemon.losses import Losses
from daemon.outbox import Message, outbox_totals
from daemon.outbox_bounds import OutboxBounds
from daemon.publisher import Publisher
from demo.run import private_broker

TARGET_DRAIN = 2_000.0
PACED_HZ, PACED_S = 100.0, 10.0
MASK_BYTES = 1_500
"""Of a 1 bit PNG of a scratch in a picture of a megapixel."""
TOPICS = Topics("bench")
WAITING = 2_000
"""Results that are handed to the ledger before the broker has the earlier ones, where it is flooded."""


class NotingLedger(TimedLedger):
    """Notes when each result was committed."""

    def __init__(self, folder: Path) -> None:
        self.committed_s: list[float] = []
        config = MqttConfig()
        bounds = OutboxBounds(TOPICS, config.outbox_max_bytes, config.outbox_max_age_h * 3_600, Losses(TOPICS, lambda *_: None))
        super().__init__(folder, bounds)

    def _note(self, results: list[ResultOut]) -> None:
        self.committed_s += [time.monotonic()] * len(results)
        super()._note(results)


def entry(masked: bool) -> Entry:
    """A pass, or a fail with one region and its mask."""
    now = datetime.now(UTC)
    result_id = uuid7(int(now.timestamp() * 1e9))
    mask_topic = TOPICS.mask("press", result_id)
    polygon = tuple((100 + 3 * point, 200 + 2 * point) for point in range(24))
    region = RegionOut(x=100, y=200, width=90, height=60, area_px=2_000, peak=0.31, polygon=polygon)
    mask = MaskOut(form="topic", width=1_280, height=1_024, topic=mask_topic, sha256="0" * 64)
    result = ResultOut(
        result_id=result_id,
        sequence=1,
        station="press",
        recipe="gear",
        bank="3acc43df1da487a2",
        verdict="fail" if masked else "pass",
        reason=None,
        score=0.24409717321395874,
        threshold=0.030748884933648787,
        regions=(region,) if masked else (),
        mask=mask if masked else None,
        frame=FrameOut(camera="cam", number=1, timestamp_ns=1_795_834_898_719_552_614, clock="host", trigger="free_run"),
        created_at=now,
        processing_times=ProcessingTimes(acquire_s=0.000386, queue_s=0.000376, inference_s=0.031923, finish_s=0.002034),
        is_simulated=True,
    )

    def complete(sequence: int) -> Record:
        numbered = result.model_copy(update={"sequence": sequence})
        document = numbered.encode()
        first = (Message(mask_topic, os.urandom(MASK_BYTES)),) if masked else ()
        return Record(numbered, document, (*first, Message(TOPICS.result("press"), document)))

    return Entry("press", complete)


class Bench:
    """A ledger, and a publisher once there is a broker."""

    def __init__(self, folder: Path) -> None:
        self.ledger = NotingLedger(folder / "state")
        self._status = (TOPICS.status, StatusOut(status="offline", version="0", since=datetime.now(UTC)).encode())

    def connect(self, port: int) -> None:
        """Returns when the broker has us."""
        publisher = self.ledger.publisher = Publisher(MqttConfig(port=port), self.ledger, self._status, dict, Metrics("0"))
        publisher.start()
        publisher.attempted.wait(10)

    def wait(self, messages: int) -> None:
        """Until so many are acknowledged."""
        while len(self.ledger.acknowledged_s) < messages:
            time.sleep(0.01)

    def close(self) -> None:
        """End."""
        if self.ledger.publisher is not None:
            self.ledger.publisher.stop(self._status, 5.0)
        self.ledger.close()


def measure_flooded(folder: Path, results: int, masked: bool) -> float:
    """Results a second."""
    each = 2 if masked else 1
    entries = [entry(masked) for _ in range(results)]
    bench = Bench(folder)
    with private_broker(folder / "broker") as port:
        bench.connect(port)
        began_s = time.monotonic()
        for start in range(0, results, WAITING // 4):
            bench.wait((start - WAITING) * each)
            bench.ledger.submit(entries[start : start + WAITING // 4])
        bench.wait(results * each)
        took_s = time.monotonic() - began_s
        bench.close()
    return results / took_s


def measure_paced(folder: Path, results: int, masked: bool) -> list[float]:
    """Seconds from the commit of each result to the broker's acknowledgement."""
    each = 2 if masked else 1
    bench = Bench(folder)
    with private_broker(folder / "broker") as port:
        bench.connect(port)
        began_s = time.monotonic()
        for number in range(results):
            time.sleep(max(0.0, began_s + number / PACED_HZ - time.monotonic()))
            bench.ledger.submit([entry(masked)])
        bench.wait(results * each)
        bench.close()
    acknowledged_s = bench.ledger.acknowledged_s
    # Message n * each is result n.
    return [acknowledged_s[number * each] - at_s for number, at_s in enumerate(bench.ledger.committed_s, 1)]


def measure_outage(folder: Path, results: int, masked: bool) -> tuple[float, float]:
    """(results a second while the outbox drains, bytes of the outbox for each result)."""
    each = 2 if masked else 1
    bench = Bench(folder)
    for start in range(0, results, WAITING):
        bench.ledger.submit([entry(masked) for _ in range(min(WAITING, results - start))])
        bench.ledger.call(lambda _: None).result()
    outbox = bench.ledger.call(outbox_totals).result()
    with private_broker(folder / "broker") as port:
        began_s = time.monotonic()
        bench.connect(port)
        bench.wait(results * each)
        took_s = time.monotonic() - began_s
        bench.close()
    return results / took_s, outbox.bytes / results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.delivery")
    parser.add_argument("--results", type=int, default=20_000)
    parser.add_argument("--outage", type=int, default=100_000)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; mosquitto on the loopback, QoS 1, window of {MqttConfig().in_flight}")
    for masked in (False, True):
        name = f"each with a mask of {MASK_BYTES} bytes" if masked else "without masks"
        with tempfile.TemporaryDirectory() as folder:
            print(f"flooded  {measure_flooded(Path(folder), options.results, masked):8.0f} results/s   {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            paced = measure_paced(Path(folder), int(PACED_HZ * min(PACED_S, options.results / 1_000)), masked)
        cuts = statistics.quantiles(paced, n=100)
        print(
            f"paced    {PACED_HZ:8.0f} results/s   p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms   {name}", flush=True
        )
        with tempfile.TemporaryDirectory() as folder:
            drained, size = measure_outage(Path(folder), options.outage, masked)
        verdict = "ok" if drained >= TARGET_DRAIN else "MISSED"
        print(
            f"outage   {drained:8.0f} results/s   of {options.outage}, {size:.0f} bytes each in the outbox; target "
            f"{TARGET_DRAIN:g}/s {verdict}   {name}",
            flush=True,
        )


if __name__ == "__main__":
    main()
