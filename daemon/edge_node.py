"""The daemon as a Sparkplug B edge node: one MQTT connection of its own, whose will is the node's death.

Sparkplug tells what is the case now. What was not told while the broker was away is not told later: the outbox of the main
contract keeps that. One thread; the inspection path hands values over and never waits.
"""

import json
import logging
import platform
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from config.errors import CommandError, MqttError
from config.schema import MqttConfig, SparkplugConfig
from connectors import sparkplug
from connectors.contract import ResultOut, StateOut, Topics
from connectors.metrics import Metrics
from connectors.mqtt import Incoming, MqttConnection
from connectors.sparkplug import Definition, HostState, Namespace, Reading, SparkplugError, Value
from daemon.birth_number import BirthNumber
from daemon.commands import Commands
from daemon.mqtt_commands import MqttCommands
from daemon.publisher import CONNECT_TIMEOUT_S, FAREWELL_S, RETRY_S, STABLE_S, Reply

log = logging.getLogger(__name__)

WAITING = 2_000
"""Changes of all stations that may wait to be sent; past it the oldest is dropped, and counted."""
WINDOW = 256
"""Messages that may wait in the connection for the network: a broker that does not read must not fill the memory."""
COMMANDS = 64
"""Messages of hosts that may wait."""
FAREWELL = -1
"""The token of the node's death; 0 is that of everything else."""
COUNTERS: Mapping[str, str] = {"pass": "Counters/Pass", "fail": "Counters/Fail", "unknown": "Counters/Unknown"}
NOTHING_YET: Mapping[str, Value] = {
    **dict.fromkeys(sparkplug.DEVICE_METRICS),
    **dict.fromkeys(COUNTERS.values(), 0),
    **dict.fromkeys((sparkplug.PART_ID, sparkplug.JOB_ID, sparkplug.ANSWER), ""),
    sparkplug.TRIGGER: False,
}
"""A station's metrics before its first state and result."""


