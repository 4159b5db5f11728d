"""Head gradient: how much the loss would notice a gate on the head (Michel et al. 2019, arXiv 1905.10650, section 4.1).

    I_h = E_x | dL(x) / d xi_h |,    xi_h = 1 multiplies the output A_h of head h
        = E_x | <A_h(x), dL(x) / dA_h(x)> |    by the chain rule, so no gates have to be built in
    then divided by the layer's L2 norm of I, so that layers compare

The loss must be the denoising or flow loss. The distance to the dense model would not do: with all gates at one it is
at its minimum and every gradient is zero.

L is a sum over samples: of a mean over b samples, hand in b times the gradient. A head of a joint attention is one gate
on several streams: add up their gate gradients before the absolute value.

Shapes: b samples, n tokens, h heads, d = width of a head; A and its gradient lie as the output projection reads them.
"""

import torch
from torch import Tensor


def gate_gradients(A_bni: Tensor, gradient_bni: Tensor, heads: int) -> Tensor:
    """dL/dxi of each sample, (b, h) fp32, from the heads' outputs (b, n, h * d) and the gradient by them."""
    product_bni = A_bni.detach().float() * gradient_bni.float()
    return product_bni.unflatten(-1, (heads, -1)).sum((1, 3))


def head_scores(absolute_h: Tensor, samples: int) -> Tensor:
    """I_h (h,) of a layer with norm 1, from the sum of |dL/dxi_h| over `samples` (all zero stays zero)."""
    I_h = absolute_h.float() / samples
    return I_h / I_h.norm().clamp_min(torch.finfo().tiny)
