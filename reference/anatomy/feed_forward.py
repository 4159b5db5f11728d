"""Neurons, the hidden units of diffusers' `FeedForward`: net[0].proj -> activation -> net[2].

Neuron j owns row j of net[0].proj with its bias and column j of net[2]. In the gated kinds (GEGLU, SwiGLU) proj is
twice as tall, values above gates, and neuron j owns rows j and hidden + j.
"""

from torch import nn

from reference.anatomy.groups import Group, Slice


def is_feed_forward(module: nn.Module) -> bool:
    """Has this layout."""
    net = getattr(module, "net", None)
    return (
        isinstance(net, nn.ModuleList)
        and len(net) >= 3
        and isinstance(getattr(net[0], "proj", None), nn.Linear)
        and isinstance(net[2], nn.Linear)
    )


def neurons(name: str, module: nn.Module) -> list[Group]:
    """The neurons of one feed-forward as a group, or nothing if it is none."""
    if not is_feed_forward(module):
        return []
    up, down = module.net[0].proj, module.net[2]
    hidden = down.in_features
    slices = []
    for start in range(0, up.out_features, hidden):
        slices.append(Slice(f"{name}.net.0.proj.weight", 0, start, 1))
        if up.bias is not None:
            slices.append(Slice(f"{name}.net.0.proj.bias", 0, start, 1))
    slices.append(Slice(f"{name}.net.2.weight", 1, 0, 1))
    return [Group(name, "feed_forward", hidden, tuple(slices))]
