import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor

from model.bank import nearest
from model.coreset import WIDTH, _project, _whole, coreset
from model.errors import ModelError


def clusters(count: int, channels: int, spread: float = 0.1, seed: int = 0) -> Tensor:
    """Unit rows round 40 directions, as patches of alike parts are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn((40, channels), generator=generator)
    own = centres[torch.randint(40, (count,), generator=generator)]
    return F.normalize(own + spread * torch.randn((count, channels), generator=generator), dim=1)


def plain(points: NDArray[np.generic], most: int) -> list[int]:
    """Greedy k-centre as published (arXiv 2106.08265, algorithm 1): one pass over all points for each pick."""
    chosen = [0]
    least = ((points - points[0]) ** 2).sum(1)
    while len(chosen) < most:
        chosen.append(int(least.argmax()))
        least = np.minimum(least, ((points - points[chosen[-1]]) ** 2).sum(1))
    return sorted(chosen)


def radius(rows: Tensor, chosen: Tensor) -> float:
    """Largest `1 - cosine` of any row to its nearest chosen one."""
    return float(nearest(rows[None], rows[chosen]).max())


@pytest.mark.parametrize(
    ("count", "channels", "spread", "most"),
    # Well under, about and well over the number of candidates between two passes; narrow, and wide enough to be projected.
    [(900, 6, 0.1, 300), (3000, 40, 0.05, 700), (2500, 20, 3.0, 2000), (4000, 3, 0.5, 1200), (1500, 300, 0.2, 600), (2, 5, 1, 1)],
)
def test_the_picks_are_those_of_the_plain_algorithm(count: int, channels: int, spread: float, most: int) -> None:
    rows = clusters(count, channels, spread)
    # The very points, as whole numbers: where their distances tie, float64 and any other order of adding agree.
    points = torch.empty((count, min(channels, WIDTH)))
    for _ in _project(rows, points):
        pass
    whole = _whole(points).numpy().astype(np.int64)
    assert coreset(rows, most).tolist() == plain(whole, most)


def test_ties_by_the_thousand_are_the_plain_algorithms_too() -> None:
    corners = torch.tensor(np.stack(np.meshgrid(*[[-1.0, 1.0]] * 12), -1).reshape(-1, 12)).float()
    rows = F.normalize(corners, dim=1)
    assert coreset(rows, 200).tolist() == plain(corners.numpy(), 200)


def test_whole_numbers_cover_as_well_as_the_rows_themselves() -> None:
    rows = clusters(3000, 40)
    want = radius(rows, torch.tensor(plain(rows.double().numpy(), 400)))
    assert radius(rows, coreset(rows, 400)) <= 1.01 * want


def test_projected_rows_cover_nearly_as_well() -> None:
    rows = clusters(1000, 4 * WIDTH, spread=0.5)
    want = radius(rows, torch.tensor(plain(rows.double().numpy(), 150)))
    assert radius(rows, coreset(rows, 150)) <= 1.1 * want


def test_a_coreset_covers_better_than_as_many_rows_at_random() -> None:
    rows = clusters(3000, 40, spread=0.3)
    drawn = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:400]
    assert radius(rows, coreset(rows, 400)) < 0.8 * radius(rows, drawn)


def test_row_0_is_in_it_and_the_same_rows_give_the_same_choice() -> None:
    rows = clusters(2000, 200)
    chosen = coreset(rows, 100)
    assert chosen[0] == 0
    assert (chosen.diff() > 0).all()
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(coreset(rows.clone(), 100), chosen)
        finally:
            torch.set_num_threads(before)
    assert coreset(rows, 1).tolist() == [0]


@pytest.mark.parametrize("most", [50, 51, 1000])
def test_no_more_rows_than_wanted_are_all_kept(most: int) -> None:
    assert coreset(clusters(50, 8), most).tolist() == list(range(50))


def test_of_equal_rows_one_is_kept() -> None:
    assert coreset(torch.ones((500, 4)) / 2, 10).tolist() == [0]
    assert coreset(torch.zeros((500, 4)), 10).tolist() == [0]
    rows = clusters(30, 8)
    assert coreset(rows.repeat(50, 1), 100).tolist() == list(range(30))


def test_rows_in_low_precision_are_compared_by_direction() -> None:
    rows = clusters(2000, 40)
    chosen = coreset(rows.bfloat16(), 300)
    assert radius(rows, chosen) <= 1.05 * radius(rows, coreset(rows, 300))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_refused_even_where_all_are_kept(value: float) -> None:
    rows = clusters(100, 8)
    rows[70, 3] = value
    for most in (10, 100):
        with pytest.raises(ModelError, match="finite features, got NaN or infinity"):
            coreset(rows, most)
    with pytest.raises(ModelError, match="1 or more rows to keep, got 0"):
        coreset(clusters(10, 8), 0)


def test_progress_rises_to_the_end_also_where_rows_run_out() -> None:
    for rows in (clusters(5000, 8), clusters(30, 8).repeat(100, 1)):
        told: list[tuple[int, int]] = []
        coreset(rows, 1000, lambda done, most, told=told: told.append((done, most)))  # type: ignore[misc]
        assert told[-1] == (1000, 1000)
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert len(told) > 1


def test_what_progress_raises_ends_the_work() -> None:
    calls = 0

    def stop(done: int, most: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coreset(clusters(5000, 8), 2000, stop)
    assert calls == 2
