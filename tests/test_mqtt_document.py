"""docs/mqtt.md: its readers, as shown, against messages that our own finisher made, over a real mosquitto."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from connectors.contract import CHANNELS
from daemon.ledger import Record
from daemon.overlay_picture import draw_overlay
from daemon.station import Taught
from model.regions import find_regions
from tests.bench import bench, defect_map
from tests.broker import Broker, wait_for
from tests.contract_check import VALIDATORS
from tests.parts import draw_part

DOCUMENT = (Path(__file__).parent.parent / "docs" / "mqtt.md").read_text()
FORMS = ("topic", "inline", "rle", "polygon", "none")
GOOD = np.full((64, 64), 0.1, np.float32)
AREA = int(np.count_nonzero(find_regions(defect_map(), 256, 256, 0.5)[0]))


def snippet(language: str) -> str:
    """The only block of that language."""
    [text] = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    return str(text)


SHELL = dict(re.findall(r"# (\w+): .*\n(.+)\n", snippet("shell")))


class Sender:
    """Publishes until its readers have what they want: nobody tells from outside when a reader has subscribed."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, *records: Record) -> None:
        for record in records:
            for message in record.messages:
                self._client.publish(message.topic, message.payload, qos=1).wait_for_publish(5)

    def retain(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(5)

    def send_until(self, condition: Callable[[], bool], what: str, *records: Record) -> None:
        """A reader that drops duplicates does not mind."""

        def again() -> bool:
            self.send(*records)
            return condition()

        wait_for(again, what)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def made(taught: Taught, form: str) -> list[Record]:
    """A pass and a fail."""
    with bench(taught, mask=form) as own:
        return [own.judge(GOOD), own.judge(defect_map())]


def test_the_table_of_topics_is_the_contracts() -> None:
    rows = re.findall(
        r"^\| `<prefix>/(\S+)` \| (yes|no) \|.*\| (?:\[(\w+)\]\(mqtt/\w+\.schema\.json\) )?\|$", DOCUMENT, re.MULTILINE
    )
    named = {"<station>": "{station}", "<result_id>": "{result_id}", "<name>": "{command}"}
    told = {}
    for topic, retained, schema in rows:
        for shown, field in named.items():
            topic = topic.replace(shown, field)
        told["{prefix}/" + topic] = (retained == "yes", schema or None)
    own = {channel.address: (channel.retained, channel.schema) for channel in CHANNELS.values()}
    own[CHANNELS["command"].address] = (False, "commands")
    assert told == own


def test_the_example_is_a_result() -> None:
    example = json.loads(snippet("json"))
    VALIDATORS["result"].validate(example)
    assert set(example) == set(VALIDATORS["result"].schema["properties"])
    assert example["verdict"] == "fail"


def test_the_python_reader_reads_every_form_and_drops_duplicates(tmp_path: Path, broker: Broker, taught: Taught) -> None:
    (tmp_path / "read_masks.py").write_text(snippet("python"))
    command = [sys.executable, "read_masks.py", "127.0.0.1", str(broker.port)]
    with (tmp_path / "said").open("w") as said:
        reader = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
    sender = Sender(broker.port)

    def lines() -> list[str]:
        return (tmp_path / "said").read_text().splitlines()

    try:
        first = made(taught, "none")[0]
        sender.send_until(lambda: len(lines()) == 1, "the reader to listen", first)
        for count, form in enumerate(FORMS, 1):
            fails = made(taught, form)[1]
            sender.send(fails, fails)  # the second is a duplicate
            wait_for(lambda: len(lines()) > count, f"a mask by {form}: {lines()}")  # noqa: B023
    finally:
        reader.kill()
        reader.wait()
        sender.close()
    assert lines()[0] == "press 1 pass None"
    areas = [line.removeprefix("press 2 fail ") for line in lines()[1:]]
    assert areas[:3] == [str(AREA)] * 3
    assert AREA < int(areas[3]) < 1.2 * AREA  # polygons do not tell the hole
    assert areas[4] == "None"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_node_red_function_reads_every_form(tmp_path: Path, taught: Taught) -> None:
    messages = []
    for form in FORMS:
        for message in made(taught, form)[1].messages:
            messages.append({"topic": message.topic, "payload": message.payload.hex()})
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    harness = """
    const kept = {};
    const context = { get: key => kept[key], set: (key, value) => { kept[key] = value; } };
    const node = new Function("msg", "context", require("fs").readFileSync("function.js", "utf8"));
    for (const { topic, payload } of JSON.parse(require("fs").readFileSync("messages.json"))) {
        const out = node({ topic, payload: Buffer.from(payload, "hex") }, context);
        if (out === null) continue;
        const { png, pixels, ...told } = out.payload;
        console.log(JSON.stringify({ ...told, png: png && png.toString("hex"), pixels: pixels && [...pixels] }));
    }
    """
    (tmp_path / "function.js").write_text(snippet("javascript"))
    (tmp_path / "harness.js").write_text(textwrap.dedent(harness))
    ran = subprocess.run(["node", "harness.js"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    told: list[dict[str, Any]] = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(out["verdict"], len(out["polygons"])) for out in told] == [("fail", 2)] * 5
    mask = find_regions(defect_map(), 256, 256, 0.5)[0] != 0
    for out in told[:2]:
        decoded = cv2.imdecode(np.frombuffer(bytes.fromhex(out["png"]), np.uint8), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        assert np.array_equal(decoded != 0, mask)
    assert np.array_equal(np.array(told[2]["pixels"]).reshape(256, 256) != 0, mask)
    assert (told[3]["width"], told[3]["height"]) == (256, 256)
    assert "width" not in told[4]


MISSING = [program for program in ("mosquitto_sub", "jq", "base64") if shutil.which(program) is None]


@pytest.mark.skipif(MISSING != [], reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize("form", ["topic", "inline", "polygon", "rle", "overlay"])
def test_the_shell_line_of_each_form(tmp_path: Path, broker: Broker, taught: Taught, form: str) -> None:
    (tmp_path / "mosquitto_sub").write_text(f"-h 127.0.0.1\n-p {broker.port}\n")
    sender = Sender(broker.port)
    record = made(taught, "none" if form == "overlay" else form)[1]
    picture = draw_overlay(record.result, draw_part(1), None, 320)
    if form == "overlay":
        sender.retain("aprilcam/press/overlay", picture)
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    line = subprocess.Popen(["bash", "-o", "pipefail", "-c", SHELL[form]], cwd=tmp_path, env=environment)
    try:
        sender.send_until(lambda: line.poll() is not None, "the line to end", *([] if form == "overlay" else [record]))
    finally:
        line.kill()
        sender.close()
    assert line.returncode == 0
    mask = find_regions(defect_map(), 256, 256, 0.5)[0] != 0
    match form:
        case "topic" | "inline":
            read = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
            assert read is not None
            assert np.array_equal(read != 0, mask)
        case "polygon":
            polygons = [json.loads(row) for row in (tmp_path / "polygons.txt").read_text().splitlines()]
            assert polygons == [[list(point) for point in region.polygon] for region in record.result.regions]
        case "rle":
            assert int((tmp_path / "area.txt").read_text()) == AREA
        case "overlay":
            assert (tmp_path / "overlay.jpg").read_bytes() == picture


@pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto_pub is not installed")
def test_a_stale_overlay_is_removed_as_told(tmp_path: Path, broker: Broker) -> None:
    [command] = re.findall(r"`(mosquitto_pub [^`]*)`", DOCUMENT)
    (tmp_path / "mosquitto_pub").write_text(f"-h 127.0.0.1\n-p {broker.port}\n")
    sender = Sender(broker.port)
    sender.retain("aprilcam/press/overlay", b"old")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=20)
    sender.close()
    look = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(broker.port), "-t", "aprilcam/press/overlay", "-W", "1"]
    assert subprocess.run(look, capture_output=True).stdout == b""
