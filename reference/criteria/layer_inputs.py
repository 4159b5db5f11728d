"""What a layer multiplies its weight with, as rows: the X of every criterion that looks at activations.

    Linear        y = X W^T           X_1ni: all tokens of the batch, one after the other
    Convolution   y = X W.flatten(1)^T, a linear layer on patches (im2col); with groups, one such layer a group

Shapes: g groups (1 unless the convolution is grouped), n rows (samples times tokens, or samples times output pixels),
o outputs and i inputs of one group: i = channels of the group times kernel size, in the order of `weight.flatten(1)`.
"""

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def linear_rows(X: Tensor) -> Tensor:
    """Input (..., i) of a Linear as X_1ni."""
    return X.reshape(1, -1, X.shape[-1])


def conv_rows(
    X: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """Input (samples, channels, *space) of a convolution as patches X_gni; one to three spatial dimensions.

    The other arguments are the attributes of `nn.Conv*d` of these names, as whole numbers, with zeros for padding.
    """
    X = F.pad(X, [p for p in reversed(padding) for _ in range(2)])
    for d, (k, step, gap) in enumerate(zip(kernel_size, stride, dilation, strict=True), start=2):
        X = X.unfold(d, gap * (k - 1) + 1, step)[..., ::gap]  # the window becomes the last dimension
    dims = len(kernel_size)
    X = X.unflatten(1, (groups, -1))  # samples, g, channels, *space, *kernel
    X = X.movedim(1, 0).movedim(2, 2 + dims)  # g, samples, *space, channels, *kernel
    return X.flatten(2 + dims).flatten(1, 1 + dims)


def by_group(weight: Tensor, groups: int) -> Tensor:
    """A layer's weight (outputs, ...) as W_goi, a view where it can be."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)
