"""Panels as Grafana shows them, near enough, by matplotlib: what a panel's file says about a panel's answers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from demo.dashboards.shown import Target

Answers = list[tuple[Target, list[dict[str, Any]]]]
Draw = Callable[["Box", dict[str, Any], Answers, tuple[float, float]], None]

BACKGROUND, PANEL, LINE, TEXT, FAINT = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e8e96"
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2", "text": TEXT}
PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a")
ORANGES = LinearSegmentedColormap.from_list("oranges", ["#181b1f", "#7f2704", "#d94801", "#fd8d3c", "#fdd0a2"])
DASHES = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 2.5))}
LEGEND_PX = 24
"""Height of a legend's line."""


@dataclass(frozen=True)
class Box:
    """A panel's place in the picture, in shares of it and in pixels."""

    figure: Figure
    x: float
    y: float
    w: float
    h: float
    width: float
    height: float

    def row(self, title: str) -> None:
        """A heading."""
        self.figure.text(self.x, self.y + self.h / 2, f"⌄  {title}", color=TEXT, fontsize=10, va="center", weight="bold")

    def frame(self, title: str) -> None:
        """The panel's ground and its title."""
        ground = Rectangle(
            (self.x, self.y), self.w, self.h, facecolor=PANEL, edgecolor=LINE, transform=self.figure.transFigure, zorder=-1
        )
        self.figure.add_artist(ground)
        self.text(8, self.height - 16, title, size=8.5, weight="bold")

    def text(self, x_px: float, y_px: float, words: str, *, size: float = 8, color: str = TEXT, **style: Any) -> None:
        """Words at pixels from the lower left corner."""
        x, y = self.x + x_px / self.width * self.w, self.y + y_px / self.height * self.h
        self.figure.text(x, y, words, color=color, fontsize=size, va=style.pop("va", "center"), **style)

    def axes(self, left_px: float, bottom_px: float, right_px: float = 20, top_px: float = 34) -> Axes:
        """A plot within those margins."""
        inner = (self.width - left_px - right_px) / self.width * self.w, (self.height - bottom_px - top_px) / self.height * self.h
        where = (self.x + left_px / self.width * self.w, self.y + bottom_px / self.height * self.h, *inner)
        axes = self.figure.add_axes(where, facecolor=PANEL)
        axes.tick_params(colors=FAINT, labelsize=7, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def nothing(self, panel: dict[str, Any]) -> None:
        """Grafana's words for an empty panel."""
        words = panel["fieldConfig"]["defaults"]["noValue"]
        self.text(self.width / 2, self.height / 2, words, size=9, color=FAINT, ha="center")


def shown(value: float, unit: str, decimals: int | None) -> str:
    """A number in Grafana's unit."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.{1 if decimals is None else decimals}f} %"
    if unit == "s":
        for size, name in ((86400, "days"), (3600, "hours"), (60, "mins")):
            if abs(value) >= size:
                return f"{value / size:.1f} {name}"
        if abs(value) >= 1 or value == 0:
            return f"{value:.{1 if decimals is None else decimals}f} s"
        return f"{value * 1000:.{0 if abs(value) >= 0.01 or decimals == 0 else 1}f} ms"
    binary, plain = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")), ((1_000_000, " Mil"), (1000, " K"))
    for size, name in {"bytes": binary, "short": plain}.get(unit, ()):
        if abs(value) >= size:
            return f"{value / size:.1f}{name}"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"


def looks(value: float, field: dict[str, Any]) -> tuple[str, str]:
    """(words, colour) of a value by mappings, thresholds, unit and decimals."""
    for mapping in field.get("mappings") or []:
        if (result := mapping["options"].get(f"{value:g}")) is not None:
            return result["text"], NAMED[result["color"]]
    color = TEXT
    for step in (field.get("thresholds") or {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            color = NAMED[step["color"]]
    return shown(value, field.get("unit", "short"), field.get("decimals")), color


def label(target: Target, metric: dict[str, str]) -> str:
    """A legend filled in."""
    words = target.legend
    for key, value in metric.items():
        words = words.replace(f"{{{{{key}}}}}", value)
    return words


def _field(panel: dict[str, Any], name: str) -> dict[str, Any]:
    """The field's settings: the defaults, and what an override by its name says."""
    field = dict(panel["fieldConfig"]["defaults"])
    for override in panel["fieldConfig"].get("overrides") or []:
        if override["matcher"]["options"] == name:
            field.update({item["id"]: item["value"] for item in override["properties"]})
    return field


def _moments(seconds: Any) -> Any:
    """As matplotlib counts: days since 1970."""
    return np.asarray([float(second) / 86400 for second in seconds])


def _time_axis(axes: Axes, span: tuple[float, float]) -> None:
    axes.set_xlim(*_moments(span))
    hours = range(math.ceil(span[0] / 3600), int(span[1] // 3600) + 1)
    axes.set_xticks([hour / 24 for hour in hours], [f"{hour % 24:02d}:00" for hour in hours])


def _number(box: Box, panel: dict[str, Any], answers: Answers, _: tuple[float, float]) -> None:
    answer = answers[0][1]
    words, color = panel["fieldConfig"]["defaults"]["noValue"], FAINT
    if answer:
        words, color = looks(float(answer[0]["value"][1]), panel["fieldConfig"]["defaults"])
    size = min(20.0, 1.05 * box.width / max(4, len(words)))
    box.text(box.width / 2, (box.height - 24) / 2, words, size=size, color=color, weight="bold", ha="center")


def _curves(box: Box, panel: dict[str, Any], answers: Answers, span: tuple[float, float]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults.get("unit", "short"), defaults.get("custom", {})
    lines = [(label(target, series["metric"]), series["values"]) for target, answer in answers for series in answer]
    if not lines:
        box.nothing(panel)
        return
    words = [f"{name}   Last: {shown(float(values[-1][1]), unit, None)}" for name, values in lines]
    columns = int(min(len(lines), max(1, box.width // (46 + 5.4 * max(len(text) for text in words)))))
    axes = box.axes(56, 26 + LEGEND_PX + 15 * (math.ceil(len(lines) / columns) - 1))
    step_s = min((b[0] - a[0] for _, values in lines for a, b in pairwise(values)), default=0)
    top = float(custom.get("axisSoftMax") or 0)
    for index, (name, values) in enumerate(lines):
        field = _field(panel, name)
        times: list[float] = []
        numbers: list[float] = []
        for time_s, text in values:
            if times and time_s - times[-1] > 1.5 * step_s:
                times.append(time_s - step_s / 2)
                numbers.append(math.nan)
            times.append(time_s)
            numbers.append(float(text))
        color = NAMED[field["color"]["fixedColor"]] if "fixedColor" in field["color"] else PALETTE[index % len(PALETTE)]
        style = DASHES[field.get("custom.lineStyle", {"fill": "solid"})["fill"]]
        axes.plot(_moments(times), numbers, color=color, linewidth=1.3, linestyle=style, label=words[index])
        top = max(top, *(number for number in numbers if math.isfinite(number)), 1e-9)
    if (custom.get("thresholdsStyle") or {}).get("mode") == "dashed":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None and step["value"] <= top * 1.1:
                axes.axhline(step["value"], color=NAMED[step["color"]], linewidth=0.9, linestyle=(0, (6, 4)))
    axes.set_ylim(0, top * 1.08)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_yticks(_ticks(top * 1.08, unit))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit, None) if value or unit != "s" else "0 s")
    _time_axis(axes, span)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(box.x + 4 / box.width * box.w, box.y),
        ncols=columns,
        bbox_transform=box.figure.transFigure,
        frameon=False,
        fontsize=7,
        labelcolor=TEXT,
        handlelength=2.2,
        columnspacing=1.2,
    )


def _ticks(top: float, unit: str) -> list[float]:
    """Round ones in the size in which they are written."""
    sizes = {"bytes": (2**30, 2**20, 2**10), "s": (86400, 3600, 60)}.get(unit, ())
    size = next((size for size in sizes if top >= size), 1)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top / size)
    return [float(tick) * size for tick in ticks if tick * size <= top]


def _buckets(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(answer, key=lambda series: float(series["metric"]["le"].replace("+Inf", "inf")))


def _heat(box: Box, panel: dict[str, Any], answers: Answers, span: tuple[float, float]) -> None:
    rows = _buckets(answers[0][1])
    times = sorted({time_s for row in rows for time_s, _ in row["values"]})
    if not rows or len(times) < 2:
        box.nothing(panel)
        return
    below = np.zeros((len(rows), len(times)))
    column = {time_s: index for index, time_s in enumerate(times)}
    for index, row in enumerate(rows):
        for time_s, text in row["values"]:
            below[index, column[time_s]] = float(text)
    counts = np.clip(np.diff(below, axis=0, prepend=0.0), 0, None)
    used = np.flatnonzero(counts.sum(axis=1) > 0)
    low, high = (max(0, used[0] - 1), min(len(rows), used[-1] + 2)) if len(used) else (0, len(rows))
    axes = box.axes(56, 22)
    edges = np.arange(low, high + 1)
    step_s = times[1] - times[0]
    grid = _moments([*times, times[-1] + step_s])
    norm = PowerNorm(0.5, 0, max(1.0, float(counts.max())))
    axes.pcolormesh(grid, edges, counts[low:high], cmap=ORANGES, norm=norm, rasterized=True)
    unit = panel["options"]["yAxis"]["unit"]
    names = [row["metric"]["le"] for row in rows]
    ticks = [index for index in range(low, high) if (index - low) % max(1, (high - low) // 7) == 0]
    labels = ["+Inf" if names[index] == "+Inf" else shown(float(names[index]), unit, None) for index in ticks]
    axes.set_yticks([index + 0.5 for index in ticks], labels)
    _time_axis(axes, span)


def _bars(box: Box, panel: dict[str, Any], answers: Answers, _: tuple[float, float]) -> None:
    target, answer = answers[0]
    defaults = panel["fieldConfig"]["defaults"]
    pairs = [(label(target, series["metric"]), float(series["value"][1])) for series in answer]
    if answer and "le" in answer[0]["metric"]:
        rows = _buckets(answer)
        below = [0.0, *(float(row["value"][1]) for row in rows)]
        pairs = [(label(target, row["metric"]), below[index + 1] - below[index]) for index, row in enumerate(rows)]
    if not pairs:
        box.nothing(panel)
        return
    longest = max(len(name) for name, _ in pairs)
    left, pitch = 16 + 5.6 * longest, (box.height - 44) / len(pairs)
    most = max(value for _, value in pairs) or 1.0
    axes = box.axes(left, 10, 60)
    for index, (name, value) in enumerate(pairs):
        words, color = looks(value, defaults)
        axes.barh(index, value, height=0.75, color=color)
        y = box.height - 34 - pitch * (index + 0.5)
        box.text(left - 6, y, name, size=7.5, ha="right")
        box.text(left + (box.width - left - 72) * value / most + 6, y, words, size=7.5, color=color)
    axes.set_xlim(0, most * 1.05)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])


def _timeline(box: Box, panel: dict[str, Any], answers: Answers, span: tuple[float, float]) -> None:
    target, answer = answers[0]
    if not answer:
        box.nothing(panel)
        return
    longest = max(len(label(target, series["metric"])) for series in answer)
    axes = box.axes(16 + 5.6 * longest, 22 + LEGEND_PX)
    field = panel["fieldConfig"]["defaults"]
    for index, series in enumerate(answer):
        values = [(time_s, float(text)) for time_s, text in series["values"]]
        step_s = min((b[0] - a[0] for a, b in pairwise(values)), default=15.0)
        start = 0
        for end in range(1, len(values) + 1):
            stop = end == len(values) or values[end][1] != values[start][1] or values[end][0] - values[end - 1][0] > 1.5 * step_s
            if not stop:
                continue
            words, color = looks(values[start][1], field)
            left, right = _moments([values[start][0], values[end - 1][0] + step_s])
            axes.barh(index, right - left, left=left, height=0.85, color=color)
            if (right - left) * 86400 / (span[1] - span[0]) * box.width > 6.2 * len(words):
                axes.text((left + right) / 2, index, words, ha="center", va="center", fontsize=7.5, color="#111217")
            start = end
    names = [label(target, series["metric"]) for series in answer]
    axes.set_yticks(range(len(answer)), names)
    axes.set_ylim(len(answer) - 0.5, -0.5)
    _time_axis(axes, span)
    known = {series_value for series in answer for _, series_value in series["values"]}
    x_px = 12.0
    for text in sorted(known, key=float):
        words, color = looks(float(text), field)
        box.text(x_px, 12, f"■ {words}", size=7.5, color=color)
        x_px += 26 + 6.2 * len(words)


def _rows(box: Box, panel: dict[str, Any], answers: Answers, _: tuple[float, float]) -> None:
    organize = next(item["options"] for item in panel["transformations"] if item["id"] == "organize")
    order = sorted(organize["renameByName"], key=organize["indexByName"].__getitem__)
    names: dict[str, str] = {name: organize["renameByName"][name] for name in order}
    keys = [name for name in names if not name.startswith("Value #")]
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    for target, answer in answers:
        for series in answer:
            row = cells.setdefault(tuple(series["metric"].get(key, "") for key in keys), {})
            row[f"Value #{target.ref}"] = float(series["value"][1])
    if not cells:
        box.nothing(panel)
        return
    columns = list(names)
    wide = [2.0 if index < len(keys) or "state" in names[name] else 1.15 for index, name in enumerate(columns)]
    lefts = [10 + (box.width - 20) * sum(wide[:index]) / sum(wide) for index in range(len(columns))]
    for name, left in zip(columns, lefts, strict=True):
        box.text(left, box.height - 46, names[name], size=8, color=NAMED["blue"], weight="bold")
    for line, (labels, row) in enumerate(sorted(cells.items())):
        y = box.height - 76 - 30 * line
        for index, (name, left) in enumerate(zip(columns, lefts, strict=True)):
            words, color = "", TEXT
            if index < len(keys):
                words = labels[index]
            elif name in row:
                words, color = looks(row[name], _field(panel, names[name]))
            box.text(left, y, words, size=8, color=color)


KINDS: dict[str, Draw] = {
    "stat": _number,
    "timeseries": _curves,
    "heatmap": _heat,
    "bargauge": _bars,
    "state-timeline": _timeline,
    "table": _rows,
}
