"""Commands over MQTT: taken from the connection's thread at once, done on threads of their own, answered to their sender.

Each station has a lane, so that its commands are done in the order in which they came and none waits for another station's.
Triggers and the names of parts have lanes of their own: they are about the part that is there now, and must not wait for a
registration or another recipe.
"""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from config.errors import CommandError
from config.schema import MqttConfig
from connectors.contract import Topics
from connectors.mqtt import Incoming
from connectors.requests import ErrorOut, ReplyOut
from daemon.allowance import Allowance
from daemon.commands import READING, Commands
from daemon.intake import STALE_S
from daemon.payload import parse_request
from daemon.publisher import Reply

log = logging.getLogger(__name__)

WAITING = 16
"""Commands of one station that may wait."""
WAITING_BYTES = 192 << 20
"""Bytes of all that wait or are being done."""
OVERFLOW = 64
"""Commands of one station that are answered `busy`; past it they are only counted."""
PROMPT = ("trigger", "part")
"""Commands that have a lane of their own."""
PEEK_BYTES = 4 << 10
"""A command that is turned away is looked into for its request_id when it is no larger."""
PROPERTIES = ("request_id", "recipe", "name", "force")
"""User properties that say, beside a picture sent as it is, what a JSON request says in its fields."""


class MqttCommands:
    """The inbox of the publisher's connection. `receive` is called by paho's thread, which nothing here may hold up."""

    def __init__(self, config: MqttConfig, commands: Commands, stations: Iterable[str], reply: Callable[[Reply], None]) -> None:
        """`reply` sends an answer, and returns at once."""
        self._topics = topics = Topics(config.prefix)
        self.topic_filter = topics.command("+", "+")
        self._commands = commands
        self._reply = reply
        self._pattern = re.compile(re.escape(topics.prefix) + r"/([^/]+)/command/([^/]+)", re.DOTALL)
        self._lock = threading.Lock()
        self._bytes = 0
        self._config = config
        self._lanes: dict[tuple[str, str], _Lane] = {}
        """Replaced whole: `receive` reads it on paho's thread."""
        for name in (*stations, ""):
            self._lanes |= self._lanes_of(name)
        self._started = False

    def _lanes_of(self, station: str) -> "dict[tuple[str, str], _Lane]":
        config = self._config
        return {
            (station, kind): _Lane(
                f"{station} {kind}".strip(), self._handle, Allowance(config.triggers_per_s if kind else config.commands_per_s)
            )
            for kind in ("", *PROMPT)
        }

    def start(self) -> None:
        """Begin to do what comes."""
        self._started = True
        for lane in self._lanes.values():
            lane.thread.start()

    def add(self, station: str) -> None:
        """There is another station."""
        lanes = self._lanes_of(station)
        if self._started:
            for lane in lanes.values():
                lane.thread.start()
        self._lanes = {**self._lanes, **lanes}

    def remove(self, station: str) -> None:
        """The station has gone: commands to it that wait are answered so."""
        gone = {key for key in self._lanes if key[0] == station}
        lanes = self._lanes
        self._lanes = {key: lane for key, lane in lanes.items() if key not in gone}
        for key in gone:
            lanes[key].retire()

    def stop(self) -> None:
        """Do no more; what waits is not answered."""
        for lane in self._lanes.values():
            lane.stop()
        for lane in self._lanes.values():
            lane.thread.join(1.0)

    def receive(self, message: Incoming) -> None:
        """Take a command in, or turn it away."""
        match = self._pattern.fullmatch(message.topic)
        if match is None:
            return
        station, name = match.groups()
        kind = name if name in PROMPT else ""
        lane = self._lanes.get((station, kind), self._lanes["", kind])
        size = len(message.payload)
        busy = "too many commands wait"
        if name not in READING and not lane.allowance.take():
            busy = f"over {lane.allowance.per_s:g} such commands a second to this station"
        elif self._take(size):
            if lane.put(_Task(station, name, message, size)):
                return
            self._give_back(size)
        payload = message.payload if size <= PEEK_BYTES else b""
        turned_away = Incoming(message.topic, payload, message.retained, message.response_topic, message.correlation)
        if not lane.put(_Task(station, name, turned_away, 0, busy)):
            self._commands.refused(name, CommandError("busy", busy))

    def _take(self, size: int) -> bool:
        with self._lock:
            room = self._bytes + size <= WAITING_BYTES
            if room:
                self._bytes += size
            return room

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._bytes -= size

    def _handle(self, task: "_Task") -> None:
        """On the lane's thread."""
        request_id: str | None = None
        try:
            request, attachment = self._parsed(task) if task.busy is None else (_peek(task.message.payload), None)
            request_id = given if isinstance(given := request.get("request_id"), str) else None
            if (error := _turned_away(task)) is None:
                answer = self._commands.run(task.name, request, attachment, task.station)
                self._answer(task, request_id, answer)
                return
            self._commands.refused(task.name, error)
            self._answer(task, request_id, error)
        except CommandError as refusal:
            self._answer(task, request_id, refusal)
        finally:
            self._give_back(task.size)

    def _parsed(self, task: "_Task") -> tuple[dict[str, Any], bytes | None]:
        try:
            return _read(task.message)
        except CommandError as error:
            self._commands.refused(task.name, error)
            raise

    def _answer(self, task: "_Task", request_id: str | None, answer: dict[str, Any] | CommandError) -> None:
        error = None
        if isinstance(answer, CommandError):
            error = ErrorOut.model_validate({"code": answer.code, "message": str(answer)})
        reply = ReplyOut(
            command=task.name[:64],
            request_id=request_id[:128] if request_id is not None else None,
            ok=error is None,
            answer=answer if isinstance(answer, dict) else None,
            error=error,
        )
        topic = task.message.response_topic
        if topic is None or not self._may_answer_on(topic):
            topic = self._topics.reply(task.station)
        self._reply(Reply(topic, reply.encode(), task.message.correlation))

    def _may_answer_on(self, topic: str) -> bool:
        """Whoever may command must not make us say something in our own topics, or another system's."""
        if not topic or len(topic) > 1_000 or any(sign in topic for sign in "+#\0") or topic.startswith("$"):
            return False
        below = topic.startswith(f"{self._topics.prefix}/")
        return not below or re.fullmatch(r"[^/]+/reply(/.*)?", topic[len(self._topics.prefix) + 1 :], re.DOTALL) is not None


