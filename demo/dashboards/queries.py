"""The PromQL of the dashboards. `where` is the inside of a selector's braces, `by` a list of labels, `window` a range."""

IDLE_S = 60
"""A station whose newest frame is older is shown as idle: that is no fault."""
AWAY, UNTAUGHT, IDLE, INSPECTING = range(4)
"""What `state` gives."""
GONE, NO_BROKER, RUNNING = range(3)
"""What `daemon_state` gives."""
RANGE, RATE = "$__range", "$__rate_interval"
"""Grafana's: all that is shown, and what a point of a curve stands for."""


def total(metric: str, where: str, by: str, window: str) -> str:
    """How much a counter grew, one number for each `by`."""
    return f"sum by ({by}) (increase({metric}{{{where}}}[{window}]))"


def per_minute(metric: str, where: str, by: str) -> str:
    """How fast a counter grows."""
    return f"60 * sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def parts(where: str, by: str, window: str) -> str:
    """Parts that got a verdict."""
    return total("aprilcam_results_total", where, by, window)


def fail_ratio(where: str, by: str, window: str) -> str:
    """Share of parts that failed, 0-1; nothing where no part came."""
    failed = parts(where + ',verdict="fail"', by, window)
    return f"{failed} / ({parts(where, by, window)} > 0)"


def unknown_ratio(where: str, by: str, window: str) -> str:
    """Share of parts that nobody judged, 0-1; nothing where no part came. By way of the others: a reason that never came has no
    series."""
    judged = parts(where + ',verdict=~"pass|fail"', by, window)
    return f"clamp_min(1 - {judged} / ({parts(where, by, window)} > 0), 0)"


def count(metric: str, where: str, by: str) -> str:
    """How often something happened, in each step of a curve."""
    return total(metric, where, by, RATE)


def quantile(share: float, metric: str, where: str, by: str, window: str) -> str:
    """Of a histogram; nothing where nothing was observed."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{window}]))) >= 0"


def state(where: str) -> str:
    """AWAY ... INSPECTING for each instance and station."""
    connected = f"aprilcam_camera_connected{{{where}}}"
    untaught = f"0 * (aprilcam_station_taught{{{where}}} == 0) + {UNTAUGHT}"
    inspecting = f"0 * (aprilcam_frame_age_seconds{{{where}}} <= {IDLE_S}) + {INSPECTING}"
    code = f"({connected} == 0) or ({untaught}) or ({inspecting}) or (0 * {connected} + {IDLE})"
    return f"max by (instance, station) ({code})"


def daemon_state(where: str) -> str:
    """GONE ... RUNNING for each instance: a daemon that cannot be scraped still has its `up`."""
    up, broker = f"max by (instance) (up{{{where}}})", f"max by (instance) (aprilcam_mqtt_connected{{{where}}})"
    return f"({up} * (1 + {broker})) or {up}"
