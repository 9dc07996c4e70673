"""Greedy k-centre coreset: the rows of a bank that cover all its rows best (PatchCore, arXiv 2106.08265, section 3.2).

Rows become whole numbers small enough that float32 computes every distance between them exactly. So however the work is cut
up, and on whatever device, the picks are those of the plain algorithm, one distance pass over all rows for each pick; and
they come in a tenth of its time, as passes are shared by many picks (see `_greedy`).
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.errors import ModelError
from model.spec import BANK_ROWS
from model.steps import Step, Steps, finish

WIDTH = 128
"""Wider rows are projected to this (Johnson-Lindenstrauss), as in PatchCore's own code: squared distances stay within
sqrt(2 / 128) = 13 % (one standard deviation). 1,000 of 6,400 rows of 320 channels (EfficientNet-Lite0, stride 32) then leave
a radius of 0.077 in `1 - cosine`, at 256 0.073, without projecting 0.064. The default preset's 40 and 112 are left alone."""

_SEED = 2106_08265
_LARGEST = 2048
"""Largest length of a row as whole numbers: |a|^2 + |b|^2 - 2 a.b and its partial sums then stay under 2^24 + 1, exact."""
_LEAST_SPREAD = 1e-3
"""Rows nearer than this to their mean are not blown up to `_LARGEST`: what tells them apart is float32's rounding."""
_CELLS = 2**20
"""Distances computed at a time: 4 MiB stay in a CPU's cache."""
_PICKS = 32
"""Picks from the candidates in one step."""
_CANDIDATES = 1024
"""Rows between two passes. 512 to 4096 take about the same time: 18 to 51 passes for 16,384 of 102,400 rows."""


def coreset(rows: Tensor, most: int = BANK_ROWS, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Rising indices of at most `most` rows, int64, on the rows' device; all of them if there are no more.

    rows: M x C, of any floating type, compared by direction. Row 0 is the first centre; each next one is the row farthest
    from those chosen, the lowest index where several are. Fewer than `most` come back when the rest equal chosen ones.
    progress: called now and then with (rows chosen, `most`); what it raises ends the work.
    Takes 4 bytes x M x min(C, 128) of memory beside the rows. Raises ModelError for NaN or infinity.
    """
    return finish(choosing(rows, most), progress)


@torch.no_grad()
def choosing(rows: Tensor, most: int = BANK_ROWS) -> Steps[Tensor]:
    """`coreset` in steps of a few milliseconds on two cores."""
    if most < 1:
        raise ModelError(f"coreset: expected 1 or more rows to keep, got {most}")
    points = torch.empty((len(rows), min(rows.shape[1], WIDTH)), device=rows.device)
    for _ in _project(rows, points):
        yield 0, most
    if len(rows) <= most:
        return torch.arange(len(rows), device=rows.device)
    _whole(points)
    yield 0, most
    chosen: list[int] = []
    yield from _greedy(points, most, chosen)
    return torch.tensor(sorted(chosen), device=rows.device)


def _project(rows: Tensor, points: Tensor) -> Iterator[None]:
    """Unit rows into `points`, M x min(C, WIDTH), float32, block by block."""
    channels = rows.shape[1]
    projection = None
    if channels > WIDTH:
        # Drawn on the CPU, so that it is the same one for every device.
        drawn = torch.randn((channels, WIDTH), generator=torch.Generator().manual_seed(_SEED))
        projection = (drawn / WIDTH**0.5).to(rows.device)
    high = max(_CELLS // channels, 1)
    for block, target in zip(torch.split(rows, high), torch.split(points, high), strict=True):
        if not block.isfinite().all():
            raise ModelError("coreset: expected finite features, got NaN or infinity. Check the device's memory and the weights")
        unit = F.normalize(block.float(), dim=1)
        target.copy_(unit if projection is None else unit @ projection)
        yield


def _whole(points: Tensor) -> Tensor:
    """Moved to their mean (distances stay), scaled up and rounded, in place: to 1/2000 of the farthest row's distance."""
    points -= points.mean(0)
    farthest = max(float(torch.linalg.vector_norm(points, dim=1).max()), _LEAST_SPREAD)
    # Rounding moves a row by at most half the root of its width.
    return points.mul_((_LARGEST - points.shape[1] ** 0.5) / farthest).round_()


def _greedy(points: Tensor, most: int, chosen: list[int]) -> Iterator[Step]:
    """The picks, in their order, into `chosen`.

    A row's least distance to the centres only falls as centres are added. So of the rows with the largest ones (the
    candidates) the next picks can be made, updating candidates alone, until none is farther than any other row was.
    Then one pass brings all rows up to date with all those picks at once.
    """
    squares = torch.cat([part.square().sum(1) for part in torch.split(points, max(_CELLS // points.shape[1], 1))])
    least = torch.full_like(squares, torch.inf)
    fresh = [0]
    while True:
        chosen += fresh
        yield len(chosen), most
        if len(chosen) == most:
            return
        for _ in _update(least, points, squares, fresh):
            yield len(chosen), most
        # The first pick after a pass is sought among all rows: of equally far ones the candidates may lack the lowest.
        farthest = int(least.argmax())
        if least[farthest] == 0:
            yield most, most
            return
        top = least.topk(min(_CANDIDATES, len(points) - 1) + 1)
        outside = float(top.values[-1])
        # By index, so that argmax takes the lowest of equals.
        candidates = top.indices[:-1].sort().values
        own, own_squares, own_least = points[candidates] * -2, squares[candidates], least[candidates]
        fresh = [farthest]
        while len(chosen) + len(fresh) < most:
            distances = torch.addmv(own_squares, own, points[fresh[-1]]).add_(squares[fresh[-1]])
            torch.minimum(own_least, distances, out=own_least)
            best = int(own_least.argmax())
            if float(own_least[best]) <= outside:
                break
            fresh.append(int(candidates[best]))
            if len(fresh) % _PICKS == 0:
                yield len(chosen) + len(fresh), most


def _update(least: Tensor, points: Tensor, squares: Tensor, centres: list[int]) -> Iterator[None]:
    """`least`, M squared distances, made the least of itself and those to the centres, in place."""
    at = torch.tensor(centres, device=points.device)
    own, own_squares = points[at].T, squares[at]
    high = max(_CELLS // len(centres), 1)
    for start in range(0, len(points), high):
        part = slice(start, start + high)
        distances = torch.addmm(own_squares, points[part], own, alpha=-2).amin(1).add_(squares[part])
        torch.minimum(least[part], distances, out=least[part])
        yield
