"""What the publisher does where broker or wire are difficult: real mosquitto, a proxy that goes silent, a scripted broker."""

import json
import subprocess
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from daemon.publisher import Reply
from tests.broker import Broker, Listener, wait_for
from tests.records import entry
from tests.sending import Daemon, numbers
from tests.wires import Proxy, ScriptedBroker

POLYGON = {"form": "polygon", "width": 8, "height": 8, "topic": None, "sha256": None, "png": None, "rle": None}


def masks(listener: Listener) -> list[str]:
    return [heard.topic for heard in listener.heard if "/mask/" in heard.topic]


def test_masks_expire_at_the_broker_and_results_do_not(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port, mask_expiry_s=77)
    wait_for(lambda: daemon.publisher.connected, "the connection")
    daemon.ledger.submit([entry("a", 0, mask=b"png")])
    wait_for(lambda: bool(listener.of("/last")), "the newest result")
    expiries = {heard.topic.split("/")[-2 if "/mask/" in heard.topic else -1]: heard.expiry_s for heard in listener.heard}
    assert expiries["mask"] in (76, 77)
    assert expiries["result"] is None
    assert expiries["last"] is None
    daemon.stop()
    listener.close()


@pytest.mark.parametrize("receive_maximum", [3, 1])
def test_no_more_is_on_its_way_than_the_broker_takes_and_states_get_through(tmp_path: Path, receive_maximum: int) -> None:
    broker = ScriptedBroker(receive_maximum)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit(entry("a", number) for number in range(20))
    answered = 0
    while broker.topics.count("test/a/result") < 20 or broker.waiting:
        wait_for(lambda: bool(broker.waiting), f"a message after {answered}")
        time.sleep(0.01)  # what is too much would come now
        if answered == 10:
            daemon.publisher.retain("test/a/state", b"{}")
        broker.acknowledge()
        answered += 1
    assert broker.most_waiting == receive_maximum
    assert broker.topics[0] == "test/status"
    assert "test/a/state" in broker.topics[:18]  # it did not wait for the end of the backlog
    broker.close()
    daemon.stop()


def test_the_broker_is_to_keep_no_session_of_ours(tmp_path: Path) -> None:
    broker = ScriptedBroker(10)
    daemon = Daemon(tmp_path, broker.port)
    wait_for(lambda: bool(broker.connect), "CONNECT")
    flags, properties = broker.connect[7], broker.connect[11 : 11 + broker.connect[10]]
    assert flags & 0x02  # clean start
    assert b"\x11\0\0\0\0" in properties  # Session Expiry Interval 0
    broker.close()
    daemon.stop()


