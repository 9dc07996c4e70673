"""What a publisher meets on its way, and can fail: a proxy that goes silent, and a broker that does what it is told to."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator


class Proxy:
    """Forwards TCP connections of its own port to another; each can be made to go silent without being closed."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.open = True
        """Whether new connections are taken; else they are closed at once."""
        self.accepted = 0
        self._wire = threading.Event()
        self._wire.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.accepted += 1
                if not self.open:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._upstream))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for source, target in ((client, server), (server, client)):
                    target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._forward, args=(source, target, self._wire), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, wire: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not wire.is_set():
                    return  # cut: nothing comes through, and nobody is told
                target.sendall(data)
        if wire.is_set():
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """The connections there are go silent for ever, both ways and without a FIN; later ones are whole."""
        self._wire.clear()
        self._wire = threading.Event()
        self._wire.set()

    def close(self) -> None:
        for end in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class ScriptedBroker:
    """Takes one MQTT 5 client at a time, says the Receive Maximum it is given, and acknowledges only what it is told to.

    puts_off: a topic whose messages it always answers with "quota exceeded"; all others it acknowledges by itself then.
    """

    def __init__(self, receive_maximum: int, puts_off: str | None = None) -> None:
        self._puts_off = puts_off
        self.connects = 0
        self.taken: list[str] = []
        """Topics of what it acknowledged by itself."""
        self._receive_maximum = receive_maximum
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.waiting: list[int] = []
        """Packet ids that came and are not acknowledged."""
        self.topics: list[str] = []
        self.most_waiting = 0
        self.connect = b""
        """The CONNECT packet."""
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._server.accept()
            except OSError:
                return
            with self._client, contextlib.suppress(OSError):
                self._serve_client(self._client)

    def _serve_client(self, client: socket.socket) -> None:
        for kind, body in _packets(client):
            match kind >> 4:
                case 1:
                    self.connects += 1
                    self.connect = body
                    properties = struct.pack(">BH", 0x21, self._receive_maximum)
                    client.sendall(bytes([0x20, 3 + len(properties), 0, 0, len(properties)]) + properties)
                case 3:
                    length = int.from_bytes(body[:2])
                    topic, packet_id = body[2 : 2 + length].decode(), int.from_bytes(body[2 + length : 4 + length])
                    if self._puts_off is not None:
                        self._answer(client, topic, packet_id)
                        continue
                    with self._lock:
                        self.topics.append(topic)
                        self.waiting.append(packet_id)
                        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def _answer(self, client: socket.socket, topic: str, packet_id: int) -> None:
        if topic == self._puts_off:
            client.sendall(struct.pack(">BBHBB", 0x40, 4, packet_id, 0x97, 0))
        else:
            self.taken.append(topic)
            client.sendall(struct.pack(">BBH", 0x40, 2, packet_id))

    def acknowledge(self) -> None:
        """The oldest."""
        assert self._client is not None
        with self._lock:
            packet_id = self.waiting.pop(0)
        self._client.sendall(struct.pack(">BBH", 0x40, 2, packet_id))

    def close(self) -> None:
        for end in (self._server, self._client):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


def _packets(client: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(first byte, what follows the remaining length) of each packet (MQTT 5 section 2.1)."""
    buffer = b""
    while data := client.recv(65_536):
        buffer += data
        while len(buffer) >= 2:
            length, place = 0, 1
            while place < len(buffer):
                length |= (buffer[place] & 0x7F) << 7 * (place - 1)
                place += 1
                if not buffer[place - 1] & 0x80:
                    break
            else:
                break
            if len(buffer) < place + length:
                break
            yield buffer[0], buffer[place : place + length]
            buffer = buffer[place + length :]
