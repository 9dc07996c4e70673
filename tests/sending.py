"""Ledger and publisher joined as the service joins them, for tests of delivery that need no camera and no model."""

import json
import time
from pathlib import Path

from config.schema import MqttConfig
from connectors.contract import ResultOut, Topics
from connectors.metrics import Metrics
from daemon.ledger import Ledger
from daemon.losses import Losses
from daemon.outbox import outbox_totals
from daemon.outbox_bounds import OutboxBounds
from daemon.publisher import Publisher
from tests.broker import Listener
from tests.records import entry


class Daemon:
    """What publishes, without what inspects. `config` is that of [mqtt]."""

    def __init__(self, folder: Path, port: int, **config: object) -> None:
        settings = MqttConfig.model_validate({"port": port, "client_id": "daemon", "prefix": "test", **config})
        topics = Topics(settings.prefix)
        self.metrics = Metrics("0")
        losses = Losses(topics, self.metrics.lost, lambda topic, last: self.publisher.retain(topic, last.encode()))
        bounds = OutboxBounds(topics, settings.outbox_max_bytes, settings.outbox_max_age_h * 3_600, losses)
        self.ledger = Ledger(folder, self._committed, bounds)
        self.publisher = Publisher(settings, self.ledger, ("test/status", b"offline"), self.birth, self.metrics, losses=losses)
        self.publisher.start()

    def birth(self) -> dict[str, bytes]:
        return {"test/status": b"online"}

    def _committed(self, results: list[ResultOut]) -> None:
        for result in results:
            self.publisher.retain(f"test/{result.station}/last", result.encode())
        self.publisher.wake()

    def depth(self) -> int:
        return self.ledger.call(outbox_totals).result(10).rows

    def lost(self) -> dict[tuple[str, str], int]:
        """What was given up, as Prometheus is told: (what, reason)."""
        [family] = self.metrics.messages_lost.collect()
        samples = [sample for sample in family.samples if sample.name.endswith("_total")]
        return {(sample.labels["what"], sample.labels["reason"]): int(sample.value) for sample in samples}

    def stop(self) -> None:
        self.publisher.stop(("test/status", b"stopped"), 5.0)
        self.ledger.close()


def numbers(listener: Listener) -> list[int]:
    """The frame numbers of the results in the order in which they came."""
    return [json.loads(payload)["frame"]["number"] for payload in listener.of("/result")]


def mask_of(number: int) -> bytes | None:
    """Every third part fails."""
    return b"png %d" % number if number % 3 == 0 else None


def send_until(folder: Path, port: int, total: int) -> None:
    """In a process of its own: add results until the ledger has so many, publish, and run until killed."""
    daemon = Daemon(folder, port)
    newest = "SELECT coalesce(max(sequence), 0) FROM results"
    done = daemon.ledger.call(lambda connection: int(connection.execute(newest).fetchone()[0])).result()
    for number in range(done, total):
        daemon.ledger.submit([entry("a", number, mask=mask_of(number))])
        if number % 20 == 0:
            time.sleep(0.01)
    while True:
        time.sleep(1)