def test_a_receive_maximum_of_mosquitto_is_kept_to_and_all_arrives(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true", "max_inflight_messages 2")
    broker.start()
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit(entry("a", number) for number in range(300))
    wait_for(lambda: numbers(listener)[-1:] == [299], "the results")
    assert numbers(listener) == list(range(300))
    assert listener.of("/status") == [b"online"]
    daemon.stop()
    listener.close()
    broker.kill()


def test_a_result_too_large_for_the_broker_goes_without_polygons_or_leaves_a_gap(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true", "max_packet_size 8000")
    broker.start()
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit(
        [
            entry("a", 0, mask=b"x" * 9_000, regions=2),
            entry("a", 1, mask=b"png", regions=30),
            entry("a", 2, mask=b"x" * 9_000, regions=30),
            entry("a", 3, regions=200),
            entry("a", 4),
        ]
    )
    wait_for(lambda: 4 in numbers(listener), "the last result")
    results = {result["frame"]["number"]: result for result in map(json.loads, listener.of("/result"))}
    assert sorted(results) == [0, 1, 2, 4]
    assert results[0]["mask"] == POLYGON
    assert len(results[0]["regions"][1]["polygon"]) == 32
    assert results[1]["mask"]["topic"] == masks(listener)[0]
    assert [len(region["polygon"]) for region in results[1]["regions"]] == [0] * 30
    assert results[2]["mask"] is None  # nothing is left that told it
    assert len(masks(listener)) == 1
    assert daemon.lost() == {
        ("mask", "too_large"): 2,
        ("polygons", "too_large"): 2,
        ("result", "too_large"): 1,
    }
    daemon.publisher.reply(Reply("test/a/reply", b"x" * 8_000, b"id"))
    daemon.ledger.submit([entry("a", 5, mask=b"x" * 9_000)])
    wait_for(lambda: 5 in numbers(listener), "one more")
    wait_for(lambda: json.loads(listener.of("/last")[-1])["mask"] == POLYGON, "the retained one without its mask")
    assert daemon.lost()["reply", "too_large"] == 1
    assert listener.of("/status") == [b"online"]  # it never hung up on us
    daemon.stop()
    listener.close()
    broker.kill()


def test_a_broker_that_hangs_up_without_a_word_gets_the_polygons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.1.1 has no way to say a largest packet."""
    monkeypatch.setattr("daemon.publisher.RETRY_S", (0.05, 0.1))
    broker = Broker(tmp_path, "allow_anonymous true", "max_packet_size 8000")
    broker.start()
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path / "state", broker.port, protocol="3.1.1")
    daemon.ledger.submit([entry("a", 0), entry("a", 1, mask=b"x" * 9_000), entry("a", 2)])
    wait_for(lambda: numbers(listener)[-1:] == [2], "the results behind it")
    assert {result["frame"]["number"]: result["mask"] for result in map(json.loads, listener.of("/result"))}[1] == POLYGON
    assert daemon.lost() == {("mask", "too_large"): 1}
    assert listener.of("/status").count(b"online") <= 8  # three for the suspicion, and some luck
    daemon.stop()
    listener.close()
    broker.kill()


def test_a_picture_that_the_broker_hangs_up_on_at_each_connect_stops_nothing_and_blames_no_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.publisher.RETRY_S", (0.05, 0.1))
    broker = Broker(tmp_path, "allow_anonymous true", "max_packet_size 8000")
    broker.start()
    listener = Listener(broker.port)

    class WithOverlay(Daemon):
        def birth(self) -> dict[str, bytes]:
            return {**super().birth(), "test/a/overlay": b"x" * 9_000}

    daemon = WithOverlay(tmp_path / "state", broker.port, protocol="3.1.1")
    daemon.ledger.submit(entry("a", number, mask=b"png") for number in range(29))
    wait_for(lambda: len(set(numbers(listener))) == 29, "the results")
    assert {json.loads(payload)["mask"]["form"] for payload in listener.of("/result")} == {"topic"}
    assert daemon.lost() == {("overlay", "too_large"): 1}
    assert listener.of("/status").count(b"online") <= 8
    daemon.stop()
    listener.close()
    broker.kill()


@pytest.mark.parametrize("which", ["test/a/result", "test/status"])
def test_a_message_that_the_broker_puts_off_for_ever_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr("daemon.publisher.RETRY_S", (0.05, 0.1))
    broker = ScriptedBroker(10, puts_off=which)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit([entry("b", 0), entry("a", 1), entry("b", 2)])
    what = "result" if which == "test/a/result" else "state"
    wait_for(lambda: daemon.lost() == {(what, "refused"): 1}, "the refusal")
    wait_for(lambda: daemon.depth() == 0, "an empty outbox")
    assert broker.connects == 4
    assert broker.taken.count("test/b/result") >= 2
    assert which not in broker.taken
    broker.close()
    daemon.stop()


def test_a_limit_that_is_configured_holds_where_the_broker_says_none(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port, protocol="3.1.1", max_packet_bytes=5_000)
    daemon.ledger.submit([entry("a", 0, mask=b"x" * 5_000), entry("a", 1, mask=b"png")])
    wait_for(lambda: numbers(listener) == [0, 1], "the results")
    assert len(masks(listener)) == 1
    assert daemon.lost() == {("mask", "too_large"): 1}
    daemon.stop()
    listener.close()


def test_a_mask_that_the_access_list_forbids_is_counted_and_the_results_go_on(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic write test/status\ntopic write test/a/result\ntopic write test/a/last\ntopic read #\n")
    # Without room for queued messages mosquitto 2.0.11 ends the connection after such a refusal.
    broker = Broker(tmp_path, "allow_anonymous true", f"acl_file {tmp_path / 'acl'}", "max_queued_messages 1000")
    broker.start()
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, broker.port)
    daemon.ledger.submit([entry("a", 0, mask=b"png"), entry("a", 1)])
    wait_for(lambda: numbers(listener) == [0, 1], "the results")
    wait_for(lambda: daemon.lost() == {("mask", "refused"): 1}, "the count")
    wait_for(lambda: daemon.depth() == 0, "an empty outbox")
    # Only the first was on its way beside its mask; from then on no result names one, and the retained one never stays wrong.
    daemon.ledger.submit([entry("a", 2, mask=b"png")])
    wait_for(lambda: numbers(listener) == [0, 1, 2], "one more")
    assert json.loads(listener.of("/result")[-1])["mask"] == POLYGON
    wait_for(lambda: json.loads(listener.of("/last")[-1])["mask"] == POLYGON, "the retained one")
    documents = daemon.ledger.call(lambda c: c.execute("SELECT document FROM results").fetchall()).result(10)
    assert [json.loads(document)["mask"] for (document,) in documents] == [POLYGON, None, POLYGON]
    assert listener.of("/status") == [b"online"]
    daemon.stop()
    listener.close()
    broker.kill()


def test_a_wrong_password_makes_no_storm_and_works_once_it_is_mended(tmp_path: Path) -> None:
    secret, heard = tmp_path / "secret", tmp_path / "mosquitto.log"
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "aprilcam", "right"], check=True, capture_output=True)
    secret.write_text("wrong\n")
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}", f"log_dest file {heard}", "log_type all")
    broker.start()
    before = heard.read_text().count("New connection")
    daemon = Daemon(tmp_path, broker.port, username="aprilcam", password_file=secret)
    assert daemon.publisher.attempted.wait(10)
    began_s = time.monotonic()
    daemon.ledger.submit(entry("a", number) for number in range(100))
    wait_for(lambda: time.monotonic() - began_s > 3.5, "some tries")
    # 0.5 s, 1 s, 2 s ... between them.
    assert 2 <= heard.read_text().count("New connection") - before <= 5
    assert "Not authorized" in str(daemon.publisher.trouble)
    assert daemon.depth() == 100
    secret.write_text("right\n")
    wait_for(lambda: daemon.depth() == 0, "the outbox to drain")
    assert daemon.publisher.trouble is None
    daemon.stop()
    broker.kill()


def test_a_wire_that_is_cut_without_a_word_is_noticed_and_nothing_is_lost(tmp_path: Path, broker: Broker) -> None:
    proxy = Proxy(broker.port)
    listener = Listener(broker.port)
    daemon = Daemon(tmp_path, proxy.port, keepalive_s=1)
    daemon.ledger.submit(entry("a", number) for number in range(50))
    wait_for(lambda: len(numbers(listener)) == 50, "the first results")
    proxy.cut()
    daemon.ledger.submit(entry("a", number) for number in range(50, 300))
    wait_for(lambda: not daemon.publisher.connected, "keepalive to notice", 6)
    wait_for(lambda: 299 in numbers(listener), "the results of the outage")
    assert sorted(set(numbers(listener))) == list(range(300))
    firsts = list(dict.fromkeys(numbers(listener)))
    assert firsts == sorted(firsts)
    daemon.stop()
    listener.close()
    proxy.close()


def test_after_an_outage_that_filled_the_outbox_no_result_names_a_mask_that_does_not_come(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    daemon = Daemon(tmp_path, broker.port, outbox_max_bytes=1_000_000)
    daemon.ledger.submit(entry("a", number, mask=b"x" * 5_000) for number in range(400))
    assert daemon.depth() > 400
    gone = daemon.lost()["mask", "outbox_full"]
    assert daemon.lost() == {("mask", "outbox_full"): gone}
    assert gone > 200
    broker.start()
    listener = Listener(broker.port)
    wait_for(lambda: numbers(listener)[-1:] == [399], "the results")
    results = [json.loads(payload) for payload in listener.of("/result")]
    assert [result["sequence"] for result in results] == list(range(1, 401))
    assert [result["mask"]["form"] for result in results] == ["polygon"] * gone + ["topic"] * (400 - gone)
    assert [result["mask"]["topic"] for result in results[gone:]] == masks(listener)
    daemon.stop()
    listener.close()
    broker.kill()


def test_a_broker_that_forgets_everything_is_told_the_retained_state_again(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true", "persistence false")
    broker.start()
    daemon = Daemon(tmp_path, broker.port)
    wait_for(lambda: daemon.publisher.connected, "the connection")
    broker.stop()
    wait_for(lambda: not daemon.publisher.connected, "the loss")
    broker.start()
    wait_for(lambda: daemon.publisher.connected, "the connection again")
    wait_for(lambda: retained(broker.port) == {"test/status": b"online"}, "the birth")
    daemon.stop()
    assert retained(broker.port) == {"test/status": b"stopped"}
    broker.kill()


def retained(port: int) -> dict[str, bytes]:
    """All that the broker keeps, as one who comes now is told."""
    late = Listener(port, protocol=paho.MQTTv5)
    time.sleep(0.2)
    late.close()
    return {heard.topic: heard.payload for heard in late.heard if heard.retained}
