"""daemon/mqtt_commands.py over a real mosquitto, by MQTT 5 and 3.1.1."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from config.schema import MqttConfig
from connectors.mqtt import Incoming
from daemon.intake import STALE_S
from daemon.mqtt_commands import OVERFLOW, WAITING, MqttCommands
from daemon.publisher import Publisher, Reply
from daemon.shots import pixel_hash
from tests.broker import Broker, wait_for
from tests.contract_check import ANSWERS, VALIDATORS
from tests.parts import draw_part
from tests.plant import TestPlant, picture


@dataclass(frozen=True)
class Answer:
    topic: str
    correlation: bytes | None
    document: dict[str, Any]


class Engineer:
    """A client that commands and collects answers."""

    def __init__(self, port: int, protocol: int = paho.MQTTv5) -> None:
        self.answers: list[Answer] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion(protocol))
        self._client.on_message = self._heard
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([("engineer/#", 1), ("plant/+/reply", 1)])
        self._client.loop_start()
        assert self._subscribed.wait(5)

    def _heard(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        document = json.loads(message.payload)
        self.answers.append(Answer(message.topic, getattr(message.properties, "CorrelationData", None), document))

    def send(self, topic: str, payload: object, *, retain: bool = False, **properties: Any) -> None:
        with_properties = None
        if properties:
            with_properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(with_properties, name, value)
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._client.publish(f"plant/{topic}", content, qos=1, retain=retain, properties=with_properties).wait_for_publish(5)

    def ask(self, topic: str, payload: object, **properties: Any) -> Answer:
        """Send, and wait for one more answer, checked against the shipped schema."""
        before = len(self.answers)
        self.send(topic, payload, **properties)
        wait_for(lambda: len(self.answers) > before, f"an answer to {topic}", 10)
        answer = self.answers[before]
        VALIDATORS["reply"].validate(answer.document)
        if answer.document["ok"]:
            ANSWERS[answer.document["command"]].validate(answer.document["answer"])
        return answer

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Daemon:
    """A plant on the broker, joined as the service joins it."""

    def __init__(self, plant: TestPlant, port: int, protocol: str, **config: object) -> None:
        self.plant = plant
        document = {"port": port, "client_id": "daemon", "prefix": "plant", "protocol": protocol, **config}
        settings = MqttConfig.model_validate(document)
        self.inbox = MqttCommands(settings, plant.commands, ["press"], lambda reply: self.publisher.reply(reply))
        birth = {"plant/status": b"online"}
        self.publisher = Publisher(settings, plant.ledger, ("plant/status", b"offline"), lambda: birth, plant.metrics, self.inbox)
        self.inbox.start()
        self.publisher.start()
        wait_for(lambda: self.publisher.connected, "the connection")

    def close(self) -> None:
        self.publisher.stop(("plant/status", b"stopped"), 1.0)
        self.inbox.stop()


@pytest.fixture(params=["5", "3.1.1"])
def daemon(request: pytest.FixtureRequest, broker: Broker, plant: TestPlant) -> Iterator[Daemon]:
    daemon = Daemon(plant, broker.port, request.param)
    yield daemon
    daemon.close()


@pytest.fixture
def daemon5(broker: Broker, plant: TestPlant) -> Iterator[Daemon]:
    daemon = Daemon(plant, broker.port, "5")
    yield daemon
    daemon.close()


@pytest.fixture
def engineer(broker: Broker) -> Iterator[Engineer]:
    engineer = Engineer(broker.port)
    yield engineer
    engineer.close()


def test_a_command_of_an_old_client_is_answered_on_reply_with_its_request_id(daemon: Daemon, broker: Broker) -> None:
    engineer = Engineer(broker.port, paho.MQTTv311)
    answer = engineer.ask("press/command/shots", {"request_id": "7"})
    assert answer.topic == "plant/press/reply"
    assert answer.document == {
        "schema": "aprilcam.reply/1",
        "command": "shots",
        "request_id": "7",
        "ok": True,
        "answer": {"recipe": "disc", "shots": []},
        "error": None,
    }
    engineer.close()


def test_mqtt_5_answers_on_the_response_topic_with_the_correlation_data(daemon5: Daemon, engineer: Engineer) -> None:
    answer = engineer.ask("press/command/banks", b"", ResponseTopic="engineer/1", CorrelationData=b"\x00\xff")
    assert (answer.topic, answer.correlation, answer.document["ok"]) == ("engineer/1", b"\x00\xff", True)


def test_a_picture_is_registered_as_it_is_or_in_base64(daemon5: Daemon, engineer: Engineer) -> None:
    properties = [("recipe", "ring"), ("request_id", "9"), ("traceparent", "ignored")]
    raw = engineer.ask("press/command/register", picture(1), ContentType="image/png", UserProperty=properties)
    assert raw.document["request_id"] == "9"
    assert raw.document["answer"]["recipe"] == "ring"
    assert raw.document["answer"]["shots"][0]["shot"] == pixel_hash(draw_part(1))
    again = engineer.ask("press/command/register", picture(1), ContentType="image/png", UserProperty=properties)
    assert again.document == raw.document
    assert daemon5.plant.counted("register", "duplicate") == 1


@pytest.mark.parametrize(
    ("topic", "payload", "code"),
    [
        ("press/command/reboot", b"{}", "unknown_command"),
        ("oven/command/shots", b"{}", "unknown_station"),
        ("press/command/shots", b"\xff\xfe", "malformed"),
        ("press/command/shots", b"{", "malformed"),
        ("press/command/shots", b'{"a":' * 2_000, "malformed"),
        ("press/command/shots", b"[1]", "malformed"),
        ("press/command/shots", b'{"request_id": 7}', "malformed"),
        ("press/command/shots", b'{"recipe": "disc", "recipe": "ring"}', "malformed"),
        ("press/command/shots", b'{"station": "oven"}', "malformed"),
        ("press/command/shots", b'{"recipe": "cog"}', "unknown_recipe"),
        ("press/command/shots", b'{"a": [' + b"1," * 40_000 + b"1]}", "too_large"),
        ("press/command/register", b"{}", "malformed"),
        ("press/command/register", b'{"picture": "aGVsbG8="}', "refused"),
    ],
)
def test_what_cannot_be_done_is_answered_and_counted_and_the_next_is_done(
    daemon5: Daemon, engineer: Engineer, topic: str, payload: bytes, code: str
) -> None:
    answer = engineer.ask(topic, payload).document
    assert (answer["ok"], answer["answer"], answer["error"]["code"]) == (False, None, code)
    name = topic.rpartition("/")[2]
    assert daemon5.plant.counted("unknown" if name == "reboot" else name, code) == 1
    assert engineer.ask("press/command/shots", {}).document["ok"]


def test_a_retained_command_is_refused(daemon5: Daemon, engineer: Engineer) -> None:
    daemon5.close()
    engineer.send("press/command/rebuild", {}, retain=True)
    later = Daemon(daemon5.plant, daemon5.publisher._config.port, "5")
    wait_for(lambda: bool(engineer.answers), "an answer")
    assert engineer.answers[0].document["error"]["code"] == "refused"
    later.close()


@pytest.mark.parametrize("topic", ["plant/press/result", "plant/press/command/rebuild", "plant/status", "$SYS/x"])
def test_a_response_topic_in_our_own_tree_is_not_used(daemon5: Daemon, engineer: Engineer, topic: str) -> None:
    assert engineer.ask("press/command/shots", {}, ResponseTopic=topic).topic == "plant/press/reply"


def test_commands_are_heard_again_after_the_broker_was_away(daemon5: Daemon, broker: Broker) -> None:
    broker.kill()
    wait_for(lambda: not daemon5.publisher.connected, "the loss to be seen")
    broker.start()
    wait_for(lambda: daemon5.publisher.connected, "the connection")
    engineer = Engineer(broker.port)
    assert engineer.ask("press/command/shots", {}).document["ok"]
    engineer.close()


def test_a_station_that_waits_for_frames_does_not_hold_up_the_others(daemon5: Daemon, engineer: Engineer) -> None:
    engineer.send("press/command/register", {"next": 1, "timeout_s": 2.0})
    began_s = time.monotonic()
    answer = engineer.ask("oven/command/shots", {"recipe": "disc"})
    assert answer.document["error"]["code"] == "unknown_station"
    assert time.monotonic() - began_s < 1.5
    wait_for(lambda: len(engineer.answers) == 2, "the other answer")


def test_too_many_commands_are_told_busy_and_more_than_that_only_counted(plant: TestPlant) -> None:
    replies: list[Reply] = []
    inbox = MqttCommands(MqttConfig(prefix="plant"), plant.commands, ["press"], replies.append)
    extra = 5
    for number in range(WAITING + OVERFLOW + extra):
        payload = json.dumps({"request_id": str(number)}).encode()
        inbox.receive(Incoming("plant/press/command/shots", payload, retained=False))
    inbox.start()
    wait_for(lambda: len(replies) == WAITING + OVERFLOW, "the answers")
    inbox.stop()
    documents = [json.loads(reply.payload) for reply in replies]
    assert [document["request_id"] for document in documents] == [str(number) for number in range(WAITING + OVERFLOW)]
    assert [document["ok"] for document in documents] == [True] * WAITING + [False] * OVERFLOW
    assert {document["error"]["code"] for document in documents[WAITING:]} == {"busy"}
    assert plant.counted("shots", "busy") == OVERFLOW + extra


def test_commands_beyond_the_rate_are_told_busy_and_reading_and_triggers_are_not(
    broker: Broker, plant: TestPlant, engineer: Engineer
) -> None:
    daemon = Daemon(plant, broker.port, "5", commands_per_s=0.5)

    def set_factor(request_id: str) -> dict[str, Any]:
        return engineer.ask("press/command/threshold_set", {"factor": 1.1, "request_id": request_id}).document

    assert set_factor("1")["ok"]
    refused = set_factor("2")
    assert refused["request_id"] == "2"
    assert refused["error"] == {
        "code": "busy",
        "message": "over 0.5 such commands a second to this station. Send it again later",
    }
    assert plant.counted("threshold_set", "busy") == 1
    assert all(engineer.ask("press/command/shots", {}).document["ok"] for _ in range(5))
    assert engineer.ask("press/command/trigger", {}).document["error"]["code"] == "refused"  # there is no camera
    wait_for(lambda: bool(set_factor("2")["ok"]), "the rate to allow it", 10)
    daemon.close()


def test_a_trigger_does_not_wait_for_a_registration_and_an_old_one_is_not_fired(daemon5: Daemon, engineer: Engineer) -> None:
    engineer.send("press/command/register", {"station": "press", "next": 1, "timeout_s": 3.0})
    assert engineer.ask("press/command/trigger", {}).document["command"] == "trigger"  # no frame has come for the other yet
    told: list[Reply] = []
    inbox = MqttCommands(MqttConfig(prefix="plant"), daemon5.plant.commands, ["press"], told.append)
    inbox.receive(Incoming("plant/press/command/trigger", b"{}", False, None, None))
    time.sleep(STALE_S + 0.05)
    inbox.start()
    wait_for(lambda: len(told) == 1, "its answer")
    inbox.stop()
    error = json.loads(told[0].payload)["error"]
    assert error["code"] == "busy"
    assert "Nothing was triggered" in error["message"]


def test_stations_come_and_go_and_no_command_stays_without_an_answer(plant: TestPlant) -> None:
    replies: list[dict[str, Any]] = []
    inbox = MqttCommands(
        MqttConfig(prefix="plant"), plant.commands, ["press"], lambda reply: replies.append(json.loads(reply.payload))
    )

    def send(station: str) -> None:
        inbox.receive(Incoming(f"plant/{station}/command/shots", b'{"recipe": "disc"}', retained=False))

    for _ in range(3):
        send("press")
    inbox.remove("press")  # before its lane had the time
    inbox.start()
    inbox.add("mill")
    send("mill")
    send("press")
    wait_for(lambda: len(replies) == 2, "the answers of those that are there")
    inbox.stop()
    assert {reply["error"]["code"] if reply["error"] else None for reply in replies} <= {None, "unknown_station"}
