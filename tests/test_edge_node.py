"""daemon/edge_node.py over a real mosquitto: births, deaths, data, commands and the primary host."""

import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from config.schema import MqttConfig, SparkplugConfig
from connectors.contract import ResultOut, StateOut, StationState
from connectors.sparkplug_b_pb2 import Metric
from daemon.edge_node import WAITING, WINDOW, EdgeNode
from tests.broker import Broker, wait_for
from tests.plant import MakePlant, TestPlant
from tests.records import entry
from tests.sparkplug_host import GROUP, NODE, Host, command


def state(state: StationState = "ContinuousExecution", station: str = "press") -> StateOut:
    return StateOut(
        station=station,
        state=state,
        reason=None,
        recipe="disc",
        mode="few_shot",
        bank="abc",
        threshold=0.5,
        camera="cam",
        since=datetime.now(UTC),
    )


def result(sequence: int, station: str = "press", *, fails: bool = False) -> ResultOut:
    return entry(station, sequence, mask=b"png" if fails else None).complete(sequence).result


class Node:
    """An edge node of the stations press and oven, joined to a plant as the service joins it."""

    def __init__(self, plant: TestPlant, port: int, protocol: str = "5", **config: object) -> None:
        self.plant = plant
        mqtt = MqttConfig.model_validate({"port": port, "client_id": "daemon", "protocol": protocol})
        own = SparkplugConfig.model_validate({"group_id": GROUP, "edge_node_id": NODE, **config})
        self.edge = EdgeNode(own, mqtt, "1.2.3", ["press", "oven"], plant.commands, plant.metrics, plant.state)
        self.edge.start()
        self.stopped = False

    def counted(self, name: str) -> float:
        return self.plant.metrics.registry.get_sample_value(f"aprilcam_sparkplug_{name}", {"edge_node": NODE}) or 0.0

    def stop(self) -> None:
        if not self.stopped:
            self.edge.stop()
        self.stopped = True


@pytest.fixture
def host(broker: Broker) -> Iterator[Host]:
    host = Host(broker.port)
    yield host
    host.check()
    host.close()


@pytest.fixture
def node(host: Host, broker: Broker, make: MakePlant) -> Iterator[Node]:
    node = Node(make(), broker.port)
    node.edge.state(state())
    wait_for(lambda: "press" in host.check().devices, "the birth of press")
    yield node
    node.stop()
    assert node.counted("failures_total") == 0


def wait_value(host: Host, name: str, value: object, device: str = "press") -> None:
    wait_for(lambda: host.check().devices.get(device, {}).get(name) == value, f"{name} {value}")


def steal(client_id: str, port: int) -> None:
    """Another client with the same id makes the broker drop the connection as a cable cut would."""
    thief = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    thief.connect("127.0.0.1", port)
    thief.loop_start()
    time.sleep(0.2)
    thief.disconnect()
    thief.loop_stop()


def test_births_tell_every_metric_and_data_only_what_changed(node: Node, host: Host) -> None:
    session = host.check()
    assert host.kinds[0] == "NBIRTH"
    assert session.node["Properties/Software Version"] == "1.2.3"
    assert session.devices["press"]["State/State"] == "ContinuousExecution"
    assert session.devices["press"]["Control/Recipe"] == "disc"
    assert session.devices["press"]["Result/Verdict"] is None
    assert "oven" not in session.devices
    node.edge.results([result(1), result(2, fails=True)])
    wait_value(host, "Result/Sequence", 2)
    first, second = (changed for _, changed in host.changes)
    assert (first["Result/Verdict"], first["Counters/Pass"], first["Result/Recipe"]) == ("pass", 1, "gear")
    assert (second["Result/Verdict"], second["Counters/Fail"]) == ("fail", 1)
    assert {"Result/Recipe", "Result/Score", "Counters/Pass"}.isdisjoint(second)
    node.edge.state(state())  # only `since` is another
    wait_for(lambda: host.check().online and len(host.changes) == 3, "the state")
    assert set(host.changes[2][1]) == {"State/Since"}


def test_a_burst_is_told_result_by_result_and_seq_wraps(node: Node, host: Host) -> None:
    node.edge.state(state(station="oven"))
    for number in range(1, 701):
        node.edge.results([result(number), result(number, "oven", fails=True)])
    wait_value(host, "Counters/Fail", 700, "oven")
    for device in ("press", "oven"):
        told = [changed["Result/Sequence"] for name, changed in host.changes if name == device]
        assert told == list(range(1, 701))
    assert node.counted("dropped_total") == 0


