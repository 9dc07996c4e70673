"""A whole daemon whose stations tell their masks in different forms, with a picture for the operator."""

import base64
import re
from pathlib import Path

import cv2
import numpy as np

from tests.broker import Listener, wait_for
from tests.contract_check import ContractCheck
from tests.parts import write_parts
from tests.system.daemon import Line, folder_station


def test_each_station_tells_its_masks_in_its_form_and_the_overlay_outlives_the_broker(tmp_path: Path, lines: list[Line]) -> None:
    write_parts(tmp_path / "parts", range(2))
    write_parts(tmp_path / "parts", range(2, 4), scratched=True, start=2)
    stations = "".join(
        folder_station(form, tmp_path / "parts", "loop = false") + f'mask = "{form}"\n' + more
        for form, more in (("inline", "overlay = true\noverlay_max_hz = 20.0\n"), ("rle", ""), ("none", ""))
    )
    line = Line(tmp_path, stations)
    lines.append(line)
    line.daemon.start()
    told = {form: line.wait_results(form, 4) for form in ("inline", "rle", "none")}
    for results in told.values():
        assert [result["verdict"] for result in results] == ["pass", "pass", "fail", "fail"]
    assert {form: results[2]["mask"] and results[2]["mask"]["form"] for form, results in told.items()} == {
        "inline": "inline", "rle": "rle", "none": None,
    }  # fmt: skip
    png = np.frombuffer(base64.b64decode(told["inline"][2]["mask"]["png"]), np.uint8)
    mask = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    assert mask is not None
    counts = told["rle"][2]["mask"]["rle"]["counts"]
    area = np.repeat(np.arange(len(counts)) % 2, counts).reshape(256, 256, order="F")
    assert np.array_equal(mask != 0, area != 0)  # the same picture at both stations
    assert told["inline"][2]["regions"] == told["rle"][2]["regions"] == told["none"][2]["regions"] != []
    listener = line.listener
    assert listener is not None
    assert listener.of("mask/") == []
    wait_for(lambda: sum(overlays(line).values()) == 4, "the end of four pictures")
    wait_for(lambda: len(listener.of("inline/overlay")) == overlays(line)["published"] >= 1, "those that were published")
    newest = listener.of("inline/overlay")[-1]
    # Also for a broker that forgot everything.
    listener.close()
    line.broker.kill()
    line.start_broker()
    again = line.listener
    assert again is not None
    wait_for(lambda: again.of("inline/overlay") == [newest], "the newest picture")
    late = Listener(line.broker.port, "plant/inline/overlay", contract=ContractCheck("plant"))
    wait_for(lambda: len(late.heard) == 1, "the retained picture")
    assert (late.heard[0].payload, late.heard[0].retained) == (newest, True)
    late.close()
    assert again.of("rle/overlay") == []


def overlays(line: Line) -> dict[str, int]:
    """Pictures of station inline, by what became of them."""
    rows = re.findall(r'aprilcam_overlays_total\{outcome="(\w+)",station="inline"\} (\d+)', line.daemon.get("/metrics")[1])
    return {outcome: int(count) for outcome, count in rows}
