"""A recipe as one file: a ZIP without compression, of a manifest (JSON) and the shots' own picture files. No code, no pickle.

Everything is checked before anything is kept: what may be in it, how large, and both hashes of every shot (of the file, and of
its pixels). The same recipe gives the same bytes.
"""

import hashlib
import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from config.errors import CommandError, PictureError, RecipeFileError
from config.schema import Name, RecipeConfig, Region
from connectors.cameras.pictures import decode_picture
from connectors.requests import MAX_PICTURE_BYTES, MAX_RECIPE_BYTES
from daemon.ledger import Shot
from daemon.shots import crop, pixel_hash
from daemon.threshold import ThresholdOverride

MANIFEST = "manifest.json"
MAX_SHOTS = 2_000
MAX_MANIFEST_BYTES = 1 << 20
_END = struct.Struct("<4s4H2LH")
"""The end of a ZIP: signature, disk numbers, entries (here, in all), size and place of the directory, length of a comment."""
_ENTRY_BYTES = 46 + 256
"""Most bytes of an entry in the directory."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """Base of what a manifest holds: unknown fields are errors, as they may change what the others mean."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Settings(Part):
    """Of the recipe; see `config.schema.RecipeConfig`."""

    object: str = Field(min_length=1, max_length=100)
    mode: Literal["zero_shot", "few_shot", "both"] | None
    region: Region | None
    threshold: float | None = Field(gt=0, le=100)


class Override(Part):
    """See `daemon.threshold.ThresholdOverride`."""

    threshold: float | None = Field(gt=0, le=100)
    factor: float | None = Field(gt=0, le=100)
    calibrated: float | None
    bank: Sha256 | None

    @model_validator(mode="after")
    def _one(self) -> "Override":
        if (self.threshold is None) == (self.factor is None):
            raise ValueError("expected one of threshold and factor")
        return self


class Judged(Part):
    """For information: what judged where the recipe was exported. `model` is the fingerprint of the bank's model."""

    threshold: float
    pixel_threshold: float
    shots: int
    bank: str | None
    model: dict[str, JsonValue] | None


class ShotEntry(Part):
    """A shot: its file `shots/<file>` and that file's SHA-256, the SHA-256 of its pixels, and its size in pixels."""

    file: str = Field(pattern=r"^[0-9a-f]{16}\.(png|jpg|bmp|tif)$")
    sha256: Sha256
    shot: Sha256
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Manifest(Part):
    """manifest.json."""

    schema_: Literal["aprilcam.recipe/1"] = Field(alias="schema")
    aprilcam: str = Field(max_length=100)
    recipe: Name
    settings: Settings
    override: Override | None
    judged: Judged | None
    shots: Annotated[list[ShotEntry], Field(max_length=MAX_SHOTS)]


@dataclass(frozen=True)
class RecipeFile:
    """What is in a file that has passed every check."""

    recipe: RecipeConfig
    override: ThresholdOverride | None
    shots: tuple[Shot, ...]
    pictures: tuple[bytes, ...]
    """Of each shot."""


def check_size(recipe: str, shots: int, size: int) -> None:
    """Raises CommandError (too_large) for shots of so many bytes that no file may hold."""
    if shots > MAX_SHOTS or size > MAX_RECIPE_BYTES - MAX_MANIFEST_BYTES - shots * 1_024:
        raise CommandError(
            "too_large",
            f"recipe {recipe!r}: {shots} shots of {size} bytes make a file that is too large, at most {MAX_SHOTS} "
            f"shots and {MAX_RECIPE_BYTES} bytes. Forget some shots",
        )


def pack(
    recipe: RecipeConfig,
    override: ThresholdOverride | None,
    judged: Judged | None,
    shots: Sequence[Shot],
    pictures: Sequence[bytes],
) -> bytes:
    """The file of a recipe. Raises PictureError for a shot that is damaged, CommandError (too_large)."""
    check_size(recipe.name, len(shots), sum(len(picture) for picture in pictures))
    entries = []
    for shot, picture in zip(shots, pictures, strict=True):
        if pixel_hash(decode_picture(picture, shot.file)) != shot.shot:
            raise PictureError(f"{shot.file}: not the picture that was registered. Forget shot {shot.shot[:16]}")
        digest = hashlib.sha256(picture).hexdigest()
        entries.append(ShotEntry(file=shot.file, sha256=digest, shot=shot.shot, width=shot.width, height=shot.height))
    manifest = Manifest(
        schema="aprilcam.recipe/1",
        aprilcam=version("aprilcam"),
        recipe=recipe.name,
        settings=Settings(object=recipe.object, mode=recipe.mode, region=recipe.region, threshold=recipe.threshold),
        override=Override(**vars(override)) if override is not None else None,
        judged=judged,
        shots=entries,
    )
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        archive.writestr(_entry(MANIFEST), manifest.model_dump_json(by_alias=True, indent=1).encode())
        for shot, picture in zip(shots, pictures, strict=True):
            archive.writestr(_entry(f"shots/{shot.file}"), picture)
    return written.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    return entry


