"""daemon/masks.py: each form tells the same mask, by decoders written from the forms' definitions."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from config.schema import ArchiveConfig, Region
from daemon.archive import Archive
from daemon.ledger import Ledger
from daemon.station import Taught
from model.regions import find_regions, run_lengths
from tests.bench import bench, defect_map, without_times
from tests.broker import wait_for

RESULT = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parent.parent / "docs" / "mqtt" / "result.schema.json").read_text())
)
FORMS = ("topic", "inline", "polygon", "rle", "none")
Mask = NDArray[np.bool_]


def truth(width: int = 256, height: int = 256) -> Mask:
    return find_regions(defect_map(), width, height, 0.5)[0].astype(np.bool_)


def from_png(data: bytes) -> Mask:
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    return mask.astype(np.bool_)


def from_rle(size: list[int], counts: list[int]) -> Mask:
    """From COCO's definition, pixel by pixel: column-major, background first."""
    height, width = size
    mask = np.zeros((height, width), np.bool_)
    place, inside = 0, False
    for count in counts:
        for at in range(place, place + count):
            mask[at % height, at // height] = inside
        place, inside = place + count, not inside
    assert place == height * width
    return mask


def from_polygons(regions: list[dict[str, Any]], width: int, height: int) -> Mask:
    mask = np.zeros((height, width), np.uint8)
    for region in regions:
        cv2.fillPoly(mask, [np.array(region["polygon"], np.int32)], 1)
    return mask.astype(np.bool_)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_validates_and_tells_the_same_mask(taught: Taught, form: str) -> None:
    with bench(taught, mask=form) as own:
        record = own.judge(defect_map())
    document = json.loads(record.document)
    RESULT.validate(document)
    told, pngs = document["mask"], record.messages[:-1]
    assert document["verdict"] == "fail"
    assert len(document["regions"]) == 2
    assert len(pngs) == (form == "topic")
    if form == "none":
        assert told is None
        return
    assert (told["form"], told["width"], told["height"]) == (form, 256, 256)
    assert (told["png"] is not None, told["rle"] is not None) == (form == "inline", form == "rle")
    match form:
        case "topic":
            assert told["topic"] == pngs[0].topic == f"aprilcam/press/mask/{document['result_id']}"
            assert hashlib.sha256(pngs[0].payload).hexdigest() == told["sha256"]
            assert np.array_equal(from_png(pngs[0].payload), truth())
        case "inline":
            png = base64.b64decode(told["png"], validate=True)
            assert hashlib.sha256(png).hexdigest() == told["sha256"]
            assert np.array_equal(from_png(png), truth())
        case "rle":
            assert np.array_equal(from_rle(told["rle"]["size"], told["rle"]["counts"]), truth())
        case "polygon":
            filled = from_polygons(document["regions"], 256, 256)
            closed = truth()  # holes are not told
            contours, _ = cv2.findContours(closed.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            outer = np.zeros((256, 256), np.uint8)
            cv2.drawContours(outer, contours, -1, 1, cv2.FILLED)
            assert np.count_nonzero(outer) > np.count_nonzero(closed)
            assert np.count_nonzero(filled & (outer != 0)) / np.count_nonzero(filled | (outer != 0)) > 0.95


def test_verdict_and_regions_are_the_same_in_every_form(taught: Taught) -> None:
    told = []
    for form in FORMS:
        with bench(taught, mask=form) as own:
            told.append(without_times(own.judge(defect_map())))
    assert told[0]["regions"]
    assert all(other == told[0] for other in told)


@pytest.mark.parametrize("form", FORMS)
def test_a_pass_has_no_mask(taught: Taught, form: str) -> None:
    with bench(taught, mask=form) as own:
        record = own.judge(np.full((64, 64), 0.1, np.float32))
    assert record.result.verdict == "pass"
    assert record.result.mask is None
    assert len(record.messages) == 1


def test_a_mask_has_the_size_of_the_region_of_interest(taught: Taught) -> None:
    region = Region(x=10, y=20, width=200, height=120)
    with bench(replace(taught, region=region), mask="rle") as own:
        told = json.loads(own.judge(defect_map()).document)["mask"]
    assert (told["width"], told["height"], told["rle"]["size"]) == (200, 120, [120, 200])
    assert np.array_equal(from_rle(**told["rle"]), truth(200, 120))


def test_run_lengths_of_any_mask_decode_to_it() -> None:
    random = np.random.default_rng(7)
    for _ in range(200):
        mask = (random.random((int(random.integers(1, 9)), int(random.integers(1, 9)))) < random.random()).view(np.uint8)
        counts = run_lengths(mask)
        assert all(count > 0 for count in counts[1:])
        assert np.array_equal(from_rle(list(mask.shape), list(counts)), mask != 0)


def test_the_archive_keeps_the_same_whatever_the_form(tmp_path: Path, taught: Taught) -> None:
    kept = []
    for form in FORMS:
        folder = tmp_path / form
        ledger = Ledger(folder)
        archive = Archive(folder, ledger, ArchiveConfig(min_free_bytes=0))
        with bench(taught, mask=form, archive=archive) as own:
            result = own.judge(defect_map()).result
            archive.committed([result])
            wait_for(lambda: archive.find(result.result_id) is not None, "the archived result")  # noqa: B023
            kept.append((archive.pixels(result.result_id), archive.map(result.result_id)))
        archive.close()
        ledger.close()
    for pixels, anomaly in kept:
        assert np.array_equal(pixels, kept[0][0])
        assert anomaly is not None
        assert kept[0][1] is not None
        assert np.array_equal(anomaly, kept[0][1])
