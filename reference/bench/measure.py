"""The measurements: what is left, how fast it is, how far it draws from the dense model. p counts pictures."""

import copy
import itertools
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import reference
from reference.bench import metrics, timing
from reference.checkpoint import STORAGES, load_pruned, save_pruned
from reference.embedded.pipeline import EmbeddedPipeline
from reference.manifest import KEPT
from reference.plans import Plan


def guided_inputs(pipeline: EmbeddedPipeline, pictures: int) -> dict[str, Tensor]:
    """Inputs of one guided denoising step for so many pictures: twice as many samples."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        hidden, pooled = pipeline.encode_prompt([""] * pictures + ["red heart"] * pictures)
    config = pipeline.denoiser.config
    x = torch.randn(2 * pictures, config.in_channels, config.sample_size, config.sample_size, generator=g)
    times = torch.full((2 * pictures,), 500.0)
    return pipeline.inputs(x.to(hidden.device), times.to(hidden.device), hidden, pooled)


def noise(pipeline: EmbeddedPipeline, prompts: int, seeds: Sequence[int]) -> Tensor:
    """Starting noise (s * p, channels, size, size): all prompts from the first seed, then from the next."""
    config = pipeline.denoiser.config
    shape = (prompts, config.in_channels, config.sample_size, config.sample_size)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def count(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, int]:
    """Parameters, those that are not zero, and multiply-accumulates of one call with `inputs`.

    `macs` is what a dense kernel executes, zeros included; `macs_nonzero` leaves out products with zero weights.
    """
    skipped = 0

    def add_zeros(layer: nn.Module, _: tuple, output: Tensor) -> None:
        nonlocal skipped
        positions = output.numel() // layer.weight.shape[0]
        skipped += positions * int((layer.weight == 0).sum())

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(add_zeros) for layer in layers]
    with torch.no_grad(), flop_counter() as counter:
        model(**inputs)
    for handle in handles:
        handle.remove()
    macs = counter.get_total_flops() // 2
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "nonzero": sum(int(torch.count_nonzero(p)) for p in model.parameters()),
        "macs": macs,
        "macs_nonzero": macs - skipped,
    }


def flop_counter() -> FlopCounterMode:
    """Counts operations, two a multiply-accumulate; of attention on a CPU too, which torch's table leaves out."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    count_attention = lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)  # noqa: E731
    return FlopCounterMode(display=False, custom_mapping={attention: count_attention})


def bytes_on_disk(model: nn.Module, dtype: torch.dtype) -> dict[str, int]:
    """Size of the weight file of `save_pruned`, of the same file deflated (zlib level 6), and of the packed one.

    `bytes_in_memory`: what parameters and buffers take once the packed file is loaded.
    """
    stored, model = {}, copy.deepcopy(model).to(dtype)
    with TemporaryDirectory() as scratch:
        for storage in STORAGES:
            folder = Path(scratch) / storage
            save_pruned(model, folder, storage)
            (file,) = set(folder.glob("*.safetensors")) - {folder / KEPT}
            stored[storage] = file.read_bytes()
        loaded = load_pruned(Path(scratch) / "sparse")
    return {
        "bytes": len(stored["dense"]),
        "bytes_deflated": len(zlib.compress(stored["dense"], 6)),
        "bytes_sparse": len(stored["sparse"]),
        "bytes_in_memory": sum(tensor.nbytes for tensor in [*loaded.parameters(), *loaded.buffers()]),
    }


def prune_timed(pipeline: EmbeddedPipeline, keywords: dict, recover: Callable | None) -> dict[str, float]:
    """Prune in place; share of units removed, seconds spent pruning and, apart, recovering. No keywords: dense.

    The clock also runs while a busy machine does something else; `recovery_cpu_seconds` counts the processor's time.
    """
    spent = worked = 0.0

    def timed(model: EmbeddedPipeline, round_: int) -> None:
        nonlocal spent, worked
        start, began = time.monotonic(), time.process_time()
        recover(model, round_)
        spent, worked = spent + time.monotonic() - start, worked + time.process_time() - began

    start = time.monotonic()
    rate = reference.prune(pipeline, **keywords, recover=timed if recover else None).unit_rate if keywords else 0.0
    seconds = {"prune_seconds": time.monotonic() - start - spent, "recovery_seconds": spent}
    return {"unit_rate": rate} | seconds | ({"recovery_cpu_seconds": worked} if recover else {})


