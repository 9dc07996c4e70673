"""Whole-daemon story: the archive's disk fills up, and the line does not notice."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.broker import wait_for
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station

ARCHIVE = """
[archive]
pass_share = 1.0
min_free_bytes = 500_000
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB where the daemon keeps its archive."""
    folder = tmp_path / "state" / "archive"
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_inspection_goes_on_while_the_archives_disk_is_full_and_archiving_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    write_parts(tmp_path / "parts", range(4))
    write_parts(tmp_path / "parts", range(4, 8), scratched=True, start=4)
    # Slow enough for a busy machine, so that the archive alone could be to blame for a frame that is not judged.
    station = folder_station("press", tmp_path / "parts").replace("rate_hz = 20.0", "rate_hz = 8.0")
    line = Line(tmp_path, station, top=ARCHIVE)

    def metric(name: str) -> float:
        found = re.search(rf"^aprilcam_archive_{re.escape(name)} (\S+)$", line.daemon.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else -1.0

    def kept() -> set[str]:
        return {path.stem for path in small_disk.rglob("*.json")}

    try:
        line.daemon.start()
        # Some 15 frames fit: then the newest takes the oldest's place, passes first, and nothing is dropped.
        before = line.wait_results("press", 50)
        verdicts = {result["result_id"]: result["verdict"] for result in before}
        wait_for(lambda: len(kept()) >= 8 and not kept() & {i for i in verdicts if verdicts[i] == "pass"}, "passes to give way")
        assert metric('dropped_total{reason="disk_full"}') == 0
        assert metric("failing") == 0
        assert 0 < metric("bytes") < 2 << 20
        assert metric("files") >= 24

        ballast = small_disk / "somebody-elses"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        wait_for(lambda: metric("failing") == 1, "the full disk to be told")
        count = len(line.results("press"))
        line.wait_results("press", count + 30)
        assert metric('dropped_total{reason="disk_full"}') > 0
        assert line.daemon.get("/healthz")[0] == 200
        assert line.daemon.get("/readyz")[0] == 200

        ballast.unlink()
        wait_for(lambda: metric("failing") == 0, "the free disk to be seen")
        seen = {result["result_id"] for result in line.results("press")}
        wait_for(lambda: bool(kept() - seen), "new results to be kept", 30)
        results = line.results("press")
        assert [result["sequence"] for result in results] == list(range(1, len(results) + 1))
        assert {result["verdict"] for result in results} == {"pass", "fail"}
        assert line.daemon.end() == 0
        assert not list(small_disk.rglob("*.part"))
    finally:
        line.close()
