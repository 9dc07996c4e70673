"""daemon/publisher.py and connectors/mqtt.py against a real mosquitto."""

import json
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from config.errors import MqttError
from config.schema import MqttConfig
from connectors.mqtt import MqttConnection
from tests.broker import Broker, Listener, wait_for
from tests.records import entry
from tests.sending import Daemon, numbers


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_results_arrive_in_order_masks_first_and_leave_the_outbox(tmp_path: Path, broker: Broker, protocol: str) -> None:
    listener = Listener(broker.port, protocol=paho.MQTTv5 if protocol == "5" else paho.MQTTv311)
    daemon = Daemon(tmp_path, broker.port, protocol=protocol, in_flight=4)
    daemon.ledger.submit(entry("a", number, mask=b"png" if number % 2 else None) for number in range(50))
    wait_for(lambda: len(listener.of("/result")) == 50, "50 results")
    assert numbers(listener) == list(range(50))
    # Retained ones may come between.
    topics = [heard.topic for heard in listener.heard if heard.topic.split("/")[-1] not in ("status", "last")]
    for payload in listener.of("/result"):
        if (mask := json.loads(payload)["mask"]) is not None:
            assert topics[topics.index(mask["topic"]) + 1] == "test/a/result"
    wait_for(lambda: daemon.depth() == 0, "an empty outbox")
    daemon.stop()
    wait_for(lambda: listener.of("/status") == [b"online", b"stopped"], "birth and farewell")
    listener.close()


def test_broker_away_at_the_start_and_later_loses_nothing(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit(entry("a", number) for number in range(10))
    assert daemon.publisher.attempted.wait(10)
    assert "cannot be reached" in str(daemon.publisher.trouble)
    broker.start()
    first = Listener(broker.port)
    wait_for(lambda: len(first.of("/result")) == 10, "results kept while the broker was away")
    broker.kill()
    wait_for(lambda: not daemon.publisher.connected, "the loss to be noticed")
    daemon.ledger.submit(entry("a", number) for number in range(10, 20))
    first.close()
    broker.start()
    second = Listener(broker.port)
    wait_for(lambda: 19 in numbers(second), "results of the outage")
    both = [json.loads(payload) for payload in first.of("/result") + second.of("/result")]
    assert sorted({result["sequence"] for result in both}) == list(range(1, 21))
    assert len({result["result_id"] for result in both}) == 20
    assert numbers(second) == sorted(numbers(second))
    daemon.stop()
    second.close()
    broker.kill()


def test_the_will_says_offline_when_the_daemon_is_gone(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port)
    wait_for(lambda: listener.of("/status") == [b"online"], "birth")
    # Another client with our id makes the broker drop our connection as a cable cut would: without a DISCONNECT.
    thief = paho.Client(CallbackAPIVersion.VERSION2, client_id="daemon")
    thief.connect("127.0.0.1", broker.port)
    thief.loop_start()
    wait_for(lambda: b"offline" in listener.of("/status"), "the will")
    thief.disconnect()
    thief.loop_stop()
    wait_for(lambda: listener.of("/status")[-1] == b"online", "birth again")
    daemon.stop()
    listener.close()


def test_retained_messages_are_there_for_who_comes_later(tmp_path: Path, broker: Broker) -> None:
    daemon = Daemon(tmp_path, broker.port)
    wait_for(lambda: daemon.publisher.connected, "the connection")
    for number in range(100):
        daemon.publisher.retain("test/a/last", str(number).encode())
    daemon.stop()
    late = Listener(broker.port)
    wait_for(lambda: len(late.heard) == 2, "both retained topics")
    assert {heard.topic: heard.payload for heard in late.heard} == {"test/a/last": b"99", "test/status": b"stopped"}
    assert all(heard.retained for heard in late.heard)
    late.close()


def test_a_refused_login_is_told_and_inspection_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("")
    (tmp_path / "secret").write_text("wrong\n")
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {tmp_path / 'passwords'}")
    broker.start()
    daemon = Daemon(tmp_path, broker.port, username="aprilcam", password_file=tmp_path / "secret")
    assert daemon.publisher.attempted.wait(10)
    assert "refused the connection: Not authorized. Check [mqtt] username" in str(daemon.publisher.trouble)
    assert "wrong" not in str(daemon.publisher.trouble)
    assert not daemon.publisher.connected
    daemon.ledger.submit([entry("a", 0)])
    assert daemon.depth() == 1
    daemon.stop()
    broker.kill()


def test_a_password_file_that_vanished_is_told(tmp_path: Path) -> None:
    config = MqttConfig(username="x", password_file=tmp_path / "gone")
    with pytest.raises(MqttError, match="gone: No such file"):
        MqttConnection(config, ("t", b""), lambda *_: None, lambda _: None)


def test_a_password_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    config = MqttConfig(username="x", password_file=tmp_path / "secret")
    with pytest.raises(MqttError, match="secret: not UTF-8 text"):
        MqttConnection(config, ("t", b""), lambda *_: None, lambda _: None)


def test_the_farewell_is_the_last_word_even_with_a_backlog(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port, "test/status")
    daemon = Daemon(tmp_path, broker.port, in_flight=1)
    wait_for(lambda: daemon.publisher.connected, "the connection")
    daemon.ledger.submit(entry("a", number) for number in range(20_000))
    assert daemon.depth() > 1_000
    daemon.publisher.stop(("test/status", b"stopped"), 0.2)
    left = daemon.depth()
    daemon.ledger.close()
    assert 0 < left < 20_000
    wait_for(lambda: listener.of("/status") == [b"online", b"stopped"], "the farewell")
    listener.close()


def test_a_mask_too_large_for_the_broker_is_told_by_polygons_and_the_rest_goes_on(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true", "max_packet_size 20000")
    broker.start()
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit([entry("a", 0), entry("a", 1, mask=b"x" * 40_000), entry("a", 2)])
    wait_for(lambda: len(listener.of("/result")) == 3, "the three results")
    assert numbers(listener) == [0, 1, 2]
    assert listener.of("/status") == [b"online"]
    results = [json.loads(payload) for payload in listener.of("/result")]
    assert results[1]["mask"] == {
        "form": "polygon",
        "width": 8,
        "height": 8,
        "topic": None,
        "sha256": None,
        "png": None,
        "rle": None,
    }
    assert not [heard for heard in listener.heard if "/mask/" in heard.topic]
    assert daemon.lost() == {("mask", "too_large"): 1}
    daemon.stop()
    listener.close()
    broker.kill()


def test_a_failure_of_its_own_is_told_and_does_not_end_publishing(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port)
    failures = [OSError("no more file handles")]

    class Failing(Daemon):
        def birth(self) -> dict[str, bytes]:
            if failures:
                raise failures.pop()
            return super().birth()

    daemon = Failing(tmp_path, broker.port)
    daemon.ledger.submit([entry("a", 0)])
    wait_for(lambda: numbers(listener) == [0], "the result")
    assert daemon.publisher.running
    daemon.stop()
    listener.close()
