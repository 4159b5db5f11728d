"""A tiny seeded model and its forward inputs for every denoiser class of diffusers: the ground the engine is tested on.

    model, inputs = make("FluxTransformer2DModel")
    y = output(model, inputs)

Names are class names; `Class:variant` is the same class with other blocks. Every list has at least two blocks, every
attention at least 4 heads where the class allows, and every parameter is drawn anew, so that no zero gate, zero
convolution or adaLN-zero hides a wrong cut. The first input is the one that is denoised: output depends on it.
`tests/test_zoo.py` shows all of this, and fails for a diffusers class that is missing here.
"""

import copy
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """How to build a model, and what its forward takes. Both are deterministic."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]


ZOO: dict[str, Case] = {}
# Denoisers that diffusers defines without exporting them.
HIDDEN = {
    "MultiControlNetUnionModel": "diffusers.models.controlnets.multicontrolnet_union",
    "UNetFlatConditionModel": "diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet",
    "UTransformer2DModel": "diffusers.pipelines.deprecated.unidiffuser.modeling_uvit",
    "WuerstchenDiffNeXt": "diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext",
    "WuerstchenPrior": "diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior",
}
# Parameters drawn smaller by this factor: forward divides by them or takes their exponential; or what is before them
# divides by sums that may be near zero, so that rounding alone would move the output by more than 1e-5.
QUIET = {"WuerstchenPrior": {"out.1.*": 0.1}, "SanaWMTransformer3DModel": {"blocks.*.attn.proj.*": 0.01}}


def make(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """The model in eval mode, every parameter drawn from `seed`, and its inputs."""
    model = ZOO[name].build()
    redraw(model, seed)
    return model.eval(), ZOO[name].inputs()


def output(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """All that forward returns as one flat tensor; calling it again gives the same, caches and own noise included."""
    with seeded(1):
        found = list(tensors(model(**copy.deepcopy(dict(inputs)))))
    return torch.cat([x.flatten().float() for x in found])


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating tensors in nested tuples, lists, dicts and output classes, in order."""
    if isinstance(value, Tensor):
        if value.is_complex():
            value = torch.view_as_real(value)
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew: norm weights around 1, layers so that they keep their input's scale, the rest 0.3."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        norm = "Norm" in type(module).__name__
        layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            mean, std = 0.0, 0.3
            if norm and name in ("weight", "gamma") and parameter.ndim <= 1:
                mean = 1.0
            elif type(module).__name__ in ("MotionConv2d", "MotionLinear"):
                std = 1.0  # forward scales their weights by the fan-in
            elif layer and name == "weight":
                std = 1 / math.sqrt(parameter[0].numel())
            elif parameter.ndim >= 3 and parameter.shape[-2] > 8:  # stacked experts, bare weights
                std = 1 / math.sqrt(parameter.shape[-2])
            parameter.copy_(torch.randn(parameter.shape, generator=g) * std + mean)
    for pattern, factor in QUIET.get(type(model).__name__, {}).items():
        for name, parameter in model.named_parameters():
            if fnmatch(name, pattern):
                parameter.mul_(factor)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of this block come from `seed` and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def case(
    name: str, build: Callable[..., nn.Module] | None = None, **config: Any
) -> Callable[[Callable[[], dict[str, Any]]], Callable[[], dict[str, Any]]]:
    """Register the decorated function as the inputs of `name`; the model is its class, or `build`, with `config`."""

    def register(inputs: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        def built() -> nn.Module:
            with seeded(0):
                return (build or denoiser(name.partition(":")[0]))(**copy.deepcopy(config))

        def given() -> dict[str, Any]:
            with seeded(7):
                return inputs()

        ZOO[name] = Case(built, given)
        return inputs

    return register


def denoiser(name: str) -> type[nn.Module]:
    """The class of that name."""
    return getattr(importlib.import_module(HIDDEN[name]) if name in HIDDEN else diffusers, name)


# What many inputs share. Two samples at different times, so that a mix-up between samples shows.
def draw(*shape: int) -> Tensor:
    """Noise of (2, *shape)."""
    return torch.randn(2, *shape)


def times() -> Tensor:
    """Times out of 1000, as most models count them."""
    return torch.tensor([900.0, 250.0])


def fractions() -> Tensor:
    """Times of models that count them from 0 to 1."""
    return torch.tensor([0.9, 0.25])


def mask(tokens: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """Which tokens are text: all of the first sample's, all but one of the second's."""
    keep = torch.ones(2, tokens, dtype=dtype)
    keep[1, -1] = 0
    return keep


def grid(height: int, width: int, axes: int = 3, first: int = 1) -> Tensor:
    """Position ids (height * width, axes) of an image: row on axis `first`, column on the next."""
    ids = torch.zeros(height, width, axes)
    ids[..., first] = torch.arange(height)[:, None]
    ids[..., first + 1] = torch.arange(width)
    return ids.flatten(0, 1)


def rotary(tokens: int, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (tokens, dim) as callers of rotary models hand them in, each value twice in a row."""
    angles = torch.arange(tokens)[:, None] / 10 ** torch.linspace(0, 2, dim // 2)
    return angles.cos().repeat_interleave(2, 1), angles.sin().repeat_interleave(2, 1)


from tests.zoo import audio, controlnets, image, unets, video  # noqa: E402, F401
