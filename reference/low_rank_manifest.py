"""How `manifest.py` records low-rank layers: which Linears of the dense model they replace, and who shares a basis.

    "low_rank": [{"layers": ["transformer_blocks.0.norm1.linear", ...], "rank": 16}, ...]

Basis and mean of a group are stored once, under the name of its first layer.
"""

from pathlib import Path

import torch
from torch import nn

from reference.anatomy.modulation import LowRankLinear, put, shared_by


def record(model: nn.Module) -> list[dict]:
    """The groups of low-rank layers of a model."""
    return [{"layers": layers, "rank": len(model.get_submodule(layers[0]).basis)} for layers in shared_by(model)]


def rebuild(twin: nn.Module, low_rank: list[dict], file: Path) -> None:
    """Replace the Linears of a dense twin without memory. Raises ValueError, naming `file`, for what does not fit."""
    if not isinstance(low_rank, list) or not all(isinstance(group, dict) for group in low_rank):
        raise ValueError(f"{file}: low_rank is no list of groups")
    modules = dict(twin.named_modules())
    for group in low_rank:
        layers, rank = group.get("layers"), group.get("rank")
        if not isinstance(layers, list) or not layers or not all(isinstance(name, str) for name in layers):
            raise ValueError(f"{file}: low_rank names {layers!r} instead of layers")
        # Taken out once used, so that no layer is replaced twice.
        dense = [modules.pop(name, None) for name in layers]
        if any(not isinstance(d, nn.Linear) or d.in_features != dense[0].in_features for d in dense):
            raise ValueError(f"{file}: the layers of {layers[0]!r} are not Linears of one width in config.json's model")
        d = dense[0].in_features
        if type(rank) is not int or not 0 < rank < d:
            raise ValueError(f"{file}: rank {rank!r} of {layers[0]} does not fit its {d} inputs")
        basis, mean = (nn.Parameter(torch.empty(shape, device="meta")) for shape in ((rank, d), (d,)))
        for name, layer in zip(layers, dense, strict=True):
            weight_or = torch.empty(layer.out_features, rank, device="meta")
            bias_o = None if layer.bias is None else torch.empty(layer.out_features, device="meta")
            put(twin, name, LowRankLinear(weight_or, bias_o, basis, mean))


def stored_elsewhere(low_rank: list[dict]) -> dict[str, str]:
    """Tensors that another name stores: their name -> that of the group's first layer."""
    return {
        f"{layer}.{part}": f"{group['layers'][0]}.{part}"
        for group in low_rank
        for layer in group["layers"][1:]
        for part in ("basis", "mean")
    }
