"""What people who look cost the inspection: its p99 while 20 viewers look at the operator page, over that without them.

The whole daemon, default preset, mosquitto, four stations at 60 % of what can be judged; without and with viewers in turns, in
pairs whose order alternates. Latency is from a frame in the driver's hands to its finished judgement. The viewers
(benchmarks.viewers) are a process of the lowest priority on the daemon's own cores: in a plant the browsers are other machines.
What they take of the cores counts against the daemon here, and an event's way to them is as slow as a busy machine makes it.

    python -m benchmarks.page [--seconds 20] [--pairs 4] [--viewers 20] [--rate HZ]
"""

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.failing import totals
from benchmarks.streaming import EASY, OFFERED_HZ, WARM_UP_S, Line, WholeDaemon
from demo.pictures import lay_out
from demo.run import private_broker

STATIONS = 4
FLOODED_S = 10.0
TARGET = 1.10
TARGET_S = 0.2
"""From the verdict to the event at a viewer."""


@dataclass(frozen=True)
class Phase:
    """totals_s: of the frames judged meanwhile. cpu_s: processor time of the daemon, without its cameras."""

    totals_s: list[float]
    cpu_s: float
    seen: dict[str, Any] | None = None

    @property
    def p99_s(self) -> float:
        """Of the latency."""
        return cuts(self.totals_s)[98]


def cuts(measured: list[float]) -> list[float]:
    """The 99 percentiles."""
    return statistics.quantiles(measured, n=100, method="inclusive")


def processor_s(pid: int) -> float:
    """User and system time that a process has taken (proc(5), stat), in s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(daemon: WholeDaemon, seconds: float, viewers: int) -> Phase:
    """So long, with so many viewers."""
    looking = None
    if viewers:
        command = [sys.executable, "-m", "benchmarks.viewers", str(daemon.port), str(viewers)]
        looking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    time.sleep(WARM_UP_S)
    start_ns, before_s = time.time_ns(), processor_s(daemon.process.pid)
    time.sleep(seconds)
    end_ns, after_s = time.time_ns(), processor_s(daemon.process.pid)
    seen = None
    if looking is not None:
        if looking.poll() is not None:
            raise SystemExit("the viewers ended by themselves")
        seen = json.loads(looking.communicate(timeout=30)[0])
    return Phase(totals(daemon.state, start_ns, end_ns), after_s - before_s, seen)


def delays(state: Path, phases: list[Phase]) -> list[float]:
    """Seconds from each verdict to its event at each viewer."""
    with closing(sqlite3.connect(f"file:{state / 'ledger.sqlite3'}?mode=ro", uri=True)) as connection:
        created_ns = dict(connection.execute("SELECT result_id, created_ns FROM results"))
    arrived = [told for phase in phases if phase.seen is not None for told in phase.seen["arrived"]]
    return [(at_ns - created_ns[result_id]) / 1e9 for result_id, at_ns in arrived]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.page")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--rate", type=float, help="frames a second of all cameras; left out: 60 %% of what can be judged")
    options: Any = parser.parse_args()
    lay_out(None)
    alone: list[Phase] = []
    watched: list[Phase] = []
    with tempfile.TemporaryDirectory() as name, private_broker(Path(name) / "broker") as port:
        folder = Path(name)
        for part in ("first", "then"):
            (folder / part).mkdir()
        rate_hz = options.rate
        if rate_hz is None:
            rate_hz = EASY * WholeDaemon(folder / "first", port, Line(STATIONS, OFFERED_HZ["default"])).measure(FLOODED_S).per_s
        daemon = WholeDaemon(folder / "then", port, Line(STATIONS, rate_hz))
        time.sleep(WARM_UP_S)
        for pair in range(options.pairs):
            for viewers in (0, options.viewers) if pair % 2 == 0 else (options.viewers, 0):
                (watched if viewers else alone).append(measure(daemon, options.seconds, viewers))
            without, with_them = alone[-1], watched[-1]
            print(
                f"pair {pair + 1}: p99 without {without.p99_s * 1e3:.1f} ms, with {options.viewers} viewers "
                f"{with_them.p99_s * 1e3:.1f} ms, ratio {with_them.p99_s / without.p99_s:.2f}",
                flush=True,
            )
        late_s = delays(daemon.state, watched)
        daemon.stop()
    for what, phases in (("without", alone), ("with", watched)):
        pooled = [total_s for phase in phases for total_s in phase.totals_s]
        lasted_s, cpu_s = options.seconds * len(phases), sum(phase.cpu_s for phase in phases)
        print(
            f"{what:<8} {len(pooled) / lasted_s:.1f} results/s   p50 {cuts(pooled)[49] * 1e3:.1f} ms   p99 "
            f"{cuts(pooled)[98] * 1e3:.1f} ms   the daemon takes {cpu_s / lasted_s:.2f} cores"
        )
    ratio = statistics.median(many.p99_s / none.p99_s for none, many in zip(alone, watched, strict=True))
    print(f"p99 with viewers over without, median: {ratio:.2f}, target {TARGET:g} {'ok' if ratio <= TARGET else 'MISSED'}")
    fetched, refused, size, cpu_s = (
        sum(own.seen[what] for own in watched if own.seen is not None)
        for what in ("pictures", "refused", "picture_bytes", "cpu_s")
    )
    looked_s = (options.seconds + WARM_UP_S) * len(watched)
    print(
        f"viewers  {len(late_s) / looked_s:.0f} events/s   {fetched / looked_s:.0f} pictures/s "
        f"({size / looked_s / 1e3:.0f} kB/s), {refused} were no longer there   they take {cpu_s / looked_s:.2f} cores"
    )
    verdict = "ok" if cuts(late_s)[98] <= TARGET_S else "MISSED"
    print(
        f"verdict to a viewer: p50 {cuts(late_s)[49] * 1e3:.0f} ms   p99 {cuts(late_s)[98] * 1e3:.0f} ms, target "
        f"{TARGET_S * 1e3:g} ms {verdict}"
    )


if __name__ == "__main__":
    main()
