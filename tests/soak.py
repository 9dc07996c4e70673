"""A daemon under random faults for a long time, and a proof at the end that nothing was lost.

    python -m tests.soak --minutes 60 [--seed 1]

Four emulated cameras: two triggered by command (each part has a name), one that runs freely with every frame counting, one
where the newest wins. A seeded plan of faults: the broker killed and started again, a camera process killed or hung, shots
registered and forgotten, recipes selected, the archive's disk full, the wall clock stepped. Every trigger that was accepted
must have one result, every sequence must be without gaps, no scratched part may have passed, memory and file handles must be
flat, and at the end everything must be well again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import cv2

from demo.run import free_port
from tests.broker import Broker, wait_for
from tests.parts import draw_part, write_parts

CLOCK = Path(__file__).parent / "clock.c"
PARTS, SCRATCHED = 8, 5
"""Pictures that each camera plays, and which of them is defective."""
TRIGGERED = ("left", "right")
STATIONS = (*TRIGGERED, "free", "newest")
TRIGGER_S = 0.5
SAMPLE_S = 2.0
FAULT_S = (3.0, 8.0)
"""Seconds between two faults."""
ARCHIVE_BYTES = 24 << 20
MEMORY_ROOM_MIB, HANDLE_ROOM = 40.0, 12
"""How much the last quarter's median may lie over the second's."""


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.port = free_port()
        self.broker = Broker(folder)
        self.accepted: list[str] = []
        self.refused = 0
        self.uncertain: set[str] = set()
        """Triggers whose answer did not come: they may have a result."""
        self.done: Counter[str] = Counter()
        self.samples: list[tuple[float, float, int]] = []
        """(moment, MiB resident, file handles)."""
        self._ended = threading.Event()
        self._mounted = False
        self._steps_clock = shutil.which("cc") is not None
        self._numbers = iter(range(10**9))
        self._process: subprocess.Popen[bytes] | None = None

    # The daemon.

    def start(self) -> None:
        """Pictures, broker, daemon; returns when every station inspects."""
        folder = self.folder
        for number in range(PARTS):
            write_parts(folder / "parts", range(number, number + 1), scratched=number == SCRATCHED, start=number)
        write_parts(folder / "shots", range(100, 110))
        write_parts(folder / "other", range(200, 210))
        self._mount()
        (folder / "aprilcam.toml").write_text(self._config())
        environment = dict(os.environ)
        if self._steps_clock:
            clock = folder / "clock.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(clock), str(CLOCK)], check=True)
            (folder / "shift").write_text("0")
            environment |= {"LD_PRELOAD": str(clock), "SHIFT_FILE": str(folder / "shift")}
        self.broker.start()
        with (folder / "daemon.log").open("ab") as log:
            command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(folder / "aprilcam.toml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        wait_for(self._ready, "the daemon to be ready", 120)

    def _config(self) -> str:
        text = f"""
