"""What the other stations notice when a camera fails: their p99 while one camera's process is killed again and again, over calm.

The whole daemon, default preset, mosquitto, four stations at 60 % of what can be judged; calm and storm in turns, pooled.

    python -m benchmarks.failing [--seconds 15] [--rounds 3]
"""

import argparse
import os
import signal
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from benchmarks.demo import children_of
from benchmarks.streaming import EASY, Line, WholeDaemon
from demo.pictures import lay_out
from demo.run import private_broker

STATIONS = 4
FLOOD_HZ = 80.0
EVERY_S = 3.0
VICTIM, VICTIM_STATION = "cam0", "station0"
TARGET = 1.1


def victim(daemon: int) -> int | None:
    """The process of VICTIM, by the name in its arguments."""
    for child in children_of(daemon):
        with suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[-2:-1] == [VICTIM.encode()]:
                return child
    return None


def storm(daemon: int, seconds: float) -> int:
    """Kill the victim whenever it is there, so long; how often."""
    kills, until_s = 0, time.monotonic() + seconds
    while time.monotonic() < until_s:
        if (child := victim(daemon)) is not None:
            os.kill(child, signal.SIGKILL)
            kills += 1
        time.sleep(EVERY_S)
    return kills


def totals(state: Path, start_ns: int, end_ns: int, without: str = "") -> list[float]:
    """Seconds from the driver to the finished judgement of the frames judged meanwhile; without: a station that is left out."""
    parts = "+".join(
        f"json_extract(document, '$.processing_times.{part}_s')" for part in ("acquire", "queue", "inference", "finish")
    )
    query = f"SELECT {parts} FROM results WHERE station != ? AND created_ns BETWEEN ? AND ?"  # noqa: S608 - ours
    with closing(sqlite3.connect(f"file:{state / 'ledger.sqlite3'}?mode=ro", uri=True)) as connection:
        return [float(row[0]) for row in connection.execute(query, (without, start_ns, end_ns))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.failing")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    options: Any = parser.parse_args()
    lay_out(None)
    calm: list[float] = []
    stormy: list[float] = []
    with tempfile.TemporaryDirectory() as name, private_broker(Path(name) / "broker") as port:
        folder = Path(name)
        for part in ("first", "then"):
            (folder / part).mkdir()
        most = WholeDaemon(folder / "first", port, Line(STATIONS, FLOOD_HZ)).measure(10.0).per_s
        daemon = WholeDaemon(folder / "then", port, Line(STATIONS, EASY * most))
        time.sleep(2.0)
        kills = 0
        for _ in range(options.rounds):
            for measured, storming in ((calm, False), (stormy, True)):
                start_ns = time.time_ns()
                if storming:
                    kills += storm(daemon.process.pid, options.seconds)
                else:
                    time.sleep(options.seconds)
                measured += totals(daemon.state, start_ns, time.time_ns(), VICTIM_STATION)
            time.sleep(8.0)  # the victim is back
        daemon.stop()
    for what, measured in (("calm", calm), (f"{kills} kills", stormy)):
        cuts = statistics.quantiles(measured, n=100, method="inclusive")
        print(f"{what:<10} {len(measured)} frames of the others   p50 {cuts[49] * 1e3:.1f} ms   p99 {cuts[98] * 1e3:.1f} ms")
    ratio = (
        statistics.quantiles(stormy, n=100, method="inclusive")[98] / statistics.quantiles(calm, n=100, method="inclusive")[98]
    )
    print(f"p99 while a camera fails over calm: {ratio:.2f}, target {TARGET:g} {'ok' if ratio <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
