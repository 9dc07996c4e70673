"""Station detail: why one station judges as it does."""

from demo.dashboards import panels, queries
from demo.dashboards.board import Board
from demo.dashboards.queries import RANGE, RATE

WHERE = 'instance="$instance",station="$station"'
RECIPE = f'{WHERE},recipe=~"$recipe"'
STAGES = {
    "acquire": "From the camera's time stamp to its picture in memory.",
    "queue": "Waiting for the inspector.",
    "inference": "Encoder and bank search, the whole batch of the frame.",
    "finish": "Score, verdict, regions and mask.",
    "total": "From frame to finished judgement.",
}


def board() -> Board:
    """All of it."""
    board = Board("aprilcam-station", "aprilcam: station", "One station: scores against its threshold, times, drift, its camera.")
    board.choose("instance", "daemon", "label_values(aprilcam_build_info, instance)")
    board.choose("station", "station", 'label_values(aprilcam_camera_connected{instance="$instance"}, station)')
    recipes = 'label_values(aprilcam_results_total{instance="$instance",station="$station"}, recipe)'
    board.choose("recipe", "recipe", recipes, several=True)
    _now(board)
    _scores(board)
    _drift(board)
    _times(board)
    _camera(board)
    return board


def _now(board: Board) -> None:
    board.row("Now")
    board.add(
        panels.number(
            "State",
            f"Idle: no frame for {queries.IDLE_S} s, which is no fault.",
            f"max({queries.state(WHERE)})",
            words=panels.STATES,
            no_value="▲ the daemon does not answer",
        ),
        panels.number(
            "Newest part",
            "Time since the station got a frame.",
            f"min(aprilcam_frame_age_seconds{{{WHERE}}})",
            "s",
            decimals=0,
            no_value="none since the start",
        ),
        panels.number(
            "Parts",
            "Verdicts in the time that is shown.",
            f"sum({queries.parts(RECIPE, 'station', RANGE)})",
            decimals=0,
            no_value="no recipe chosen",
        ),
        panels.number(
            "Failed",
            "Share of those parts. What is usual depends on the product: adjust the colours.",
            queries.fail_ratio(RECIPE, "station", RANGE),
            "percentunit",
            steps=panels.FAILS,
            decimals=1,
            no_value=panels.NO_PARTS,
        ),
        panels.number(
            "Unknown",
            "Share of those parts that nobody judged. The reasons are below.",
            queries.unknown_ratio(RECIPE, "station", RANGE),
            "percentunit",
            steps=panels.UNKNOWNS,
            decimals=2,
            no_value=panels.NO_PARTS,
        ),
        panels.number(
            "Threshold",
            "Score above which a part fails.",
            f"max(aprilcam_threshold{{{WHERE}}})",
            "none",
            decimals=3,
            no_value="▲ not taught",
        ),
        panels.number(
            "Threshold is",
            "One that was set against another bank may be wrong by now: mark some parts, or reset it.",
            f"max(aprilcam_threshold_stale{{{WHERE}}})",
            words=panels.STALE,
            no_value="daemon away",
        ),
        panels.number(
            "Bank",
            "Patch features that a part is compared with, all layers together.",
            f"max(aprilcam_bank_patches{{{WHERE}}})",
            decimals=1,
            no_value="none: judged by words, or not at all",
        ),
    )


def _scores(board: Board) -> None:
    quantiles = [
        (queries.quantile(share, "aprilcam_score", RECIPE, "", RATE), text)
        for share, text in ((0.5, "half are below"), (0.95, "95 % are below"))
    ]
    board.row("Scores and verdicts")
    board.add(
        panels.curves(
            "Scores against the threshold",
            "Where the curves near the threshold, good parts are about to fail: the light, the part or the camera has changed. "
            "Read off buckets of the histogram, so in steps.",
            [*quantiles, (f"max(aprilcam_threshold{{{WHERE}}})", "threshold")],
            "none",
            styles=panels.THRESHOLD,
            no_value="no part was judged in this time",
            min_step="5m",
            size=(9, 10),
        ),
        panels.heat(
            "Scores over time",
            "How many parts had which score. Two bands apart: good and defective parts are well told.",
            f"sum by (le) (increase(aprilcam_score_bucket{{{RECIPE}}}[{RATE}]))",
            "none",
            no_value="no part was judged in this time",
            size=(9, 10),
        ),
        panels.distribution(
            "Scores in all the time shown",
            "How many parts had a score up to this, and above the one before. Compare with the threshold above.",
            f"sum by (le) (increase(aprilcam_score_bucket{{{RECIPE}}}[{RANGE}]))",
            no_value="no part was judged in this time",
            size=(6, 10),
        ),
        panels.curves(
            "Parts a minute, by verdict",
            "Of the chosen recipes.",
            [(queries.per_minute("aprilcam_results_total", RECIPE, "verdict"), "{{verdict}}")],
            styles=panels.STYLES,
            no_value="no recipe chosen",
            min_step="5m",
            size=(8, 8),
        ),
        panels.curves(
            "Failed, by recipe",
            "Share of parts that failed.",
            [(queries.fail_ratio(RECIPE, "recipe", RATE), "{{recipe}}")],
            "percentunit",
            most=0.1,
            no_value=panels.NO_PARTS,
            min_step="5m",
            size=(8, 8),
        ),
        panels.curves(
            "Unknown parts a minute, by reason",
            "docs/mqtt.md says what each reason means. A reason that never came has no line.",
            [(queries.per_minute("aprilcam_results_total", f'{RECIPE},verdict="unknown"', "reason"), "{{reason}}")],
            no_value="no part was ever unknown",
            min_step="5m",
            size=(8, 8),
        ),
    )


