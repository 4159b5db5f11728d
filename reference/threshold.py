"""The k-th lowest of many numbers, exactly, without ever writing their scores or keys down.

IEEE floats that are not negative sort like their bit patterns, read as integers. Without its sign bit a weight's
pattern is the key of its magnitude, the same for +0.0 and -0.0. So the k-th lowest key t is found by counting:

    sample     the keys of 2^19 evenly spaced elements, sorted, give a bracket that rarely misses t
    count      one pass over all: how many keys lie below the bracket, and a histogram of those inside
    zoom       t lies in one bin; if bins were wider than one key, or t outside the bracket, count again from there

Every pass goes through chunks that fit the cache, so beside the tensors there are some megabytes, whatever their size.
Sums of counts do not depend on the order; so neither does t.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # elements, a multiple of 8; the scratch of a chunk stays in the second-level cache
SAMPLE = 1 << 19
BINS = 20  # bits
# dtype -> integers of its width, and the pattern of infinity: what is not below it is not finite.
PATTERNS = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}


def mark_lowest(tensors: Sequence[Tensor], k: int, magnitudes: bool) -> Iterator[tuple[int, int, np.ndarray]]:
    """The k lowest, 1 <= k, of all CPU tensors together, chunk by chunk; ties go by tensor, then by flat index.

    Yields the tensor's position, the flat index at which the chunk starts, and booleans that live until the next chunk:
    True where an element is among the lowest. `magnitudes`: rank |x| instead of x.
    """
    t, ties = kth_lowest(tensors, k, magnitudes)
    scratch = np.empty(CHUNK, dtype=bool)
    for position, start, keys in key_chunks(tensors, magnitudes):
        marks = scratch[: len(keys)]
        tied = np.count_nonzero(np.equal(keys, t, out=marks)) if ties else 0
        if tied > ties:
            last = np.flatnonzero(marks)[ties - 1]
            marks[last + 1 :] = False
            marks |= keys < t
        else:
            np.less(keys, t + bool(ties), out=marks)
        ties -= min(tied, ties)
        yield position, start, marks


def kth_lowest(tensors: Sequence[Tensor], k: int, magnitudes: bool) -> tuple[int, int]:
    """Key t of the k-th lowest element, 1 <= k, of CPU tensors; and how many elements of key t the k lowest take in.

    Raises ValueError if a number is not finite.
    """
    dtype = pattern_dtype(tensors)
    infinity = PATTERNS[dtype][1]
    low, high = _bracket(tensors, k, magnitudes)
    first = True
    while True:
        shift = max(0, (high - low).bit_length() - BINS)
        histogram = np.zeros((high - low >> shift) + 1, dtype=np.int64)
        scratch, below = np.empty(CHUNK, dtype=bool), 0
        for position, _, keys in key_chunks(tensors, magnitudes):
            if first:
                check_finite(keys, dtype, tensors[position], magnitudes, position)
            marks = scratch[: len(keys)]
            below += np.count_nonzero(np.less(keys, low, out=marks))
            offsets = np.subtract(keys, keys.dtype.type(low), out=keys).view(f"u{keys.itemsize}")  # wraps below low
            np.less_equal(offsets, high - low, out=marks)
            np.add.at(histogram, offsets.compress(marks) >> shift, 1)
        first = False
        rank, counted = k - below, np.cumsum(histogram)
        if rank < 1:
            low, high = -infinity, low - 1
        elif rank > counted[-1]:
            low, high = high + 1, infinity
        else:
            found = int(np.searchsorted(counted, rank))
            if shift == 0:
                return low + found, int(rank - (counted[found - 1] if found else 0))
            low, high = low + (found << shift), min(high, low + (found + 1 << shift) - 1)


def count_nonzero(tensor: Tensor) -> int:
    """How many elements are neither +0.0 nor -0.0; torch's own count takes 30 times as long if zeros are scattered."""
    if tensor.device.type != "cpu" or tensor.dtype not in PATTERNS:
        return int(torch.count_nonzero(tensor))
    return sum(int(np.count_nonzero(keys)) for _, _, keys in key_chunks([tensor], magnitudes=True))


def check_finite(keys: np.ndarray, dtype: torch.dtype, tensor: Tensor, magnitudes: bool, position: int = 0) -> None:
    """Raise ValueError if there is an infinity or NaN among the keys of patterns of `dtype`."""
    infinity = PATTERNS[dtype][1]
    if keys.max() >= infinity or (not magnitudes and keys.min() <= -infinity):
        raise not_finite(tensor, position)


def not_finite(tensor: Tensor, position: int = 0) -> ValueError:
    """The error for scores that cannot be ranked."""
    return ValueError(f"scores[{position}], of shape {tuple(tensor.shape)}, holds values that are not finite")


def _bracket(tensors: Sequence[Tensor], k: int, magnitudes: bool) -> tuple[int, int]:
    """Keys between which the k-th lowest lies, five standard deviations of its rank in a sample to either side."""
    n = sum(t.numel() for t in tensors)
    step = max(1, n // SAMPLE)
    dtype = pattern_dtype(tensors)
    sample = np.sort(np.concatenate([sort_keys(bit_patterns(t, dtype)[::step], magnitudes) for t in tensors]))
    rank = k / n * len(sample)
    margin = 5 * (rank * (1 - k / n)) ** 0.5 + len(tensors)  # each tensor's share of the sample may be one off
    return int(sample[max(0, int(rank - margin))]), int(sample[min(len(sample) - 1, int(rank + margin))])


def key_chunks(tensors: Sequence[Tensor], magnitudes: bool) -> Iterator[tuple[int, int, np.ndarray]]:
    """Position, start and keys of every chunk; the keys may be written over and live until the next chunk."""
    dtype = pattern_dtype(tensors)
    scratch = None
    for position, tensor in enumerate(tensors):
        flat = bit_patterns(tensor, dtype)
        scratch = np.empty(CHUNK, dtype=flat.dtype) if scratch is None else scratch
        for start in range(0, len(flat), CHUNK):
            chunk = flat[start : start + CHUNK]
            yield position, start, sort_keys(chunk, magnitudes, out=scratch[: len(chunk)])


def sort_keys(patterns: np.ndarray, magnitudes: bool, out: np.ndarray | None = None) -> np.ndarray:
    """Signed integers that sort like the floats whose bit patterns are given, or like their magnitudes."""
    keys = np.bitwise_and(patterns, (1 << (8 * patterns.itemsize - 1)) - 1, out=out)
    if not magnitudes:
        sign = patterns >> (8 * patterns.itemsize - 1)  # 0 or -1
        keys ^= sign
        keys -= sign
    return keys


def pattern_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype whose patterns are compared: the tensors' own, or fp32 if theirs differ or are not listed above."""
    dtypes = {t.dtype for t in tensors}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= PATTERNS.keys() else torch.float32


def bit_patterns(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Bit patterns as signed integers, (n,); shares the tensor's memory where it can."""
    return tensor.detach().to(dtype).reshape(-1).view(PATTERNS[dtype][0]).numpy()
