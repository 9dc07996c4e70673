"""connectors/metrics.py, scraped.py, metrics_document.py: which series there are, and when they come and go."""

import re
import subprocess
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from connectors import metrics_document, scraped
from connectors.contract import FrameOut, ProcessingTimes, Reason, ResultOut, Verdict
from connectors.metrics import OUTCOMES, OVERLAYS, Metrics
from connectors.requests import REQUESTS, Code
from connectors.scraped import SCRAPED
from daemon import exposure_drift, score_drift
from tests.plant import MakePlant

DOCUMENT = Path(__file__).parent.parent / "docs" / "metrics.md"
STATIONS, RECIPES = [f"station{number}" for number in range(6)], [f"recipe{number}" for number in range(4)]


def result(station: str, recipe: str, verdict: Verdict, reason: Reason | None = None) -> ResultOut:
    judged = verdict != "unknown"
    return ResultOut(
        result_id=str(uuid.uuid4()), sequence=1, station=station, recipe=recipe, bank="b" * 16, verdict=verdict, reason=reason,
        score=0.2 if judged else None, threshold=0.5, regions=(), mask=None,
        frame=FrameOut(camera="c", number=1, timestamp_ns=1, clock="host", trigger="free_run"),
        created_at=datetime.now(UTC), processing_times=ProcessingTimes(acquire_s=0, queue_s=0.1, inference_s=0.1, finish_s=0),
        is_simulated=True,
    )  # fmt: skip


def series(metrics: Metrics) -> set[str]:
    """Every line of the exposition but comments, without its value."""
    return {line.rpartition(" ")[0] for line in metrics.text().decode().splitlines() if not line.startswith("#")}


def of(name: str, value: str, metrics: Metrics) -> set[str]:
    return {own for own in series(metrics) if f'{name}="{value}"' in own}


def busy(metrics: Metrics) -> None:
    """Everything happens that can happen to the stations and recipes, and some that cannot."""
    for station in STATIONS:
        for recipe in RECIPES:
            for verdict in ("pass", "fail"):
                metrics.result(result(station, recipe, verdict))
            for reason in get_args(Reason):
                metrics.result(result(station, recipe, "unknown", reason))
        for outcome in OUTCOMES:
            metrics.frame(station, outcome, 2)
        for outcome in OVERLAYS:
            metrics.overlay(station, outcome)
        metrics.frames_lost(station, 3)
        metrics.camera_restarted(station, 1)
        metrics.judged_late(station)
    for recipe in RECIPES:
        metrics.build_done(recipe, 0.5)
        metrics.build_ended(recipe, "built", 1.0)
        metrics.build_ended(recipe, "failed", None)
    for command in (*REQUESTS, "shutdown", "'; DROP TABLE results", "", *(f"guess{number}" for number in range(100))):
        for code in ("ok", *get_args(Code)):
            if command in REQUESTS or code != "ok":
                metrics.command(command, code)


def filled() -> Metrics:
    metrics = Metrics("1")
    for station in STATIONS:
        for recipe in RECIPES:
            metrics.add_station(station, recipe)
    return metrics


def test_all_that_can_happen_makes_no_series_that_was_not_there_at_zero() -> None:
    metrics = filled()
    before = series(metrics)
    assert 'aprilcam_results_total{reason="no_frame",recipe="recipe0",station="station0",verdict="unknown"} 0.0' in (
        metrics.text().decode()
    )
    busy(metrics)
    assert series(metrics) == before


def test_series_grow_with_stations_and_recipes_as_told_and_with_nothing_else() -> None:
    metrics = filled()
    busy(metrics)
    each = Counter(len(of("station", station, metrics)) for station in STATIONS)
    [(count, _)] = each.items()
    results, score, latency, others = 12, 22, 5 * 20, len(OUTCOMES) + len(OVERLAYS) + 4
    assert count == len(RECIPES) * (results + score) + latency + others
    without = [own for own in series(metrics) if 'station="' not in own and 'recipe="' not in own]
    assert len(without) < 450  # commands are most of it
    assert not any("guess" in own or "DROP" in own for own in series(metrics))


