"""A safetensors file read and written tensor by tensor, in a few buffers that are used again and again.

One thread reads ahead, the caller works, one thread writes behind:  read -> [buffer] -> change -> [buffer] -> write.
Nothing is mapped: mapped pages count as the process's memory, and a file larger than that would push out all else.
What was read or written is dropped from the system's cache behind us (`posix_fadvise`), for the same reason.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HEADER_BYTES = 100 << 20
PIECE = 8 << 20
BUFFERS = 3
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES |= {"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class Entry(NamedTuple):
    """A tensor of a file; `start` and `end` in bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def of(self, buffer: np.ndarray) -> Tensor:
        """The buffer's bytes as this tensor."""
        return torch.from_numpy(buffer).view(DTYPES[self.dtype]).reshape(self.shape)


def read_header(file: Path) -> tuple[dict[str, str], list[Entry]]:
    """The metadata, and the tensors in the order of their bytes. Raises ValueError if the file is not whole."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > min(HEADER_BYTES, size):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        metadata, at = header.pop("__metadata__", {}), 8 + length
        entries = []
        for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = (8 + length + offset for offset in facts["data_offsets"])
            entry = Entry(name, facts["dtype"], tuple(facts["shape"]), start, end)
            if start != at or end - start != byte_count(entry.dtype, entry.shape):
                raise ValueError(f"the bytes of {name!r} are not where they belong")
            entries.append(entry)
            at = end
        if at != size:
            raise ValueError(f"it has {size} bytes instead of {at}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); copy or download it again") from error
    return metadata, entries


def write_header(metadata: Mapping[str, str], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds tensors (name, dtype, shape) in this order."""
    header: dict[str, dict] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape in tensors:
        end = at + byte_count(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def byte_count(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor; ValueError for a dtype that is not known here."""
    if dtype not in DTYPES:
        raise ValueError(f"its dtype {dtype} cannot be streamed; there are {', '.join(DTYPES)}")
    count = DTYPES[dtype].itemsize
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{size!r} is no size")
        count *= size
    return count


def make_buffers(largest: int) -> Queue:
    """The buffers, each for one tensor of at most `largest` bytes, at addresses that are as aligned as a model's."""
    buffers: Queue = Queue()
    for _ in range(BUFFERS):
        buffers.put(torch.empty(largest, dtype=torch.uint8).numpy())
    return buffers


def read_ahead(file: Path, entries: Iterable[Entry], buffers: Queue) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
    """Each tensor, its bytes, and the buffer that they lie in, which the caller puts back when it is done with it."""
    ready: Queue = Queue()

    def read() -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                for entry in entries:
                    buffer = buffers.get()
                    if buffer is None:  # the caller gave up
                        return
                    part = buffer[: entry.end - entry.start]
                    _fill(descriptor, part, entry.start, file)
                    ready.put((entry, part, buffer))
            finally:
                os.close(descriptor)
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    reader = Thread(target=read, daemon=True)
    reader.start()
    finished = False
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
        finished = True
    finally:
        if not finished:
            buffers.put(None)
        reader.join()


def rewrite(
    file: Path,
    entries: list[Entry],
    buffers: Queue,
    change: Callable[[Entry, Tensor], Tensor | None],
    out: int,
    at: int,
) -> int:
    """Every tensor of `file`, changed, written to the descriptor `out` one after another from `at` on.

    `change` may work in place; what it makes None of is left out. Returns where the last one ended.
    """
    behind: Queue = Queue()
    failed: list[BaseException] = []

    def write() -> None:
        while (item := behind.get()) is not None:
            data, offset, buffer = item
            try:
                if not failed:
                    _spill(out, data, offset)
            except BaseException as error:
                failed.append(error)
            finally:
                buffers.put(buffer)

    writer = Thread(target=write, daemon=True)
    writer.start()
    try:
        for entry, part, buffer in read_ahead(file, entries, buffers):
            if failed:
                break
            changed = change(entry, entry.of(part))
            if changed is None:
                buffers.put(buffer)
                continue
            data = changed.contiguous().reshape(-1).view(torch.uint8).numpy()
            behind.put((data, at, buffer))
            at += len(data)
    finally:
        behind.put(None)
        writer.join()
    if failed:
        raise failed[0]
    return at


def _fill(descriptor: int, part: np.ndarray, offset: int, file: Path) -> None:
    done = 0
    while done < len(part):
        count = os.preadv(descriptor, [memoryview(part)[done : done + PIECE]], offset + done)
        if count == 0:
            raise ValueError(f"{file} ended while it was read; is something else writing to it?")
        _forget(descriptor, offset + done, count)
        done += count


def _spill(descriptor: int, data: np.ndarray, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done : done + PIECE], offset + done)
    _forget(descriptor, offset, len(data))  # of dirty pages this starts the write


def _forget(descriptor: int, offset: int, count: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)
