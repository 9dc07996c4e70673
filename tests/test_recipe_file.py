"""daemon/recipe_file.py: one file that holds a recipe, and everything that is refused before anything is kept."""

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from config.errors import CommandError, PictureError, RecipeFileError
from config.schema import RecipeConfig, Region
from connectors.requests import MAX_RECIPE_BYTES
from daemon.ledger import Shot
from daemon.recipe_file import MAX_SHOTS, Judged, pack, unpack
from daemon.shots import pixel_hash
from daemon.threshold import ThresholdOverride
from tests.parts import draw_part
from tests.plant import picture

RECIPE = RecipeConfig(
    name="gear", object="metal gear", mode="few_shot", region=Region(x=1, y=2, width=200, height=100), threshold=0.3
)
OVERRIDE = ThresholdOverride(threshold=0.4, calibrated=0.2, bank="b" * 64)
PICTURES = [picture(1), picture(2, suffix=".bmp")]
SHOTS = [
    Shot("gear", pixel_hash(draw_part(seed)), f"{pixel_hash(draw_part(seed))[:16]}{suffix}", 256, 256)
    for seed, suffix in ((1, ".png"), (2, ".bmp"))
]
JUDGED = Judged(threshold=0.2, pixel_threshold=0.2, shots=2, bank="b" * 64, model={"name": "m", "layers": [1, 2]})
Content = dict[str, bytes]


def packed() -> bytes:
    return pack(RECIPE, OVERRIDE, JUDGED, SHOTS, PICTURES)


def content(file: bytes) -> Content:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return written.getvalue()


def changed(change: Callable[[Content], object]) -> bytes:
    entries = content(packed())
    change(entries)
    return zipped(list(entries.items()))


def manifest(change: Callable[[dict[str, Any]], object]) -> bytes:
    def apply(entries: Content) -> None:
        document = json.loads(entries["manifest.json"])
        change(document)
        entries["manifest.json"] = json.dumps(document).encode()

    return changed(apply)


def test_what_was_packed_is_unpacked_and_the_same_recipe_gives_the_same_bytes() -> None:
    file = packed()
    assert packed() == file
    given = unpack(file)
    assert given.recipe == RECIPE
    assert given.override == OVERRIDE
    assert list(given.shots) == SHOTS
    assert list(given.pictures) == PICTURES
    bare = unpack(pack(RecipeConfig(name="a", object="b"), None, None, [], []))
    assert (bare.recipe, bare.override, bare.shots) == (RecipeConfig(name="a", object="b"), None, ())


def test_a_usual_zip_program_reads_it_and_the_manifest_says_what_is_in_it() -> None:
    entries = content(packed())
    assert list(entries) == ["manifest.json", *(f"shots/{shot.file}" for shot in SHOTS)]
    document = json.loads(entries["manifest.json"])
    assert document["schema"] == "aprilcam.recipe/1"
    assert document["settings"]["region"] == {"x": 1, "y": 2, "width": 200, "height": 100}
    assert document["judged"]["bank"] == "b" * 64
    assert [shot["shot"] for shot in document["shots"]] == [shot.shot for shot in SHOTS]


def test_a_shot_that_is_not_what_was_registered_is_not_exported() -> None:
    with pytest.raises(PictureError, match=r"not the picture that was registered\. Forget shot"):
        pack(RECIPE, None, None, SHOTS, [PICTURES[0], picture(3)])


def first(document: dict[str, Any]) -> dict[str, Any]:
    shot: dict[str, Any] = document["shots"][0]
    return shot


