"""config/prometheus: each alert comes after its fault, when docs/runbook.md says, alone; none of a healthy line, at work or idle.

promtool plays the series and evaluates the rules, every 15 s, as config/prometheus/prometheus.yml has it.
"""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.metrics_document import declared

ROOT = Path(__file__).parent.parent
RULES = ROOT / "config" / "prometheus" / "aprilcam.rules.yaml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
STEP_S = 15
MINUTE, HOUR, DAY = 60, 3_600, 86_400
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}


def hold(value: float, time_s: float) -> str:
    """The value for so long, in promtool's notation."""
    return f"{value}x{round(time_s / STEP_S) - 1}"


def ramp(start: float, a_second: float, time_s: float) -> str:
    """From there on it grows."""
    return f"{start}+{a_second * STEP_S}x{round(time_s / STEP_S) - 1}"


@dataclass(frozen=True)
class Fault:
    """at_s: the first scrape that shows it. until_s: end of the play. labels: of the alert, beside severity and daemon."""

    alert: str
    at_s: int
    until_s: int
    series: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)


AT, END = 10 * MINUTE, 40 * MINUTE
PRESS = {"station": "press"}
DISC = {"recipe": "disc"}


def turns(before: float, after: float) -> str:
    return f"{hold(before, AT)} {hold(after, END - AT)}"


def parts(verdict: str, reason: str = "") -> str:
    return f'aprilcam_results_total{{station="press",recipe="disc",verdict="{verdict}",reason="{reason}"}}'


STEPS = " ".join([hold(0, AT), *(hold(count, MINUTE) for count in range(1, 10)), hold(10, END - AT - 9 * MINUTE)])
STARTS = " ".join([hold(1, AT), *(hold(count, 5 * MINUTE) for count in range(2, 5)), hold(5, END - AT - 15 * MINUTE)])
GROWING = f"{hold(0, AT)} {ramp(0, 1, END - AT)}"
FAULTS = [
    Fault("AprilcamDown", AT, END, {"up": turns(1, 0)}),
    Fault("AprilcamRestarts", AT, END, {"process_start_time_seconds": STARTS}),
    Fault(
        "AprilcamMemoryGrowth",
        8 * HOUR,
        20 * HOUR,
        {
            "process_resident_memory_bytes": f"{hold(1e9, 8 * HOUR)} {ramp(1e9, 1e8 / HOUR, 12 * HOUR)}",
            "process_start_time_seconds": hold(0, 20 * HOUR),
        },
    ),
    Fault("AprilcamLedgerFailing", AT, END, {"aprilcam_ledger_failing": turns(0, 1)}),
    Fault("AprilcamArchiveFull", AT, END, {"aprilcam_archive_failing": turns(0, 1)}),
    Fault("AprilcamBrokerAway", AT, END, {"aprilcam_mqtt_connected": turns(1, 0)}),
    Fault("AprilcamOutboxOld", AT, END, {"aprilcam_outbox_oldest_age_seconds": GROWING}),
    Fault(
        "AprilcamMessagesLost",
        AT,
        AT + 5 * MINUTE,
        {'aprilcam_messages_lost_total{what="result",reason="outbox_full"}': turns(0, 1)},
        {"what": "result", "reason": "outbox_full"},
    ),
    Fault(
        "AprilcamCertificateExpires",
        AT,
        END,
        {"aprilcam_mqtt_certificate_expiry_timestamp_seconds": hold(AT + 14 * DAY - 1, END)},
    ),
    Fault("AprilcamCameraSilent", AT, END, {'aprilcam_camera_connected{station="press"}': turns(1, 0)}, PRESS),
    Fault("AprilcamCameraRestarts", AT, AT + 15 * MINUTE, {'aprilcam_camera_restarts_total{station="press"}': STEPS}, PRESS),
    Fault("AprilcamFramesIncomplete", AT, AT + 15 * MINUTE, {'aprilcam_incomplete_frames_total{station="press"}': STEPS}, PRESS),
    Fault("AprilcamFramesLost", AT, AT + 15 * MINUTE, {'aprilcam_lost_frames_total{station="press"}': STEPS}, PRESS),
    Fault(
        "AprilcamExposureDrift",
        AT,
        END,
        {'aprilcam_exposure_drift{station="press",measure="mean"}': turns(0.4, -6)},
        {**PRESS, "measure": "mean"},
    ),
    Fault("AprilcamNotTaught", AT, END, {'aprilcam_station_taught{station="press"}': turns(1, 0)}, PRESS),
    Fault(
        "AprilcamVerdictsStopped",
        AT,
        END,
        {
            'aprilcam_last_verdict_age_seconds{station="press"}': GROWING,
            'aprilcam_frame_age_seconds{station="press"}': hold(0.5, END),
        },
        PRESS,
    ),
    Fault(
        "AprilcamUnknownRatioHigh",
        AT,
        END,
        {
            parts("pass"): ramp(0, 1, END),
            parts("fail"): ramp(0, 0.02, END),
            parts("unknown", "incomplete"): f"{hold(0, AT)} {ramp(0.1 * STEP_S, 0.1, END - AT)}",
        },
        PRESS,
    ),
    Fault(
        "AprilcamFailRatioHigh",
        6 * HOUR,
        7 * HOUR,
        {
            parts("pass"): f"{ramp(0, 0.98, 6 * HOUR)} {ramp(0.98 * 6 * HOUR, 0.7, HOUR)}",
            parts("fail"): f"{ramp(0, 0.02, 6 * HOUR)} {ramp(0.02 * 6 * HOUR, 0.3, HOUR)}",
        },
        PRESS,
    ),
    Fault(
        "AprilcamNothingFails",
        2 * HOUR,
        28 * HOUR,
        {
            parts("pass"): ramp(0, 1, 28 * HOUR),
            parts("fail"): f"{ramp(0, 0.02, 2 * HOUR)} {hold(0.02 * (2 * HOUR - STEP_S), 26 * HOUR)}",
        },
        PRESS,
    ),
    Fault("AprilcamScoreDrift", AT, END, {'aprilcam_score_drift_psi{recipe="disc"}': turns(0.05, 0.4)}, DISC),
    Fault(
        "AprilcamBankBuildFailed",
        AT,
        END,
        {'aprilcam_bank_builds_total{recipe="disc",outcome="failed"}': turns(0, 1)},
        {**DISC, "outcome": "failed"},
    ),
]
DELAYS = {
    name: int(minutes or 0) * MINUTE + int(hours or 0) * HOUR + int(seconds or 0)
    for name, hours, minutes, seconds in re.findall(
        r"^\| \[(\w+)\]\(#\w+\) \| (?:(\d+) h)? ?(?:(\d+) min)? ?(?:(\d+) s)? \|", RUNBOOK, re.MULTILINE
    )
}


