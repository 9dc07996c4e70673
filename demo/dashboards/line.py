"""Line overview: one daemon and its stations."""

from demo.dashboards import panels, queries
from demo.dashboards.board import STATION_LINK, Board
from demo.dashboards.panels import Column
from demo.dashboards.queries import RANGE, RATE

DAEMON = 'instance="$instance"'
WHERE = 'instance="$instance",station=~"$station"'
MIN_STEP = "5m"
"""A ratio over fewer parts says nothing."""


def board() -> Board:
    """All of it."""
    board = Board("aprilcam-line", "aprilcam: line", "One daemon: what its stations see, and whether it delivers.")
    board.choose("instance", "daemon", "label_values(aprilcam_build_info, instance)")
    board.choose("station", "station", 'label_values(aprilcam_camera_connected{instance="$instance"}, station)', several=True)
    _now(board)
    _verdicts(board)
    _speed(board)
    return board


def _now(board: Board) -> None:
    state = queries.state(WHERE)
    board.row("Now")
    board.add(
        panels.number(
            "Daemon",
            "Whether Prometheus reaches it, and it its broker. Without the broker results wait in the ledger; none is lost.",
            f"max(max by (instance) ({queries.daemon_state(DAEMON)}))",
            words=panels.DAEMONS,
            no_value="▲ not scraped",
        ),
        panels.number(
            "Stations that can judge",
            "Camera there and a bank or words to judge with. An idle station counts: it waits for parts.",
            f"sum({state} >= bool {queries.IDLE})",
            steps=[(None, panels.BAD), (1, "text")],
            no_value="daemon away",
        ),
        panels.number(
            "Stations in trouble",
            "Camera away or nothing to judge with: every part there is unknown, to be treated as a fail.",
            f"sum({state} < bool {queries.IDLE})",
            steps=[(None, panels.GOOD), (1, panels.BAD)],
            no_value="daemon away",
        ),
        panels.number(
            "Newest part",
            "Time since any station got a frame. Long is no fault at a line that stands still.",
            f"min(aprilcam_frame_age_seconds{{{WHERE}}})",
            "s",
            decimals=0,
            no_value="none since the start",
        ),
        panels.number(
            "Parts",
            "Verdicts in the time that is shown.",
            f"sum({queries.parts(WHERE, 'instance', RANGE)})",
            no_value="no station yet",
            decimals=0,
        ),
        panels.number(
            "Failed",
            "Share of those parts that failed. What is usual depends on the product: adjust the colours.",
            queries.fail_ratio(WHERE, "instance", RANGE),
            "percentunit",
            steps=panels.FAILS,
            decimals=1,
            no_value=panels.NO_PARTS,
        ),
        panels.number(
            "Unknown",
            "Share of those parts that nobody judged. The reasons are below.",
            queries.unknown_ratio(WHERE, "instance", RANGE),
            "percentunit",
            steps=panels.UNKNOWNS,
            decimals=2,
            no_value=panels.NO_PARTS,
        ),
        panels.number(
            "Oldest undelivered",
            "Age of the oldest message that the broker has not acknowledged.",
            f"max(aprilcam_outbox_oldest_age_seconds{{{DAEMON}}})",
            "s",
            steps=panels.DELAYS,
            decimals=0,
            no_value="daemon away",
        ),
        panels.timeline(
            "Stations over time",
            f"Idle: no frame for {queries.IDLE_S} s, which is no fault. Gap: the daemon did not answer.",
            state,
            "{{station}}",
            panels.STATES,
            no_value="no station answers: is the daemon running?",
            size=(10, 9),
        ),
        panels.rows(
            "Stations",
            "As they are now, and their parts in the time that is shown. Click a station for its details.",
            {"station": "station"},
            [
                Column("state", f"max by (station) ({state})", words=panels.STATES),
                Column("newest part", f"max by (station) (aprilcam_frame_age_seconds{{{WHERE}}})", "s", 0),
                Column("parts", queries.parts(WHERE, "station", RANGE), "short", 0),
                Column("failed", queries.fail_ratio(WHERE, "station", RANGE), "percentunit", 1, steps=panels.FAILS),
                Column("unknown", queries.unknown_ratio(WHERE, "station", RANGE), "percentunit", 2, steps=panels.UNKNOWNS),
                Column("waiting", f"max by (station) (aprilcam_queue_depth{{{WHERE}}})", "short", 0),
            ],
            no_value="no station answers: is the daemon running?",
            links={"station": STATION_LINK},
            size=(14, 9),
        ),
    )


