"""Semi-structured pruning: of every M consecutive weights along the input dimension, N stay.

2:4 is the pattern that NVIDIA's sparse tensor cores execute from Ampere on (Mishra et al. 2021, arXiv 2104.08378).
Per row o and group g of M columns:   keep the N largest S_og1 ... S_ogM, remove the M - N others.

In a convolution the M are consecutive input channels at one kernel position; no kernel executes that, so there it only
saves storage. This file makes the mask. Speed needs the kernels besides, and large matrices; a CPU gains nothing.

Neighbours are an accident of training. `permute_neurons` orders the hidden neurons of every feed-forward so that more
magnitude survives the pattern (`criteria/n_m_permutation.py`); the network computes the same as before. Channels of the
residual stream cannot be permuted layer by layer; those of a head's value and output could be and are left alone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.anatomy.groups import indices
from reference.calibration import Source
from reference.consumers import consumers
from reference.criteria import n_m_permutation
from reference.plans import Bits, pack
from reference.request import Request, parse_n_m
from reference.scoring import weight_scorer
from reference.select import lowest_n_m
from reference.targets import weight_targets


def remove_n_m(
    root: nn.Module, request: Request, source: Source | None = None, gone: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Bits], dict[str, str]]:
    """Which weights go: layer -> what stays, as bits; and layer -> why it was skipped. Else as `remove_weights`."""
    n, m = parse_n_m(request.granularity)
    layers, skipped = weight_targets(root, request)
    score, unscored = weight_scorer(root, layers, request, source)
    removed = {}
    for layer in (layer for layer in layers if layer.name not in unscored):
        W = layer.module.weight
        magnitudes = request.criterion == "magnitude" and gone is None  # then a weight is its own score
        S = W if magnitudes else score(layer)
        if gone is not None:
            S = S.masked_fill(gone[layer.name].to(S.device), -1)
        removed[layer.name] = Bits(pack(~lowest_n_m(S, n, m, magnitudes)), W.shape)
    return removed, skipped | unscored


@torch.no_grad()
def permute_neurons(model: nn.Module, pattern: str = "2:4", escapes: int = 100, seed: int = 0) -> dict[str, float]:
    """Order the neurons of every feed-forward in place, before pruning its second matrix to the pattern.

    Returns for each group of neurons by which factor the magnitude that the pattern keeps has grown, 1.0 or more.
    Groups whose width or place does not divide by M stay as they are, as do experts stacked in bare parameters, which
    N:M leaves dense. Memory O(neurons^2) a group.
    """
    n, m = parse_n_m(pattern) or (0, 0)
    if not m:
        raise ValueError(f"{pattern!r} is no N:M pattern; give one such as 2:4")
    gains = {}
    for group in unit_groups(model, "neuron")[0]:
        if not all(s.parameter.endswith((".weight", ".bias")) for s in group.slices if s.masked):
            continue
        readers = consumers(model, group)
        if any(c.start % m or c.width != 1 for c in readers) or group.count % m:
            continue
        W_oi = torch.cat([c.of(c.layer.weight.flatten(1), group.count) for c in readers])
        order = n_m_permutation.search(W_oi, n, m, escapes, seed).cpu()
        gains[group.name] = n_m_permutation.retained(W_oi[:, order], n, m) / n_m_permutation.retained(W_oi, n, m)
        for s in group.slices:
            parameter = model.get_parameter(s.parameter)
            span = indices(s, torch.arange(group.count)).to(parameter.device)
            parameter.index_copy_(s.dim, span, parameter.index_select(s.dim, indices(s, order).to(parameter.device)))
    return gains
