"""Sparkplug B 3.0: topics, payloads, and which metrics the edge node (the daemon) and its devices (the stations) have.

Nothing here has a thread or a connection; `daemon/edge_node.py` has. Sources are clauses of the Sparkplug specification 3.0.0.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from google.protobuf.message import DecodeError

from connectors.contract import ResultOut, StateOut
from connectors.sparkplug_b_pb2 import Metric, Payload

NAMESPACE = "spBv1.0"
MAX_COMMAND_BYTES = 64 << 10
REBIRTH = "Node Control/Rebirth"
BD_SEQ = "bdSeq"
RECIPE, TRIGGER, PART_ID, JOB_ID = "Control/Recipe", "Control/Trigger", "Control/Part ID", "Control/Job ID"
ANSWER = "Control/Answer"
STATE = "State/State"

Value = str | int | float | bool | None


class SparkplugError(ValueError):
    """A message that is no Sparkplug command or state; the text says why."""


class DataType(IntEnum):
    """The data types that our metrics have (clause 6.4.16)."""

    INT64 = 4
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATE_TIME = 13
    UUID = 15


class Reading(NamedTuple):
    """A value (DATE_TIME: ms since 1970) and when it came to be, ms since 1970."""

    value: Value
    timestamp_ms: int


@dataclass(frozen=True)
class Definition:
    """A metric as its birth certificate tells it."""

    name: str
    datatype: DataType
    alias: int


Readings = Mapping[str, Reading]
"""By the metric's name."""

NODE_METRICS: Mapping[str, DataType] = {
    BD_SEQ: DataType.INT64,
    REBIRTH: DataType.BOOLEAN,
    "Properties/Software": DataType.STRING,
    "Properties/Software Version": DataType.STRING,
    "Properties/OS": DataType.STRING,
    "Properties/OS Version": DataType.STRING,
}
DEVICE_METRICS: Mapping[str, DataType] = {
    "Result/Verdict": DataType.STRING,
    "Result/Reason": DataType.STRING,
    "Result/Score": DataType.DOUBLE,
    "Result/Threshold": DataType.DOUBLE,
    "Result/Regions": DataType.INT64,
    "Result/Result ID": DataType.UUID,
    "Result/Sequence": DataType.INT64,
    "Result/Part ID": DataType.STRING,
    "Result/Job ID": DataType.STRING,
    "Result/Recipe": DataType.STRING,
    "Result/Bank": DataType.STRING,
    "Result/Created At": DataType.DATE_TIME,
    "Result/Processing Time": DataType.DOUBLE,
    "Result/Simulated": DataType.BOOLEAN,
    "Counters/Pass": DataType.INT64,
    "Counters/Fail": DataType.INT64,
    "Counters/Unknown": DataType.INT64,
    STATE: DataType.STRING,
    "State/Reason": DataType.STRING,
    "State/Since": DataType.DATE_TIME,
    "State/Mode": DataType.STRING,
    "State/Bank": DataType.STRING,
    "State/Threshold": DataType.DOUBLE,
    "State/Threshold Stale": DataType.BOOLEAN,
    "State/Camera": DataType.STRING,
    RECIPE: DataType.STRING,
    TRIGGER: DataType.BOOLEAN,
    PART_ID: DataType.STRING,
    JOB_ID: DataType.STRING,
    ANSWER: DataType.STRING,
}
WRITABLE = (RECIPE, TRIGGER, PART_ID, JOB_ID)


@dataclass(frozen=True)
class Namespace:
    """The topics of one edge node (clause 4)."""

    group: str
    node: str

    def of_node(self, kind: str) -> str:
        """`kind`: NBIRTH, NDEATH, NDATA or NCMD."""
        return f"{NAMESPACE}/{self.group}/{kind}/{self.node}"

    def of_device(self, kind: str, device: str) -> str:
        """`kind`: DBIRTH, DDEATH, DDATA or DCMD; device "+" subscribes to all."""
        return f"{NAMESPACE}/{self.group}/{kind}/{self.node}/{device}"


