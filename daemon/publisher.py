"""The publisher: drains the outbox to the broker, in order, and keeps the retained topics true.

One thread. Nothing here is waited for by the inspection path: the ledger wakes it, the broker's acknowledgements go back
to the ledger.
"""

import logging
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from config.errors import MqttError
from config.schema import MqttConfig
from connectors.mqtt import Incoming, MqttConnection
from connectors.tls import CertificateWatch
from daemon.ledger import Ledger, OutboxRow, outbox_after

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
FAREWELL_S = 2.0
STABLE_S = 5.0
FAREWELL = -1
"""Stands for the farewell where outbox ids stand for messages."""
PACKET_ROOM = 16
"""Bytes of a PUBLISH packet beside topic and payload."""
REPLIES = 256
"""Replies that may wait for the broker; past it the oldest is given up, and its command may be sent again."""
RETRY_S = (0.5, 15.0)
"""First and longest wait between two attempts to connect; each wait doubles, with jitter so that daemons do not storm."""


class PublishObserver(Protocol):
    """Who is told how publishing goes (metrics)."""

    def mqtt_connected(self, connected: bool) -> None:
        """The connection came or went."""

    def published(self, latency_s: float) -> None:
        """A message was acknowledged, this long after it was committed."""

    def refused(self) -> None:
        """A message will never be taken by the broker."""


class Inbox(Protocol):
    """Who takes commands that come over the same connection."""

    topic_filter: str

    def receive(self, message: Incoming) -> None:
        """On the connection's thread: must return at once."""


@dataclass(frozen=True)
class Reply:
    """An answer to a command, sent once; it does not outlive the daemon."""

    topic: str
    payload: bytes
    correlation: bytes | None


