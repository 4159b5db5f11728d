"""Wanda: a weight matters as much as what it multiplies (Sun et al. 2024, arXiv 2306.11695, section 3, equation 1).

    S_oi = |W_oi| * ||X_i||_2          compared within one output row, or M inputs of it (N:M)

Nothing is updated, so this is the cheap baseline of `obs.py`: squared, the exact error of removing one weight alone,
and of several if their inputs are uncorrelated. Memory O(i) a layer: only running sums of squares are kept.

Deviations: all layers see the dense model's inputs, in one run, where the authors go block by block and show each what
the pruned ones before it put out; "within one output row" is scope `row`, which has to be asked for. The norm is the
root of the mean square over rows, not of the sum; a constant factor of a layer changes no mask.
k = floor(amount * i + 0.5) a row as everywhere here, where the authors truncate. Convolutions, which the authors do not
treat, are linear layers on patches; a grouped one has its own inputs in each group.

Shapes: g groups (1 unless a grouped convolution), n rows, o outputs and i inputs of one group (`layer_inputs.py`).
"""

import numpy as np
import torch
from torch import Tensor

from reference.criteria.layer_inputs import by_group


def squares(X_gni: Tensor) -> Tensor:
    """Sum over rows of X^2, (g, i) fp32: add it up over batches, and X_gni.shape[1] with it."""
    return X_gni.float().square().sum(1)


def weight_scores(W: Tensor, squares_gi: Tensor, n: int) -> Tensor:
    """|W| * root mean square of its input, fp32, in the shape of W (outputs, ...). `n`: rows that were summed."""
    if n < 1:
        raise ValueError("Wanda needs inputs, and none were seen: was the layer reached during calibration?")
    rms_gi = (squares_gi / n).sqrt().to(W.device)
    # On a CPU in memory from NumPy, which asks for huge pages: to touch torch's first takes longer than the arithmetic.
    on_cpu = W.device.type == "cpu"
    S = torch.from_numpy(np.empty(W.shape, np.float32)) if on_cpu else torch.empty(W.shape, device=W.device)
    S.copy_(W.detach()).abs_()
    by_group(S, len(rms_gi)).mul_(rms_gi[:, None])
    return S
