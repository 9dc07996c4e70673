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
        wait_for(lambda: _listens(self.port), "mosquitto to listen")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: bytes
    retained: bool
    qos: int


class Listener:
    """A subscriber of everything below a prefix; reconnects by itself."""

    def __init__(self, port: int, topic: str = "#", protocol: int = paho.MQTTv5) -> None:
        self.heard: list[Heard] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion(protocol))
        self._client.reconnect_delay_set(0.1, 0.2)  # type: ignore[arg-type]
        self._client.on_message = lambda _c, _d, m: self.heard.append(Heard(m.topic, bytes(m.payload), m.retain, m.qos))
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(5)

    def of(self, suffix: str) -> list[bytes]:
        return [heard.payload for heard in list(self.heard) if heard.topic.endswith(suffix)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
