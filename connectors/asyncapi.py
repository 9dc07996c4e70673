"""The contract as an AsyncAPI 3 document, made from CHANNELS, the payloads and the commands (docs/mqtt/asyncapi.yaml, with
`make docs`). Actions are the daemon's: it sends results and receives commands.

Schemas are written in the dialect of AsyncAPI, which is that of JSON Schema draft 7 and has no `prefixItems`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from connectors.contract import CHANNELS, COMPATIBILITY, PAYLOADS, Channel
from connectors.requests import ANSWERS, ATTACHABLE, REQUESTS, ReplyOut

QOS = 1
BINDING = "0.2.0"
SCHEMAS = "#/components/schemas/"
PARAMETERS = {
    "prefix": {
        "description": "`[mqtt] prefix` of the configuration; may have levels of its own, as in a unified namespace",
        "default": "aprilcam",
        "examples": ["acme/plant7/pressing/line2"],
    },
    "station": {"description": "`name` of a station of the configuration"},
    "result_id": {"description": "`result_id` of the result whose mask it is"},
}


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0.0 document. `$ref`s point into it."""
    sent = [name for name in CHANNELS if name not in ("command", "reply")]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "aprilcam",
            "version": "1",
            "description": f"Verdicts and defect masks of inspected parts, and commands.\n\n{COMPATIBILITY}",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            **{name: _channel(CHANNELS[name], [name]) for name in sent},
            **{f"command_{command}": _command_channel(command) for command in REQUESTS},
            "reply": _channel(CHANNELS["reply"], [f"reply_{command}" for command in REQUESTS]),
        },
        "operations": {
            **{f"send_{name}": _operation("send", name, retain=CHANNELS[name].retained) for name in sent},
            **{f"receive_{command}": _command_operation(command) for command in REQUESTS},
        },
        "components": {
            "parameters": PARAMETERS,
            "messages": {
                **{name: _message(CHANNELS[name]) for name in sent},
                **{f"command_{command}": _request(command) for command in REQUESTS},
                **{f"reply_{command}": _reply(command) for command in REQUESTS},
            },
            "schemas": dict(_schemas()),
        },
    }


def _channel(channel: Channel, messages: list[str], **filled: str) -> dict[str, Any]:
    address = channel.address
    for name, value in filled.items():
        address = address.replace(f"{{{name}}}", value)
    return {
        "address": address,
        "description": channel.about,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in PARAMETERS if f"{{{name}}}" in address},
    }


def _command_channel(command: str) -> dict[str, Any]:
    about = (REQUESTS[command].__doc__ or "").strip()
    return {**_channel(CHANNELS["command"], [f"command_{command}"], command=command), "description": about}


def _operation(action: str, channel: str, *, retain: bool) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{channel}"}],
        "bindings": {"mqtt": {"qos": QOS, "retain": retain, "bindingVersion": BINDING}},
    }


def _command_operation(command: str) -> dict[str, Any]:
    told = "With MQTT 5 the answer goes to the request's response topic, with its correlation data; else to `reply`."
    return {
        **_operation("receive", f"command_{command}", retain=False),
        "description": told,
        "reply": {
            "channel": {"$ref": "#/channels/reply"},
            "messages": [{"$ref": f"#/channels/reply/messages/reply_{command}"}],
        },
    }


def _message(channel: Channel) -> dict[str, Any]:
    payload: dict[str, Any] = {"type": "string", "format": "binary"}
    if channel.schema is not None:
        payload = {"$ref": f"{SCHEMAS}{PAYLOADS[channel.schema].__name__}"}
    return {"summary": channel.about, "contentType": channel.content_type, "payload": payload}


def _request(command: str) -> dict[str, Any]:
    attached = f"; `{ATTACHABLE[command]}` may be attached as it is (docs/commands.md)" if command in ATTACHABLE else ""
    return {
        "summary": f"Request `{command}`{attached}",
        "contentType": "application/json",
        "payload": {"$ref": f"{SCHEMAS}{REQUESTS[command].__name__}"},
    }


def _reply(command: str) -> dict[str, Any]:
    answer = {"anyOf": [{"$ref": f"{SCHEMAS}{ANSWERS[command].__name__}"}, {"type": "null"}]}
    narrowed = {"properties": {"command": {"const": command}, "answer": answer}}
    return {
        "summary": f"What is answered to `{command}`",
        "contentType": "application/json",
        "payload": {"allOf": [{"$ref": f"{SCHEMAS}ReplyOut"}, narrowed]},
    }


def _schemas() -> Iterator[tuple[str, Any]]:
    template = SCHEMAS + "{model}"
    _, requests = models_json_schema([(model, "validation") for model in REQUESTS.values()], ref_template=template)
    told: list[type[BaseModel]] = [*PAYLOADS.values(), ReplyOut, *dict.fromkeys(ANSWERS.values())]
    _, messages = models_json_schema([(model, "serialization") for model in told], by_alias=True, ref_template=template)
    for name, schema in sorted({**requests["$defs"], **messages["$defs"]}.items()):
        yield name, _draft7(schema)


def _draft7(schema: Any) -> Any:
    """The same in draft 7: an array of that many places is told by `items`."""
    if isinstance(schema, list):
        return [_draft7(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {"items" if key == "prefixItems" else key: _draft7(value) for key, value in schema.items()}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as such, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def text() -> str:
    """The YAML of docs/mqtt/asyncapi.yaml."""
    head = "# Made by `make docs` from connectors/contract.py and connectors/requests.py.\n"
    return head + str(yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


if __name__ == "__main__":
    (Path(sys.argv[1]) / "asyncapi.yaml").write_text(text())
