"""Neurons, the hidden units of a feed-forward: producers -> activation -> one consumer.

Neuron j owns row j of every producer, with its bias, and column j of the consumer. In gated kinds the two producers
may be one Linear of twice the height (values above gates, or gates above values): there neuron j owns rows j and
hidden + j, whichever of the halves is the gate.
"""

from torch import nn

from reference.anatomy.groups import Group, Slice

# (producers, consumer), as attribute paths of the feed-forward module; the first that fits counts.
LAYOUTS = (
    (("net.0.proj",), "net.2"),  # diffusers' FeedForward: GELU, GEGLU, SwiGLU
    (("w1", "w3"), "w2"),
    (("linear_1", "linear_3"), "linear_2"),
    (("linear_1", "linear_2"), "out_projection"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_proj", "up_proj"), "linear_fc2"),
    (("gate_up_proj",), "down_proj"),
    (("gate", "up"), "down"),
    (("w_gate", "w_up"), "w_down"),
    (("wi_0", "wi_1"), "wo"),
    (("linear_in",), "linear_out"),
    (("proj", "gate_layer"), "out"),
    (("ff_in",), "ff_out"),
    (("ffn.0",), "ffn.2"),
    (("ff.0",), "ff.3"),
)


def layout(module: nn.Module) -> tuple[tuple[str, ...], str] | None:
    """Producers and consumer of a feed-forward, or None if the module is none."""
    for producers, consumer in LAYOUTS:
        found = [_at(module, path) for path in (*producers, consumer)]
        if all(isinstance(linear, nn.Linear) for linear in found):
            hidden = found[-1].in_features
            if all(linear.out_features in (hidden, 2 * hidden) for linear in found[:-1]):
                return producers, consumer
    return None


def is_feed_forward(module: nn.Module) -> bool:
    """Has one of these layouts."""
    return layout(module) is not None


def neurons(name: str, module: nn.Module) -> list[Group]:
    """The neurons of one feed-forward as a group, or nothing if it is none."""
    found = layout(module)
    if not found:
        return []
    producers, consumer = found
    hidden = _at(module, consumer).in_features
    slices = []
    for producer in producers:
        linear = _at(module, producer)
        for start in range(0, linear.out_features, hidden):
            slices.append(Slice(f"{name}.{producer}.weight", 0, start, 1))
            if linear.bias is not None:
                slices.append(Slice(f"{name}.{producer}.bias", 0, start, 1))
    slices.append(Slice(f"{name}.{consumer}.weight", 1, 0, 1))
    return [Group(name, "feed_forward", hidden, tuple(slices))]


def _at(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    for part in path.split("."):
        module = getattr(module, part, None) if not part.isdigit() else _item(module, int(part))
        if module is None:
            return None
    return module


def _item(module: nn.Module, index: int) -> nn.Module | None:
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    return module[index] if is_list and index < len(module) else None
