"""daemon/score_drift.py: the population stability index, and what it is learned from."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daemon.ledger import Ledger
from daemon.score_drift import ENOUGH, RECENT, REFERENCE, ScoreDrift, stability_index
from tests.test_metrics import result


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


def scores(seed: int, count: int, mean: float = 0.3, deviation: float = 0.05) -> list[float]:
    return [float(own) for own in np.random.default_rng(seed).normal(mean, deviation, count)]


def passes(values: list[float], recipe: str = "disc", bank: str = "b" * 16) -> list[object]:
    return [result("press", recipe, "pass").model_copy(update={"score": own, "bank": bank}) for own in values]


def index(drift: ScoreDrift) -> dict[str, float]:
    return {labels[0]: value for _, labels, value in drift.readings()}


def test_index_is_the_sum_over_deciles_worked_out_by_hand() -> None:
    # Ten scores a decile; all recent ones in the last: shares with half a score more each.
    reference = [float(number) for number in range(100)]
    recent = [99.0] * 100
    p = 10.5 / 105
    low, high = 0.5 / 105, 100.5 / 105
    expected = 9 * (low - p) * math.log(low / p) + (high - p) * math.log(high / p)
    assert stability_index(reference, recent) == pytest.approx(expected)
    assert stability_index(reference, reference) == 0


def test_without_a_change_it_stays_under_what_alarms_and_follows_its_known_distribution() -> None:
    for recent, most in ((ENOUGH, 0.2), (RECENT, 0.15)):
        drawn = np.array([stability_index(scores(2 * seed, REFERENCE), scores(2 * seed + 1, recent)) for seed in range(400)])
        scale = 1 / REFERENCE + 1 / recent
        assert drawn.mean() == pytest.approx(9 * scale, rel=0.1)  # chi-squared, nine degrees of freedom
        assert np.quantile(drawn, 0.99) < most


@pytest.mark.parametrize(("mean", "deviation"), [(0.33, 0.05), (0.27, 0.05), (0.3, 0.1)])
def test_scores_that_moved_or_spread_alarm(mean: float, deviation: float) -> None:
    assert stability_index(scores(1, REFERENCE), scores(2, RECENT, mean, deviation)) > 0.25


@pytest.mark.parametrize("moved", [0.19, 0.21])
def test_scores_that_were_all_the_same_and_are_others_now_alarm(moved: float) -> None:
    assert stability_index([0.2] * REFERENCE, [moved] * ENOUGH) > 0.25
    assert stability_index([0.2] * REFERENCE, [0.2] * ENOUGH) < 0.01


def test_nothing_is_told_before_there_are_enough_passes(ledger: Ledger) -> None:
    drift = ScoreDrift(ledger, lambda: ["disc"])
    drift.committed(passes(scores(1, REFERENCE + ENOUGH - 1)))  # type: ignore[arg-type]
    drift.committed([result("press", "disc", "fail"), result("press", "disc", "unknown", "overload")])
    assert index(drift) == {}
    drift.committed(passes(scores(2, 1)))  # type: ignore[arg-type]
    assert 0 < index(drift)["disc"] < 0.25
    drift.committed(passes(scores(3, RECENT, 0.4)))  # type: ignore[arg-type]
    assert index(drift)["disc"] > 1


def test_the_first_scores_outlive_a_restart_and_are_learned_anew_for_another_bank(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    drift = ScoreDrift(ledger, lambda: ["disc"])
    drift.committed(passes(scores(1, REFERENCE)))  # type: ignore[arg-type]
    ledger.close()

    ledger = Ledger(tmp_path)
    again = ScoreDrift(ledger, lambda: ["disc"])
    again.committed(passes(scores(2, ENOUGH, 0.4)))  # type: ignore[arg-type]
    assert index(again)["disc"] > 1  # a restart is no excuse for scores that moved
    again.committed(passes(scores(3, REFERENCE + ENOUGH, 0.4), bank="c" * 16))  # type: ignore[arg-type]
    assert index(again)["disc"] < 0.25
    ledger.close()


def test_a_deleted_recipe_is_forgotten_also_on_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    recipes = ["disc", "ring"]
    drift = ScoreDrift(ledger, lambda: recipes)
    for recipe in recipes:
        drift.committed(passes(scores(1, REFERENCE + ENOUGH), recipe))  # type: ignore[arg-type]
    assert set(index(drift)) == {"disc", "ring"}
    recipes.remove("ring")
    drift.forget("ring")
    assert set(index(drift)) == {"disc"}
    kept = ledger.call(lambda c: c.execute("SELECT recipe FROM score_references").fetchall()).result(10)
    assert kept == [("disc",)]
    ledger.close()
