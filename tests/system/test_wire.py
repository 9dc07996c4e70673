"""A whole daemon with a GigE camera on a bad wire: what is lost is unknown, and everything comes back by itself."""

import re
import time
from pathlib import Path
from typing import Any

from tests.broker import wait_for
from tests.system.daemon import Line
from tests.wire import Wire
from tests.wire import wire as wire

STATION = """
[[cameras]]
name = "cam"
driver = "aravis"
serial = "GV01"
width = 320
height = 240
rate_hz = 10.0
retry_s = 0.5
[[stations]]
name = "press"
camera = "cam"
recipe = "disc"
frames = "{frames}"
queue_frames = 100
"""


def counted(line: Line, name: str) -> float:
    """The value of the station's counter."""
    found = re.search(rf'^{name}{{station="press"}} (\S+)$', line.daemon.get("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else -1.0


def lost_ones(line: Line) -> list[dict[str, Any]]:
    return [result for result in line.results("press") if (result["detail"] or "").startswith("lost: ")]


def state_is(line: Line, state: str, reason: str = "") -> bool:
    told = line.retained("press/state", "state") or {}
    return told.get("state") == state and reason in (told.get("reason") or "")


def test_incomplete_and_lost_frames_are_unknown_and_a_camera_that_died_is_taken_again(
    tmp_path: Path, wire: Wire, lines: list[Line]
) -> None:
    wire.start_camera(lost=0.005)
    line = Line(tmp_path, STATION.format(frames="every"))
    lines.append(line)
    line.daemon.start()
    results = line.wait_results("press", 30)
    reasons = {result["reason"] for result in results}
    assert reasons == {None, "incomplete"}
    for result in results:
        assert (result["verdict"] == "unknown") == (result["reason"] == "incomplete")
    assert counted(line, "aprilcam_lost_frames_total") == 0

    wire.pull()
    time.sleep(1.5)
    wire.plug()
    wait_for(lambda: counted(line, "aprilcam_lost_frames_total") > 3, "lost frames to be counted")
    lost_frames = counted(line, "aprilcam_lost_frames_total")
    wait_for(
        lambda: len([r for r in line.results("press") if (r["detail"] or "").startswith("lost: ")]) >= lost_frames, "results"
    )
    lost = [result for result in line.results("press") if (result["detail"] or "").startswith("lost: ")]
    assert {(result["verdict"], result["reason"], result["score"]) for result in lost} == {("unknown", "incomplete", None)}
    line.wait_results("press", len(line.results("press")) + 10)
    assert state_is(line, "ContinuousExecution")
    assert counted(line, "aprilcam_camera_restarts_total") == 0
    results = line.results("press")
    first = results[0]["frame"]["number"]
    assert [result["frame"]["number"] for result in results] == list(range(first, first + len(results)))

    wire.kill_camera()
    wait_for(lambda: state_is(line, "Preoperational", "it no longer answers"), "the loss to be told")
    wait_for(lambda: state_is(line, "Preoperational", "not found: serial 'GV01'. Seen: no camera at all"), "the reason")
    before = len(line.results("press"))
    wire.start_camera()
    wait_for(lambda: state_is(line, "ContinuousExecution"), "the camera to be taken again", 60)
    results = line.wait_results("press", before + 20)
    assert {result["verdict"] for result in results[before:]} <= {"pass", "fail"}
    assert [result["sequence"] for result in results] == list(range(1, len(results) + 1))
    assert counted(line, "aprilcam_camera_restarts_total") >= 1
    assert line.daemon.end() == 0


def test_a_station_that_takes_the_newest_frame_counts_lost_ones_and_owes_nothing(
    tmp_path: Path, wire: Wire, lines: list[Line]
) -> None:
    wire.start_camera()
    line = Line(tmp_path, STATION.format(frames="newest"))
    lines.append(line)
    line.daemon.start()
    line.wait_results("press", 5)
    wire.pull()
    time.sleep(1.5)
    wire.plug()
    wait_for(lambda: counted(line, "aprilcam_lost_frames_total") > 3, "lost frames to be counted")
    line.wait_results("press", len(line.results("press")) + 10)
    assert lost_ones(line) == []
    assert line.daemon.end() == 0
