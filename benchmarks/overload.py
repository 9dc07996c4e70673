"""Twice what can be judged, for a while: is memory flat, and is every frame answered that has to be?

The whole daemon, default preset, mosquitto, archive: two stations that answer every frame (what they have no room for is
`unknown: overload`) and two that take the newest. Memory of the daemon and its camera processes, once a minute.

    python -m benchmarks.overload [--minutes 10]
"""

import argparse
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.demo import children_of, resident_mib
from benchmarks.streaming import Line, WholeDaemon
from demo.pictures import lay_out
from demo.run import private_broker

STATIONS, EVERY = 4, 2
FLOOD_HZ = 150.0
TIMES = 2.0
FLAT = 1.05
"""The last minute's memory over the second's: the first fills buffers."""


def unanswered(state: Path, station: str) -> int:
    """Frames of a station that have no result between its first and its last one."""
    numbers = "SELECT json_extract(document, '$.frame.number') AS number FROM results WHERE station = ?"
    with closing(sqlite3.connect(state / "ledger.sqlite3")) as connection:
        query = f"SELECT max(number) - min(number) + 1 - count(*) FROM ({numbers})"  # noqa: S608 - all of it is ours
        return int(connection.execute(query, (station,)).fetchone()[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.overload")
    parser.add_argument("--minutes", type=int, default=10)
    options = parser.parse_args()
    lay_out(None)
    with tempfile.TemporaryDirectory() as name, private_broker(Path(name) / "broker") as port:
        folder = Path(name)
        (folder / "first").mkdir()
        (folder / "then").mkdir()
        sustained = WholeDaemon(folder / "first", port, Line(STATIONS, FLOOD_HZ)).measure(15.0).per_s
        offered = TIMES * sustained
        print(f"{sustained:.1f} judged/s is the most; {offered:.1f}/s are offered", flush=True)
        daemon = WholeDaemon(folder / "then", port, Line(STATIONS, offered, every=EVERY, archive=True))
        cameras = children_of(daemon.process.pid)
        minutes = []
        for minute in range(options.minutes):
            time.sleep(60)
            minutes.append(resident_mib(daemon.process.pid))
            each = sum(resident_mib(camera) for camera in cameras)
            print(f"minute {minute + 1:2d}: daemon {minutes[-1]:.0f} MiB, its cameras {each:.0f} MiB", flush=True)
        daemon.stop()
        with closing(sqlite3.connect(daemon.state / "ledger.sqlite3")) as connection:
            rows = connection.execute(
                "SELECT station, coalesce(reason, 'judged'), count(*) FROM results GROUP BY 1, 2"
            ).fetchall()
        for station, what, count in rows:
            print(f"{station}: {what} {count}")
        for number in range(EVERY):
            print(f"station{number}: {unanswered(daemon.state, f'station{number}')} frames without an answer, target 0")
        growth = minutes[-1] / minutes[min(1, len(minutes) - 1)]
        print(f"memory at the end over the second minute: {growth:.3f}, target < {FLAT:g} {'ok' if growth < FLAT else 'MISSED'}")


if __name__ == "__main__":
    main()
