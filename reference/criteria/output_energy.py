"""Output energy: how much a unit puts out by itself.

    S_h = E || A_h W_h ||^2 = tr(W_h E[a_h a_h^T] W_h^T)

A_h is what unit h feeds into its consumer (the head's output, the neuron's activation), W_h the consumer's columns that
read it. The expectation is over rows, so one Gram matrix of the consumer's input per layer is all that is kept, and of
it only the blocks on the diagonal count. It is the exact rise of the mean squared output if the unit is removed alone
and nothing compensates, gradient-free, the neighbour of head-gradient (`head_gradient.py`), which asks the loss.

Shapes: u units, w consecutive indices that one unit spans, o outputs, i = u * w inputs of the consumer.
"""

from torch import Tensor


def unit_scores(W_oi: Tensor, H_ii: Tensor, width: int = 1) -> Tensor:
    """S_u (u,) in fp32, units of the squared output summed over o. `H_ii` = E[a a^T], from `hessian.accumulate`."""
    W_uwo = W_oi.detach().float().T.unflatten(0, (-1, width))
    blocks_uww = H_ii.unflatten(0, (-1, width)).unflatten(2, (-1, width)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return ((blocks_uww @ W_uwo) * W_uwo).sum((1, 2))
