"""Whole-daemon stories of triggers: by MQTT and HTTP, with names and bursts, and a camera that does not answer."""

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import paho.mqtt.publish as publish

from tests.broker import wait_for
from tests.parts import write_parts
from tests.system.daemon import Line

TRIGGERED = """
[[cameras]]
name = "press-cam"
driver = "pylon"
emulate = "parts"
pixel_format = "Mono8"
exposure_us = 1000.0
trigger = "software"
retry_s = 0.5
[[stations]]
name = "press"
camera = "press-cam"
recipe = "disc"
frame_timeout_ms = 1500.0
{extra}
"""


def start(folder: Path, lines: list[Line], extra: str = "") -> Line:
    write_parts(folder / "parts", range(3))
    line = Line(folder, TRIGGERED.format(extra=extra))
    lines.append(line)
    line.daemon.start()
    wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)
    return line


def trigger(line: Line, **fields: Any) -> None:
    publish.single("plant/press/command/trigger", json.dumps(fields), qos=1, port=line.broker.port)


def replies(line: Line) -> list[dict[str, Any]]:
    assert line.listener is not None
    return [json.loads(payload) for payload in line.listener.of("press/reply")]


def test_each_trigger_over_mqtt_and_http_gets_one_result_with_its_name(tmp_path: Path, lines: list[Line]) -> None:
    line = start(tmp_path, lines)
    for number in range(10):
        trigger(line, part_id=f"m{number}", job_id="job", request_id=f"{number}")
        line.wait_results("press", number + 1)
    trigger(line, part_id="m9", job_id="job", request_id="9")  # the same command again
    wait_for(lambda: len(replies(line)) == 11, "the replies")
    url = f"http://127.0.0.1:{line.daemon.http_port}/api/stations/press/trigger"
    request = urllib.request.Request(url, b'{"part_id": "h"}', {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own daemon
        assert json.loads(answer.read()) == {"station": "press"}
    results = line.wait_results("press", 11)
    assert [result["part_id"] for result in results] == [*(f"m{number}" for number in range(10)), "h"]
    assert [result["sequence"] for result in results] == list(range(1, 12))
    assert {(result["verdict"], result["frame"]["trigger"]) for result in results} == {("pass", "software")}
    assert all(reply["ok"] for reply in replies(line))


def test_a_part_of_three_frames_is_one_result(tmp_path: Path, lines: list[Line]) -> None:
    line = start(tmp_path, lines, "frames_per_part = 3")
    for number, name in enumerate(("a", "b"), 1):
        trigger(line, part_id=name)
        wait_for(lambda number=number: len(replies(line)) == number, "the reply")  # type: ignore[misc]
    results = line.wait_results("press", 2)
    assert [result["part_id"] for result in results] == ["a", "b"]
    for result in results:
        assert len(result["frames"]) == 3
        assert [frame["decides"] for frame in result["frames"]].count(True) == 1


def test_a_trigger_to_a_camera_that_died_is_answered_and_the_next_parts_keep_their_names(
    tmp_path: Path, lines: list[Line]
) -> None:
    line = start(tmp_path, lines)
    trigger(line, part_id="before")
    line.wait_results("press", 1)
    assert line.daemon.process is not None
    children = Path(f"/proc/{line.daemon.process.pid}/task").glob("*/children")
    [camera] = [int(pid) for file in children for pid in file.read_text().split()]
    os.kill(camera, signal.SIGSTOP)  # a driver call that never returns
    trigger(line, part_id="hung")
    wait_for(lambda: len(replies(line)) == 2, "the reply", 20)
    hung = replies(line)[1]
    assert not hung["ok"]
    assert hung["error"]["code"] == "refused"
    wait_for(lambda: (line.retained("press/state", "state") or {}).get("state") == "ContinuousExecution", "the camera", 40)

    def again() -> bool:
        count = len(replies(line))
        trigger(line, part_id="after")
        wait_for(lambda: len(replies(line)) > count, "the reply", 20)
        return bool(replies(line)[-1]["ok"])

    wait_for(again, "a trigger to be taken", 40)
    results = line.wait_results("press", 2)
    assert [(result["part_id"], result["verdict"]) for result in results] == [("before", "pass"), ("after", "pass")]
