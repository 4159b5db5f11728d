"""What a pipeline tells its denoiser about a prompt, and how a picture becomes the denoiser's input.

Every family has its own keywords: hidden states and pooled ones, sizes, position ids, embedded guidance. They are read
off the first call of the pipeline's own run, which ends there, before the denoiser computes:

    keywords of SD, SDXL, SD3, FLUX, ...  = what pipeline(captions, one step, no guidance) hands over
    time of a call                        = scale * t,  scale = the time it was given / the scheduler's first t
    input                                 = z, the VAE's latents (z - shift) * scaling, perhaps packed (FLUX)

Not supported, and refused in one line: video, several denoisers, pipelines without prompt or VAE, VAEs that normalise
channel by channel (Wan, Qwen-Image), and times that do not grow with the scheduler's (Lumina, Z-Image).

Shapes: b pictures; c, h, w channels and size of the latents.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from reference.calibration import TIMES, forward_keywords
from reference.embedded.objective import check_scheduler
from reference.embedded.pipeline import EmbeddedPipeline
from reference.engine import denoisers_of

PACKING = ["latents", "batch_size", "num_channels_latents", "height", "width"]  # as the pipeline of FLUX.1 packs


class _Seen(Exception):
    """Ends a pipeline's run at the first call of its denoiser."""


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The one denoiser of a pipeline that can be trained here. Raises ValueError for what is not supported."""
    name = type(pipeline).__name__
    if not isinstance(pipeline, DiffusionPipeline):
        raise ValueError(f"a lone {name} cannot be trained: prompts need its pipeline; prune and save the pipeline")
    found = list(denoisers_of(pipeline).values())
    if len(found) > 1:
        raise ValueError(f"{name} has {len(found)} denoisers; recovery trains pipelines with one")
    if "prompt" not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(f"{name} takes no prompt; recovery trains text-to-image pipelines")
    check_scheduler(pipeline.scheduler)
    if not isinstance(pipeline, EmbeddedPipeline):
        vae = getattr(pipeline, "vae", None)
        if vae is None or not hasattr(vae.config, "scaling_factor"):
            raise ValueError(f"{name} has no VAE with a scaling factor; recovery trains latent pipelines with one")
        if getattr(vae.config, "latents_mean", None) is not None:
            raise ValueError(f"the VAE of {name} normalises channel by channel, which recovery does not know")
    return found[0]


def picture_size(pipeline: DiffusionPipeline) -> tuple[int, int]:
    """Height and width in pixels that the pipeline draws at when it is not told."""
    if isinstance(pipeline, EmbeddedPipeline):
        size = pipeline.unfold(torch.empty(1, pipeline.denoiser.config.in_channels, 1, 1)).shape[-1]
        size *= pipeline.denoiser.config.sample_size
        return size, size
    size = getattr(pipeline, "default_sample_size", None) or denoiser_of(pipeline).config.get("sample_size")
    if size is None:
        raise ValueError(f"{type(pipeline).__name__} does not say at which size it draws; give --size")
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def latent_shape(pipeline: DiffusionPipeline, pictures: int, height: int, width: int) -> torch.Size:
    """(b, c, h, w) of the latents of some pictures."""
    if isinstance(pipeline, EmbeddedPipeline):
        return pipeline.fold(torch.empty(pictures, 3, height, width, device="meta")).shape
    factor = pipeline.vae_scale_factor
    return torch.Size((pictures, pipeline.vae.config.latent_channels, height // factor, width // factor))


@torch.no_grad()
def encode(pipeline: DiffusionPipeline, pictures: Tensor, noise: Tensor | None) -> Tensor:
    """Pictures (b, 3, height, width) in [-1, 1] -> clean latents z (b, c, h, w), fp32.

    `noise`, of the latents' shape, chooses a sample of the VAE's posterior; the embedded pipeline folds pixels instead.
    """
    if isinstance(pipeline, EmbeddedPipeline):
        return pipeline.fold(pictures).to(pipeline.device)
    vae = pipeline.vae
    posterior = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist
    z = posterior.mean.float() + posterior.std.float() * noise.to(vae.device)
    return (z - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def pack(pipeline: DiffusionPipeline, x_bchw: Tensor) -> Tensor:
    """Latents as the denoiser takes them: FLUX makes a token of 2 x 2 positions, (b, h w / 4, 4 c)."""
    packing = getattr(pipeline, "_pack_latents", None)
    if packing is None:
        return x_bchw
    if list(inspect.signature(packing).parameters) != PACKING:
        raise ValueError(f"{type(pipeline).__name__} packs its latents in a way that recovery does not know")
    return packing(x_bchw, *x_bchw.shape)


class Conditioned(NamedTuple):
    """The call that a pipeline would make for some captions: `keywords` of the denoiser, and which of them change."""

    keywords: dict[str, Any]
    x: str
    time: str
    scale: float

    def at(self, x: Tensor, timestep_b: Tensor) -> dict[str, Any]:
        """The keywords for another input and other times, of the scheduler's counting."""
        time = timestep_b if self.scale == 1 else timestep_b * self.scale
        return self.keywords | {self.x: x, self.time: time.to(x.device), "return_dict": False}


def condition(
    pipeline: DiffusionPipeline, denoiser: nn.Module, captions: Sequence[str], height: int, width: int
) -> Conditioned:
    """Read the keywords for `captions` off the pipeline's own first call, which the denoiser never sees."""

    def seen(_: nn.Module, args: tuple, keywords: dict) -> None:
        raise _Seen(forward_keywords(denoiser, args, keywords))

    given = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": height, "width": width, "output_type": "latent"}
    takes = inspect.signature(pipeline.__call__).parameters
    handle = denoiser.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        generator = torch.Generator().manual_seed(0)  # of noise that nobody looks at; the global one stays as it is
        pipeline(prompt=list(captions), generator=generator, **{k: v for k, v in given.items() if k in takes})
    except _Seen as call:
        keywords: dict[str, Any] = call.args[0]
    else:
        raise ValueError(f"{type(pipeline).__name__} draws without calling its denoiser's forward")
    finally:
        handle.remove()

    name = type(pipeline).__name__
    x, time = next(iter(keywords)), next((key for key in TIMES if keywords.get(key) is not None), None)
    shape = pack(pipeline, torch.empty(latent_shape(pipeline, len(captions), height, width), device="meta")).shape
    if time is None or tuple(keywords[x].shape) != tuple(shape):
        raise ValueError(
            f"{name} gives its denoiser {x} of shape {tuple(keywords[x].shape)}, its VAE makes {tuple(shape)} of "
            f"{len(captions)} pictures with {width} x {height} pixels: give another --size, or it is not supported"
        )
    first, told = float(pipeline.scheduler.timesteps[0]), float(torch.as_tensor(keywords[time]).flatten()[0])
    scale = 1.0 if told == first else told / first if first else 0.0
    if scale <= 0:
        raise ValueError(f"{name} tells its denoiser the time {told:g} for {first:g}, a rule that is not supported")
    return Conditioned(_as(keywords, next(denoiser.parameters()).dtype), x, time, round(scale, 6))


def _as(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, also those inside dicts and lists, in the denoiser's dtype."""
    if isinstance(value, dict):
        return {key: _as(part, dtype) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
