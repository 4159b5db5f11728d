"""Semi-structured pruning: of every M consecutive weights along the input dimension, N stay.

2:4 is the pattern that NVIDIA's sparse tensor cores execute from Ampere on (Mishra et al. 2021, arXiv 2104.08378).
Per row o and group g of M columns:   keep the N largest S_og1 ... S_ogM, remove the M - N others.

In a convolution the M are consecutive input channels at one kernel position; no kernel executes that, so there it only
saves storage. This file makes the mask. Speed needs the kernels besides, and large matrices; a CPU gains nothing.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from reference.calibration import Source
from reference.request import Request, parse_n_m
from reference.scoring import weight_scorer
from reference.select import lowest_n_m
from reference.targets import weight_targets


def remove_n_m(
    root: nn.Module, request: Request, source: Source | None = None, gone: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which weights go: layer -> booleans (o, i, ...); and layer -> why it was skipped. Else as `remove_weights`."""
    n, m = parse_n_m(request.granularity)
    layers, skipped = weight_targets(root, request)
    score, unscored = weight_scorer(root, layers, request, source)
    removed = {}
    for layer in (layer for layer in layers if layer.name not in unscored):
        S = score(layer)
        if gone is not None:
            S = S.masked_fill(gone[layer.name].to(S.device), -1)
        removed[layer.name] = lowest_n_m(S, n, m)
    return removed, skipped | unscored
