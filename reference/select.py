"""Select: from scores to exactly k removed units.

The k lowest scores go; among equal scores the one that comes first in module order, then in flat index, goes first.
A threshold alone (`score <= t`) would remove every tie of the k-th score, and bf16 weights are full of ties.

Where a weight's score is its magnitude, the weight itself is handed over and no score is written down
(`threshold.py`). On a CPU all of this is NumPy in chunks that fit the cache: torch's own sorts, `kthvalue` and `topk`
take 10 to 50 times as long there. On another device torch does it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reference import threshold

LOW_BITS = 16
WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # m booleans of a byte each, as one integer


def count_to_remove(amount: float, n: int) -> int:
    """k = floor(amount * n + 0.5), half rounds up."""
    return math.floor(amount * n + 0.5)


def lowest(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Boolean tensors shaped like `scores`: True at exactly the k lowest of all of them together."""
    _check(scores, k)
    if k == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    if _on_cpu(scores):
        removed = [torch.empty(s.shape, dtype=torch.bool) for s in scores]
        for position, start, marks in threshold.mark_lowest(scores, k, magnitudes=False):
            removed[position].view(-1).numpy()[start : start + len(marks)] = marks
        return removed
    return _lowest_on_device(scores, k)


def keep_highest(weights: Sequence[Tensor], k: int) -> list[Tensor]:
    """Packed bits (ceil(n / 8),) uint8 of each weight, as a plan stores them: 0 at exactly the k lowest magnitudes."""
    _check(weights, k)
    if k == 0 or not _on_cpu(weights):
        removed = lowest([W.detach().abs() for W in weights], k)
        return [torch.from_numpy(np.packbits(~gone.cpu().numpy().reshape(-1))) for gone in removed]
    keep = [torch.empty((W.numel() + 7) // 8, dtype=torch.uint8) for W in weights]
    for position, start, marks in threshold.mark_lowest(weights, k, magnitudes=True):
        bits = np.packbits(np.logical_not(marks, out=marks))
        keep[position].numpy()[start // 8 : start // 8 + len(bits)] = bits
    return keep


def lowest_per_row(scores_rc: Tensor, k: int) -> Tensor:
    """True at exactly the k lowest of each row of (rows, columns)."""
    if k == 0:
        return torch.zeros_like(scores_rc, dtype=torch.bool)
    if scores_rc.device.type == "cpu":
        return _lowest_per_row_in_chunks(scores_rc, k)
    if not torch.isfinite(scores_rc).all():
        raise threshold.not_finite(threshold.in_words(scores_rc))
    kth_r1 = scores_rc.kthvalue(k, dim=1, keepdim=True).values
    below, ties = scores_rc < kth_r1, scores_rc == kth_r1
    ties_left_r1 = k - below.sum(1, keepdim=True)
    return below | (ties & (ties.cumsum(1) <= ties_left_r1))


def lowest_n_m(scores: Tensor, n: int, m: int, magnitudes: bool = False) -> Tensor:
    """True at the m - n lowest of each m consecutive input channels, at each kernel position; (outputs, inputs, ...).

    `magnitudes`: rank |x|, so that a weight is its own score.
    """
    if scores.shape[1] % m:
        raise ValueError(f"{scores.shape[1]} inputs do not divide into groups of {m}")
    channels_last = scores.detach().movedim(1, -1)
    if scores.device.type == "cpu" and m in WORDS:
        removed = _lowest_of_words(channels_last, n, m, magnitudes)
    else:
        groups = channels_last.reshape(-1, m)
        removed = lowest_per_row(groups.abs() if magnitudes else groups, m - n).reshape(channels_last.shape)
    return removed.movedim(-1, 1)


def _lowest_per_row_in_chunks(scores_rc: Tensor, k: int) -> Tensor:
    """np.partition finds each row's k-th lowest; only rows with more ties of it than may go are looked at again."""
    rows, columns = scores_rc.shape
    removed = torch.empty(rows, columns, dtype=torch.bool)
    step = max(1, threshold.CHUNK // columns)
    for start in range(0, rows, step):
        S = scores_rc[start : start + step].detach().float().numpy()
        gone = removed[start : start + step].numpy()
        kth_r1 = np.partition(S, k - 1, axis=1)[:, k - 1 : k]
        if not np.isfinite(S).all():
            raise threshold.not_finite(threshold.in_words(scores_rc))
        np.less_equal(S, kth_r1, out=gone)
        for row in np.flatnonzero(np.count_nonzero(gone, axis=1) > k):
            ties = np.flatnonzero(S[row] == kth_r1[row])
            gone[row, ties[len(ties) - (np.count_nonzero(gone[row]) - k) :]] = False
    return removed


def _lowest_of_words(scores: Tensor, n: int, m: int, magnitudes: bool) -> Tensor:
    """`lowest_n_m` for m of 2, 4 and 8 along the last dimension, by m (m - 1) / 2 compares a group.

    Every score is compared with those 1 ... m - 1 to its right; i sorts before j > i unless S_i > S_j. The m booleans
    of a group are the bytes of one integer, so that sums over pairs are sums of shifted integers:
        ahead_i = how many of its group i sorts before = #{j > i: S_i <= S_j} + i - #{j < i: S_j <= S_i}
    and i goes where ahead_i >= n. No byte ever overflows or borrows.
    """
    scores = threshold.ranked(scores)
    keys_of = threshold.float_keys(scores.dtype, threshold.in_words(scores), signed=not magnitudes)
    patterns = threshold.bits(scores)
    removed = np.empty(len(patterns), dtype=bool)
    word = WORDS[m]
    each = int.from_bytes(b"\x01" * m, "little")
    places = int.from_bytes(bytes(range(m)), "little")
    left = [word((1 << 8 * (m - d)) - 1) for d in range(m)]  # bytes of the m - d scores that have one d to their right
    size = min(threshold.CHUNK, len(patterns))
    before = np.zeros(size, dtype=bool)
    pairs, ahead = np.empty((2, size // m), dtype=word)
    for start in range(0, len(patterns), size):
        keys = keys_of(patterns[start : start + size])
        ahead.fill(places)
        for d in range(1, m):
            np.less_equal(keys[:-d], keys[d:], out=before[: len(keys) - d])
            np.bitwise_and(before.view(word), left[d], out=pairs)
            np.add(ahead, pairs, out=ahead)
            np.left_shift(pairs, word(8 * d), out=pairs)
            np.subtract(ahead, pairs, out=ahead)
        # Bit 7 of a byte is set where ahead_i + 128 - n >= 128.
        np.add(ahead, word(each * (128 - n)), out=ahead)
        np.right_shift(ahead, word(7), out=ahead)
        np.bitwise_and(ahead, word(each), out=ahead)
        removed[start : start + len(keys)] = ahead.view(bool)[: len(keys)]
    return torch.from_numpy(removed).reshape(scores.shape)


def _lowest_on_device(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """`lowest` by torch, a two-digit radix count: two passes, each tensor read on its own, two histograms of 65,536."""
    for position, s in enumerate(scores):
        if not torch.isfinite(s).all():
            raise threshold.not_finite(threshold.in_words(s, position))
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
    kth = ((previous - (1 << (LOW_BITS - 1))) << LOW_BITS) + prefix
    removed, ties_left = [], rank
    for s in scores:
        keys = _keys(s)
        take = keys < kth
        ties = (keys == kth).nonzero().flatten()[:ties_left]
        take[ties] = True
        ties_left -= len(ties)
        removed.append(take.reshape(s.shape))
    return removed


def _keys(scores: Tensor) -> Tensor:
    """fp32 scores (any shape) as flat int64 keys that sort alike: for IEEE floats >= 0 the bit pattern is monotone."""
    bits = scores.detach().float().flatten().view(torch.int32).to(torch.int64)
    # A negative float's magnitude bits count downwards from -0.0, which equals +0.0.
    return torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _check(scores: Sequence[Tensor], k: int) -> None:
    n = sum(s.numel() for s in scores)
    if not 0 <= k <= n:
        raise ValueError(f"cannot select {k} of {n} units")


def _on_cpu(tensors: Sequence[Tensor]) -> bool:
    return all(t.device.type == "cpu" for t in tensors)


def rounded_keep(keep: int, width: int, round_to: int | str, min_keep: int) -> int:
    """How many of `width` units stay when `keep` were asked for.

    `round_to="auto"`: the nearest multiple of 64 where the width is at least 1024 (tensor-core tiles), else as asked.
    """
    tile = (64 if width >= 1024 else 1) if round_to == "auto" else int(round_to)
    if keep < width:  # a group that loses nothing is left alone, whatever its width
        keep = max(tile, tile * math.floor(keep / tile + 0.5))
    return min(width, max(keep, min_keep))
