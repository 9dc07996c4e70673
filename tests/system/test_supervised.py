"""A whole daemon under a service manager: start, watchdog and stop on the notify socket, the log in its forms, and its status."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.broker import wait_for
from tests.notify import Manager
from tests.parts import write_parts
from tests.stuck_daemon import HANG
from tests.system.daemon import Line, folder_station


def status(line: Line, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon.cli", "status", "--config", str(line.daemon.config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_daemon_that_is_stuck_is_fed_no_more_and_ends(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"), broker=False)
    lines.append(line)
    no_daemon = status(line)
    assert (no_daemon.returncode, no_daemon.stdout) == (2, "")
    assert "gave no answer" in no_daemon.stderr

    daemon, sign = line.daemon, tmp_path / "hang"
    daemon.module = "tests.stuck_daemon"
    with Manager(tmp_path / "notify") as manager:
        daemon.start("--log-format", "json", **manager.environment, **{HANG: str(sign)})
        wait_for(lambda: manager.count("READY=1") == 1, "the start", 60)
        wait_for(lambda: manager.count("WATCHDOG=1") > 3, "the watchdog to be fed")
        assert daemon.get("/healthz")[0] == daemon.get("/readyz")[0] == 200
        table = status(line)
        assert table.returncode == 0, table.stderr
        assert "ready" in table.stdout.split()
        assert ["press", "running", "press-cam"] in [row.split()[:3] for row in table.stdout.splitlines()]
        told = status(line, "--json")
        assert told.returncode == 0
        assert json.loads(told.stdout)["stations"]["press"]["state"] == "ContinuousExecution"

        sign.touch()
        assert daemon.process is not None
        code = daemon.process.wait(30)
        daemon.process = None
        assert code == 1
        assert manager.heard.index("STOPPING=1") > len(manager.heard) - 3
        # It was fed for no longer than a stuck pipeline is waited for, then no more.
        fed_s = [at_s for at_s, text in zip(manager.heard_s, manager.heard, strict=True) if text == "WATCHDOG=1"]
        assert manager.heard_s[manager.heard.index("STOPPING=1")] - fed_s[-1] < 2.0
        assert max(later - earlier for earlier, later in itertools.pairwise(fed_s)) < 1.5
        assert 2.0 < fed_s[-1] - manager.at_s(sign.stat().st_mtime) < 6.0

    records = [json.loads(text) for text in daemon.said().splitlines()]
    for record in records:
        assert {"timestamp", "level", "logger", "message"} <= set(record)
    [last_words] = [record for record in records if record["level"] == "critical"]
    assert "has made no progress for" in last_words["message"]
    assert [record["station"] for record in records if record["message"].startswith("station press: ContinuousExecution")] == [
        "press"
    ]


def test_a_daemon_that_cannot_inspect_says_so(tmp_path: Path, lines: list[Line]) -> None:
    """No camera: alive, not ready."""
    line = Line(tmp_path, folder_station("press", tmp_path / "nowhere"), broker=False)
    lines.append(line)
    daemon = line.daemon
    with Manager(tmp_path / "notify") as manager:
        daemon.start("--log-format", "journal", **manager.environment)
        wait_for(lambda: manager.count("READY=1") == 1, "the start", 60)
        assert daemon.get("/healthz")[0] == 200
        code, text = daemon.get("/readyz")
        detail: dict[str, Any] = json.loads(text)
        assert (code, detail["status"], detail["ledger"]) == (503, "not ready", "ok")
        assert detail["stations"]["press"]["state"] == "Preoperational"
        assert "nowhere" in detail["stations"]["press"]["reason"]
        # The file is spoilt meanwhile, elsewhere: how the daemon is can be asked all the same.
        good = daemon.config.read_text()
        daemon.config.write_text(good.replace("queue_frames = 100", "queue_frames = 0"))
        table = status(line)
        assert table.returncode == 1, table.stderr
        assert "not ready" in table.stdout
        assert "nowhere" in table.stdout
        daemon.config.write_text(good)
        assert daemon.end() == 0
    said = daemon.said().splitlines()
    assert all(text.startswith(("<2>", "<3>", "<4>", "<6>")) for text in said), said
    assert any(text.startswith("<4>station press: Preoperational") for text in said)
