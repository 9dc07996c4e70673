"""daemon/supervisor.py and daemon/grabber.py: real processes, killed, stopped and starved."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from config.schema import CameraConfig, FolderCamera, PylonCamera
from daemon.frame import Frame
from daemon.supervisor import CameraStatus, CameraSupervisor
from tests.conftest import COLOURS, DrawPictures

WAIT_S = 15.0


class Watched:
    """A supervisor, and what it told."""

    def __init__(self, config: CameraConfig, on_frame: Callable[[Frame], None] | None = None) -> None:
        self.seen: list[tuple[int, tuple[int, ...] | None, str | None]] = []
        self.frames = 0
        self.last: Frame | None = None
        self.changes: list[CameraStatus] = []
        self.threads: set[str] = set()
        self._then = on_frame
        self.supervisor = CameraSupervisor(config, self._frame, self.changes.append)
        self.supervisor.start()

    def _frame(self, frame: Frame) -> None:
        self.threads.add(threading.current_thread().name)
        colour = None if frame.pixels is None else tuple(frame.pixels[5, 5].tolist())
        self.seen.append((frame.number, colour, frame.fault))
        self.last = frame
        if self._then:
            self._then(frame)

    def until(self, true: Callable[[], object]) -> None:
        end_s = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < end_s, f"not within {WAIT_S} s; status {self.supervisor.status}"
            time.sleep(0.01)

    def frames_reach(self, goal: int) -> None:
        self.until(lambda: len(self.seen) >= goal)

    def frames_come(self, count: int = 3) -> None:
        self.frames_reach(len(self.seen) + count)

    @property
    def pid(self) -> int:
        process = self.supervisor._process
        assert process is not None
        return process.pid

    @property
    def reasons(self) -> list[str]:
        return [change.reason for change in self.changes]


Watch = Callable[..., Watched]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watched: list[Watched] = []

    def start(config: CameraConfig, on_frame: Callable[[Frame], None] | None = None) -> Watched:
        watched.append(Watched(config, on_frame))
        return watched[-1]

    yield start
    for one in watched:
        one.supervisor.stop()


def folder(path: Path, **keys: object) -> FolderCamera:
    settings = {"name": "cam", "driver": "folder", "path": path, "rate_hz": 50.0, "retry_s": 0.2, **keys}
    return FolderCamera.model_validate(settings)


def emulated(path: Path, **keys: object) -> PylonCamera:
    settings = {"name": "cam", "driver": "pylon", "emulate": path, "rate_hz": 50.0, "retry_s": 0.2, **keys}
    return PylonCamera.model_validate({"pixel_format": "RGB8Packed", **settings})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_emulated_camera_delivers_its_pictures(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(emulated(draw_pictures(3)))
    one.frames_come(6)
    assert one.seen[:6] == [(number, COLOURS[number % 3], None) for number in range(6)]
    frame = one.last
    assert frame is not None
    assert (frame.camera, frame.trigger, frame.is_simulated) == ("cam", "free_run", True)
    assert frame.arrived_at.tzinfo is not None
    assert 0 <= frame.acquire_s < 1
    assert 0 <= time.monotonic() - frame.arrived_s < 5
    status = one.supervisor.status
    assert status.connected
    assert status.reason == ""
    assert status.restarts == 0
    assert status.info is not None
    assert status.info.settings["PixelFormat"] == "RGB8Packed"
    assert one.threads == {"camera cam"}
    one.until(lambda: one.supervisor.status.counters.get("frames", 0) > 6)
    assert one.supervisor.status.counters["buffers_failed"] == 0


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")])
def test_dead_process_is_replaced_and_the_reason_told(
    watch: Watch, draw_pictures: DrawPictures, number: signal.Signals, name: str
) -> None:
    one = watch(emulated(draw_pictures(3), exposure_us=700.0))
    one.until(lambda: one.supervisor.status.counters.get("frames", 0) > 10)
    first = one.supervisor.status.info
    before = one.supervisor.status.counters["frames"]
    os.kill(one.pid, number)
    one.until(lambda: not one.supervisor.status.connected)
    one.until(lambda: one.supervisor.status.connected)
    one.frames_come()
    assert f"Camera cam: its process was killed by {name}" in one.reasons
    assert one.supervisor.status.restarts == 1
    again = one.supervisor.status.info
    assert again is not None
    assert again is not first
    assert float(again.settings["ExposureTime"]) == 700
    one.until(lambda: one.supervisor.status.counters["frames"] > before + 10)


def test_hung_driver_is_killed_and_replaced(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(folder(draw_pictures(), silent_after_s=1.0))
    one.frames_come()
    hung = one.pid
    os.kill(hung, signal.SIGSTOP)
    one.until(lambda: one.pid != hung)
    one.frames_come()
    assert not alive(hung)
    assert "Camera cam: the driver hung (no heartbeat for 1 s) and was killed" in one.reasons


def test_free_running_camera_without_frames_is_replaced(watch: Watch, draw_pictures: DrawPictures) -> None:
    silent = {
        "TriggerMode": "On",
        "TriggerSource": "Line1",
    }  # behind the supervisor's back: alive, and delivers nothing
    one = watch(emulated(draw_pictures(), silent_after_s=0.8, features=silent))
    one.until(lambda: one.supervisor.status.restarts)
    assert "Camera cam: no frame for 0.8 s though it runs freely; it was killed" in one.reasons


def test_no_frame_of_a_replaced_process_comes_through(watch: Watch, draw_pictures: DrawPictures) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(_: Frame) -> None:  # the first one, while others wait in the socket
        if not held.is_set():
            held.set()
            go.wait(WAIT_S)

    one = watch(emulated(draw_pictures(3)), hold)
    assert held.wait(WAIT_S)
    before = one.pid
    time.sleep(0.3)
    one.supervisor.replace("a triggered frame did not come")
    go.set()
    one.until(lambda: one.pid != before)
    one.frames_come()
    assert [number for number, _, _ in one.seen[:3]] == [0, 0, 1]
    assert "Camera cam: a triggered frame did not come; it was killed" in one.reasons


def test_too_many_open_files_are_told_and_got_over(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(folder(draw_pictures()))
    one.frames_come()
    before, (soft, hard) = one.pid, resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    hoard: list[int] = []
    try:
        with suppress(OSError):
            while True:
                hoard.append(os.dup(0))
        one.supervisor.replace("its time has come")
        one.until(lambda: any("Too many open files" in reason for reason in one.reasons))
        assert not one.supervisor.status.connected
    finally:
        for descriptor in hoard:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    one.until(lambda: one.supervisor.status.connected)
    one.frames_come()
    assert one.pid != before


def test_idle_triggered_line_is_left_alone(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(emulated(draw_pictures(), silent_after_s=0.8, trigger="line1"))
    one.until(lambda: one.supervisor.status.connected)
    time.sleep(2)
    assert one.supervisor.status.connected
    assert one.supervisor.status.restarts == 0


def test_a_software_trigger_gives_one_frame_and_nothing_comes_without(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(emulated(draw_pictures(3), trigger="software", rate_hz=None, silent_after_s=0.8))
    one.until(lambda: one.supervisor.status.connected)
    time.sleep(1.2)
    assert one.seen == []
    for _ in range(3):
        goal = len(one.seen) + 1
        assert one.supervisor.trigger()
        one.frames_reach(goal)
    assert [one.supervisor.trigger() for _ in range(3)] == [True] * 3  # each waits until the camera is ready for it
    one.frames_reach(6)
    time.sleep(0.5)
    assert one.seen == [(number, COLOURS[number % 3], None) for number in range(6)]
    assert one.last is not None
    assert one.last.trigger == "software"
    assert one.supervisor.status.restarts == 0


@pytest.mark.parametrize("trigger", ["free_run", "line1"])
def test_a_camera_that_is_not_triggered_by_software_takes_no_trigger(
    watch: Watch, draw_pictures: DrawPictures, caplog: pytest.LogCaptureFixture, trigger: str
) -> None:
    one = watch(emulated(draw_pictures(), trigger=trigger))
    one.until(lambda: one.supervisor.status.connected)
    assert not one.supervisor.trigger()
    assert 'not triggered: its trigger is not "software"' in caplog.text
    assert one.supervisor.status.connected


def test_a_camera_that_is_away_hangs_or_dies_takes_no_trigger(
    watch: Watch, draw_pictures: DrawPictures, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = watch(folder(tmp_path / "missing"))
    assert not away.supervisor.trigger()
    assert "not triggered: it is not connected" in caplog.text
    one = watch(emulated(draw_pictures(), trigger="software", rate_hz=None))
    one.until(lambda: one.supervisor.status.connected)
    hung = one.pid
    os.kill(hung, signal.SIGSTOP)
    begin_s = time.monotonic()
    assert not one.supervisor.trigger(0.5)
    assert 0.4 < time.monotonic() - begin_s < 5
    assert "not triggered: no answer within 0.5 s" in caplog.text
    # Its frame must not come after all: another process takes over.
    one.until(lambda: one.supervisor.status.restarts == 1 and one.supervisor.status.connected)
    assert any("a software trigger got no answer within 0.5 s" in reason for reason in one.reasons)
    os.kill(one.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (one.pid, signal.SIGKILL))
    killer.start()
    assert not one.supervisor.trigger(30)
    assert "not triggered: the camera was lost meanwhile" in caplog.text
    killer.join()
    one.until(lambda: one.supervisor.status.restarts == 2 and one.supervisor.status.connected)
    assert one.supervisor.trigger()


def test_slow_camera_is_not_taken_for_silent(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(folder(draw_pictures(), rate_hz=0.5, silent_after_s=0.8))
    one.frames_come(2)
    assert one.supervisor.status.restarts == 0


def test_camera_missing_at_start_is_taken_when_it_appears(watch: Watch, draw_pictures: DrawPictures, tmp_path: Path) -> None:
    one = watch(folder(tmp_path / "pictures", retry_s=0.1))
    one.until(lambda: one.supervisor.status.reason.startswith("Camera cam: "))
    assert "pictures is not a folder" in one.supervisor.status.reason
    assert not one.supervisor.status.connected
    draw_pictures(1)
    one.frames_come()
    assert one.supervisor.status.connected


def test_wait_between_tries_doubles(watch: Watch, tmp_path: Path) -> None:
    one = watch(folder(tmp_path / "missing", retry_s=0.1))
    time.sleep(4)
    assert 2 <= one.supervisor.status.restarts <= 5  # 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s, and the processes' own time


def test_folder_that_plays_once_is_finished_not_restarted(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(folder(draw_pictures(3), loop=False))
    one.until(lambda: one.supervisor.status.finished)
    assert [number for number, _, _ in one.seen] == [0, 1, 2]
    time.sleep(0.5)
    status = one.supervisor.status
    assert (status.connected, status.restarts, status.counters["frames"]) == (False, 0, 3)
    assert "all 3 pictures" in status.reason
    assert not alive(one.pid)


def test_unreadable_pictures_are_faults_and_counted(watch: Watch, draw_pictures: DrawPictures) -> None:
    pictures = draw_pictures(2)
    (pictures / "00.png").write_bytes(b"")
    one = watch(folder(pictures, loop=False))
    one.until(lambda: one.supervisor.status.finished)
    assert [fault is None for _, _, fault in one.seen] == [False, True]
    assert one.supervisor.status.counters == {"frames": 2, "faults": 1, "faults_unreadable": 1}


def test_picture_that_grew_opens_the_camera_again(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(folder(draw_pictures(1)))
    one.frames_come()
    draw_pictures(1, width=100)
    one.until(lambda: one.last is not None and one.last.pixels is not None and one.last.pixels.shape == (48, 100, 3))
    assert any("opened again" in reason for reason in one.reasons)


def test_consumer_that_keeps_frames_gets_overload_faults_and_keeps_its_pixels(watch: Watch, draw_pictures: DrawPictures) -> None:
    kept: list[Frame] = []
    one = watch(folder(draw_pictures(3)), on_frame=lambda frame: kept.append(frame) if frame.pixels is not None else None)
    one.until(lambda: sum("overload" in str(fault) for _, _, fault in one.seen) >= 5)
    assert len(kept) == 16
    colours = [tuple(frame.pixels[9, 9].tolist()) for frame in kept if frame.pixels is not None]
    assert colours == [COLOURS[frame.number % 3] for frame in kept]
    numbers = [number for number, _, _ in one.seen]
    assert numbers == list(range(len(numbers)))  # nothing is lost without a word
    one.until(lambda: one.supervisor.status.counters.get("faults_overload", 0) >= 5)
    kept.clear()
    one.until(lambda: one.seen[-1][2] is None)
    assert one.supervisor.status.restarts == 0


def test_held_up_consumer_is_not_blamed_on_the_camera(watch: Watch, draw_pictures: DrawPictures) -> None:
    naps = iter([1.5])
    one = watch(folder(draw_pictures(), silent_after_s=0.8), on_frame=lambda _: time.sleep(next(naps, 0)))
    one.frames_come(100)
    assert one.supervisor.status.restarts == 0


def test_consumer_that_raises_does_not_stop_the_camera(
    watch: Watch, draw_pictures: DrawPictures, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(frame: Frame) -> None:
        raise KeyError("no such station")

    one = watch(folder(draw_pictures()), on_frame=fail)
    one.frames_come(3)
    assert "no such station" in caplog.text
    assert one.supervisor.status.connected


def test_stop_leaves_no_process(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(emulated(draw_pictures()))
    one.frames_come()
    pid, begin_s = one.pid, time.monotonic()
    one.supervisor.stop()
    assert time.monotonic() - begin_s < 2
    assert not alive(pid)
    assert one.supervisor._process is not None
    assert one.supervisor._process.returncode == 0  # it closed the camera itself
    status = one.supervisor.status
    assert (status.connected, status.reason) == (False, "stopped")


def test_stop_ends_a_process_that_hangs_and_a_wait_for_the_next_try(
    watch: Watch, draw_pictures: DrawPictures, tmp_path: Path
) -> None:
    hung, waiting = watch(folder(draw_pictures())), watch(folder(tmp_path / "missing", retry_s=60.0))
    hung.frames_come()
    os.kill(hung.pid, signal.SIGSTOP)
    waiting.until(lambda: "not a folder" in waiting.supervisor.status.reason)
    begin_s = time.monotonic()
    waiting.supervisor.stop()
    assert time.monotonic() - begin_s < 1
    hung.supervisor.stop()
    assert not alive(hung.pid)


def test_signals_of_the_terminal_and_systemd_do_not_end_the_camera_process(watch: Watch, draw_pictures: DrawPictures) -> None:
    one = watch(folder(draw_pictures()))
    one.frames_come()
    os.kill(one.pid, signal.SIGINT)
    os.kill(one.pid, signal.SIGTERM)
    one.frames_come(30)
    assert one.supervisor.status.restarts == 0


def test_camera_process_dies_with_a_killed_daemon(draw_pictures: DrawPictures) -> None:
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from config.schema import FolderCamera; from daemon.supervisor import CameraSupervisor\n"
            "config = FolderCamera(name='cam', driver='folder', path=Path(sys.argv[1]), rate_hz=50.0)\n"
            "one = CameraSupervisor(config, lambda frame: None, lambda status: None); one.start()\n"
            "while not one.status.connected: time.sleep(0.01)\n"
            "print(one._process.pid, flush=True); time.sleep(60)",
            str(draw_pictures()),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        pid = int(daemon.stdout.readline())
        # Stopped, it cannot see the socket end: only the kernel can end it.
        os.kill(pid, signal.SIGSTOP)
        daemon.kill()
        daemon.wait()
    end_s = time.monotonic() + 5
    while alive(pid) and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_camera_process_is_light() -> None:
    heavy = "import daemon.grabber, sys; print([name for name in ('torch', 'timm', 'pypylon') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[]"
