"""Fleet: many daemons, told apart by Prometheus' `instance`."""

from demo.dashboards import panels, queries
from demo.dashboards.board import LINE_LINK, Board
from demo.dashboards.panels import Column
from demo.dashboards.queries import RANGE, RATE

WHERE = 'instance=~"$instance"'
EACH = "{{instance}}"
AWAY = "no daemon answers"


def board() -> Board:
    """All of it."""
    board = Board("aprilcam-fleet", "aprilcam: fleet", "All daemons that Prometheus scraped in the time that is shown.")
    board.choose("instance", "daemons", "label_values(aprilcam_build_info, instance)", several=True)
    _now(board)
    _verdicts(board)
    _machines(board)
    return board


def _now(board: Board) -> None:
    state, daemons = queries.state(WHERE), queries.daemon_state(WHERE)
    failed = queries.parts(WHERE + ',verdict="fail"', "instance", RANGE)
    board.row("Now")
    board.add(
        panels.number(
            "Daemons that answer",
            "Prometheus reaches them.",
            f"sum(({daemons}) > bool {queries.GONE})",
            steps=[(None, panels.BAD), (1, "text")],
            no_value="none",
        ),
        panels.number(
            "Daemons in trouble",
            "No answer, or no broker.",
            f"sum(({daemons}) < bool {queries.RUNNING})",
            steps=[(None, panels.GOOD), (1, panels.BAD)],
            no_value="none",
        ),
        panels.number(
            "Stations that can judge",
            "Camera there and a bank or words to judge with. Idle ones count.",
            f"sum({state} >= bool {queries.IDLE})",
            steps=[(None, panels.BAD), (1, "text")],
            no_value=AWAY,
        ),
        panels.number(
            "Stations in trouble",
            "Camera away or nothing to judge with: every part there is unknown.",
            f"sum({state} < bool {queries.IDLE})",
            steps=[(None, panels.GOOD), (1, panels.BAD)],
            no_value=AWAY,
        ),
        panels.number(
            "Parts",
            "Verdicts in the time that is shown.",
            f"sum({queries.parts(WHERE, 'instance', RANGE)})",
            decimals=0,
            no_value=AWAY,
        ),
        panels.number(
            "Failed",
            "Share of those parts.",
            f"sum({failed}) / (sum({queries.parts(WHERE, 'instance', RANGE)}) > 0)",
            "percentunit",
            steps=panels.FAILS,
            decimals=1,
            no_value=panels.NO_PARTS,
        ),
        panels.number(
            "Oldest undelivered",
            "Age of the oldest message of any daemon that its broker has not acknowledged.",
            f"max(aprilcam_outbox_oldest_age_seconds{{{WHERE}}})",
            "s",
            steps=panels.DELAYS,
            decimals=0,
            no_value=AWAY,
        ),
        panels.number(
            "Restarts",
            "Of all daemons in the time that is shown.",
            f"sum(changes(process_start_time_seconds{{{WHERE}}}[{RANGE}]) and on (instance) aprilcam_build_info{{{WHERE}}})",
            steps=[(None, panels.GOOD), (1, panels.WARN)],
            decimals=0,
            no_value=AWAY,
        ),
        panels.rows(
            "Daemons",
            "As they are now, and their parts in the time that is shown. Click a daemon for its stations.",
            {"instance": "daemon"},
            [
                Column("state", daemons, words=panels.DAEMONS),
                Column("up for", f"max by (instance) (time() - process_start_time_seconds{{{WHERE}}})", "s", 1),
                Column("stations", f"count by (instance) ({state})", "short", 0),
                Column("in trouble", f"sum by (instance) ({state} < bool {queries.IDLE})", "short", 0),
                Column("parts", queries.parts(WHERE, "instance", RANGE), "short", 0),
                Column("failed", queries.fail_ratio(WHERE, "instance", RANGE), "percentunit", 1, steps=panels.FAILS),
                Column("unknown", queries.unknown_ratio(WHERE, "instance", RANGE), "percentunit", 2, steps=panels.UNKNOWNS),
                Column("undelivered", f"max by (instance) (aprilcam_outbox_depth{{{WHERE}}})", "short", 0),
            ],
            no_value=AWAY,
            links={"daemon": LINE_LINK},
            size=(14, 9),
        ),
        panels.timeline(
            "Daemons over time",
            "No broker: results wait in the ledger; none is lost.",
            daemons,
            EACH,
            panels.DAEMONS,
            no_value=AWAY,
            size=(10, 9),
        ),
    )


