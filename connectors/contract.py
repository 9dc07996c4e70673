"""The MQTT contract: every topic and every payload, in one place (docs/mqtt/ is generated from here with `make docs`).

COMPATIBILITY is the promise to readers.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

COMPATIBILITY = """Within one number of `schema` (`aprilcam.result/1`) fields, topics, event kinds and reasons are only added;
none is renamed, removed, or given another meaning or type. A reader ignores fields, kinds and topics that it does not know, and
takes a reason that it does not know for one more cause of an unknown verdict. Anything else gets a new number, which is
told in the release notes. Requests are read strictly: a field that is not known is refused."""
"""The promise to readers."""

Verdict = Literal["pass", "fail", "unknown"]
Reason = Literal[
    "incomplete",
    "unreadable",
    "overload",
    "not_taught",
    "region_outside_frame",
    "model_failed",
    "finish_failed",
    "stopped",
    "deadline",
    "no_frame",
]
"""Why a verdict is unknown: the camera's buffer was incomplete, or nothing of a frame that it numbered arrived; the picture
could not be read; no room in time; nothing can judge yet (no bank, and no words); the frame does not hold the recipe's region;
the model or the finisher raised; the daemon stopped first; no judgement by the station's deadline; a trigger's frame did not
come."""
Mode = Literal["zero_shot", "few_shot", "both"]
StationState = Literal["Preoperational", "Initialized", "Ready", "ContinuousExecution", "SingleExecution", "Halted", "Error"]
"""OPC 40100-1's states. ContinuousExecution: camera and bank are there, a verdict follows each part. Halted: a folder that
plays once is at its end. Preoperational: the camera is not there. Error: nothing can judge (no usable bank, and no words)."""


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Moment = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]
"""An aware moment, written as RFC 3339 in UTC with microseconds and Z."""


class Payload(BaseModel):
    """Base of every payload."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True, validate_by_name=True)

    def encode(self) -> bytes:
        """UTF-8 JSON."""
        return self.model_dump_json().encode()


class RegionOut(Payload):
    """One connected part of the mask, in pixels of the region of interest."""

    x: int
    y: int
    width: int
    height: int
    area_px: int
    peak: float
    polygon: tuple[tuple[int, int], ...]


MaskForm = Literal["topic", "inline", "polygon", "rle"]
"""How the mask of a result is told. topic: a 1 bit PNG on its own topic. inline: that PNG in the result. polygon: by the
`polygon` of each region. rle: COCO run lengths."""


class RunLengths(Payload):
    """A mask as COCO has it, not compressed: pixels column by column from the upper left, runs of background and of mask in
    turn. The first run is background, and 0 where the first pixel is mask. `size` is height, width."""

    size: tuple[int, int]
    counts: tuple[int, ...]


class MaskOut(Payload):
    """The mask of a result, `width` x `height` pixels: those of the region of interest.

    `topic`, `sha256` (hex, of the PNG): with form `topic`; that message comes before the result. `png` (base64), `sha256`: with
    form `inline`. `rle`: with form `rle`.
    """

    form: MaskForm
    width: int
    height: int
    topic: str | None = None
    sha256: str | None = None
    png: str | None = None
    rle: RunLengths | None = None


class FrameOut(Payload):
    """Which frame was judged. `clock` says whose time `timestamp_ns` is, in nanoseconds: camera: the camera's ticks, from a
    start of its own. host: since 1970 UTC, when the frame came. camera_utc: when the camera took it, mapped to UTC as this
    computer has it. ptp: since 1970 as the PTP master counts, which is TAI (37 s ahead of UTC since 2017) unless the plant's
    master sends UTC. `timestamp_error_ns`: at most so far from the true time; null where that is not known."""

    camera: str
    number: int
    timestamp_ns: int
    clock: Literal["camera", "host", "ptp", "camera_utc"]
    timestamp_error_ns: int | None = None
    trigger: str


