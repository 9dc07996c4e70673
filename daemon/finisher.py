"""From an anomaly map to a result: score, verdict, regions, mask, messages.

Everything slow is done here, in a small pool; the ledger's thread, which alone knows the sequence, adds that and the part's
identity.
"""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from connectors.contract import FrameOut, ProcessingTimes, Reason, RegionOut, ResultOut, Topics, Verdict
from daemon.archive import Archive
from daemon.masks import tell_mask
from daemon.outbox import Message
from daemon.overlays import Overlays
from daemon.part import Outcome
from daemon.station import Taught, Ticket
from daemon.web.previews import Previews
from model.regions import Region, find_regions

log = logging.getLogger(__name__)


def uuid7(time_ns: int) -> str:
    """A UUIDv7 (RFC 9562 section 5.7): milliseconds since 1970, then 74 random bits."""
    value = (time_ns // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Finisher:
    """Turns maps and refusals into outcomes and ends their tickets."""

    def __init__(
        self,
        topics: Topics,
        threads: int = 2,
        on_error: Callable[[], None] = lambda: None,
        archive: Archive | None = None,
        on_late: Callable[[Ticket, Outcome], None] = lambda *_: None,
        overlays: Overlays | None = None,
        previews: Previews | None = None,
    ) -> None:
        """on_late: told of a judgement that came after its ticket had ended at the deadline."""
        self._topics = topics
        self._archive = archive
        self._overlays = overlays
        self._previews = previews
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="finisher")
        self._on_error = on_error
        self._on_late = on_late

    def close(self) -> None:
        """Finish what was handed over."""
        self._pool.shutdown(wait=True)

    def judged(self, ticket: Ticket, taught: Taught, anomaly_map: NDArray[np.float32], score: float, inference_s: float) -> None:
        """Hand over map (S x S) and score of the ticket's region of interest, judged by `taught`."""
        self._pool.submit(self._finish, ticket, taught, anomaly_map, score, inference_s)

    def unknown(self, ticket: Ticket, reason: Reason, detail: str | None, inference_s: float = 0.0) -> None:
        """End a ticket whose frame cannot be judged."""
        taken_s = ticket.taken_s or time.monotonic()
        self._end(ticket, self._outcome(ticket, "unknown", taken_s, inference_s, reason=reason, detail=detail))

    def _end(self, ticket: Ticket, outcome: Outcome) -> None:
        if ticket.station.finish(ticket, outcome):
            return
        if self._archive is not None:
            self._archive.release(outcome.result.result_id)
        if self._overlays is not None:
            self._overlays.release(outcome.result.result_id)
        if self._previews is not None:
            self._previews.release(outcome.result.result_id)
        ticket.frame = replace(ticket.frame, pixels=None)  # lets go of its slot of the camera's ring
        first = ticket.outcome
        if first is not None and first.result.reason == "deadline" and outcome.result.verdict != "unknown":
            self._on_late(ticket, outcome)

    def _finish(self, ticket: Ticket, taught: Taught, anomaly_map: NDArray[np.float32], score: float, inference_s: float) -> None:
        try:
            outcome = self._judge(ticket, taught, anomaly_map, score, inference_s)
        except Exception as error:
            log.exception("station %s: a frame could not be finished", ticket.station.name)
            self._on_error()
            self.unknown(ticket, "finish_failed", f"{type(error).__name__}: {error}", inference_s)
        else:
            self._end(ticket, outcome)

    def _judge(
        self, ticket: Ticket, taught: Taught, anomaly_map: NDArray[np.float32], score: float, inference_s: float
    ) -> Outcome:
        limits = ticket.program.limits
        if limits is None:
            raise ValueError(f"recipe {ticket.program.recipe.name!r} has no threshold")
        threshold = limits.score
        if score <= threshold:
            return self._outcome(
                ticket, "pass", ticket.taken_s, inference_s, taught=taught, score=score, threshold=threshold,
                anomaly_map=anomaly_map,
            )  # fmt: skip
        height, width = frame_size(ticket)
        mask, regions = find_regions(anomaly_map, width, height, limits.pixel)
        return self._outcome(
            ticket, "fail", ticket.taken_s, inference_s, taught=taught, score=score, threshold=threshold,
            regions=regions, mask=mask, anomaly_map=anomaly_map,
        )  # fmt: skip

    def _outcome(
        self,
        ticket: Ticket,
        verdict: Verdict,
        taken_s: float,
        inference_s: float,
        *,
        taught: Taught | None = None,
        reason: Reason | None = None,
        detail: str | None = None,
        score: float | None = None,
        threshold: float | None = None,
        regions: tuple[Region, ...] = (),
        mask: NDArray[np.uint8] | None = None,
        anomaly_map: NDArray[np.float32] | None = None,
    ) -> Outcome:
        """The archive, the overlays and the page's previews hold copies of the pixels for its result_id, if they want them.

        It holds no pixels itself: what waits for the ledger is not to hold a slot of the camera's ring.
        """
        frame, station, program = ticket.frame, ticket.station, ticket.program
        created_at = datetime.now(UTC)
        result_id = uuid7(int(created_at.timestamp() * 1e9))
        messages: tuple[Message, ...] = ()
        mask_out = None
        if mask is not None:
            mask_out, messages = tell_mask(mask, station.config.mask, self._topics.mask(station.name, result_id))
        queue_s = max(0.0, taken_s - frame.arrived_s - frame.acquire_s)
        finish_s = max(0.0, time.monotonic() - taken_s - inference_s)
        result = ResultOut(
            result_id=result_id,
            sequence=1,  # the ledger's thread alone knows it
            station=station.name,
            recipe=program.recipe.name,
            bank=taught.bank.name if taught and taught.bank else None,
            verdict=verdict,
            reason=reason,
            detail=detail,
            score=score,
            threshold=threshold,
            regions=tuple(RegionOut(**vars(region)) for region in regions),
            mask=mask_out,
            frame=FrameOut(
                camera=frame.camera,
                number=frame.number,
                timestamp_ns=frame.timestamp_ns,
                clock=frame.clock,
                timestamp_error_ns=frame.timestamp_error_ns,
                trigger=frame.trigger,
            ),
            created_at=created_at,
            processing_times=ProcessingTimes(
                acquire_s=round(frame.acquire_s, 6),
                queue_s=round(queue_s, 6),
                inference_s=round(inference_s, 6),
                finish_s=round(finish_s, 6),
            ),
            is_simulated=frame.is_simulated,
        )
        if self._archive is not None:
            self._archive.hold(result_id, verdict, frame.pixels, anomaly_map, program.region)
        if self._overlays is not None:
            self._overlays.hold(result_id, station.config, verdict, frame.pixels, mask, program.region)
        if self._previews is not None:
            self._previews.hold(result_id, station.name, verdict, frame.pixels, anomaly_map, program.region)
        return Outcome(result, messages, self._topics.result(station.name))


def frame_size(ticket: Ticket) -> tuple[int, int]:
    """(height, width) of what is judged: the region of interest, or the whole frame."""
    region, pixels = ticket.program.region, ticket.frame.pixels
    if region is not None:
        return region.height, region.width
    if pixels is None:
        raise ValueError("a frame without pixels has no size")
    return int(pixels.shape[0]), int(pixels.shape[1])
