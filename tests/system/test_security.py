"""Whole-daemon story: every command over the broker that is shipped, with TLS, a password and an access list."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema

from connectors.requests import REQUESTS
from tests.broker import wait_for
from tests.contract_check import DOCS, VALIDATORS
from tests.parts import write_parts
from tests.shipped_broker import ShippedBroker, User
from tests.system.daemon import Daemon
from tests.system.test_triggers import TRIGGERED

REPLY = jsonschema.Draft202012Validator(json.loads((DOCS / "reply.schema.json").read_text()))


class Bench:
    """An engineer, who asks the daemon and keeps account of what was answered."""

    def __init__(self, broker: ShippedBroker, protocol: str) -> None:
        self.user = User(broker, "engineer", protocol)
        self.user.subscribe("aprilcam/press/reply/#")
        self.done: set[str] = set()
        self._protocol = protocol

    def ask(self, name: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The reply, checked against the shipped schema."""
        before = len(self.user.heard)
        request = {"request_id": f"{self._protocol} {name} {before}", **(request or {})}
        response = ("aprilcam/press/reply/bench-1", os.urandom(4)) if self._protocol == "5" else None
        self.user.say(f"aprilcam/press/command/{name}", json.dumps(request).encode(), response)
        wait_for(lambda: len(self.user.heard) > before, f"an answer to {name}")
        heard, reply = self.user.heard[before], json.loads(self.user.heard[before].payload)
        REPLY.validate(reply)
        if response is None:
            assert heard.topic == "aprilcam/press/reply"
        else:
            assert (heard.topic, self.user.correlations[before]) == response
        assert (reply["command"], reply["request_id"]) == (name, request["request_id"])
        return dict(reply)

    def do(self, name: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of a command that is to be done; `busy` passes."""
        reply: dict[str, Any] = {}

        def is_done() -> bool:
            reply.update(self.ask(name, request))
            return reply["error"] is None or reply["error"]["code"] != "busy"

        wait_for(is_done, f"{name} to be done", 30)
        assert reply["ok"], reply
        self.done.add(name)
        return dict(reply["answer"])


def test_every_command_is_done_over_the_shipped_broker(tmp_path: Path) -> None:
    broker = ShippedBroker(tmp_path / "mosquitto")
    write_parts(tmp_path / "parts", range(3))
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "mqtt-password").write_text(broker.passwords["daemon"])
    (tmp_path / "credentials" / "mqtt-password").chmod(0o644)
    daemon = Daemon(tmp_path, broker.port, TRIGGERED.format(extra=""), "", "[archive]\npass_share = 1.0")
    own, key = broker.ca.issue("daemon-own")
    login = f"""prefix = "aprilcam"
username = "daemon"
password_file = "credential:mqtt-password"
[mqtt.tls]
ca_file = "{broker.ca.file}"
certificate_file = "{own}"
key_file = "{key}"
"""
    daemon.config.write_text(daemon.config.read_text().replace('prefix = "plant"\n', login))
    scada = User(broker, "scada")
    scada.subscribe("aprilcam/#")
    try:
        daemon.start(CREDENTIALS_DIRECTORY=str(tmp_path / "credentials"))
        wait_for(lambda: daemon.get("/readyz")[0] == 200, "readiness", 60)
        [status] = [json.loads(heard.payload) for heard in scada.heard if heard.topic == "aprilcam/status"]
        VALIDATORS["status"].validate(status)
        assert (status["status"], status["tls"]) == ("online", "verified")
        told = json.loads(daemon.get("/api/status")[1])
        assert told["broker"] == {"connected": True, "trouble": None, "tls": "verified"}
        [warning] = told["warnings"]
        assert warning.startswith("mqtt.password_file: every user of this machine can read")
        assert broker.passwords["daemon"] not in daemon.said() + str(told)

        for protocol in ("5", "3.1.1"):
            every_command(Bench(broker, protocol), recipe=f"made-{protocol}")
        # What SCADA says comes to nothing, what it hears is all.
        scada.say("aprilcam/press/command/recipe_delete", b'{"recipe": "disc"}')
        results = [json.loads(heard.payload) for heard in scada.heard if heard.topic == "aprilcam/press/result"]
        assert [result["part_id"] for result in results] == ["p1", "p1"]
        metrics = daemon.get("/metrics")[1]
        for name in REQUESTS:
            assert f'aprilcam_commands_total{{command="{name}",outcome="ok"}}' in metrics
        assert expiry(metrics) < time.time() + 2 * 86_400
        bench = Bench(broker, "5")
        assert "disc" in [row["recipe"] for row in bench.do("recipe_list")["recipes"]]
        bench.user.close()

        # A renewed certificate: SIGHUP is no end, and the daemon comes again.
        broker.ca.issue("daemon-own", days=30)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the certificates were renewed" in daemon.said().replace("\n", " "), "the renewal")
        wait_for(lambda: bool(json.loads(daemon.get("/api/status")[1])["broker"]["connected"]), "the connection")
        assert expiry(daemon.get("/metrics")[1]) > time.time() + 29 * 86_400
        assert daemon.end() == 0
        said = [json.loads(heard.payload)["status"] for heard in scada.heard if heard.topic == "aprilcam/status"]
        assert said == ["online", "online", "stopped"]
    finally:
        if daemon.process is not None:
            daemon.process.kill()
            daemon.process.wait()
        daemon.keep_cache()
        scada.close()
        broker.kill()


def expiry(metrics: str) -> float:
    """When the client certificate expires, in seconds since 1970."""
    [line] = re.findall(r"^aprilcam_mqtt_certificate_expiry_timestamp_seconds (\S+)$", metrics, re.MULTILINE)
    return float(line)


def every_command(bench: Bench, recipe: str) -> None:
    """Of a triggered station, so that each is done and not refused."""
    before = len(bench.do("results", {"station": "press"})["results"])
    bench.do("trigger", {"part_id": "p1"})
    wait_for(lambda: len(bench.do("results")["results"]) > before, "the result in the archive")
    [result] = bench.do("results", {"limit": 1})["results"]
    assert bench.do("part", {"part_id": "p2"}) == {"station": "press", "came": False}
    bench.do("mark", {"result_id": result["result_id"], "verdict": "good"})
    [shot] = bench.do("promote", {"result_id": result["result_id"], "force": True})["shots"]
    bench.do("register", {"last": True, "force": True})
    shots = [row["shot"] for row in bench.do("shots")["shots"]]
    assert shot["shot"] in shots
    bench.do("rebuild")

    def judged_by() -> list[int]:
        return [bank["shots"] for bank in bench.do("banks")["banks"] if bank["current"]]

    wait_for(lambda: judged_by() == [len(shots)], "the bank of all shots")
    bench.do("rollback")
    bench.do("forget", {"shot": shot["shot"]})
    bench.do("threshold_set", {"factor": 1.1})
    bench.do("region_set")
    bench.do("recipe_create", {"recipe": recipe, "object": "disc"})
    bench.do("recipe_copy", {"recipe": "disc", "to": f"{recipe}-copy"})
    file = bench.do("recipe_export", {"recipe": "disc"})["file"]
    bench.do("recipe_import", {"recipe": f"{recipe}-again", "file": file})
    bench.do("recipe_delete", {"recipe": recipe})
    bench.do("select_recipe", {"recipe": f"{recipe}-copy"})
    bench.do("select_recipe", {"recipe": "disc"})
    assert "disc" in [row["recipe"] for row in bench.do("recipe_list")["recipes"]]
    assert bench.done == set(REQUESTS)
    bench.user.close()
