"""Ledger entries for tests that need results but no model."""

import hashlib
from datetime import UTC, datetime

from connectors.contract import FrameOut, MaskOut, ProcessingTimes, RegionOut, ResultOut, Topics
from daemon.finisher import uuid7
from daemon.ledger import Entry, Record
from daemon.outbox import Message

TOPICS = Topics("test")


def entry(station: str, number: int, *, mask: bytes | None = None, regions: int = 0) -> Entry:
    """A pass, or a fail with this mask and so many regions (each with a polygon of about 300 bytes), of frame `number`."""
    result_id = uuid7(int(datetime.now(UTC).timestamp() * 1e9))

    def complete(sequence: int) -> Record:
        mask_out = None
        messages = []
        if mask is not None:
            topic = TOPICS.mask(station, result_id)
            messages.append(Message(topic, mask))
            mask_out = MaskOut(form="topic", topic=topic, sha256=hashlib.sha256(mask).hexdigest(), width=8, height=8)
        result = ResultOut(
            result_id=result_id,
            sequence=sequence,
            station=station,
            recipe="gear",
            bank="abc",
            verdict="pass" if mask is None else "fail",
            reason=None,
            score=0.1,
            threshold=0.5,
            regions=(RegionOut(x=0, y=0, width=8, height=8, area_px=9, peak=1.5, polygon=((100, 200),) * 32),) * regions,
            mask=mask_out,
            frame=FrameOut(camera="cam", number=number, timestamp_ns=1, clock="host", trigger="free_run"),
            created_at=datetime.now(UTC),
            processing_times=ProcessingTimes(acquire_s=0, queue_s=0, inference_s=0, finish_s=0),
            is_simulated=True,
        )
        document = result.encode()
        return Record(result, document, (*messages, Message(TOPICS.result(station), document)))

    return Entry(station, complete)
