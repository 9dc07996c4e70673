"""docs/metrics.md, made from the metrics themselves: python -m connectors.metrics_document docs/metrics.md"""

import sys
from pathlib import Path
from typing import get_args

from connectors.contract import Reason
from connectors.metrics import BUILDS, OUTCOMES, OVERLAYS, STAGES, UNKNOWN_COMMAND, Declared, Metrics
from connectors.requests import REQUESTS, Code
from connectors.scraped import SCRAPED

UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "0 to 1"}
"""By the last word of a name; Prometheus' base units."""

HEAD = """# Metrics

`GET /metrics` on the HTTP port ([http] in the configuration file), in Prometheus' text format. Made by `make docs` from
`connectors/metrics.py` and `connectors/scraped.py`; do not edit it here. Alerts on them: `config/prometheus/aprilcam.rules.yaml`,
each explained in [runbook.md](runbook.md). A scrape configuration: `config/prometheus/prometheus.yml`.

| metric | type | labels | unit | meaning |
|---|---|---|---|---|
"""

VALUES = """
## Labels

Every label value is a name of the configuration, of a recipe, or one of these; nobody outside can make a new one.

| label | of | values |
|---|---|---|
"""

TAIL = """
## Good to know

- A station's series exist at zero from its start and go with it; a recipe's go when it is deleted. Rates and `increase()` are
  right from the first event on. What is told of a station or a recipe that is gone already is not counted.
- `aprilcam_frames_total{outcome="judged"}` counts results with a score: a part of several frames counts once, as it does in
  `aprilcam_results_total`.
- `aprilcam_bank_info` has the bank's short hash as a label: one series a station at a time, a new one with every build.
- The counters of a camera (`aprilcam_camera_packets_...`, `aprilcam_camera_buffer...`, `aprilcam_incomplete_frames_total`) come
  with its process's heartbeat: a process that is killed takes its last half second of them along. A driver that does not
  count something leaves it at zero; so does a folder of pictures.
- GPU metrics need an NVIDIA driver; without one they are absent.
- `process_*` and `python_info` are the Prometheus client's own, of the daemon's process. Cameras have processes of their own:
  `aprilcam_camera_resident_memory_bytes`, which holds the frames that it shares with the daemon.

## Drift of the scores

`aprilcam_score_drift_psi` compares the newest 400 passing scores of a recipe with the first 400 after its bank became current.
It is absent until the first 400 are there and 200 more. The first 400 are kept in the ledger: a restart of the daemon does not
learn them anew; another bank does.

The population stability index (Siddiqi, *Credit Risk Scorecards*, 2006) over ten bins, whose edges are the deciles of the first
400: the sum over the bins of `(q - p) ln(q / p)`, with p the share of the first and q that of the newest scores. Half a score is
added to every bin's count, so that an empty one is no infinity. Under 0.1: nothing has changed. Over 0.25: the scores are others
than they were; look at the parts, the light and the lens. Without any change, `PSI / (1/400 + 1/n)` follows a chi-squared
distribution with nine degrees of freedom (Yurdakul, *Statistical Properties of Population Stability Index*, 2018): with n = 200
one value in a thousand is over 0.21.

Why not the scores of the calibration: it has 4 to 100, each of a shot against the bank *without* it, which are higher than those
of parts; and a PSI of so few says nothing. Whether the parts were as the shots at the beginning is what the exposure drift tells.

## Drift of the exposure

`aprilcam_exposure_drift{measure}`: the median of the last 30 frames (at most one a second, within the recipe's region), minus the
mean of the recipe's shots, in standard deviations of the shots. Positive: brighter, more saturated, sharper. Shots that were
taken one after the other hardly differ, so a deviation counts at least as given here.

| measure | what | least deviation |
|---|---|---|
| mean | mean grey level, 0 to 255 | 2 |
| saturation | share of pixels at 250 or more in any channel, 0 to 1 | 0.005 |
| focus | logarithm (base e) of the variance of the Laplacian over 16 tiles of up to 64 x 64 pixels at full size | 0.1 |

Absent until 10 frames were measured, and where the recipe has no shots. It is measured on a thread of its own with the lowest
priority, on copies of some 128,000 pixels; it holds up no verdict and keeps no frame.
`aprilcam_exposure_skipped_total` counts samples that it had no time for.
"""


def unit(name: str) -> str:
    """Of a metric, by its name."""
    last = name.removesuffix("_total").rpartition("_")[2]
    return "s since 1970" if name.endswith("_timestamp_seconds") else UNITS.get(last, "")


def declared() -> list[Declared]:
    """Every metric of ours, by name."""
    scraped = [
        Declared(f"{own.name}_total" if own.counter else own.name, "counter" if own.counter else "gauge", own.text, own.labels)
        for own in SCRAPED
    ]
    return sorted([*Metrics("").declared, *scraped], key=lambda own: own.name)


def document() -> str:
    """The whole file."""
    rows = [f"| `{own.name}` | {own.kind} | {', '.join(own.labels)} | {unit(own.name)} | {own.text} |\n" for own in declared()]
    values = {
        ("outcome", "`aprilcam_frames_total`"): OUTCOMES,
        ("verdict", "`aprilcam_results_total`"): ("pass", "fail", "unknown"),
        ("reason", "`aprilcam_results_total`, empty unless unknown"): get_args(Reason),
        ("stage", "`aprilcam_latency_seconds`"): STAGES,
        ("outcome", "`aprilcam_overlays_total`"): OVERLAYS,
        ("outcome", "`aprilcam_bank_builds_total`"): BUILDS,
        ("command", "`aprilcam_commands_total`"): (*REQUESTS, f"{UNKNOWN_COMMAND} (any other)"),
        ("outcome", "`aprilcam_commands_total`"): ("ok", "duplicate", *get_args(Code)),
        ("measure", "`aprilcam_exposure_drift`"): ("mean", "saturation", "focus"),
        ("device", "GPUs"): ("NVML's index: 0, 1 ...",),
    }
    labels = [f"| {label} | {where} | {', '.join(own)} |\n" for (label, where), own in values.items()]
    return HEAD + "".join(rows) + VALUES + "".join(labels) + TAIL


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document())
