"""Structured pruning: whole units leave, the matrices get smaller, every dense kernel and file profits.

    score   S_u of every unit: all the weights that disappear with it (`criteria/`)
    select  exactly k lowest of each layer, of each component or of the whole model; widths rounded to tiles
    cut     rows of the producers, columns of the consumers, the sizes that forward reads (`anatomy/`)

Here the units are the hidden neurons of the feed-forwards; `heads.py` does the same to attention.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.anatomy.groups import Group
from reference.criteria.magnitude import unit_scores
from reference.criteria.random import random_scores
from reference.rates import pools
from reference.request import Request
from reference.select import count_to_remove, lowest, rounded_keep
from reference.targets import matching


def remove_units(
    root: nn.Module, request: Request, gone: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which units go: group -> booleans (units,); and group -> why it was skipped. `gone` as in `remove_weights`."""
    found, refused = unit_groups(root, request.granularity)
    groups, skipped = matching(found, request)
    skipped |= refused
    removed: dict[str, Tensor] = {}
    for rate, members in pools(root, groups, request):
        scores = []
        for group in members:
            S_u = score_units(root, group, request)
            dead = torch.zeros_like(S_u, dtype=torch.bool) if gone is None else gone[group.name]
            if request.scope != "layer":
                # Layers differ in fan-in: without this the narrow ones would lose everything.
                S_u = S_u / S_u[~dead].mean().clamp_min(torch.finfo().tiny)
            scores.append(S_u.masked_fill(dead, -1))  # below every magnitude
        asked = lowest(scores, count_to_remove(rate, sum(group.count for group in members)))
        for group, S_u, mask in zip(members, scores, asked, strict=True):
            keep = rounded_keep(int((~mask).sum()), group.count, request.round_to, request.min_keep)
            removed[group.name] = lowest([S_u], group.count - keep)[0]
    return {group.name: removed[group.name] for group in groups}, skipped


def score_units(root: nn.Module, group: Group, request: Request) -> Tensor:
    """Scores >= 0 of every unit of the group by the requested criterion, (units,) fp32 on the CPU."""
    if request.criterion == "random":
        return random_scores((group.count,), group.name, request.seed)
    slices = []
    with torch.no_grad():
        for s in (s for s in group.slices if s.masked):
            span = root.get_parameter(s.parameter).narrow(s.dim, s.start, s.width * group.count)
            slices.append((span, s.dim))
        return unit_scores(slices, group.count).cpu()
