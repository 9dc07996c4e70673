"""config/grafana against a real Prometheus that scrapes a real daemon: every query is taken, and every panel shows something."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import promql_parser
import pytest
import yaml

from demo.dashboards import history, queries, shown
from demo.dashboards.__main__ import assemble
from demo.dashboards.prometheus import Prometheus
from demo.dashboards.shown import Target, Window
from tests.broker import wait_for
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station
from tests.system.test_triggers import TRIGGERED

MAY_BE_EMPTY = {
    "aprilcam_device_memory_bytes": "there is no GPU here",
    "aprilcam_score_drift_psi": "it needs hundreds of parts",
    "aprilcam_exposure_drift": "it needs some minutes of frames",
    "aprilcam_camera_packets_resent_total": "the cameras have no wire",
}
"""Told by daemons, not always by the one of this test, and why."""
NAMES = ("line", "station", "fleet")
SCRAPE_S, RATE_S, RANGE_S = 0.5, 3.0, 20.0
LOOPED = 12
IDLE_SHOWS = {
    "State",
    "Parts",
    "Threshold",
    "Threshold is",
    "Bank",
    "Parts a minute, by verdict",
    "Camera",
    "Frames a minute, by what became of them",
}
"""Panels of the station's dashboard that must tell something of a station that never had a part."""


def panels_of(name: str) -> list[dict[str, Any]]:
    return [panel for panel in shown.load(name)["panels"] if panel["type"] != "row"]


def targets_of(name: str) -> list[Target]:
    return [target for panel in panels_of(name) for target in shown.targets(panel)]


