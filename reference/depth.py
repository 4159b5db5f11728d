"""Depth pruning: whole blocks leave, the matrices that stay keep their shapes, and time falls with the parameters.

A block is one entry of a list of repeated residual blocks: x <- x + f(x), perhaps on two streams, image and text. With
a keep gate m_l in {0, 1} (TinyFusion, Fang et al. 2024, arXiv 2412.01199, section 3)

    x <- m_l block_l(x) + (1 - m_l) x

so a removed block passes on its input, each stream unchanged. Blocks that belong together (both ends of a skip
connection, a period of a pattern) go together, as a bundle; blocks that the config or forward needs where they are stay
(`anatomy/blocks.py`). The config is rewritten, so plain `from_pretrained` loads the shorter model.

    score   S_l of every block: sum of squares of its weights, block influence, or the order of greedy removal
    select  exactly k lowest of each list (scope `layer`) or of all lists of a denoiser (`global`)
    cut     out of the list and out of the config (`anatomy/skipping.py`)

ShortGPT (Men et al. 2024, arXiv 2403.03853) scores by block influence. BK-SDM (Kim et al. 2023, arXiv 2305.15798)
removes fixed pairs of residual and attention blocks of a U-Net; skip connections of other widths tie these, no mask
says what their removal should compute, and they stay here. A ControlNet that was trained with the dense model adds its
residuals by place, and so at other blocks of the shorter one.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.anatomy.blocks import BlockList
from reference.anatomy.skipping import blocks_at, check, mask_blocks, members, streams
from reference.calibration import Source, calls, evaluating, run
from reference.criteria.block_influence import block_influence, cosines
from reference.criteria.magnitude import square_sum
from reference.criteria.random import random_scores
from reference.criteria.sensitivity import greedy
from reference.denoising_loss import everything_of
from reference.learned_depth import learn_depth
from reference.rates import pools
from reference.request import Request
from reference.scoring import UNREACHED
from reference.select import count_to_remove, lowest, rounded_keep
from reference.targets import matching


def remove_blocks(
    root: nn.Module,
    request: Request,
    source: Source | None = None,
    gone: Mapping[str, Tensor] | None = None,
    square_sum: Callable[[Tensor], float] = square_sum,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which blocks go: list -> booleans (blocks,); and list -> why it was skipped. Else as `remove_weights`."""
    found, refused = unit_groups(root, "block")
    groups, skipped = matching(found, request)
    score, unscored = block_scorer(root, groups, request, source, square_sum)
    groups, skipped = [group for group in groups if group.name not in unscored], skipped | refused | unscored
    removed: dict[str, Tensor] = {}
    for rate, lists in pools(root, groups, request):
        size = len(lists[0].bundles[0])  # the same in all lists of a model
        asked = count_to_remove(rate / size, sum(group.count for group in lists))
        scores = score(lists, asked, gone)
        asked = lowest(scores, min(asked, sum(map(len, scores))))
        for group, S_b, mask in zip(lists, scores, asked, strict=True):
            going = size * int((mask | is_dead(group, gone)).sum())  # rounded, an earlier round may have removed more
            keep = rounded_keep(group.count - going, group.count, request.round_to, request.min_keep)
            bundles = lowest([S_b], min((group.count - keep) // size, len(S_b)))[0]
            removed[group.name] = torch.zeros(group.count, dtype=torch.bool)
            removed[group.name][[place for b in bundles.nonzero() for place in group.bundles[b]]] = True
    return {group.name: removed[group.name] for group in groups}, skipped


Scorer = Callable[[Sequence[BlockList], int, Mapping[str, Tensor] | None], list[Tensor]]


def block_scorer(
    root: nn.Module,
    groups: Sequence[BlockList],
    request: Request,
    source: Source | None,
    square_sum: Callable[[Tensor], float],
) -> tuple[Scorer, dict[str, str]]:
    """score(lists, k, gone): scores (bundles,) of lists that are ranked together, k bundles of which are to go.

    A bundle's score is the sum of its blocks'; what is `gone` already has the lowest. And list -> why it has none.
    """
    if request.criterion == "sensitivity":
        return lambda lists, k, gone: removal_order(root, lists, k, source, gone), {}
    if request.criterion == "learned":
        return lambda lists, k, gone: learned_order(root, lists, k, source, gone, request.seed), {}
    if request.criterion == "block-influence":
        influence = influences(root, groups, source)
        unscored = {group.name: UNREACHED for group in groups if group.name not in influence}
        of_list = influence.__getitem__
    elif request.criterion == "random":
        counts, unscored = {group.name: group.count for group in groups}, {}
        of_list = lambda name: random_scores((counts[name],), name, request.seed)  # noqa: E731
    else:
        squares, unscored = {group.name: squared_weights(root, group, square_sum) for group in groups}, {}
        of_list = squares.__getitem__

    def score(lists: Sequence[BlockList], k: int, gone: Mapping[str, Tensor] | None) -> list[Tensor]:
        scores = []
        for group in lists:
            S_l = of_list(group.name)
            S_b = torch.stack([S_l[list(bundle)].sum() for bundle in group.bundles])
            dead = is_dead(group, gone)
            if request.scope != "layer":
                # Blocks of several lists differ in size and kind: compared with the mean of their list.
                S_b = S_b / S_b[~dead].mean().clamp_min(torch.finfo().tiny)
            scores.append(S_b.masked_fill(dead, -1))
        return scores

    return score, unscored


def squared_weights(root: nn.Module, group: BlockList, square_sum: Callable[[Tensor], float] = square_sum) -> Tensor:
    """Sum of squares of the weights of each block (blocks,)."""
    S_l = torch.zeros(group.count)
    for i in range(group.count):
        for parameter in (p for module in members(root, group, [i]) for p in module.parameters()):
            S_l[i] += square_sum(parameter)
    return S_l


def influences(root: nn.Module, groups: Sequence[BlockList], source: Source) -> dict[str, Tensor]:
    """Block influence (blocks,) of every list that calibration reaches; where several lists go together, their sum."""
    sums: dict[nn.Module, list[float]] = defaultdict(lambda: [0.0, 0])

    def hook(block: nn.Module, args: tuple, kwargs: Mapping, output: object) -> None:
        for x_in, x_out in streams(block, args, kwargs, output):
            if block in convolutional:  # (b, d, height, width)
                x_in, x_out = x_in.movedim(1, -1), x_out.movedim(1, -1)
            cosine_sum, tokens = cosines(x_in, x_out)
            sums[block][0] += cosine_sum
            sums[block][1] += tokens

    places = [(g, i, block) for g in groups for i in range(g.count) for block in blocks_at(root, g, [i])]
    convolutional = {block for group, _, block in places if group.row.periods}  # Stable Cascade, Wuerstchen
    with ExitStack() as hooks:
        for block in {block for _, _, block in places}:
            hooks.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        run(root, source, lambda call: None)
    found: dict[str, Tensor] = {}
    for group, i, block in places:
        if block in sums:
            found.setdefault(group.name, torch.zeros(group.count))[i] += block_influence(*sums[block])
    return found


@torch.no_grad()
def removal_order(
    root: nn.Module, lists: Sequence[BlockList], k: int, source: Source, gone: Mapping[str, Tensor] | None
) -> list[Tensor]:
    """Scores (bundles,) by greedy sensitivity: the number of the removal, and more than that for what stays."""
    choices = [(group, bundle) for group in lists for bundle in group.bundles]
    dead = torch.cat([is_dead(group, gone) for group in lists])
    seen = list(calls(root, source))
    with evaluating(root):
        dense = [everything_of(call) for call in seen]

    def error(removed: list[int]) -> float:
        places: dict[BlockList, list[int]] = defaultdict(list)
        for group, bundle in (choices[c] for c in removed):
            places[group] += bundle
        with ExitStack() as hooks, evaluating(root):
            for handle in mask_blocks(root, {group: torch.tensor(sorted(found)) for group, found in places.items()}):
                hooks.callback(handle.remove)
            pairs = zip(seen, dense, strict=True)
            return sum(float((everything_of(call) - y).square().mean()) for call, y in pairs) / len(seen)

    left = (~dead).nonzero().flatten().tolist()
    order = greedy(left, min(len(left), max(0, k - int(dead.sum()))), error)
    S_b = torch.full((len(choices),), float(len(choices)))
    S_b[dead] = -1
    S_b[order] = torch.arange(len(order), dtype=torch.float)
    return list(S_b.split([len(group.bundles) for group in lists]))


def learned_order(
    root: nn.Module,
    lists: Sequence[BlockList],
    k: int,
    source: Source,
    gone: Mapping[str, Tensor] | None,
    seed: int,
) -> list[Tensor]:
    """Scores (bundles,) by training gates (`learned_depth.py`): 0 for what goes, 1 for what stays."""
    (group,) = lists  # scope `layer`: which patterns a list can have depends on how many of its blocks go
    dead = is_dead(group, gone)
    left = (~dead).nonzero().flatten().tolist()
    S_b = dead.float().neg()
    S_b[left] = learn_depth(root, group, left, max(0, k - int(dead.sum())), source, seed).float()
    return [S_b]


def is_dead(group: BlockList, gone: Mapping[str, Tensor] | None) -> Tensor:
    """Booleans (bundles,): removed in an earlier round."""
    return torch.tensor([gone is not None and bool(gone[group.name][bundle[0]]) for bundle in group.bundles])


def check_blocks(root: nn.Module, removed: Mapping[str, Tensor]) -> None:
    """Raise ValueError if blocks are to go that must stay, or without those that belong to them."""
    for group in unit_groups(root, "block")[0]:
        if group.name in removed:
            check(group, removed[group.name].nonzero().flatten().tolist())
