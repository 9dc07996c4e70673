"""A Sparkplug host for the tests: it hears a node, holds each message against the specification, and sends commands."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.publish as publish

from connectors.sparkplug_b_pb2 import Metric, Payload
from tests.broker import Heard, Listener

GROUP, NODE = "plant", "line2"
VALUE_OF = {4: "longValue", 10: "doubleValue", 11: "booleanValue", 12: "stringValue", 13: "longValue", 15: "stringValue"}
"""Which field holds a value of each data type (clause 6.4.17)."""
VALUES = set(VALUE_OF.values()) | {"intValue", "floatValue", "bytesValue"}


def fields(message: Any) -> dict[str, Any]:
    """A protobuf message as a dict, by the names that Tahu's JavaScript uses."""
    told: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        repeated = descriptor.name == "metrics"
        told[descriptor.camelcase_name] = [fields(one) for one in value] if repeated else value
    return told


@dataclass
class Session:
    """What a host knows after a node's messages: of the last birth and all that followed it."""

    bd_seq: int | None = None
    online: bool = False
    seq: int = 0
    node: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Values by name, of the devices that are there."""
    aliases: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    """(device, name, data type); device "" is the node."""


class Host:
    """Hears everything of the namespace."""

    def __init__(self, port: int, *, late: bool = False) -> None:
        """`late`: the node may be in a session already; what comes before its next birth is not looked at."""
        self._port = port
        self._late = late
        self._listener = Listener(port, "spBv1.0/#")
        self._checked = 0
        self.session = Session()
        self.births: list[int] = []
        """bdSeq of each NBIRTH."""
        self.deaths: list[int] = []
        """bdSeq of each NDEATH."""
        self.kinds: list[str] = []
        """Type of each message, and its device."""
        self.changes: list[tuple[str, dict[str, Any]]] = []
        """(device, changed values) of each DDATA."""
        self.results: list[tuple[str, dict[str, Any]]] = []
        """(device, all its values) after each DDATA with a result."""

    @property
    def heard(self) -> list[Heard]:
        return [
            heard
            for heard in list(self._listener.heard)
            if heard.topic.split("/")[2] not in ("NCMD", "DCMD") and "/STATE/" not in heard.topic
        ]

    def check(self) -> Session:
        """Take in what came since, each message held against the rules."""
        heard = self.heard
        for message in heard[self._checked :]:
            self._checked += 1
            self._take(message)
        return self.session

    def _take(self, message: Heard) -> None:
        space, group, kind, node, *device = message.topic.split("/")
        assert (space, group, node) == ("spBv1.0", GROUP, NODE)
        self._late = self._late and kind != "NBIRTH"
        if self._late:
            return
        assert len(device) == (kind in ("DBIRTH", "DDEATH", "DDATA"))
        assert not message.retained
        assert message.qos == (kind == "NDEATH")
        payload = fields(Payload.FromString(message.payload))
        assert abs(payload["timestamp"] - time.time() * 1e3) < 120_000
        metrics = payload.get("metrics", [])
        stamps = [metric["timestamp"] for metric in metrics]
        assert stamps == sorted(stamps)
        self.kinds.append(" ".join((kind, *device)))
        session = self.session
        if kind == "NDEATH":
            assert "seq" not in payload
            [metric] = metrics
            assert (metric["name"], metric["datatype"]) == ("bdSeq", 4)
            self.deaths.append(metric.get("longValue"))
            if self.deaths[-1] == session.bd_seq:
                session.online, session.devices = False, {}
            return
        if kind == "NBIRTH":
            assert payload["seq"] == 0
            self.session = session = Session(online=True)
            session.node = self._born(session, "", metrics)
            assert session.node["Node Control/Rebirth"] is False
            session.bd_seq = session.node["bdSeq"]
            assert ("", "bdSeq", 4) in session.aliases.values()
            assert session.bd_seq in range(256)
            self.births.append(session.bd_seq)
            return
        assert session.online, f"{kind} without NBIRTH"
        assert payload["seq"] == (session.seq + 1) % 256
        session.seq = payload["seq"]
        [name] = device
        if kind == "DBIRTH":
            assert name not in session.devices
            session.devices[name] = self._born(session, name, metrics)
        elif kind == "DDEATH":
            del session.devices[name]
            assert not metrics
        else:
            assert kind == "DDATA"
            changed = {}
            for metric in metrics:
                assert not {"name", "datatype"} & set(metric)
                owner, metric_name, datatype = session.aliases[metric["alias"]]
                assert owner == name
                changed[metric_name] = value = self._value(metric, datatype)
                assert session.devices[name][metric_name] != value, f"{metric_name} has not changed"
            assert changed
            session.devices[name].update(changed)
            self.changes.append((name, changed))
            if "Result/Result ID" in changed:
                self.results.append((name, dict(session.devices[name])))

    def _born(self, session: Session, device: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
        values = {}
        for metric in metrics:
            known = session.aliases.get(metric["alias"])
            assert known is None or known[:2] == (device, metric["name"]), "an alias of two metrics"
            session.aliases[metric["alias"]] = (device, metric["name"], metric["datatype"])
            values[metric["name"]] = self._value(metric, metric["datatype"])
        assert len(values) == len(metrics)
        return values

    @staticmethod
    def _value(metric: dict[str, Any], datatype: int) -> Any:
        if metric.get("isNull"):
            assert not VALUES & set(metric)
            return None
        assert VALUES & set(metric) == {VALUE_OF[datatype]}
        return metric[VALUE_OF[datatype]]

    def of(self, kind: str) -> list[Heard]:
        return [heard for heard in self.heard if heard.topic.split("/")[2] == kind]

    def send(self, kind: str, payload: bytes, device: str | None = None, *, retain: bool = False) -> None:
        topic = f"spBv1.0/{GROUP}/{kind}/{NODE}" + (f"/{device}" if device else "")
        publish.single(topic, payload, qos=0, retain=retain, port=self._port)

    def rebirth(self) -> None:
        self.send("NCMD", command(Metric(name="Node Control/Rebirth", boolean_value=True)))

    def write(self, device: str, **values: str | bool) -> None:
        """Control metrics: `Recipe`, `Trigger` ...; a device's aliases are known from its birth, so they are used."""
        aliases = {(owner, name): alias for alias, (owner, name, _) in self.session.aliases.items()}
        metrics = []
        for name, value in values.items():
            metric = Metric(alias=aliases[device, f"Control/{name.replace('_', ' ')}"])
            setattr(metric, "boolean_value" if isinstance(value, bool) else "string_value", value)
            metrics.append(metric)
        self.send("DCMD", command(*metrics), device)

    def tell(self, host: str, online: bool, timestamp_ms: int) -> None:
        """As a host application: its STATE, retained."""
        self.send_state(host, json.dumps({"online": online, "timestamp": timestamp_ms}).encode())

    def send_state(self, host: str, payload: bytes) -> None:
        publish.single(f"spBv1.0/STATE/{host}", payload, qos=1, retain=True, port=self._port)

    def close(self) -> None:
        self._listener.close()


def command(*metrics: Any) -> bytes:
    """An NCMD or DCMD payload."""
    payload = Payload(timestamp=int(time.time() * 1e3))
    payload.metrics.extend(metrics)
    return bytes(payload.SerializeToString())