[store]
path = "state"
[mqtt]
port = {self.broker.port}
prefix = "soak"
[http]
port = {self.port}
[archive]
pass_share = 0.2
min_free_bytes = 2000000
max_bytes = {ARCHIVE_BYTES if self._mounted else ARCHIVE_BYTES // 2}
[[recipes]]
name = "disc"
object = "disc"
shots = "shots"
[[recipes]]
name = "other"
object = "disc"
shots = "other"
"""
        for name in STATIONS:
            text += f"""
[[cameras]]
name = "{name}-cam"
driver = "pylon"
emulate = "parts"
pixel_format = "Mono8"
exposure_us = 1000.0
retry_s = 0.5
silent_after_s = 2.0
{'trigger = "software"' if name in TRIGGERED else "rate_hz = 4.0"}
[[stations]]
name = "{name}"
camera = "{name}-cam"
recipe = "disc"
frames = "{"newest" if name == "newest" else "every"}"
frame_timeout_ms = 1500.0
deadline_ms = 3000.0
queue_frames = 16
"""
        return text

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon ended: {(self.folder / 'daemon.log').read_text()[-2000:]}"
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    def _mount(self) -> None:
        """The archive on a small disk of its own, where this process may mount one."""
        archive = self.folder / "state" / "archive"
        archive.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={ARCHIVE_BYTES}", "tmpfs", str(archive)]
        self._mounted = os.geteuid() == 0 and subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def _post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
        """(status, answer); status 0 when none came."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310 - our own daemon
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {}
        except OSError:
            return 0, {}

    # What the line does.

    def _trigger(self, station: str) -> None:
        while not self._ended.wait(TRIGGER_S):
            name = f"{station} {next(self._numbers)}"
            status, _ = self._post(f"/api/stations/{station}/trigger", json.dumps({"part_id": name}).encode())
            if status == 200:
                self.accepted.append(name)
            elif status == 0:
                self.uncertain.add(name)
            else:
                self.refused += 1

    def _sample(self) -> None:
        assert self._process is not None
        place = Path(f"/proc/{self._process.pid}")
        while not self._ended.wait(SAMPLE_S):
            resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.samples.append((time.monotonic(), resident, len(list((place / "fd").iterdir()))))

    # Faults.

    def _cameras(self) -> list[int]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        found = []
        for file in children:
            with suppress(OSError):
                found += [int(pid) for pid in file.read_text().split()]
        return found

    def broker_restart(self) -> None:
        """Killed, and back after a moment."""
        self.broker.kill()
        time.sleep(self.chance.uniform(0.2, 3.0))
        self.broker.start()

    def camera_killed(self) -> None:
        """As a driver that segfaults."""
        if cameras := self._cameras():
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(cameras), signal.SIGKILL)

    def camera_hung(self) -> None:
        """As a driver call that never returns."""
        if cameras := self._cameras():
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(cameras), signal.SIGSTOP)

    def register(self) -> None:
        """A shot more; now and then one less."""
        recipe = self.chance.choice(("disc", "other"))
        picture = cv2.imencode(".png", draw_part(self.chance.randrange(1_000, 2_000)))[1].tobytes()
        self._post(f"/api/recipes/{recipe}/shots", picture, "image/png")
        with suppress(OSError):
            address = f"http://127.0.0.1:{self.port}/api/recipes/{recipe}/shots"
            with urllib.request.urlopen(address, timeout=10) as answer:
                shots = json.loads(answer.read())["shots"]
            if len(shots) > 12:
                gone = self.chance.choice(shots)["shot"]
                self._post("/api/commands/forget", json.dumps({"recipe": recipe, "shot": gone}).encode())

    def select(self) -> None:
        """Another product."""
        recipe, station = self.chance.choice(("disc", "other")), self.chance.choice(STATIONS)
        self._post("/api/commands/select_recipe", json.dumps({"recipe": recipe, "station": station}).encode())

    def archive_full(self) -> None:
        """Somebody fills the archive's disk for a while."""
        hog = self.folder / "state" / "archive" / "hog"
        with suppress(OSError), hog.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        time.sleep(self.chance.uniform(0.5, 3.0))
        hog.unlink(missing_ok=True)

    def clock_step(self) -> None:
        """Up to an hour forth or back."""
        whole = self.folder / "shift.new"
        whole.write_text(str(self.chance.randrange(-3_600, 3_600)))
        whole.rename(self.folder / "shift")

    # The run, and the proof.

    def run(self, minutes: float) -> None:
        """Faults until the time is over, then a while to get well."""
        faults: list[Callable[[], None]] = [
            self.broker_restart, self.camera_killed, self.camera_hung, self.register, self.select,
        ]  # fmt: skip
        faults += [self.archive_full] if self._mounted else []
        faults += [self.clock_step] if self._steps_clock else []
        threads = [threading.Thread(target=self._trigger, args=(station,)) for station in TRIGGERED]
        threads.append(threading.Thread(target=self._sample))
        for thread in threads:
            thread.start()
        try:
            end_s = time.monotonic() + 60 * minutes
            plan: list[Callable[[], None]] = []
            while time.monotonic() < end_s:
                if not plan:  # each kind comes as often as the others
                    plan = self.chance.sample(faults, len(faults))
                fault = plan.pop()
                fault()
                self.done[fault.__name__] += 1
                assert self._process is not None
                assert self._process.poll() is None, f"the daemon ended: {(self.folder / 'daemon.log').read_text()[-2000:]}"
                time.sleep(self.chance.uniform(*FAULT_S))
            wait_for(self._well, "everything to be well again", 90)
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _well(self) -> bool:
        if not self._ready():
            return False
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            told = answer.read().decode()
        values = dict(line.rsplit(" ", 1) for line in told.splitlines() if line and not line.startswith("#"))
        return (
            values["aprilcam_mqtt_connected"] == "1.0"
            and float(values["aprilcam_outbox_depth"]) < 50
            and values["aprilcam_archive_failing"] == "0.0"
            and values["aprilcam_ledger_failing"] == "0.0"
        )

    def stop(self) -> int:
        """End the daemon as systemd does; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.broker.kill()
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.folder / "state" / "archive")], check=False)

    def prove(self) -> str:
        """Everything that must be true now, or AssertionError; in words for people."""
        with closing(sqlite3.connect(self.folder / "state" / "ledger.sqlite3")) as connection:
            rows = connection.execute("SELECT station, document FROM results ORDER BY station, sequence").fetchall()
            late = connection.execute("SELECT count(*) FROM late_judgements").fetchone()[0]
        results = [json.loads(document) for _, document in rows]
        for station in STATIONS:
            sequences = [own["sequence"] for own in results if own["station"] == station]
            assert sequences == list(range(1, len(sequences) + 1)), f"{station}: gaps in its sequence"
            assert sequences, f"{station}: no results"
        assert len({own["result_id"] for own in results}) == len(results), "a result_id came twice"
        named = Counter(own["part_id"] for own in results if own["part_id"] is not None)
        twice = [name for name, count in named.items() if count > 1]
        assert not twice, f"answered twice: {twice[:5]}"
        missing = [name for name in self.accepted if name not in named]
        assert not missing, f"{len(missing)} triggers were accepted and not answered: {missing[:5]}"
        invented = set(named) - set(self.accepted) - self.uncertain
        assert not invented, f"answered though refused: {sorted(invented)[:5]}"
        assert all(own["part_id"] for own in results if own["station"] in TRIGGERED), "a result that nobody triggered"
        for own in results:
            judged = own["score"] is not None and own["bank"] is not None
            assert (own["verdict"] == "unknown") == (own["reason"] is not None) == (not judged), own
            if own["frame"]["number"] % PARTS == SCRATCHED and own["reason"] != "no_frame":
                assert own["verdict"] != "pass", f"a scratched part passed: {own}"
        verdicts = Counter(own["verdict"] for own in results)
        assert verdicts["pass"] > 0
        assert verdicts["fail"] > 0
        reasons = Counter(own["reason"] for own in results if own["reason"])
        return (
            f"{len(self.accepted)} triggers accepted and answered once, {self.refused} refused; {len(results)} results, no gap: "
            f"{dict(verdicts)}, unknown because {dict(reasons)}; {late} late judgements; faults {dict(self.done)}\n{self._flat()}"
        )

    def _flat(self) -> str:
        if len(self.samples) < 40:
            return f"{len(self.samples)} samples of memory, too few to tell"
        quarter = len(self.samples) // 4
        second, last = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        memory = [statistics.median(own[1] for own in part) for part in (second, last)]
        handles = [statistics.median(own[2] for own in part) for part in (second, last)]
        told = f"resident {memory[0]:.0f} to {memory[1]:.0f} MiB, file handles {handles[0]:.0f} to {handles[1]:.0f}"
        assert memory[1] < memory[0] + MEMORY_ROOM_MIB, f"memory grew: {told}"
        assert handles[1] < handles[0] + HANDLE_ROOM, f"file handles grew: {told}"
        return told


def soak(minutes: float, seed: int) -> str:
    """One run in a folder of its own; the proof in words. AssertionError where there is none; the folder is kept then."""
    folder = Path(tempfile.mkdtemp(prefix="aprilcam-soak-"))
    run = Soak(folder, seed)
    try:
        run.start()
        run.run(minutes)
        assert run.stop() == 0, "the daemon's exit status"
        told = run.prove()
    except BaseException:
        print(f"seed {seed}: see {folder}", file=sys.stderr)
        raise
    finally:
        run.close()
    shutil.rmtree(folder)
    return told


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="tests.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(soak(options.minutes, options.seed))


if __name__ == "__main__":
    main()
