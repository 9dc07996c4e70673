"""The demo's figures on this machine: start-up without and with a bank, latency by stage, frames a second, memory.

python -m benchmarks.demo [--seconds 30]
"""

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from demo.pictures import lay_out
from demo.run import CONFIG, free_port, private_broker

STAGES = ("acquire_s", "queue_s", "inference_s", "finish_s")


class Daemon:
    """`aprilcam run` on the demo's configuration, with its own state folder, port and rate."""

    def __init__(self, folder: Path, broker_port: int, rate_hz: float) -> None:
        self.state = folder / "state"
        self.port = free_port()
        text = CONFIG.read_text().replace("../build/demo/state", str(self.state))
        text = text.replace('"../build', f'"{CONFIG.parent.parent}/build').replace("rate_hz = 4.0", f"rate_hz = {rate_hz}")
        text = text.replace('frames = "every"', 'frames = "newest"')
        config = folder / "demo.toml"
        config.write_text(f"[http]\nport = {self.port}\n{text}")
        command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(config), "--broker", f"127.0.0.1:{broker_port}"]
        started_s = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not self._ready():
            time.sleep(0.02)
        self.startup_s = time.monotonic() - started_s

    def _ready(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    def memory_mib(self) -> dict[str, float]:
        """Resident memory of the daemon and of its camera process."""
        cameras = children_of(self.process.pid)
        return {"daemon": resident_mib(self.process.pid), "camera process": sum(map(resident_mib, cameras))}

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def results(self) -> list[dict[str, Any]]:
        """Every result of the ledger, oldest first; after `stop`."""
        connection = sqlite3.connect(self.state / "ledger.sqlite3")
        rows = connection.execute("SELECT document FROM results ORDER BY sequence").fetchall()
        connection.close()
        return [json.loads(document) for (document,) in rows]


def children_of(pid: int) -> list[int]:
    """The processes that it started."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def resident_mib(pid: int) -> float:
    """Resident memory of a process, shared pages included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _milliseconds(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49] * 1e3:7.1f} ms   p99 {cuts[98] * 1e3:7.1f} ms"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.demo")
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    lay_out(None)
    with tempfile.TemporaryDirectory() as name, private_broker(Path(name) / "broker") as broker_port:
        folder = Path(name)
        for kind in ("no bank yet", "bank there"):
            daemon = Daemon(folder, broker_port, 4.0)
            print(f"start-up, {kind}: {daemon.startup_s:.1f} s")
            if kind == "no bank yet":
                daemon.stop()
        time.sleep(seconds)
        for part, mib in daemon.memory_mib().items():
            print(f"resident memory, {part}: {mib:.0f} MiB")
        daemon.stop()
        results = daemon.results()[8:]
        print(f"latency at 4 frames/s, {len(results)} frames:")
        for stage in STAGES:
            print(f"  {stage:<12} {_milliseconds([result['processing_times'][stage] for result in results])}")
        print(f"  {'total':<12} {_milliseconds([sum(result['processing_times'].values()) for result in results])}")
        before = len(daemon.results())
        daemon = Daemon(folder, broker_port, 100.0)
        time.sleep(seconds)
        daemon.stop()
        print(f"sustained, camera at 100 frames/s: {(len(daemon.results()) - before) / seconds:.1f} judged/s")


if __name__ == "__main__":
    main()