@dataclass(frozen=True)
class _Task:
    station: str
    name: str
    message: Incoming
    size: int
    busy: str | None = None
    """Why it is to be answered `busy`, nothing more."""
    came_s: float = field(default_factory=time.monotonic)


class _Lane:
    """A bounded queue and the one thread that works on it."""

    def __init__(self, name: str, handle: Callable[[_Task], None], allowance: Allowance) -> None:
        self._handle = handle
        self.allowance = allowance
        self._tasks: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._stopping = self._retiring = False
        self.thread = threading.Thread(target=self._run, name=f"commands {name}", daemon=True)

    def put(self, task: _Task) -> bool:
        with self._wake:
            if self._retiring or len(self._tasks) >= (WAITING if task.busy is None else WAITING + OVERFLOW):
                return False
            self._tasks.append(task)
            self._wake.notify()
            return True

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def retire(self) -> None:
        """Do what waits, and end."""
        with self._wake:
            self._retiring = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._tasks or self._stopping or self._retiring)
                if self._stopping or not self._tasks:
                    return
                task = self._tasks.popleft()
            try:
                self._handle(task)
            except Exception:  # whatever it is, the next command is to be done
                log.exception("command %s could not be answered", task.name)


def _turned_away(task: _Task) -> CommandError | None:
    if task.busy is not None:
        return CommandError("busy", f"{task.busy}. Send it again later")
    if task.name == "trigger" and time.monotonic() - task.came_s > STALE_S:
        reason = f"it waited over {STALE_S:g} s for triggers before it, and the part may have gone. Nothing was triggered"
        return CommandError("busy", reason)
    if task.message.retained:
        # It would be done again at each connect.
        return CommandError("refused", "a retained command. Send it without `retain`, and clear the topic")
    return None


def _read(message: Incoming) -> tuple[dict[str, Any], bytes | None]:
    if not message.content_type.lower().startswith("image/"):
        return parse_request(message.payload), None
    request: dict[str, Any] = {}
    for key, value in message.user_properties:
        if key in PROPERTIES:
            request[key] = value == "true" if key == "force" else value
    return request, message.payload


def _peek(payload: bytes) -> dict[str, Any]:
    """What can be seen of a command that is turned away."""
    try:
        return parse_request(payload)
    except CommandError:
        return {}