def series_of(series: dict[str, str]) -> list[dict[str, str]]:
    """With the labels that a scrape adds."""
    rows = []
    for selector, values in series.items():
        name, _, labels = selector.removesuffix("}").partition("{")
        own = ",".join(filter(None, ['job="aprilcam"', 'instance="line2"', labels]))
        rows.append({"series": f"{name}{{{own}}}", "values": values})
    return rows


def promtool(folder: Path, *tests: dict[str, Any], every_s: int = STEP_S) -> None:
    """Raises AssertionError with what promtool says. every_s: between evaluations; days take long every 15 s."""
    file = folder / "alerts.test.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": f"{every_s}s", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def firing(until_s: float, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What fired, and at how many evaluations, up to a time."""
    query = "sum without (alertstate, severity) (count_over_time(ALERTS{alertstate='firing'}[90d]))"
    return {"expr": query, "eval_time": f"{round(until_s)}s", "exp_samples": samples}


def sample(fault: Fault, evaluations: int) -> dict[str, Any]:
    labels = {"alertname": fault.alert, "job": "aprilcam", "instance": "line2", **fault.labels}
    return {"labels": "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}", "value": evaluations}


def test_each_alert_has_its_fault_its_section_and_its_time() -> None:
    assert [fault.alert for fault in FAULTS] == list(ALERTS)
    assert set(DELAYS) == set(ALERTS)
    sections = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"].endswith(f"docs/runbook.md#{name.lower()}")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} < set(rule["annotations"])
        told = RUNBOOK.split(f"### {name}\n")[1].split("\n##")[0]
        assert all(word in told for word in ("**Means**", "**Look**", "**Do**")), name


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.alert)
def test_a_fault_alerts_when_the_runbook_says_and_alerts_nothing_else(tmp_path: Path, fault: Fault) -> None:
    every_s = STEP_S if fault.until_s < 10 * HOUR else MINUTE
    evaluations = (fault.until_s - every_s - fault.at_s - DELAYS[fault.alert]) // every_s + 1
    expected = firing(fault.until_s - every_s, [sample(fault, evaluations)])
    promtool(
        tmp_path,
        {"interval": f"{STEP_S}s", "input_series": series_of(fault.series), "promql_expr_test": [expected]},
        every_s=every_s,
    )


def test_two_days_of_a_line_that_works_stands_still_and_works_again_alert_nobody(tmp_path: Path) -> None:
    """Eight hours of work a day; a restart at night, a stray frame, and a few faults that happen anywhere."""
    step_s, work, rest = MINUTE, 8 * 60, 16 * 60

    def shifts(a_minute: float) -> str:
        made = [a_minute * work * day for day in range(3)]
        return " ".join(
            f"{made[day]}+{a_minute}x{work - 1} {made[day + 1] - a_minute}x{rest - 1}" for day in range(2)
        )  # fmt: skip

    night = f"0.5+{step_s}x{rest - 1}"
    stray = f"0.5+{step_s}x299 0+{step_s}x{rest - 301}"
    always = 2 * (work + rest) - 1
    restart = f"0x{work + 200} {60 * (work + 201)}x{always - work - 201}"
    series = {
        "up": f"1x{always}",
        "process_start_time_seconds": restart,
        "process_resident_memory_bytes": f"1.1e9x{always}",
        'aprilcam_camera_resident_memory_bytes{station="press"}': f"2e8x{always}",
        "aprilcam_ledger_failing": f"0x{always}",
        "aprilcam_archive_failing": f"0x{always}",
        'aprilcam_archive_dropped_total{reason="queue_full"}': f"0x600 3x{always - 601}",
        "aprilcam_mqtt_connected": f"1x{always}",
        "aprilcam_outbox_oldest_age_seconds": f"0x{always}",
        'aprilcam_messages_lost_total{what="result",reason="too_old"}': f"0x{always}",
        "aprilcam_mqtt_certificate_expiry_timestamp_seconds": f"{90 * DAY}x{always}",
        'aprilcam_camera_connected{station="press"}': f"1x{always}",
        'aprilcam_camera_restarts_total{station="press"}': f"0x200 1x{always - 201}",
        'aprilcam_incomplete_frames_total{station="press"}': f"0x100 1x{always - 101}",
        'aprilcam_lost_frames_total{station="press"}': f"0x100 1x{always - 101}",
        'aprilcam_exposure_drift{station="press",measure="focus"}': f"-1.2x{always}",
        'aprilcam_station_taught{station="press"}': f"1x{always}",
        'aprilcam_frame_age_seconds{station="press"}': f"0.5x{work - 1} {stray} 0.5x{work - 1} {night}",
        'aprilcam_last_verdict_age_seconds{station="press"}': f"0.4x{work - 1} {night} 0.4x{work - 1} {night}",
        parts("pass"): shifts(58),
        parts("fail"): shifts(2),
        parts("unknown", "incomplete"): f"0x100 1x{always - 101}",
        parts("unknown", "stopped"): f"0x{work + 200} 4x{always - work - 201}",
        'aprilcam_score_drift_psi{recipe="disc"}': f"0.08x{always}",
        'aprilcam_bank_builds_total{recipe="disc",outcome="failed"}': f"0x{always}",
        'aprilcam_bank_builds_total{recipe="disc",outcome="built"}': f"0x600 1x{always - 601}",
    }
    named = {name for rule in ALERTS.values() for name in re.findall(r"\b(?:aprilcam|process)_\w+", rule["expr"])}
    assert {selector.partition("{")[0] for selector in series} >= named
    test = {
        "interval": f"{step_s}s",
        "input_series": series_of(series),
        "promql_expr_test": [firing(2 * DAY - step_s, [])],
    }
    promtool(tmp_path, test, every_s=step_s)


def test_stray_frames_at_a_line_that_stands_still_alert_nobody(tmp_path: Path) -> None:
    ages = [ramp(3_600, 1, 10 * MINUTE), *(ramp(0, 1, 10 * MINUTE) for _ in range(3))]
    series = {
        'aprilcam_frame_age_seconds{station="press"}': " ".join(ages),
        'aprilcam_last_verdict_age_seconds{station="press"}': ramp(3_600, 1, 40 * MINUTE),
    }
    test = {
        "interval": f"{STEP_S}s",
        "input_series": series_of(series),
        "promql_expr_test": [firing(40 * MINUTE - STEP_S, [])],
    }
    promtool(tmp_path, test)


def test_a_line_that_begins_with_many_fails_after_days_of_rest_is_told(tmp_path: Path) -> None:
    series = {
        parts("pass"): f"{hold(0, HOUR)} {ramp(0, 0.6, HOUR)}",
        parts("fail"): f"{hold(0, HOUR)} {ramp(0, 0.4, HOUR)}",
    }
    alert = "AprilcamFailRatioHigh"
    labels = f'{{alertname="{alert}",alertstate="firing",instance="line2",job="aprilcam",severity="warning",station="press"}}'
    told = [{"labels": "ALERTS" + labels, "value": 1}]
    for eval_s, expected in ((HOUR, []), (HOUR + 10 * MINUTE, told)):
        promtool(
            tmp_path,
            {
                "interval": f"{STEP_S}s",
                "input_series": series_of(series),
                "promql_expr_test": [
                    {
                        "expr": f"ALERTS{{alertname='{alert}',alertstate='firing'}}",
                        "eval_time": f"{eval_s}s",
                        "exp_samples": expected,
                    }
                ],
            },
        )


def test_a_ratio_that_stays_bad_is_one_alert_though_the_line_pauses(tmp_path: Path) -> None:
    fault = next(own for own in FAULTS if own.alert == "AprilcamFailRatioHigh")
    bad = []
    for number in range(6):  # ten minutes of work, ten of rest
        at = 0.02 * 6 * HOUR + number * 0.3 * 10 * MINUTE
        bad += [ramp(at, 0.3, 10 * MINUTE), hold(at + 0.3 * 10 * MINUTE, 10 * MINUTE)]
    good = hold(0.98 * 6 * HOUR, 2 * HOUR)
    series = {
        parts("pass"): f"{ramp(0, 0.98, 6 * HOUR)} {good}",
        parts("fail"): f"{ramp(0, 0.02, 6 * HOUR)} {' '.join(bad)}",
    }
    until_s = 8 * HOUR - STEP_S
    names = "changes(ALERTS_FOR_STATE{alertname='AprilcamFailRatioHigh'}[2h])"
    fired = f"count_over_time(ALERTS{{alertname='{fault.alert}',alertstate='firing'}}[1h]) >= bool {HOUR // STEP_S}"
    labels = '{instance="line2",job="aprilcam",station="press"'
    always = f'{labels},alertname="{fault.alert}",alertstate="firing",severity="warning"}}'
    promtool(
        tmp_path,
        {
            "interval": f"{STEP_S}s",
            "input_series": series_of(series),
            "promql_expr_test": [
                {"expr": fired, "eval_time": f"{until_s}s", "exp_samples": [{"labels": always, "value": 1}]},
                {
                    "expr": f"max without (severity, alertname) ({names})",
                    "eval_time": f"{until_s}s",
                    "exp_samples": [{"labels": labels + "}", "value": 0}],
                },
            ],
        },
    )


def test_a_new_recipe_whose_first_build_fails_alerts_though_no_scrape_saw_it_at_zero(tmp_path: Path) -> None:
    fault = next(own for own in FAULTS if own.alert == "AprilcamBankBuildFailed")
    series = {next(iter(fault.series)): f"_x{AT // STEP_S} {hold(1, END - AT)}"}
    test = {
        "interval": f"{STEP_S}s",
        "input_series": series_of(series),
        "promql_expr_test": [firing(END - STEP_S, [sample(fault, (END - AT) // STEP_S)])],
    }
    promtool(tmp_path, test)


@pytest.mark.parametrize(
    ("alert", "description"),
    [
        ("AprilcamExposureDrift", "Off by -6 standard deviations of the shots. Light, lens or exposure has changed."),
        ("AprilcamOutboxOld", "The oldest message has waited for 29m 45s."),
        ("AprilcamMessagesLost", "1 of kind result within 15 minutes: outbox_full."),
    ],
)
def test_an_alert_says_what_was_measured(tmp_path: Path, alert: str, description: str) -> None:
    fault = next(own for own in FAULTS if own.alert == alert)
    told = ALERTS[alert]
    summary = told["annotations"]["summary"].replace("{{ $labels.instance }}", "line2")
    for name, value in fault.labels.items():
        summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
    expected = {
        "exp_labels": {"job": "aprilcam", "instance": "line2", **fault.labels, **told["labels"]},
        "exp_annotations": {**told["annotations"], "summary": summary, "description": description},
    }
    at_s = fault.until_s - STEP_S
    promtool(
        tmp_path,
        {
            "interval": f"{STEP_S}s",
            "input_series": series_of(fault.series),
            "alert_rule_test": [{"eval_time": f"{at_s}s", "alertname": alert, "exp_alerts": [expected]}],
        },
    )


def test_rules_ask_only_for_metrics_and_labels_that_there_are() -> None:
    known = {own.name: set(own.labels) for own in declared()}
    clients = {"process_resident_memory_bytes", "process_start_time_seconds"}
    for name, rule in ALERTS.items():
        asked = set(re.findall(r"\b(?:aprilcam|process)_\w+", rule["expr"]))
        assert asked <= known.keys() | clients, name
        for metric, selectors in re.findall(r"(aprilcam_\w+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)[=!]", selectors)) <= known[metric], name


def test_the_example_configuration_is_one_of_prometheus() -> None:
    done = subprocess.run(["promtool", "check", "config", RULES.parent / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aprilcam.rules.yaml" in (RULES.parent / "prometheus.yml").read_text()
    assert yaml.safe_load((RULES.parent / "prometheus.yml").read_text())["scrape_configs"][0]["job_name"] == "aprilcam"