def unpack(file: bytes) -> RecipeFile:
    """What is in an exported recipe, once all of it has been checked.

    Raises RecipeFileError naming the entry, the reason and the mend; CommandError (too_large).
    """
    if len(file) > MAX_RECIPE_BYTES:
        raise CommandError("too_large", f"a recipe file of {len(file)} bytes, at most {MAX_RECIPE_BYTES}")
    _check_end(file)
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            return _read(archive, len(file))
    # What zipfile raises for bytes that make no sense is not documented.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise RecipeFileError(f"the file: a damaged ZIP ({error}). Export the recipe again") from None


def _check_end(file: bytes) -> None:
    """The directory's size, before zipfile makes an object of each entry."""
    end = file[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise RecipeFileError("the file: not a whole ZIP as `recipe export` writes it. Export the recipe again")
    _, disk, first_disk, entries, all_entries, directory, _, comment = _END.unpack(end)
    if disk or first_disk or comment or entries != all_entries or file[-_END.size - 20 :].startswith(b"PK\6\7"):
        raise RecipeFileError("the file: a ZIP of another kind than `recipe export` writes. Export the recipe again")
    if entries > MAX_SHOTS + 1 or directory > entries * _ENTRY_BYTES:
        raise RecipeFileError(f"the file: {entries} entries, at most {MAX_SHOTS + 1}. Export the recipe with fewer shots")


def _read(archive: zipfile.ZipFile, size: int) -> RecipeFile:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise RecipeFileError(f"{_shown(entry.filename)}: compressed or encrypted, expected neither. Export the recipe again")
        if names.count(entry.filename) > 1:
            raise RecipeFileError(f"{_shown(entry.filename)}: there twice, expected once. Export the recipe again")
    if sum(entry.file_size for entry in entries) > size:
        raise RecipeFileError("the file: its entries overlap. Export the recipe again")
    manifest = _manifest(archive, names)
    known = {MANIFEST, *(f"shots/{shot.file}" for shot in manifest.shots)}
    if len(known) != len(manifest.shots) + 1 or len({shot.shot for shot in manifest.shots}) != len(manifest.shots):
        raise RecipeFileError(f"{MANIFEST}: a shot is listed twice. Export the recipe again")
    for name in names:
        if name not in known:
            raise RecipeFileError(f"{_shown(name)}: not listed in {MANIFEST}. Export the recipe again")
    settings, given = manifest.settings, manifest.override
    recipe = RecipeConfig(
        name=manifest.recipe, object=settings.object, mode=settings.mode, region=settings.region, threshold=settings.threshold
    )
    shots, pictures = [], []
    for shot in manifest.shots:
        pictures.append(_picture(archive, names, shot, settings.region))
        shots.append(Shot(manifest.recipe, shot.shot, shot.file, shot.width, shot.height))
    return RecipeFile(recipe, ThresholdOverride(**dict(given)) if given is not None else None, tuple(shots), tuple(pictures))


def _manifest(archive: zipfile.ZipFile, names: list[str]) -> Manifest:
    if MANIFEST not in names:
        raise RecipeFileError(f"{MANIFEST}: missing. Name a file that `recipe export` wrote")
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise RecipeFileError(f"{MANIFEST}: over {MAX_MANIFEST_BYTES} bytes. Export the recipe with fewer shots")
    try:
        return Manifest.model_validate_json(archive.read(MANIFEST))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = ".".join(str(part)[:80] for part in first["loc"])
    mend = "This release reads aprilcam.recipe/1" if field == "schema" else "Export the recipe again"
    reason = str(first["msg"])
    raise RecipeFileError(f"{MANIFEST}: {field or 'content'}: {reason[:1].lower()}{reason[1:]}. {mend}")


def _picture(archive: zipfile.ZipFile, names: list[str], shot: ShotEntry, region: Region | None) -> bytes:
    name = f"shots/{shot.file}"
    if name not in names:
        raise RecipeFileError(f"{name}: listed in {MANIFEST} and missing. Export the recipe again")
    if archive.getinfo(name).file_size > MAX_PICTURE_BYTES:
        raise RecipeFileError(f"{name}: over {MAX_PICTURE_BYTES} bytes. Export the recipe without it")
    picture = archive.read(name)
    if hashlib.sha256(picture).hexdigest() != shot.sha256:
        raise RecipeFileError(f"{name}: its sha256 is not the one in {MANIFEST}. Export the recipe again")
    try:
        pixels = decode_picture(picture, name)
        crop(pixels, region, name)
    except PictureError as error:
        raise RecipeFileError(str(error)) from None
    if pixels.shape[:2] != (shot.height, shot.width) or pixel_hash(pixels) != shot.shot or not shot.shot.startswith(name[6:22]):
        raise RecipeFileError(f"{name}: its pixels are not those of the shot in {MANIFEST}. Export the recipe again")
    return picture


def _shown(name: str) -> str:
    return repr(name[:80])
