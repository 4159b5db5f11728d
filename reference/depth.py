"""Depth pruning: whole blocks leave, the matrices that stay keep their shapes, and time falls with the parameters.

A block is one entry of a list of repeated residual blocks: x <- x + f(x), perhaps on two streams, image and text. With
a keep gate m_l in {0, 1} (TinyFusion, Fang et al. 2024, arXiv 2412.01199, section 3)

    x <- m_l block_l(x) + (1 - m_l) x

so a removed block passes on its input, each stream unchanged. Blocks that belong together (both ends of a skip
connection, a period of a pattern) go together; blocks that the config or forward needs where they are stay
(`anatomy/blocks.py`). The config is rewritten, so plain `from_pretrained` loads the shorter model.

    score   S_l of every block: sum of squares of its weights here; data criteria give their own
    select  exactly k lowest of each list (scope `layer`) or of all lists of a denoiser (`global`), in bundles
    cut     out of the list and out of the config (`anatomy/skipping.py`)

BK-SDM (Kim et al. 2023, arXiv 2305.15798) removes fixed pairs of residual and attention blocks of a U-Net; these are
tied by skip connections of other widths, so no mask says what their removal should compute, and they are refused here.
ShortGPT (Men et al. 2024, arXiv 2403.03853) scores by block influence. A ControlNet that was trained with the dense
model adds its residuals by place, and so at other blocks of the shorter one.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.anatomy.blocks import BlockList
from reference.anatomy.skipping import check, members
from reference.criteria.random import random_scores
from reference.rates import pools
from reference.request import Request
from reference.select import count_to_remove, lowest, rounded_keep
from reference.targets import matching

Score = Callable[[nn.Module, BlockList, Request], Tensor]


def block_scores(root: nn.Module, group: BlockList, request: Request) -> Tensor:
    """Scores >= 0 of the blocks of a list by the requested criterion, (blocks,) fp32 on the CPU."""
    if request.criterion == "random":
        return random_scores((group.count,), group.name, request.seed)
    squares = [
        sum(
            float(p.detach().float().square().sum())
            for module in members(root, group, [i])
            for p in module.parameters()
        )
        for i in range(group.count)
    ]
    return torch.tensor(squares)


def remove_blocks(
    root: nn.Module, request: Request, gone: Mapping[str, Tensor] | None = None, score: Score = block_scores
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which blocks go: list -> booleans (blocks,); and list -> why it was skipped. `gone` as in `remove_weights`.

    `score` gives the scores (blocks,) of a list; a bundle's score is the sum of its blocks'.
    """
    found, refused = unit_groups(root, "block")
    groups, skipped = matching(found, request)
    removed: dict[str, Tensor] = {}
    for rate, lists in pools(root, groups, request):
        scores = [_bundle_scores(root, group, request, gone, score) for group in lists]
        asked = count_to_remove(rate, sum(group.count for group in lists))
        size = len(lists[0].bundles[0])
        most = sum(map(len, scores))
        for group, S_b, mask in zip(
            lists, scores, lowest(scores, min(most, count_to_remove(1 / size, asked))), strict=True
        ):
            keep = rounded_keep(group.count - size * int(mask.sum()), group.count, request.round_to, request.min_keep)
            bundles = lowest([S_b], min((group.count - keep) // size, len(S_b)))[0]
            removed[group.name] = torch.zeros(group.count, dtype=torch.bool)
            for bundle in (group.bundles[b] for b in bundles.nonzero().flatten()):
                removed[group.name][list(bundle)] = True
    return {group.name: removed[group.name] for group in groups}, skipped | refused


def _bundle_scores(
    root: nn.Module, group: BlockList, request: Request, gone: Mapping[str, Tensor] | None, score: Score
) -> Tensor:
    """Scores (bundles,) of what can go together; for a scope beyond the list, relative to the list's mean."""
    S_l = score(root, group, request)
    S_b = torch.stack([S_l[list(bundle)].sum() for bundle in group.bundles])
    dead = torch.tensor([gone is not None and bool(gone[group.name][bundle[0]]) for bundle in group.bundles])
    if request.scope != "layer" and not dead.all():
        S_b = S_b / S_b[~dead].mean().clamp_min(torch.finfo().tiny)
    return S_b.masked_fill(dead, -1)  # below every score: what is gone stays gone


def check_blocks(root: nn.Module, removed: Mapping[str, Tensor]) -> None:
    """Raise ValueError if blocks are to go that must stay, or without those that belong to them."""
    for group in unit_groups(root, "block")[0]:
        if group.name in removed:
            check(group, removed[group.name].nonzero().flatten().tolist())
