"""Neurons, the hidden units of a feed-forward: producers -> activation -> one consumer.

Neuron j owns row j of every producer, with its bias, and column j of the consumer. In gated kinds the two producers
may be one Linear of twice the height (values above gates, or gates above values): there neuron j owns rows j and
hidden + j, whichever of the halves is the gate.

Experts stacked in bare parameters, gate_up_proj (E, dim, 2*hidden) and down_proj (E, hidden, dim), have one width for
all: a unit is neuron j of every expert. ConvNeXt blocks have a GlobalResponseNorm between activation and consumer.
"""

from typing import NamedTuple

from torch import nn

from reference.anatomy.groups import Group, Slice


class Layout(NamedTuple):
    """Attribute paths of the feed-forward module.

    Where the names alone fit others too, `beside` says what else it has, `gated` that its producer is twice as tall.
    """

    producers: tuple[str, ...]
    consumer: str
    beside: tuple[tuple[str, type[nn.Module]], ...] = ()
    response_norm: str = ""
    gated: bool = False


# The first that fits counts.
LAYOUTS = (
    Layout(("net.0.proj",), "net.2"),  # diffusers' FeedForward: GELU, GEGLU, SwiGLU
    Layout(("w1", "w3"), "w2"),
    Layout(("linear_1", "linear_3"), "linear_2"),
    Layout(("linear_1", "linear_2"), "out_projection"),
    Layout(("gate_proj", "up_proj"), "down_proj"),
    Layout(("gate_proj", "up_proj"), "linear_fc2"),
    Layout(("gate_up_proj",), "down_proj"),
    Layout(("up_proj",), "down_proj"),
    Layout(("gate", "up"), "down"),
    Layout(("w_gate", "w_up"), "w_down"),
    Layout(("wi_0", "wi_1"), "wo"),
    Layout(("linear_in",), "linear_out"),
    Layout(("swish_linear.0",), "linear_out"),
    Layout(("proj", "gate_layer"), "out"),
    Layout(("proj_in",), "proj_out", gated=True),  # not gated, these lead into and out of a whole transformer
    Layout(("ff_in",), "ff_out"),
    Layout(("c_fc",), "c_proj"),
    Layout(("ffn.0",), "ffn.2"),
    Layout(("ff.0",), "ff.3"),
    Layout(("1",), "3", (("0", nn.LayerNorm), ("2", nn.GELU))),
    # Embeddings of the time have layers of these names too, with another activation or no norm.
    Layout(("in_layer",), "out_layer", (("activation", nn.GELU),)),
    Layout(("linear_1",), "linear_2", (("layer_norm", nn.LayerNorm),)),
    Layout(("channelwise.0",), "channelwise.4", (("depthwise", nn.Conv2d),), "channelwise.2"),
    Layout(("channelwise_linear_1",), "channelwise_linear_2", (), "channelwise_norm"),
    Layout(("pwconv1",), "pwconv2", (), "grn"),
)


def layout(module: nn.Module) -> Layout | None:
    """The layout of a feed-forward, or None if the module is none."""
    for row in LAYOUTS:
        found = [at(module, path) for path in (*row.producers, row.consumer)]
        if all(isinstance(linear, nn.Linear) for linear in found):
            hidden = found[-1].in_features
            heights = (2 * hidden,) if row.gated else (hidden, 2 * hidden)
            fits = all(linear.out_features in heights for linear in found[:-1])
            if fits and all(isinstance(at(module, path), kind) for path, kind in row.beside):
                return row
    return None


def is_feed_forward(module: nn.Module) -> bool:
    """Has one of these layouts."""
    return layout(module) is not None


def neurons(name: str, module: nn.Module) -> list[Group]:
    """The neurons of one feed-forward as a group, or nothing if it is none."""
    found = layout(module)
    if not found:
        return stacked(name, module)
    hidden = at(module, found.consumer).in_features
    slices = []
    for producer in found.producers:
        linear = at(module, producer)
        for start in range(0, linear.out_features, hidden):
            slices.append(Slice(f"{name}.{producer}.weight", 0, start, 1))
            if linear.bias is not None:
                slices.append(Slice(f"{name}.{producer}.bias", 0, start, 1))
    slices.append(Slice(f"{name}.{found.consumer}.weight", 1, 0, 1))
    norms = ()
    if found.response_norm:
        norms = (f"{name}.{found.response_norm}",)
        last = at(module, found.response_norm).gamma.ndim - 1
        slices += [Slice(f"{norms[0]}.{p}", last, 0, 1, masked=False) for p in ("gamma", "beta")]
    return [Group(name, "feed_forward", hidden, tuple(slices), response_norms=norms)]


def stacked(name: str, module: nn.Module) -> list[Group]:
    """The neurons of experts whose weights lie in one parameter."""
    up, down = (vars(module)["_parameters"].get(p) for p in ("gate_up_proj", "down_proj"))
    if up is None or down is None or up.ndim != 3 or up.shape[2] != 2 * down.shape[1]:
        return []
    hidden = down.shape[1]
    slices = [Slice(f"{name}.gate_up_proj", 2, start, 1) for start in (0, hidden)]
    slices.append(Slice(f"{name}.down_proj", 1, 0, 1))
    sizes = ((name, "moe_intermediate_dim", 1),) if "moe_intermediate_dim" in vars(module) else ()
    return [Group(name, "feed_forward", hidden, tuple(slices), sizes)]


def at(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    for part in path.split("."):
        module = getattr(module, part, None) if not part.isdigit() else _item(module, int(part))
        if module is None:
            return None
    return module


def _item(module: nn.Module, index: int) -> nn.Module | None:
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    return module[index] if is_list and index < len(module) else None
