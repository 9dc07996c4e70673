"""Whole-daemon stories: the main job, bad input, and the ways to end."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.broker import wait_for
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station


def test_good_parts_pass_scratched_ones_fail_and_the_mask_lies_on_the_scratch(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(5))
    write_parts(tmp_path / "parts", range(5, 10), scratched=True, start=5)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"))
    lines.append(line)
    line.daemon.start()
    results = line.wait_results("press", 10)

    assert [result["verdict"] for result in results] == ["pass"] * 5 + ["fail"] * 5, line.daemon.said()
    assert [result["sequence"] for result in results] == list(range(1, 11))
    assert [result["frame"]["number"] for result in results] == list(range(10))
    assert all(result["is_simulated"] for result in results)
    assert line.listener is not None
    order = [heard.topic for heard in line.listener.heard]
    for result in results[:5]:
        assert result["mask"] is None
        assert result["regions"] == []
        assert result["score"] <= result["threshold"]
    for result in results[5:]:
        assert result["score"] > result["threshold"]
        topic = result["mask"]["topic"]
        assert order[order.index(topic) + 1] == "plant/press/result"
        [png] = line.listener.of(topic)
        assert hashlib.sha256(png).hexdigest() == result["mask"]["sha256"]
        mask = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert mask.shape == (256, 256)
        box = result["regions"][0]
        # The scratch runs from about (93, 108) to (153, 158).
        assert box["x"] < 125 < box["x"] + box["width"]
        assert box["y"] < 134 < box["y"] + box["height"]
        assert mask[134, 124] != 0
        assert np.count_nonzero(mask[70:200, 55:195]) > 0.95 * np.count_nonzero(mask)

    wait_for(lambda: (line.retained("press/state", "state") or {}).get("state") == "Halted", "the folder's end to be told")
    last = line.retained("press/last", "result")
    assert last is not None
    assert last["sequence"] == 10
    wait_for(lambda: "aprilcam_outbox_depth 0.0" in line.daemon.get("/metrics")[1], "an empty outbox")
    code, metrics = line.daemon.get("/metrics")
    assert code == 200
    assert 'aprilcam_results_total{reason="",recipe="disc",station="press",verdict="fail"} 5.0' in metrics
    assert 'aprilcam_frames_total{outcome="judged",station="press"} 10.0' in metrics
    assert 'aprilcam_results_total{reason="no_frame",recipe="disc",station="press",verdict="unknown"} 0.0' in metrics
    assert f'aprilcam_bank_info{{bank="{results[0]["bank"]}",mode="few_shot",recipe="disc",station="press"}} 1.0' in metrics
    assert 'aprilcam_incomplete_frames_total{station="press"} 0.0' in metrics
    assert 'aprilcam_messages_lost_total{reason="too_old",what="result"} 0.0' in metrics
    assert "aprilcam_exposure_skipped_total 0.0" in metrics
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert line.daemon.get("/healthz")[0] == 200

    assert line.daemon.end(signal.SIGINT) == 0
    wait_for(lambda: (line.retained("plant/status", "status") or {}).get("status") == "stopped", "the farewell")
    said = line.daemon.said()
    assert "10 results: 5 pass, 5 fail, 0 unknown" in said
    assert f"mosquitto_sub -h 127.0.0.1 -p {line.broker.port} -v -t 'plant/+/result'" in said
    assert said.index("stations") < said.index("mosquitto_sub") < said.index("✔ pass") < said.index("✘ FAIL")


def test_second_start_uses_the_persisted_bank_and_a_damaged_one_is_built_again(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"))
    lines.append(line)
    banks = tmp_path / "state" / "recipes" / "disc" / "banks"

    def once() -> tuple[str, int]:
        line.daemon.log.unlink(missing_ok=True)
        line.daemon.start()
        wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)
        assert line.daemon.end() == 0
        [bank] = banks.glob("*/bank.safetensors")
        return line.daemon.said(), bank.stat().st_mtime_ns

    first, built = once()
    assert "encoding reference shots" in first
    second, kept = once()
    assert "encoding reference shots" not in second
    assert kept == built
    [bank] = banks.glob("*/bank.safetensors")
    content = bytearray(bank.read_bytes())
    content[-1] ^= 1
    bank.write_bytes(content)
    third, _ = once()
    assert "encoding reference shots" in third
    assert "bank.safetensors" in third
    fourth, _ = once()
    assert "encoding reference shots" not in fourth


def test_bad_pictures_are_named_and_the_rest_goes_on(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "shots", range(100, 110))
    (tmp_path / "shots" / "empty.png").write_bytes(b"")
    (tmp_path / "shots" / "text.png").write_bytes(b"not a picture")
    write_parts(tmp_path / "parts", range(4))
    (tmp_path / "parts" / "0001.png").write_bytes(b"")
    (tmp_path / "parts" / "0002.png").write_bytes((tmp_path / "parts" / "0003.png").read_bytes()[:500])
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"))
    lines.append(line)
    line.daemon.start()
    results = line.wait_results("press", 4)
    assert [(result["verdict"], result["reason"]) for result in results] == [
        ("pass", None),
        ("unknown", "unreadable"),
        ("unknown", "unreadable"),
        ("pass", None),
    ]
    assert "0001.png" in results[1]["detail"]
    assert results[1]["score"] is None
    said = line.daemon.said()
    assert "empty.png" in said
    assert "text.png" in said


def test_a_camera_that_is_not_there_leaves_the_other_station_alone_and_comes_up_later(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    late = tmp_path / "late"
    line = Line(tmp_path, folder_station("press", tmp_path / "parts") + folder_station("oven", late))
    lines.append(line)
    line.daemon.start()
    line.wait_results("press", 5)
    wait_for(lambda: "late" in ((line.retained("oven/state", "state") or {}).get("reason") or ""), "the reason")
    assert (line.retained("oven/state", "state") or {})["state"] == "Preoperational"
    assert line.daemon.get("/readyz")[0] == 503
    assert json.loads(line.daemon.get("/readyz")[1])["stations"]["press"]["state"] == "ContinuousExecution"
    write_parts(tmp_path / "making", range(3))
    (tmp_path / "making").rename(late)
    line.wait_results("oven", 2)
    wait_for(lambda: (line.retained("oven/state", "state") or {}).get("state") == "ContinuousExecution", "the new state")
    assert line.daemon.get("/readyz")[0] == 200


def test_a_recipe_without_shots_gives_unknown_never_pass(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    (tmp_path / "shots").mkdir()
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    line.daemon.start()
    results = line.wait_results("press", 3)
    assert {(result["verdict"], result["reason"]) for result in results} == {("unknown", "not_taught")}
    state = line.retained("press/state", "state")
    assert state is not None
    assert state["state"] == "Error"
    assert "no reference shots" in state["reason"]


def test_a_frame_without_the_region_is_unknown(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    small = np.full((100, 100), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "parts" / "9999.png"), small)
    region = "[recipes.region]\nx = 20\ny = 10\nwidth = 200\nheight = 210"
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"), region)
    lines.append(line)
    line.daemon.start()
    results = line.wait_results("press", 3)
    assert [result["reason"] for result in results] == [None, None, "region_outside_frame"]
    assert results[2]["verdict"] == "unknown"
    assert "100, 100" in results[2]["detail"]


def test_pylon_emulator_station_reports_buffers_it_could_not_fill(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    (tmp_path / "parts" / "0001.png").write_bytes(b"broken")
    camera = f"""
