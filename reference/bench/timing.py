"""Time and memory of one call, by CUDA events on a GPU and by the clock on a CPU; two calls in turns, their ratio."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

BOOTSTRAPS = 2000
Call = Callable[[], object]


def milliseconds(call: Call, device: str) -> float:
    """One call. On CUDA between two events, so that launching counts and the host's clock does not."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def paired(dense: Call, pruned: Call, device: str, warmup: int, repeats: int) -> dict:
    """Milliseconds of both, in turns so that a busy machine or a warm chip slows both alike; and their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(warmup + repeats):
        for call, found in zip((dense, pruned), times, strict=True):
            spent = milliseconds(call, device)
            if turn >= warmup:
                found.append(spent)
    return compared(*times) | {"warmup": warmup, "repeats": repeats}


def alone(call: Call, device: str, warmup: int, repeats: int) -> list[float]:
    """Milliseconds of every call after the warm-up."""
    return [milliseconds(call, device) for _ in range(warmup + repeats)][warmup:]


def compared(dense: Sequence[float], pruned: Sequence[float], in_turns: bool = True) -> dict:
    """Both spreads, and the ratio of the medians with a bootstrap interval: over turns, else over either's calls."""
    turns, draws = np.array([dense, pruned]), np.random.default_rng(0)
    again = draws.integers(turns.shape[1], size=(BOOTSTRAPS, turns.shape[1]))
    other = again if in_turns else draws.integers(turns.shape[1], size=again.shape)
    ratios = np.median(turns[0][again], axis=1) / np.median(turns[1][other], axis=1)
    return {
        "dense": spread(turns[0]),
        "pruned": spread(turns[1]),
        "speedup": float(np.median(turns[0]) / np.median(turns[1])),
        "speedup_ci95": np.quantile(ratios, [0.025, 0.975]).tolist(),
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def memory(model: nn.Module, call: Call, device: str) -> dict[str, int]:
    """Bytes of the model's own tensors, and the most that one call takes on top of them (CUDA only).

    `peak_bytes` is their sum: what a GPU needs for this model, whatever else lies on it while it is measured.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weights = sum(_bytes(t) for t in tensors.values())
    if device != "cuda":
        call()
        return {"weight_bytes": weights}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    return {"weight_bytes": weights, "activation_bytes": extra, "peak_bytes": weights + extra}


def _bytes(tensor: torch.Tensor) -> int:
    """Of a tensor; of a packed 2:4 one, what its parts take."""
    parts = [getattr(tensor, name, None) for name in ("packed", "meta")]
    parts = [part for part in parts if isinstance(part, torch.Tensor)] or [tensor]
    return sum(part.numel() * part.element_size() for part in parts)
