"""`make run` as a visitor meets it: the real pictures through pylon's emulator, told readably, ended by Ctrl-C."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from demo.pictures import BUILD, lay_out
from tests.broker import wait_for

SHOWN = ("✔ pass", "✘ FAIL", "? UNKNOWN")


@pytest.fixture(scope="module", autouse=True)
def fresh_state() -> Iterator[None]:
    """What somebody marked or taught in the demo waits aside, as the README's figures are those of a first run."""
    state, aside = BUILD / "state", BUILD / "state-aside"
    if state.exists():
        shutil.rmtree(aside, ignore_errors=True)
        state.rename(aside)
        if (aside / "cache").exists():
            shutil.copytree(aside / "cache", state / "cache")
    yield
    if aside.exists():
        shutil.rmtree(state)
        aside.rename(state)


def run_until(results: int) -> tuple[int, str]:
    """`make run` until so many result lines, then Ctrl-C: (exit code, all that was printed)."""
    command = [sys.executable, "-m", "demo.run"]
    text, seen = "", 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            text += line
            seen += any(word in line for word in SHOWN)
            if seen == results:
                os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to everybody in the foreground
                break
        text += demo.stdout.read()
    return demo.returncode, text


def ledger() -> list[dict[str, Any]]:
    """Every result so far, oldest first."""
    connection = sqlite3.connect(BUILD / "state" / "ledger.sqlite3")
    rows = connection.execute("SELECT document FROM results ORDER BY sequence").fetchall()
    connection.close()
    return [json.loads(document) for (document,) in rows]


def test_the_demo_judges_its_pictures_as_the_readme_says() -> None:
    line = lay_out(None)
    before = len(ledger()) if (BUILD / "state" / "ledger.sqlite3").exists() else 0
    code, text = run_until(52)
    assert code == 0, text
    told = [
        "page: http://127.0.0.1:9464/",
        "pictures: solar cells",
        "private broker",
        "loading model",
        "stations",
        "mosquitto_sub",
        "/metrics",
        "✔ pass",
        "stopping",
    ]
    places = [text.index(words) for words in told]
    assert places == sorted(places)
    assert places[0] == 0
    assert " results: " in text[places[-1] :]

    first_round = [result for result in ledger()[before:] if result["frame"]["number"] < len(line)]
    assert len(first_round) == len(line) == 50
    passed = dict.fromkeys((False, True), 0)
    for result in first_round:
        part = line[result["frame"]["number"]]
        assert result["verdict"] in ("pass", "fail")
        assert (result["mask"] is not None) == (result["verdict"] == "fail") == bool(result["regions"])
        passed[part.defective] += result["verdict"] == "pass"
    assert passed == {False: 29, True: 1}


def test_a_second_run_uses_the_bank_and_leaves_nothing_running() -> None:
    code, text = run_until(1)
    assert code == 0, text
    assert "encoding reference shots" not in text
    port = text.split("private broker: 127.0.0.1:")[1].split()[0]
    config = str(BUILD / "broker" / "mosquitto.conf")

    def left() -> str:
        return subprocess.run(["pgrep", "-f", config], capture_output=True, text=True).stdout

    wait_for(lambda: left() == "", f"the broker on {port} to be gone", 5)
