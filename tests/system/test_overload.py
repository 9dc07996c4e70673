"""Whole-daemon stories of overload: one camera floods, and dies again and again; the others notice nothing."""

import os
import signal
from pathlib import Path

from tests.broker import wait_for
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station

FLOOD_HZ = 200.0
"""More than the model can judge, and hundred times what the other station gets."""


def grabber_of(process: int, camera: str) -> int | None:
    """The camera's process."""
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in file.read_text().split():
            if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[-2:-1] == [camera.encode()]:
                return int(child)
    return None


def test_a_flooding_camera_that_dies_takes_nothing_from_another(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(4))
    calm = folder_station("calm", tmp_path / "parts").replace("rate_hz = 20.0", "rate_hz = 2.0")
    flood = folder_station("flood", tmp_path / "parts").replace("rate_hz = 20.0", f"rate_hz = {FLOOD_HZ}")
    flood = flood.replace('frames = "every"', 'frames = "newest"').replace("queue_frames = 100", "queue_frames = 2")
    line = Line(tmp_path, calm.replace("queue_frames = 100", "queue_frames = 2\ndeadline_ms = 5000.0") + flood)
    lines.append(line)
    line.daemon.start()
    line.wait_results("calm", 4)
    assert line.daemon.process is not None
    for _ in range(3):
        seen = len(line.results("flood"))
        line.wait_results("flood", seen + 20)
        pid = grabber_of(line.daemon.process.pid, "flood-cam")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: (line.retained("flood/state", "state") or {}).get("state") == "Preoperational", "the loss to be told", 30
        )
        wait_for(lambda: (line.retained("flood/state", "state") or {}).get("state") == "ContinuousExecution", "its return", 30)
    results = line.results("calm")
    assert {result["verdict"] for result in results} == {"pass"}
    numbers = [result["frame"]["number"] for result in results]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    metrics = line.daemon.get("/metrics")[1]
    skipped = next(
        row for row in metrics.splitlines() if row.startswith('aprilcam_frames_total{outcome="skipped",station="flood"}')
    )
    assert float(skipped.rsplit(" ", 1)[1]) > 0
    assert 'aprilcam_frames_total{outcome="skipped",station="calm"} 0.0' in metrics
