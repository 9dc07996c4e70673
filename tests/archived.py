"""An archive with its ledger, and results to put into it; imports no model, so that a process that is killed starts soon."""

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.schema import ArchiveConfig, Region
from connectors.contract import FrameOut, ProcessingTimes, ResultOut, Verdict
from daemon.archive import Archive, sampled
from daemon.archive_rows import keep
from daemon.ledger import Ledger
from tests.broker import wait_for

SETTLED_S = 10.0


def picture(seed: int = 0, shape: tuple[int, ...] = (40, 60)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def a_result(verdict: Verdict = "fail", *, station: str = "press", recipe: str = "gear", at: datetime | None = None) -> ResultOut:
    at = at or datetime.now(UTC)
    return ResultOut(
        result_id=str(uuid.uuid4()), sequence=1, station=station, recipe=recipe, bank="abc", verdict=verdict,
        reason="stopped" if verdict == "unknown" else None, score=None if verdict == "unknown" else 0.7, threshold=0.5,
        regions=(), mask=None, frame=FrameOut(camera="cam", number=1, timestamp_ns=1, clock="host", trigger="free_run"),
        created_at=at, processing_times=ProcessingTimes(acquire_s=0, queue_s=0, inference_s=0, finish_s=0), is_simulated=True,
    )  # fmt: skip


class Kept:
    """A ledger with its archive, and what was dropped."""

    def __init__(self, store: Path, ledger: Ledger | None = None, **config: Any) -> None:
        """ledger: of others, who close it; None: one of its own."""
        self.root = store / "archive"
        self.ledger = ledger or Ledger(store)
        self._own_ledger = ledger is None
        self.dropped: list[str] = []
        self.settings = ArchiveConfig.model_validate({"min_free_bytes": 0, **config})
        self.archive = Archive(store, self.ledger, self.settings, self.dropped.append)

    def put(
        self,
        result: ResultOut,
        pixels: NDArray[np.uint8] | None = None,
        anomaly_map: NDArray[np.float32] | None = None,
        region: Region | None = None,
    ) -> ResultOut:
        """As finisher and service do; returns once the archive has dealt with it."""
        dropped = len(self.dropped)
        self.archive.hold(result.result_id, result.verdict, picture() if pixels is None else pixels, anomaly_map, region)
        self.archive.committed([result])
        wait_for(lambda: self.archive._held_bytes == 0, "the archive to be done", SETTLED_S)
        drawn = result.verdict != "pass" or sampled(result.result_id, self.settings.pass_share)
        if self.settings.enabled and drawn and len(self.dropped) == dropped:
            assert self.archive.find(result.result_id) is not None
        return result

    def keep(self, result_id: str) -> None:
        self.ledger.call(lambda connection: keep(connection, result_id)).result()

    def count(self) -> int:
        return len(self.archive.latest(limit=10_000))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.rglob("*") if path.is_file())

    def close(self) -> None:
        self.archive.close()
        if self._own_ledger:
            self.ledger.close()
