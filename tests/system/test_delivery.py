"""Nothing is lost between the ledger and whoever listens, however brokers and daemons end.

10,000 results each, in processes and connections that are killed at moments drawn from a seed. Ledger and publisher are the
daemon's; the results cost nothing, so that thousands are under way at each kill.

What "arrives" means. A broker that is killed forgets what it had acknowledged and not yet passed on: no publisher could know.
mosquitto writes a message to the socket of a connected QoS 0 subscriber before it acknowledges it to its publisher, and what is
in a socket outlives its sender. So the recorder subscribes at QoS 0 (it never writes, so its reading is not cut short by a
failed write), and the publisher is let in again only once the recorder is there. What the broker acknowledged was then recorded,
and a result that is missing was lost by us.
"""

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from daemon.ledger import Ledger
from daemon.outbox import outbox_totals
from tests.broker import Broker, Heard, Listener, wait_for
from tests.contract_check import VALIDATORS
from tests.parts import write_parts
from tests.records import entry
from tests.sending import Daemon, mask_of, send_until
from tests.system.daemon import Line, folder_station
from tests.wires import Proxy

TOTAL = 10_000
KILLS = 8


def check(heard: list[Heard], ids: dict[int, str], most_again: int) -> int:
    """Every sequence once and in order, behind its mask, but for messages that came again as they were, at most `most_again`
    behind the newest. How many came again."""
    seen: dict[int, bytes] = {}
    masks: set[str] = set()
    newest = again = 0
    for message in heard:
        if "/mask/" in message.topic:
            masks.add(message.topic)
        if not message.topic.endswith("/result"):
            continue
        result = json.loads(message.payload)
        assert (result["mask"] is None) == (mask_of(result["frame"]["number"]) is None)
        assert result["mask"] is None or result["mask"]["topic"] in masks, f"{result['sequence']} came before its mask"
        sequence = result["sequence"]
        if sequence in seen:
            assert seen[sequence] == message.payload
            assert sequence > newest - most_again
            again += 1
            continue
        assert sequence == newest + 1, f"{sequence} came after {newest}"
        assert result["result_id"] == ids[sequence]
        seen[sequence], newest = message.payload, sequence
    assert newest == len(ids) == TOTAL
    assert len(set(ids.values())) == TOTAL
    return again


def newest(recorder: Listener) -> int:
    """The sequence of the result that was heard last."""
    last = next((message for message in reversed(recorder.heard) if message.topic.endswith("/result")), None)
    return int(json.loads(last.payload)["sequence"]) if last is not None else 0


def test_10000_results_while_the_broker_is_killed_and_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.publisher.RETRY_S", (0.05, 0.2))
    dice = random.Random(7)
    # Nothing is held back for the recorder, and nothing is kept on disk.
    broker = Broker(tmp_path, "allow_anonymous true", "max_inflight_messages 0", "persistence false")
    broker.start()
    recorder = Listener(broker.port, "test/#", qos=0)
    proxy = Proxy(broker.port)
    daemon = Daemon(tmp_path / "state", proxy.port)
    submitted, waiting = 0, []
    for kill in range(KILLS):
        burst = dice.randrange(500, 1_500)  # some tenths of a second to drain
        daemon.ledger.submit(entry("a", number, mask=mask_of(number)) for number in range(submitted, submitted + burst))
        submitted += burst
        wait_for(lambda: daemon.publisher.connected, "the connection")
        time.sleep(dice.uniform(0.0, 0.1))
        if kill % 4 == 3:
            broker.stop()
        else:
            broker.kill()
        waiting.append(daemon.depth())
        proxy.open = False
        before = recorder.subscriptions
        broker.start()
        wait_for(lambda before=before: recorder.subscriptions > before, "the recorder")  # type: ignore[misc]
        proxy.open = True
    assert submitted < TOTAL
    daemon.ledger.submit(entry("a", number, mask=mask_of(number)) for number in range(submitted, TOTAL))
    wait_for(lambda: daemon.depth() == 0, "an empty outbox", 60)
    # The broker has all, and says it in the order in which it came.
    wait_for(lambda: newest(recorder) == TOTAL, "the last result")
    rows = daemon.ledger.call(lambda c: dict(c.execute("SELECT sequence, result_id FROM results").fetchall())).result()
    again = check(recorder.heard, rows, 64)  # the window
    assert again <= KILLS * 64
    assert sum(left > 0 for left in waiting) >= KILLS // 2  # else the kills came when nothing was under way
    assert not daemon.lost()
    daemon.stop()
    recorder.close()
    proxy.close()
    broker.kill()


