"""Banks on the disk: written before their row, current by one commit, pruned after that. A rollback is a commit too."""

import ast
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from config.errors import StoreError
from daemon.ledger import Ledger
from daemon.shots import At, Box, make_folder, nowhere
from model.bank import Bank, load_bank, saved_shots
from model.calibration import Calibration
from model.errors import BankError
from model.labelled import Labelled

log = logging.getLogger(__name__)

KEPT = 5
"""Banks of a recipe that are kept for a rollback, the current one among them."""

Basis = dict[str, str | int | float | None]
"""What a calibration depends on besides shots and model."""
REGION = "region"
"""The key of a basis that names the region as Python writes it, where no bank does: words alone judge."""


@dataclass(frozen=True)
class _Stored:
    """A calibration from shots alone as the ledger keeps it, with what it depends on besides shots and model, and with what
    marks have made of it since."""

    basis: Basis
    calibration: Calibration
    labelled: Labelled | None = None


_STORED = TypeAdapter(_Stored)


@dataclass(frozen=True)
class BankRow:
    """A bank that can be rolled back to. `name` is what results say; `rolled_back`: chosen by a person, not the newest.

    calibration: as it judges. labelled: what marks made of that of the shots alone; None without marks.
    """

    recipe: str
    bank: str
    name: str
    calibration: Calibration
    labelled: Labelled | None
    built_at: datetime
    current: bool
    rolled_back: bool


@dataclass(frozen=True)
class Found:
    """A stored bank (None where words alone judge) with its calibration from shots alone, and what marks made of it."""

    basis: Basis
    bank: Bank | None
    calibration: Calibration
    labelled: Labelled | None

    @property
    def region(self) -> Box | None:
        """Of the pictures that it judges, None for the whole frame."""
        if self.bank is not None:
            return self.bank.manifest.region
        written: Box | None = ast.literal_eval(str(self.basis[REGION]))
        return written


