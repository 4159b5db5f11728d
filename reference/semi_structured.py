"""Semi-structured pruning: of every M consecutive weights along the input dimension, N stay.

2:4 is the pattern that NVIDIA's sparse tensor cores execute from Ampere on (Mishra et al. 2021, arXiv 2104.08378).
Per row o and group g of M columns:   keep the N largest S_og1 ... S_ogM, remove the M - N others.

This file makes the mask. Speed needs the kernels besides, and large matrices; on a CPU the pattern buys nothing.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from reference.request import Request, parse_n_m
from reference.select import lowest_per_row
from reference.targets import weight_targets
from reference.unstructured import score_weights


def remove_n_m(
    root: nn.Module, request: Request, gone: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which weights go: layer -> booleans (o, i); and layer -> why it was skipped. `gone` as in `remove_weights`."""
    n, m = parse_n_m(request.granularity)
    layers, skipped = weight_targets(root, request)
    removed = {}
    for layer in layers:
        W = layer.module.weight
        if W.ndim != 2:
            skipped[layer.name] = "a convolution: no kernel executes N:M patterns there"
        elif W.shape[1] % m:
            skipped[layer.name] = f"{W.shape[1]} inputs do not divide into groups of {m}"
        else:
            S_oi = score_weights(layer, request)
            if gone is not None:
                S_oi = S_oi.masked_fill(gone[layer.name].to(S_oi.device), -1)
            removed[layer.name] = lowest_per_row(S_oi.reshape(-1, m), m - n).reshape(W.shape)
    return removed, skipped