def latency(
    dense: nn.Module, pruned: nn.Module, inputs: dict[str, Tensor], warmup: int, repeats: int, threads: int
) -> dict:
    """Milliseconds of one call where the models lie, in turns so that a busy machine slows both alike.

    The speed-up is the ratio of the medians; its interval is a bootstrap over the paired turns.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    device = next(dense.parameters()).device.type
    with torch.inference_mode():
        times = timing.paired(lambda: dense(**inputs), lambda: pruned(**inputs), device, warmup, repeats)
    torch.set_num_threads(before)
    return times | {"threads": threads}


class Trajectory(NamedTuple):
    """What the dense model saw and said on its way from noise to pictures; the yardstick of every pruned model."""

    pictures: Tensor  # (s * p, 3, size, size) in [0, 1] on the CPU: all prompts from the first seed, then the next
    seeds: int  # s
    calls: list[tuple[dict, Tensor]]  # keywords of every call of the denoiser, and its output, where the model lies
    guidance: float


def record(
    pipeline: EmbeddedPipeline, prompts: list[str], noise: Tensor, steps: int, guidance: float, seeds: int = 1
) -> Trajectory:
    """Draw and keep every call of the denoiser; `prompts` and `noise` are those of all seeds."""
    calls: list[tuple[dict, Tensor]] = []
    handle = pipeline.denoiser.register_forward_hook(
        lambda _, __, keywords, output: calls.append((keywords, output[0])), with_kwargs=True
    )
    pictures = draw(pipeline, prompts, noise, steps, guidance)
    handle.remove()
    return Trajectory(pictures, seeds, calls, guidance)


def draw(pipeline: EmbeddedPipeline, prompts: list[str], noise: Tensor, steps: int, guidance: float) -> Tensor:
    """Pictures (p, 3, size, size) in [0, 1] on the CPU; ValueError if one holds NaN, which no metric would survive."""
    pictures = pipeline(prompts, steps, guidance, latents=noise, output_type="pt").images.cpu()
    broken = len(pictures) - int(pictures.isfinite().flatten(1).all(1).sum())
    if broken:
        raise ValueError(f"{broken} of {len(pictures)} pictures hold values that are not finite")
    return pictures


def prediction_error(model: nn.Module, dense: Trajectory, every: int = 2) -> dict:
    """Relative error of the guided prediction at every second (or so) point of the dense model's trajectory, a picture.

    err_p = sqrt( sum_t ||v_pruned - v_dense||^2 / sum_t ||v_dense||^2 )
    """
    wrong, total = metrics.prediction_errors(model, dense.calls[::every], dense.guidance)
    return metrics.interval((wrong.sum(0) / total.sum(0)).sqrt().reshape(dense.seeds, -1))


def psnr(pictures: Tensor, dense: Trajectory) -> dict:
    """Peak signal-to-noise ratio in dB to the dense pictures, mean over pictures; identical ones count 100 dB."""
    pair = (x.unflatten(0, (dense.seeds, -1)) for x in (pictures, dense.pictures))
    return metrics.interval(metrics.psnr(*pair))


def agreement(plans: Sequence[Plan]) -> dict:
    """Whether plans for one model remove the same units: mean over the groups that lose any, 95 % bootstrap over them.

        agreement_g = mean over pairs of plans i, j of |R_i and R_j| / |R_i or R_j|,   R_i what i removes of group g

    1 if all remove the same; units drawn at random agree by about r / (2 - r) at rate r.
    """
    of_groups = []
    for name in plans[0].shapes:
        removed = [plan.removed(name) for plan in plans]
        pairs = [(i & j, i | j) for i, j in itertools.combinations(removed, 2)]
        if all(either.any() for _, either in pairs):
            of_groups.append(np.mean([float(both.sum() / either.sum()) for both, either in pairs]))
    found = metrics.interval(np.array(of_groups))
    return {name: found[name] for name in ("value", "ci95", "n")}
