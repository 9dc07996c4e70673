"""The page of one station: its newest parts with what the model saw, their scores against the calibration, how fast it is."""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from connectors.contract import ProcessingTimes
from daemon.ledger import Ledger
from daemon.station import Program
from daemon.web.access import Endpoint
from daemon.web.html import Html
from daemon.web.live import Document, row
from daemon.web.previews import Previews

FILM = 100
"""Newest results that are shown one by one, and whose latency is."""
SCORES = 500
"""Newest results whose scores are shown, where the present recipe judged them."""
KEPT_S = 1.0
"""What is read from the ledger for one who looks serves all who look so soon after."""
# TEXT, as SQLite takes a BLOB for its own binary form.
_FILM = """
SELECT results.station, sequence, results.result_id, results.recipe, results.verdict, results.reason, results.score,
    results.threshold, results.created_ns, json_extract(CAST(document AS TEXT), '$.processing_times'), {archived}, {mark}
FROM results {joined} WHERE results.station = ? ORDER BY sequence DESC LIMIT ?
"""
_PLAIN = _FILM.format(archived="NULL", mark="NULL", joined="")
_WITH_ARCHIVE = _FILM.format(
    archived="archived.result_id",
    mark="marks.mark",
    joined="LEFT JOIN archived ON archived.result_id = results.result_id LEFT JOIN marks ON marks.result_id = results.result_id",
)
_SCORES = "SELECT score, recipe FROM results WHERE station = ? ORDER BY sequence DESC LIMIT ?"


class StationPage:
    """Look at a station closely, and move its threshold."""

    def __init__(
        self,
        html: Html,
        states: Callable[[], Mapping[str, Document]],
        ledger: Ledger,
        previews: Previews,
        program: Callable[[str], Program | None],
    ) -> None:
        """states, program: how each station is, and what it inspects by."""
        self._html = html
        self._states = states
        self._ledger = ledger
        self._previews = previews
        self._program = program
        self.archived = False
        """The ledger has the archive's tables."""
        self._read_lock = threading.Lock()
        self._read: dict[str, tuple[float, Document]] = {}

    def shown(self) -> Mapping[str, Endpoint]:
        """What a viewer may see, by path."""
        return {"/station/{station}": self._page, "/station/{station}/now": self._now}

    def _page(self, request: Request) -> Response:
        name, states = request.path_params["station"], self._states()
        if name not in states:
            answer = self._html.page(request, "station_gone.html", station=name, starting=not states)
            answer.status_code = 503 if not states else 404
            return answer
        return self._html.page(request, "station.html", station=name, now=self._document(name, states[name], fresh=True))

    def _now(self, request: Request) -> Response:
        """What the page asks for again and again, beside the events: it tells what those of one moment cannot. ?fresh: for who
        has just changed something."""
        name = request.path_params["station"]
        state = self._states().get(name)
        if state is None:
            return PlainTextResponse("no such station\n", status_code=404)
        fresh = "fresh" in request.query_params and request.state.visitor.role == "engineer"
        return JSONResponse(self._document(name, state, fresh=fresh))

    def _document(self, name: str, state: Document, *, fresh: bool) -> Document:
        self._previews.look()
        self._previews.look_closer(name)
        with self._read_lock:
            at_s, read = self._read.get(name, (-math.inf, {}))
            if fresh or time.monotonic() - at_s > KEPT_S:
                read = self._results(name)
                self._read[name] = time.monotonic(), read
        # Scores by another recipe's bank say nothing about this one's threshold.
        scores = [score for score, recipe in read["scored"] if recipe == state["recipe"] and score is not None]
        return {
            "state": state,
            "rows": read["rows"],
            "scores": scores,
            "calibration": self._calibration(name),
            "latency": read["latency"],
            "most": {"rows": FILM, "scores": SCORES},
        }

    def _results(self, name: str) -> Document:
        with closing(self._ledger.reader()) as reader:
            told = reader.execute(_WITH_ARCHIVE if self.archived else _PLAIN, (name, FILM)).fetchall()
            scored = reader.execute(_SCORES, (name, SCORES)).fetchall()
        rows, times_ms = [], []
        for *shown, created_ns, times, archived, mark in told:
            own = row(*(*shown, datetime.fromtimestamp(created_ns / 1e9, UTC)))
            rows.append({**own, "archived": archived is not None, "mark": mark or "none"})
            times_ms.append(round(1e3 * ProcessingTimes(**json.loads(times)).total_s, 2))
        return {"rows": rows, "scored": scored, "latency": _latency(times_ms)}

    def _calibration(self, name: str) -> Document | None:
        program = self._program(name)
        if program is None or (calibration := program.calibration) is None:
            return None
        return {
            "threshold": calibration.threshold,
            "shot_scores": calibration.shot_scores,
            "advice": calibration.advice,
            # As a number or a factor, by an engineer or the configuration file.
            "by_hand": program.threshold is not None and not math.isclose(program.threshold, calibration.threshold, rel_tol=1e-6),
        }


def _latency(newest_ms: list[float]) -> Document | None:
    """Of milliseconds, newest first; nearest-rank percentiles. None of none."""
    if not newest_ms:
        return None
    ranked = sorted(newest_ms)
    half, most = (ranked[math.ceil(share * len(ranked)) - 1] for share in (0.5, 0.99))
    return {"half_ms": half, "most_ms": most, "slowest_ms": ranked[-1], "newest_ms": newest_ms}
