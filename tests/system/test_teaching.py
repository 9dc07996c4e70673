"""Whole-daemon stories of teaching: a bank swapped while the line runs, told over MQTT and metrics."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from config.schema import load_config
from connectors.contract import ResultOut
from daemon.service import Service
from tests.broker import wait_for
from tests.contract_check import VALIDATORS
from tests.parts import draw_part, write_parts
from tests.system.daemon import Line, folder_station


class Quiet:
    """Shows nothing, keeps results."""

    def __init__(self) -> None:
        self.results: list[ResultOut] = []

    def progress(self, what: str, done: int, total: int) -> None:
        """Not shown."""

    def result(self, result: ResultOut) -> None:
        self.results.append(result)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    write_parts(tmp_path / "parts", range(5))
    own = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    yield own
    own.close()


def test_a_shot_registered_while_the_line_runs_judges_it_soon_and_is_told(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the daemon's handlers are not the test's
    observer = Quiet()
    path = line.daemon.config
    service = Service(load_config(path), path, observer, lambda: load_config(path))
    service.start()
    try:
        wait_for(lambda: len(observer.results) > 5, "the line to run")
        first = observer.results[-1].bank
        answer = service.teacher.register("disc", cv2.imencode(".png", draw_part(500))[1].tobytes(), name="new.png")
        assert answer.new
        assert answer.build is not None
        wait_for(lambda: observer.results[-1].bank != first, "a verdict by the new bank", 30)
        assert line.listener is not None
        wait_for(lambda: len(line.listener.of("press/event")) >= 2, "the events")  # type: ignore[union-attr]
        events = [json.loads(payload) for payload in line.listener.of("press/event")]
        for event in events:
            VALIDATORS["event"].validate(event)
        built = next(event for event in events if event["kind"] == "bank_built")
        assert built["detail"]["build"] == answer.build
        assert built["detail"]["bank"] == observer.results[-1].bank
        assert built["detail"]["shots"] == 11
        state = line.retained("press/state", "state")
        assert state is not None
        assert state["bank"] == observer.results[-1].bank
        metrics = line.daemon.get("/metrics")[1]
        assert 'aprilcam_bank_builds_total{outcome="built",recipe="disc"} 1.0' in metrics
        assert 'aprilcam_bank_build_seconds_count{recipe="disc"} 1.0' in metrics
        assert 'aprilcam_build_progress_ratio{recipe="disc"} 1.0' in metrics
        service.teacher.rollback("disc")
        wait_for(lambda: observer.results[-1].bank == first, "a verdict by the old bank")
        sequences = [result.sequence for result in observer.results]
        assert sequences == list(range(1, len(sequences) + 1))
        assert {result.verdict for result in observer.results} == {"pass"}
    finally:
        stopper = threading.Thread(target=service.stop)
        stopper.start()
        stopper.join(30)
    assert not stopper.is_alive()
