"""Every message of a tree against docs/mqtt: what is not in the contract, or not as it says, is a complaint."""

import base64
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import jsonschema

from connectors.contract import CHANNELS

DOCS = Path(__file__).parent.parent / "docs" / "mqtt"
VALIDATORS = {
    name: jsonschema.Draft202012Validator(json.loads((DOCS / f"{name}.schema.json").read_text()))
    for name in ("result", "state", "event", "status", "reply")
}
COMMANDS = json.loads((DOCS / "commands.schema.json").read_text())
ANSWERS = {
    name: jsonschema.Draft202012Validator({"$defs": COMMANDS["$defs"], **command["answer"]})
    for name, command in COMMANDS["commands"].items()
}


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG of 1 bit grey, from its header (PNG specification, section 11.2.1)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (depth, colour) == (1, 0), f"expected 1 bit grey, got {depth} bit of colour type {colour}"
    return width, height


class ContractCheck:
    """The messages below one prefix, in the order in which they come."""

    def __init__(self, prefix: str) -> None:
        self.complaints: list[str] = []
        self.checked: dict[str, int] = {}
        """How many were found right, by channel."""
        self._prefix = prefix
        self._masks: dict[str, bytes] = {}
        self._channels = {name: self._pattern(channel.address) for name, channel in CHANNELS.items()}
        # A response topic of the requester's choice may be below `reply`.
        self._channels["reply"] = re.compile(self._channels["reply"].pattern + r"(/.+)?")

    def _pattern(self, address: str) -> re.Pattern[str]:
        begin, _, rest = address.partition("{prefix}")
        return re.compile(begin + re.escape(self._prefix) + re.sub(r"\{\w+\}", "[^/]+", rest))

    def see(self, topic: str, payload: bytes) -> None:
        """Check one message; never raises."""
        name = next((name for name, pattern in self._channels.items() if pattern.fullmatch(topic)), None)
        try:
            assert name is not None, "no topic of the contract"
            self._check(name, topic, payload)
        except Exception as error:
            self.complaints.append(f"{topic}: {type(error).__name__}: {str(error)[:2000]}: {payload[:300]!r}")
        else:
            self.checked[name] = self.checked.get(name, 0) + 1

    def _check(self, name: str, topic: str, payload: bytes) -> None:
        match name:
            case "command":
                return  # ours to read, and others' to send: tests send wrong ones on purpose
            case "state" | "last" | "overlay" if not payload:
                return  # the station was removed, and what was retained of it is cleared
            case "mask":
                png_size(payload)
                self._masks[topic] = payload
                return
            case "overlay":
                assert (payload[:3], payload[-2:]) == (b"\xff\xd8\xff", b"\xff\xd9"), "not a JPEG"
                return
        document = json.loads(payload)
        schema = CHANNELS[name].schema
        assert schema is not None
        VALIDATORS[schema].validate(document)
        if schema == "result":
            assert topic.split("/")[-2] == document["station"]
            self._check_mask(name, document)
        elif schema == "reply" and document["ok"]:
            ANSWERS[document["command"]].validate(document["answer"])

    def _check_mask(self, name: str, result: dict[str, Any]) -> None:
        mask = result["mask"]
        if mask is None:
            return
        size = (mask["width"], mask["height"])
        carried = {key for key in ("topic", "png", "rle", "sha256") if mask[key] is not None}
        match mask["form"]:
            case "topic":
                assert carried == {"topic", "sha256"}
                # A listener that came between the two has not heard the mask.
                png = self._masks.get(mask["topic"])
                if name == "result" and png is not None:
                    assert (png_size(png), hashlib.sha256(png).hexdigest()) == (size, mask["sha256"])
            case "inline":
                assert carried == {"png", "sha256"}
                png = base64.b64decode(mask["png"], validate=True)
                assert (png_size(png), hashlib.sha256(png).hexdigest()) == (size, mask["sha256"])
            case "rle":
                assert carried == {"rle"}
                assert mask["rle"]["size"] == [size[1], size[0]]
                assert sum(mask["rle"]["counts"]) == size[0] * size[1]
            case "polygon":
                assert carried == set()
