"""OBS and OBS-Diff: remove, let the weights that stay make up for it, and calibrate the next layers on the result.

    package by package (`criteria/obs_diff.py`), P = 4 by default, in module order:
        run all of calibration once and keep the Hessian of every member's input    memory: one package
        weights, N:M        sweep the columns of the matrix                         `criteria/obs.py`
        heads, neurons, channels    the consumers' columns, all streams together    `criteria/obs_units.py`
        write the new weights, so that the next package sees what this one left

OBS counts every row alike, OBS-Diff those of early steps more. For two kinds of units that share a consumer (FLUX's
single blocks: [attention | MLP]) only the columns of the kind that is pruned make up for each other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reference.anatomy import WeightLayer, unit_groups
from reference.anatomy.groups import Group
from reference.calibration import Call, Source
from reference.consumers import consumers
from reference.criteria import obs, obs_diff, obs_units
from reference.rates import pools
from reference.request import STRUCTURED, Request, parse_n_m
from reference.scoring import UNREACHED, hessians
from reference.select import count_to_remove, rounded_keep
from reference.targets import matching, weight_targets

COMPENSATING = ("obs", "obs-diff")
Removed = tuple[dict[str, Tensor], dict[str, str]]


@torch.no_grad()
def remove_and_compensate(
    root: nn.Module,
    request: Request,
    source: Source,
    gone: Mapping[str, Tensor] | None = None,
    originals: dict[str, Tensor] | None = None,
) -> Removed:
    """Which units go, and why layers were skipped, as `remove_weights` says it. The weights change in place.

    `originals` is filled with copies of the weights that were written over; None keeps no copy.
    """
    if request.granularity in STRUCTURED:
        found, refused = unit_groups(root, request.granularity)
        targets, skipped = matching(found, request)
        skipped |= refused
    else:
        targets, skipped = weight_targets(root, request)
    if parse_n_m(request.granularity):
        n, m = parse_n_m(request.granularity)
        rates = {target.name: 1 - n / m for target in targets}
    else:
        rates = {member.name: rate for rate, members in pools(root, targets, request) for member in members}
    removed = {}
    for package in obs_diff.packages([target for target in targets if rates[target.name] > 0], source.packages):
        layers = {name: layer for target in package for name, layer in _layers(root, target)}
        H = hessians(root, source, layers, _step_weights if request.criterion == "obs-diff" else None)
        for target in package:
            reached = {name: layer for name, layer in _layers(root, target) if name in H}
            if not reached:
                skipped[target.name] = UNREACHED
                continue
            if originals is not None:
                originals |= {f"{name}.weight": layer.weight.detach().cpu().clone() for name, layer in reached.items()}
            before = None if gone is None else gone[target.name]
            if isinstance(target, Group):
                removed[target.name] = _solve_units(root, target, rates[target.name], request, H, before)
            else:
                removed[target.name] = _solve_weights(target, rates[target.name], request, H, before)
            for name in reached:
                del H[name]
    return {t.name: removed.get(t.name, _nothing(t)) for t in targets if t.name not in skipped}, skipped


def _solve_weights(
    layer: WeightLayer, rate: float, request: Request, H: Mapping[str, Tensor], gone: Tensor | None
) -> Tensor:
    W, pattern = layer.module.weight, parse_n_m(request.granularity)
    if pattern:
        removed, new = obs.prune_n_m(W, H[layer.name], *pattern, gone)
    else:
        removed, new = obs.prune_weights(W, H[layer.name], count_to_remove(rate, W.numel()), gone)
    W.copy_(new)
    return removed.cpu()


def _solve_units(
    root: nn.Module, group: Group, rate: float, request: Request, H: Mapping[str, Tensor], gone: Tensor | None
) -> Tensor:
    asked = group.count - count_to_remove(rate, group.count)
    keep = rounded_keep(asked, group.count, request.round_to, request.min_keep)
    readers = [c for c in consumers(root, group) if c.name in H]
    layers = []
    for c in readers:
        W_oi = c.of(c.layer.weight.flatten(1), group.count)
        layers.append((W_oi, c.of(c.of(H[c.name][0], group.count).mT, group.count).mT))
    removed_u, new = obs_units.prune_units(layers, group.count - keep, readers[0].width, gone)
    for c, W_new in zip(readers, new, strict=True):
        flat = c.layer.weight.flatten(1)
        c.of(flat, group.count).copy_(W_new)
        c.layer.weight.copy_(flat.reshape(c.layer.weight.shape))  # flatten may have copied (channels_last)
    return removed_u


def _layers(root: nn.Module, target: WeightLayer | Group) -> list[tuple[str, nn.Module]]:
    """The layers whose inputs and weights count: the layer itself, or the consumers of the units."""
    if isinstance(target, WeightLayer):
        return [(target.name, target.module)]
    return [(c.name, c.layer) for c in consumers(root, target)]


def _step_weights(call: Call) -> Tensor:
    if call.steps == 1:
        raise ValueError("obs-diff weighs denoising steps and calibration has a single one; give more, or choose obs")
    return obs_diff.timestep_weights(call.steps)[call.step_b]


def _nothing(target: WeightLayer | Group) -> Tensor:
    shape = target.module.weight.shape if isinstance(target, WeightLayer) else (target.count,)
    return torch.zeros(shape, dtype=torch.bool)