class PartFrameOut(Payload):
    """One of several frames of a part. `decides`: the part's verdict, score, regions and mask are this frame's."""

    frame: FrameOut
    verdict: Verdict
    reason: Reason | None
    score: float | None
    decides: bool


class ProcessingTimes(Payload):
    """Seconds from stage to stage (OPC 40100-1 `processingTimes`)."""

    acquire_s: float
    queue_s: float
    inference_s: float
    finish_s: float

    @property
    def total_s(self) -> float:
        """From the driver's frame to the finished judgement."""
        return self.acquire_s + self.queue_s + self.inference_s + self.finish_s


class ResultOut(Payload):
    """The record of one inspected part. It fails when `score` is above `threshold`; `unknown` counts as a fail.

    `part_id`, `job_id`: as a command named them. `frames`: where a part has several, all of them; the worst decides.
    """

    schema_: Literal["aprilcam.result/1"] = Field(default="aprilcam.result/1", alias="schema")
    result_id: str
    sequence: int = Field(ge=1)
    station: str
    recipe: str
    bank: str | None
    part_id: str | None = None
    job_id: str | None = None
    verdict: Verdict
    reason: Reason | None
    detail: str | None = None
    score: float | None
    threshold: float | None
    regions: tuple[RegionOut, ...]
    mask: MaskOut | None
    frame: FrameOut
    created_at: Moment
    processing_times: ProcessingTimes
    is_simulated: bool
    frames: tuple[PartFrameOut, ...] = ()


class StateOut(Payload):
    """What a station is doing, retained. `mode`: what judges (a bank, words, or both); null while nothing can.
    `threshold_stale`: the threshold was set as a number when another bank judged; it stays in force until it is set again."""

    schema_: Literal["aprilcam.state/1"] = Field(default="aprilcam.state/1", alias="schema")
    station: str
    state: StationState
    reason: str | None
    recipe: str
    mode: Mode | None
    bank: str | None
    threshold: float | None
    threshold_stale: bool = False
    camera: str
    since: Moment


EventKind = Literal[
    "build_started",
    "build_progress",
    "bank_built",
    "build_failed",
    "threshold_refined",
    "shot_held",
    "bank_corrupt",
    "recipe_prepared",
    "recipe_selected",
    "threshold_stale",
    "messages_lost",
]
"""A bank's build began, goes on (at most once a second), ended with a bank that judges from now on, or failed and left the
old bank in place; marked parts moved the threshold; a picture was held back from becoming a reference shot; a stored bank was
damaged and is built again.
What judges a recipe was made ready for a station that is to change to it; the station inspects by it from its next frame on.
A threshold that was set as a number stays in force although another bank judges now.
Something that was to be published was given up (docs/delivery.md): how many `masks`, `polygons` (of results sent without
them), `results` and `events`, the `first_sequence` and `last_sequence` of the results where some are gone, and `reasons`."""


class EventOut(Payload):
    """Something that happened to a station's recipe, or to one that no station has: that is told at every station. `detail`
    depends on `kind`: build, bank, shot, reason, seconds ..."""

    schema_: Literal["aprilcam.event/1"] = Field(default="aprilcam.event/1", alias="schema")
    station: str
    recipe: str
    kind: EventKind
    detail: dict[str, str | int | float | bool | None]
    created_at: Moment


TlsUse = Literal["off", "verified", "hostname_not_checked"]
"""How the daemon's own connection to the broker is secured. hostname_not_checked: by TLS, but any certificate of the CA passes
for the broker's."""


class StatusOut(Payload):
    """Whether the daemon is there, retained; `offline` is its will. `since` is when this process started."""

    schema_: Literal["aprilcam.status/1"] = Field(default="aprilcam.status/1", alias="schema")
    status: Literal["online", "stopped", "offline"]
    version: str
    since: Moment
    tls: TlsUse = "off"


