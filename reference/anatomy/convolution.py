"""What convolutions offer: the inner width of a residual block, and the hidden width of convolutional feed-forwards.

Channel: ResnetBlock2D computes  conv2(act(norm2(conv1(act(norm1(x))) + time_emb_proj(t)))) + shortcut(x).  Its inner
width lies between conv1 and conv2. GroupNorm takes statistics over groups of channels, so only whole groups can go
without changing those of the others: the unit is a group of the norm. The residual width is tied to everything around.
    rows of     the producer, what is added from the time (twice as tall when it gives scale and shift), and the norm
    columns of  the consumer (its input channels)
Where one norm group spans all channels, the unit is a channel, and the mean of those that stay moves (approximate).
In chains without a norm it is a channel too, exactly.

Neuron: Sana's GLUMBConv is a 1x1 convolution to 2*hidden, a depthwise one over 2*hidden channels, value * gate, and a
1x1 convolution back. Neuron j owns channels j and hidden + j of the first two, and input channel j of the last.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from reference.anatomy.attention import linear_rows
from reference.anatomy.feed_forward import at
from reference.anatomy.groups import Group, Slice
from reference.anatomy.modulation import LowRankLinear

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Inner(NamedTuple):
    """Paths, inside a block, of the parts around an inner width.

    `time`: a Linear from the time embedding to this width. `depthwise`: a convolution of each channel by itself, before
    the consumer. `skipped`: parts between that must be the identity. `one_group`: the norm has a single group.
    """

    producer: str
    norm: str
    consumer: str
    time: str = ""
    depthwise: str = ""
    skipped: tuple[str, ...] = ()
    one_group: bool = False


def _kandinsky3(i: int) -> Iterator[Inner]:
    """Between blocks i and i + 1 of Kandinsky3ResNetBlock, one of which may change the resolution."""
    now, then = f"resnet_blocks.{i}", f"resnet_blocks.{i + 1}"
    between = (f"{then}.group_norm", f"{then}.projection")
    yield Inner(f"{now}.projection", *between, skipped=(f"{now}.down_sample", f"{then}.up_sample"))
    yield Inner(f"{now}.down_sample", *between, skipped=(f"{then}.up_sample",))


# All that fit a block count: some have several inner widths.
INNER = (
    Inner("conv1", "norm2", "conv2", "time_emb_proj"),  # ResnetBlock2D and its kin in two and three dimensions
    Inner("conv1.pointwise", "norm2", "conv2.pointwise", "time_emb_proj", "conv2.depthwise"),  # DreamLite
    Inner("conv_in.conv1d", "conv_in.group_norm", "conv_out.conv1d", "time_emb"),  # ResidualTemporalBlock1D
    Inner("conv_1", "group_norm_1", "conv_2", one_group=True),  # ResConvBlock
    Inner("final_conv1d_1", "final_conv1d_gn", "final_conv1d_2"),  # OutConv1DBlock
    Inner("conv1.2", "conv2.0", "conv2.3"),  # TemporalConvLayer: each of its four convolutions follows its norm
    Inner("conv2.3", "conv3.0", "conv3.3"),
    Inner("conv3.3", "conv4.0", "conv4.3"),
    *(row for i in range(3) for row in _kandinsky3(i)),
)
# Norms that take their scale and shift from the time: the Linear that makes both.
SCALE_AND_SHIFT = ("linear", "context_mlp.1")
# Convolutional feed-forwards: producers, consumer.
FEED_FORWARDS = (
    (("conv_inverted", "conv_depth"), "conv_point"),  # Sana
    (("inverted_conv.conv", "depth_conv.conv"), "point_conv.conv"),  # Sana-WM
    (("feed_forward.0",), "feed_forward.2"),  # Kandinsky 3
)


def channels(name: str, module: nn.Module) -> list[Group]:
    """The units of every inner width of one block, a group each, or nothing."""
    rows = [row for row in INNER if _fits(module, row)]
    found = [_inner(name, module, row, name if len(rows) == 1 else f"{name}.{row.consumer}") for row in rows]
    return [*found, *_chain(name, module), *_motion_block(name, module)]


def neurons(name: str, module: nn.Module) -> list[Group]:
    """The neurons of one convolutional feed-forward as a group, or nothing."""
    for producers, consumer in FEED_FORWARDS:
        parts = [at(module, path) for path in (*producers, consumer)]
        if all(isinstance(part, nn.Conv2d) for part in parts):
            hidden = parts[-1].in_channels
            slices = [
                s
                for path, conv in zip(producers, parts, strict=False)
                for start in range(0, conv.out_channels, hidden)
                for s in linear_rows(f"{name}.{path}", conv, 1, start)
            ]
            slices.append(Slice(f"{name}.{consumer}.weight", 1, 0, 1))
            return [Group(name, "feed_forward", hidden, tuple(slices))]
    return []


def _fits(module: nn.Module, row: Inner) -> bool:
    producer, norm, consumer = (at(module, path) for path in row[:3])
    return (
        isinstance(producer, CONVOLUTIONS)
        and isinstance(consumer, CONVOLUTIONS)
        and isinstance(getattr(_group_norm(norm), "num_groups", None), int)
        and producer.out_channels == consumer.in_channels
        and all(isinstance(at(module, path), nn.Identity) for path in row.skipped)
    )


def _inner(name: str, module: nn.Module, row: Inner, group: str) -> Group:
    producer, norm = at(module, row.producer), at(module, row.norm)
    grouped = _group_norm(norm)
    inner = producer.out_channels
    count = inner if row.one_group else grouped.num_groups
    width = inner // count
    slices = list(linear_rows(f"{name}.{row.producer}", producer, width))
    made = [row.time, *(f"{row.norm}.{path}" for path in SCALE_AND_SHIFT)]
    for path in made:
        linear = at(module, path) if path else None
        if isinstance(linear, nn.Linear | LowRankLinear):
            for start in range(0, linear.out_features, inner):
                slices += linear_rows(f"{name}.{path}", linear, width, start)
    if getattr(norm, "affine", False):
        slices += [Slice(f"{name}.{row.norm}.{p}", 0, 0, width, masked=False) for p in ("weight", "bias")]
    if row.depthwise:
        slices += linear_rows(f"{name}.{row.depthwise}", at(module, row.depthwise), width)
    slices.append(Slice(f"{name}.{row.consumer}.weight", 1, 0, width))
    owner = f"{name}.{row.norm}" if grouped is norm else f"{name}.{row.norm}.norm"
    sizes = ((owner, "num_groups", 0 if row.one_group else 1), (owner, "num_channels", width))
    attributes = tuple(size for size in sizes if size[2] and hasattr(grouped, size[1]))
    approximate = f"{row.norm} takes its mean over all channels" if row.one_group else ""
    return Group(group, "conv", count, tuple(slices), attributes, approximate=approximate)


def _group_norm(norm: nn.Module | None) -> nn.Module | None:
    """What holds the number of groups: the norm, or the GroupNorm inside Kandinsky 3's conditional one."""
    inside = getattr(norm, "norm", None)
    return inside if isinstance(inside, nn.GroupNorm) else norm


