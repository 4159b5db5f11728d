"""Fit a LoRA that was trained on the dense model to a pruned one.

A LoRA adds B A to a weight W (o, i), with A (r, i) and B (o, r). Cutting keeps rows K and columns L of W, and
    (W + s B A)[K, L] = W[K, L] + s B[K, :] A[:, L]
so A loses the columns and B the rows that W lost: the result equals fusing first and pruning (by the same plan)
afterwards. The rank stays, and with it the scale s = alpha / r. Where blocks left, their part of the LoRA leaves too,
and the later blocks' part is renumbered. Masked weights keep their shapes: there the LoRA fits as it is, but fusing it
fills the zeros.

Rank-pruned layers are open: their weight became two, and the LoRA would have to be projected.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reference.anatomy.groups import Slice, indices
from reference.history import renamed
from reference.manifest import MANIFEST, skeleton
from reference.models import DENOISERS

# layer, then this: peft, with or without an adapter's name; diffusers; attention processors of diffusers; kohya
ENDS = {
    1: re.compile(r"(.+?)((?:\.lora_A(?:\.\w+)?|\.lora\.down|_lora\.down|\.lora_down|\.down)\.weight)"),
    0: re.compile(r"(.+?)((?:\.lora_B(?:\.\w+)?|\.lora\.up|_lora\.up|\.lora_up|\.up)\.(?:weight|bias))"),
    None: re.compile(r"(.+)(\.alpha)"),  # the rank stays, and with it the scale
}
PREFIXES = (*DENOISERS, "diffusion_model", "base_model.model")
TEXT = ("text_encoder", "lora_te")


def slice_lora(lora_state_dict: Mapping[str, Tensor], folder: str | os.PathLike) -> dict[str, Tensor]:
    """The LoRA for the model or pipeline that `save_pruned` wrote to `folder`, its keys in the style they came in.

    Understood are the keys of peft (`layer.lora_A.weight`), of diffusers (`layer.lora.down.weight`) and of kohya
    (`lora_unet_some_layer.lora_down.weight`, `.alpha`), with diffusers' names of layers; convert other names by
    diffusers' `lora_state_dict` first. Parts of text encoders are handed back as they are.

    Raises:
        ValueError: for a layer that the model does not have, a shape that does not fit it, DoRA and other kinds of
            adapter, and rank-pruned models.
    """
    folder = Path(folder)
    if (folder / "model_index.json").exists():
        fits = {name: _Fit(folder / name) for name in PREFIXES if (folder / name / MANIFEST).exists()}
        dense = {name for name in PREFIXES if (folder / name).is_dir()} - set(fits)
    else:
        fits, dense = {"": _Fit(folder)}, set()
    if not fits:
        raise ValueError(f"{folder} holds no pruned model; a LoRA fits the dense one as it is")
    sliced = {}
    for key, tensor in lora_state_dict.items():
        component = key.split(".")[0]
        if key.startswith(TEXT) or component in dense:
            sliced[key] = tensor
            continue
        found = fits.get(component) or next(iter(fits.values()))
        sliced |= found.carry_over(key, tensor)
    return sliced


class _Fit:
    """One pruned model: what became of each of the dense model's layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model, _ = skeleton(folder)
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.steps = model._pruning_history
        for step in self.steps:
            if step["granularity"] == "rank":
                raise ValueError(f"{folder}: fitting a LoRA to rank-pruned layers is not supported")
        names = {name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")}
        self.left: set[str] = set()  # layers of the dense model that are gone, as prefixes
        for step in reversed(self.steps):
            moved = step.get("moved", {})
            back = {new: old for old, new in moved.items() if new is not None}
            names = {renamed(name, back) for name in names}
            self.left = {renamed(name, back) for name in self.left} | {o for o, new in moved.items() if new is None}
        self.dense_name = {_flat(name): name for name in names}

    def carry_over(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """The key and tensor as they fit the pruned model; nothing if the layer left."""
        path, end, dim = _parts(key, self.folder)
        if dim is not None and tensor.ndim <= dim:
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}; a matrix belongs there")
        prefix, name = self._find(path)
        if name is None:
            return {}
        new = name
        for step in self.steps:
            if dim is not None:
                tensor = _slice(tensor, dim, f"{new}.weight", step, key)
            new = renamed(new, step.get("moved", {}))
        if dim is not None:
            expected = self.shapes[f"{new}.weight"]
            if tensor.shape[dim] != expected[dim]:
                raise ValueError(
                    f"{key} fits a layer of another width: {tensor.shape[dim]} after slicing, where {new}.weight of "
                    f"{self.folder} has {expected[dim]}; is the LoRA made for another model?"
                )
        return {prefix + _like(path.removeprefix(prefix), name, new) + end: tensor}

    def _find(self, path: str) -> tuple[str, str | None]:
        """(what stands before the layer's name, that name in the dense model or None if the layer left)."""
        for prefix in ("", *(f"{p}." for p in PREFIXES), *(f"lora_{p}_" for p in PREFIXES)):
            if not path.startswith(prefix):
                continue
            flat = _flat(path.removeprefix(prefix))
            for spelled in (flat, flat.replace("_processor_", "_"), flat.replace("_processor_to_out", "_to_out_0")):
                if spelled in self.dense_name:
                    return prefix, self.dense_name[spelled]
            if any(flat.startswith(f"{_flat(name)}_") for name in self.left):
                return prefix, None
        raise ValueError(f"the LoRA has a layer {path!r}, which {self.folder} does not have; convert its names first")


def _parts(key: str, folder: Path) -> tuple[str, str, int | None]:
    """(layer with its prefix, rest of the key, dimension of the weight that this tensor spans or None)."""
    for dim, pattern in ENDS.items():
        match = pattern.fullmatch(key)
        if match:
            return match[1], match[2], dim
    raise ValueError(f"{folder}: the key {key!r} is no part of a plain LoRA; DoRA, LoHa and LoKr are not supported")


def _slice(tensor: Tensor, dim: int, parameter: str, step: Mapping, key: str) -> Tensor:
    """A without the columns, or B without the rows, that the step cut out of the parameter."""
    gone = []
    for group, (count, slices) in step.get("cut", {}).items():
        removed = torch.ones(count, dtype=torch.bool)
        removed[step["keep"][group]] = False
        units = removed.nonzero().flatten()
        gone += [indices(Slice(*s), units) for s in slices if s[0] == parameter and s[1] == dim]
    if not gone:
        return tensor
    stays = torch.ones(tensor.shape[dim], dtype=torch.bool)
    gone = torch.cat(gone)
    if int(gone.max()) >= len(stays):
        raise ValueError(f"{key} has {len(stays)} entries where the dense {parameter} has more")
    stays[gone] = False
    return tensor.index_select(dim, stays.nonzero().flatten().to(tensor.device))


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _like(path: str, name: str, new: str) -> str:
    """`path` spells `name`, with dots or underscores; the same with the renumbered block of `new`."""
    while name and new and name[-1] == new[-1]:
        name, new = name[:-1], new[:-1]
    for spelled in (str, _flat):
        if path.startswith(spelled(name)):
            return spelled(new) + path[len(name) :]
    return path
