"""A part: what became of its frames, and the one result that they make together."""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.contract import PartFrameOut, ResultOut
from daemon.ledger import Entry, Record
from daemon.outbox import Message

_WORST = {"fail": 0, "unknown": 1, "pass": 2}
"""A part with a defect fails, whatever its other frames say; one with a frame that nobody judged is not known to be good."""


@dataclass(frozen=True)
class Identity:
    """Which part it is, as the line names it (OPC 40100-1 `partId`, `jobId`)."""

    part_id: str | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one frame. `result`: as if it were a part of its own, without its sequence and identity.

    messages: to be published before the result. topic: where the result goes.
    """

    result: ResultOut
    messages: tuple[Message, ...]
    topic: str


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The one that decides: the highest score over its threshold among fails, else the first unknown, else the nearest pass."""

    def rank(outcome: Outcome) -> tuple[int, float]:
        result = outcome.result
        margin = result.score / result.threshold if result.score is not None and result.threshold else 0.0
        return _WORST[result.verdict], -margin

    return min(outcomes, key=rank)


def entry_of(outcomes: Sequence[Outcome], decides: Outcome, identity: Identity | None) -> Entry:
    """One result for the frames of a part, in the order in which they came: that of the `worst`, which names them all."""
    alone = decides.result
    identity = identity or Identity()
    frames: tuple[PartFrameOut, ...] = ()
    if len(outcomes) > 1:
        frames = tuple(
            PartFrameOut(frame=own.frame, verdict=own.verdict, reason=own.reason, score=own.score, decides=own is alone)
            for own in (outcome.result for outcome in outcomes)
        )

    def complete(sequence: int) -> Record:
        changes = {"sequence": sequence, "part_id": identity.part_id, "job_id": identity.job_id, "frames": frames}
        result = alone.model_copy(update=changes)
        document = result.encode()
        return Record(result, document, (*decides.messages, Message(decides.topic, document)))

    return Entry(alone.station, complete)
