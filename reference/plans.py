"""The Plan: which units stay. The one hand-off between select and cut, a file that can be kept, read and shared."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference.depth import check_blocks
from reference.inspection import one_line, read_json
from reference.low_rank import magnitude_weights
from reference.models import as_root, units

FORMAT = "reference-plan/1"
SAMPLE = 4096


class Bits(NamedTuple):
    """What stays of a weight, as a plan stores it: a bit each, packed (ceil(n / 8),) uint8, and the weight's shape."""

    packed: Tensor
    shape: Sequence[int]


@dataclass
class Plan:
    """`keep[group]`: numbers of the kept units (kept,); for `weight` and `N:M` packed bits of the whole matrix."""

    granularity: str
    keep: dict[str, Tensor]
    shapes: dict[str, list[int]]  # of each group: [units], or the weight's shape
    digest: str  # of the model that the plan was made for
    request: dict = field(default_factory=dict)  # the keywords of `plan`, for the record
    skipped: dict[str, str] = field(default_factory=dict)  # layer -> why it stays whole
    # Replacements in dense shape, written before the cut; for `rank` the bases that the cut projects on, and the means.
    weights: dict[str, Tensor] = field(default_factory=dict)
    approximate: dict[str, str] = field(default_factory=dict)  # group -> why cutting it is not exact

    def removed(self, name: str) -> Tensor:
        """Booleans of shape `shapes[name]`, True where a unit of the group goes."""
        if self.by_bits:
            return unpack(self.keep[name], self.shapes[name]).logical_not_()
        gone = torch.ones(self.shapes[name], dtype=torch.bool)
        gone[self.keep[name]] = False
        return gone

    @property
    def by_bits(self) -> bool:
        """Whether single weights go, so that `keep` is packed bits."""
        return self.granularity == "weight" or ":" in self.granularity

    def kept(self, name: str) -> int:
        """How many units of the group stay."""
        return int(np.bitwise_count(self.keep[name].numpy()).sum()) if self.by_bits else len(self.keep[name])

    @classmethod
    def of(cls, granularity: str, removed: Mapping[str, Tensor | Bits], **facts) -> "Plan":
        """From booleans, True where a unit goes: (units,) of each group, or the weight's shape; or from `Bits`."""
        plan = cls(granularity, {}, {n: list(gone.shape) for n, gone in removed.items()}, **facts)
        for name, gone in removed.items():
            if isinstance(gone, Bits):
                plan.keep[name] = gone.packed
            else:
                plan.keep[name] = pack(~gone) if plan.by_bits else (~gone).nonzero().flatten()
        return plan

    @classmethod
    def from_removed(cls, model: nn.Module, granularity: str, removed: Mapping[str, Sequence[int]]) -> "Plan":
        """A plan by hand: group name -> numbers of the units to remove.

        Flat indices for `weight`; for `rank` the directions by magnitude, 0 being that of the largest singular value.
        """
        groups = {group.name: group for group in units(model, granularity)}
        masks = {}
        for name, numbers in removed.items():
            if name not in groups:
                raise ValueError(f"no group {name!r} of granularity {granularity!r}; groups: {some(groups)}")
            count = groups[name].count
            wrong = [n for n in numbers if not 0 <= n < count]
            if wrong:
                raise ValueError(f"{name} has units 0 to {count - 1}, not {wrong[0]}")
            gone = torch.zeros(count, dtype=torch.bool)
            gone[list(numbers)] = True
            if gone.all():
                raise ValueError(f"{name}: removing all {count} units leaves nothing of the layer; keep at least one")
            if granularity == "weight" or ":" in granularity:
                gone = gone.reshape(as_root(model).get_submodule(name).weight.shape)
            masks[name] = gone
        if granularity == "block":
            check_blocks(as_root(model), masks)
        root, request = as_root(model), {"granularity": granularity, "by": "hand"}
        weights = magnitude_weights(root, masks) if granularity == "rank" else {}
        return cls.of(granularity, masks, digest=digest(root), request=request, weights=weights)

    def save(self, folder: str | os.PathLike) -> None:
        """Write plan.json and plan.safetensors into `folder`, which is created."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"keep.{name}": kept for name, kept in self.keep.items()}
        tensors |= {f"weights.{name}": tensor.contiguous() for name, tensor in self.weights.items()}
        facts = {k: v for k, v in vars(self).items() if k not in ("keep", "weights")}
        facts |= {"format": FORMAT, "weights": sorted(self.weights)}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            save_file(tensors, Path(scratch) / "plan.safetensors")
            (Path(scratch) / "plan.json").write_text(json.dumps(facts, indent=1) + "\n")
            for name in ("plan.safetensors", "plan.json"):
                os.replace(Path(scratch) / name, folder / name)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Plan":
        """Read what `save` wrote. Raises ValueError, with the file, if it is something else or cut short."""
        folder, file = Path(folder), Path(folder) / "plan.safetensors"
        facts = read_json(folder / "plan.json")
        if facts.pop("format", None) != FORMAT:
            raise ValueError(f"{folder / 'plan.json'} is not a plan of format {FORMAT}")
        try:
            tensors = load_file(file)
            facts["keep"] = {name: tensors[f"keep.{name}"] for name in facts["shapes"]}
            facts["weights"] = {name: tensors[f"weights.{name}"] for name in facts["weights"]}
            plan = cls(**facts)
            wrong = [name for name in plan.keep if not plan._is_sound(name)]
        except (SafetensorError, OSError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} and plan.json are no whole plan ({one_line(error)}); copy both again") from error
        if wrong:
            raise ValueError(f"{file}: what stays of {wrong[0]} does not fit its shape {plan.shapes[wrong[0]]}")
        return plan

    def _is_sound(self, name: str) -> bool:
        """Whether `keep` of a group is what its shape asks for: enough bits, or ascending numbers of its units."""
        kept, shape = self.keep[name], self.shapes[name]
        if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape) or kept.ndim != 1:
            return False
        if self.by_bits:
            return kept.dtype == torch.uint8 and len(kept) == (math.prod(shape) + 7) // 8
        in_range = len(kept) > 0 and kept[0] >= 0 and kept[-1] < math.prod(shape)
        return kept.dtype == torch.int64 and bool(in_range and (kept.diff() > 0).all())


def pack(mask: Tensor) -> Tensor:
    """Booleans as bits, 8 to a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`. Raises ValueError if there are too few bits for `shape`."""
    count = int(np.prod(shape))
    if len(bits) != (count + 7) // 8:
        raise ValueError(f"{len(bits)} bytes of mask do not make shape {tuple(shape)}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(bool).reshape(shape))


def digest(root: nn.Module) -> str:
    """Fingerprint of a model: names, shapes, dtypes of all parameters and some 4,096 evenly spaced values of each."""
    fingerprint = hashlib.sha256()
    for name, parameter in root.named_parameters():
        fingerprint.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLE)]
        fingerprint.update(sample.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return fingerprint.hexdigest()


def some(names: Iterable[str]) -> str:
    """A few names for an error message."""
    names = list(names)
    return ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")
