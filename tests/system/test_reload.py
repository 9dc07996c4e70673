"""A whole daemon whose configuration file is read again: stations come, change and go, and the others see nothing of it."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker import wait_for
from tests.notify import Manager
from tests.parts import write_parts
from tests.sparkplug_host import GROUP, NODE, Host
from tests.system.daemon import Line, folder_station

SPARKPLUG = f'[sparkplug]\ngroup_id = "{GROUP}"\nedge_node_id = "{NODE}"\n'


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    write_parts(tmp_path / "parts", range(5))
    stations = [folder_station("press", tmp_path / "parts"), slow("oven", tmp_path), slow("mill", tmp_path)]
    own = Line(tmp_path, "".join(stations), top=SPARKPLUG)
    yield own
    own.close()


def slow(name: str, folder: Path, rate_hz: float = 5.0) -> str:
    """A station that leaves the others their time on a small machine."""
    return folder_station(name, folder / "parts").replace("rate_hz = 20.0", f"rate_hz = {rate_hz}")


def configuration(line: Line) -> dict[str, Any]:
    return dict(json.loads(line.daemon.get("/api/status")[1])["configuration"])


def reload(line: Line, manager: Manager) -> dict[str, Any]:
    """How the file was taken, once the daemon has told that it is ready again."""
    before = manager.count("READY=1")
    assert line.daemon.process is not None
    line.daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: manager.count("READY=1") > before, "the end of the reload", 60)
    return configuration(line)


def clock(line: Line, station: str) -> list[float]:
    return [result["frame"]["timestamp_ns"] / 1e9 for result in line.results(station)]


def untouched(line: Line, station: str) -> None:
    """Every frame of its camera has its verdict, and nothing was told of it but its start."""
    results = line.results(station)
    assert [result["sequence"] for result in results] == list(range(1, len(results) + 1))
    numbers = [result["frame"]["number"] for result in results]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert {result["verdict"] for result in results} <= {"pass", "fail"}
    assert line.listener is not None
    states = [json.loads(payload)["state"] for payload in line.listener.of(f"{station}/state")]
    assert states == ["Preoperational", "ContinuousExecution"]


def retained(line: Line, station: str, name: str) -> bytes:
    assert line.listener is not None
    return line.listener.of(f"{station}/{name}")[-1]


def test_stations_come_change_and_go_while_another_inspects(line: Line, tmp_path: Path) -> None:
    daemon = line.daemon
    host = Host(line.broker.port)
    with Manager(tmp_path / "notify") as manager:
        daemon.start(**manager.environment)
        wait_for(lambda: daemon.get("/readyz")[0] == 200, "readiness", 60)
        for station in ("press", "oven", "mill"):
            line.wait_results(station, 10)

        # One comes with a recipe of its own, one changes its camera, one goes; the HTTP port would need a restart.
        text = daemon.config.read_text()
        mill, oven = slow("mill", tmp_path), slow("oven", tmp_path)
        (tmp_path / "shots-2").mkdir()
        write_parts(tmp_path / "shots-2", range(200, 203))
        fourth = slow("lathe", tmp_path).replace('recipe = "disc"', 'recipe = "ring"')
        recipe = f'[[recipes]]\nname = "ring"\nobject = "ring"\nshots = "{tmp_path / "shots-2"}"\n'
        changed = text.replace(mill, fourth + recipe).replace(oven, slow("oven", tmp_path, 10.0) + 'mask = "none"\n')
        daemon.config.write_text(changed.replace('prefix = "plant"', 'prefix = "plant"\nkeepalive_s = 20'))
        told = reload(line, manager)
        assert (told["status"], told["problems"], told["needs_restart"]) == ("in_force", [], ["mqtt.keepalive_s"])

        oven_before = len(line.results("oven"))
        line.wait_results("lathe", 10)
        line.wait_results("oven", oven_before + 20)
        wait_for(lambda: daemon.get("/readyz")[0] == 200, "readiness")
        ready = json.loads(daemon.get("/readyz")[1])["stations"]
        assert set(ready) == {"press", "oven", "lathe"}
        assert {result["recipe"] for result in line.results("lathe")} == {"ring"}
        assert all(result["verdict"] != "unknown" for result in line.results("lathe"))
        # The changed one counts on, at the new rate and with the new masks.
        oven_results = line.results("oven")
        assert [result["sequence"] for result in oven_results] == list(range(1, len(oven_results) + 1))
        times = clock(line, "oven")[-15:]
        assert 0.08 < (times[-1] - times[0]) / 14 < 0.15
        # The one that went had a verdict for each frame, and left nothing behind.
        mill_results = line.results("mill")
        assert [result["sequence"] for result in mill_results] == list(range(1, len(mill_results) + 1))
        for name in ("state", "last"):
            wait_for(lambda name=name: retained(line, "mill", name) == b"", f"mill/{name} to be cleared")  # type: ignore[misc]
        metrics = daemon.get("/metrics")[1]
        assert 'station="mill"' not in metrics
        assert re.search(r'^aprilcam_frames_total\{outcome="judged",station="lathe"\} ', metrics, re.MULTILINE)
        wait_for(lambda: set(host.check().devices) == {"press", "oven", "lathe"}, "the devices of Sparkplug")
        untouched(line, "press")

        # Settings that the camera does not depend on: it goes on.
        lathe_before = len(line.results("lathe"))
        settings = "deadline_ms = 5000.0\noverlay = true\n"
        changed = changed.replace(fourth + recipe, fourth + settings + recipe + "threshold = 50.0\n")
        daemon.config.write_text(changed)
        told = reload(line, manager)
        assert (told["status"], told["problems"], told["needs_restart"]) == ("in_force", [], [])
        line.wait_results("lathe", lathe_before + 10)
        lathe = line.results("lathe")
        assert (lathe[0]["threshold"] < 10, lathe[-1]["threshold"]) == (True, 50.0)
        numbers = [result["frame"]["number"] for result in lathe]
        assert numbers == list(range(numbers[0], numbers[0] + len(lathe)))
        wait_for(lambda: bool(line.listener and line.listener.of("lathe/overlay")), "its overlay")

        # A file that is wrong, and one that cannot be read, change nothing; both are told.
        daemon.config.write_text(changed.replace("rate_hz = 20.0", "rate_hz = -1.0"))
        told = reload(line, manager)
        assert told["status"] == "refused"
        assert any("rate_hz" in problem for problem in told["problems"])
        wait_for(lambda: "is refused" in manager.last("STATUS"), "the status line of systemd")
        daemon.config.unlink()
        told = reload(line, manager)
        assert told["status"] == "refused"
        assert "no such file" in told["problems"][0]
        assert re.search(r"^\d\d:\d\d:\d\d station lathe: ContinuousExecution$", daemon.said(), re.MULTILINE)
        assert "is refused, what ran before goes on" in daemon.said().replace("\n", " ")
        before = len(line.results("press"))
        line.wait_results("press", before + 20)
        untouched(line, "press")

        # The removed one comes back where it was.
        daemon.config.write_text(text)
        told = reload(line, manager)
        assert (told["status"], told["needs_restart"]) == ("in_force", [])
        line.wait_results("mill", len(mill_results) + 10)
        assert [result["sequence"] for result in line.results("mill")] == list(range(1, len(line.results("mill")) + 1))
        wait_for(lambda: set(host.check().devices) == {"press", "oven", "mill"}, "the devices of Sparkplug")
        untouched(line, "press")
        assert manager.count("WATCHDOG=1") > 5
        assert daemon.end() == 0
        order = [text.partition("\n")[0] for text in manager.heard if text.startswith(("READY", "RELOADING", "STOPPING"))]
        assert order == ["READY=1", *["RELOADING=1", "READY=1"] * 5, "STOPPING=1"]
    host.close()