ONE, TWO = (f"shots/{shot.file}" for shot in SHOTS)
DARK = cv2.imencode(".png", np.zeros((256, 256), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "the file: not a whole ZIP"),
        (b"PK\3\4 and no more", "the file: not a whole ZIP"),
        (packed()[:-1], "the file: not a whole ZIP"),
        (packed()[40:], "the file: a damaged ZIP"),
        (packed().replace(PICTURES[1][300:600], PICTURES[1][600:900]), "the file: a damaged ZIP (Bad CRC-32"),
        (zipped(list(content(packed()).items()), zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (changed(lambda entries: entries.pop("manifest.json")), "manifest.json: missing. Name a file that `recipe export` wrote"),
        (changed(lambda entries: entries.pop(ONE)), f"{ONE}: listed in manifest.json and missing"),
        (changed(lambda entries: entries.update({"../../etc/passwd": b"x"})), "'../../etc/passwd': not listed in manifest.json"),
        (changed(lambda entries: entries.update({"shots/": b""})), "'shots/': not listed"),
        (changed(lambda entries: entries.update({TWO: PICTURES[0]})), f"{TWO}: its sha256 is not the one in manifest.json"),
        (changed(lambda entries: entries.update({"manifest.json": b"[1]"})), "manifest.json: content: input should be an object"),
        (changed(lambda entries: entries.update({"manifest.json": b"{" * 100_000})), "manifest.json: content: "),
        (changed(lambda entries: entries.update({"manifest.json": bytes(1 << 21)})), "manifest.json: over 1048576 bytes"),
        (manifest(lambda own: own.update(schema="aprilcam.recipe/2")), "This release reads aprilcam.recipe/1"),
        (manifest(lambda own: own.update(recipe="../x")), "manifest.json: recipe: string should match"),
        (manifest(lambda own: own.update(run="rm -rf /")), "manifest.json: run: extra inputs are not permitted"),
        (manifest(lambda own: own["settings"].update(threshold=-1.0)), "manifest.json: settings.threshold: "),
        (manifest(lambda own: own["settings"].pop("object")), "manifest.json: settings.object: field required"),
        (manifest(lambda own: own["settings"]["region"].update(x=100)), "pixels do not hold the region x=100"),
        (manifest(lambda own: own["override"].update(factor=2.0)), "expected one of threshold and factor"),
        (manifest(lambda own: first(own).update(file="../../x.png")), "manifest.json: shots.0.file: string should match"),
        (manifest(lambda own: first(own).update(shot="0" * 64)), f"{ONE}: its pixels are not those of the shot"),
        (manifest(lambda own: first(own).update(width=255)), f"{ONE}: its pixels are not those of the shot"),
        (manifest(lambda own: own["shots"].append(first(own))), "manifest.json: a shot is listed twice"),
        (manifest(lambda own: own["shots"].pop()), f"'{TWO}': not listed in manifest.json"),
    ],
)
def test_whatever_is_not_as_it_says_is_refused_by_name(file: bytes, words: str) -> None:
    with pytest.raises(RecipeFileError) as caught:
        unpack(file)
    assert words in str(caught.value)


def test_an_entry_that_is_there_twice_is_refused() -> None:
    entries = list(content(packed()).items())
    with pytest.warns(UserWarning, match="Duplicate name"):
        file = zipped([*entries, entries[1]])
    with pytest.raises(RecipeFileError, match=f"'{ONE}': there twice"):
        unpack(file)


def test_a_picture_under_another_pictures_name_is_refused_although_both_hashes_are_its_own() -> None:
    def swap(entries: Content) -> None:
        document = json.loads(entries["manifest.json"])
        own = np.zeros((256, 256), np.uint8)
        first(document).update(sha256=hashlib.sha256(DARK).hexdigest(), shot=pixel_hash(own))
        entries.update({ONE: DARK, "manifest.json": json.dumps(document).encode()})

    with pytest.raises(RecipeFileError, match="its pixels are not those of the shot"):
        unpack(changed(swap))


def test_a_directory_that_is_too_large_is_refused_before_it_is_read() -> None:
    file = zipped([(f"{number}", b"") for number in range(MAX_SHOTS + 2)])
    with pytest.raises(RecipeFileError, match=f"{MAX_SHOTS + 2} entries, at most {MAX_SHOTS + 1}"):
        unpack(file)
    end = struct.Struct("<4s4H2LH")
    lying = packed()
    parts = list(end.unpack(lying[-end.size :]))
    parts[5] = 1 << 30
    with pytest.raises(RecipeFileError, match="3 entries"):
        unpack(lying[: -end.size] + end.pack(*parts))
    with pytest.raises(RecipeFileError, match="a ZIP of another kind"):
        unpack(lying[: -end.size] + b"PK\6\7" + bytes(16) + lying[-end.size :])


def test_a_file_over_the_bound_is_too_large_and_so_is_a_recipe_that_would_make_one() -> None:
    with pytest.raises(CommandError) as caught:
        unpack(bytes(MAX_RECIPE_BYTES + 1))
    assert caught.value.code == "too_large"
    many = [Shot("gear", f"{number:064x}", f"{number:016x}.png", 1, 1) for number in range(MAX_SHOTS + 1)]
    with pytest.raises(CommandError) as caught:
        pack(RECIPE, None, None, many, [b""] * len(many))
    assert caught.value.code == "too_large"
    with pytest.raises(CommandError, match="Forget some shots"):
        pack(RECIPE, None, None, SHOTS, [bytes(MAX_RECIPE_BYTES // 2)] * 2)