def _drift(board: Board) -> None:
    board.row("Drift")
    board.add(
        panels.curves(
            "Scores of good parts: drift since the bank was new",
            "Population stability index of the newest passing scores against the first ones of the bank. Below 0.1 all is as "
            "before, above 0.25 it is another process: look at the newest parts, register some, or mend the light.",
            [('max by (recipe) (aprilcam_score_drift_psi{instance="$instance",recipe=~"$recipe"})', "{{recipe}}")],
            "none",
            steps=panels.DRIFTS,
            most=0.3,
            no_value="not yet: it takes some hundred parts that passed",
        ),
        panels.curves(
            "Pictures: drift against the reference shots",
            "How far they are from the recipe's shots, in the shots' standard deviations. mean: brightness. saturation: share of "
            "pixels at the limit. focus: sharpness.",
            [(f"max by (measure) (aprilcam_exposure_drift{{{WHERE}}})", "{{measure}}")],
            "none",
            no_value="not yet: it takes some parts and reference shots",
        ),
    )


def _times(board: Board) -> None:
    board.row("Where the time goes")
    for stage, text in STAGES.items():
        where = f'{WHERE},stage="{stage}"'
        expression = f"sum by (le) (increase(aprilcam_latency_seconds_bucket{{{where}}}[{RATE}]))"
        board.add(panels.heat(f"Time in stage: {stage}", text, expression, "s", no_value=panels.NO_PARTS))
    board.add(
        panels.curves(
            "95 % of parts, by stage",
            "One part in twenty takes longer.",
            [(queries.quantile(0.95, "aprilcam_latency_seconds", WHERE, "stage", RATE), "{{stage}}")],
            "s",
            min_step="2m",
            no_value=panels.NO_PARTS,
            size=(8, 8),
        )
    )


def _camera(board: Board) -> None:
    def count(metric: str) -> str:
        return queries.count(metric, WHERE, "station")

    board.row("Camera and queue")
    board.add(
        panels.timeline(
            "Camera",
            "Connected: it delivers, or waits for triggers. Gap: the daemon did not answer.",
            f"max by (station) (aprilcam_camera_connected{{{WHERE}}})",
            "camera",
            panels.CONNECTED,
            no_value="daemon away",
            size=(8, 7),
        ),
        panels.curves(
            "Camera trouble",
            "restarts of its process; frames that it numbered and that never arrived; frames with holes; packets sent again: how "
            "many in ten minutes (of a longer time: in each step).",
            [
                (count("aprilcam_camera_restarts_total"), "restarts"),
                (count("aprilcam_lost_frames_total"), "lost frames"),
                (count("aprilcam_incomplete_frames_total"), "incomplete frames"),
                (count("aprilcam_camera_packets_resent_total"), "packets sent again"),
            ],
            most=5,
            no_value="daemon away",
            min_step="10m",
            size=(8, 7),
        ),
        panels.curves(
            "Frames a minute, by what became of them",
            "skipped: a newer one came. refused: no room. faulty: broken by the camera or the wire. unclaimed: no trigger asked. "
            "late: judged after the deadline, so the part was unknown.",
            [
                (queries.per_minute("aprilcam_frames_total", WHERE, "outcome"), "{{outcome}}"),
                (queries.per_minute("aprilcam_late_judgements_total", WHERE, "station"), "late"),
            ],
            min_step="2m",
            no_value="daemon away",
            size=(8, 7),
        ),
    )