@dataclass(frozen=True)
class Channel:
    """A topic of the tree. `schema`: the name of its JSON Schema; None where the payload is a picture or depends on the topic."""

    address: str
    about: str
    retained: bool = False
    content_type: str = "application/json"
    schema: str | None = None


CHANNELS = {
    "status": Channel("{prefix}/status", "Whether the daemon is there", retained=True, schema="status"),
    "state": Channel("{prefix}/{station}/state", "What a station is doing", retained=True, schema="state"),
    "result": Channel("{prefix}/{station}/result", "The result of every part", schema="result"),
    "last": Channel("{prefix}/{station}/last", "The newest result", retained=True, schema="result"),
    "mask": Channel(
        "{prefix}/{station}/mask/{result_id}",
        "The mask of a result, 1 bit, in pixels of the region of interest; published before its result",
        content_type="image/png",
    ),
    "overlay": Channel(
        "{prefix}/{station}/overlay",
        "The newest part with the outline of its mask and its verdict, for operator panels",
        retained=True,
        content_type="image/jpeg",
    ),
    "event": Channel("{prefix}/{station}/event", "Something that happened to a recipe", schema="event"),
    "command": Channel("{prefix}/{station}/command/{command}", "A request; never retained"),
    "reply": Channel("{prefix}/{station}/reply", "The answer to a command that names no response topic", schema="reply"),
}
"""Every topic, by name. All go at QoS 1."""


@dataclass(frozen=True)
class Topics:
    """The topic tree under one prefix: the addresses of CHANNELS."""

    prefix: str

    def _of(self, channel: str, station: str = "", **more: str) -> str:
        return CHANNELS[channel].address.format(prefix=self.prefix, station=station, **more)

    @property
    def status(self) -> str:
        """Retained StatusOut."""
        return self._of("status")

    def state(self, station: str) -> str:
        """Retained StateOut."""
        return self._of("state", station)

    def result(self, station: str) -> str:
        """ResultOut of every part."""
        return self._of("result", station)

    def last(self, station: str) -> str:
        """Retained ResultOut, the newest."""
        return self._of("last", station)

    def event(self, station: str) -> str:
        """EventOut."""
        return self._of("event", station)

    def mask(self, station: str, result_id: str) -> str:
        """1 bit PNG in the coordinates of the region of interest."""
        return self._of("mask", station, result_id=result_id)

    def overlay(self, station: str) -> str:
        """Retained JPEG."""
        return self._of("overlay", station)

    def parse(self, topic: str) -> tuple[str, str]:
        """(station, what) of one of our topics, as ("press", "mask")."""
        own = f"{self.prefix}/"
        if topic.startswith(own):
            station, _, rest = topic.removeprefix(own).partition("/")
            return station, rest.partition("/")[0]
        # What waits in an outbox from before the prefix was changed.
        parts = ["", "", *topic.split("/")]
        return (parts[-3], "mask") if parts[-2] == "mask" else (parts[-2], parts[-1])

    def command(self, station: str, name: str) -> str:
        """A request of `connectors.requests`; "+" for either subscribes to all."""
        return self._of("command", station, command=name)

    def reply(self, station: str) -> str:
        """ReplyOut, to commands that name no response topic."""
        return self._of("reply", station)


PAYLOADS: dict[str, type[Payload]] = {"result": ResultOut, "state": StateOut, "event": EventOut, "status": StatusOut}
"""What the daemon tells of itself, by the name of its schema. Answers to commands: `connectors.requests`."""


def schema_files() -> Iterator[tuple[str, str]]:
    """(file name, text) of every JSON Schema that docs/mqtt ships."""
    for name, model in PAYLOADS.items():
        schema = model.model_json_schema(by_alias=True, mode="serialization")
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        yield f"{name}.schema.json", json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for file_name, text in schema_files():
        (Path(sys.argv[1]) / file_name).write_text(text)
