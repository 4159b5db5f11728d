"""Unstructured pruning: single weights become zero.

    W'_oi = m_oi W_oi,    sum of (1 - m_oi) = k = floor(amount * n + 0.5)        (Han et al. 2015, arXiv 1506.02626)

    score   S_oi of every weight (`criteria/`)
    select  exactly k lowest of each row, of each layer, of each component or of the whole model (`scope`)
    cut     there is nothing to cut: a dense kernel reads zeros as fast as any number, and a dense file stores them

So this entry buys neither time nor bytes by itself; the benchmark shows both. It is the yardstick of what weights alone
could lose, and the input of sparse storage.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from reference.calibration import Source
from reference.plans import Bits, Plan
from reference.rates import pools
from reference.request import Request
from reference.scoring import weight_scorer
from reference.select import count_to_remove, keep_highest, lowest, lowest_per_row
from reference.targets import weight_targets
from reference.threshold import CHUNK, PATTERNS, bits


def remove_weights(
    root: nn.Module, request: Request, source: Source | None = None, gone: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor | Bits], dict[str, str]]:
    """Which weights go: layer -> booleans (o, i, ...), or what stays as bits; and layer -> why it was skipped.

    `source`: what criteria that look at data calibrate on. `gone`: weights already removed in an earlier round; they
    count towards the rate and stay removed.
    """
    layers, skipped = weight_targets(root, request)
    score, unscored = weight_scorer(root, layers, request, source)
    layers, skipped = [layer for layer in layers if layer.name not in unscored], skipped | unscored
    removed = {}
    for rate, members in pools(root, layers, request):
        if request.criterion == "magnitude" and request.scope != "row" and gone is None:
            weights = [layer.module.weight for layer in members]  # which are their own scores
            kept = keep_highest(weights, count_to_remove(rate, sum(W.numel() for W in weights)))
            removed |= {la.name: Bits(packed, la.module.weight.shape) for la, packed in zip(members, kept, strict=True)}
            continue
        scores = []
        for layer in members:
            S = score(layer)
            if gone is not None:
                S = S.masked_fill(gone[layer.name].to(S.device), -1)  # below every score
            scores.append(S)
        if request.scope == "row":
            rows = [S.flatten(1) for S in scores]
            masks = [lowest_per_row(S, count_to_remove(rate, S.shape[1])) for S in rows]
        else:
            masks = lowest(scores, count_to_remove(rate, sum(S.numel() for S in scores)))
        for layer, mask in zip(members, masks, strict=True):
            removed[layer.name] = mask.reshape(layer.module.weight.shape)
    return {layer.name: removed[layer.name] for layer in layers}, skipped


@torch.no_grad()
def zero_weights(root: nn.Module, plan: Plan) -> None:
    """Write +0.0 over the weights that the plan removes; on a CPU without a mask in full size."""
    for name, packed in plan.keep.items():
        weight = root.get_submodule(name).weight
        if weight.device.type == "cpu" and weight.is_contiguous() and weight.dtype in PATTERNS:
            patterns = bits(weight)  # the weight's own memory
            for start in range(0, len(patterns), CHUNK):
                chunk = patterns[start : start + CHUNK]
                stays = np.unpackbits(packed.numpy()[start // 8 : (start + CHUNK) // 8], count=len(chunk))
                np.multiply(chunk, stays, out=chunk)  # integers: no -0.0 can come of it
        else:
            weight.masked_fill_(plan.removed(name).to(weight.device), 0)
