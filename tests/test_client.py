"""The commands of a shell, without a daemon; with one they are tried in tests/system/test_teaching.py."""

import fcntl
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from config.errors import CommandError
from config.schema import HttpConfig
from daemon import cli
from daemon.client import Client, daemon_runs
from daemon.shots import pixel_hash
from tests.parts import draw_part, png, write_parts
from tests.school import School
from tests.test_cli import write

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def aprilcam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs `aprilcam` in this process: starting one takes seconds."""

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        command = ["aprilcam", *map(str, words)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return subprocess.CompletedProcess(command, code if isinstance(code, int) else 0, out, err)

    return run


def test_pictures_are_registered_listed_and_forgotten_on_the_state_folder(aprilcam: Shell, tmp_path: Path) -> None:
    config = write(tmp_path)
    good = write_parts(tmp_path / "good", range(1, 3))
    (tmp_path / "text.png").write_bytes(b"no picture")
    words = ("--recipe", "disc", "--config", config)
    done = aprilcam("register", *words, good[0], tmp_path / "text.png", good[1])
    assert done.returncode == 2
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        f"{path}: new shot {pixel_hash(draw_part(seed))[:16]}" for path, seed in zip(good, (1, 2), strict=True)
    ]
    assert done.stderr == (f"aprilcam: {tmp_path / 'text.png'}: text.png: not a picture. Use a whole png, jpg, bmp or tif file\n")
    listed = aprilcam("shots", *words)
    assert pixel_hash(draw_part(1))[:16] in listed.stdout
    assert "256 x 256" in listed.stdout
    assert listed.stdout.count("not known") == 2  # no daemon has made a bank of them
    gone = aprilcam("forget", *words, pixel_hash(draw_part(1))[:10])
    assert (gone.returncode, gone.stdout) == (0, f"forgotten: {pixel_hash(draw_part(1))[:16]}\n")


def test_recipes_are_made_moved_and_selected_on_the_state_folder(aprilcam: Shell, tmp_path: Path) -> None:
    config = ("--config", write(tmp_path))

    def well(*words: object) -> str:
        done = aprilcam(*words, *config)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def refused(*words: object) -> str:
        done = aprilcam(*words, *config)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        return done.stderr

    assert well("recipe", "create", "bolt", "--object", "bolt", "--mode", "few_shot", "--region", "0,8,128,64") == "made bolt\n"
    assert "has no reference shots: nothing can judge" in refused("recipe", "select", "bolt", "--station", "press")
    [part] = write_parts(tmp_path / "good", range(1, 2))
    well("register", "--recipe", "bolt", part)
    assert well("recipe", "select", "bolt", "--station", "press") == "press inspects by bolt\n"
    assert well("recipe", "threshold", "bolt", "0.75") == "threshold 0.7500\n"
    assert well("recipe", "threshold", "bolt", "--factor", "1.25") == "threshold not known before the first bank\n"
    assert well("recipe", "region", "bolt", "0,0,128,96") == "region 0,0,128,96\n"
    assert "does not hold the region x=200 y=0 width=128" in refused("recipe", "region", "bolt", "200,0,128,64")
    file = tmp_path / "bolt.zip"
    assert well("recipe", "export", "bolt", file) == f"{file}: {file.stat().st_size} bytes\n"
    assert well("recipe", "import", file, "--name", "nut") == "made nut\n"
    assert well("recipe", "copy", "bolt", "pin") == "made pin\n"
    table = well("recipe", "list").splitlines()
    rows = {line.split()[0]: line for line in table if line.strip()}
    assert list(rows)[2:] == ["disc", "bolt", "nut", "pin"]
    assert "press" in rows["bolt"]
    assert "press" not in rows["disc"]
    assert rows["disc"].rstrip().endswith("file")
    assert "1.25 x calibrated" in rows["nut"]
    assert pixel_hash(draw_part(1))[:16] in well("shots", "--recipe", "pin")
    assert "station press inspects by it" in refused("recipe", "delete", "bolt")
    assert well("recipe", "delete", "pin") == "removed pin\n"
    assert "is of the configuration file" in refused("recipe", "delete", "disc")
    assert "no recipe is named 'pin'" in refused("shots", "--recipe", "pin")
    assert "needs words" in refused("recipe", "create", "w", "--object", "w", "--mode", "both")
    file.write_bytes(file.read_bytes()[:-1])
    assert refused("recipe", "import", file, "--name", "x").startswith("aprilcam: the file: not a whole ZIP")


def test_banks_are_listed_with_the_false_rejects_to_expect(
    aprilcam: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    school = School(tmp_path / "state")
    school.open()
    for seed in range(2):
        school.built(school.teacher.register("disc", png(draw_part(seed)), name=f"{seed}", force=True).build)
    rate = school.teacher.banks("disc")[0].calibration.false_reject
    school.close()
    assert rate is not None
    done = aprilcam("banks", "--recipe", "disc", "--config", write(tmp_path))
    assert done.returncode == 0, done.stderr
    newest, oldest = [line for line in done.stdout.splitlines() if "(provisional)" in line]
    assert f"{rate.expected:.0%} ({rate.low:.0%} to {rate.high:.0%})" in newest
    assert "not known" in oldest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("register", "--recipe", "disc", "--last", "--station", "press"), "no camera runs. Start the daemon"),
        (("shots", "--recipe", "cog"), "no recipe is named 'cog'. Known: disc"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_2(
    aprilcam: Shell, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = aprilcam(*words, "--config", write(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"aprilcam: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--last",), "--last need --station"), ((), "exactly one of IMAGE"), (("x.png", "--next", "2"), "exactly one of IMAGE")],
)
def test_register_wants_one_source(aprilcam: Shell, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = aprilcam("register", "--recipe", "disc", *words, "--config", write(tmp_path))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_daemon_that_has_the_folder_but_does_not_answer_is_told(aprilcam: Shell, tmp_path: Path) -> None:
    config = write(tmp_path)
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert daemon_runs(tmp_path / "state")
        port_0 = aprilcam("shots", "--recipe", "disc", "--config", config)
        config.write_text(config.read_text().replace("port = 0", "port = 1"))
        refused = aprilcam("shots", "--recipe", "disc", "--config", config)
    assert "[http] port is 0, expected a fixed one" in port_0.stderr
    assert "the daemon at http://127.0.0.1:1 gave no answer" in refused.stderr
    assert (port_0.returncode, refused.returncode, refused.stderr.count("\n")) == (2, 2, 1)
    assert not daemon_runs(tmp_path / "state")
    assert not daemon_runs(tmp_path / "nothing")


def test_an_answer_of_something_else_is_told() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(404 if "shots" in self.path else 200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = Client(HttpConfig(port=server.server_port), None)
    try:
        with pytest.raises(CommandError, match=r"HTTP status 404: is it an aprilcam\? Check \[http\] port"):
            client.run("shots", {})
        with pytest.raises(CommandError, match="gave no answer"):
            client.run("banks", {})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
