"""The founding note's API: a pruned pipeline in one call, magnitude pruning in another."""

import os

import torch
from diffusers import DiffusionPipeline
from torch import nn

from reference.engine import prune
from reference.report import Report

# Methods by name -> keywords of `prune`. Iterative without training in between ends where one shot ends when the
# criterion is magnitude; it is listed because rounds are what `recover` needs.
METHODS = {
    "magnitude": {"granularity": "weight"},
    "structured": {"granularity": "neuron"},
    "iterative": {"granularity": "weight", "schedule": "cubic", "rounds": 5},
    "head": {"granularity": "head"},
    "2:4": {"granularity": "2:4"},
    "depth": {"granularity": "block"},
}


def method_keywords(method: str, amount: float) -> dict:
    """Keywords of `reference.prune` for a method by name; 2:4 fixes its own rate. Raises ValueError if unknown."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose {', '.join(METHODS)}")
    return METHODS[method] | ({} if method == "2:4" else {"amount": amount})


def apply_magnitude_pruning(model: nn.Module | DiffusionPipeline, amount: float = 0.3) -> Report:
    """Zero the `amount` smallest weights of every layer inside the repeated blocks, in place."""
    return prune(model, "weight", amount)


def create_pruned_pipeline(
    model_path: str | os.PathLike,
    pruning_amount: float = 0.3,
    method: str = "magnitude",
    dtype: torch.dtype | None = None,
) -> DiffusionPipeline:
    """Load a pipeline, prune its denoisers, hand it back ready to draw.

    Args:
        model_path: `openmoji-mmdit`, the trained model that ships with this package, a diffusers folder, or a hub id.
        pruning_amount: fraction of the units to remove.
        method: `magnitude`, `structured`, `iterative`, `head`, `depth` or `2:4` (which removes half, whatever the
            amount).
        dtype: of the loaded weights.
    """
    keywords = method_keywords(method, pruning_amount)
    pipeline = load_pipeline(model_path, dtype)
    prune(pipeline, **keywords)
    return pipeline


def load_pipeline(model_path: str | os.PathLike, dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """A dense pipeline from the embedded name, a folder or a hub id."""
    from reference.embedded import EMBEDDED, load_embedded  # text encoder and tokenizer: imported when needed

    if str(model_path) in EMBEDDED:
        return load_embedded(str(model_path), dtype)
    return DiffusionPipeline.from_pretrained(model_path, dtype=dtype, use_safetensors=True)