def _verdicts(board: Board) -> None:
    board.row("Verdicts")
    board.add(
        panels.curves(
            "Failed, by station",
            "Share of parts that failed. A jump is a defect or a change of light; nought for long is suspicious too.",
            [(queries.fail_ratio(WHERE, "station", RATE), "{{station}}")],
            "percentunit",
            most=0.1,
            min_step=MIN_STEP,
            no_value=panels.NO_PARTS,
        ),
        panels.curves(
            "Unknown, by station",
            "Share of parts that nobody judged.",
            [(queries.unknown_ratio(WHERE, "station", RATE), "{{station}}")],
            "percentunit",
            most=0.02,
            min_step=MIN_STEP,
            no_value=panels.NO_PARTS,
        ),
        panels.curves(
            "Parts a minute, by verdict",
            "All chosen stations together.",
            [(queries.per_minute("aprilcam_results_total", WHERE, "verdict"), "{{verdict}}")],
            styles=panels.STYLES,
            no_value="no station yet",
            min_step=MIN_STEP,
        ),
        panels.curves(
            "Unknown parts a minute, by reason",
            "docs/mqtt.md says what each reason means. A reason that never came has no line.",
            [(queries.per_minute("aprilcam_results_total", f'{WHERE},verdict="unknown"', "reason"), "{{reason}}")],
            no_value="no part was ever unknown",
            min_step=MIN_STEP,
        ),
    )


def _speed(board: Board) -> None:
    lost = f'{WHERE},outcome!="judged"'
    board.row("Speed and delivery")
    board.add(
        panels.curves(
            "Time to judge, 95 % of parts",
            "From frame to finished judgement: one part in twenty takes longer.",
            [(queries.quantile(0.95, "aprilcam_latency_seconds", f'{WHERE},stage="total"', "station", RATE), "{{station}}")],
            "s",
            min_step="2m",
            no_value=panels.NO_PARTS,
            size=(8, 8),
        ),
        panels.curves(
            "Frames waiting",
            "In each station's queue. One that grows is more than this machine can judge.",
            [(f"max by (station) (max_over_time(aprilcam_queue_depth{{{WHERE}}}[{RATE}]))", "{{station}}")],
            most=5,
            no_value="daemon away",
            min_step="1m",
            size=(8, 8),
        ),
        panels.curves(
            "Frames not judged a minute",
            "skipped: a newer one came. refused: no room. faulty: broken by the camera or the wire. unclaimed: no trigger asked.",
            [(queries.per_minute("aprilcam_frames_total", lost, "outcome"), "{{outcome}}")],
            most=1,
            no_value="no station yet",
            min_step=MIN_STEP,
            size=(8, 8),
        ),
        panels.curves(
            "Undelivered messages",
            "That the broker has not acknowledged. They wait in the ledger and survive a restart.",
            [(f"max by (instance) (aprilcam_outbox_depth{{{DAEMON}}})", "waiting")],
            most=10,
            no_value="daemon away",
            size=(8, 8),
        ),
        panels.curves(
            "Time to deliver",
            "From commit to the broker's acknowledgement.",
            [
                (queries.quantile(0.5, "aprilcam_publish_seconds", DAEMON, "", RATE), "half of them"),
                (queries.quantile(0.95, "aprilcam_publish_seconds", DAEMON, "", RATE), "95 % of them"),
            ],
            "s",
            no_value="nothing was delivered in this time",
            min_step="2m",
            size=(8, 8),
        ),
        panels.curves(
            "Camera trouble",
            "Camera processes started again, and frames that a camera numbered and that never arrived: how many in ten minutes "
            "(of a longer time: in each step).",
            [
                (queries.count("aprilcam_camera_restarts_total", WHERE, "station"), "{{station}} restarts"),
                (queries.count("aprilcam_lost_frames_total", WHERE, "station"), "{{station}} lost"),
            ],
            most=5,
            no_value="no station yet",
            min_step="10m",
            size=(8, 8),
        ),
    )
