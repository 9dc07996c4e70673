"""A whole-daemon story of Sparkplug: what a host sees and does, over the loss of a camera, of the broker and of the daemon."""

import json
import os
import signal
import urllib.request
from pathlib import Path

from tests.broker import wait_for
from tests.parts import write_parts
from tests.sparkplug_host import GROUP, NODE, Host
from tests.system.daemon import Line, folder_station

TOP = f"""
[sparkplug]
group_id = "{GROUP}"
edge_node_id = "{NODE}"
"""
TRIGGERED = """
[[cameras]]
name = "press-cam"
driver = "pylon"
emulate = "parts"
pixel_format = "Mono8"
exposure_us = 1000.0
trigger = "software"
silent_after_s = 3.0
retry_s = 0.5
[[stations]]
name = "press"
camera = "press-cam"
recipe = "disc"
"""


def test_a_host_follows_and_commands_two_stations_through_every_loss(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(3))
    write_parts(tmp_path / "parts", range(3, 4), scratched=True, start=3)
    line = Line(tmp_path, TRIGGERED + folder_station("oven", tmp_path / "parts").replace("20.0", "8.0"), top=TOP)
    lines.append(line)
    host = Host(line.broker.port)
    line.daemon.start()

    def there(host: Host) -> bool:
        return set(host.check().devices) == {"press", "oven"} and {"ContinuousExecution"} == {
            values["State/State"] for values in host.session.devices.values()
        }

    wait_for(lambda: there(host), "both births", 60)
    assert host.kinds[0] == "NBIRTH"

    # Results are those of the main contract.
    wait_for(lambda: bool(host.check()) and len(host.results) >= 12, "12 results")
    line.wait_results("oven", host.results[-1][1]["Result/Sequence"])
    for told in line.results("oven"):
        same = [values for _, values in host.results if values["Result/Result ID"] == told["result_id"]]
        for values in same:
            for name in ("Verdict", "Score", "Threshold", "Sequence", "Recipe", "Bank", "Reason"):
                assert values[f"Result/{name}"] == told[name.lower()]
    sequences = [values["Result/Sequence"] for _, values in host.results]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert {values["Result/Verdict"] for _, values in host.results} == {"pass", "fail"}

    # Commands.
    host.rebirth()
    wait_for(lambda: there(host) and len(host.births) == 2, "the rebirth")
    host.write("press", Trigger=True, Part_ID="A-17")
    wait_for(lambda: host.check().devices["press"]["Result/Part ID"] == "A-17", "the triggered result")
    assert host.session.devices["press"]["Control/Answer"] == "trigger: ok"
    url = f"http://127.0.0.1:{line.daemon.http_port}/api/commands/recipe_copy"
    body = json.dumps({"recipe": "disc", "to": "disc2"}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=20):
        pass

    def selected() -> bool:
        before = len(host.changes)
        host.write("oven", Recipe="disc2")  # `busy` while its bank is built
        wait_for(lambda: bool(host.check()) and len(host.changes) > before, "an answer")
        return bool(host.session.devices["oven"]["Control/Recipe"] == "disc2")

    wait_for(selected, "the recipe", 60)
    wait_for(lambda: host.check().devices["oven"]["Result/Recipe"] == "disc2", "a result by it")

    # The cameras hang.
    process = line.daemon.process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    for camera in [int(pid) for file in children for pid in file.read_text().split()]:
        os.kill(camera, signal.SIGSTOP)
    wait_for(lambda: bool(host.check()) and {"DDEATH press", "DDEATH oven"} <= set(host.kinds), "the deaths", 40)
    wait_for(lambda: there(host), "the births", 40)
    assert host.deaths == []
    assert set(host.births) == {0}

    # The broker dies.
    assert line.listener is not None
    line.listener.close()
    host.close()
    line.broker.kill()
    line.start_broker()
    host = Host(line.broker.port, late=True)
    wait_for(lambda: line.daemon.get("/metrics")[1].count(f'aprilcam_sparkplug_online{{edge_node="{NODE}"}} 1.0') == 1, "birth")
    host.rebirth()
    wait_for(lambda: there(host), "the births")
    assert set(host.births) == {1}

    # The daemon dies.
    line.daemon.end(signal.SIGKILL)
    wait_for(lambda: not host.check().online, "the death")
    assert host.deaths == [1]
    line.daemon.start()
    wait_for(lambda: there(host), "the births", 60)
    assert host.births[-1] == 2
    assert host.session.devices["oven"]["Control/Recipe"] == "disc2"
    metrics = line.daemon.get("/metrics")[1]
    assert f'aprilcam_sparkplug_failures_total{{edge_node="{NODE}"}} 0.0' in metrics
    assert line.daemon.end() == 0
    wait_for(lambda: not host.check().online, "the death")
    assert host.deaths == [1, 2]
    host.close()
