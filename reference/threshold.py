"""The k-th lowest of many numbers, exactly, without ever writing their scores down.

For IEEE floats >= 0 the bits, read as an unsigned integer, order as the values do, so they are the key of |x|; the sign
bit plus or minus that is the key of a signed x. Both zeros have one key. The k lowest are found by counting:

    sample   the sorted keys of some 2^19 numbers give a bracket that rarely misses the k-th lowest key of all
    tally    one pass over everything: how many keys lie below the bracket and at its ends, and those between, under 1 %
    cut      the k-th lowest is found exactly among them; were it not there, the bracket widens, and again

All keys below the cut go, and of those equal to it the first in the order of the layers, then of the flat index.

A pass takes one layer after another, in chunks that fit the cache. So layers may lie in memory (`mark_lowest`) or come
off a disk one by one (`weights_on_disk.py`), and beside them there is little, whatever their size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18  # numbers, a multiple of 8; what is made of a chunk stays in the second-level cache
SAMPLE = 1 << 19
# dtype -> unsigned integers of its width, and the pattern of infinity: what is not below it is not finite.
PATTERNS = {
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float16: (np.uint16, 0x7C00),
    torch.float32: (np.uint32, 0x7F800000),
}
Keys = Callable[[np.ndarray], np.ndarray]  # bits of consecutive weights -> their keys, until the next call


class Cut(NamedTuple):
    """What goes from a layer: keys below `key`, and the first `ties` of those equal to it."""

    key: int
    ties: int


class Tally(NamedTuple):
    """Of one layer: how many keys lie below the bracket, at either end, and between, where they are kept, less `low`.

    A key that many numbers share, such as that of zero in a pruned layer, fills more than a bracket, so it is an end.
    """

    below: int
    at_low: int
    inside: np.ndarray
    at_high: int


def bits(tensor: Tensor) -> np.ndarray:
    """The numbers as unsigned integers, flat; in the tensor's own memory if it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().view(f"<u{tensor.element_size()}")


def float_keys(dtype: torch.dtype, name: str, signed: bool = False, wide: bool = False, known: bool = False) -> Keys:
    """Keys of |x|, or of x where `signed`, in the width of `dtype` or in 4 bytes: `wide` ranks several dtypes together.

    `known`: an earlier pass has seen that all values are finite. Raises ValueError, with the name, for other dtypes
    than those of PATTERNS; the keys raise it for values that are not finite.
    """
    if dtype not in PATTERNS:
        raise ValueError(f"{name} is {dtype}; bfloat16, float16 and float32 are ranked")
    unsigned, infinity = PATTERNS[dtype]
    top = 8 * dtype.itemsize - 1
    magnitude, scratch = unsigned((1 << top) - 1), np.empty(CHUNK, unsigned)

    def keys(chunk: np.ndarray) -> np.ndarray:
        found = np.bitwise_and(chunk, magnitude, out=scratch[: len(chunk)] if len(chunk) <= CHUNK else None)
        if not known and found.max(initial=0) >= infinity:
            raise not_finite(name)
        if wide and dtype == torch.bfloat16:
            found = found.astype(np.uint32) << np.uint32(16)
        elif wide and dtype == torch.float16:
            found = found.view(np.float16).astype(np.float32).view(np.uint32)
        if signed:
            minus = chunk.view(f"i{chunk.itemsize}") >> top  # all ones where x < 0
            minus = minus.astype(f"i{found.itemsize}", copy=False).view(found.dtype)
            found ^= minus
            found -= minus
            found ^= found.dtype.type(1 << (8 * found.itemsize - 1))
        return found

    return keys


def random_keys(generator: torch.Generator) -> Keys:
    """The numbers that `criteria/random.py` draws for a layer, as many at a time as there are weights."""
    return lambda chunk: torch.rand(len(chunk), generator=generator).numpy().view(np.uint32)


def bracket(sample: np.ndarray, k: int, n: int, widening: int = 1) -> tuple[int, int]:
    """(low, high): two keys of the sorted sample between which the k-th lowest of all n should lie.

    Three standard deviations of its rank in a random sample to either side, times `widening`; one search in 370 misses.
    """
    share, count = k / n, len(sample)
    margin = widening * (3 * (share * (1 - share) * count) ** 0.5 + 2)
    low, high = int(share * count - margin), int(share * count + margin)
    return int(sample[low]) if low >= 0 else 0, int(sample[high]) if high < count else int(np.iinfo(sample.dtype).max)


def tally(weights: np.ndarray, keys: Keys, low: int, high: int) -> Tally:
    """One layer against the bracket."""
    below = at_low = at_high = 0
    inside, scratch = [np.empty(0, np.uint16)], np.empty(CHUNK, bool)  # a layer may be empty
    for chunk in chunks(weights):
        found = keys(chunk)
        marks, width = scratch[: len(found)], found.dtype.type(high - low)
        below += int(np.count_nonzero(np.less(found, found.dtype.type(low), out=marks)))
        found -= found.dtype.type(low)  # those below low wrap around to large numbers
        found = found.compress(np.less_equal(found, width, out=marks))
        inside.append(found[(found > 0) & (found < width)])
        lowest = len(found) - int(np.count_nonzero(found))
        at_low += lowest
        at_high += len(found) - lowest - len(inside[-1])
    return Tally(below, at_low, np.concatenate(inside), at_high)


