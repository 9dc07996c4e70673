"""connectors/contract.py: the payloads and their shipped schemas."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import jsonschema
import pytest

from connectors.contract import StatusOut, Topics, schema_files

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
