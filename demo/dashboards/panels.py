"""The kinds of panels that the dashboards are made of. Each has a description, a unit, and words for when there is nothing."""

from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models import common as shown
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from demo.dashboards import queries

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GOOD, WARN, BAD, CALM = "green", "orange", "red", "blue"

Steps = list[tuple[float | None, str]]
"""(from which value on, colour); the first from None."""
Words = dict[int, tuple[str, str]]
"""What a number means: (text, colour)."""

NEUTRAL: Steps = [(None, "text")]
FAILS: Steps = [(None, GOOD), (0.1, WARN), (0.25, BAD)]
UNKNOWNS: Steps = [(None, GOOD), (0.001, WARN), (0.02, BAD)]
DELAYS: Steps = [(None, GOOD), (60, WARN), (300, BAD)]
DRIFTS: Steps = [(None, GOOD), (0.1, WARN), (0.25, BAD)]
STATES: Words = {
    queries.AWAY: ("✘ camera away", BAD),
    queries.UNTAUGHT: ("▲ not taught", WARN),
    queries.IDLE: ("… idle", CALM),
    queries.INSPECTING: ("✔ inspecting", GOOD),
}
DAEMONS: Words = {
    queries.GONE: ("✘ no answer", BAD),
    queries.NO_BROKER: ("▲ no broker", WARN),
    queries.RUNNING: ("✔ running", GOOD),
}
CONNECTED: Words = {0: ("✘ away", BAD), 1: ("✔ connected", GOOD)}
STALE: Words = {0: ("✔ of this bank", GOOD), 1: ("▲ of another bank", WARN)}
NO_PARTS = "no parts in this time"

STYLES = {"pass": (GOOD, "solid", [0.0]), "fail": (BAD, "dash", [10.0, 6.0]), "unknown": (WARN, "dot", [2.0, 5.0])}
THRESHOLD = {"threshold": (BAD, "dash", [10.0, 6.0])}
"""Colour, and a kind of line that tells the same without colour."""

Panel = stat.Panel | timeseries.Panel | heatmap.Panel | statetimeline.Panel | table.Panel | bargauge.Panel
P = TypeVar("P", stat.Panel, timeseries.Panel, heatmap.Panel, statetimeline.Panel, table.Panel, bargauge.Panel)


@dataclass(frozen=True)
class Column:
    """Of a table: one query that gives one number for each row."""

    title: str
    expression: str
    unit: str = "short"
    decimals: int | None = None
    words: Words | None = None
    steps: Steps | None = None
    """Colours of the numbers, which stand there as well."""


def _steps(steps: Steps) -> dashboards.ThresholdsConfig:
    absolute = dashboards.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE)
    return absolute.steps([model.Threshold(value=value, color=color) for value, color in steps])


def _words(words: Words) -> list[model.ValueMapping]:
    results = {
        str(number): model.ValueMappingResult(text=text, color=color, index=index)
        for index, (number, (text, color)) in enumerate(words.items())
    }
    return [model.ValueMap(options=results)]


def _query(ref: str, expression: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref).expr(expression).legend_format(legend).datasource(DATASOURCE)


def _framed(panel: P, title: str, description: str, size: tuple[int, int], no_value: str) -> P:
    """size: width of 24, height."""
    framed = panel.title(title).description(description).datasource(DATASOURCE)
    return framed.span(size[0]).height(size[1]).no_value(no_value)


def number(
    title: str,
    description: str,
    expression: str,
    unit: str = "short",
    *,
    words: Words | None = None,
    steps: Steps = NEUTRAL,
    decimals: int | None = None,
    no_value: str,
    size: tuple[int, int] = (3, 4),
) -> stat.Panel:
    """One number, as it is at the end of the time that is shown."""
    panel = _framed(stat.Panel(), title, description, size, no_value).unit(unit).thresholds(_steps(steps))
    panel = panel.color_scheme(dashboards.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    panel = panel.graph_mode(shown.BigValueGraphMode.NONE).color_mode(shown.BigValueColorMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if words is not None:
        panel = panel.mappings(_words(words))
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.with_target(_query("A", expression, title).instant())


def curves(
    title: str,
    description: str,
    lines: list[tuple[str, str]],
    unit: str = "short",
    *,
    no_value: str,
    styles: dict[str, tuple[str, str, list[float]]] | None = None,
    steps: Steps | None = None,
    most: float | None = None,
    min_step: str | None = None,
    size: tuple[int, int] = (12, 8),
) -> timeseries.Panel:
    """lines: (expression, legend). most: where the axis ends at the least. steps: drawn as dashed lines across."""
    panel = _framed(timeseries.Panel(), title, description, size, no_value).unit(unit).min(0)
    panel = panel.line_width(2).fill_opacity(0).show_points(shown.VisibilityMode.AUTO).span_nulls(span_nulls=False)
    legend = common.VizLegendOptions().display_mode(shown.LegendDisplayMode.LIST).placement(shown.LegendPlacement.BOTTOM)
    panel = panel.legend(legend.show_legend(show_legend=True).calcs(["lastNotNull"]))
    panel = panel.tooltip(common.VizTooltipOptions().mode(shown.TooltipDisplayMode.MULTI).sort(shown.SortOrder.DESCENDING))
    panel = panel.color_scheme(dashboards.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    if steps is not None:
        panel = panel.thresholds(_steps(steps))
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(shown.GraphTresholdsStyleMode.DASHED))
    if most is not None:
        panel = panel.axis_soft_max(most)
    if min_step is not None:
        panel = panel.interval(min_step)
    for name, (color, fill, dash) in (styles or {}).items():
        line = {"fill": fill} if fill == "solid" else {"fill": fill, "dash": dash}
        panel = panel.override_by_name(
            name,
            [
                model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color}),
                model.DynamicConfigValue(id_val="custom.lineStyle", value=line),
            ],
        )
    for index, (expression, label) in enumerate(lines):
        panel = panel.with_target(_query("ABCDEFGH"[index], expression, label).range())
    return panel


