"""The bank: search time and memory against its rows, what others take, and what a coreset costs and brings.

Each way of searching runs in a process of its own, which reports how far its resident memory rose over what the vectors take.
Times are CPU time on one thread, which others on the machine hardly change; ratios are of one run. Target: the memory of ours
does not grow with the rows.

    OMP_NUM_THREADS=1 python -m benchmarks.bank [--quick]
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from model.bank import nearest
from model.coreset import coreset
from model.spec import BANK_ROWS

LITE0, VIT_L = (1024, 40), (1369, 1024)
"""Patches x channels of a picture: the default preset's finer layer, and a layer of APRIL-GAN's ViT-L-14-336 at 518 px."""
SHOTS = ((LITE0, (1, 16, 50, 200)), (VIT_L, (1, 12)))
QUICK = ((LITE0, (1, 16)), (VIT_L, (1,)))


def patches(pictures: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Unit vectors as alike parts give: each place of the part has its own direction, each picture a little of its own."""
    own, channels = shape
    places = torch.randn((own, channels), generator=torch.Generator().manual_seed(0))
    noise = torch.randn((pictures * own, channels), generator=torch.Generator().manual_seed(seed + 1)).mul_(0.4)
    noise.view(pictures, own, channels).add_(places)
    return F.normalize(noise, dim=1, out=noise)


def _ours(queries: Tensor, rows: Tensor) -> None:
    nearest(queries[None], rows)


def _matmul(queries: Tensor, rows: Tensor) -> None:
    (1 - queries @ rows.T).amin(1)


def _cdist(queries: Tensor, rows: Tensor) -> None:
    torch.cdist(queries, rows).amin(1)


def _scikit_learn(queries: Tensor, rows: Tensor) -> None:
    # As the published code does it: cosine, brute force, on the host.
    NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(rows.numpy()).kneighbors(queries.numpy())


WAYS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "ours": _ours,
    "matmul, unblocked": _matmul,
    "torch.cdist, unblocked": _cdist,
    "scikit-learn": _scikit_learn,
}


def _resident_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def _cpu_ms(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return (time.process_time() - began_s) * 1e3


def search_cost(way: str, shots: int, shape: tuple[int, int]) -> tuple[float, float]:
    """(median ms for a picture, MiB that resident memory rose by), measured in this process."""
    rows, queries = patches(shots, shape), patches(1, shape, seed=1)
    # Libraries and thread pools are not the search's; the peak is counted from here.
    WAYS[way](queries[:8], rows[:8])
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib("VmRSS")
    times_ms: list[float] = []
    while len(times_ms) < 3 or (sum(times_ms) < 500 and len(times_ms) < 20):
        times_ms.append(_cpu_ms(lambda: WAYS[way](queries, rows)))
    return statistics.median(times_ms), _resident_mib("VmHWM") - before


def coreset_cost(shots: int, shape: tuple[int, int]) -> dict[str, float]:
    """Of choosing BANK_ROWS rows and of searching them, measured in this process. Radii are `1 - cosine`."""
    rows, queries = patches(shots, shape), patches(1, shape, seed=1)
    coreset(rows[:64], 8)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib("VmRSS")
    began_s = time.process_time()
    chosen = coreset(rows)
    seconds = time.process_time() - began_s
    rise = _resident_mib("VmHWM") - before
    # The plain algorithm's pace from its first picks; all of them would take minutes.
    least = torch.full((len(rows),), torch.inf)
    began_s, pick = time.process_time(), 0
    for _ in range(100):
        least = torch.minimum(least, 2 - 2 * (rows @ rows[pick]))
        pick = int(least.argmax())
    plain_s = (time.process_time() - began_s) / 100 * BANK_ROWS
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:BANK_ROWS]
    whole_ms, coreset_ms = (
        statistics.median(_cpu_ms(lambda bank=bank: nearest(queries[None], bank)) for _ in range(3))  # type: ignore[misc]
        for bank in (rows, rows[chosen])
    )
    return {
        "seconds": seconds,
        "mib": rise,
        "plain_seconds": plain_s,
        "radius": float(nearest(rows[None], rows[chosen]).max()),
        "drawn_radius": float(nearest(rows[None], rows[drawn]).max()),
        "whole_ms": whole_ms,
        "coreset_ms": coreset_ms,
    }


def _apart(measure: Callable[..., Any], *arguments: object) -> Any:
    """The result of a call in a process of its own, forked from one that has computed nothing yet."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, arguments)


def search_table(sizes: Sequence[tuple[tuple[int, int], Sequence[int]]]) -> None:
    """Print a Markdown table; one line for each number of shots."""
    others = [way for way in WAYS if way != "ours"]
    print(
        f"| patches x channels | shots | rows | ours ms | ours MiB | {' | '.join(f'{way}: ms (ratio), MiB' for way in others)} |"
    )
    print("|" + "---|" * (5 + len(others)))
    for shape, shots in sizes:
        for count in shots:
            ours_ms, ours_mib = _apart(search_cost, "ours", count, shape)
            cells = [f"{shape[0]} x {shape[1]}", str(count), f"{count * shape[0]:,}", f"{ours_ms:.1f}", f"{ours_mib:.0f}"]
            for way in others:
                other_ms, other_mib = _apart(search_cost, way, count, shape)
                cells.append(f"{other_ms:.1f} ({other_ms / ours_ms:.1f}), {other_mib:.0f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.bank")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes alone")
    quick = parser.parse_args().quick
    print(f"{torch.get_num_threads()} threads, one picture's patches against all rows, MiB over what the vectors take")
    search_table(QUICK if quick else SHOTS)
    for shape, shots in ((LITE0, 20),) if quick else ((LITE0, 100), (VIT_L, 24)):
        print(f"coreset of {shots} shots of {shape[0]} x {shape[1]}: {BANK_ROWS:,} of {shots * shape[0]:,} rows")
        print(json.dumps({key: round(value, 4) for key, value in _apart(coreset_cost, shots, shape).items()}), flush=True)


if __name__ == "__main__":
    main()