class Publisher:
    """Owner of the broker connection. `wake`, `retain` and `reply` may be called from any thread."""

    def __init__(
        self,
        config: MqttConfig,
        ledger: Ledger,
        will: tuple[str, bytes],
        birth: Callable[[], dict[str, bytes]],
        observer: PublishObserver,
        inbox: Inbox | None = None,
    ) -> None:
        """`will` is (topic, payload) that the broker sends when we vanish; `birth` gives every retained message, asked for
        on each connect. `inbox` gets what comes on its topics."""
        self._config = config
        self._ledger = ledger
        self._will = will
        self._birth = birth
        self._observer = observer
        self._inbox = inbox
        self._replies: deque[Reply] = deque(maxlen=REPLIES)
        self._wake = threading.Condition()
        self._work = False
        self._stopping = False
        self._lost: str | None = None
        self._retained: dict[str, bytes] = {}
        self._farewell: tuple[str, bytes] | None = None
        self._read_to_end = False
        self._in_flight: dict[int, OutboxRow] = {}
        self._reader: sqlite3.Connection | None = None
        self._unread: deque[OutboxRow] = deque()
        self._cursor = 0
        self.connected = False
        self.trouble: str | None = "not connected yet"
        self.attempted = threading.Event()
        self._certificates = CertificateWatch(None)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to connect and publish."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """The outbox has something new."""
        with self._wake:
            self._work, self._read_to_end = True, False
            self._wake.notify()

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish a retained message, after what is committed where the window allows; only the newest per topic is sent."""
        with self._wake:
            self._retained[topic] = payload
            self._work = True
            self._wake.notify()

    def reply(self, reply: Reply) -> None:
        """Send an answer, now or once the broker is back."""
        with self._wake:
            self._replies.append(reply)
            self._work = True
            self._wake.notify()

    def reload(self) -> None:
        """Look at the certificates now: a person says that they were renewed."""
        self._certificates.hurry()

    def stop(self, farewell: tuple[str, bytes], drain_s: float) -> None:
        """Send what is left for at most `drain_s`, then the retained farewell, and disconnect cleanly."""
        deadline_s = time.monotonic() + drain_s
        with self._wake:
            while self.connected and time.monotonic() < deadline_s and not (self._read_to_end and not self._in_flight):
                self._wake.wait(0.02)
            self._farewell = farewell
            self._stopping = True
            self._work = True
            self._wake.notify()
        self._thread.join(CONNECT_TIMEOUT_S + FAREWELL_S + 3)

    def _run(self) -> None:
        self._reader = self._ledger.reader()
        wait_s = RETRY_S[0]
        while not self._stopping:
            started_s = time.monotonic()
            try:
                self._cycle()
            except Exception as error:  # whatever it is, results must go out again once it has passed
                log.exception("publishing failed; it is tried again")
                self._away(f"{type(error).__name__}: {error}")
            # A broker that takes us and drops us again is no reason to come back faster.
            wait_s = RETRY_S[0] if time.monotonic() - started_s > STABLE_S else min(wait_s * 2, RETRY_S[1])
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, wait_s / 2 * random.uniform(0.8, 1.2))  # noqa: S311
        self._reader.close()

    def _cycle(self) -> None:
        """One connection, from its beginning to its end."""
        # What was acknowledged on the last connection must have left the outbox before it is read again.
        self._ledger.call(lambda _: None).result()
        with self._wake:
            self._lost = None
            self._cursor = 0
            self._unread.clear()
            self._in_flight.clear()
            self._read_to_end = False
        self._certificates = CertificateWatch(self._config.tls)
        try:
            connection = MqttConnection(
                self._config,
                self._will,
                self._acknowledged,
                self._lose,
                self._inbox.receive if self._inbox is not None else lambda _: None,
            )
            connection.open(CONNECT_TIMEOUT_S)
        except MqttError as error:
            if self.trouble != str(error):
                log.warning("%s Inspection goes on, results wait in the outbox.", error)
            self.trouble = str(error)
            return
        finally:
            self.attempted.set()
        try:
            if not self._stopping:
                self._greet(connection)
            self._serve(connection)
        finally:
            connection.close()

    def _greet(self, connection: MqttConnection) -> None:
        with self._wake:
            self.connected, self.trouble = True, None
            self._retained.clear()
            self._work = True
        if self._inbox is not None:
            # Before the birth: who sees us online may command at once.
            connection.subscribe(self._inbox.topic_filter)
        for topic, payload in self._birth().items():
            connection.publish(topic, payload, retain=True)
        self._observer.mqtt_connected(True)
        log.info("connected to broker %s:%d", self._config.host, self._config.port)

    def _serve(self, connection: MqttConnection) -> None:
        while True:
            if self._certificates.renewed() and not self._stopping:
                self._settle()
                self._away("connecting anew")
                log.info("the certificates were renewed: connecting to the broker anew")
                return
            with self._wake:
                self._wake.wait_for(lambda: self._work or self._lost is not None, 1.0)
                self._work = False
                lost, stopping = self._lost, self._stopping
                retained: dict[str, bytes] = {}
                replies: deque[Reply] = deque()
                if lost is None:
                    retained, self._retained = self._retained, {}
                    replies, self._replies = self._replies, deque(maxlen=REPLIES)
            if lost is not None:
                break
            if not stopping:
                self._drain(connection)
            for topic, payload in retained.items():
                connection.publish(topic, payload, retain=True)
            for reply in replies:
                connection.publish(reply.topic, reply.payload, correlation=reply.correlation)
            if stopping:
                self._say_farewell(connection)
                break
        self._away(f"connection lost: {lost}" if lost else "stopped")
        if lost is not None:
            log.warning("connection to the broker lost (%s); results wait in the outbox", lost)

    def _settle(self) -> None:
        """Let what is on its way be acknowledged, so that it is not sent twice."""
        with self._wake:
            self._wake.wait_for(lambda: not self._in_flight or self._lost is not None, FAREWELL_S)

    def _say_farewell(self, connection: MqttConnection) -> None:
        """Wait until the broker has it: a DISCONNECT that overtakes it would leave `online` behind for ever."""
        if self._farewell is None:
            return
        with self._wake:
            self._in_flight[FAREWELL] = OutboxRow(FAREWELL, self._farewell[0], self._farewell[1], time.time_ns())
        connection.publish(*self._farewell, retain=True, token=FAREWELL)
        with self._wake:
            self._wake.wait_for(lambda: FAREWELL not in self._in_flight or self._lost is not None, FAREWELL_S)

    def _away(self, trouble: str) -> None:
        with self._wake:
            self.connected, self.trouble = False, trouble
            self._wake.notify_all()
        self._observer.mqtt_connected(False)

    def _drain(self, connection: MqttConnection) -> None:
        """Send until nothing in the outbox is unsent, or the window is full."""
        assert self._reader is not None  # noqa: S101 - opened by _run
        while True:
            if not self._unread:
                self._unread.extend(outbox_after(self._reader, self._cursor, 4 * self._config.in_flight))
            if not self._unread:
                with self._wake:
                    self._read_to_end = not self._work
                return
            while self._unread:
                with self._wake:
                    if self._lost is not None or self._stopping or len(self._in_flight) >= self._config.in_flight:
                        return
                    row = self._unread.popleft()
                    self._in_flight[row.id] = row
                self._cursor = row.id
                limit = connection.maximum_packet_bytes
                if limit is not None and len(row.payload) + len(row.topic) + PACKET_ROOM > limit:
                    self._acknowledged(row.id, f"larger than the {limit} bytes that the broker takes")
                else:
                    connection.publish(row.topic, row.payload, token=row.id)

    def _acknowledged(self, outbox_id: int, refusal: str | None) -> None:
        if outbox_id != FAREWELL:
            self._ledger.acknowledge(outbox_id)
        with self._wake:
            row = self._in_flight.pop(outbox_id, None)
            self._work = self._work or bool(self._unread)  # the window was full and has room now
            self._wake.notify_all()
        if refusal is not None:
            # It would be refused for ever, and everything behind it would wait. The ledger still has the result.
            self._observer.refused()
            log.error("message on %s given up: %s", row.topic if row is not None else "an earlier connection", refusal)
        elif row is not None and outbox_id != FAREWELL:
            self._observer.published(max(0.0, (time.time_ns() - row.enqueued_ns) / 1e9))

    def _lose(self, reason: str) -> None:
        with self._wake:
            self._lost = reason
            self._wake.notify_all()
