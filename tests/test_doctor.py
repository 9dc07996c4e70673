"""`aprilcam doctor`: what each check says of a machine, the sysctl and sysfs trees of which are the test's own."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.schema import load_config
from connectors.mqtt import MqttConnection
from daemon.doctor.broker import look_at_broker
from daemon.doctor.cameras import Cameras, judge_packet_size
from daemon.doctor.disk import judge_speed, look_at_disk
from daemon.doctor.examination import checks, examine
from daemon.doctor.finding import Check, Finding, Report, Situation
from daemon.doctor.gpu import look_at_gpu, look_at_torch
from daemon.doctor.network import (
    judge_ring,
    look_at_mtu,
    look_at_receive_buffer,
    look_at_reverse_path,
    look_at_ring,
    receive_ring,
)
from daemon.doctor.permissions import look_at_permissions
from daemon.doctor.system import judge_clock, kernel_clock
from daemon.doctor.weights import look_at_weights
from demo.run import free_port
from tests.broker import Broker, Listener
from tests.parts import write_parts
from tests.shipped_broker import ShippedBroker

GIGE = """
[store]
path = "state"
[[cameras]]
name = "cam"
driver = "pylon"
ip = "10.1.2.3"
{camera}
[[recipes]]
name = "disc"
object = "metal disc"
[[stations]]
name = "press"
camera = "cam"
recipe = "disc"
"""
FOLDER = GIGE.replace('driver = "pylon"\nip = "10.1.2.3"', 'driver = "folder"\npath = "parts"')
ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0100A8C0	0003	0	0	0	00000000	0	0	0
eth0	0000A8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
eth1	0002010A	00000000	0001	0	0	0	00FFFFFF	0	0	0
eth2	0000010A	0100A8C0	0003	0	0	0	0000FFFF	0	0	0
"""
"""As proc(5) has it: 10.1.2.0/24 at eth1, 10.1.0.0/16 behind a router at eth2, all else behind one at eth0."""


def configured(folder: Path, text: str = FOLDER, camera: str = "", mqtt: str = "") -> Situation:
    write_parts(folder / "parts", range(1))
    file = folder / "aprilcam.toml"
    file.write_text(f"{mqtt}\n{text.format(camera=camera)}")
    file.chmod(0o640)
    return Situation(config_path=file, config=load_config(file))