def metrics_of(expression: str) -> set[str]:
    """By another reader of PromQL than Prometheus."""
    names: set[str] = set()

    def note(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(str(node.name))
        return True

    promql_parser.walk(promql_parser.parse(expression), note)
    return names


@dataclass(frozen=True)
class Plant:
    """What the tests look at, all through one daemon's life."""

    line: Line
    prometheus: Prometheus
    scraped: set[str]
    """Names of the samples that the daemon told."""
    window: Window

    @property
    def instance(self) -> str:
        return f"127.0.0.1:{self.line.daemon.http_port}"

    def answers(self, name: str, **chosen: str) -> Iterator[tuple[Target, list[dict[str, Any]]]]:
        """Each query of a dashboard with what Prometheus says."""
        start_s, end_s = self.window.start_s, self.window.end_s
        values = shown.choose(shown.load(name), self.prometheus, start_s, end_s, instance=self.instance, **chosen)
        for target in targets_of(name):
            yield target, shown.ask(self.prometheus, target, values, self.window)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Passes, fails and unknowns at one station; another waits for a trigger that nobody gives."""
    folder = tmp_path_factory.mktemp("plant")
    write_parts(folder / "looped", range(LOOPED - 3))
    write_parts(folder / "looped", range(LOOPED - 3, LOOPED - 1), scratched=True, start=LOOPED - 3)
    (folder / "looped" / f"{LOOPED - 1:04d}.png").write_bytes(b"no picture")
    write_parts(folder / "parts", range(1))
    manual = TRIGGERED.format(extra="").replace("press", "manual")
    line = Line(folder, folder_station("press", folder / "looped") + manual)
    prometheus = Prometheus(folder, [f"127.0.0.1:{line.daemon.http_port}"], scrape_s=SCRAPE_S)
    try:
        prometheus.start()
        line.daemon.start()
        wait_for(lambda: line.daemon.get("/readyz")[0] == 200, "readiness", 60)
        line.wait_results("press", LOOPED)
        seen = 'sum(rate(aprilcam_results_total{station="press"}[3s])) and sum(aprilcam_results_total{verdict="unknown"}) > 2'
        wait_for(lambda: bool(prometheus.at(seen, time.time())), "two rounds to be scraped", 30)
        time.sleep(2 * RATE_S)  # so that a window of rates lies wholly in it
        end_s = time.time()
        text = line.daemon.get("/metrics")[1]
        scraped = {part.split("{")[0].split(" ")[0] for part in text.splitlines() if not part.startswith("#")}
        yield Plant(line, prometheus, scraped, Window(end_s - RANGE_S, end_s, 1.0, RATE_S))
    finally:
        line.close()
        prometheus.close()


def shows(answer: list[dict[str, Any]]) -> bool:
    """Whether a panel has a number to show."""
    return any(math.isfinite(float(value)) for series in answer for _, value in series.get("values") or [series["value"]])


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_file_is_what_the_script_builds(name: str) -> None:
    committed = (shown.FOLDER / f"{name}.json").read_text()
    assert assemble()[f"{name}.json"] == committed, "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_a_description_units_and_words_for_nothing_and_lies_beside_the_others(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    dashboard = shown.load(name)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
        if panel["type"] == "row":
            continue
        title, defaults = panel["title"], panel["fieldConfig"]["defaults"]
        assert panel["description"].endswith("."), title
        assert defaults["noValue"], title
        assert panel["datasource"]["uid"] == "${datasource}", title
        assert panel["targets"], title
        mapped = "mappings" in defaults
        units = {value for key, value in defaults.items() if key == "unit"}
        if panel["type"] == "heatmap":
            units = {panel["options"]["yAxis"]["unit"]}
        if panel["type"] == "table":
            columns = [field for field in panel["fieldConfig"]["overrides"] if field["properties"][0]["id"] == "unit"]
            assert len(columns) == len(panel["targets"]), title
            mapped = True
        assert mapped or units, title
        for target in panel["targets"]:
            assert panel["type"] == "table" or target["legendFormat"], title


@pytest.mark.parametrize("name", NAMES)
def test_another_reader_of_promql_takes_every_expression(name: str) -> None:
    window = Window(0.0, RANGE_S, 1.0, RATE_S)
    values = {"instance": "a:1", "station": "press", "recipe": "disc"}
    for target in targets_of(name):
        expression = shown.fill(target.expression, values, window)
        assert "$" not in expression, target
        names = metrics_of(expression)
        assert names, target
        assert all(metric.startswith(("aprilcam_", "process_")) or metric == "up" for metric in names), target


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_taken_and_none_is_empty(name: str, plant: Plant) -> None:
    chosen = {"station": "press"} if name == "station" else {}
    empty, asked = [], 0
    for target, answer in plant.answers(name, **chosen):
        metrics = metrics_of(shown.fill(target.expression, {"instance": "i", "station": "s", "recipe": "r"}, plant.window))
        asked += 1
        if not shows(answer) and not metrics & MAY_BE_EMPTY.keys():
            empty.append(f"{target.panel} ({target.ref}): {target.expression}")
    assert asked == len(targets_of(name))
    assert not empty, "\n".join(empty)


def test_the_figures_are_those_of_the_parts(plant: Plant) -> None:
    figures = {
        target.panel: float(answer[0]["value"][1])
        for target, answer in plant.answers("station", station="press")
        if target.kind == "stat" and answer
    }
    assert figures["State"] == queries.INSPECTING
    assert figures["Failed"] == pytest.approx(2 / LOOPED, abs=0.06)
    assert figures["Unknown"] == pytest.approx(1 / LOOPED, abs=0.05)
    assert figures["Newest part"] < 5
    scores = {target.panel: answer for target, answer in plant.answers("station", station="press") if target.kind == "bargauge"}
    counted = max(float(series["value"][1]) for series in scores["Scores in all the time shown"])
    assert counted == pytest.approx(figures["Parts"] * (LOOPED - 1) / LOOPED, rel=0.1)


def test_a_station_that_never_had_a_part_is_told_as_idle(plant: Plant) -> None:
    told = {target.panel for target, answer in plant.answers("station", station="manual") if shows(answer)}
    assert told >= IDLE_SHOWS
    [state] = [answer for target, answer in plant.answers("station", station="manual") if target.panel == "State"]
    assert float(state[0]["value"][1]) == queries.IDLE
    table = {target.ref: answer for target, answer in plant.answers("line") if target.panel == "Stations"}
    assert {row["metric"]["station"]: float(row["value"][1]) for row in table["A"]} == {
        "press": queries.INSPECTING,
        "manual": queries.IDLE,
    }


def test_the_history_for_pictures_and_measurements_has_the_daemons_own_series(plant: Plant) -> None:
    [made] = history.plant(1, 1, 1e9, 15, eventful=False)
    times = np.arange(1e9 - 60, 1e9, 15.0)
    names = {text.split("{")[0] for text in made.text(times)} - {"up"}
    assert names - plant.scraped <= MAY_BE_EMPTY.keys()
    for expression in (target.expression for name in NAMES for target in targets_of(name)):
        asked = metrics_of(shown.fill(expression, {"instance": "i", "station": "s", "recipe": "r"}, plant.window))
        assert asked - names <= {"up"}, expression


def test_provisioning_names_the_folder_and_the_data_source() -> None:
    folder = shown.FOLDER.parent / "provisioning"
    provider = yaml.safe_load((folder / "dashboards" / "aprilcam.yaml").read_text())["providers"][0]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards/aprilcam")
    source = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    kinds = [variable["query"] for name in NAMES for variable in shown.load(name)["templating"]["list"][:1]]
    assert kinds == [source["type"]] * len(NAMES)
    ids = [json.loads((shown.FOLDER / f"{name}.json").read_text())["uid"] for name in NAMES]
    assert ids == [f"aprilcam-{name}" for name in NAMES]


def test_a_daemon_that_is_gone_is_seen(plant: Plant) -> None:
    """The last: it ends the daemon."""
    plant.line.daemon.end()
    gone = queries.daemon_state(f'instance="{plant.instance}"')

    def state() -> list[float]:
        return [float(series["value"][1]) for series in plant.prometheus.at(gone, time.time())]

    wait_for(lambda: state() == [queries.GONE], "the daemon to be missed", 15)
    now_s = time.time()
    later = Window(now_s - RANGE_S, now_s, 1.0, RATE_S)
    values = shown.choose(shown.load("fleet"), plant.prometheus, later.start_s, later.end_s)
    [trouble] = [target for target in targets_of("fleet") if target.panel == "Daemons in trouble"]
    assert float(shown.ask(plant.prometheus, trouble, values, later)[0]["value"][1]) == 1
