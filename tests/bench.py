"""A station and a finisher, to which tests hand maps: the messages are the daemon's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.schema import RecipeConfig, StationConfig
from connectors.contract import Reason, Topics
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.ledger import Record
from daemon.station import Program, Station, Taught
from tests.broker import wait_for
from tests.parts import draw_part

RECIPE = RecipeConfig(name="disc", object="disc")


def bench_frame(number: int, pixels: NDArray[np.uint8] | None) -> Frame:
    """Frame `number` of a camera called cam."""
    return Frame(
        camera="cam", number=number, timestamp_ns=1_764_297_600_000_000_000, clock="host", trigger="free_run",
        arrived_at=datetime.now(UTC), arrived_s=0.0, acquire_s=0.001, pixels=pixels, fault=None, is_simulated=True,
    )  # fmt: skip


def defect_map(size: int = 64) -> NDArray[np.float32]:
    """Two defects, one with a hole and one at the upper left pixel, over a threshold of 0.5."""
    anomaly = np.full((size, size), 0.1, np.float32)
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - size * 0.6, columns - size * 0.55)
    anomaly[(distance < size * 0.2) & (distance > size * 0.06)] = 0.9
    anomaly[: size // 8, : size // 5] = 0.7
    return anomaly


class Bench:
    """One station; `records` are its results, numbered as a ledger would."""

    def __init__(self, taught: Taught, *, prefix: str = "aprilcam", recipe: RecipeConfig = RECIPE, **options: Any) -> None:
        self.records: list[Record] = []
        station = {key: options.pop(key) for key in list(options) if key in StationConfig.model_fields}
        self.finisher = Finisher(Topics(prefix), **options)
        self.taught = taught
        self.station = Station(
            StationConfig(name="press", camera="cam", recipe="disc", **station),
            Program(recipe, taught),
            True,
            lambda entries: self.records.extend(entry.complete(len(self.records) + 1) for entry in entries),
            release=lambda _: None,
        )

    def judge(self, anomaly_map: NDArray[np.float32], pixels: NDArray[np.uint8] | None = None) -> Record:
        """Let one frame be finished; its result."""
        return self._end(
            pixels if pixels is not None else draw_part(1),
            lambda ticket: self.finisher.judged(ticket, self.taught, anomaly_map, float(anomaly_map.max()), 0.01),
        )

    def unknown(self, reason: Reason, pixels: NDArray[np.uint8] | None = None) -> Record:
        """A frame that nobody judges."""
        return self._end(pixels, lambda ticket: self.finisher.unknown(ticket, reason, "as the test wants"))

    def _end(self, pixels: NDArray[np.uint8] | None, finish: Callable[..., None]) -> Record:
        ticket = self.station.enter(bench_frame(len(self.records), pixels))
        assert ticket is not None
        before = len(self.records)
        finish(ticket)
        wait_for(lambda: len(self.records) > before, "the result")
        return self.records[before]


@contextmanager
def bench(taught: Taught, **options: Any) -> Iterator[Bench]:
    """A Bench that is closed afterwards. options: keys of [[stations]], and of Finisher."""
    made = Bench(taught, **options)
    yield made
    made.finisher.close()


def without_times(record: Record) -> dict[str, Any]:
    """What must not depend on the mask's form."""
    own = {"result_id", "mask", "created_at", "processing_times", "sequence"}
    return record.result.model_dump(mode="json", exclude=own)