def _chain(name: str, module: nn.Module) -> Iterator[Group]:
    """Embeddings of a condition: a ControlNet's convolutions in a row, and the two of Stable Cascade's mappers."""
    if isinstance(getattr(module, "blocks", None), nn.ModuleList):
        paths = ("conv_in", *(f"blocks.{i}" for i in range(len(module.blocks))), "conv_out")
    elif isinstance(at(module, "1"), nn.GELU):
        paths = ("0", "2")
    else:
        return
    parts = {path: at(module, path) for path in paths}
    if not all(isinstance(part, nn.Conv2d) for part in parts.values()):
        return
    for (producer, conv), consumer in zip(parts.items(), paths[1:], strict=False):
        rows = linear_rows(f"{name}.{producer}", conv, 1)
        columns = Slice(f"{name}.{consumer}.weight", 1, 0, 1)
        yield Group(f"{name}.{producer}", "conv", conv.out_channels, (*rows, columns))


def _motion_block(name: str, module: nn.Module) -> Iterator[Group]:
    """Wan-Animate's MotionEncoderResBlock: convolutions of a class of their own, biased in their activation."""
    bias = getattr(getattr(getattr(module, "conv1", None), "act_fn", None), "bias", None)
    if bias is None or not hasattr(module, "conv_skip"):
        return
    slices = (
        Slice(f"{name}.conv1.weight", 0, 0, 1),
        Slice(f"{name}.conv1.act_fn.bias", 0, 0, 1),
        Slice(f"{name}.conv2.weight", 1, 0, 1),
    )
    attributes = ((f"{name}.conv1.act_fn", "channels", 1), (f"{name}.conv2", "in_channels", 1))
    yield Group(name, "conv", len(bias), slices, attributes)