def machine(folder: Path, **files: object) -> Path:
    """A tree with a routing table, and a file for each name, in which `__` is a slash."""
    root = folder / "root"
    for name, text in {"proc__net__route": ROUTES, **files}.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def doctor(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon.cli", "doctor", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def by_check(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout)["findings"]:
        rows.setdefault(row["check"], []).append(row)
    return rows


# the command


def test_a_whole_examination_of_a_plant_that_is_well(tmp_path: Path, broker: Broker) -> None:
    situation = configured(tmp_path, mqtt=f"[mqtt]\nport = {broker.port}")
    done = doctor("--config", situation.config_path, "--json")
    assert done.stderr == ""
    rows = by_check(done)
    assert list(rows) == [check.name for check in checks(Cameras())]
    for name in ("configuration", "gpu", "torch", "weights", "cameras", "broker", "file limit"):
        assert [row["status"] for row in rows[name]] == ["ok"], rows[name]
    assert "1 pictures in" in rows["cameras"][0]["found"]
    assert f"broker 127.0.0.1:{broker.port}: MQTT 5, no TLS, let in as nobody" in rows["broker"][0]["found"]
    assert rows["mtu"][0]["status"] == "skipped"
    assert done.returncode == (1 if json.loads(done.stdout)["status"] == "fail" else 0)
    assert not list(tmp_path.glob("state*")), "looking makes no state folder"


def test_the_machine_alone_without_a_configuration() -> None:
    report = examine(Situation(), [check for check in checks(Cameras()) if check.name != "torch"])
    found = dict(reversed(report.findings))  # the first of each
    assert found["configuration"].found.startswith("none")
    assert found["cameras"].found.startswith("pylon sees 0815-0000 Emulation")
    assert found["broker"] == Finding("skipped", "no configuration names a broker")
    assert not [finding for finding in found.values() if "itself failed" in finding.found]


def test_a_table_for_people_and_exit_2_for_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "aprilcam.toml"
    file.write_text(FOLDER.format(camera="colour = 1"))
    done = doctor("--config", file)
    assert (done.returncode, done.stderr) == (2, "")
    [line] = [line for line in done.stdout.splitlines() if "unknown key" in line]
    assert line.split()[:2] == ["fail", "configuration"]
    assert "cameras.0.colour" in line
    assert any(line.split()[:2] == ["ok", "weights"] for line in done.stdout.splitlines()), (
        "the machine is looked at all the same"
    )


def test_a_check_that_raises_or_hangs_is_a_fail_that_names_itself() -> None:
    def raises(_: Situation) -> list[Finding]:
        raise ZeroDivisionError("by nought")

    release = threading.Event()

    def hangs(_: Situation) -> list[Finding]:
        release.wait(60)
        return []

    begun_s = time.monotonic()
    wanted = (
        Check("one", raises),
        Check("two", hangs, 0.2),
        Check("three", lambda _: [Finding("warn", "it is old")]),
    )
    report = examine(Situation(), wanted)
    release.set()
    assert time.monotonic() - begun_s < 5
    (_, raised), (_, hung), (name, last) = report.findings
    assert (raised.status, raised.found) == ("fail", "the check 'one' itself failed: ZeroDivisionError: by nought")
    assert (hung.status, hung.found) == ("fail", "the check 'two' did not end within 0.2 s")
    assert (name, last.status, report.worst) == ("three", "warn", "fail")
    assert Report((("a", Finding("warn", "")), ("b", Finding("skipped", "")))).worst == "warn"
    assert Report((("a", Finding("ok", "")), ("b", Finding("skipped", "")))).worst == "ok"


def test_each_check_is_in_the_document() -> None:
    text = (Path(__file__).parent.parent / "docs/install.md").read_text()
    assert [check.name for check in checks(Cameras()) if f"\n| {check.name} | " not in text] == []


# gpu, torch, weights


def test_a_gpu_is_asked_for_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [finding] = look_at_gpu(Situation(root=machine(tmp_path)))
    assert finding == Finding("ok", "no GPU, the CPU is used")
    wants = configured(tmp_path, mqtt='[inference]\ndevice = "cuda:7"')
    [finding] = look_at_gpu(Situation(tmp_path / "root", wants.config_path, wants.config))
    assert (finding.status, finding.found) == ("fail", "no GPU, and the configuration asks for one")
    [finding] = look_at_torch(wants)
    assert finding.status == "fail"
    assert "cuda:7 cannot be used: " in finding.found


def test_what_nvidia_smi_tells_of_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"  # in the form of its manual, for want of a GPU
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 535.261.03, 23034 MiB'\necho 'NVIDIA L4, 535.261.03, 23034 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [f"cuda:{index}: NVIDIA L4, 23034 MiB, driver 535.261.03" for index in range(2)]
    assert list(look_at_gpu(Situation())) == [Finding("ok", words) for words in found]
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'\nexit 9\n"
    )
    [finding] = look_at_gpu(Situation())
    assert (finding.status, finding.found.startswith("nvidia-smi: NVIDIA-SMI has failed")) == ("warn", True)


def test_a_gpu_without_its_driver_is_seen_on_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    device = "sys__bus__pci__devices__0000:01:00.0__"
    [finding] = look_at_gpu(Situation(root=machine(tmp_path, **{f"{device}vendor": "0x10de", f"{device}class": "0x030200"})))
    assert (finding.status, finding.found) == ("warn", "an NVIDIA GPU is there, and no driver of it")
    [finding] = look_at_gpu(Situation(root=machine(tmp_path, **{f"{device}class": "0x0c0330"})))  # its USB controller alone
    assert finding.status == "ok"


