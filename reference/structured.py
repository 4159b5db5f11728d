"""Structured pruning: whole units leave, the matrices get smaller, every dense kernel and file profits.

    y = W_2[:, K] phi(W_1[K, :] x + b_1[K])    K: the neurons that stay; for filters Li et al. 2017 (arXiv 1608.08710,
                                               section 3): a filter goes with the slice of the next layer that reads it

    score   S_u of every unit: all the weights that disappear with it (`criteria/`)
    select  exactly k lowest of each layer, of each component or of the whole model; widths rounded to tiles
    cut     rows of the producers, columns of the consumers, the sizes that forward reads (`anatomy/`)

Here the units are the hidden neurons of the feed-forwards; `heads.py` does the same to attention.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.calibration import Source
from reference.rates import pools
from reference.request import Request
from reference.scoring import unit_scorer
from reference.select import count_to_remove, lowest, rounded_keep
from reference.targets import matching


def remove_units(
    root: nn.Module,
    request: Request,
    source: Source | None = None,
    gone: Mapping[str, Tensor] | None = None,
    scorer: Callable = unit_scorer,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which units go: group -> booleans (units,); and group -> why it was skipped. Else as `remove_weights`."""
    found, refused = unit_groups(root, request.granularity)
    groups, skipped = matching(found, request)
    score, unscored = scorer(root, groups, request, source)
    groups, skipped = [group for group in groups if group.name not in unscored], skipped | refused | unscored
    removed: dict[str, Tensor] = {}
    for rate, members in pools(root, groups, request):
        scores, deads = [], []
        for group in members:
            S_u = score(group)
            dead = torch.zeros_like(S_u, dtype=torch.bool) if gone is None else gone[group.name]
            deads.append(dead)
            if request.scope != "layer":
                # Layers differ in fan-in: without this the narrow ones would lose everything.
                S_u = S_u / S_u[~dead].mean().clamp_min(torch.finfo().tiny)
            scores.append(S_u.masked_fill(dead, -1))  # below every score
        asked = lowest(scores, count_to_remove(rate, sum(group.count for group in members)))
        for group, S_u, mask, dead in zip(members, scores, asked, deads, strict=True):
            # An earlier round may have removed more than is asked now: it was rounded to a tile.
            keep = rounded_keep(int((~mask & ~dead).sum()), group.count, request.round_to, request.min_keep)
            removed[group.name] = lowest([S_u], group.count - keep)[0]
    return {group.name: removed[group.name] for group in groups}, skipped
