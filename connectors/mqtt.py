"""One MQTT connection, from CONNECT to its loss. The publisher makes a new one after each loss.

paho's own reconnecting and queueing are not used: its queue is in memory and would send again, after a reconnect, what the
outbox sends again itself.
"""

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from config.errors import MqttError
from config.schema import MqttConfig
from connectors.secret import first_line
from connectors.tls import TlsSocket, explain, make_context

log = logging.getLogger(__name__)

RETAINED_ROOM = 64
"""Messages that may be on their way beside those of the outbox: states, last results, replies, the farewell."""
TRY_AGAIN = (0x80, 0x83, 0x97)
"""PUBACK reasons that may pass (MQTT 5 section 3.4.2.1): unspecified, implementation specific, quota exceeded."""
MAX_INCOMING_BYTES = 96 << 20
"""Larger messages are dropped by an MQTT 5 broker already; it is told at CONNECT."""


@dataclass(frozen=True)
class Incoming:
    """A message that somebody sent us, with the MQTT 5 properties that matter."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str = ""
    user_properties: tuple[tuple[str, str], ...] = ()


class MqttConnection:
    """A connected client. `publish` may be called from one thread; `on_acknowledged` and `on_lost` come on paho's."""

    def __init__(
        self,
        config: MqttConfig,
        will: tuple[str, bytes] | None,
        on_acknowledged: Callable[[int | None, str | None], None],
        on_lost: Callable[[str], None],
        on_message: Callable[[Incoming], None] = lambda _: None,
        *,
        retain_will: bool = True,
    ) -> None:
        """`will` is (topic, payload), or none. `on_acknowledged` gets each message's token, and why the broker
        refused it for good, None when it has it. `on_lost` comes once, with the reason. `on_message` gets what comes on
        subscribed topics; it must return at once. Password and certificates are read now. Raises MqttError where they
        cannot be used."""
        self._config = config
        self._on_acknowledged = on_acknowledged
        self._on_lost = on_lost
        self._on_message = on_message
        self._lock = threading.Lock()
        self._tokens: dict[int, int | None] = {}
        self._early: dict[int, str | None] = {}
        """Messages answered before publish() had returned their number."""
        self.maximum_packet_bytes = config.max_packet_bytes
        """The largest packet that the broker takes (MQTT 5 section 3.2.2.3.6, or as configured); it hangs up on larger ones."""
        self.asked = False
        """Whether a CONNECT packet was sent."""
        self.putting_off = False
        """Whether the connection was given up because the broker asked to try again later."""
        self.put_off: int | None = None
        """The token of the message that this was for, where it was known yet."""
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._connected = False
        self._closing = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            protocol=paho.MQTTv5 if config.protocol == "5" else paho.MQTTv311,
            reconnect_on_failure=False,
            clean_session=None if config.protocol == "5" else True,
        )
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=retain_will)
        if config.username is not None:
            secret = first_line(config.password_file, "password file") if config.password_file is not None else None
            self._client.username_pw_set(config.username, secret)
        if config.tls is not None:
            self._client.tls_set_context(make_context(config.tls))
        self._socket: object = None
        self.window = config.in_flight + RETAINED_ROOM
        """Messages that may be on their way at once: ours, or less where the broker says so (Receive Maximum)."""
        # No limit and no queue of paho's: `room` is the one window, and what has no room stays with us.
        self._client.max_inflight_messages_set(0)
        self._client.max_queued_messages_set(0)
        self._client.on_connect = self._connect_answered
        self._client.on_disconnect = self._disconnected
        self._client.on_publish = self._published
        self._client.on_message = self._arrived
        self._client.on_subscribe = self._subscribed
        self._client.on_socket_open = self._opened

    def open(self, timeout_s: float) -> None:
        """Connect. Raises MqttError naming broker, reason and mend when it is not there, refuses us or does not answer."""
        where = f"broker {self._config.host}:{self._config.port}"
        try:
            self._client.connect_timeout = timeout_s
            properties = None
            if self._config.protocol == "5":
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                properties.MaximumPacketSize = MAX_INCOMING_BYTES
                # No session: what the broker has not acknowledged is sent again from the outbox, never from its memory.
                properties.SessionExpiryInterval = 0
            self._client.connect(self._config.host, self._config.port, self._config.keepalive_s, properties=properties)
        except (OSError, ValueError) as error:
            if (told := explain(error, self._config)) is not None:
                raise MqttError(f"{where}: {told[0]}. {told[1]}.") from None
            mend = "Check [mqtt] host and port, and that the broker runs"
            raise MqttError(f"{where} cannot be reached: {error}. {mend}.") from None
        self.asked = True
        self._client.loop_start()
        answered = self._answered.wait(timeout_s)
        if answered and self._connected:
            return
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()
        trouble = self._socket.trouble if isinstance(self._socket, TlsSocket) else None
        if self._refusal is None and trouble is not None and (told := explain(trouble, self._config)) is not None:
            raise MqttError(f"{where}: {told[0]}. {told[1]}.")
        if self._refusal is None and answered:
            mend = "Check [mqtt] port and protocol, and whether it wants TLS or a client certificate ([mqtt.tls])"
            raise MqttError(f"{where} hung up before it answered. {mend}.")
        reason = self._refusal or f"no answer within {timeout_s:g} s"
        raise MqttError(f"{where} refused the connection: {reason}. Check [mqtt] username, password_file and protocol.")

    def subscribe(self, topic_filter: str) -> None:
        """Ask for messages at QoS 1. A broker that refuses is told in the log."""
        self._client.subscribe(topic_filter, qos=1)

    @property
    def room(self) -> int:
        """How many messages may be sent now, as the publishing thread sees it; acknowledgements make it larger."""
        return self.window - len(self._tokens)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        token: int | None = None,
        correlation: bytes | None = None,
        expiry_s: int | None = None,
    ) -> None:
        """Send; the caller has seen that there is `room`. `on_acknowledged` is told the token when the broker has the message
        (QoS 0: when it is written). Of MQTT 5 alone: `correlation`, the correlation data of a reply; `expiry_s`, how long the
        broker may keep it for a subscriber that is away."""
        properties = None
        if self._config.protocol == "5" and (correlation is not None or expiry_s is not None):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if correlation is not None:
                properties.CorrelationData = correlation
            if expiry_s is not None:
                properties.MessageExpiryInterval = expiry_s
        # Not under our lock: paho calls back with its own message lock held, which publish() takes too.
        mid = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties).mid
        with self._lock:
            answered_first = mid in self._early
            refusal = self._early.pop(mid, None)
            if not answered_first:
                self._tokens[mid] = token
        if answered_first:
            self._on_acknowledged(token, refusal)

    def close(self, timeout_s: float = 2.0) -> None:
        """Send DISCONNECT (so that the will is not sent) and stop."""
        self._closing = True
        self._client.disconnect()
        thread = self._client._thread
        if thread is not None:
            thread.join(timeout_s)
        self._client.loop_stop()

    # paho's network thread dies of an exception in a callback: none of these may raise.
    def _opened(self, _client: paho.Client, _data: object, sock: object) -> None:
        self._socket = sock
        # Without it a small message waits for the broker's delayed ACK (40 ms).
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _connect_answered(
        self,
        _client: paho.Client,
        _data: object,
        _flags: paho.ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._connected = not code.is_failure
        self._refusal = None if self._connected else str(code)
        told = getattr(properties, "MaximumPacketSize", None)
        limits = [limit for limit in (self._config.max_packet_bytes, told) if limit is not None]
        self.maximum_packet_bytes = min(limits, default=None)
        self.window = min(self.window, getattr(properties, "ReceiveMaximum", self.window))
        self._answered.set()

    def _disconnected(
        self,
        _client: paho.Client,
        _data: object,
        _flags: paho.DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._answered.set()
        if self._connected and not self._closing:
            self._call(lambda: self._on_lost(str(code)))

    def _published(self, _client: paho.Client, _data: object, mid: int, code: ReasonCode, _properties: Properties | None) -> None:
        if code.value in TRY_AGAIN:
            with self._lock:
                self.putting_off, self.put_off = True, self._tokens.get(mid)
            self._call(lambda: self._on_lost(f"the broker put off a message: {code}"))
            return
        refusal = str(code) if code.is_failure else None
        with self._lock:
            if mid not in self._tokens:
                self._early[mid] = refusal
                return
            token = self._tokens.pop(mid)
        self._call(lambda: self._on_acknowledged(token, refusal))

    def _arrived(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        def hand_over() -> None:
            properties = message.properties
            self._on_message(
                Incoming(
                    message.topic,
                    bytes(message.payload),
                    message.retain,
                    getattr(properties, "ResponseTopic", None),
                    getattr(properties, "CorrelationData", None),
                    getattr(properties, "ContentType", ""),
                    tuple(getattr(properties, "UserProperty", ())),
                )
            )

        self._call(hand_over)

    def _subscribed(
        self, _client: paho.Client, _data: object, _mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if any(code.is_failure for code in codes):
            log.warning("the broker refuses us the command topics (%s); commands do not come over MQTT", codes[0])

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("an MQTT callback failed")
