"""The mosquitto of config/mosquitto, as it is shipped: only its paths, its port and the user that it runs as are replaced."""

import secrets
import shutil
import subprocess
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from demo.run import MOSQUITTO_PLACES, free_port
from tests.broker import Heard, listens, wait_for
from tests.certificates import Authority

SHIPPED = Path(__file__).parent.parent / "config" / "mosquitto"


class ShippedBroker:
    """With the users daemon, scada, engineer, and one whom the access list does not name."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        self.ca = Authority(folder)
        self.ca.issue("broker")
        self.passwords = {user: secrets.token_hex(8) for user in ("daemon", "scada", "engineer", "guest")}
        for number, (user, password) in enumerate(self.passwords.items()):
            made = ["mosquitto_passwd", *(["-c"] if number == 0 else []), "-b", str(folder / "passwords"), user, password]
            subprocess.run(made, check=True, capture_output=True)
        shutil.copy(SHIPPED / "acl", folder / "acl")
        text = (SHIPPED / "aprilcam.conf").read_text()
        assert text.count("listener 8883\n") == 1
        text = text.replace("listener 8883\n", f"listener {self.port} 127.0.0.1\n")
        text = text.replace("/etc/mosquitto/certs/", f"{folder}/").replace("/etc/mosquitto/", f"{folder}/")
        (folder / "mosquitto.conf").write_text(f"user root\n{text}")
        program = shutil.which("mosquitto", path=MOSQUITTO_PLACES)
        assert program is not None
        self._process = subprocess.Popen([program, "-c", folder / "mosquitto.conf"], stderr=subprocess.DEVNULL)
        wait_for(lambda: listens(self.port), "mosquitto to listen")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class User:
    """A client of a broker with TLS."""

    def __init__(self, broker: ShippedBroker, name: str | None, protocol: str = "5", will: str | None = None) -> None:
        version = MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311
        self.heard: list[Heard] = []
        self.correlations: list[bytes | None] = []
        self.refused = False
        """Whether the broker did not let it in."""
        self._in = False
        self._subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=version, reconnect_on_failure=False)
        if name is not None:
            self._client.username_pw_set(name, broker.passwords[name])
        if will is not None:
            self._client.will_set(will, b"will", qos=1, retain=True)
        self._client.tls_set(ca_certs=str(broker.ca.file))
        self._client.on_message = self._hear
        self._client.on_connect = lambda _c, _d, _f, code, _p: setattr(self, "refused" if code.is_failure else "_in", True)
        self._client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        wait_for(lambda: self._in or self.refused, "the broker's answer")

    def _hear(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        self.correlations.append(getattr(message.properties, "CorrelationData", None))
        self.heard.append(Heard(message.topic, bytes(message.payload), message.retain, message.qos))

    def subscribe(self, topic_filter: str) -> None:
        self._client.subscribe(topic_filter, qos=1)
        wait_for(lambda: self._subscribed, "the subscription")

    def say(self, topic: str, payload: bytes, response: tuple[str, bytes] | None = None) -> None:
        """And wait for the broker's acknowledgement. `response`: MQTT 5 response topic and correlation data."""
        properties = None
        if response is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic, properties.CorrelationData = response
        self._client.publish(topic, payload, qos=1, properties=properties).wait_for_publish(5)

    def vanish(self) -> None:
        """Without a DISCONNECT: the broker sends the will."""
        sock = self._client.socket()
        assert sock is not None
        sock.close()
        self._client.loop_stop()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