def state_topic(host: str) -> str:
    """Where a host application tells whether it is online."""
    return f"{NAMESPACE}/STATE/{host}"


def following(number: int) -> int:
    """The next `seq` or `bdSeq`: both count to 255 and begin again at 0."""
    return (number + 1) % 256


def definitions(kinds: Mapping[str, DataType], first_alias: int) -> dict[str, Definition]:
    """By name. Aliases run on from `first_alias`: no two metrics of an edge node, devices included, may share one."""
    return {name: Definition(name, kind, first_alias + index) for index, (name, kind) in enumerate(kinds.items())}


def now_ms() -> int:
    """Ms since 1970."""
    return time.time_ns() // 1_000_000


def birth(known: Mapping[str, Definition], readings: Readings, seq: int) -> bytes:
    """NBIRTH or DBIRTH: every metric by name, alias, type and value; null where there is no reading."""
    now = now_ms()
    payload = Payload(timestamp=now, seq=seq)
    told = [(definition, readings.get(name, Reading(None, now))) for name, definition in known.items()]
    # Values in the order of time (tck-id-operational-behavior-data-publish-dbirth-order).
    for definition, reading in sorted(told, key=lambda one: one[1].timestamp_ms):
        metric = payload.metrics.add(name=definition.name, datatype=definition.datatype)
        _fill(metric, definition, reading)
    return _bytes(payload)


def data(known: Mapping[str, Definition], changed: Readings, seq: int) -> bytes:
    """DDATA: what changed, by alias alone."""
    payload = Payload(timestamp=now_ms(), seq=seq)
    for name, reading in sorted(changed.items(), key=lambda one: one[1].timestamp_ms):
        _fill(payload.metrics.add(), known[name], reading)
    return _bytes(payload)


def device_death(seq: int) -> bytes:
    """DDEATH."""
    return _bytes(Payload(timestamp=now_ms(), seq=seq))


def node_death(bd_seq: int) -> bytes:
    """NDEATH: `bdSeq` alone and no `seq`; the will of a connection, and what is said before it is ended on purpose."""
    now = now_ms()
    payload = Payload(timestamp=now)
    payload.metrics.add(name=BD_SEQ, datatype=DataType.INT64, timestamp=now, long_value=bd_seq)
    return _bytes(payload)


def _bytes(payload: Payload) -> bytes:
    encoded: bytes = payload.SerializeToString()
    return encoded


def _fill(metric: Metric, definition: Definition, reading: Reading) -> None:
    metric.alias = definition.alias
    metric.timestamp = reading.timestamp_ms
    value = reading.value
    if value is None:
        metric.is_null = True
        return
    match definition.datatype:
        case DataType.INT64 | DataType.DATE_TIME:
            metric.long_value = int(value) & 0xFFFF_FFFF_FFFF_FFFF
        case DataType.DOUBLE:
            metric.double_value = float(value)
        case DataType.BOOLEAN:
            metric.boolean_value = bool(value)
        case DataType.STRING | DataType.UUID:
            metric.string_value = str(value)


def changes(before: Readings, after: Readings) -> dict[str, Reading]:
    """The readings with another value."""
    return {name: reading for name, reading in after.items() if name not in before or before[name].value != reading.value}


def written(payload: bytes, known: Mapping[str, Definition]) -> dict[str, Value]:
    """What an NCMD or DCMD writes, by the metric's name. Raises SparkplugError where it is no command, names a metric that the
    birth certificate did not, or has a value of another type."""
    if len(payload) > MAX_COMMAND_BYTES:
        raise SparkplugError(f"{len(payload)} bytes, at most {MAX_COMMAND_BYTES}")
    try:
        return _written(Payload.FromString(payload), known)
    except (DecodeError, UnicodeDecodeError):
        raise SparkplugError("not a Sparkplug B payload") from None