def test_a_station_that_goes_takes_its_series_along_and_what_comes_late_brings_none_back() -> None:
    metrics = filled()
    others = series(metrics) - of("station", "station3", metrics)
    metrics.remove_station("station3")
    assert series(metrics) == others
    busy(metrics)
    assert series(metrics) == others
    metrics.add_station("station3", "recipe1")
    sample = metrics.registry.get_sample_value
    labels = {"station": "station3", "recipe": "recipe1", "verdict": "pass", "reason": ""}
    assert sample("aprilcam_results_total", labels) == 0
    metrics.result(result("station3", "recipe1", "pass"))
    assert sample("aprilcam_results_total", labels) == 1


def test_a_deleted_recipe_takes_its_series_along_on_every_station() -> None:
    metrics = filled()
    others = series(metrics) - of("recipe", "recipe2", metrics)
    metrics.remove_recipe("recipe2")
    busy(metrics)
    assert series(metrics) == others
    judged = {"station": "station0", "outcome": "judged"}
    assert metrics.registry.get_sample_value("aprilcam_frames_total", judged) == 2 * len(RECIPES) + 2


def test_a_recipe_deleted_by_command_is_told_to_whoever_counts(make: MakePlant) -> None:
    plant = make()
    plant.run("recipe_create", {"recipe": "cap", "object": "cap"})
    assert plant.deleted == []
    plant.run("recipe_delete", {"recipe": "cap"})
    assert plant.deleted == ["cap"]


def test_age_of_the_last_verdict_begins_with_the_station_and_starts_anew_with_each_result() -> None:
    metrics = Metrics("1")
    metrics.add_station("press", "disc")

    def age_s() -> float:
        return metrics.registry.get_sample_value("aprilcam_last_verdict_age_seconds", {"station": "press"}) or 0.0

    metrics._verdict_s["press"] -= 100
    assert 100 <= age_s() < 110
    metrics.add_station("press", "ring")  # another recipe is no verdict
    assert 100 <= age_s() < 110
    metrics.result(result("press", "ring", "unknown", "overload"))
    assert age_s() < 10


def test_promtool_finds_nothing_to_mend() -> None:
    metrics = filled()
    readings = [own.of(1, *(f"x{label}" for label in own.labels)) for own in SCRAPED]
    metrics.scrape_with(lambda: readings)
    busy(metrics)
    text = metrics.text()
    assert all(own.name.encode() in text for own in SCRAPED)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stderr.decode()) == (0, "")


def test_a_name_that_is_taken_is_refused() -> None:
    metrics = Metrics("1")
    metrics.scrape_with(list)
    with pytest.raises(ValueError, match="aprilcam_queue_depth"):
        metrics.scrape_with(list)


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text() == metrics_document.document(), "make docs"


def test_the_document_has_every_metric_that_is_scraped() -> None:
    metrics = filled()
    metrics.scrape_with(list)
    told = set(re.findall(r"^\| `(\w+)` \| (\w+)", DOCUMENT.read_text(), re.MULTILINE))
    scraped_ = set(re.findall(r"^# TYPE (aprilcam_\w+) (\w+)", metrics.text().decode(), re.MULTILINE))
    assert told == scraped_


def test_the_document_tells_the_figures_that_the_drifts_go_by() -> None:
    text = " ".join(DOCUMENT.read_text().split())
    assert f"newest {score_drift.RECENT} passing scores of a recipe with the first {score_drift.REFERENCE} " in text
    assert f"and {score_drift.ENOUGH} more" in text
    assert f"median of the last {exposure_drift.RECENT} frames" in text
    assert f"Absent until {exposure_drift.ENOUGH} frames" in text
    for name, least in zip(exposure_drift.MEASURES, exposure_drift.LEAST_DEVIATION, strict=True):
        [row] = re.findall(rf"\| {name} \| .*?\| ([\d.]+) \|", text)
        assert float(row) == least
    assert scraped.EXPOSURE_DRIFT.labels == ("station", "measure")