@pytest.mark.parametrize(("protocol", "said"), [("5", "p5, c1"), ("3.1.1", "p2, c1")])
def test_the_connection_is_clean_with_the_death_as_its_will_and_subscribes_before_birth(
    tmp_path: Path, make: MakePlant, protocol: str, said: str
) -> None:
    log = tmp_path / "broker.log"
    broker = Broker(tmp_path, "allow_anonymous true", f"log_dest file {log}", "log_type all")
    broker.start()
    node = Node(make(), broker.port, protocol, primary_host="scada")
    wait_for(lambda: "STATE/scada" in log.read_text(), "the subscription")
    Host(broker.port).tell("scada", True, 1)
    wait_for(lambda: "/NBIRTH/" in log.read_text(), "the birth")
    node.stop()
    lines = [line.split(": ", 1)[1] for line in log.read_text().splitlines()]
    assert any("as daemon-sparkplug" in line and said in line for line in lines)
    will = next(index for index, line in enumerate(lines) if "Will message specified" in line)
    assert "(r0, q1)" in lines[will]
    assert f"spBv1.0/{GROUP}/NDEATH/{NODE}" in lines[will + 1]

    def place(text: str) -> int:
        return next(index for index, line in enumerate(lines) if text in line)

    birth = place(f"PUBLISH from daemon-sparkplug (d0, q0, r0, m0, 'spBv1.0/{GROUP}/NBIRTH/{NODE}'")
    for topic in (f"spBv1.0/{GROUP}/NCMD/{NODE}", f"spBv1.0/{GROUP}/DCMD/{NODE}/+", "spBv1.0/STATE/scada"):
        assert will < place(f"{topic} (QoS 1)") < birth
    death = place("PUBLISH from daemon-sparkplug (d0, q1")
    assert birth < death < place("Received DISCONNECT from daemon-sparkplug")
    broker.kill()


def test_a_lost_connection_gives_the_death_and_the_next_birth_has_the_next_number(node: Node, host: Host, broker: Broker) -> None:
    assert host.births == [0]
    node.edge.results([result(1)])
    steal("daemon-sparkplug", broker.port)
    wait_for(lambda: host.check().online and len(host.births) == 2, "the second birth")
    assert host.deaths == [0]
    assert host.births == [0, 1]
    wait_value(host, "Result/Sequence", 1)  # births carry what is the case now


def test_the_birth_number_goes_on_over_restarts_and_wraps(tmp_path: Path, host: Host, broker: Broker, make: MakePlant) -> None:
    plant = make()
    (plant.state / "sparkplug-bdseq").write_text("254")
    for _ in range(2):
        node = Node(plant, broker.port)
        before = len(host.births)
        wait_for(lambda before=before: host.check().online and len(host.births) > before, "a birth")  # type: ignore[misc]
        node.stop()
    wait_for(lambda: not host.check().online and len(host.deaths) == 2, "the deaths")
    assert host.births == host.deaths == [255, 0]


def test_a_broken_number_file_is_no_obstacle(host: Host, broker: Broker, make: MakePlant) -> None:
    plant = make()
    (plant.state / "sparkplug-bdseq").write_bytes(b"\xff")
    node = Node(plant, broker.port)
    wait_for(lambda: host.check().online, "the birth")
    node.stop()
    assert host.births == [0]


def test_a_stop_tells_the_death_once_and_all_that_waited_before_it(node: Node, host: Host) -> None:
    node.edge.results([result(number) for number in range(1, 1_501)])
    node.stop()
    wait_for(lambda: not host.check().online, "the death")
    assert host.deaths == [0]
    assert host.changes[-1][1]["Result/Sequence"] == 1_500
    assert host.kinds[-1] == "NDEATH"
    time.sleep(0.3)
    host.check()
    assert host.deaths == [0]


@pytest.mark.parametrize("by", ["name", "alias"])
def test_a_rebirth_request_is_answered_by_all_births_with_the_same_number(node: Node, host: Host, by: str) -> None:
    node.edge.results([result(1)])
    wait_value(host, "Result/Sequence", 1)
    aliases = {name: alias for alias, (_, name, _) in host.session.aliases.items()}
    metric = Metric(boolean_value=True)
    if by == "name":
        metric.name = "Node Control/Rebirth"
    else:
        metric.alias = aliases["Node Control/Rebirth"]
    host.send("NCMD", command(metric))
    wait_for(lambda: host.check().online and len(host.births) == 2, "the rebirth")
    wait_value(host, "Result/Sequence", 1)
    assert host.births == [0, 0]
    assert host.deaths == []
    assert host.kinds[-2:] == ["NBIRTH", "DBIRTH press"]
    node.edge.results([result(2)])
    wait_value(host, "Result/Sequence", 2)


