"""The bank: the patch features of a recipe's reference shots, immutable, named by a hash of all that made it.

Few-shot half of APRIL-GAN (arXiv 2305.17382, section 3.2): a patch's anomaly is its least `1 - cosine` to the bank.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model.coreset import choosing
from model.errors import BankError, ShotsError
from model.features import DTYPES, PatchFeatures
from model.files import sync_folder
from model.spec import BANK_ROWS
from model.steps import Steps, finish

BANK_FORMAT = 2
"""Raised whenever the same manifest comes to mean other rows, the coreset's choice included."""
TENSORS_FILE = "bank.safetensors"
MANIFEST_FILE = "manifest.json"

_CPU_HIGH, _CPU_WIDE = 1024, 512
"""Queries and rows of a block on a CPU: 2 MiB of cosines stay in the cache (1024 x 12288 x 40: a fifth less than 1024 x 1024)."""


@dataclass(frozen=True)
class BankManifest:
    """Everything that made a bank; what hashes the same is the same bank.

    fingerprint: of the model (`ModelSpec.fingerprint`), plain JSON values.
    region: of interest in the camera's frame as (x, y, width, height) in px, None = the whole frame.
    shots: sha256 (hex) of each shot's picture, in the order of the rows.
    max_rows: most rows of a layer; where the shots have more, a coreset of so many stands for them.
    """

    fingerprint: Mapping[str, Any]
    shots: tuple[str, ...]
    region: tuple[int, int, int, int] | None = None
    max_rows: int = BANK_ROWS
    bank_format: int = BANK_FORMAT

    @property
    def hash(self) -> str:
        """sha256 (hex) of the manifest as canonical JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Bank:
    """Rows of all shots, shot after shot, in each shot in the order of its patches.

    layers: each M x C, rows L2-normalised, in the precision of the model (`DTYPES`; rounded after normalising).
    grids: (height, width) in patches of each layer.
    rows: for each layer the number of rows each shot has in it, so that a shot can be left out without encoding again;
        0 for a shot whose patches other shots' rows stand for.
    """

    layers: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, ...], ...]
    manifest: BankManifest

    @cached_property
    def hash(self) -> str:
        """Of the manifest, that is of all that made the bank (64 hex digits)."""
        return self.manifest.hash

    @property
    def name(self) -> str:
        """The hash, short enough for a topic or a folder (16 hex digits)."""
        return self.hash[:16]

    def without(self, shot: int) -> "Bank":
        """What the bank has of the other shots. ShotsError if there is no other, or no row of the others in a layer."""
        if len(self.manifest.shots) < 2:
            raise ShotsError("bank: expected at least 2 shots to leave one out, got 1. Register another shot")
        layers = []
        for layer, counts in zip(self.layers, self.rows, strict=True):
            parts = torch.split(layer, list(counts))
            if sum(counts) == counts[shot]:
                raise ShotsError(
                    f"bank: expected rows of more than one shot, got all from {self.manifest.shots[shot][:16]}: the other shots "
                    f"equal it. Register shots that differ, as good parts do"
                )
            layers.append(torch.cat(parts[:shot] + parts[shot + 1 :]))
        rows = tuple(counts[:shot] + counts[shot + 1 :] for counts in self.rows)
        shots = self.manifest.shots[:shot] + self.manifest.shots[shot + 1 :]
        return Bank(tuple(layers), self.grids, rows, replace(self.manifest, shots=shots))

    def to(self, device: str | torch.device) -> "Bank":
        """The same bank in another device's memory."""
        return replace(self, layers=tuple(layer.to(device) for layer in self.layers))

    def save(self, folder: Path) -> None:
        """Write the bank as `folder`, whole or not at all, on disk when this returns. OSError when the disk refuses.

        A bank of that hash already there is kept; anything else there is a BankError.
        """
        if folder.exists():
            load_bank(folder, self.manifest.fingerprint, expected_hash=self.hash)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays on one file system; a leading dot, so that nobody takes it for a bank.
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            tensors = {f"layer{number}": layer.cpu().contiguous() for number, layer in enumerate(self.layers)}
            data = safetensors.torch.save(tensors)
            record = {
                "hash": self.hash,
                "manifest": asdict(self.manifest),
                "grids": self.grids,
                "rows": self.rows,
                "tensors": {"file": TENSORS_FILE, "sha256": hashlib.sha256(data).hexdigest()},
            }
            _write_synced(temporary / TENSORS_FILE, data)
            _write_synced(temporary / MANIFEST_FILE, json.dumps(record, indent=1).encode())
            temporary.chmod(0o755)
            sync_folder(temporary)
            temporary.replace(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def build_bank(
    features: PatchFeatures,
    *,
    fingerprint: Mapping[str, Any],
    shots: Sequence[str],
    region: tuple[int, int, int, int] | None = None,
    max_rows: int = BANK_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Bank:
    """The bank of reference shots: `features` of them all and, in that order, the sha256 (hex) of each picture.

    A layer of more than `max_rows` rows is cut down to its coreset. progress: called with (rows chosen, rows to choose)
    over all such layers; what it raises ends the work.
    Raises ModelError for features that are not finite, ShotsError without shots or with a picture registered twice (leaving
    it out would then leave it in).
    """
    steps = building(features, fingerprint=fingerprint, shots=shots, region=region, max_rows=max_rows)
    return finish(steps, progress)


def building(
    features: PatchFeatures,
    *,
    fingerprint: Mapping[str, Any],
    shots: Sequence[str],
    region: tuple[int, int, int, int] | None = None,
    max_rows: int = BANK_ROWS,
) -> Steps[Bank]:
    """`build_bank` in short steps."""
    if not shots or len(shots) != len(features):
        raise ShotsError(f"bank: expected features of 1 or more shots, got {len(features)} for {len(shots)} shots")
    if len(set(shots)) < len(shots):
        twice = next(shot for shot in shots if list(shots).count(shot) > 1)
        raise ShotsError(f"bank: expected different shots, got {twice[:16]} twice. Register other pictures of good parts")
    flat = [layer.flatten(0, 1) for layer in features.layers]
    total = sum(max_rows for layer in flat if len(layer) > max_rows)
    before = 0
    layers, rows = [], []
    for layer, grid in zip(flat, features.grids, strict=True):
        work = choosing(layer, max_rows)
        while True:
            try:
                done, _ = next(work)
            except StopIteration as end:
                chosen = end.value
                break
            yield before + done, total
        if len(layer) > max_rows:
            before += max_rows
        whole = len(chosen) == len(layer)
        layers.append(layer.contiguous() if whole else layer[chosen])
        rows.append(tuple(torch.bincount(chosen // (grid[0] * grid[1]), minlength=len(shots)).tolist()))
    manifest = BankManifest(dict(fingerprint), tuple(shots), region, max_rows)
    return Bank(tuple(layers), features.grids, tuple(rows), manifest)


def saved_shots(folder: Path) -> tuple[str, ...]:
    """The shots of a saved bank, in its order; nothing else of it is looked at. Raises BankError when it cannot be read."""
    path = folder / MANIFEST_FILE
    try:
        return tuple(str(shot) for shot in json.loads(path.read_bytes())["manifest"]["shots"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, "a bank's manifest", f"{type(error).__name__}: {error}") from error


def load_bank(
    folder: Path,
    fingerprint: Mapping[str, Any],
    device: str | torch.device = "cpu",
    expected_hash: str | None = None,
) -> Bank:
    """Read a saved bank for the model of that fingerprint, checking all of it. BankError when anything differs."""
    manifest_path, tensors_path = folder / MANIFEST_FILE, folder / TENSORS_FILE
    try:
        record = json.loads(manifest_path.read_bytes())
        made = record["manifest"]
        region = None if made["region"] is None else tuple(int(number) for number in made["region"])
        shots, most, bank_format = tuple(made["shots"]), made["max_rows"], made["bank_format"]
        manifest = BankManifest(made["fingerprint"], shots, region, most, bank_format)  # type: ignore[arg-type]
        grids = tuple((int(height), int(width)) for height, width in record["grids"])
        rows = tuple(tuple(int(count) for count in counts) for counts in record["rows"])
        written_hash, written_sha256 = record["hash"], record["tensors"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(manifest_path, "a bank's manifest", f"{type(error).__name__}: {error}") from error
    _check(manifest_path, "bank_format", BANK_FORMAT, manifest.bank_format)
    _check(manifest_path, "hash", written_hash, manifest.hash)
    if expected_hash is not None:
        _check(manifest_path, "hash", expected_hash, manifest.hash)
    for key in sorted({*fingerprint, *manifest.fingerprint}):
        _check(manifest_path, f"model: {key}", fingerprint.get(key), manifest.fingerprint.get(key))
    try:
        data = tensors_path.read_bytes()
    except OSError as error:
        raise _broken(tensors_path, "the bank's rows", str(error)) from error
    _check(tensors_path, "sha256", written_sha256, hashlib.sha256(data).hexdigest())
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError) as error:
        raise _broken(tensors_path, "tensors", str(error)) from error
    _check(tensors_path, "names", [f"layer{number}" for number in range(len(grids))], sorted(tensors))
    _check(manifest_path, "layers", len(grids), len(rows))
    layers = tuple(tensors[f"layer{number}"] for number in range(len(grids)))
    dtype = DTYPES[manifest.fingerprint.get("precision", "fp32")]
    for layer, counts in zip(layers, rows, strict=True):
        _check(manifest_path, "shots with rows", len(manifest.shots), len(counts))
        _check(tensors_path, "rows", (2, sum(counts), dtype), (layer.ndim, layer.shape[0], layer.dtype))
    return Bank(layers, grids, rows, manifest).to(device)


def nearest(queries: Tensor, rows: Tensor, budget_bytes: int = 64 * 2**20) -> Tensor:
    """The least `1 - cosine` of each query to any row, B x N, float32, 0 (equal) to 2; on the queries' device.

    queries: B x N x C, rows: M x C, both L2-normalised and of one floating type. Cosines are computed in blocks of at most
    `budget_bytes`, however many queries and rows there are. NaN stays NaN.
    In low precision products are summed and kept in float32: bfloat16's numbers near a cosine of 1 are 1/256 apart. Rounding
    also changed each row's length, by up to as much, so cosines are divided by the lengths; what is left of it is 1e-5 near 0.
    """
    flat = queries.flatten(0, 1)
    on_cpu, low = flat.device.type == "cpu", flat.dtype != torch.float32
    cells = max(budget_bytes // 4, 1)
    high = min(_CPU_HIGH if on_cpu else 8192, cells, max(len(flat), 1))
    wide = min(_CPU_WIDE if on_cpu else len(rows), cells // high, len(rows))
    best = torch.full((len(flat),), -torch.inf, device=flat.device)
    # One block's memory for all: fresh memory is touched for the first time again and again.
    block = torch.empty(high * wide, device=flat.device)
    for query_block, best_block in zip(torch.split(flat, high), torch.split(best, high), strict=True):
        # A CPU multiplies low precision no faster and cannot sum it in float32: blocks are converted.
        left = query_block.float() if on_cpu else query_block
        for row_block in torch.split(rows, wide):
            if low and not on_cpu:
                cosines = torch.mm(left, row_block.T, out_dtype=torch.float32)
            else:
                cosines = block[: len(left) * len(row_block)].view(len(left), len(row_block))
                torch.mm(left, row_block.float().T, out=cosines)
            if low:
                cosines /= torch.linalg.vector_norm(row_block, dim=1, dtype=torch.float32)
            torch.maximum(best_block, cosines.amax(1), out=best_block)
        if low:
            best_block /= torch.linalg.vector_norm(query_block, dim=1, dtype=torch.float32)
    # Rounding can push the cosine of two equal rows over 1.
    return (1 - best).clamp_(min=0).view(queries.shape[:2])


def _broken(path: Path, expected: str, got: str) -> BankError:
    return BankError(f"{path}: expected {expected}, got {got}. Build the bank again from its shots")


def _check(path: Path, what: str, expected: object, got: object) -> None:
    if expected != got:
        raise _broken(path, f"{what} {expected}", str(got))


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
