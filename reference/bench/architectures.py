"""Full-size denoisers with random weights, from their published configurations (`configs/*.json`).

Time and memory do not depend on the values of the weights, so these measure both honestly. They say nothing about
quality. The weights are drawn on the device, seeded; no copy of them is ever made on the CPU.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

CONFIGS = Path(__file__).parent / "configs"
Inputs = dict[str, Any]


def names() -> list[str]:
    """Every architecture that has a file."""
    return sorted(file.name.removesuffix(".json") for file in CONFIGS.glob("*.json"))


def read(name: str, tiny: bool = False) -> dict:
    """The file of an architecture. `tiny` shrinks widths, depths and pictures; class and layout stay.

    Raises ValueError for a name without a file.
    """
    if name not in names():
        raise ValueError(f"no architecture {name!r}; there are {', '.join(names())}")
    found = json.loads((CONFIGS / f"{name}.json").read_text())
    shrunk = found.pop("tiny")
    if tiny:
        for part in ("config", "input"):
            found[part] |= shrunk[part]
    return found


def on_meta(architecture: dict, changes: Mapping[str, Any] | None = None) -> nn.Module:
    """The model without weights; buffers such as position tables are real. `changes` go over the config."""
    with init_empty_weights(include_buffers=False):
        return getattr(diffusers, architecture["class"])(**architecture["config"] | dict(changes or {})).eval()


@torch.no_grad()
def build(
    architecture: dict,
    device: str | torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model with weights drawn on `device`: matrices N(0, 1 / inputs), biases N(0, 0.02^2), norm weights 1."""
    model = on_meta(architecture, changes)
    g = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            if parameter.ndim > 1:
                values.normal_(0, parameter[0].numel() ** -0.5, generator=g)
            elif name == "weight":
                values.fill_(1)
            else:
                values.normal_(0, 0.02, generator=g)
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
    return model.to(device=device, dtype=dtype)


def inputs(architecture: dict, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Keywords of one forward at the architecture's resolution, text length and batch, drawn on `device`."""
    g = torch.Generator(device).manual_seed(seed)
    config, shape = architecture["config"], architecture["input"]

    def draw(*size: int) -> Tensor:
        return torch.randn(shape["batch"], *size, generator=g, device=device, dtype=dtype)

    times = torch.full((shape["batch"],), 500.0, device=device)
    return MAKERS[architecture["class"]](config, shape, draw, times)


def _flux(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    height, width = shape["latent"]
    rows, columns = torch.meshgrid(*(torch.arange(n, device=times.device) for n in (height, width)), indexing="ij")
    image_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
    return {
        "hidden_states": draw(height * width, config["in_channels"]),
        "encoder_hidden_states": draw(shape["text"], config["joint_attention_dim"]),
        "pooled_projections": draw(config["pooled_projection_dim"]),
        "timestep": times / 1000,
        "img_ids": image_ids.to(times.dtype),
        "txt_ids": torch.zeros(shape["text"], 3, device=times.device),
        "guidance": torch.full_like(times, 3.5),
    }


def _sd3(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    return {
        "hidden_states": draw(config["in_channels"], *shape["latent"]),
        "encoder_hidden_states": draw(shape["text"], config["joint_attention_dim"]),
        "pooled_projections": draw(config["pooled_projection_dim"]),
        "timestep": times,
    }


def _unet(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    found = {
        "sample": draw(config["in_channels"], *shape["latent"]),
        "timestep": times,
        "encoder_hidden_states": draw(shape["text"], config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        sizes = 6 * config["addition_time_embed_dim"]
        text = draw(config["projection_class_embeddings_input_dim"] - sizes)
        ids = torch.full((shape["batch"], 6), 1024.0, device=times.device, dtype=text.dtype)
        found["added_cond_kwargs"] = {"text_embeds": text, "time_ids": ids}
    return found


def _dit(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    labels = torch.zeros(shape["batch"], dtype=torch.long, device=times.device)
    return {
        "hidden_states": draw(config["in_channels"], *shape["latent"]),
        "timestep": times.long(),
        "class_labels": labels,
    }


def _pixart(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    return {
        "hidden_states": draw(config["in_channels"], *shape["latent"]),
        "encoder_hidden_states": draw(shape["text"], config["caption_channels"]),
        "timestep": times,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _wan(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    return {
        "hidden_states": draw(config["in_channels"], *shape["latent"]),
        "encoder_hidden_states": draw(shape["text"], config["text_dim"]),
        "timestep": times,
    }


def _qwen(config: dict, shape: dict, draw: Callable[..., Tensor], times: Tensor) -> Inputs:
    height, width = shape["latent"]
    return {
        "hidden_states": draw(height * width, config["in_channels"]),
        "encoder_hidden_states": draw(shape["text"], config["joint_attention_dim"]),
        "timestep": times / 1000,
        "img_shapes": [[(1, height, width)]] * shape["batch"],
    }


MAKERS = {
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
    "UNet2DConditionModel": _unet,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "WanTransformer3DModel": _wan,
    "QwenImageTransformer2DModel": _qwen,
}