def test_weights_are_those_that_are_meant(tmp_path: Path) -> None:
    [finding] = look_at_weights(Situation())
    assert finding.status == "ok"
    assert "efficientnet-lite0-57934424.pth, sha256 579344248a93… as expected" in finding.found
    preset = (Path(__file__).parent.parent / "config/models/efficientnet-lite0.toml").read_text()
    own = tmp_path / "own.toml"
    (tmp_path / "w.pth").write_bytes(b"other weights")
    own.write_text(preset.replace("wheel:efficientnet-lite0", "w.pth"))
    situation = configured(tmp_path, mqtt='[inference]\npreset = "own.toml"')
    [finding] = look_at_weights(situation)
    assert finding.status == "fail"
    assert "expected 579344248a93" in finding.found
    own.write_text("\n".join(line for line in own.read_text().splitlines() if "sha256" not in line))
    [finding] = look_at_weights(situation)
    assert (finding.status, "no hash says" in finding.found) == ("warn", True)
    (tmp_path / "w.pth").unlink()
    [finding] = look_at_weights(situation)
    assert (finding.status, "No such file" in finding.found) == ("fail", True)


# cameras


def test_configured_cameras_are_seen_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLON_CAMEMU", "2")
    seen = configured(tmp_path, GIGE.replace('ip = "10.1.2.3"', 'serial = "0815-0001"'))
    cameras = Cameras()
    [finding] = cameras.look_at_cameras(seen)
    assert finding == Finding("ok", "cam: pylon sees 0815-0001 Emulation  (free)")
    assert cameras.addresses(seen) == {}
    unseen = configured(tmp_path, GIGE)
    [finding] = cameras.look_at_cameras(unseen)
    assert finding.status == "fail"
    assert finding.found.startswith("cam: ip 10.1.2.3 is not seen. pylon sees: 0815-0000, 0815-0001")
    assert cameras.addresses(unseen) == {"10.1.2.3": "cam"}
    (tmp_path / "parts").rename(tmp_path / "gone")
    (tmp_path / "parts").mkdir()
    folder = Situation(config_path=unseen.config_path, config=load_config(_write(tmp_path, FOLDER.format(camera=""))))
    [finding] = cameras.look_at_cameras(folder)
    assert (finding.status, "no picture is in" in finding.found) == ("fail", True)


def _write(folder: Path, text: str) -> Path:
    file = folder / "other.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("has", "configured_size", "mtu", "status"),
    [
        (1500, None, 1500, "ok"),
        (1500, None, 9000, "warn"),
        (1500, 8192, 9000, "ok"),
        (1500, 8192, 1500, "fail"),
        (8192, None, None, "ok"),
    ],
)
def test_packets_fit_what_the_interface_carries(has: int, configured_size: int | None, mtu: int | None, status: str) -> None:
    assert judge_packet_size("cam", has, configured_size, mtu).status == status


# the network


def test_mtu_of_the_interface_that_reaches_the_camera(tmp_path: Path) -> None:
    addresses = {"10.1.2.3": "cam"}
    root = machine(tmp_path, sys__class__net__eth1__mtu=1500, sys__class__net__eth0__mtu=9000)
    [finding] = look_at_mtu(Situation(root=root), addresses)
    assert (finding.status, finding.found.startswith("eth1 (to cam): MTU 1500")) == ("warn", True)
    large = configured(tmp_path, GIGE, camera="packet_size_bytes = 8192")
    [finding] = look_at_mtu(Situation(root, large.config_path, large.config), addresses)
    assert (finding.status, finding.found) == ("fail", "eth1 (to cam): MTU 1500, packet_size_bytes is 8192")
    [finding] = look_at_mtu(Situation(root=machine(tmp_path, sys__class__net__eth1__mtu=9000)), addresses)
    assert finding.status == "ok"
    nowhere = machine(tmp_path, proc__net__route=ROUTES.splitlines()[0])
    [finding] = look_at_mtu(Situation(root=nowhere), addresses)
    assert (finding.status, finding.found) == ("fail", "cam: no interface reaches 10.1.2.3")