def test_node_commands_that_are_none_are_refused_and_counted(node: Node, host: Host) -> None:
    host.send("NCMD", b"\xff\xff\xff")
    host.send("NCMD", command(Metric(name="Node Control/Reboot", boolean_value=True)))
    host.send("NCMD", command(Metric(name="Properties/Software", string_value="x")))
    host.send("NCMD", command(Metric(name="Node Control/Rebirth", boolean_value=False)))
    host.send("DCMD", command(Metric(name="Control/Trigger", boolean_value=True)), "no-such-station")
    wait_for(lambda: node.plant.counted("unknown", "malformed") == 4, "the refusals")
    node.edge.results([result(1)])
    wait_value(host, "Result/Sequence", 1)
    assert host.births == [0]


def test_a_retained_rebirth_is_not_done_at_each_connect(host: Host, broker: Broker, make: MakePlant) -> None:
    host.send("NCMD", command(Metric(name="Node Control/Rebirth", boolean_value=True)), retain=True)
    node = Node(make(), broker.port)
    wait_for(lambda: node.plant.counted("unknown", "malformed") == 1, "the refusal")
    wait_for(lambda: host.check().online, "the birth")
    node.stop()
    host.check()
    assert host.births == [0]


def test_a_recipe_is_selected_by_writing_it(node: Node, host: Host) -> None:
    node.plant.teach("ring", 1, 2, 3)
    host.write("press", Recipe="ring")
    wait_value(host, "Control/Answer", "select_recipe: ok")
    assert node.plant.station.program.recipe.name == "ring"
    assert node.plant.counted("select_recipe", "ok") == 1


def test_commands_that_cannot_be_done_are_answered(node: Node, host: Host) -> None:
    def answer() -> str:
        return str(host.check().devices["press"]["Control/Answer"])

    host.write("press", Recipe="cog")
    wait_for(lambda: answer().startswith("select_recipe: unknown_recipe: no recipe is named 'cog'"), "the answer")
    host.write("press", Trigger=True, Part_ID="A-17")
    wait_for(lambda: answer().startswith("trigger: refused: "), "the answer")
    host.write("press", Trigger=True, Recipe="ring")
    wait_for(lambda: answer().startswith("refused: Control/Recipe and Control/Trigger in one message"), "the answer")
    host.send("DCMD", command(Metric(name="Result/Verdict", string_value="pass")), "press")
    wait_for(lambda: answer().startswith("refused: Result/Verdict cannot be written"), "the answer")


def test_a_camera_that_goes_is_a_death_and_one_that_comes_back_a_birth(node: Node, host: Host) -> None:
    node.edge.state(state("Preoperational"))
    wait_for(lambda: "press" not in host.check().devices, "the death")
    assert host.kinds[-1] == "DDEATH press"
    node.edge.results([result(1)])  # a part that was on its way when the camera went
    node.edge.state(state("Error"))
    wait_value(host, "Result/Sequence", 1)
    assert host.kinds[-1] == "DBIRTH press"
    assert host.session.devices["press"]["State/State"] == "Error"


def test_with_a_primary_host_the_node_lives_only_while_the_host_is_online(host: Host, broker: Broker, make: MakePlant) -> None:
    host.tell("scada", False, 1_000)
    host.tell("other", True, 9_000)
    node = Node(make(), broker.port, primary_host="scada")
    node.edge.state(state())
    wait_for(lambda: "scada is not online" in str(node.edge.trouble), "the connection")
    time.sleep(0.5)
    assert host.heard == []
    host.tell("scada", True, 2_000)
    wait_for(lambda: "press" in host.check().devices, "the births")
    # The will of an earlier connection of the host, and what is no state.
    host.tell("scada", False, 1_500)
    host.send_state("scada", b"OFFLINE")
    node.edge.results([result(1)])
    wait_value(host, "Result/Sequence", 1)
    host.tell("scada", False, 2_000)
    wait_for(lambda: not host.check().online, "the death")
    assert host.deaths == host.births == [0]
    node.edge.results([result(2)])
    host.tell("scada", True, 3_000)
    wait_value(host, "Result/Sequence", 2)
    assert host.births == [0, 1]
    node.stop()
    wait_for(lambda: host.check().online is False, "the death")
    assert host.deaths == [0, 1]


