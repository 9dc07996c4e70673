"""`make grafana-pictures`: docs/grafana-*.png, previews of the dashboards without a Grafana server.

They are drawn by matplotlib from the files in config/grafana: the same places, titles, colours and words, and what a real
Prometheus answers to the same queries, over a made-up history. A real Grafana looks a little different.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from demo.dashboards import drawing, history, shown
from demo.dashboards.prometheus import Prometheus

WIDTH, CELL, GAP = 1500, 30, 8
"""Pixels: of the picture; height of a grid unit and space between panels, as in Grafana."""
DPI = 100
HEAD = 46
HOURS, SCRAPE_S = 6, 15
CHOSEN = {"line": {}, "station": {"station": "press-left"}, "fleet": {}}
COLOURS = 128
"""Of the palette of the file: small, and nobody sees the difference."""


def draw(name: str, prometheus: Prometheus, start_s: float, end_s: float) -> Figure:
    """A whole dashboard."""
    dashboard = shown.load(name)
    values = shown.choose(dashboard, prometheus, start_s, end_s, **CHOSEN[name])
    lowest = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    height = HEAD + lowest * (CELL + GAP)
    figure = plt.figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=drawing.BACKGROUND)
    every = {key: "All" if value.startswith("(") else value for key, value in values.items()}
    picked = "   ".join(f"{key}: {value}" for key, value in every.items())
    figure.text(12 / WIDTH, 1 - 16 / height, dashboard["title"], color=drawing.TEXT, fontsize=13, weight="bold", va="center")
    figure.text(12 / WIDTH, 1 - 35 / height, f"{picked}   last {HOURS} hours", color=drawing.FAINT, fontsize=8, va="center")
    label = "preview drawn by aprilcam's own script from the dashboard's file, with made-up history; not a Grafana screenshot"
    figure.text(1 - 12 / WIDTH, 1 - 16 / height, label, color=drawing.FAINT, fontsize=8, style="italic", ha="right", va="center")
    for panel in dashboard["panels"]:
        _draw_panel(figure, panel, height, values, prometheus, (start_s, end_s))
    return figure


def _draw_panel(
    figure: Figure,
    panel: dict[str, Any],
    height: float,
    values: dict[str, str],
    prometheus: Prometheus,
    span: tuple[float, float],
) -> None:
    place = panel["gridPos"]
    unit = WIDTH / 24
    x, y = place["x"] * unit + GAP / 2, HEAD + place["y"] * (CELL + GAP)
    w, h = place["w"] * unit - GAP, place["h"] * (CELL + GAP) - GAP
    box = drawing.Box(figure, x / WIDTH, 1 - (y + h) / height, w / WIDTH, h / height, w, h)
    if panel["type"] == "row":
        box.row(panel["title"])
        return
    box.frame(panel["title"])
    answers = []
    for target in shown.targets(panel):
        points = int(panel.get("maxDataPoints") or w)
        window = shown.window(*span, points=points, scrape_s=SCRAPE_S, min_step_s=target.min_step_s)
        answers.append((target, shown.ask(prometheus, target, values, window)))
    drawing.KINDS[panel["type"]](box, panel, answers, span)


def main(folder: Path) -> None:
    """All three."""
    mpl.use("Agg")
    plt.rcParams["font.family"] = "DejaVu Sans"
    end_s = float(int(time.time()) // 3600 * 3600)
    start_s = end_s - HOURS * 3600
    with tempfile.TemporaryDirectory(prefix="grafana-pictures-") as name:
        prometheus = Prometheus(Path(name), scrape_s=SCRAPE_S)
        history.fill_with(prometheus, history.plant(3, 4, end_s, SCRAPE_S, eventful=True), start_s - 600)
        try:
            prometheus.start()
            for board in CHOSEN:
                target = folder / f"grafana-{board}.png"
                figure = draw(board, prometheus, start_s, end_s)
                figure.savefig(target, dpi=DPI, facecolor=drawing.BACKGROUND)
                plt.close(figure)
                with Image.open(target) as picture:
                    small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                small.save(target, optimize=True)
                print(f"picture: {target}, {target.stat().st_size} bytes")
        finally:
            prometheus.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
