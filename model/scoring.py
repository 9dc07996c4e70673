"""From anomaly maps to the one number by which a frame passes or fails."""

import torch
from torch import Tensor


def background(maps: Tensor, quantile: float) -> Tensor:
    """The level that this share of each map's pixels does not exceed. B x S x S to B."""
    flat = maps.flatten(1)
    at = max(1, round(quantile * flat.shape[1]))
    return torch.kthvalue(flat, at, dim=1).values


def score(maps: Tensor, share: float = 0.0) -> Tensor:
    """The mean of the largest values of each map, `share` (0 to 1) of its pixels; 0: the largest alone. B x S x S to B."""
    flat = maps.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    if count == 1:
        return flat.amax(1)
    return flat.topk(count, dim=1, sorted=False).values.mean(1)
