"""A real mosquitto that tests can kill and start again, and a client that collects what it says."""

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from demo.run import MOSQUITTO_PLACES, free_port
from tests.contract_check import ContractCheck


class Broker:
    """mosquitto on a loopback port that it keeps over restarts."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nuser root\nset_tcp_nodelay true\nmax_queued_messages 0\n"
            + "".join(f"{line}\n" for line in extra or ("allow_anonymous true",))
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("mosquitto", path=MOSQUITTO_PLACES)
        assert program is not None
        self._process = subprocess.Popen([program, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        wait_for(lambda: listens(self.port), "mosquitto to listen")

    def stop(self) -> None:
        """As an administrator does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: bytes
    retained: bool
    qos: int
    expiry_s: int | None = None


class Listener:
    """A subscriber of everything below a prefix; reconnects by itself."""

    def __init__(
        self,
        port: int,
        topic: str = "#",
        protocol: int = paho.MQTTv5,
        qos: int = 1,
        *,
        contract: ContractCheck | None = None,
    ) -> None:
        """contract: `close` checks every message against it, and fails where one is not as it says. Not before: who hears
        slowly loses what a killed broker still had for him."""
        self.heard: list[Heard] = []
        self._contract = contract
        self.subscriptions = 0
        """How often it subscribed, which it does at each connect."""
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion(protocol))
        self._client.reconnect_delay_set(0.1, 0.2)  # type: ignore[arg-type]
        self._client.on_message = self._hear
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=qos)
        self._client.on_subscribe = self._note
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(5)

    def _hear(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        expiry_s = getattr(message.properties, "MessageExpiryInterval", None)
        self.heard.append(Heard(message.topic, bytes(message.payload), message.retain, message.qos, expiry_s))

    def _note(self, *_: object) -> None:
        self.subscriptions += 1
        self._subscribed.set()

    def of(self, suffix: str) -> list[bytes]:
        return [heard.payload for heard in list(self.heard) if heard.topic.endswith(suffix)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        if self._contract is not None:
            for heard in self.heard:
                self._contract.see(heard.topic, heard.payload)
            assert self._contract.complaints == []


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
