"""`aprilcam doctor` with a fake GigE camera on a virtual wire, seen from a network namespace of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.genicam import write_description
from tests.wire import CAMERA, Wire
from tests.wire import wire as wire

CONFIG = f"""
[store]
path = "state"
[[cameras]]
name = "cam"
driver = "aravis"
ip = "{CAMERA}"
[[recipes]]
name = "disc"
object = "metal disc"
[[stations]]
name = "press"
camera = "cam"
recipe = "disc"
"""
PACKET_SIZE = """
<IntReg Name="GevSCPSPacketSize"><Address>0xd04</Address><Length>4</Length><AccessMode>RW</AccessMode><pPort>Device</pPort>
<Cachable>NoCache</Cachable><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
"""
"""The fake camera has the register (GigE Vision 2.0, table 28-1), and no name for it."""
LOOK = """
import json, sys; from pathlib import Path; from config.schema import load_config
from daemon.doctor.cameras import Cameras; from daemon.doctor.examination import checks, examine
from daemon.doctor.finding import Situation
path = Path(sys.argv[1]); wanted = ("cameras", "packet size", "mtu", "reverse path filter", "nic ring")
report = examine(Situation(config_path=path, config=load_config(path)), [c for c in checks(Cameras()) if c.name in wanted])
print(json.dumps([[name, finding.status, finding.found] for name, finding in report.findings]))
"""


def look(file: Path) -> dict[str, tuple[str, str]]:
    # `ip netns exec` shows the namespace's own /sys, where the MTU is read.
    namespace = f"aprilcam-{os.getpid()}-host"
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", LOOK, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return {name: (status, found) for name, status, found in json.loads(done.stdout)}


def test_a_camera_on_a_wire_with_small_and_large_packets(wire: Wire, tmp_path: Path) -> None:
    file = tmp_path / "aprilcam.toml"
    file.write_text(CONFIG)
    description = write_description(tmp_path, PACKET_SIZE)
    text = description.read_text()
    begin = text.index("<pFeature>", text.index('<Category Name="Root"'))
    description.write_text(f"{text[:begin]}<pFeature>GevSCPSPacketSize</pFeature>{text[begin:]}")
    wire.start_camera(xml=description)
    found = look(file)
    assert found["cameras"] == ("ok", f"cam: aravis sees GV01 Aravis Fake {CAMERA} (free)")
    status, words = found["mtu"]
    assert (status, words.startswith("wire (to cam): MTU 1500")) == ("warn", True)
    assert found["packet size"] == ("ok", "cam: packets of 1400 bytes")
    assert found["reverse path filter"][1].endswith(f"{CAMERA} is of its subnet")
    assert found["nic ring"][0] in ("ok", "warn", "skipped"), "as the kernel's veth has it"
    wire.mtu(9000)
    found = look(file)
    assert found["mtu"] == ("ok", "wire (to cam): MTU 9000")
    assert found["packet size"][0] == "warn"
    file.write_text(CONFIG.replace("[[recipes]]", "packet_size_bytes = 9100\n[[recipes]]"))
    found = look(file)
    assert (found["packet size"][0], found["mtu"][0]) == ("fail", "fail")
