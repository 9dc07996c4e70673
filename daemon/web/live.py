"""What happens, for the browsers that look: one server-sent event for each result and each changed state.

Results come from the ledger's thread, which only hands them to the server's event loop. Whatever is the same for all browsers is
done once for all: states are asked for once a second, events are encoded once. A browser that does not keep up loses the oldest
results, never holds anybody.
"""

import asyncio
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from connectors.contract import ResultOut
from daemon.web.moments import plant_and_utc
from daemon.web.previews import Previews

MOST_VIEWERS = 50
"""Browsers that may listen at once."""
MOST_WAITING = 500
"""Events that wait for a browser; the oldest are given up."""
TICK_S = 1.0
"""How often states are looked at."""
ROUND_S = 0.1
"""Every browser has its turn once in this time, and hears what has happened since its last: not all at once, or all would ask
for a picture at once, and the interpreter would be theirs for longer than a frame may wait."""
TOGETHER = 5
"""Browsers that have their turn together: to wake the server costs more than to tell one more."""

Document = dict[str, Any]


class _Viewer:
    """A browser. Of the server's event loop alone."""

    def __init__(self, looks: bool) -> None:
        """looks: at results and pictures; else only whether the daemon lives, and how stations are."""
        self.looks = looks
        self.waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self.turn = asyncio.Event()
        self.ended = False


def _have_their_turn(viewers: Iterable[_Viewer]) -> None:
    """Wake those for whom there is something."""
    for viewer in viewers:
        if viewer.waiting:
            viewer.turn.set()


class Live:
    """Hands events to browsers. `committed` and `close` may be called from any thread, the others on the server's event loop."""

    def __init__(self, previews: Previews, states: Callable[[], Mapping[str, Document]]) -> None:
        """states: how each station is, by name, ready for JSON."""
        self._previews = previews
        self._states = states
        self._viewers: set[_Viewer] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._newest: dict[str, ResultOut] = {}
        """By station."""
        self._told: dict[str, bytes] = {}
        """By station, the event of its state."""
        self._ticking: asyncio.Task[None] | None = None
        self._in_round = False
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether no more browsers are taken."""
        return len(self._viewers) >= MOST_VIEWERS

    def committed(self, results: Sequence[ResultOut]) -> None:
        """The ledger has these results. Returns at once."""
        shown = self._previews.committed(results)
        self._newest.update({result.station: result for result in results})
        loop = self._loop
        if loop is None or not any(viewer.looks for viewer in list(self._viewers)):
            return
        events = [_event("result", {**result_row(result), "picture": result.result_id in shown}) for result in results]
        with suppress(RuntimeError):  # the loop has just ended: so have the browsers' connections
            loop.call_soon_threadsafe(self._hand_out, events)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for viewer in self._viewers:
            viewer.turn.set()

    def _hand_out(self, events: Sequence[bytes], *, everybody: bool = False) -> None:
        for viewer in self._viewers:
            if viewer.looks or everybody:
                viewer.waiting.extend(events)
        if not self._in_round:
            self._begin_round()

    def _begin_round(self) -> None:
        """Each browser has its turn; then another round, as long as something waits."""
        self._in_round = any(viewer.waiting for viewer in self._viewers)
        if not self._in_round:
            return
        loop = asyncio.get_running_loop()
        viewers = list(self._viewers)
        for place in range(0, len(viewers), TOGETHER):
            loop.call_later(ROUND_S * place / len(viewers), _have_their_turn, viewers[place : place + TOGETHER])
        loop.call_later(ROUND_S, self._begin_round)

    def _ask_states(self) -> None:
        states = self._states()
        self._told = {station: _event("state", state) for station, state in states.items()}
        if looking := sum(viewer.looks for viewer in self._viewers):
            self._previews.look(looking * len(states))

    async def _tick(self) -> None:
        """For all browsers together, as long as there is one."""
        try:
            while self._viewers and not self._closed:
                await asyncio.sleep(TICK_S)
                self._ask_states()
                # Tells the browsers that the daemon lives, where nothing else happens.
                self._hand_out([ALIVE], everybody=True)
        finally:
            for viewer in self._viewers:  # however it ended: they come again, and it begins again
                viewer.ended = True
                viewer.turn.set()

    async def stream(self, permitted: Callable[[], bool], *, looks: bool = True) -> AsyncIterator[bytes]:
        """Server-sent events (HTML living standard, 9.2) until the browser goes, may look no more, or the daemon stops.

        looks: whether results are wanted, and so their pictures."""
        self._loop = asyncio.get_running_loop()
        viewer = _Viewer(looks)
        self._viewers.add(viewer)
        known: dict[str, bytes] = {}
        asked_s = -math.inf
        try:
            self._ask_states()
            if self._ticking is None or self._ticking.done():
                self._ticking = self._loop.create_task(self._tick())
            yield b"retry: 1000\n\n"
            viewer.waiting.append(ALIVE)
            if looks:  # what came after the page was made and before this: an idle line may have no other for long
                newest = list(self._newest.values())
                viewer.waiting.extend(_event("result", {**result_row(own), "picture": False}) for own in newest)
            viewer.turn.set()
            while await viewer.turn.wait() and not (self._closed or viewer.ended):
                viewer.turn.clear()
                if (now_s := self._loop.time()) >= asked_s + TICK_S:
                    if not permitted():
                        return
                    asked_s = now_s
                told = self._told
                events = [event for station, event in told.items() if known.get(station) != event]
                if known.keys() != told.keys() and known:
                    events.append(_event("stations", {"stations": list(told)}))
                known = told
                events += viewer.waiting
                viewer.waiting.clear()
                yield b"".join(events)
        finally:
            self._viewers.discard(viewer)


def _event(name: str, document: Document) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


ALIVE = _event("alive", {})


def result_row(result: ResultOut) -> Document:
    """A result as the page shows it."""
    return row(
        result.station, result.sequence, result.result_id, result.recipe, result.verdict, result.reason, result.score,
        result.threshold, result.created_at,
    )  # fmt: skip


def row(
    station: str,
    sequence: int,
    result_id: str,
    recipe: str,
    verdict: str,
    reason: str | None,
    score: float | None,
    threshold: float | None,
    created_at: datetime,
) -> Document:
    """The same of its columns. `at`: the time of day, see `plant_and_utc`."""
    at, utc = plant_and_utc(created_at)
    return {
        "station": station,
        "sequence": sequence,
        "result_id": result_id,
        "recipe": recipe,
        "verdict": verdict,
        "reason": reason,
        "score": score,
        "threshold": threshold,
        "at": at.partition(" ")[2],
        "utc": utc,
    }
