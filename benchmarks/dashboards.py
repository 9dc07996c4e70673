"""What the Grafana dashboards cost a Prometheus that holds a week of a plant: seconds for each query, over a day and a week.

    python -m benchmarks.dashboards [--daemons 4] [--stations 8] [--days 7] [--step 30] [--repeats 3]

Prometheus is real, with blocks as promtool makes them (two hours each, not compacted: the dear case); the history is made up, in
two shifts a day, and has the families that the dashboards ask for. Each query is asked as Grafana asks it for a screen that is
1,500 pixels wide, `--repeats` times, and its median counts. Target: no query over PANEL_S, no dashboard over BOARD_S if Grafana
asks one query after the other.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from demo.dashboards import history, shown
from demo.dashboards.prometheus import Prometheus

PANEL_S, BOARD_S = 2.0, 10.0
WIDTH = 1500
BOARDS = ("line", "station", "fleet")


def measure(prometheus: Prometheus, name: str, days: float, end_s: float, step_s: int, repeats: int) -> list[tuple[float, str]]:
    """(median seconds, panel and query) of every query of a dashboard."""
    start_s = end_s - days * 86400
    dashboard = shown.load(name)
    values = shown.choose(dashboard, prometheus, start_s, end_s)
    costs = []
    for panel in dashboard["panels"]:
        for target in shown.targets(panel):
            points = int(panel.get("maxDataPoints") or WIDTH * panel["gridPos"]["w"] / 24)
            window = shown.window(start_s, end_s, points=points, scrape_s=step_s, min_step_s=target.min_step_s)
            times = []
            for _ in range(repeats):
                begun_s = time.perf_counter()
                shown.ask(prometheus, target, values, window)
                times.append(time.perf_counter() - begun_s)
            costs.append((statistics.median(times), f"{target.panel} ({target.ref})"))
    return costs


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemons", type=int, default=4)
    parser.add_argument("--stations", type=int, default=8, help="of each daemon")
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--step", type=int, default=30, help="scrape interval in seconds")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    end_s = float(int(time.time()) // 3600 * 3600)
    with tempfile.TemporaryDirectory(prefix="bench-dashboards-") as folder:
        prometheus = Prometheus(Path(folder), scrape_s=options.step)
        begun_s = time.perf_counter()
        plant = history.plant(options.daemons, options.stations, end_s, options.step, eventful=False)
        samples = history.fill_with(prometheus, plant, end_s - options.days * 86400)
        size = sum(path.stat().st_size for path in prometheus.data.rglob("*") if path.is_file())
        made_s = time.perf_counter() - begun_s
        print(f"{options.daemons} daemons with {options.stations} stations, {options.days:g} days each {options.step} s")
        print(f"{samples:,} samples, {size / 2**20:.0f} MiB, made in {made_s:.0f} s\n")
        missed = []
        try:
            prometheus.start()
            print(f"{'dashboard':10} {'shown':>6} {'queries':>7} {'median s':>9} {'sum s':>7} {'worst s':>8}  worst")
            for days in sorted({min(1.0, options.days), options.days}):
                for name in BOARDS:
                    costs = measure(prometheus, name, days, end_s, options.step, options.repeats)
                    seconds = [cost for cost, _ in costs]
                    worst_s, worst = max(costs)
                    figures = f"{statistics.median(seconds):9.3f} {sum(seconds):7.2f} {worst_s:8.3f}"
                    print(f"{name:10} {days:4g} d {len(costs):7d} {figures}  {worst}", flush=True)
                    missed += [f"{name} over {days:g} d: {what} takes {cost:.1f} s" for cost, what in costs if cost > PANEL_S]
                    missed += [f"{name} over {days:g} d takes {sum(seconds):.1f} s"] if sum(seconds) > BOARD_S else []
        finally:
            prometheus.close()
    print("\n" + ("\n".join(missed) if missed else f"target: each query <= {PANEL_S} s, each dashboard <= {BOARD_S} s: met"))


if __name__ == "__main__":
    main()
