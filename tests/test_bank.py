import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from model.bank import Bank, BankManifest, build_bank, load_bank, nearest
from model.coreset import coreset
from model.errors import BankError, ModelError, ShotsError
from model.features import DTYPES, PatchFeatures

FINGERPRINT = {"backbone": "net", "layers": [2, 3], "mean": [0.5, 0.5, 0.5]}
GRIDS = ((3, 4), (2, 2))


def features_of(count: int) -> PatchFeatures:
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, 12, 8), (count, 4, 5))
    return PatchFeatures(tuple(F.normalize(torch.randn(s, generator=generator), dim=-1) for s in shapes), GRIDS)


def names(count: int) -> list[str]:
    return [hashlib.sha256(bytes([number])).hexdigest() for number in range(count)]


def bank_of(count: int, fingerprint: Mapping[str, object] = FINGERPRINT) -> Bank:
    return build_bank(features_of(count), fingerprint=fingerprint, shots=names(count), region=(1, 2, 30, 40))


def test_nearest_is_the_least_of_one_minus_cosine_whatever_the_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = F.normalize(torch.randn((3, 200, 16), generator=generator), dim=-1)
    rows = F.normalize(torch.randn((1500, 16), generator=generator), dim=-1)
    want = (1 - queries.numpy().astype(float) @ rows.numpy().astype(float).T).min(-1)
    for budget in (64 * 2**20, 2**20, 40_000, 4):
        some = slice(None) if budget > 4 else slice(1)
        got = nearest(queries[:, some], rows, budget_bytes=budget)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), want[:, some], atol=1e-5)


