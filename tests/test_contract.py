"""connectors/contract.py: the payloads and their shipped schemas."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from connectors import asyncapi
from connectors.contract import CHANNELS, StatusOut, Topics, schema_files
from connectors.requests import ANSWERS, REQUESTS
from daemon.station import Taught
from tests.bench import bench, defect_map
from tests.contract_check import ContractCheck

DOCS = Path(__file__).parent.parent / "docs" / "mqtt"


@pytest.mark.parametrize(("name", "text"), list(schema_files()))
def test_shipped_schemas_are_current(name: str, text: str) -> None:
    assert (DOCS / name).read_text() == text, "run `make docs`"


def test_moments_are_utc_with_microseconds_and_z() -> None:
    moment = datetime(2026, 11, 25, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2)))
    document = json.loads(StatusOut(status="online", version="1", since=moment).encode())
    assert document == {
        "schema": "aprilcam.status/1",
        "status": "online",
        "version": "1",
        "since": "2026-11-24T23:02:03.000004Z",
        "tls": "off",
    }
    jsonschema.validate(document, json.loads((DOCS / "status.schema.json").read_text()))
    assert datetime.fromisoformat(document["since"]).astimezone(UTC) == moment


def test_topics_stay_below_their_prefix() -> None:
    topics = Topics("acme/plant7")
    assert topics.mask("press", "id") == "acme/plant7/press/mask/id"
    assert topics.status == "acme/plant7/status"


def refs(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from refs(value)
    elif isinstance(part, list):
        for value in part:
            yield from refs(value)


def resolve(document: Any, ref: str) -> Any:
    assert ref.startswith("#/")
    for key in ref[2:].split("/"):
        document = document[key]
    return document


@pytest.fixture(scope="module")
def shipped() -> Any:
    """docs/mqtt/asyncapi.yaml."""
    return yaml.safe_load((DOCS / "asyncapi.yaml").read_text())


def test_the_shipped_asyncapi_document_is_current() -> None:
    assert (DOCS / "asyncapi.yaml").read_text() == asyncapi.text(), "run `make docs`"


def test_every_reference_of_the_asyncapi_document_leads_somewhere(shipped: Any) -> None:
    found = list(refs(shipped))
    assert len(found) > 200
    for ref in found:
        resolve(shipped, ref)


def test_the_asyncapi_document_has_every_topic_and_says_how_it_is_sent(shipped: Any) -> None:
    addresses = {channel["address"]: name for name, channel in shipped["channels"].items()}
    expected = {channel.address for name, channel in CHANNELS.items() if name != "command"}
    expected |= {f"{{prefix}}/{{station}}/command/{command}" for command in REQUESTS}
    assert set(addresses) == expected
    for name, channel in shipped["channels"].items():
        assert set(channel["parameters"]) == set(re.findall(r"\{(\w+)\}", channel["address"])), name
    sent = {}
    for operation in shipped["operations"].values():
        binding = operation["bindings"]["mqtt"]
        assert binding["qos"] == 1
        channel = resolve(shipped, operation["channel"]["$ref"])
        if operation["action"] == "send":
            sent[channel["address"].rpartition("}/")[2]] = binding["retain"]
        else:
            assert not binding["retain"]
            [message] = operation["reply"]["messages"]
            command = channel["address"].rpartition("/")[2]
            assert message["$ref"].endswith(f"/reply_{command}")
    assert sent == {
        "status": True, "state": True, "last": True, "overlay": True, "result": False, "event": False, "mask/{result_id}": False,
    }  # fmt: skip


def test_schemas_of_the_asyncapi_document_are_draft_7_and_say_what_the_shipped_ones_say(shipped: Any) -> None:
    schemas = shipped["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft7Validator.check_schema(schema)
    assert "prefixItems" not in json.dumps(schemas)
    for name, payload in (("result", "ResultOut"), ("state", "StateOut"), ("event", "EventOut"), ("status", "StatusOut")):
        own = json.loads((DOCS / f"{name}.schema.json").read_text())
        assert schemas[payload]["properties"].keys() == own["properties"].keys()
        assert schemas[payload]["required"] == own["required"]
    for command, request in REQUESTS.items():
        assert schemas[request.__name__]["properties"].keys() == request.model_fields.keys()
        reply = shipped["components"]["messages"][f"reply_{command}"]["payload"]
        assert ANSWERS[command].__name__ in json.dumps(reply)


def test_a_result_is_valid_by_the_asyncapi_document_and_a_wrong_one_is_not(shipped: Any, taught: Taught) -> None:
    schema = {"components": shipped["components"], "$ref": "#/components/schemas/ResultOut"}
    validator = jsonschema.Draft7Validator(schema)
    with bench(taught, mask="rle") as own:
        document = json.loads(own.judge(defect_map()).document)
    validator.validate(document)
    for wrong in ({"verdict": "maybe"}, {"mask": {"form": "jpeg", "width": 1, "height": 1}}, {"regions": [{"x": 1}]}):
        assert not validator.is_valid({**document, **wrong}), wrong


def test_the_tests_own_check_of_the_contract_finds_what_is_wrong(taught: Taught) -> None:
    with bench(taught, mask="topic", prefix="plant") as own:
        messages = own.judge(defect_map()).messages
    check = ContractCheck("plant")
    for message in messages:
        check.see(message.topic, message.payload)
    assert (check.complaints, check.checked) == ([], {"mask": 1, "result": 1})
    result = json.loads(messages[1].payload)
    for topic, payload in (
        ("plant/press/surprise", b"{}"),
        ("plant/press/result", json.dumps({**result, "verdict": "maybe"}).encode()),
        ("plant/press/result", json.dumps({**result, "mask": {**result["mask"], "width": 255}}).encode()),
        ("plant/press/result", json.dumps({**result, "mask": {**result["mask"], "sha256": "0" * 64}}).encode()),
        ("plant/oven/result", messages[1].payload),
        ("plant/press/mask/x", b"png"),
        ("plant/press/overlay", b"picture"),
        ("plant/status", b"online"),
    ):
        before = len(check.complaints)
        check.see(topic, payload)
        assert len(check.complaints) == before + 1, topic
