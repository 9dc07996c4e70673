"""Browsers that look at the operator page, as daemon/web/static/page.js does it, for benchmarks.page; a process of its own.

Each opens `/` with its style and script, holds `/live`, and fetches the pictures that it is told of, one at a time for each
station, the newest of those that wait. Raw sockets, and no more of HTTP than that takes: real browsers are other machines, and
these share the daemon's cores.

    python -m benchmarks.viewers PORT COUNT    (until its standard input ends; then its Seen as JSON)
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field

NICE = 19
HEAD_END = b"\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Seen:
    """By all viewers together. arrived: (result_id, when its event came: Unix time in ns), in the order of coming."""

    arrived: list[tuple[str, int]] = field(default_factory=list)
    pictures: int = 0
    picture_bytes: int = 0
    refused: int = 0
    """Answers other than 200."""
    cpu_s: float = 0.0
    """Processor time of this process."""


class Viewer:
    """One browser."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._port = port
        self._seen = seen
        self._newest: dict[str, str] = {}
        """By station: the picture to fetch next."""
        self._wanted: dict[str, asyncio.Event] = {}
        self._fetching: list[asyncio.Task[None]] = []

    async def look(self) -> None:
        """Until the daemon ends the stream."""
        streams = await asyncio.open_connection("127.0.0.1", self._port)
        for path in ("/", "/static/page.css", "/static/page.js"):
            await self._get(streams, path)
        reader, writer = streams
        writer.write(_request("/live"))
        await reader.readuntil(HEAD_END)
        # Chunks (RFC 9112, 7.1), each of whole events.
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunk = await reader.readexactly(size + 2)
            arrived_ns = time.time_ns()
            for event in chunk.split(b"\n\n"):
                if event.startswith(b"event: result\ndata: "):
                    self._hear(json.loads(event.partition(b"data: ")[2]), arrived_ns)

    def _hear(self, row: dict[str, object], arrived_ns: int) -> None:
        station, result_id = str(row["station"]), str(row["result_id"])
        self._seen.arrived.append((result_id, arrived_ns))
        if row["picture"]:
            if station not in self._wanted:
                self._wanted[station] = asyncio.Event()
                self._fetching.append(asyncio.create_task(self._fetch(station)))
            self._newest[station] = result_id
            self._wanted[station].set()

    async def _fetch(self, station: str) -> None:
        streams = await asyncio.open_connection("127.0.0.1", self._port)
        wanted = self._wanted[station]
        while await wanted.wait():
            wanted.clear()
            size = await self._get(streams, f"/preview/{station}.jpg?result={self._newest[station]}")
            self._seen.pictures += size > 0
            self._seen.picture_bytes += size

    async def _get(self, streams: Streams, path: str) -> int:
        """Bytes of the answer's body, 0 when it is refused."""
        reader, writer = streams
        writer.write(_request(path))
        status, *headers = (await reader.readuntil(HEAD_END)).split(b"\r\n")
        [length] = [int(header[15:]) for header in headers if header.lower().startswith(b"content-length:")]
        await reader.readexactly(length)
        if status.split()[1] == b"200":
            return length
        self._seen.refused += 1
        return 0


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode()


async def _look(port: int, count: int) -> Seen:
    seen = Seen()
    looking = [asyncio.ensure_future(Viewer(port, seen).look()) for _ in range(count)]
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait([ended, *looking], return_when=asyncio.FIRST_COMPLETED)
    for one in done:
        one.result()
    if ended not in done:
        raise SystemExit("a viewer's stream has ended")
    for one in looking:
        one.cancel()
    seen.cpu_s = time.process_time()
    return seen


if __name__ == "__main__":
    os.nice(NICE)
    json.dump(asdict(asyncio.run(_look(int(sys.argv[1]), int(sys.argv[2])))), sys.stdout)
