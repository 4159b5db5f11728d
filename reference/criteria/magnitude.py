"""Magnitude: what is small matters little.

Weights (Han et al. 2015, arXiv 1506.02626, section 3):          S_oi = |W_oi|
Units (Li et al. 2017, arXiv 1608.08710, section 3.1, for p = 1): S_u  = sum of |w|^p over the weights coupled to unit u

Deviation: Li et al. sum over a filter's own weights only; here every weight that disappears together with the unit
counts, the rows that produce it and the columns that consume it alike, as in Torch-Pruning.

Shapes: o outputs, i inputs, u units, w consecutive indices that one unit spans (32 for a head of 32, 1 for a neuron).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 1 << 18  # weights
PIECE = 1 << 22


def weight_scores(W: Tensor) -> Tensor:
    """|W| in fp32, same shape."""
    return W.detach().float().abs()


def unit_scores(slices: Iterable[tuple[Tensor, int]], count: int, p: int = 2) -> Tensor:
    """Scores (u,) of `count` units, from the tensors that they span.

    `slices`: pairs of a tensor and the dimension along which it is cut, of length count * w.
    """
    S_u = torch.zeros(count)
    for tensor, dim in slices:
        sums = _sums(tensor.detach(), dim, p)
        S_u = S_u.to(sums.device) + sums.reshape(count, -1).sum(1)
    return S_u


def square_sum(W: Tensor) -> float:
    """Sum of squares of all weights, in pieces, so that no fp32 copy of a whole layer is made."""
    return sum(float(piece.float().square().sum()) for piece in W.detach().reshape(-1).split(PIECE))


def _sums(tensor: Tensor, dim: int, p: int) -> Tensor:
    """Sum of |w|^p over all dimensions but one, fp32 (length of `dim`,), by as many rows at a time as fit the cache."""
    sums = torch.zeros(tensor.shape[dim], device=tensor.device)
    rows = max(1, CHUNK * len(tensor) // max(1, tensor.numel()))
    for start in range(0, len(tensor), rows):
        X = tensor[start : start + rows].to(torch.float32, copy=True)
        X = X.square_() if p == 2 else X.abs_().pow_(p)
        if dim == 0:
            sums[start : start + rows] = X.flatten(1).sum(1) if X.ndim > 1 else X
        else:
            sums += X.movedim(dim, -1).flatten(0, -2).sum(0)
    return sums