def test_what_waited_when_the_host_went_is_not_told_before_the_next_birth(host: Host, broker: Broker, make: MakePlant) -> None:
    host.tell("scada", True, 1_000)
    node = Node(make(), broker.port, primary_host="scada")
    node.edge.state(state())
    wait_for(lambda: "press" in host.check().devices, "the births")
    broker.signal(signal.SIGSTOP)  # the network's window fills up, and results wait
    node.edge.results([result(number) for number in range(1, 3_000)])
    broker.signal(signal.SIGCONT)
    host.tell("scada", False, 2_000)
    wait_for(lambda: not host.check().online, "the death")
    time.sleep(1.0)  # it is connected again by now, and has to wait for the host
    births = list(host.births)
    host.check()  # data without a birth would be a complaint
    host.tell("scada", True, 3_000)
    wait_value(host, "Result/Sequence", 2_999)
    assert len(host.births) == len(births) + 1
    node.stop()


def test_a_broker_that_does_not_read_holds_nothing_up_and_newest_values_win(node: Node, host: Host, broker: Broker) -> None:
    total = 30_000
    results = [result(number) for number in range(1, total + 1)]
    broker.signal(signal.SIGSTOP)
    started_s = time.monotonic()
    for one in results:
        node.edge.results([one])
    took_s = time.monotonic() - started_s
    broker.signal(signal.SIGCONT)
    wait_value(host, "Result/Sequence", total)
    dropped = node.counted("dropped_total")
    assert len(host.changes) + dropped == total
    assert dropped > total - 20_000 - WAITING - WINDOW  # what the system's buffers take
    assert took_s < 10
    assert host.session.devices["press"]["Counters/Pass"] == total
    assert host.deaths == []


def test_no_broker_is_no_obstacle_and_uses_no_birth_number(tmp_path: Path, make: MakePlant) -> None:
    broker = Broker(tmp_path)
    node = Node(make(), broker.port)
    wait_for(lambda: "cannot be reached" in str(node.edge.trouble), "the attempt")
    node.edge.state(state())
    node.edge.results([result(1)])
    broker.start()
    host = Host(broker.port)
    host.rebirth()
    wait_value(host, "Result/Sequence", 1)
    assert set(host.births) == {0}
    node.stop()
    host.close()
    broker.kill()


def test_stations_may_report_from_many_threads(node: Node, host: Host) -> None:
    def report(station: str) -> None:
        for number in range(1, 201):
            node.edge.results([result(number, station)])
            node.edge.state(state("Ready" if number % 2 else "ContinuousExecution", station))

    threads = [threading.Thread(target=report, args=(name,)) for name in ("press", "oven")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for device in ("press", "oven"):
        wait_value(host, "Counters/Pass", 200, device)
        wait_value(host, "State/State", "ContinuousExecution", device)


def test_a_failure_of_its_own_is_counted_and_nothing_is_raised(host: Host, broker: Broker, make: MakePlant) -> None:
    node = Node(make(), broker.port)
    node.edge.results([result(1).model_copy(update={"verdict": "neither"}), result(1)])
    node.edge.state(state())
    wait_value(host, "Counters/Pass", 1)
    assert node.counted("failures_total") == 1
    node.stop()


def test_stations_come_and_go_as_devices(host: Host, broker: Broker, make: MakePlant) -> None:
    node = Node(make(), broker.port)
    for station in ("press", "oven"):
        node.edge.state(state(station=station))
    wait_for(lambda: set(host.check().devices) == {"press", "oven"}, "both births")
    node.edge.remove("oven")
    wait_for(lambda: set(host.check().devices) == {"press"}, "the death of one")
    node.edge.state(state(station="oven"))
    node.edge.results([result(1, "oven")])
    node.edge.add("mill")
    node.edge.state(state(station="mill"))
    node.edge.results([result(1, "mill")])
    wait_value(host, "Counters/Pass", 1, "mill")
    node.edge.add("oven")
    node.edge.state(state(station="oven"))
    wait_for(lambda: set(host.check().devices) == {"press", "oven", "mill"}, "its second birth")
    host.rebirth()
    wait_for(lambda: set(host.check().devices) == {"press", "oven", "mill"} and len(host.births) == 2, "the births anew")
    assert host.kinds.count("DDEATH oven") == 1
    assert node.counted("failures_total") == 0
    node.stop()