def heat(
    title: str, description: str, buckets: str, unit: str, *, no_value: str, size: tuple[int, int] = (8, 8)
) -> heatmap.Panel:
    """buckets: an expression with the label `le`. How many fell where, over time."""
    panel = _framed(heatmap.Panel(), title, description, size, no_value)
    panel = panel.calculate(calculate=False).show_legend().cell_gap(1).show_tooltip()
    scheme = heatmap.HeatmapColorOptions().mode(heat_model.HeatmapColorMode.SCHEME).scheme("Oranges").steps(32)
    panel = panel.color(scheme.scale(heat_model.HeatmapColorScale.EXPONENTIAL).exponent(0.5))
    panel = panel.y_axis(heatmap.YAxisConfig().unit(unit)).filter_values(heatmap.FilterValueRange().le(1e-9))
    panel = panel.cell_values(heatmap.CellValues().unit("short").decimals(0)).max_data_points(120)
    return panel.with_target(_query("A", buckets, "{{le}}").range().format(PromQueryFormat.HEATMAP))


def distribution(title: str, description: str, buckets: str, *, no_value: str, size: tuple[int, int]) -> bargauge.Panel:
    """buckets: an expression with the label `le`. How many fell where in all the time that is shown. The legend is the bare
    number: Grafana sorts by it."""
    panel = _framed(bargauge.Panel(), title, description, size, no_value).unit("short").decimals(0).min(0)
    panel = panel.orientation(shown.VizOrientation.HORIZONTAL).display_mode(shown.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).min_viz_height(8)
    panel = panel.thresholds(_steps([(None, CALM)])).show_unfilled(show_unfilled=False)
    return panel.with_target(_query("A", buckets, "{{le}}").instant().format(PromQueryFormat.HEATMAP))


def ranking(
    title: str,
    description: str,
    expression: str,
    legend: str,
    unit: str,
    *,
    decimals: int,
    steps: Steps,
    no_value: str,
    size: tuple[int, int],
) -> bargauge.Panel:
    """The foremost few, as bars with their numbers."""
    panel = (
        _framed(bargauge.Panel(), title, description, size, no_value)
        .unit(unit)
        .decimals(decimals)
        .min(0)
        .thresholds(_steps(steps))
    )
    panel = panel.orientation(shown.VizOrientation.HORIZONTAL).display_mode(shown.BarGaugeDisplayMode.BASIC)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).show_unfilled(show_unfilled=False)
    return panel.with_target(_query("A", expression, legend).instant())


def timeline(
    title: str, description: str, expression: str, legend: str, words: Words, *, no_value: str, size: tuple[int, int] = (12, 8)
) -> statetimeline.Panel:
    """What each was, as bands with words on them. A gap: nobody knows, the daemon did not answer."""
    panel = _framed(statetimeline.Panel(), title, description, size, no_value).mappings(_words(words))
    panel = panel.show_value(shown.VisibilityMode.AUTO).merge_values(merge_values=True).row_height(0.85)
    legend_shown = common.VizLegendOptions().display_mode(shown.LegendDisplayMode.LIST).placement(shown.LegendPlacement.BOTTOM)
    panel = panel.legend(legend_shown.show_legend(show_legend=True)).thresholds(_steps([(None, "text")]))
    return panel.with_target(_query("A", expression, legend).range())


def rows(
    title: str,
    description: str,
    labels: dict[str, str],
    columns: list[Column],
    *,
    no_value: str,
    links: dict[str, str],
    size: tuple[int, int] = (12, 8),
) -> table.Panel:
    """labels: (label, heading) of what the columns' expressions keep. links: where a click on a heading's cells leads."""
    panel = _framed(table.Panel(), title, description, size, no_value)
    names: dict[str, str] = dict(labels)
    for index, column in enumerate(columns):
        ref = "ABCDEFGHIJKL"[index]
        names[f"Value #{ref}"] = column.title
        panel = panel.with_target(_query(ref, column.expression).instant().format(PromQueryFormat.TABLE))
        properties = [model.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.decimals is not None:
            properties.append(model.DynamicConfigValue(id_val="decimals", value=column.decimals))
        if column.words is not None:
            properties.append(model.DynamicConfigValue(id_val="mappings", value=_words(column.words)))
        if column.words is not None or column.steps is not None:
            properties.append(model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
            properties.append(model.DynamicConfigValue(id_val="thresholds", value=_steps(column.steps or NEUTRAL).build()))
        panel = panel.override_by_name(column.title, properties)
    for heading, url in links.items():
        link = {"title": "show it", "url": url}
        panel = panel.override_by_name(heading, [model.DynamicConfigValue(id_val="links", value=[link])])
    order = {name: index for index, name in enumerate(names)}
    organized = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=organized))
