"""daemon/logs.py: forms of the log, what a line is about, and that a message that is repeated does not flood it."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon.logs import AT_ONCE, JsonLines, LogFormat, Repeats, is_journal, line_handler
from tests.broker import wait_for


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("daemon.test", level, __file__, 1, message, args, None)


def test_a_json_line_says_what_it_is_about() -> None:
    told = json.loads(JsonLines().format(record("station %s: it\nhas %d", "press", 3)))
    assert told.pop("timestamp").endswith("+00:00")
    assert told == {
        "level": "warning",
        "logger": "daemon.test",
        "message": "station press: it\nhas 3",
        "station": "press",
    }
    assert json.loads(JsonLines().format(record("recipe %s: no bank", "disc")))["recipe"] == "disc"
    assert "\n" not in JsonLines().format(record("two\nlines"))


def test_a_json_line_holds_its_exception() -> None:
    try:
        int("wrong")
    except ValueError:
        failed = logging.LogRecord("a", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    assert "ValueError: invalid literal" in json.loads(JsonLines().format(failed))["exception"]


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (20, 6), (10, 7)]
)
def test_each_line_for_the_journal_has_its_priority(level: int, priority: int) -> None:
    stream = io.StringIO()
    line_handler(LogFormat.journal, stream).emit(record("one\ntwo", level=level))
    assert stream.getvalue() == f"<{priority}>one\n<{priority}>two\n"


def test_the_journal_is_known_by_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        own = os.fstat(file.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{own.st_dev}:{own.st_ino}"}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": f"{own.st_dev}:{own.st_ino + 1}"}, file.fileno())
        assert not is_journal({}, file.fileno())


def test_a_repeated_message_is_counted_and_told_once() -> None:
    told: list[logging.LogRecord] = []
    repeats = Repeats(told.append, interval_s=0.5)
    passed = [repeats.filter(record("station %s: frame %d is lost", "press", number)) for number in range(100)]
    assert passed == [True] * AT_ONCE + [False] * (100 - AT_ONCE)
    # Another station's, and another level's, are others.
    assert repeats.filter(record("station %s: frame %d is lost", "oven", 1))
    assert repeats.filter(record("station %s: frame %d is lost", "press", 1, level=logging.ERROR))
    wait_for(lambda: len(told) == 1, "the number", 5)
    text = told[0].getMessage()
    assert text == f"station press: frame 99 is lost ({100 - AT_ONCE} more such messages within 0.5 s)"
    # A new time has begun.
    assert repeats.filter(record("station %s: frame %d is lost", "press", 100))


def test_critical_messages_always_pass_and_percent_signs_do_no_harm() -> None:
    told: list[logging.LogRecord] = []
    repeats = Repeats(told.append, interval_s=0.2)
    assert all(repeats.filter(record("giving up", level=logging.CRITICAL)) for _ in range(50))
    for _ in range(10):
        repeats.filter(record("100 % of it"))
    wait_for(lambda: len(told) == 1, "the number", 5)
    assert told[0].getMessage().startswith("100 % of it (5 more")


def test_many_threads_lose_no_count() -> None:
    told: list[logging.LogRecord] = []
    repeats = Repeats(told.append, interval_s=0.6)
    passed: list[bool] = []
    threads = [
        threading.Thread(target=lambda: passed.extend(repeats.filter(record("again")) for _ in range(500))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: len(told) == 1, "the number", 5)
    assert (sum(passed), f"({2_000 - AT_ONCE} more such" in told[0].getMessage()) == (AT_ONCE, True)


def test_what_nobody_caught_and_warnings_are_lines_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import threading, warnings\n"
        "from daemon.logs import LogFormat, line_handler, set_up\n"
        "set_up(line_handler(LogFormat.json))\n"
        "warnings.warn('old', stacklevel=1)\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start()\n"
        "thread.join()\n"
        "raise KeyError('x')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    warned, on_thread, at_last = (json.loads(line) for line in done.stderr.splitlines())
    assert "UserWarning: old" in warned["message"]
    assert "ZeroDivisionError" in on_thread["exception"]
    assert "KeyError" in at_last["exception"]


def test_a_configuration_that_cannot_run_is_told_in_the_same_form(tmp_path: Path) -> None:
    file = tmp_path / "aprilcam.toml"
    command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(file), "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert json.loads(line)["level"] == "critical"
    assert "no such file" in json.loads(line)["message"]