def cuts(tallies: Sequence[Tally], k: int, low: int, high: int) -> list[Cut] | None:
    """The exact cut of every layer, in their order; None if the k-th lowest is not inside the bracket."""
    together = np.concatenate([t.inside for t in tallies])
    below, at_low, at_high = (
        sum(t.below for t in tallies),
        sum(t.at_low for t in tallies),
        sum(t.at_high for t in tallies),
    )
    rank = k - below - at_low  # among those inside, from 1
    if k <= below or rank > len(together) + at_high:
        return None
    if rank < 1:
        key, ties, equal = low, k - below, [t.at_low for t in tallies]
    elif rank > len(together):
        key, ties, equal = high, rank - len(together), [t.at_high for t in tallies]
    else:
        together.partition(rank - 1)
        offset = int(together[rank - 1])
        key, ties = low + offset, rank - int(np.count_nonzero(together < offset))
        equal = [int(np.count_nonzero(t.inside == offset)) for t in tallies]
    found = []
    for count in equal:
        found.append(Cut(key, min(count, ties)))
        ties -= found[-1].ties
    return found


def search(
    sample: np.ndarray, k: int, n: int, tallies: Callable[[int, int], Sequence[Tally]], widening: int = 1
) -> list[Cut]:
    """The cuts by which exactly k, 1 <= k, of n numbers go; `tallies` counts every layer against a bracket."""
    sample.sort()
    found = None
    while found is None:
        low, high = bracket(sample, k, n, widening)
        found = cuts(tallies(low, high), k, low, high)
        widening *= 8
    return found


def cuts_in_memory(layers: Sequence[np.ndarray], keys: Sequence[Callable[[], Keys]], k: int) -> list[Cut]:
    """The cuts of layers, as bits, that are ranked together; `keys[i]()` starts the keys of the i-th anew."""
    n = sum(len(W) for W in layers)
    step = max(1, n // SAMPLE)
    sample = np.concatenate([start()(W[::step]) for W, start in zip(layers, keys, strict=True)])
    return search(
        sample, k, n, lambda low, high: [tally(W, start(), low, high) for W, start in zip(layers, keys, strict=True)]
    )


def marked(weights: np.ndarray, keys: Keys, cut: Cut) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Every chunk of a layer: where it starts, its bits in the layer's memory, and True where a number goes."""
    ties, scratch = cut.ties, np.empty(CHUNK, bool)
    for start, chunk in enumerate(chunks(weights)):
        found = keys(chunk)
        goes = np.less(found, found.dtype.type(cut.key), out=scratch[: len(chunk)])
        if ties:
            equal = np.flatnonzero(found == found.dtype.type(cut.key))[:ties]
            goes[equal] = True
            ties -= len(equal)
        yield start * CHUNK, chunk, goes


def zero(weights: np.ndarray, keys: Keys, cut: Cut) -> int:
    """Write +0.0 over what goes from a layer; how many that were."""
    gone = 0
    for _, chunk, goes in marked(weights, keys, cut):
        gone += int(np.count_nonzero(goes))
        chunk *= np.logical_not(goes, out=goes)  # integers: no -0.0 can come of it
    return gone


def mark_lowest(tensors: Sequence[Tensor], k: int, magnitudes: bool) -> Iterator[tuple[int, int, np.ndarray]]:
    """The k lowest, 1 <= k, of all CPU tensors together, chunk by chunk. `magnitudes`: rank |x| instead of x.

    Yields the tensor's position, the flat index at which the chunk starts, and True where an element goes. Raises
    ValueError if a number is not finite.
    """
    tensors = [ranked(t) for t in tensors]
    wide = len({t.dtype for t in tensors}) > 1

    def start(position: int, known: bool = False) -> Keys:
        tensor = tensors[position]
        return float_keys(tensor.dtype, in_words(tensor, position), not magnitudes, wide, known)

    layers = [bits(t) for t in tensors]
    found = cuts_in_memory(layers, [lambda i=i: start(i) for i in range(len(tensors))], k)
    for position, (weights, cut) in enumerate(zip(layers, found, strict=True)):
        for at, _, goes in marked(weights, start(position, known=True), cut):
            yield position, at, goes


def count_nonzero(tensor: Tensor) -> int:
    """How many elements are neither +0.0 nor -0.0; torch's own count takes 30 times as long if zeros are scattered."""
    if tensor.device.type != "cpu" or tensor.dtype not in PATTERNS:
        return int(torch.count_nonzero(tensor))
    keys = float_keys(tensor.dtype, "", known=True)
    return sum(int(np.count_nonzero(keys(chunk))) for chunk in chunks(bits(tensor)))


def chunks(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Views of CHUNK consecutive numbers."""
    return (weights[i : i + CHUNK] for i in range(0, len(weights), CHUNK))


def ranked(scores: Tensor) -> Tensor:
    """The tensor in a dtype that has keys: its own or, of all others, fp32."""
    return scores if scores.dtype in PATTERNS else scores.float()


def in_words(scores: Tensor, position: int = 0) -> str:
    """What an error calls a tensor of scores."""
    return f"scores[{position}], of shape {tuple(scores.shape)},"


def not_finite(name: str) -> ValueError:
    """The error for scores that cannot be ranked."""
    return ValueError(f"{name} holds values that are not finite")
