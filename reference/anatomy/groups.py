"""What a rule answers with, and the only two things that are ever done to it: mask units, cut units."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.threshold import PATTERNS, bits


class Slice(NamedTuple):
    """Unit u spans indices start + u*width ... start + (u+1)*width - 1 of dimension `dim` of a parameter.

    `masked=False`: goes with a cut unit, yet a mask leaves it alone (the weight of a norm whose input is zero already).
    """

    parameter: str
    dim: int
    start: int
    width: int
    masked: bool = True


class Group(NamedTuple):
    """Units that compete: the heads of an attention, the neurons of a feed-forward.

    attributes   (module name, attribute, how much of it one unit accounts for): sizes that forward reads
    rms_norms    (module name, attribute of its epsilon): RMS norms whose statistics span all units
    response_norms  modules x -> gamma * x * |x|_2 / mean(|x|_2) + beta + x, whose mean spans all units
    approximate  why cutting is not exactly masking, or ""
    refused      why these units cannot be removed at all, or ""
    """

    name: str
    component: str
    count: int
    slices: tuple[Slice, ...]
    attributes: tuple[tuple[str, str, int], ...] = ()
    rms_norms: tuple[tuple[str, str], ...] = ()
    approximate: str = ""
    refused: str = ""
    response_norms: tuple[str, ...] = ()


def indices(s: Slice, units: Tensor) -> Tensor:
    """Indices along `s.dim` that the given unit numbers (n,) span, (n * width,)."""
    return (s.start + units[:, None] * s.width + torch.arange(s.width)).flatten()


def group_parameters(root: nn.Module, group: Group) -> int:
    """How many weights belong to the group's units; where two slices of a matrix cross, once."""
    spanned: dict[str, Tensor] = {}
    everything = torch.arange(group.count)
    for s in group.slices:
        parameter = root.get_parameter(s.parameter)
        seen = spanned.setdefault(s.parameter, torch.zeros(parameter.shape, dtype=torch.bool))
        seen.index_fill_(s.dim, indices(s, everything), True)
    return sum(int(seen.sum()) for seen in spanned.values())


@torch.no_grad()
def mask_units(root: nn.Module, removed: Mapping[Group, Tensor]) -> None:
    """Write +0.0 over all that the removed units (numbers, (n,)) span: producers' rows and bias, consumers' columns."""
    for group, units in removed.items():
        for s in group.slices:
            if s.masked:
                parameter = root.get_parameter(s.parameter)
                parameter.index_fill_(s.dim, indices(s, units).to(parameter.device), 0)


@torch.no_grad()
def cut_units(root: nn.Module, removed: Mapping[Group, Tensor]) -> None:
    """Take the removed units (numbers, (n,)) out of every parameter and shrink the sizes that forward reads."""
    kept = staying(root, removed)
    for group, units in removed.items():
        if len(units):
            for module, attribute, each in group.attributes:
                owner = root.get_submodule(module)
                setattr(owner, attribute, getattr(owner, attribute) - each * len(units))
            left = group.count - len(units)
            for name, factor in norm_factors(group, left).items():
                root.get_parameter(name).mul_(factor)
            for module, eps in group.rms_norms:
                norm = root.get_submodule(module)
                setattr(norm, eps, getattr(norm, eps) * group.count / left)
    for (name, dim), stays in kept.items():
        old = root.get_parameter(name)
        shrunk = compressed(old.detach(), dim, stays)
        _replace(root, old, nn.Parameter(shrunk, requires_grad=old.requires_grad))


def staying(root: nn.Module, removed: Mapping[Group, Tensor]) -> dict[tuple[str, int], Tensor]:
    """(parameter, dimension) -> True where an index stays, of all parameters that lose some to the removed units."""
    gone: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group, units in removed.items():
        if len(units):
            for s in group.slices:
                gone[s.parameter, s.dim].append(indices(s, units))
    kept = {}
    for (name, dim), parts in gone.items():
        stays = torch.ones(root.get_parameter(name).shape[dim], dtype=torch.bool)
        stays[torch.cat(parts)] = False
        kept[name, dim] = stays
    return kept


def norm_factors(group: Group, left: int) -> dict[str, float]:
    """Parameter -> factor that keeps norms over all units exact when `left` of them, n of N, are left.

    An RMS norm divides by sqrt(S/N + eps); S, the sum of squares, is that of those that are left, as the rest is zero:
        x / sqrt(S/N + eps) = sqrt(N/n) * x / sqrt(S/n + eps * N/n)
    A response norm divides by the mean of the units' norms, n/N of the mean over those that are left. (Its epsilon is
    written into forward and stays 1e-6: a relative error below 1e-6 / mean.)
    """
    N, n = group.count, left
    factors = {f"{norm}.weight": (N / n) ** 0.5 for norm, _ in group.rms_norms}
    return factors | {f"{norm}.gamma": N / n for norm in group.response_norms}


def compressed(tensor: Tensor, dim: int, stays: Tensor) -> Tensor:
    """The slices of `dim` that stay. On a CPU by NumPy: torch's index_select takes five times as long along columns."""
    if tensor.device.type == "cpu" and tensor.dtype in PATTERNS:
        left = bits(tensor).reshape(tensor.shape).compress(stays.numpy(), axis=dim)
        return torch.from_numpy(left).view(tensor.dtype)
    return tensor.index_select(dim, stays.nonzero().flatten().to(tensor.device))


def _replace(root: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put `new` wherever `old` is registered, so that tied weights stay tied, and keep the layers' sizes true."""
    for module in root.modules():
        for attribute, parameter in list(module._parameters.items()):
            if parameter is not old:
                continue
            module.register_parameter(attribute, new)
            if isinstance(module, nn.Linear) and attribute == "weight":
                module.out_features, module.in_features = new.shape
            elif isinstance(module, nn.modules.conv._ConvNd) and attribute == "weight":
                if module.groups == module.in_channels == module.out_channels:  # depthwise
                    module.groups = module.in_channels = module.out_channels = new.shape[0]
                else:
                    module.out_channels, module.in_channels = new.shape[0], new.shape[1] * module.groups
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.normalized_shape = tuple(new.shape)