def _verdicts(board: Board) -> None:
    board.row("Verdicts")
    board.add(
        panels.curves(
            "Parts a minute, by daemon",
            "Verdicts of all its stations.",
            [(queries.per_minute("aprilcam_results_total", WHERE, "instance"), EACH)],
            no_value=AWAY,
            min_step="5m",
            size=(8, 8),
        ),
        panels.curves(
            "Failed, by daemon",
            "Share of parts that failed.",
            [(queries.fail_ratio(WHERE, "instance", RATE), EACH)],
            "percentunit",
            most=0.1,
            min_step="5m",
            no_value=panels.NO_PARTS,
            size=(8, 8),
        ),
        panels.curves(
            "Unknown, by daemon",
            "Share of parts that nobody judged.",
            [(queries.unknown_ratio(WHERE, "instance", RATE), EACH)],
            "percentunit",
            most=0.02,
            min_step="5m",
            no_value=panels.NO_PARTS,
            size=(8, 8),
        ),
        panels.ranking(
            "Stations that fail most",
            "Share of parts in the time that is shown, the ten highest.",
            f"topk(10, {queries.fail_ratio(WHERE, 'instance, station', RANGE)})",
            "{{station}} at {{instance}}",
            "percentunit",
            decimals=1,
            steps=panels.FAILS,
            no_value=panels.NO_PARTS,
            size=(8, 9),
        ),
        panels.ranking(
            "Stations with most unknown parts",
            "Share of parts in the time that is shown, the ten highest.",
            f"topk(10, {queries.unknown_ratio(WHERE, 'instance, station', RANGE)})",
            "{{station}} at {{instance}}",
            "percentunit",
            decimals=2,
            steps=panels.UNKNOWNS,
            no_value=panels.NO_PARTS,
            size=(8, 9),
        ),
        panels.ranking(
            "Recipes that drift most",
            "Population stability index of the newest passing scores, the ten highest. Above 0.25: another process.",
            f"topk(10, max by (instance, recipe) (aprilcam_score_drift_psi{{{WHERE}}}))",
            "{{recipe}} at {{instance}}",
            "none",
            decimals=2,
            steps=panels.DRIFTS,
            no_value="not yet: it takes some hundred parts that passed",
            size=(8, 9),
        ),
    )


def _machines(board: Board) -> None:
    ours = f"and on (instance) aprilcam_build_info{{{WHERE}}}"
    board.row("Machines")
    board.add(
        panels.curves(
            "Time to judge, 95 % of parts",
            "From frame to finished judgement, all stations of a daemon.",
            [(queries.quantile(0.95, "aprilcam_latency_seconds", f'{WHERE},stage="total"', "instance", RATE), EACH)],
            "s",
            min_step="2m",
            no_value=panels.NO_PARTS,
            size=(8, 8),
        ),
        panels.curves(
            "Processor",
            "Cores that each daemon keeps busy; its camera processes are not in it.",
            [(f"max by (instance) (rate(process_cpu_seconds_total{{{WHERE}}}[{RATE}]) {ours})", EACH)],
            "none",
            no_value=AWAY,
            size=(8, 8),
        ),
        panels.curves(
            "Memory",
            "Of each daemon; its camera processes are not in it. It should not grow for days.",
            [(f"max by (instance) (process_resident_memory_bytes{{{WHERE}}} {ours})", EACH)],
            "bytes",
            no_value=AWAY,
            size=(8, 8),
        ),
        panels.curves(
            "GPU memory",
            "In use, by daemon.",
            [(f"max by (instance) (aprilcam_device_memory_bytes{{{WHERE}}})", EACH)],
            "bytes",
            no_value="no GPU: these daemons judge on their processors",
            size=(8, 8),
        ),
        panels.curves(
            "Archive",
            "Bytes of archived pictures. It stays under its limit by itself.",
            [(f"max by (instance) (aprilcam_archive_bytes{{{WHERE}}})", EACH)],
            "bytes",
            no_value="no daemon keeps an archive",
            size=(8, 8),
        ),
        panels.curves(
            "Oldest undelivered message",
            "One that keeps growing: the broker is away.",
            [(f"max by (instance) (aprilcam_outbox_oldest_age_seconds{{{WHERE}}})", EACH)],
            "s",
            steps=panels.DELAYS,
            most=60,
            no_value=AWAY,
            size=(8, 8),
        ),
    )
