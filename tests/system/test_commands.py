"""Whole-daemon stories of teaching: a running daemon learns by MQTT, HTTP, the command line and the drop folder."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import paho.mqtt.publish as publish
import pytest

from daemon.shots import pixel_hash
from tests.broker import wait_for
from tests.contract_check import VALIDATORS
from tests.parts import draw_part, write_parts
from tests.system.daemon import Line, folder_station
from tests.test_cli import aprilcam

TOKEN = "a token of more than 16 characters"  # noqa: S105


def test_a_running_daemon_is_taught_by_every_way_in_and_inspects_on(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(4))
    (tmp_path / "drop").mkdir()
    (tmp_path / "token").write_text(TOKEN)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"), 'drop = "drop"')
    config = line.daemon.config
    text = config.read_text().replace("[http]", '[http]\ntoken_file = "token"')
    # Builds have what inspection leaves: a busy machine needs a slow line.
    config.write_text(text.replace("rate_hz = 20.0", "rate_hz = 4.0"))
    lines.append(line)
    line.daemon.start()
    wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)

    def shots() -> list[str]:
        return [row["shot"] for row in json.loads(line.daemon.get("/api/recipes/disc/shots")[1])["shots"]]

    def mqtt(request: dict[str, Any]) -> dict[str, Any]:
        assert line.listener is not None
        before = len(line.listener.of("press/reply"))
        topic = "plant/press/command/register"
        publish.single(topic, json.dumps(request), qos=1, port=line.broker.port)
        wait_for(lambda: len(line.listener.of("press/reply")) > before, "the reply")  # type: ignore[union-attr]
        reply: dict[str, Any] = json.loads(line.listener.of("press/reply")[before])
        VALIDATORS["reply"].validate(reply)
        return reply

    assert len(shots()) == 10
    line.wait_results("press", 1)
    # MQTT: the station's own frames, which are the drawn parts 0 to 3.
    reply = mqtt({"last": True, "request_id": "1"})
    assert reply["ok"], reply
    own = {pixel_hash(draw_part(seed)) for seed in range(4)}
    assert {shot["shot"] for shot in reply["answer"]["shots"]} < own
    assert mqtt({"last": True, "request_id": "1"}) == reply
    assert mqtt({"next": 4, "request_id": "2"})["ok"]
    # HTTP: as a picture, with the token only.
    [file] = write_parts(tmp_path / "http", range(20, 21))
    url = f"http://127.0.0.1:{line.daemon.http_port}/api/recipes/disc/shots"
    without = urllib.request.Request(url, file.read_bytes(), {"Content-Type": "image/png"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(without, timeout=10)  # noqa: S310 - our own daemon
    headers = {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}"}
    with_token = urllib.request.Request(url, file.read_bytes(), headers)
    with urllib.request.urlopen(with_token, timeout=10) as answer:  # noqa: S310
        assert json.loads(answer.read())["shots"][0]["shot"] == pixel_hash(draw_part(20))
    # The command line, of the running daemon.
    files = write_parts(tmp_path / "cli", range(21, 23))
    done = aprilcam("register", "--recipe", "disc", "--config", config, *files)
    assert (done.returncode, done.stderr) == (0, "")
    last = aprilcam("register", "--recipe", "disc", "--config", config, "--next", 1, "--station", "press")
    assert (last.returncode, last.stderr) == (0, "")
    # The drop folder.
    write_parts(tmp_path / "drop", range(23, 24))
    wait_for(lambda: len(list((tmp_path / "drop" / "taken").glob("*.png"))) == 1, "the dropped picture to be taken")

    taught = {pixel_hash(draw_part(seed)) for seed in range(20, 24)}
    assert taught < set(shots())
    assert {pixel_hash(draw_part(seed)) for seed in range(100, 110)} < set(shots())
    before = line.retained("press/state", "state")
    assert before is not None
    assert aprilcam("rebuild", "--recipe", "disc", "--config", config).returncode == 0
    count = len(shots())

    def newest() -> dict[str, Any]:
        newest: dict[str, Any] = json.loads(line.daemon.get("/api/recipes/disc/banks")[1])["banks"][0]
        return newest

    wait_for(lambda: newest()["shots"] == count and newest()["current"], "the bank of all shots", 60)
    wait_for(lambda: newest()["bank"].startswith(line.results("press")[-1]["bank"]), "a verdict by it", 30)
    assert {result["verdict"] for result in line.results("press")} == {"pass"}
    sequences = [result["sequence"] for result in line.results("press")]
    assert sequences == list(range(1, len(sequences) + 1))

    back = aprilcam("rollback", "--recipe", "disc", "--config", config)
    assert back.returncode == 0
    wait_for(lambda: back.stdout.split()[1].startswith(line.results("press")[-1]["bank"]), "a verdict by the old bank", 30)
    metrics = line.daemon.get("/metrics")[1]
    assert 'aprilcam_commands_total{command="register",outcome="ok"} 7.0' in metrics
    assert 'aprilcam_commands_total{command="register",outcome="duplicate"} 1.0' in metrics
    assert line.daemon.end() == 0
