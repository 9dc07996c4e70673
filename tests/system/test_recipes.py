"""Whole-daemon story of recipes: selected over MQTT while frames come, over a kill, exported and taken in again."""

import json
import signal
from pathlib import Path
from typing import Any

import paho.mqtt.publish as publish

from tests.broker import wait_for
from tests.contract_check import VALIDATORS
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station
from tests.test_cli import aprilcam

CORNER = """
[[recipes]]
name = "corner"
object = "corner of a disc"
shots = "corner-shots"
[recipes.region]
x = 0
y = 0
width = 128
height = 160
"""


def command(line: Line, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a command over MQTT."""
    assert line.listener is not None
    listener, before = line.listener, len(line.listener.of("press/reply"))
    publish.single(f"plant/press/command/{name}", json.dumps(request), qos=1, port=line.broker.port)
    wait_for(lambda: len(listener.of("press/reply")) > before, f"the reply to {name}", 40)
    reply: dict[str, Any] = json.loads(listener.of("press/reply")[before])
    return reply


def events(line: Line) -> list[tuple[str, str]]:
    """(recipe, kind) of what was told."""
    assert line.listener is not None
    heard = [json.loads(payload) for payload in line.listener.of("press/event")]
    for event in heard:
        VALIDATORS["event"].validate(event)
    return [(event["recipe"], event["kind"]) for event in heard]


def select(line: Line, recipe: str) -> None:
    reply = command(line, "select_recipe", {"recipe": recipe})
    assert reply["ok"], reply
    wait_for(lambda: (line.retained("press/state", "state") or {})["recipe"] == recipe, "the state")
    count = len(line.results("press"))
    wait_for(
        lambda: line.results("press")[-1]["recipe"] == recipe and len(line.results("press")) > count, f"a verdict by {recipe}"
    )


def test_a_station_changes_its_recipe_while_frames_come_and_loses_none(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(4))
    write_parts(tmp_path / "corner-shots", range(200, 204))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"), CORNER)
    config = line.daemon.config
    # Builds have what inspection leaves: a busy machine needs a slow line.
    config.write_text(config.read_text().replace("rate_hz = 20.0", "rate_hz = 8.0"))
    lines.append(line)
    line.daemon.start()
    line.wait_results("press", 3)
    wait_for(lambda: ("corner", "bank_built") in events(line), "the bank of the recipe that no station has", 60)

    for recipe in ("corner", "disc") * 3:
        select(line, recipe)
    told = [event for event in events(line) if event[1].startswith("recipe_")]
    assert told == [(recipe, kind) for recipe in ("corner", "disc") * 3 for kind in ("recipe_prepared", "recipe_selected")]
    refused = command(line, "select_recipe", {"recipe": "cog"})
    assert (refused["ok"], refused["error"]["code"]) == (False, "unknown_recipe")
    assert command(line, "threshold_set", {"recipe": "corner", "factor": 3.0})["ok"]
    select(line, "corner")

    # Killed, it begins with what was selected last.
    line.daemon.end(signal.SIGKILL)
    count = len(line.results("press"))
    line.daemon.start()
    line.wait_results("press", count + 3)
    assert line.results("press")[-1]["recipe"] == "corner"
    state = line.retained("press/state", "state")
    assert state is not None
    assert (state["state"], state["recipe"], state["threshold_stale"]) == ("ContinuousExecution", "corner", False)

    # Out, and in again under another name.
    file = tmp_path / "corner.zip"
    done = aprilcam("recipe", "export", "corner", file, "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    done = aprilcam("recipe", "import", file, "--name", "edge", "--config", config)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "made edge")
    wait_for(lambda: ("edge", "bank_built") in events(line), "its bank", 60)
    select(line, "edge")
    listed = {row["recipe"]: row for row in json.loads(line.daemon.get("/api/recipes")[1])["recipes"]}
    assert (listed["edge"]["configured"], listed["edge"]["stations"], listed["corner"]["stations"]) == (False, ["press"], [])
    assert (listed["edge"]["bank"], listed["edge"]["threshold"]) == (listed["corner"]["bank"], listed["corner"]["threshold"])
    metrics = line.daemon.get("/metrics")[1]
    assert 'aprilcam_bank_builds_total{outcome="built",recipe="edge"} 1.0' in metrics
    assert 'aprilcam_results_total{reason="",recipe="edge",station="press",verdict="pass"}' in metrics

    # What the killed daemon had sent and not yet struck out comes again.
    results = list({result["sequence"]: result for result in line.results("press")}.values())
    assert [result["sequence"] for result in results] == list(range(1, len(results) + 1))
    assert {result["verdict"] for result in results} == {"pass"}
    banks = {
        recipe: {result["bank"] for result in results if result["recipe"] == recipe} for recipe in ("disc", "corner", "edge")
    }
    assert banks == {recipe: {listed[recipe]["bank"]} for recipe in banks}
    assert banks["disc"] != banks["corner"] == banks["edge"]
    thresholds = {result["threshold"] for result in results if result["recipe"] == "edge"}
    assert thresholds == {listed["edge"]["threshold"]}
    assert line.daemon.end() == 0


def test_a_region_that_is_set_leaves_the_scratch_outside_out_from_one_frame_to_the_next(
    tmp_path: Path, lines: list[Line]
) -> None:
    write_parts(tmp_path / "parts", range(4), scratched=True)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    config = line.daemon.config
    config.write_text(config.read_text().replace("rate_hz = 20.0", "rate_hz = 8.0"))
    lines.append(line)
    line.daemon.start()
    first = line.wait_results("press", 8)[0]["bank"]
    refused = command(line, "region_set", {"region": {"x": 0, "y": 0, "width": 257, "height": 80}})
    assert (refused["ok"], refused["error"]["code"]) == (False, "refused")
    beside = {"x": 0, "y": 0, "width": 80, "height": 256}
    answer = command(line, "region_set", {"region": beside})["answer"]
    wait_for(lambda: line.results("press")[-1]["bank"] != first, "a verdict by the bank of the region", 60)
    second = line.results("press")[-1]["bank"]
    assert line.listener is not None
    wait_for(lambda: ("disc", "bank_built") in events(line), "the event")
    built = [json.loads(payload)["detail"] for payload in line.listener.of("press/event") if b"bank_built" in payload]
    assert [(detail["build"], detail["bank"]) for detail in built] == [(answer["build"], second)]

    # Another region in the configuration file waits behind it.
    text = config.read_text()
    config.write_text(text.replace('object = "disc"', 'object = "disc"\nregion = { x = 8, y = 8, width = 240, height = 240 }'))
    assert line.daemon.process is not None
    line.daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "aprilcam.toml is in force" in line.daemon.said().replace("\n", " "), "the end of the reload", 30)
    line.wait_results("press", len(line.results("press")) + 8)

    line.daemon.end(signal.SIGKILL)
    count = len(line.results("press"))
    line.daemon.start()
    line.wait_results("press", count + 8)
    [listed] = json.loads(line.daemon.get("/api/recipes")[1])["recipes"]
    assert (listed["region"], listed["bank"]) == (beside, second)
    results = list({result["sequence"]: result for result in line.results("press")}.values())
    assert [result["sequence"] for result in results] == list(range(1, len(results) + 1))
    changed = next(number for number, result in enumerate(results) if result["bank"] == second)
    assert [(result["verdict"], result["bank"]) for result in results] == [
        ("fail", first) if number < changed else ("pass", second) for number in range(len(results))
    ]

    # Back to the configuration file's.
    done = aprilcam("recipe", "region", "disc", "--config", config)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "region of its own")
    wait_for(lambda: line.results("press")[-1]["bank"] != second, "a verdict by the bank of the file's region", 60)
    assert line.results("press")[-1]["verdict"] == "fail"
    [listed] = json.loads(line.daemon.get("/api/recipes")[1])["recipes"]
    assert listed["region"] == {"x": 8, "y": 8, "width": 240, "height": 240}
    assert line.daemon.end() == 0