class EdgeNode:
    """Owner of the Sparkplug connection. `state` and `results` may be called from any thread and return at once."""

    def __init__(
        self,
        config: SparkplugConfig,
        mqtt: MqttConfig,
        version: str,
        stations: Iterable[str],
        commands: Commands,
        metrics: Metrics,
        folder: Path,
    ) -> None:
        """`mqtt`: how the broker is reached. `folder`: where the birth number is kept."""
        self._config = config
        self._mqtt = mqtt.model_copy(update={"client_id": config.client_id or f"{mqtt.client_id[:54]}-sparkplug"})
        self._space = Namespace(config.group_id, config.edge_node_id)
        self._node = sparkplug.definitions(sparkplug.NODE_METRICS, 1)
        self._devices: dict[str, dict[str, Definition]] = {}
        self._now: dict[str, Mapping[str, Reading]] = {}
        """What each station's metrics are, whether told or not."""
        self._next_alias = 1 + len(self._node)
        for name in stations:
            self._make_device(name)
        own: dict[str, Value] = {
            sparkplug.REBIRTH: False,
            "Properties/Software": "aprilcam",
            "Properties/Software Version": version,
            "Properties/OS": platform.system(),
            "Properties/OS Version": platform.release(),
        }
        self._own = sparkplug.stamped(own, sparkplug.now_ms())
        self._topics = Topics("sparkplug")
        lanes = mqtt.model_copy(update={"prefix": self._topics.prefix})
        self._lanes = MqttCommands(lanes, commands, list(self._devices), self._answered)
        self._commands = commands
        self._online = metrics.sparkplug.labels(config.edge_node_id)
        self._dropped = metrics.sparkplug_dropped.labels(config.edge_node_id)
        self._failures = metrics.sparkplug_failures.labels(config.edge_node_id)
        self._birth_number = BirthNumber(folder / "sparkplug-bdseq")

        self._wake = threading.Condition()
        self._stopping = False
        self._lost: str | None = None
        self._born = False
        self._waiting: deque[tuple[str, Mapping[str, Reading]]] = deque()
        """Metrics as they were after each change, oldest first."""
        self._rebirth = False
        self._hosts: deque[bytes] = deque(maxlen=COMMANDS)
        """States that the primary host told."""
        self._host: HostState | None = None
        self._on_the_way = 0
        self._said_farewell = False

        # The thread's own.
        self._seq = 0
        self._told: dict[str, Mapping[str, Reading]] = {}
        """The devices that are born, with what they told last."""
        self.trouble: str | None = "not connected yet"
        self._thread = threading.Thread(target=self._run, name="sparkplug", daemon=True)

    def _make_device(self, name: str) -> None:
        """Aliases are never those of a device before it, which a host may remember."""
        self._devices[name] = sparkplug.definitions(sparkplug.DEVICE_METRICS, self._next_alias)
        self._next_alias += len(sparkplug.DEVICE_METRICS)
        self._now[name] = sparkplug.stamped(NOTHING_YET, sparkplug.now_ms())

    def start(self) -> None:
        """Begin to connect."""
        self._lanes.start()
        self._thread.start()

    def stop(self) -> None:
        """Tell the node's death, disconnect and end."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(CONNECT_TIMEOUT_S + FAREWELL_S + 3)
        self._lanes.stop()

    # What the daemon hands over.

    def add(self, station: str) -> None:
        """There is another station: a device, which is born once its camera is there."""
        with self._wake:
            self._make_device(station)
        self._lanes.add(station)

    def remove(self, station: str) -> None:
        """The station has gone: its device dies."""
        self._lanes.remove(station)
        with self._wake:
            readings = self._now.pop(station, None)
            if readings is not None and self._born:
                self._waiting.append((station, {**readings, sparkplug.STATE: Reading(None, sparkplug.now_ms())}))
                self._wake.notify_all()

    def state(self, state: StateOut) -> None:
        """A station's state is another."""
        self._guard(lambda: self._change(state.station, sparkplug.state_readings(state)))

    def results(self, results: Sequence[ResultOut]) -> None:
        """They are committed."""
        for result in results:
            self._guard(partial(self._result, result))

    def _result(self, result: ResultOut) -> None:
        with self._wake:
            readings = sparkplug.result_readings(result)
            counter = COUNTERS[result.verdict]
            timestamp_ms = readings["Result/Verdict"].timestamp_ms
            if result.station not in self._now:
                return  # it has gone
            count = self._now[result.station][counter].value
            readings[counter] = Reading(int(count or 0) + 1, timestamp_ms)
            self._change(result.station, readings)

    def _change(self, device: str, readings: Mapping[str, Reading]) -> None:
        with self._wake:
            before = self._now.get(device)
            if before is None:
                return  # it has gone
            changed = sparkplug.changes(before, readings)
            if not changed:
                return
            self._now[device] = after = {**before, **changed}
            if not self._born:
                return
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self._dropped.inc()
            self._waiting.append((device, after))
            self._wake.notify_all()

    def _guard(self, work: Callable[[], None]) -> None:
        """Whatever is wrong with Sparkplug, inspection and the main contract go on."""
        try:
            work()
        except Exception:
            self._failures.inc()
            log.exception("Sparkplug: a change could not be taken")

    # The connection.

    def _run(self) -> None:
        wait_s = RETRY_S[0]
        while not self._stopping:
            started_s = time.monotonic()
            try:
                self._session()
            except Exception as error:  # whatever it is, the node must come back once it has passed
                self._failures.inc()
                log.exception("Sparkplug failed; it is tried again")
                self.trouble = f"{type(error).__name__}: {error}"
            wait_s = RETRY_S[0] if time.monotonic() - started_s > STABLE_S else min(wait_s * 2, RETRY_S[1])
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, wait_s / 2 * random.uniform(0.8, 1.2))  # noqa: S311

    def _session(self) -> None:
        """One connection, from its beginning to its end."""
        with self._wake:
            self._lost, self._host, self._rebirth, self._said_farewell = None, None, False, False
            self._on_the_way = 0
            self._hosts.clear()
            # What was not told is not told later: the next birth has the newest values.
            self._dropped.inc(len(self._waiting))
            self._waiting.clear()
            self._told = {}
        bd_seq = self._birth_number.next()
        death = sparkplug.node_death(bd_seq)
        topic = self._space.of_node("NDEATH")
        try:
            connection = self._connect(topic, death, bd_seq)
        except MqttError as error:
            if self.trouble != str(error):
                log.warning("Sparkplug: %s Inspection goes on.", error)
            self.trouble = str(error)
            return
        try:
            connection.subscribe(self._space.of_node("NCMD"))
            connection.subscribe(self._space.of_device("DCMD", "+"))
            if self._config.primary_host is not None:
                connection.subscribe(sparkplug.state_topic(self._config.primary_host))
            why = self._serve(connection, bd_seq)
            self.trouble = why
            if self._lost is None and self._born:
                self._say_farewell(connection, topic, death)
        finally:
            with self._wake:
                self._born = False
            self._online.set(0)
            connection.close()

    def _connect(self, topic: str, death: bytes, bd_seq: int) -> MqttConnection:
        connection = MqttConnection(self._mqtt, (topic, death), self._written, self._lose, self._received, retain_will=False)
        try:
            connection.open(CONNECT_TIMEOUT_S)
        finally:
            if connection.asked:
                self._birth_number.used(bd_seq)
        return connection

    def _serve(self, connection: MqttConnection, bd_seq: int) -> str:
        """Until the connection is lost, is to be ended, or the primary host goes. Why."""
        self.trouble = None if self._config.primary_host is None else f"host {self._config.primary_host} is not online"
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work, 1.0)
                lost, stopping, rebirth = self._lost, self._stopping, self._rebirth
                self._rebirth = False
            if lost is not None:
                log.warning("Sparkplug: connection to the broker lost (%s)", lost)
                return f"connection lost: {lost}"
            if stopping:
                self._drain_to_the_end(connection)
                return "stopped"
            if self._host_left() and self._born:
                log.warning("Sparkplug: host %s is offline; the node goes until it is back", self._config.primary_host)
                return f"host {self._config.primary_host} is not online"
            if self._may_be_born() and (rebirth or not self._born):
                self._be_born(connection, bd_seq)
            self._drain(connection)

    def _has_work(self) -> bool:
        waiting = self._born and self._waiting and self._on_the_way < WINDOW
        birth = self._rebirth or (not self._born and self._may_be_born())
        return bool(self._stopping or self._lost is not None or self._hosts or waiting or birth)

    def _say_farewell(self, connection: MqttConnection, topic: str, death: bytes) -> None:
        """Before the DISCONNECT, after which the broker does not send our will."""
        connection.publish(topic, death, token=FAREWELL)
        with self._wake:
            self._wake.wait_for(lambda: self._said_farewell or self._lost is not None, FAREWELL_S)

    def _written(self, token: int | None, _refusal: str | None) -> None:
        with self._wake:
            if token == FAREWELL:
                self._said_farewell = True
            elif token is not None:
                self._on_the_way -= 1
            self._wake.notify_all()

    def _lose(self, reason: str) -> None:
        with self._wake:
            self._lost = reason
            self._wake.notify_all()

    # The primary host.

    def _may_be_born(self) -> bool:
        return self._config.primary_host is None or (self._host is not None and self._host.online)

    def _host_left(self) -> bool:
        """Take in what the host told. Whether it told that it goes, at any point: its births in between are too late."""
        left = False
        while self._hosts:
            try:
                told = sparkplug.host_state(self._hosts.popleft())
            except SparkplugError as error:
                log.warning("Sparkplug: state of host %s: %s", self._config.primary_host, error)
                continue
            # A will of its earlier connection may come after the birth of its present one.
            if self._host is None or told.timestamp_ms >= self._host.timestamp_ms:
                self._host = told
                left = left or not told.online
        return left

    # Births and data. `seq` counts over all of them.

    def _be_born(self, connection: MqttConnection, bd_seq: int) -> None:
        with self._wake:
            self._dropped.inc(len(self._waiting))
            self._waiting.clear()
            self._born = True
            now = dict(self._now)
        again = bool(self._told)
        self._seq, self._told = 0, {}
        own = {**self._own, sparkplug.BD_SEQ: Reading(bd_seq, sparkplug.now_ms())}
        self._send(connection, self._space.of_node("NBIRTH"), sparkplug.birth(self._node, own, self._seq))
        for device, readings in now.items():
            self._tell(connection, device, readings)
        self._online.set(1)
        self.trouble = None
        log.info("Sparkplug: node %s/%s is born%s", self._space.group, self._space.node, " again" if again else "")

    def _drain(self, connection: MqttConnection) -> None:
        while True:
            with self._wake:
                interrupted = self._lost is not None or self._rebirth or self._hosts or not self._born
                if interrupted or not self._waiting or self._on_the_way >= WINDOW:
                    return
                device, readings = self._waiting.popleft()
            self._tell(connection, device, readings)

    def _drain_to_the_end(self, connection: MqttConnection) -> None:
        """What waits when the node is stopped, for as long as a farewell may take."""
        deadline_s = time.monotonic() + FAREWELL_S
        while time.monotonic() < deadline_s:
            self._drain(connection)
            with self._wake:
                if not self._waiting or self._lost is not None or self._rebirth or self._hosts:
                    return
                self._wake.wait_for(lambda: self._on_the_way < WINDOW or self._lost is not None, 0.1)

    def _tell(self, connection: MqttConnection, device: str, readings: Mapping[str, Reading]) -> None:
        """As data; as a birth when its camera has come; as a death when it has gone."""
        told, known = self._told.get(device), self._devices[device]
        there = readings[sparkplug.STATE].value not in (None, "Preoperational")
        if there and told is None:
            self._send(connection, self._space.of_device("DBIRTH", device), sparkplug.birth(known, readings, self._next()))
        elif there and told is not None:
            if not (changed := sparkplug.changes(told, readings)):
                return
            self._send(connection, self._space.of_device("DDATA", device), sparkplug.data(known, changed, self._next()))
        elif told is not None:
            self._send(connection, self._space.of_device("DDEATH", device), sparkplug.device_death(self._next()))
            del self._told[device]
        if there:
            self._told[device] = readings

    def _next(self) -> int:
        self._seq = sparkplug.following(self._seq)
        return self._seq

    def _send(self, connection: MqttConnection, topic: str, payload: bytes) -> None:
        with self._wake:
            self._on_the_way += 1
        connection.publish(topic, payload, qos=0, token=0)

    # Commands.

    def _received(self, message: Incoming) -> None:
        """On the connection's thread."""
        host = self._config.primary_host
        if host is not None and message.topic == sparkplug.state_topic(host):
            with self._wake:
                self._hosts.append(message.payload)
                self._wake.notify_all()
        elif message.topic == self._space.of_node("NCMD"):
            self._node_command(message)
        else:
            self._device_command(message)

    def _node_command(self, message: Incoming) -> None:
        if message.retained:
            self._refuse("NCMD", SparkplugError("retained, it would be done again at each connect"))
            return
        try:
            values = sparkplug.written(message.payload, self._node)
        except SparkplugError as error:
            self._refuse("NCMD", error)
            return
        if others := set(values) - {sparkplug.REBIRTH}:
            self._refuse("NCMD", SparkplugError(f"{', '.join(others)} cannot be written. Writable: {sparkplug.REBIRTH}"))
            return
        if values.get(sparkplug.REBIRTH):
            with self._wake:
                self._rebirth = True
                self._wake.notify_all()

    def _device_command(self, message: Incoming) -> None:
        device = message.topic.rpartition("/")[2]
        if device not in self._now:
            self._refuse("DCMD", SparkplugError(f"no station is named {device[:80]!r}"))
            return
        try:
            commands = list(sparkplug.dcmd_commands(sparkplug.written(message.payload, self._devices[device])))
        except SparkplugError as error:
            self._refuse(f"DCMD to {device}", error)
            self._say(device, f"refused: {error}")
            return
        for name, request in commands:
            # By the lanes of MQTT commands: their order, bounds and refusals hold here too.
            topic = self._topics.command(device, name)
            self._lanes.receive(Incoming(topic, json.dumps(request).encode(), message.retained))

    def _refuse(self, what: str, error: SparkplugError) -> None:
        log.warning("Sparkplug: %s refused: %s", what, error)
        self._commands.refused("unknown", CommandError("malformed", str(error)))

    def _answered(self, reply: Reply) -> None:
        """On a lane's thread."""
        answer = json.loads(reply.payload)
        device = reply.topic.split("/")[1]
        error = answer["error"]
        self._say(device, f"{answer['command']}: " + ("ok" if error is None else f"{error['code']}: {error['message']}"))

    def _say(self, device: str, text: str) -> None:
        self._change(device, {sparkplug.ANSWER: Reading(text[:500], sparkplug.now_ms())})
