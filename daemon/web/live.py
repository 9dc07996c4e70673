"""What happens, for the browsers that look: one server-sent event for each result and each changed state.

Results come from the ledger's thread, which only hands them to the server's event loop; a browser that does not keep up loses
the oldest events, never holds anybody.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from connectors.contract import ResultOut
from daemon.web.previews import Previews

MOST_VIEWERS = 50
"""Browsers that may listen at once."""
MOST_WAITING = 500
"""Events that wait for a browser; the oldest are given up."""
TICK_S = 1.0
"""How often states are looked at."""

Document = dict[str, Any]


class Live:
    """Hands events to browsers. `committed` may be called from any thread, the others on the server's event loop."""

    def __init__(self, previews: Previews, states: Callable[[], Mapping[str, Document]]) -> None:
        """states: how each station is, by name, ready for JSON."""
        self._previews = previews
        self._states = states
        self._viewers: set[asyncio.Queue[Document | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether no more browsers are taken."""
        return len(self._viewers) >= MOST_VIEWERS

    def committed(self, results: Sequence[ResultOut]) -> None:
        """The ledger has these results. Returns at once."""
        shown = self._previews.committed(results)
        loop = self._loop
        if loop is None or not self._viewers:
            return
        told = [{"event": "result", **result_row(result), "picture": result.result_id in shown} for result in results]
        with suppress(RuntimeError):  # the loop has just ended: so have the browsers' connections
            loop.call_soon_threadsafe(self._hand_out, told)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_out, [None])

    def _hand_out(self, told: Sequence[Document | None]) -> None:
        for queue in self._viewers:
            for document in told:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(document)

    async def stream(self, permitted: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Server-sent events (HTML living standard, 9.2) until the browser goes, may look no more, or the daemon stops."""
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Document | None] = asyncio.Queue(MOST_WAITING)
        self._viewers.add(queue)
        known: dict[str, Document] = {}
        try:
            yield b"retry: 1000\n\n"
            while not self._closed and permitted():
                self._previews.look()
                states = dict(self._states())
                for station, state in states.items():
                    if known.get(station) != state:
                        yield _event("state", state)
                if known.keys() != states.keys() and known:
                    yield _event("stations", {"stations": list(states)})
                known = states
                # Tells the browser that the daemon lives, where nothing else happens.
                yield _event("alive", {})
                ends_s = self._loop.time() + TICK_S
                while (left_s := ends_s - self._loop.time()) > 0:
                    try:
                        document = await asyncio.wait_for(queue.get(), left_s)
                    except TimeoutError:
                        break
                    if document is None:
                        return
                    yield _event("result", document)
        finally:
            self._viewers.discard(queue)


def _event(name: str, document: Document) -> bytes:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


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
    """The same of its columns. `at`: in the plant's zone, which is that of this machine; `utc`: for who compares logs."""
    return {
        "station": station,
        "sequence": sequence,
        "result_id": result_id,
        "recipe": recipe,
        "verdict": verdict,
        "reason": reason,
        "score": score,
        "threshold": threshold,
        "at": f"{created_at.astimezone():%H:%M:%S}",
        "utc": f"{created_at:%Y-%m-%d %H:%M:%S} UTC",
    }
