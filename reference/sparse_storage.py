"""Sparse storage: what pruning zeroed takes no room on disk, and every bit comes back on load.

A dense file stores a zero in as many bytes as any weight. Here a matrix is stored as where its values are, and the
values; at run time it is dense again, so memory and speed are those of the dense model.

The file is a safetensors file. A packed tensor W is cut into chunks of 2^18 weights, in flat order, and becomes
    W.packed  U8 (bytes,)                  zstd frames, one after another: for each chunk the places, then the planes
    W.frames  I64 (chunks, 1 + itemsize)   how many bytes each of these frames has
    places    `bitmask`: one bit a weight, lowest bit first, 1 where the weight is stored
              `N:M`: of every M weights the positions of the N stored ones in ascending order, 1, 2 or 4 bits each
              (2:4: the two 2-bit numbers that sparse tensor cores take as metadata), lowest bits first
    planes    byte 0 of every stored weight, byte 1 of every stored weight, ... (little-endian)
Bytes are split into planes because the exponents of trained weights repeat and their last bits do not: the one plane
compresses to about a third, the other not at all. What counts as zero is the pattern of bits 0 (+0.0): -0.0, NaNs with
their payload and subnormal numbers are values. Tensors that do not get smaller, and those that are not of a floating
type, are stored under their own name as ever. The file's metadata holds `format`, and `packed`: a JSON object
name -> [dtype, shape, places].
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reference.threshold import bits

FORMAT = "reference-sparse/1"
CHUNK = 1 << 18
LEVEL = 1  # higher ones gain less than 1 % on such bytes
ENTRY = 256  # bytes that two more entries cost in the header, about
POSITION_BITS = {2: 1, 4: 2, 16: 4}  # by M; other patterns take a bitmask


def save_sparse(
    tensors: Mapping[str, Tensor], file: str | os.PathLike, patterns: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Write tensors to one file. `patterns`: (N, M) of the matrices that were pruned so; others take a bitmask."""
    stored, packed = {}, {}
    for name, tensor in tensors.items():
        places, parts = pack_tensor(tensor, (patterns or {}).get(name))
        if parts is None:
            stored[name] = tensor.contiguous()
        else:
            packed[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), places]
            stored |= {f"{name}.{part}": array for part, array in parts.items()}
    save_file(stored, file, {"format": FORMAT, "packed": json.dumps(packed)})


def load_sparse(
    file: str | os.PathLike, expected: Mapping[str, tuple[int, ...]], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """All tensors of a file that `save_sparse` wrote, bit for bit.

    `expected`: name -> shape of every tensor that may be in it. Shapes and lengths are checked against it before memory
    is taken. Raises ValueError if the file is something else, is cut short, or does not fit.
    """
    file = Path(file)
    try:
        with safe_open(file, framework="pt") as stored:
            described = _description(file, stored.metadata() or {})
            names = set(stored.keys()) - {f"{name}.{part}" for name in described for part in ("packed", "frames")}
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
            shapes |= {name: tuple(shape) for name, (_, shape, _) in described.items()}
            for name, shape in shapes.items():
                if shape != expected.get(name):
                    raise ValueError(f"{file}: tensor {name} of shape {shape} is not part of the model as described")
            tensors = {name: stored.get_tensor(name).clone() for name in names}
            for name, (dtype, shape, places) in described.items():
                packed, frames = stored.get_tensor(f"{name}.packed"), stored.get_tensor(f"{name}.frames")
                tensors[name] = unpack_tensor(packed, frames, getattr(torch, dtype), shape, places)
    except (SafetensorError, OSError, zstandard.ZstdError) as error:
        raise ValueError(f"{file} is missing, damaged or cut short ({error}); copy or download it again") from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def pack_tensor(tensor: Tensor, pattern: tuple[int, int] | None = None) -> tuple[str, dict[str, Tensor] | None]:
    """(places, {"packed", "frames"}), or ("", None) if the tensor is better stored as it is."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return "", None
    weights = bits(tensor.detach().cpu().contiguous())
    if pattern and not _fits_pattern(weights, tensor.shape, *pattern):
        pattern = None
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    frames = []
    for start in range(0, len(weights), CHUNK):
        chunk = weights[start : start + CHUNK]
        stored = chunk != 0
        if pattern:
            stored = _fill_up(stored, *pattern)
            places = _pack_positions(stored, *pattern)
        else:
            places = np.packbits(stored, bitorder="little")
        values = chunk[stored]
        planes = [np.ascontiguousarray(values.view(np.uint8)[b :: chunk.itemsize]) for b in range(chunk.itemsize)]
        frames.append([compressor.compress(part) for part in (places, *planes)])
    lengths = torch.tensor([[len(frame) for frame in chunk] for chunk in frames])
    if int(lengths.sum()) + lengths.numel() * 8 + ENTRY >= weights.nbytes:
        return "", None
    joined = np.frombuffer(b"".join(frame for chunk in frames for frame in chunk), np.uint8).copy()
    places = "{}:{}".format(*pattern) if pattern else "bitmask"
    return places, {"packed": torch.from_numpy(joined), "frames": lengths}


def unpack_tensor(packed: Tensor, frames: Tensor, dtype: torch.dtype, shape: list[int], places: str) -> Tensor:
    """The inverse of `pack_tensor`. Raises ValueError or ZstdError if the parts do not make up such a tensor."""
    count, wrong = int(np.prod(shape)), f"the parts do not make a tensor of shape {tuple(shape)}"
    chunks = (count + CHUNK - 1) // CHUNK
    lengths = frames.numpy()
    fits = packed.dtype == torch.uint8 and packed.ndim == 1 and frames.dtype == torch.int64
    if not fits or lengths.shape != (chunks, 1 + dtype.itemsize):
        raise ValueError(wrong)
    if (lengths < 1).any() or (lengths > len(packed)).any() or lengths.sum() != len(packed):
        raise ValueError(wrong)
    pattern = None if places == "bitmask" else tuple(map(int, places.split(":")))
    tensor = torch.zeros(tuple(shape), dtype=dtype)
    weights, source = bits(tensor), _frames(memoryview(packed.numpy()), lengths)
    values = np.empty(min(count, CHUNK), weights.dtype)
    for start in range(0, count, CHUNK):
        chunk = weights[start : start + CHUNK]
        if pattern:
            positions = _decompress(next(source), _position_bytes(len(chunk), *pattern))
            at = _unpack_positions(positions, len(chunk), *pattern)
        else:
            mask = _decompress(next(source), (len(chunk) + 7) // 8)
            at = np.flatnonzero(np.unpackbits(mask, count=len(chunk), bitorder="little").view(bool))
        kept = values[: len(at)]
        for byte in range(chunk.itemsize):
            kept.view(np.uint8)[byte :: chunk.itemsize] = _decompress(next(source), len(kept))
        chunk[at] = kept  # by indices: five times as fast as by booleans
    return tensor


def _frames(data: memoryview, lengths: np.ndarray) -> Iterator[memoryview]:
    at = 0
    for length in lengths.flatten().tolist():
        yield data[at : at + length]
        at += length


def _decompress(frame: memoryview, size: int) -> np.ndarray:
    """`size` bytes (size,). The frame's own claim is checked first: a few bytes can claim to be gigabytes."""
    claimed = zstandard.get_frame_parameters(frame).content_size
    if claimed != size:
        raise ValueError(f"a compressed frame holds {claimed} bytes where {size} belong")
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)


