"""What convolutions offer: the inner width of a residual block, and the hidden width of convolutional feed-forwards.

Channel: ResnetBlock2D computes  conv2(act(norm2(conv1(act(norm1(x))) + time_emb_proj(t)))) + shortcut(x).  Its inner
width lies between conv1 and conv2. GroupNorm takes statistics over groups of channels, so only whole groups can go
without changing those of the others: the unit is a group of norm2. The residual width is tied to everything around.
    rows of     conv1, time_emb_proj (twice as tall when it gives scale and shift), and norm2
    columns of  conv2 (its input channels)

Neuron: Sana's GLUMBConv is a 1x1 convolution to 2*hidden, a depthwise one over 2*hidden channels, value * gate, and a
1x1 convolution back. Neuron j owns channels j and hidden + j of the first two, and input channel j of the last.
"""

from torch import nn

from reference.anatomy.groups import Group, Slice
from reference.anatomy.modulation import LowRankLinear


def channels(name: str, module: nn.Module) -> list[Group]:
    """The norm groups inside one residual block as a group of units, or nothing."""
    conv1, norm2, conv2 = (getattr(module, part, None) for part in ("conv1", "norm2", "conv2"))
    if not (isinstance(conv1, nn.Conv2d) and isinstance(norm2, nn.GroupNorm) and isinstance(conv2, nn.Conv2d)):
        return []
    inner, count = conv1.out_channels, norm2.num_groups
    width = inner // count
    slices = [Slice(f"{name}.conv1.weight", 0, 0, width)]
    if conv1.bias is not None:
        slices.append(Slice(f"{name}.conv1.bias", 0, 0, width))
    time = getattr(module, "time_emb_proj", None)
    if isinstance(time, nn.Linear | LowRankLinear):
        for start in range(0, time.out_features, inner):
            slices.append(Slice(f"{name}.time_emb_proj.weight", 0, start, width))
            if time.bias is not None:
                slices.append(Slice(f"{name}.time_emb_proj.bias", 0, start, width))
    slices += [Slice(f"{name}.norm2.{p}", 0, 0, width, masked=False) for p in ("weight", "bias") if norm2.affine]
    slices.append(Slice(f"{name}.conv2.weight", 1, 0, width))
    attributes = ((f"{name}.norm2", "num_groups", 1), (f"{name}.norm2", "num_channels", width))
    return [Group(name, "conv", count, tuple(slices), attributes)]


def neurons(name: str, module: nn.Module) -> list[Group]:
    """The neurons of one GLUMBConv as a group, or nothing."""
    up, depth, down = (getattr(module, part, None) for part in ("conv_inverted", "conv_depth", "conv_point"))
    if not all(isinstance(part, nn.Conv2d) for part in (up, depth, down)):
        return []
    hidden = down.in_channels
    slices = []
    for part, conv in (("conv_inverted", up), ("conv_depth", depth)):
        for start in (0, hidden):
            slices.append(Slice(f"{name}.{part}.weight", 0, start, 1))
            if conv.bias is not None:
                slices.append(Slice(f"{name}.{part}.bias", 0, start, 1))
    slices.append(Slice(f"{name}.conv_point.weight", 1, 0, 1))
    return [Group(name, "feed_forward", hidden, tuple(slices))]