class Banks:
    """Owner of the folders `recipes/<name>/banks` of the state folder, and of the ledger's rows about them."""

    def __init__(
        self, store: Path, ledger: Ledger, on_corrupt: Callable[[str, str, str], None] = lambda *_: None, at: At = nowhere
    ) -> None:
        """on_corrupt: told of (recipe, bank, what is wrong) when a stored bank fails its checks and is removed."""
        self._recipes = store / "recipes"
        self._ledger = ledger
        self._on_corrupt = on_corrupt
        self._at = at

    def _folder(self, recipe: str, bank: str) -> Path:
        return self._recipes / recipe / "banks" / bank[:16]

    def all(self, recipe: str) -> list[BankRow]:
        """Newest first. Those whose calibration was written by another release are left out."""

        def read(connection: sqlite3.Connection) -> list[tuple[str, str, int, int | None]]:
            return connection.execute(
                "SELECT b.bank, b.calibration, b.built_ns, c.rolled_back FROM banks b LEFT JOIN current_banks c "
                "ON c.recipe = b.recipe AND c.bank = b.bank WHERE b.recipe = ? ORDER BY b.built_ns DESC",
                (recipe,),
            ).fetchall()

        rows = []
        for bank, written, built_ns, rolled_back in self._ledger.call(read).result():
            try:
                stored = _STORED.validate_json(written)
            except ValidationError:
                continue
            judging = stored.labelled.apply(stored.calibration) if stored.labelled else stored.calibration
            built_at = datetime.fromtimestamp(built_ns / 1e9, UTC)
            current = rolled_back is not None
            rows.append(BankRow(recipe, bank, bank[:16], judging, stored.labelled, built_at, current, bool(rolled_back)))
        return rows

    def current(self, recipe: str) -> tuple[str, bool] | None:
        """(bank, whether by a rollback) that judges; None before the first."""

        def read(connection: sqlite3.Connection) -> tuple[str, bool] | None:
            row = connection.execute("SELECT bank, rolled_back FROM current_banks WHERE recipe = ?", (recipe,)).fetchone()
            return (str(row[0]), bool(row[1])) if row else None

        return self._ledger.call(read).result()

    def shot_scores(self, recipe: str) -> dict[str, float]:
        """What each shot of the current bank scores against it without that shot. Empty where words alone judge, or a lone
        shot, or where the bank cannot be read."""
        current = next((row for row in self.all(recipe) if row.current), None)
        if current is None or not current.calibration.shot_scores:
            return {}
        try:
            shots = saved_shots(self._folder(recipe, current.bank))
        except BankError:
            return {}  # of words alone; a damaged one is told of when it is loaded
        return dict(zip(shots, current.calibration.shot_scores, strict=False))

    def load(self, recipe: str, bank: str, basis: Basis, fingerprint: dict[str, object], device: object) -> Found | None:
        """The stored bank, of whatever region; None when there is none for that basis and model. A damaged one is told of and
        removed."""

        def read(connection: sqlite3.Connection) -> str | None:
            row = connection.execute("SELECT calibration FROM banks WHERE recipe = ? AND bank = ?", (recipe, bank)).fetchone()
            return str(row[0]) if row else None

        written = self._ledger.call(read).result()
        if written is None:
            return None
        try:
            stored = _STORED.validate_json(written)
        except ValidationError:
            log.warning("recipe %s: its stored calibration cannot be read. It is made again from the shots", recipe)
            return None
        if stored.basis | {REGION: None} != basis | {REGION: None}:
            return None
        if basis["mode"] == "zero_shot":
            if REGION not in stored.basis:
                return None  # of a daemon that knew no region of words; made again
            return Found(stored.basis, None, stored.calibration, stored.labelled)
        folder = self._folder(recipe, bank)
        if not folder.is_dir():
            return None
        try:
            loaded = load_bank(folder, fingerprint, str(device), bank)
        except BankError as error:
            log.warning("recipe %s: %s. It is built again from the shots", recipe, error)
            self._on_corrupt(recipe, bank[:16], str(error))
            shutil.rmtree(folder)
            return None
        return Found(stored.basis, loaded, stored.calibration, stored.labelled)

    def store(
        self, recipe: str, name: str, bank: Bank | None, basis: Basis, calibration: Calibration, labelled: Labelled | None
    ) -> None:
        """Keep a bank (`name`: its hash) and make it current, on disk when this returns. StoreError when the disk refuses.

        calibration: from shots alone. labelled: what marks made of it.
        """
        if bank is not None:
            self._save(recipe, bank)
            self._at("bank_saved")
        stored = _STORED.dump_json(_Stored(basis, calibration, labelled)).decode()
        row = (recipe, name, stored, time.time_ns())

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO banks VALUES (?, ?, ?, ?)", row)
            connection.execute("INSERT OR REPLACE INTO current_banks VALUES (?, ?, 0)", (recipe, name))

        self._ledger.call(insert, durable=True).result()
        self._at("bank_committed")

    def relabel(self, recipe: str, bank: str, basis: Basis, calibration: Calibration, labelled: Labelled | None) -> None:
        """Keep what marks make of a stored bank's calibration now, durable when this returns."""
        stored = _STORED.dump_json(_Stored(basis, calibration, labelled)).decode()
        update = "UPDATE banks SET calibration = ? WHERE recipe = ? AND bank = ?"
        self._ledger.call(lambda c: c.execute(update, (stored, recipe, bank)), durable=True).result()

    def make_current(self, recipe: str, bank: str, *, rolled_back: bool) -> None:
        """Durable when this returns."""
        row = (recipe, bank, int(rolled_back))
        self._ledger.call(
            lambda c: c.execute("INSERT OR REPLACE INTO current_banks VALUES (?, ?, ?)", row), durable=True
        ).result()

    def none_current(self, recipe: str) -> None:
        """No bank judges any more: its last shot was forgotten. Durable when this returns."""
        self._ledger.call(lambda c: c.execute("DELETE FROM current_banks WHERE recipe = ?", (recipe,)), durable=True).result()

    def prune(self, recipe: str) -> None:
        """Keep the newest KEPT with the current one among them. Rows go first: a row without its bank would be a lie."""

        def delete(connection: sqlite3.Connection) -> set[str]:
            current = connection.execute("SELECT bank FROM current_banks WHERE recipe = ?", (recipe,)).fetchone()
            rows = connection.execute("SELECT bank FROM banks WHERE recipe = ? ORDER BY built_ns DESC", (recipe,)).fetchall()
            order = sorted((str(bank) for (bank,) in rows), key=lambda bank: current is None or bank != current[0])
            for bank in order[KEPT:]:
                connection.execute("DELETE FROM banks WHERE recipe = ? AND bank = ?", (recipe, bank))
            return {bank[:16] for bank in order[:KEPT]}

        kept = self._ledger.call(delete, durable=True).result()
        self._at("rows_pruned")
        folder = self._recipes / recipe / "banks"
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
                self._at("bank_pruned")

    def _save(self, recipe: str, bank: Bank) -> None:
        folder = self._folder(recipe, bank.hash)
        try:
            make_folder(folder.parent)
            try:
                bank.save(folder)
            except BankError as error:
                log.warning("recipe %s: %s. It is replaced", recipe, error)
                shutil.rmtree(folder)
                bank.save(folder)
        except OSError as error:
            raise StoreError(f"{folder}: cannot store the bank ({error.strerror}). Free space or mend its rights.") from None