def _fits_pattern(weights: np.ndarray, shape: torch.Size, n: int, m: int) -> bool:
    """At most n of every m weights are not zero, and positions take no more room than a bitmask."""
    if m not in POSITION_BITS or n * POSITION_BITS[m] > m or shape[-1] % m:
        return False
    return all(
        int((chunk.reshape(-1, m) != 0).sum(1).max()) <= n
        for chunk in (weights[i : i + CHUNK] for i in range(0, len(weights), CHUNK))
    )


def _fill_up(stored: np.ndarray, n: int, m: int) -> np.ndarray:
    """Booleans (weights,) with exactly n of every m: groups that have fewer values store zeros, the first ones."""
    stored_gm = stored.reshape(-1, m)
    missing_g1 = n - stored_gm.sum(1, keepdims=True)
    if missing_g1.any():
        stored_gm = stored_gm | (~stored_gm & (np.cumsum(~stored_gm, axis=1) <= missing_g1))
    return stored_gm.reshape(-1)


def _position_bytes(count: int, n: int, m: int) -> int:
    each = 8 // POSITION_BITS[m]  # positions a byte
    return (count // m * n + each - 1) // each


def _pack_positions(stored: np.ndarray, n: int, m: int) -> np.ndarray:
    width = POSITION_BITS[m]
    positions = (np.flatnonzero(stored) % m).astype(np.uint8)
    packed = np.zeros((_position_bytes(len(stored), n, m), 8 // width), np.uint8)
    packed.reshape(-1)[: len(positions)] = positions
    return np.bitwise_or.reduce(packed << (np.arange(8 // width, dtype=np.uint8) * width), axis=1)


def _unpack_positions(packed: np.ndarray, count: int, n: int, m: int) -> np.ndarray:
    """Flat indices of the stored ones of `count` weights."""
    width = POSITION_BITS[m]
    of_byte = np.arange(256)[:, None] >> np.arange(0, 8, width) & ((1 << width) - 1)
    positions_gn = of_byte[packed].reshape(-1)[: count // m * n].reshape(-1, n)
    return (positions_gn + np.arange(0, count, m)[:, None]).reshape(-1)


def _description(file: Path, metadata: Mapping[str, str]) -> dict[str, list]:
    """name -> [dtype, shape, places], every part of which is known to be one that this version writes."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{file} has format {metadata.get('format')!r}; this version reads {FORMAT}")
    try:
        described = json.loads(metadata.get("packed", ""))
        for dtype, shape, places in described.values():
            kind = getattr(torch, dtype)
            known = isinstance(kind, torch.dtype) and kind.is_floating_point and kind.itemsize in (1, 2, 4, 8)
            if not known or not all(type(size) is int and size > 0 for size in shape):
                raise ValueError(f"{dtype} of shape {shape}")
            if places != "bitmask":
                n, m = map(int, places.split(":"))
                if m not in POSITION_BITS or not 0 < n < m or shape[-1] % m:
                    raise ValueError(f"the places {places!r}")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: its metadata does not describe packed tensors ({error})") from error
    return described
