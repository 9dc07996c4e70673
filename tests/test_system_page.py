"""daemon/overview.py, daemon/web/{system,examiner}.py: the page of the daemon itself, and the doctor that it runs."""

import re
from pathlib import Path

import httpx
import pytest

from daemon.overview import Overview, Part, Trouble
from daemon.web.examiner import Examiner
from daemon.web.system import duration, size
from tests.broker import wait_for
from tests.system.daemon import Line, folder_station
from tests.wall import Wall, write_users

SECRET = "hunter2-of-the-broker"  # noqa: S105


def facts(html: str, part: str) -> dict[str, str]:
    """What the page shows of a part, by the facts' names."""
    [section] = re.findall(rf'data-part="{part}".*?</section>', html, re.DOTALL)
    shown = re.findall(r'data-fact="(.*?)">(?:<time.*?>)?(.*?)<', section)
    return dict(shown)


def test_a_real_daemon_shows_its_parts_what_is_wrong_and_no_secret_and_has_itself_examined(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    line = Line(tmp_path, folder_station("press", tmp_path / "missing"))
    config = line.daemon.config
    own = '[mqtt]\nusername = "camera"\npassword_file = "secret"'
    config.write_text(config.read_text().replace("[mqtt]", own, 1))
    (tmp_path / "missing").mkdir()
    (tmp_path / "secret").chmod(0o600)
    url = f"http://127.0.0.1:{line.daemon.http_port}"
    try:
        line.daemon.start()
        wait_for(lambda: line.daemon.get("/system")[0] == 200, "the page", 60)
        first = line.daemon.get("/system")[1]
        assert 'data-starting="yes"' in first
        assert "The daemon is starting" in first
        wait_for(lambda: "press: " in line.daemon.get("/system/now")[1], "what is wrong", 90)
        wait_for(lambda: facts(line.daemon.get("/system/now")[1], "broker")["connected"] == "✔ yes", "the broker")
        html = line.daemon.get("/system")[1]
        assert html.index('id="system-troubles"') < html.index('data-part="cameras"')
        assert "✘ ERROR" in html
        assert "Check the camera" in html
        assert facts(html, "cameras")["connected"] == "✘ no"
        assert facts(html, "broker")["address"] == f"127.0.0.1:{line.broker.port}"
        assert facts(html, "device")["precision"] == "fp32"
        assert len(facts(html, "device")["weights"]) == 64
        assert facts(html, "configuration")["status"] == "✔ in force"
        assert {"rows", "size_bytes", "oldest_age_s", "most_bytes"} <= facts(html, "outbox").keys()
        assert {"disk_free_bytes", "archive_bytes", "archive_most_bytes"} <= facts(html, "disk").keys()
        assert {"aprilcam", "python", "torch", "opencv-python-headless", "uptime_s"} <= facts(html, "software").keys()
        [csrf] = re.findall(r'data-csrf="(.*?)"', html)
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as http:
            assert http.post("/system/doctor").status_code == 403
            begun = [http.post("/system/doctor", headers={"X-CSRF-Token": csrf}) for _ in range(2)]
            assert [answer.status_code for answer in begun] == [202, 409]
            wait_for(lambda: 'data-status="done"' in http.get("/system/doctor").text, "the doctor", 120)
            found = http.get("/system/doctor").text
        checks = re.findall(r'data-check="(.*?)" data-level="(.*?)"', found)
        assert ("configuration", "ok") in checks
        assert ("broker", "ok") in checks
        assert ("cameras", "fail") in checks
        assert ("packet size", "skipped") in checks
        assert not {"torch", "weights"} & {name for name, _ in checks}
        assert checks[0][1] == "fail"
        for shown in (first, html, found):
            assert SECRET not in shown
    finally:
        line.close()


def test_a_viewer_sees_the_page_without_files_of_secrets_and_has_nothing_examined(tmp_path: Path) -> None:
    wall = Wall(tmp_path / "state", users_file=write_users(tmp_path))
    told = Overview(
        (Trouble("warn", "every user can read /etc/key", files=True), Trouble("fail", "<b>: lost", "mend_camera")),
        (Part("cameras", {"camera": "c", "frames": 3, "rate_hz": None}, "<b>oven"),),
    )
    wall.page.system._told = lambda: told
    try:
        for name, may in (("viewer", False), ("engineer", True)):
            wall.http.cookies.clear()
            assert wall.http.get("/system").status_code == 401
            wall.log_in(name)
            html = wall.http.get("/system").text
            assert facts(html, "cameras") == {"camera": "c", "frames": "3"}
            assert "&lt;b&gt;: lost" in html
            assert "<b>oven" not in html
            assert ("/etc/key" in html, "system-run-doctor" in html) == (may, may)
            [csrf] = re.findall(r'data-csrf="(.*?)"', html)
            assert wall.http.get("/system/doctor").status_code == (200 if may else 403)
            assert wall.http.post("/system/doctor").status_code == 403
            if not may:
                assert wall.http.post("/system/doctor", headers={"X-CSRF-Token": csrf}).status_code == 403
        assert wall.page.system.examiner.last.status == "never"
    finally:
        wall.close()


def test_a_doctor_that_says_nothing_is_told_and_one_that_runs_ends_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "nice").write_text("#!/bin/sh\necho it broke >&2; exit 3\n")
    (bin_ / "nice").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_), prepend=":")
    examiner = Examiner(("--config", str(tmp_path / "x.toml")))
    assert examiner.begin()
    wait_for(lambda: examiner.last.status == "failed", "the doctor's end")
    assert examiner.last.trouble == "it broke"
    (bin_ / "nice").write_text(f"#!/bin/sh\necho $$ > {tmp_path / 'pid'}; sleep 600\n")
    assert examiner.begin()
    assert not examiner.begin()
    wait_for((tmp_path / "pid").exists, "the process")
    wait_for(lambda: bool((tmp_path / "pid").read_text()), "its number")
    examiner.close()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    assert not examiner.begin()


def test_sizes_and_durations_are_told_in_fitting_units() -> None:
    assert [size(count) for count in (0, 999, 1_500, 5e9, 2e15)] == ["0 B", "999 B", "1.5 kB", "5.0 GB", "2000.0 TB"]
    told = [duration(seconds) for seconds in (0, 0.004, 59, 61, 3_600, 93_784)]
    assert told == ["0 s", "4 ms", "59 s", "1 min 1 s", "1 h", "1 d 2 h"]