def _written(command: Payload, known: Mapping[str, Definition]) -> dict[str, Value]:
    by_alias = {definition.alias: definition for definition in known.values()}
    values: dict[str, Value] = {}
    for metric in command.metrics:
        definition = known.get(metric.name) if metric.HasField("name") else by_alias.get(metric.alias)
        if definition is None:
            said = f"{metric.name[:80]!r}" if metric.HasField("name") else f"alias {metric.alias}"
            raise SparkplugError(f"no metric {said}. The birth certificate names those that are there")
        values[definition.name] = _value(metric, definition)
    return values


def _value(metric: Metric, definition: Definition) -> Value:
    field = metric.WhichOneof("value")
    if definition.datatype is DataType.BOOLEAN and field == "boolean_value":
        return metric.boolean_value
    if definition.datatype is DataType.STRING and field == "string_value":
        return metric.string_value
    raise SparkplugError(f"{definition.name} takes a {definition.datatype.name.capitalize()}, not {field or 'null'}")


@dataclass(frozen=True)
class HostState:
    """What a host application says of itself; `timestamp_ms` is that of its connection."""

    online: bool
    timestamp_ms: int


def host_state(payload: bytes) -> HostState:
    """A STATE message (clause 6.4.25). Raises SparkplugError."""
    try:
        document = json.loads(payload[:MAX_COMMAND_BYTES])
    except (ValueError, RecursionError):
        raise SparkplugError("not JSON, expected {online, timestamp}") from None
    online = document.get("online") if isinstance(document, dict) else None
    timestamp = document.get("timestamp") if isinstance(document, dict) else None
    if not isinstance(online, bool) or isinstance(timestamp, bool) or not isinstance(timestamp, int):
        raise SparkplugError("expected {online: true or false, timestamp: ms since 1970}")
    return HostState(online, timestamp)


def state_readings(state: StateOut) -> dict[str, Reading]:
    """A station's state as metrics."""
    values: dict[str, Value] = {
        STATE: state.state,
        "State/Reason": state.reason,
        "State/Since": _ms(state.since),
        "State/Mode": state.mode,
        "State/Bank": state.bank,
        "State/Threshold": state.threshold,
        "State/Threshold Stale": state.threshold_stale,
        "State/Camera": state.camera,
        RECIPE: state.recipe,
    }
    return stamped(values, now_ms())


def result_readings(result: ResultOut) -> dict[str, Reading]:
    """A result as metrics, its counters excepted."""
    values: dict[str, Value] = {
        "Result/Verdict": result.verdict,
        "Result/Reason": result.reason,
        "Result/Score": result.score,
        "Result/Threshold": result.threshold,
        "Result/Regions": len(result.regions),
        "Result/Result ID": result.result_id,
        "Result/Sequence": result.sequence,
        "Result/Part ID": result.part_id,
        "Result/Job ID": result.job_id,
        "Result/Recipe": result.recipe,
        "Result/Bank": result.bank,
        "Result/Created At": _ms(result.created_at),
        "Result/Processing Time": result.processing_times.total_s,
        "Result/Simulated": result.is_simulated,
    }
    return stamped(values, _ms(result.created_at))


def stamped(values: Mapping[str, Value], timestamp_ms: int) -> dict[str, Reading]:
    """All of one moment."""
    return {name: Reading(value, timestamp_ms) for name, value in values.items()}


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)


def dcmd_commands(values: Mapping[str, Value]) -> Iterable[tuple[str, dict[str, Value]]]:
    """(command, request) for what a DCMD writes. Raises SparkplugError for metrics that are not to be written."""
    for name in values:
        if name not in WRITABLE:
            raise SparkplugError(f"{name} cannot be written. Writable: {', '.join(WRITABLE)}")
    if RECIPE in values and values.get(TRIGGER):
        raise SparkplugError(f"{RECIPE} and {TRIGGER} in one message. Trigger once the recipe has changed")
    commands: list[tuple[str, dict[str, Value]]] = []
    if RECIPE in values:
        commands.append(("select_recipe", {"recipe": values[RECIPE]}))
    identity = {key: values[name] for key, name in (("part_id", PART_ID), ("job_id", JOB_ID)) if values.get(name)}
    if values.get(TRIGGER):
        commands.append(("trigger", identity))
    elif identity:
        commands.append(("part", identity))
    return commands