def test_10000_results_while_the_daemon_is_killed_and_restarted(tmp_path: Path, broker: Broker) -> None:
    dice = random.Random(8)
    recorder = Listener(broker.port, "test/#")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.sending"])
    moments = []
    for _ in range(KILLS):
        sender = processes.Process(target=send_until, args=(tmp_path / "state", broker.port, TOTAL), daemon=True)
        heard = len(recorder.heard)
        sender.start()
        wait_for(lambda heard=heard: len(recorder.heard) > heard, "results of this process")  # type: ignore[misc]
        time.sleep(dice.uniform(0.0, 0.5))
        sender.kill()
        sender.join()
        moments.append(len(recorder.heard))
    sender = processes.Process(target=send_until, args=(tmp_path / "state", broker.port, TOTAL), daemon=True)
    sender.start()
    wait_for(lambda: newest(recorder) == TOTAL, "the last result", 60)
    time.sleep(0.3)  # the acknowledgements of the last ones
    sender.kill()
    sender.join()
    ledger = Ledger(tmp_path / "state")
    rows = ledger.call(lambda c: dict(c.execute("SELECT sequence, result_id FROM results").fetchall())).result()
    assert ledger.call(outbox_totals).result().rows == 0
    ledger.close()
    # Sent and acknowledged, and not yet taken out of the outbox: the window, and what is committed together.
    again = check(recorder.heard, rows, 64 + 256 + 256)
    assert again > 0  # else no kill was at a moment that matters
    assert len(set(moments)) == KILLS
    assert moments[-2] < TOTAL
    recorder.close()


def test_exactly_these_topics_are_retained_and_a_new_broker_is_told_them_again(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3), scratched=True)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"))
    lines.append(line)
    line.daemon.start()
    line.wait_results("press", 3)
    wait_for(lambda: (line.retained("press/state", "state") or {}).get("state") == "Halted", "the folder's end")
    expected = {"plant/status": "status", "plant/press/state": "state", "plant/press/last": "result"}

    def kept() -> dict[str, bytes]:
        late = Listener(line.broker.port, "#")
        time.sleep(0.3)
        late.close()
        return {heard.topic: heard.payload for heard in late.heard if heard.retained}

    before = kept()
    assert sorted(before) == sorted(expected)
    for topic, name in expected.items():
        VALIDATORS[name].validate(json.loads(before[topic]))
    line.broker.kill()  # it keeps nothing on disk
    line.broker.start()
    wait_for(lambda: kept() == before, "the same again")
    assert line.daemon.end() == 0
    assert json.loads(kept()["plant/status"])["status"] == "stopped"


def test_what_the_broker_will_not_take_is_told_in_an_event(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3), scratched=True)
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"), broker=False)
    lines.append(line)
    # Their results are of some 1,610, 1,170 and 1,380 bytes, without polygons 1,350, 990 and 1,090.
    config = line.daemon.config.read_text().replace('prefix = "plant"', 'prefix = "plant"\nmax_packet_bytes = 1300')
    line.daemon.config.write_text(config)
    line.start_broker()
    line.daemon.start()
    wait_for(lambda: (line.retained("press/state", "state") or {}).get("state") == "Halted", "the folder's end", 60)
    assert line.listener is not None
    listener = line.listener
    wait_for(lambda: bool(lost_events(listener)), "the event", 20)
    results = line.results("press")
    gone = sorted({1, 2, 3} - {result["sequence"] for result in results})
    stripped = [result for result in results if result["regions"] and not any(own["polygon"] for own in result["regions"])]
    assert gone
    assert stripped
    assert len(gone) + len(stripped) < 3
    [told] = lost_events(listener)
    VALIDATORS["event"].validate(told)
    assert told["recipe"] == "disc"
    assert told["detail"] == {
        "masks": 0,
        "polygons": len(stripped),
        "results": len(gone),
        "events": 0,
        "first_sequence": gone[0],
        "last_sequence": gone[-1],
        "reasons": "too_large",
    }
    _, metrics = line.daemon.get("/metrics")
    assert f'aprilcam_messages_lost_total{{reason="too_large",what="polygons"}} {len(stripped)}.0' in metrics
    wait_for(lambda: "aprilcam_outbox_bytes 0.0" in line.daemon.get("/metrics")[1], "an empty outbox")


def lost_events(listener: Listener) -> list[dict[str, object]]:
    events = [json.loads(payload) for payload in listener.of("press/event")]
    return [event for event in events if event["kind"] == "messages_lost"]
