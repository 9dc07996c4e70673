"""connectors/sparkplug.py: payloads, against the specification and against Eclipse Tahu's own JavaScript."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors import sparkplug
from connectors.sparkplug import Reading, SparkplugError
from connectors.sparkplug_b_pb2 import Metric, Payload
from tests.records import entry
from tests.sparkplug_host import command, fields

ROOT = Path(__file__).parent.parent
TAHU = ROOT / "build" / "sparkplug-payload-1.0.3"
KNOWN = sparkplug.definitions(sparkplug.DEVICE_METRICS, 7)


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_generated_code_is_current(tmp_path: Path) -> None:
    connectors = ROOT / "connectors"
    options = ["-I", str(connectors), f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    compiler = [sys.executable, "-m", "grpc_tools.protoc"]
    subprocess.run([*compiler, *options, str(connectors / "sparkplug_b.proto")], check=True)
    for name in ("sparkplug_b_pb2.py", "sparkplug_b_pb2.pyi"):
        assert (connectors / name).read_text() == (tmp_path / name).read_text(), f"{name} is old: make docs"


def tahu(*lines: str) -> list[str]:
    """What Tahu's JavaScript makes of each line; skips where it cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if not TAHU.exists():
        making = TAHU.with_name(f"{TAHU.name}.{os.getpid()}")
        making.mkdir(parents=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--fetch-retries=0", "--prefix", str(making)]
        try:
            subprocess.run([*install, "sparkplug-payload@1.0.3"], capture_output=True, timeout=60, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(making)
            pytest.skip(f"npm could not install sparkplug-payload ({type(error).__name__}); is the registry reached?")
        try:
            making.rename(TAHU)
        except OSError:  # another test run was first
            shutil.rmtree(making)
    script = ROOT / "tests" / "sparkplug_tahu.js"
    environment = {**os.environ, "NODE_PATH": str(TAHU / "node_modules")}
    run = subprocess.run(
        ["node", str(script)], input="\n".join(lines), capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    return run.stdout.split("\n")[:-1]


def readings() -> dict[str, Reading]:
    result = entry("press", 1).complete(3).result
    given = sparkplug.result_readings(result)
    return {**given, "State/State": Reading("ContinuousExecution", 5), "Counters/Pass": Reading(2**52, 6)}


def test_eclipse_tahu_reads_each_kind_of_message_as_it_was_meant() -> None:
    now = readings()
    payloads = [
        sparkplug.birth(KNOWN, now, 255),
        sparkplug.data(KNOWN, {"Result/Verdict": Reading("fail", 9), "Result/Score": Reading(0.25, 8)}, 0),
        sparkplug.data(KNOWN, {"Result/Reason": Reading(None, 9), "Result/Simulated": Reading(True, 9)}, 1),
        sparkplug.device_death(2),
        sparkplug.node_death(255),
    ]
    read = [json.loads(line) for line in tahu(*(payload.hex() for payload in payloads))]
    assert read == [fields(Payload.FromString(payload)) for payload in payloads]
    birth = {metric["name"]: metric for metric in read[0]["metrics"]}
    assert set(birth) == set(sparkplug.DEVICE_METRICS)
    assert birth["Result/Verdict"]["stringValue"] == "pass"
    assert birth["Result/Verdict"]["datatype"] == 12
    assert birth["Counters/Pass"]["longValue"] == 2**52
    assert birth["Result/Part ID"]["isNull"] is True
    assert read[1]["metrics"] == [
        {"alias": KNOWN["Result/Score"].alias, "timestamp": 8, "doubleValue": 0.25},
        {"alias": KNOWN["Result/Verdict"].alias, "timestamp": 9, "stringValue": "fail"},
    ]
    assert read[4]["metrics"][0]["longValue"] == 255


def test_what_eclipse_tahu_writes_is_read() -> None:
    metrics: list[dict[str, Any]] = [
        {"name": "Control/Recipe", "type": "String", "value": "gear"},
        {"name": "Control/Trigger", "type": "Boolean", "value": True},
    ]
    [line] = tahu(json.dumps({"timestamp": 1_486_144_502_122, "metrics": metrics}))
    assert sparkplug.written(bytes.fromhex(line), KNOWN) == {"Control/Recipe": "gear", "Control/Trigger": True}


def test_numbers_wrap_at_255() -> None:
    assert [sparkplug.following(number) for number in (0, 254, 255)] == [1, 255, 0]


def test_signed_numbers_are_twos_complement() -> None:
    payload = Payload.FromString(sparkplug.data(KNOWN, {"Counters/Pass": Reading(-3, 1)}, 0))
    assert payload.metrics[0].long_value == 2**64 - 3


def test_a_result_is_told_whole_but_for_its_mask() -> None:
    result = entry("press", 1, mask=b"png").complete(3).result
    told = sparkplug.result_readings(result)
    assert {name: reading.value for name, reading in told.items()} == {
        "Result/Verdict": "fail",
        "Result/Reason": None,
        "Result/Score": 0.1,
        "Result/Threshold": 0.5,
        "Result/Regions": 0,
        "Result/Result ID": result.result_id,
        "Result/Sequence": 3,
        "Result/Part ID": None,
        "Result/Job ID": None,
        "Result/Recipe": "gear",
        "Result/Bank": "abc",
        "Result/Created At": int(result.created_at.timestamp() * 1e3),
        "Result/Processing Time": 0.0,
        "Result/Simulated": True,
    }
    assert {reading.timestamp_ms for reading in told.values()} == {int(result.created_at.timestamp() * 1e3)}
    assert abs(datetime.now(UTC).timestamp() * 1e3 - told["Result/Verdict"].timestamp_ms) < 60_000
    assert set(told) < set(sparkplug.DEVICE_METRICS)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (Metric(name="Control/Recepi", string_value="x"), "no metric 'Control/Recepi'"),
        (Metric(alias=1, string_value="x"), "no metric alias 1"),
        (Metric(name="Control/Trigger", string_value="true"), "takes a Boolean, not string_value"),
        (Metric(name="Control/Trigger", int_value=1), "takes a Boolean, not int_value"),
        (Metric(name="Control/Recipe", is_null=True), "takes a String, not null"),
        (Metric(name="Control/Recipe"), "takes a String, not null"),
    ],
)
def test_a_command_of_another_name_or_type_is_refused(metric: Any, reason: str) -> None:
    with pytest.raises(SparkplugError, match=reason):
        sparkplug.written(command(metric), KNOWN)


def test_broken_commands_are_refused_and_raise_nothing_else() -> None:
    random_ = random.Random(3)
    whole = command(Metric(name="Control/Recipe", string_value="gear"), Metric(alias=7, boolean_value=True))
    refused = 0
    for _ in range(3_000):
        broken = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            broken[random_.randrange(len(broken))] = random_.randrange(256)
        try:
            sparkplug.written(bytes(broken[: random_.randint(0, len(broken))]), KNOWN)
        except SparkplugError:
            refused += 1
    assert refused > 1_000
    with pytest.raises(SparkplugError, match="at most 65536"):
        sparkplug.written(bytes(70_000), KNOWN)


@pytest.mark.parametrize(
    ("values", "commands"),
    [
        ({"Control/Recipe": "gear"}, [("select_recipe", {"recipe": "gear"})]),
        ({"Control/Trigger": True}, [("trigger", {})]),
        ({"Control/Trigger": False}, []),
        ({"Control/Trigger": True, "Control/Part ID": "A", "Control/Job ID": ""}, [("trigger", {"part_id": "A"})]),
        ({"Control/Part ID": "A", "Control/Job ID": "J"}, [("part", {"part_id": "A", "job_id": "J"})]),
    ],
)
def test_what_a_dcmd_writes_is_a_command(values: dict[str, Any], commands: Any) -> None:
    assert list(sparkplug.dcmd_commands(values)) == commands


def test_a_dcmd_that_cannot_be_done_is_refused() -> None:
    with pytest.raises(SparkplugError, match="Result/Verdict cannot be written"):
        sparkplug.dcmd_commands({"Result/Verdict": "pass"})
    with pytest.raises(SparkplugError, match="in one message"):
        sparkplug.dcmd_commands({"Control/Recipe": "gear", "Control/Trigger": True})


@pytest.mark.parametrize(
    "payload",
    [b"ONLINE", b"[]", b"{}", b'{"online": 1, "timestamp": 2}', b'{"online": true, "timestamp": "2"}', b"[" * 60_000, b"\xff"],
)
def test_a_state_of_another_form_is_refused(payload: bytes) -> None:
    with pytest.raises(SparkplugError):
        sparkplug.host_state(payload)
