"""Select: from scores to exactly k removed units.

The k lowest scores go; among equal scores the one that comes first in module order, then in flat index, goes first.
A threshold alone (`score <= t`) would remove every tie of the k-th score, and bf16 weights are full of ties.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOW_BITS = 16


def count_to_remove(amount: float, n: int) -> int:
    """k = floor(amount * n + 0.5), half rounds up."""
    return math.floor(amount * n + 0.5)


def _keys(scores: Tensor) -> Tensor:
    """fp32 scores (any shape) as flat int64 keys that sort alike: for IEEE floats >= 0 the bit pattern is monotone."""
    bits = scores.detach().float().flatten().view(torch.int32).to(torch.int64)
    # A negative float's magnitude bits count downwards from -0.0, which equals +0.0.
    return torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def kth_lowest_key(scores: Sequence[Tensor], k: int) -> int:
    """Key of the k-th lowest score (k >= 1) over all tensors, by a two-digit radix count.

    Two passes, each tensor read on its own: the model is never concatenated, the state is two histograms of 65,536.
    """
    prefix, rank = None, k
    for digit in ("high", "low"):
        histogram = torch.zeros(1 << LOW_BITS, dtype=torch.int64)
        for tensor in scores:
            keys = _keys(tensor)
            high, low = (keys >> LOW_BITS) + (1 << (LOW_BITS - 1)), keys & ((1 << LOW_BITS) - 1)
            digits = high if digit == "high" else low[high == prefix]
            histogram += torch.bincount(digits, minlength=1 << LOW_BITS).cpu()
        cumulative = histogram.cumsum(0)
        found = int(torch.searchsorted(cumulative, rank))
        rank -= int(cumulative[found - 1]) if found else 0
        prefix, previous = found, prefix
    return ((previous - (1 << (LOW_BITS - 1))) << LOW_BITS) + prefix


def lowest(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Boolean tensors shaped like `scores`: True at exactly the k lowest of all of them together."""
    n = sum(s.numel() for s in scores)
    if not 0 <= k <= n:
        raise ValueError(f"cannot select {k} of {n} units")
    for position, s in enumerate(scores):
        if not torch.isfinite(s).all():
            raise ValueError(f"scores[{position}], of shape {tuple(s.shape)}, holds values that are not finite")
    if k == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    threshold = kth_lowest_key(scores, k)
    ties_left = k - sum(int((_keys(s) < threshold).sum()) for s in scores)
    removed = []
    for s in scores:
        keys = _keys(s)
        take = keys < threshold
        ties = (keys == threshold).nonzero().flatten()[:ties_left]
        take[ties] = True
        ties_left -= len(ties)
        removed.append(take.reshape(s.shape))
    return removed


def lowest_per_row(scores_rc: Tensor, k: int) -> Tensor:
    """True at exactly the k lowest of each row of (rows, columns)."""
    if k == 0:
        return torch.zeros_like(scores_rc, dtype=torch.bool)
    if not torch.isfinite(scores_rc).all():
        raise ValueError(f"scores of shape {tuple(scores_rc.shape)} hold values that are not finite")
    kth_r1 = scores_rc.kthvalue(k, dim=1, keepdim=True).values
    below, ties = scores_rc < kth_r1, scores_rc == kth_r1
    ties_left_r1 = k - below.sum(1, keepdim=True)
    return below | (ties & (ties.cumsum(1) <= ties_left_r1))


def lowest_n_m(scores: Tensor, n: int, m: int) -> Tensor:
    """True at the m - n lowest of each m consecutive input channels, by kernel position; (outputs, inputs, ...)."""
    if scores.shape[1] % m:
        raise ValueError(f"{scores.shape[1]} inputs do not divide into groups of {m}")
    channels_last = scores.movedim(1, -1)
    return lowest_per_row(channels_last.reshape(-1, m), m - n).reshape(channels_last.shape).movedim(-1, 1)


def rounded_keep(keep: int, width: int, round_to: int | str, min_keep: int) -> int:
    """How many of `width` units stay when `keep` were asked for.

    `round_to="auto"`: the nearest multiple of 64 where the width is at least 1024 (tensor-core tiles), else as asked.
    """
    tile = (64 if width >= 1024 else 1) if round_to == "auto" else int(round_to)
    if keep < width:  # a group that loses nothing is left alone, whatever its width
        keep = max(tile, tile * math.floor(keep / tile + 0.5))
    return min(width, max(keep, min_keep))
