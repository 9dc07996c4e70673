"""Whether the scores of good parts are still what they were: the population stability index of each recipe (docs/metrics.md)."""

import json
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from connectors.contract import ResultOut
from connectors.scraped import SCORE_DRIFT, Reading
from daemon.ledger import Ledger

log = logging.getLogger(__name__)

BINS = 10
REFERENCE = 400
"""First passing scores of a bank, which the newest are compared with."""
RECENT = 400
ENOUGH = 200
"""Newest scores under which nothing is told: without any change one index in a thousand is over 0.21 then."""
SMOOTHING = 0.5
"""Added to each bin's count."""

CREATE = "CREATE TABLE IF NOT EXISTS score_references (recipe TEXT PRIMARY KEY, bank TEXT NOT NULL, scores TEXT NOT NULL)"


def stability_index(reference: Sequence[float], recent: Sequence[float]) -> float:
    """The population stability index: 0 for equal distributions, over 0.25 by custom for others (Siddiqi 2006).

    Bins end at the reference's deciles; equal ones are one bin, and one more ends just below the first, so that a drop is seen
    where all scores of the reference are the same.
    """
    deciles = np.quantile(np.asarray(reference), np.arange(1, BINS) / BINS)
    edges = np.unique(deciles)
    if len(edges) < BINS - 1:
        edges = np.unique([np.nextafter(edges[0], -np.inf), *edges])

    def shares(scores: Sequence[float]) -> NDArray[np.float64]:
        counts = np.bincount(np.searchsorted(edges, np.asarray(scores)), minlength=len(edges) + 1) + SMOOTHING
        return np.asarray(counts / counts.sum(), np.float64)

    before, now = shares(reference), shares(recent)
    return float(((now - before) * np.log(now / before)).sum())


@dataclass
class _Window:
    """A recipe's scores by one bank."""

    bank: str
    reference: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class ScoreDrift:
    """Owner of the table `score_references`. `committed` is called on the ledger's thread, `readings` by any."""

    def __init__(self, ledger: Ledger, recipes: Callable[[], Collection[str]]) -> None:
        """recipes: those that there are; others are forgotten. Raises StoreError when the disk refuses."""
        self._ledger = ledger
        self._recipes = recipes
        self._lock = threading.Lock()
        self._windows: dict[str, _Window] = {}
        self._kept: dict[str, _Window] = {}
        """Complete references of an earlier process."""
        for recipe, bank, scores in ledger.ask(_read):
            self._kept[recipe] = _Window(bank, json.loads(scores))

    def committed(self, results: Sequence[ResultOut]) -> None:
        """Take note of the passes among them."""
        for result in results:
            if result.verdict == "pass" and result.score is not None:
                with self._lock:
                    self._see(result.recipe, result.bank or "", result.score)

    def _see(self, recipe: str, bank: str, score: float) -> None:
        window = self._windows.get(recipe)
        if window is None or window.bank != bank:
            kept = self._kept.get(recipe)
            window = kept if kept is not None and kept.bank == bank else _Window(bank)
            self._windows[recipe] = window
        if len(window.reference) >= REFERENCE:
            window.recent.append(score)
            return
        window.reference.append(score)
        if len(window.reference) == REFERENCE:
            self._kept[recipe] = window
            row = (recipe, bank, json.dumps([round(own, 6) for own in window.reference]))
            # Not waited for: should the disk not take it, the next process learns it anew.
            self._ledger.call(lambda c: c.execute("INSERT OR REPLACE INTO score_references VALUES (?, ?, ?)", row))

    def readings(self) -> Iterator[Reading]:
        """For the recipes that have enough scores."""
        there = set(self._recipes())
        with self._lock:
            for recipe in [recipe for recipe in self._windows if recipe not in there]:
                del self._windows[recipe]
            told = {recipe: (list(own.reference), list(own.recent)) for recipe, own in self._windows.items()}
        for recipe, (reference, recent) in told.items():
            if len(recent) >= ENOUGH:
                yield SCORE_DRIFT.of(stability_index(reference, recent), recipe)

    def forget(self, recipe: str) -> None:
        """It was deleted: another may have its name."""
        with self._lock:
            self._windows.pop(recipe, None)
            self._kept.pop(recipe, None)
        self._ledger.call(lambda c: c.execute("DELETE FROM score_references WHERE recipe = ?", (recipe,)))


def _read(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    connection.execute(CREATE)
    return connection.execute("SELECT recipe, bank, scores FROM score_references").fetchall()
