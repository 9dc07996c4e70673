"""What Grafana makes of a dashboard's file before it asks Prometheus: variables and ranges filled in."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.dashboards.prometheus import Prometheus

FOLDER = Path(__file__).parent.parent.parent / "config" / "grafana" / "dashboards"
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Target:
    """A panel's query as it stands in the file."""

    panel: str
    kind: str
    """The panel's type."""
    ref: str
    expression: str
    legend: str
    instant: bool
    min_step_s: float


@dataclass(frozen=True)
class Window:
    """The time that is shown, and how finely."""

    start_s: float
    end_s: float
    step_s: float
    rate_s: float
    """$__rate_interval."""


def load(name: str) -> dict[str, Any]:
    """A dashboard of config/grafana by its file's name without `.json`."""
    dashboard: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return dashboard


def targets(panel: dict[str, Any]) -> Iterator[Target]:
    """A panel's queries; none of a row."""
    interval = panel.get("interval") or "0s"
    for target in panel.get("targets", []):
        yield Target(
            panel["title"],
            panel["type"],
            target["refId"],
            target["expr"],
            target.get("legendFormat", ""),
            bool(target.get("instant")),
            float(interval[:-1]) * _UNITS[interval[-1]],
        )


def window(start_s: float, end_s: float, *, points: int, scrape_s: float, min_step_s: float = 0.0) -> Window:
    """As Grafana chooses it for a panel that is so many points wide."""
    step_s = max((end_s - start_s) / points, scrape_s, min_step_s)
    return Window(start_s, end_s, step_s, max(step_s + scrape_s, 4 * scrape_s))


def choose(dashboard: dict[str, Any], prometheus: Prometheus, start_s: float, end_s: float, **chosen: str) -> dict[str, str]:
    """Values of the variables: what was chosen, else all of it, else the first as Grafana takes it."""
    values: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        if variable["type"] == "datasource":
            continue
        if name in chosen:
            values[name] = chosen[name]
            continue
        found = _LABEL_VALUES.fullmatch(fill(variable["query"]["query"], values))
        if found is None:
            raise ValueError(f"${name} of {dashboard['title']} is no label_values(SELECTOR, LABEL)")
        series = prometheus.series(found["selector"], start_s, end_s)
        choices = sorted({labels[found["label"]] for labels in series if found["label"] in labels})
        if not choices:
            raise LookupError(f"nothing to choose for ${name} of {dashboard['title']}")
        every = "|".join(re.escape(choice).replace("\\", "\\\\") for choice in choices)
        values[name] = f"({every})" if variable.get("includeAll") else choices[0]
    return values


def fill(expression: str, values: Mapping[str, str], window: Window | None = None) -> str:
    """The expression that Prometheus gets."""
    if window is not None:
        expression = expression.replace("$__range", f"{window.end_s - window.start_s:.0f}s")
        expression = expression.replace("$__rate_interval", f"{round(window.rate_s * 1000)}ms")
    for name, value in values.items():
        expression = expression.replace(f"${name}", value)
    return expression


def ask(prometheus: Prometheus, target: Target, values: Mapping[str, str], window: Window) -> list[dict[str, Any]]:
    """Prometheus' answer to a panel's query, as instants or as a range."""
    expression = fill(target.expression, values, window)
    if target.instant:
        return prometheus.at(expression, window.end_s)
    return prometheus.over(expression, window.start_s, window.end_s, window.step_s)
