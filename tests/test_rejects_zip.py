"""daemon/rejects_zip.py and GET /api/results/export: archived results as one file."""

import io
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from config.errors import CommandError
from daemon import rejects_zip
from daemon.command_parts import Parts
from daemon.evidence import Evidence
from daemon.marks import Marks
from daemon.rejects_zip import zipped
from tests.archived import Kept, a_result
from tests.broker import wait_for
from tests.plant import TestPlant
from tests.test_api import Server, refused


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path / "kept")
    yield kept
    kept.close()


def test_every_file_is_there_as_it_lies_in_the_archive_and_what_was_given_up_is_named(kept: Kept) -> None:
    for verdict in ("fail", "fail", "unknown"):
        kept.put(a_result(verdict), anomaly_map=np.ones((8, 8), np.float32) if verdict == "fail" else None)
    found = kept.archive.latest()
    expected = {str(path.relative_to(kept.root)): path.read_bytes() for path in kept.root.rglob("*.*") if path.is_file()}
    pieces = list(zipped(found))
    assert len(pieces) == 4, "one result at a time"
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == expected
        assert len(expected) == 8
    found[1].picture.unlink()
    with zipfile.ZipFile(io.BytesIO(b"".join(zipped(found)))) as file:
        assert file.read("skipped.txt").decode().splitlines()[1:] == [found[1].result_id]
        assert not any(found[1].result_id in name for name in file.namelist())


def test_too_much_is_refused_before_anything_is_made(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.put(a_result())
    monkeypatch.setattr(rejects_zip, "MAX_BYTES", 100)
    with pytest.raises(CommandError, match=r"bytes in 1 results, at most 100\. Ask for fewer") as caught:
        zipped(kept.archive.latest())
    assert caught.value.code == "too_large"


def test_it_is_fetched_with_the_filters_of_results_by_who_may_change_something(kept: Kept, plant: TestPlant) -> None:
    plant.commands.open(Parts(plant.teacher, plant.recipes, Evidence(kept.archive, Marks(kept.ledger, kept.archive))))
    wanted = kept.put(a_result(recipe="disc")).result_id
    kept.put(a_result(recipe="ring"))
    server = Server(plant)
    try:
        for _ in range(2):  # the first has let the next one in
            answer = server.http.get("/api/results/export", params={"recipe": "disc", "since": "2026-05-04T08:00:00+02:00"})
            assert answer.headers["content-type"] == "application/zip"
            with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
                assert {name.rpartition("/")[2].partition(".")[0] for name in file.namelist()} == {wanted}
        export = "/api/results/export"
        refused(server.http.get(export, params={"since": "2026-05-04T08:00:00"}), 400, "malformed")
        refused(server.http.get(export, params={"before": "gone"}), 404, "unknown_result")
        refused(server.http.get(export, headers={"Host": "evil.example"}), 403, "forbidden")
        assert server.http.get(export, params={"limit": "1"}).status_code == 200
    finally:
        server.close()


def test_a_reader_that_hangs_up_lets_the_next_one_in(kept: Kept, plant: TestPlant) -> None:
    plant.commands.open(Parts(plant.teacher, plant.recipes, Evidence(kept.archive, Marks(kept.ledger, kept.archive))))
    noise = np.random.default_rng(0).integers(0, 256, (1_000, 1_000, 3), np.uint8)  # 3 MB as PNG: more than sockets hold
    for _ in range(4):
        kept.put(a_result(), pixels=noise)
    server = Server(plant)
    export = "/api/results/export"
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as reader:
            reader.sendall(f"GET {export} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert reader.recv(1_000).startswith(b"HTTP/1.1 200")
            refused(server.http.get(export), 503, "busy")
        wait_for(lambda: server.http.get(export).status_code == 200, "its place")
    finally:
        server.close()
