"""What pruning is combined with: 8-bit weights, fewer steps, feature caching. Each works on a pipeline in place.

    weights int8   W_oi -> s_o round(W_oi / s_o),  s_o = max_i |W_oi| / 127: one scale an output channel, symmetric,
                   every Linear and convolution. Arithmetic in fp32, so the error is that of storage. 0 stays 0.
    weights fp8    float8 e4m3 without scales, by diffusers' `enable_layerwise_casting`, which spares norms (the
                   modulation of an MMDiT with them), embeddings, the first and last projection; arithmetic in fp32.
    steps          fewer steps, by the model's own scheduler or by another class with the same settings.
    cache_every    the deep part of the network is computed at every n-th step only; between them it answers as before.
                   UNet: everything below the outermost level (Ma et al. 2023, DeepCache, arXiv 2312.00858).
                   MMDiT: all blocks but the first and last add what they added at the latest computed step (Chen et al.
                   2024, Delta-DiT, arXiv 2406.01125: offsets instead of features).
diffusers' own caching hooks know transformer blocks only and skip by a threshold on the whole batch, so a picture would
depend on its neighbours; hence the few lines here, the same for both models.
"""

import diffusers
import torch
from safetensors.torch import save
from torch import Tensor, nn

from reference.bench import measure
from reference.embedded.pipeline import EmbeddedPipeline
from reference.precision import Precision, quantise

LEVELS = 127


def combine(pipeline: EmbeddedPipeline, partner: dict, sampler: dict) -> dict:
    """Add a partner to a pipeline; the sampler's settings with it. ValueError if the pipeline cannot have it."""
    sampler = sampler | {name: partner[name] for name in ("steps",) if name in partner}
    if "scheduler" in partner:
        kind = getattr(diffusers, partner["scheduler"])
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    if partner.get("weights") == "int8":
        for layer in _layers(pipeline.denoiser):
            integers, scale = int8(layer.weight)
            layer.weight.data = integers.float() * scale
    if partner.get("weights") == "fp8":
        quantise(pipeline, Precision(torch.float32, "storage", ""))
    if every := partner.get("cache_every"):
        if sampler["steps"] % every:
            raise ValueError(f"caching every {every} steps needs a number of steps that it divides, not {sampler}")
        cache(pipeline.denoiser, every)
    return sampler


def costs(pipeline: EmbeddedPipeline, partner: dict, sampler: dict, dtype: torch.dtype) -> dict[str, int]:
    """Of one guided picture: calls of the denoiser and multiply-accumulates; and bytes of a file of its weights.

    The file holds what a partner stores: int8 with fp32 scales, or float8, and everything else in `dtype`.
    """
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = pipeline.denoiser.register_forward_hook(count)
    with measure.flop_counter() as counter:
        measure.draw(pipeline, ["red heart"], measure.noise(pipeline, 1, [0]), **sampler)
    handle.remove()
    tensors = {name: w if w.dtype == torch.float8_e4m3fn else w.to(dtype) for name, w in _weights(pipeline).items()}
    if partner.get("weights") == "int8":
        names = {id(module.weight): name for name, module in pipeline.denoiser.named_modules() if _is_layer(module)}
        for layer in _layers(pipeline.denoiser):
            name = names[id(layer.weight)]
            tensors[f"{name}.weight"], tensors[f"{name}.scale"] = int8(layer.weight)
    stored = len(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    operations = sum(counter.get_flop_counts()[type(pipeline.denoiser).__name__].values())
    return {"calls": calls, "macs_per_picture": operations // 2, "weight_bytes": stored}


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(integers, scale) of a weight (o, ...); the scale has shape (o, 1, ...)."""
    scale = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / LEVELS
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight.detach() / scale).round().to(torch.int8), scale


def cache(denoiser: nn.Module, every: int) -> None:
    """Let the deep part answer as at the latest call whose number `every` divides, counted from now on."""
    calls = -1

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    denoiser.register_forward_pre_hook(count)
    is_fresh = lambda: calls % every == 0  # noqa: E731
    if hasattr(denoiser, "mid_block"):
        for module in (*denoiser.down_blocks[1:], denoiser.mid_block, *denoiser.up_blocks[:-1]):
            _answer_again(module, is_fresh)
    else:
        for block in denoiser.transformer_blocks[1:-1]:
            _add_again(block, is_fresh)


def _answer_again(module: nn.Module, is_fresh) -> None:
    computed, kept = module.forward, []

    def forward(*args, **keywords):
        if is_fresh():
            kept[:] = [computed(*args, **keywords)]
        return kept[0]

    module.forward = forward


def _add_again(block: nn.Module, is_fresh) -> None:
    computed, added = block.forward, []

    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor, **keywords):
        before = encoder_hidden_states, hidden_states
        if is_fresh():
            after = computed(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **keywords)
            added[:] = [x_out - x_in for x_in, x_out in zip(before, after, strict=True)]
            return after
        return tuple(x_in + more for x_in, more in zip(before, added, strict=True))

    block.forward = forward


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _layers(denoiser: nn.Module) -> list[nn.Module]:
    return [module for module in denoiser.modules() if _is_layer(module)]


def _weights(pipeline: EmbeddedPipeline) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in pipeline.denoiser.named_parameters()}