[[cameras]]
name = "cam"
driver = "pylon"
emulate = "{tmp_path / "parts"}"
rate_hz = 10.0
[[stations]]
name = "press"
camera = "cam"
recipe = "disc"
frames = "every"
"""
    line = Line(tmp_path, camera)
    lines.append(line)
    line.daemon.start()
    results = line.wait_results("press", 6)[:6]
    assert [result["verdict"] for result in results] == ["pass", "unknown", "pass"] * 2
    assert results[1]["reason"] in ("incomplete", "unreadable")
    assert all(result["is_simulated"] for result in results)
    assert "Emulation" in line.daemon.said()
    assert line.daemon.end() == 0


def test_sigkill_and_restart_continue_the_sequence(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    for start in range(3):
        line.daemon.start()
        line.wait_results("press", 8 * (start + 1))
        assert line.daemon.end(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: (line.retained("plant/status", "status") or {}).get("status") == "offline", "the will")
    line.daemon.start()
    line.wait_results("press", len(line.results("press")) + 3)
    assert line.daemon.end(signal.SIGTERM) == 0
    results = {result["sequence"]: result["result_id"] for result in line.results("press")}
    assert sorted(results) == list(range(1, len(results) + 1))
    assert len(set(results.values())) == len(results)


def test_broker_away_while_inspecting_and_everything_arrives_afterwards(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"), broker=False)
    lines.append(line)
    line.daemon.start()
    wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness without a broker", 60)
    wait_for(
        lambda: "Check [mqtt] host and port, and that the broker runs. Results wait" in line.daemon.said(),
        "the trouble to be told",
    )
    wait_for(lambda: 'outcome="judged",station="press"} 1' in line.daemon.get("/metrics")[1], "ten results or more")
    assert "aprilcam_mqtt_connected 0.0" in line.daemon.get("/metrics")[1]
    line.start_broker()
    line.wait_results("press", 15)
    line.broker.kill()
    heard = line.results("press")
    wait_for(lambda: "aprilcam_mqtt_connected 0.0" in line.daemon.get("/metrics")[1], "the loss to be seen")
    assert line.listener is not None
    line.listener.close()
    line.start_broker()
    results = heard + line.wait_results("press", 10)
    ids = {result["sequence"]: result["result_id"] for result in results}
    assert sorted(ids) == list(range(1, max(ids) + 1))
    assert len(set(ids.values())) == len(ids)
    assert line.daemon.end() == 0


def test_two_daemons_do_not_share_a_state_folder(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    line.daemon.start()
    wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)
    command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(line.daemon.config)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert "another aprilcam (process" in second.stderr


def test_the_service_manager_hears_ready_after_the_bank_and_then_the_watchdog(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        line.daemon.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1500000")
        assert manager.recv(200) == b"READY=1"
        assert list((tmp_path / "state" / "recipes" / "disc" / "banks").glob("*/bank.safetensors"))
        heard = [manager.recv(200) for _ in range(4)]
        assert b"WATCHDOG=1" in heard
        assert b"STATUS=press: ContinuousExecution; broker connected" in heard
        assert line.daemon.process is not None
        line.daemon.process.send_signal(signal.SIGTERM)
        while manager.recv(200) != b"STOPPING=1":
            pass
        assert line.daemon.process.wait(30) == 0


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="mosquitto-clients is not installed")
def test_the_address_that_is_printed_works_as_it_stands(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    line.daemon.start()
    wait_for(lambda: "mosquitto_sub" in line.daemon.said(), "the addresses", 60)
    [command] = [row for row in line.daemon.said().splitlines() if "mosquitto_sub" in row]
    command = command[command.index("mosquitto_sub") :]
    heard = subprocess.run(["bash", "-c", f"{command} -C 1 -W 20"], capture_output=True, text=True, env=dict(os.environ))
    topic, _, payload = heard.stdout.partition(" ")
    assert topic == "plant/press/result"
    assert json.loads(payload)["verdict"] == "pass"