def test_receive_buffer(tmp_path: Path) -> None:
    small = machine(tmp_path, proc__sys__net__core__rmem_max=212_992)
    gige = configured(tmp_path, GIGE)
    [finding] = look_at_receive_buffer(Situation(small, gige.config_path, gige.config))
    assert (finding.status, "sysctl -w net.core.rmem_max=33554432" in finding.mend) == ("warn", True)
    folder = configured(tmp_path)
    [finding] = look_at_receive_buffer(Situation(small, folder.config_path, folder.config))
    assert finding.status == "ok"
    [finding] = look_at_receive_buffer(Situation(machine(tmp_path, proc__sys__net__core__rmem_max=33_554_432)))
    assert finding == Finding("ok", "net.core.rmem_max = 33554432")
    (small / "proc/sys/net/core/rmem_max").unlink()
    [finding] = look_at_receive_buffer(Situation(small))
    assert finding.status == "skipped"


def test_reverse_path_filter_matters_for_cameras_of_another_subnet(tmp_path: Path) -> None:
    conf = "proc__sys__net__ipv4__conf__"
    root = machine(tmp_path, **{f"{conf}all__rp_filter": 0, f"{conf}eth1__rp_filter": 1, f"{conf}eth2__rp_filter": 1})
    [near, far] = look_at_reverse_path(Situation(root=root), {"10.1.2.3": "near", "10.1.9.9": "far"})
    assert (near.status, far.status) == ("ok", "warn")
    assert "net.ipv4.conf.eth2.rp_filter=2" in far.mend
    loose = machine(tmp_path, **{f"{conf}all__rp_filter": 2})  # the larger of the two counts
    [far] = look_at_reverse_path(Situation(root=loose), {"10.1.9.9": "far"})
    assert far.status == "ok"


def test_ring_of_the_card(tmp_path: Path) -> None:
    assert judge_ring("eth1", 4096, 256) == Finding(
        "warn", "eth1: receive ring of 256, 4096 at most", "ethtool -G eth1 rx 4096, kept in the network's configuration"
    )
    assert judge_ring("eth1", 4096, 4096).status == "ok"
    with pytest.raises(OSError, match="not supported"):
        receive_ring("lo")
    [finding] = look_at_ring(Situation(root=machine(tmp_path)), {"127.0.0.1": "cam"})
    assert (finding.status, finding.found.startswith("lo: it tells no ring")) == ("skipped", True)


# the broker


def test_a_broker_that_is_not_there_is_one_fail(tmp_path: Path) -> None:
    port = free_port()
    [finding] = look_at_broker(configured(tmp_path, mqtt=f"[mqtt]\nport = {port}"))
    assert finding.status == "fail"
    assert finding.found.startswith(f"broker 127.0.0.1:{port} cannot be reached: ")
    assert finding.mend == "Check [mqtt] host and port, and that the broker runs"


def test_a_running_daemon_is_not_thrown_off_and_nothing_is_said(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port)  # a daemon's client id would be taken over, and this one subscribe again
    situation = configured(tmp_path, mqtt=f"[mqtt]\nport = {broker.port}")
    assert situation.config is not None
    lost: list[str] = []
    daemon = MqttConnection(situation.config.mqtt, ("aprilcam/status", b"offline"), lambda *_: None, lost.append)
    daemon.open(5)
    assert [finding.status for finding in look_at_broker(situation)] == ["ok"]
    time.sleep(0.3)
    assert (lost, listener.heard, listener.subscriptions) == ([], [], 1)
    daemon.close()
    listener.close()


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[ShippedBroker]:
    broker = ShippedBroker(tmp_path / "broker")
    yield broker
    broker.kill()