def test_nearest_never_makes_a_block_over_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    plain = torch.mm

    def watched(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, out.untyped_storage().nbytes())
        return plain(left, right, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    for budget in (64 * 2**20, 500_000, 40_000):
        largest = 0
        nearest(torch.ones((2, 3000, 2)), torch.ones((5000, 2)), budget_bytes=budget)
        assert 0 < largest <= budget


def test_nearest_is_zero_at_a_row_of_the_bank_and_nan_stays_nan() -> None:
    bank = bank_of(3)
    assert nearest(bank.layers[0][None], bank.layers[0]).max() < 1e-6
    assert nearest(bank.layers[0][None], bank.layers[0]).min() >= 0
    assert nearest(torch.full((1, 1, 8), torch.nan), bank.layers[0]).isnan().all()


def test_bank_keeps_each_shots_rows() -> None:
    features, bank = features_of(3), bank_of(3)
    assert bank.rows == ((12, 12, 12), (4, 4, 4))
    for got, want in zip(bank.layers, features.layers, strict=True):
        assert torch.equal(got, want.flatten(0, 1))
    rest = bank.without(1)
    assert rest.manifest.shots == (names(3)[0], names(3)[2])
    assert torch.equal(rest.layers[0], features.layers[0][[0, 2]].flatten(0, 1))
    assert rest.rows == ((12, 12), (4, 4))
    assert bank.without(1).hash not in (bank.hash, bank.without(0).hash)
    with pytest.raises(ShotsError, match="at least 2"):
        bank_of(1).without(0)


def test_a_layer_over_max_rows_is_cut_to_its_coreset_shot_after_shot() -> None:
    features = features_of(3)
    told: list[tuple[int, int]] = []
    bank = build_bank(
        features,
        fingerprint=FINGERPRINT,
        shots=names(3),
        max_rows=12,
        progress=lambda done, total: told.append((done, total)),
    )
    flat = features.layers[0].flatten(0, 1)
    chosen = coreset(flat, 12)
    assert torch.equal(bank.layers[0], flat[chosen])
    assert bank.rows[0] == tuple(int(((chosen >= 12 * shot) & (chosen < 12 * shot + 12)).sum()) for shot in range(3))
    # The other layer has 12 rows, no more than allowed.
    assert torch.equal(bank.layers[1], features.layers[1].flatten(0, 1))
    assert told[-1] == (12, 12)
    assert bank.manifest.max_rows == 12


def test_progress_runs_once_over_all_layers() -> None:
    told: list[tuple[int, int]] = []
    features = features_of(3)
    build_bank(features, fingerprint=FINGERPRINT, shots=names(3), max_rows=5, progress=lambda *step: told.append(step))
    assert told[-1] == (10, 10)
    assert told == sorted(told)


def test_a_shot_without_rows_of_its_own_is_left_out_like_any_other(tmp_path: Path) -> None:
    one, two = features_of(2).select([0]), features_of(2).select([1])
    # The second and third picture have the first one's patches.
    layers = tuple(torch.cat([a, a, a, b]) for a, b in zip(one.layers, two.layers, strict=True))
    bank = build_bank(PatchFeatures(layers, GRIDS), fingerprint=FINGERPRINT, shots=names(4), max_rows=9)
    assert bank.rows[1] == (4, 0, 0, 4)
    bank.save(tmp_path / "bank")
    loaded = load_bank(tmp_path / "bank", FINGERPRINT)
    assert loaded.rows == bank.rows
    assert torch.equal(loaded.without(1).layers[1], bank.layers[1])
    assert loaded.without(1).rows[1] == (4, 0, 4)
    assert torch.equal(loaded.without(0).layers[1], bank.layers[1][4:])


def test_leaving_out_the_only_shot_with_rows_is_refused() -> None:
    layers = tuple(layer[:1].expand(3, -1, -1) for layer in features_of(1).layers)
    bank = build_bank(PatchFeatures(layers, GRIDS), fingerprint=FINGERPRINT, shots=names(3), max_rows=20)
    with pytest.raises(ShotsError, match=r"other shots equal it\. Register shots that differ"):
        bank.without(0)


def test_features_that_are_not_finite_make_no_bank() -> None:
    features = features_of(2)
    features.layers[1][1, 2, 3] = torch.nan
    with pytest.raises(ModelError, match="finite"):
        build_bank(features, fingerprint=FINGERPRINT, shots=names(2))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("channels", [40, 1024])
def test_search_in_low_precision_is_that_of_float32_over_the_same_rounded_vectors(precision: str, channels: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = F.normalize(torch.randn((1500, channels), generator=generator), dim=-1)
    # From equal to a row, by way of near it, to far from all.
    noise = torch.logspace(-4, 1, 600)[:, None] * torch.randn((600, channels), generator=generator) / channels**0.5
    queries = F.normalize(rows[:600] + noise, dim=-1).view(2, 300, channels)
    low_rows, low_queries = rows.to(DTYPES[precision]), queries.to(DTYPES[precision])
    want = nearest(F.normalize(low_queries.float(), dim=-1), F.normalize(low_rows.float(), dim=-1))
    for budget in (64 * 2**20, 100_000):
        got = nearest(low_queries, low_rows, budget_bytes=budget)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    # What the rounding itself costs, against vectors that were never rounded: an angle, so next to nothing at the near end.
    full = nearest(queries, rows)
    assert ((got - full).abs() <= 1e-5 + 2**-8 * full.sqrt()).all()
    assert nearest(low_rows[None], low_rows).max() < 1e-6
    assert nearest(torch.full((1, 1, channels), torch.nan).to(DTYPES[precision]), low_rows).isnan().all()


@pytest.mark.parametrize(("precision", "other"), [("fp32", "bf16"), ("bf16", "fp32"), ("fp16", "bf16")])
def test_a_bank_in_another_precision_than_its_models_is_refused(tmp_path: Path, precision: str, other: str) -> None:
    fingerprint = {**FINGERPRINT, "precision": precision}
    for kept in (precision, other):
        layers = tuple(layer.to(DTYPES[kept]) for layer in features_of(2).layers)
        build_bank(PatchFeatures(layers, GRIDS), fingerprint=fingerprint, shots=names(2)).save(tmp_path / kept)
    loaded = load_bank(tmp_path / precision, fingerprint)
    assert {layer.dtype for layer in loaded.layers} == {DTYPES[precision]}
    with pytest.raises(BankError, match=r"rows.*torch.*got.*torch.*Build the bank again"):
        load_bank(tmp_path / other, fingerprint)


def test_the_hash_names_all_that_made_the_bank() -> None:
    shots = tuple(names(2))
    base = BankManifest(FINGERPRINT, shots, (1, 2, 30, 40))
    assert bank_of(2).hash == base.hash
    assert bank_of(2).name == base.hash[:16]
    assert BankManifest(dict(reversed(FINGERPRINT.items())), shots, (1, 2, 30, 40)).hash == base.hash
    others = (
        BankManifest({**FINGERPRINT, "backbone": "other"}, shots, (1, 2, 30, 40)),
        BankManifest(FINGERPRINT, shots[::-1], (1, 2, 30, 40)),
        BankManifest(FINGERPRINT, shots[:1], (1, 2, 30, 40)),
        BankManifest(FINGERPRINT, shots, (1, 2, 30, 41)),
        BankManifest(FINGERPRINT, shots, None),
        BankManifest(FINGERPRINT, shots, (1, 2, 30, 40), bank_format=1),
        BankManifest(FINGERPRINT, shots, (1, 2, 30, 40), max_rows=12),
    )
    assert len({base.hash, *(other.hash for other in others)}) == 8


def test_no_shots_or_one_twice_is_refused() -> None:
    with pytest.raises(ShotsError, match="1 or more"):
        build_bank(features_of(2), fingerprint=FINGERPRINT, shots=names(3))
    with pytest.raises(ShotsError, match="twice"):
        build_bank(features_of(2), fingerprint=FINGERPRINT, shots=names(1) * 2)


def test_a_saved_bank_comes_back_equal(tmp_path: Path) -> None:
    bank = bank_of(3)
    folder = tmp_path / "banks" / bank.name
    bank.save(folder)
    loaded = load_bank(folder, FINGERPRINT)
    assert (loaded.hash, loaded.manifest, loaded.grids, loaded.rows) == (bank.hash, bank.manifest, GRIDS, bank.rows)
    assert all(torch.equal(one, two) for one, two in zip(loaded.layers, bank.layers, strict=True))
    assert [path.name for path in folder.parent.iterdir()] == [bank.name]
    before = (folder / "manifest.json").stat().st_mtime_ns
    bank.save(folder)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(BankError, match="hash"):
        bank_of(2).save(folder)


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        bank_of(2).save(tmp_path / "bank")
    assert list(tmp_path.iterdir()) == []


def test_files_and_folders_are_synced_before_the_bank_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    plain_sync, plain_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        plain_sync(descriptor)

    def replace(source: Path, target: Path) -> Path:
        steps.append("rename")
        return plain_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    bank_of(2).save(tmp_path / "bank")
    assert [*steps[:2], *steps[3:]] == ["bank.safetensors", "manifest.json", "rename", tmp_path.name]
    assert steps[2].startswith(".bank.")


def test_a_bank_of_another_model_is_refused(tmp_path: Path) -> None:
    bank_of(2).save(tmp_path / "bank")
    with pytest.raises(BankError, match=r"backbone other, got net\. Build the bank again"):
        load_bank(tmp_path / "bank", {**FINGERPRINT, "backbone": "other"})
    with pytest.raises(BankError, match="activation"):
        load_bank(tmp_path / "bank", {**FINGERPRINT, "activation": "gelu"})


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("bank.safetensors", "flip"),
        ("bank.safetensors", "cut"),
        ("bank.safetensors", "remove"),
        ("manifest.json", "cut"),
        ("manifest.json", "remove"),
        ("manifest.json", "empty"),
    ],
)
def test_a_damaged_bank_is_refused_by_name_of_the_file(tmp_path: Path, file: str, damage: str) -> None:
    bank_of(2).save(tmp_path / "bank")
    path = tmp_path / "bank" / file
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        path.write_bytes({"flip": flipped, "cut": data[: len(data) // 2], "empty": b"[]"}[damage])
    with pytest.raises(BankError, match=rf"{file}.*Build the bank again"):
        load_bank(tmp_path / "bank", FINGERPRINT)


@pytest.mark.parametrize("key", ["shots", "bank_format", "max_rows", "rows", "grids", "region"])
def test_an_edited_manifest_is_refused(tmp_path: Path, key: str) -> None:
    bank_of(2).save(tmp_path / "bank")
    path = tmp_path / "bank" / "manifest.json"
    record = json.loads(path.read_bytes())
    edits = {
        "shots": names(1),
        "bank_format": 1,
        "max_rows": 5,
        "rows": [[12, 11], [4, 4]],
        "grids": [[3, 4]],
        "region": [0, 0, 1, 1],
    }
    (record if key in record else record["manifest"])[key] = edits[key]
    path.write_text(json.dumps(record))
    with pytest.raises(BankError, match="expected"):
        load_bank(tmp_path / "bank", FINGERPRINT)
