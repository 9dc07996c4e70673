"""What a scrape costs and weighs: 32 stations with recipes, every series filled, a real ledger, and the drifts with full windows.

The stations' cameras are not started; all that a scrape reads of them is there. Target: 50 ms a scrape, as it runs beside the
inspection every 15 s.

    python -m benchmarks.scrape [--stations 32] [--recipes 32] [--scrapes 50]
"""

import argparse
import gzip
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from config.schema import FolderCamera, RecipeConfig, StationConfig
from connectors.contract import FrameOut, ProcessingTimes, ResultOut
from connectors.metrics import Metrics
from connectors.scraped import EXPOSURE_DRIFT, Reading
from daemon.exposure_drift import MEASURES
from daemon.ledger import Ledger
from daemon.line import Line
from daemon.score_drift import RECENT, REFERENCE, ScoreDrift
from daemon.station import Program, Station
from daemon.supervisor import CameraSupervisor

TARGET_S = 0.05


def passed(station: str, recipe: str, score: float) -> ResultOut:
    """A result."""
    return ResultOut(
        result_id=str(uuid.uuid4()), sequence=1, station=station, recipe=recipe, bank="b" * 16, verdict="pass", reason=None,
        score=score, threshold=0.5, regions=(), mask=None,
        frame=FrameOut(camera="c", number=1, timestamp_ns=1, clock="host", trigger="free_run"), created_at=datetime.now(UTC),
        processing_times=ProcessingTimes(acquire_s=0.001, queue_s=0.002, inference_s=0.03, finish_s=0.002), is_simulated=True,
    )  # fmt: skip


def make_line(folder: Path, number: int, recipe: str) -> Line:
    """A station with a camera that is not started."""
    camera = FolderCamera(name=f"cam{number}", driver="folder", path=folder)
    config = StationConfig(name=f"station{number}", camera=camera.name, recipe=recipe)
    station = Station(config, Program(RecipeConfig(name=recipe, object="part")), True, lambda _: None)
    return Line(station, CameraSupervisor(camera, lambda _: None, lambda _: None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stations", type=int, default=32)
    parser.add_argument("--recipes", type=int, default=32)
    parser.add_argument("--scrapes", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger, metrics = Ledger(folder), Metrics("bench")
        recipes = [f"recipe{number}" for number in range(options.recipes)]
        drift = ScoreDrift(ledger, lambda: recipes)
        lines = [make_line(folder, number, recipes[number % len(recipes)]) for number in range(options.stations)]
        scores = np.random.default_rng(1).normal(0.3, 0.05, REFERENCE + RECENT)
        for line in lines:
            station, recipe = line.station.name, line.station.program.recipe.name
            metrics.add_station(station, recipe)
            results = [passed(station, recipe, float(score)) for score in scores]
            drift.committed(results)
            for result in results:
                metrics.result(result)

        def readings() -> Iterator[Reading]:
            for line in lines:
                yield from line.readings()
                for measure in MEASURES:
                    yield EXPOSURE_DRIFT.of(0.5, line.station.name, measure)
            yield from drift.readings()

        metrics.scrape_with(readings)
        taken_s = []
        for _ in range(options.scrapes):
            started_s = time.perf_counter()
            text = metrics.text()
            taken_s.append(time.perf_counter() - started_s)
        ledger.close()
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    median_s, worst_s = statistics.median(taken_s), max(taken_s)
    print(f"{options.stations} stations, {options.recipes} recipes: {series} series, {len(text) / 1e3:.0f} kB a scrape")
    print(f"gzipped {len(gzip.compress(text)) / 1e3:.0f} kB; median {median_s * 1e3:.1f} ms, worst {worst_s * 1e3:.1f} ms")
    print(f"target {TARGET_S * 1e3:.0f} ms: {'met' if median_s <= TARGET_S else 'MISSED'}")


if __name__ == "__main__":
    main()