def test_the_shipped_broker_lets_the_daemon_in_with_tls_and_password_only(tmp_path: Path, shipped: ShippedBroker) -> None:
    password = tmp_path / "password"
    password.write_text(shipped.passwords["daemon"])
    password.chmod(0o600)

    def look(ca: Path) -> Finding:
        mqtt = f'[mqtt]\nport = {shipped.port}\nusername = "daemon"\npassword_file = "{password}"\n[mqtt.tls]\nca_file = "{ca}"'
        [finding] = look_at_broker(configured(tmp_path, mqtt=mqtt))
        return finding

    finding = look(shipped.ca.file)
    assert finding.status == "ok"
    assert "TLS, verified, let in as daemon" in finding.found
    password.write_text("guessed")
    finding = look(shipped.ca.file)
    assert (finding.status, "Not authorized" in finding.found) == ("fail", True)
    assert "guessed" not in f"{finding}"
    other = shipped.ca.issue("other")[0]
    finding = look(other)
    assert (finding.status, "its certificate is of no CA in" in finding.found) == ("fail", True)
    assert finding.mend == "Set [mqtt.tls] ca_file to the CA that signed it"


# disk, clock, permissions


def test_disk(tmp_path: Path) -> None:
    room = "[archive]\nmin_free_bytes = 0\nmax_bytes = 1_000_000"
    situation = configured(tmp_path, mqtt=room)
    found = list(look_at_disk(situation))
    assert [finding.status for finding in found[:2]] == ["ok", "ok"]
    assert found[2].status in ("ok", "warn"), "as the disk is now"
    assert "MB/s, the slowest fsync" in found[2].found
    full = configured(tmp_path, mqtt="[archive]\nmin_free_bytes = 1_000_000_000_000_000")
    assert list(look_at_disk(full))[1].status == "fail"
    greedy = configured(tmp_path, mqtt="[archive]\nmax_bytes = 1_000_000_000_000_000")
    assert list(look_at_disk(greedy))[1].status == "warn"
    mounts = machine(tmp_path, proc__self__mounts=f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0")
    assert next(iter(look_at_disk(Situation(mounts, situation.config_path, situation.config)))).status == "fail"
    assert judge_speed("/x", 200.0, 0.01).status == "ok"
    assert judge_speed("/x", 5.0, 0.01).status == "warn"
    assert judge_speed("/x", 200.0, 1.5).status == "warn"


def test_clock() -> None:
    assert judge_clock(0, 0x2001, 30_000) == Finding("ok", "kept right, at most 30 ms off")
    assert judge_clock(5, 0x40, 16_000_000).status == "warn"
    assert judge_clock(0, 0x2001, 5_000_000).status == "warn"
    state, status, error_us = kernel_clock()
    # The kernel says TIME_ERROR whenever STA_UNSYNC is set, and its largest error is 16 s.
    assert 0 <= state <= 5
    assert state == 5 or not status & 0x40
    assert 0 <= error_us <= 16_000_000


@pytest.mark.parametrize(
    ("mode", "which", "status", "words"),
    [
        (0o777, "state", "fail", "may change"),
        (0o755, "state", "warn", "may look into"),
        (0o646, "file", "fail", "may change"),
        (0o644, "secret", "warn", "can read"),
    ],
)
def test_permissions(tmp_path: Path, mode: int, which: str, status: str, words: str) -> None:
    (tmp_path / "state").mkdir(mode=0o750)
    token = tmp_path / "token"
    token.write_text("a token of some length")
    token.chmod(0o640)
    situation = configured(tmp_path, mqtt='[http]\ntoken_file = "token"')
    [finding] = look_at_permissions(situation)
    assert finding.status == "ok"
    target = {"state": tmp_path / "state", "file": situation.config_path, "secret": token}[which]
    assert target is not None
    target.chmod(mode)
    [finding] = look_at_permissions(situation)
    assert (finding.status, words in finding.found, str(target) in finding.found) == (status, True, True)
