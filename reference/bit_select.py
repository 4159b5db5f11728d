"""Select exactly k of more weights than fit into memory: on the bits, in one pass over the numbers.

For IEEE floats >= 0 the bits as an unsigned number, the key, order as the values do; clearing the sign bit gives |w|.
    1. sort the keys of a sample; the k-th lowest of all lies between two of them, low and high, almost surely
    2. one pass over everything: count the keys below low, keep those between (about 1 %, as counts where they repeat)
    3. if the k-th is among the kept, it is found exactly; else widen the bracket and pass again
The result is that of `select.lowest`: all keys below the threshold go, and of those equal to it the first ones in
module order, then in flat order. Only +0.0 is written.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # numbers worked on at once, which stay in the processor's cache
SAMPLE = 1 << 18
MOST_COUNTS = 1 << 16
SIGN = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF)}
Keys = Callable[[np.ndarray], np.ndarray]  # bits of consecutive weights -> their keys


class Cut(NamedTuple):
    """What goes from a layer: keys below `key`, and the first `ties` of those equal to it."""

    key: int
    ties: int


class Tally(NamedTuple):
    """Of one layer: how many keys lie below the bracket, and those inside, less `low`: counts or sorted by nothing."""

    below: int
    counts: np.ndarray | None
    inside: np.ndarray | None


def bits(tensor: Tensor) -> np.ndarray:
    """The weights as unsigned integers, flat, in the tensor's own memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().view(f"<u{tensor.element_size()}")


def magnitude_keys(dtype: torch.dtype, wide: bool, name: str, known: bool = False) -> Keys:
    """|w|, in 2 bytes for bf16 and fp16 or in the 4 of fp32 (`wide`), so that several dtypes can be ranked together.

    `known`: an earlier pass has seen that all values are finite.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{name} is {dtype}; out of core ranks bfloat16, float16 and float32")
    infinity = int(torch.tensor(float("inf"), dtype=dtype).view(torch.int16 if dtype.itemsize == 2 else torch.int32))

    def keys(chunk: np.ndarray) -> np.ndarray:
        found = chunk & SIGN[dtype.itemsize]
        if not known and found.max() >= infinity:
            raise ValueError(f"{name} holds values that are not finite")
        if wide and dtype == torch.bfloat16:
            return found.astype(np.uint32) << np.uint32(16)
        return found.view(np.float16).astype(np.float32).view(np.uint32) if wide and dtype == torch.float16 else found

    return keys


def random_keys(generator: torch.Generator) -> Keys:
    """The numbers that `criteria/random.py` draws for a layer, as many at a time as there are weights."""
    return lambda chunk: torch.rand(len(chunk), generator=generator).numpy().view(np.uint32)


def bracket(sample: np.ndarray, k: int, n: int, widening: int = 1) -> tuple[int, int]:
    """(low, high): two keys of the sample between which the k-th lowest of all n should lie."""
    sample = np.sort(sample)
    share, count = k / n, len(sample)
    margin = widening * (6 * (share * (1 - share) * count) ** 0.5 + 0.002 * count + 2)
    low, high = int(share * count - margin), int(share * count + margin)
    return int(sample[low]) if low >= 0 else 0, int(sample[high]) if high < count else int(np.iinfo(sample.dtype).max)


def tally(weights: np.ndarray, keys: Keys, low: int, high: int) -> Tally:
    """One layer against the bracket."""
    below, counts, inside = 0, None, []
    if high - low < MOST_COUNTS:
        counts = np.zeros(high - low + 1, np.int64)
    for chunk in chunks(weights):
        found = keys(chunk)
        below += np.count_nonzero(found < found.dtype.type(low))
        found = found - found.dtype.type(low)  # those below low wrap around to large numbers
        found = found[found <= found.dtype.type(high - low)]
        if counts is None:
            inside.append(found)
        else:
            counts += np.bincount(found, minlength=len(counts))
    return Tally(
        int(below), counts, np.concatenate(inside) if inside else np.empty(0, np.uint32) if counts is None else None
    )


def cuts(tallies: Sequence[Tally], k: int, low: int) -> list[Cut] | None:
    """The exact cut of every layer, in their order; None if the k-th lowest is not inside the bracket."""
    rank = k - sum(t.below for t in tallies)
    if tallies[0].counts is not None:
        cumulative = np.cumsum(sum(t.counts for t in tallies))
        if not 0 < rank <= cumulative[-1]:
            return None
        offset = int(np.searchsorted(cumulative, rank))
        equal = [int(t.counts[offset]) for t in tallies]
        ties = rank - int(cumulative[offset - 1] if offset else 0)
    else:
        together = np.concatenate([t.inside for t in tallies])
        if not 0 < rank <= len(together):
            return None
        offset = int(np.partition(together, rank - 1)[rank - 1])
        equal = [int(np.count_nonzero(t.inside == offset)) for t in tallies]
        ties = rank - int(np.count_nonzero(together < offset))
    found = []
    for count in equal:
        found.append(Cut(low + offset, min(count, ties)))
        ties -= found[-1].ties
    return found


def zero(weights: np.ndarray, keys: Keys, cut: Cut) -> int:
    """Write +0.0 over what goes from a layer; how many that were."""
    ties, gone = cut.ties, 0
    for chunk in chunks(weights):
        found = keys(chunk)
        threshold = found.dtype.type(cut.key)
        stays = found >= threshold
        if ties:
            equal = np.flatnonzero(found == threshold)[:ties]
            stays[equal] = False
            ties -= len(equal)
        chunk *= stays
        gone += len(chunk) - int(np.count_nonzero(stays))
    return gone


def lowest_of_layer(weights: np.ndarray, keys: Callable[[], Keys], k: int) -> Cut:
    """The cut of a layer that is in memory; `keys()` starts the keys anew for each pass."""
    stride = max(1, len(weights) // SAMPLE)
    sample = keys()(np.ascontiguousarray(weights[::stride]))
    widening = 1
    while True:
        low, high = bracket(sample, k, len(weights), widening)
        found = cuts([tally(weights, keys(), low, high)], k, low)
        if found:
            return found[0]
        widening *= 8


def chunks(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Views of CHUNK consecutive numbers."""
    return (weights[i : i + CHUNK] for i in range(0, len(weights), CHUNK))
