"""Heads of an attention whose projections share one Linear: [q | k | v], or [k | v] for a second stream.

Head h owns `head_dim` rows at h * head_dim of each part, and as many columns of the output. A differential attention,
softmax(q1 k1^T) v - softmax(q2 k2^T) v, has the parts [q1 | q2 | k1 | k2 | v].
"""

from torch import nn

from reference.anatomy.attention import HEAD_COUNTS, linear_rows
from reference.anatomy.feed_forward import at
from reference.anatomy.groups import Group, Slice

# Packed producers, consumers.
LAYOUTS = (
    (("img_qkv_proj", "txt_kv_proj"), ("to_out.0",)),  # PRX
    (("img_attn_qkv", "txt_attn_qkv"), ("img_attn_proj", "txt_attn_proj")),  # JoyImage
    (("to_qkv",), ("to_out",)),  # Stable Audio 3
    (("to_q", "to_kv"), ("to_out",)),  # Stable Audio 3's cross-attention; ConsisID's perceivers
    (("q_linear", "kv_linear"), ("proj",)),  # Sana-WM's cross-attention
    (("qkv", "q_proj_cam", "k_proj_cam", "v_proj_cam"), ("proj",)),  # Sana-WM's attention
)
# Type of the module, or of its processor -> why its width is fixed.
FIXED = {
    "SanaWMCrossAttnProcessor": "its processor reshapes keys, values and output to the width of the tokens",
    "BidirectionalGDNUCPESinglePathLiteLA": "forward reshapes queries and keys to the width of the tokens",
    "_SoftmaxUCPESinglePathLiteLA": "forward reshapes queries and keys to the width of the tokens",
    "MultiheadAttention": "torch's MultiheadAttention takes the width of its heads from the width of its input",
}


def layout(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The layout that the module has, or None."""
    if type(getattr(module, "heads", None)) is not int:
        return None
    for producers, consumers in LAYOUTS:
        if all(isinstance(at(module, path), nn.Linear) for path in (*producers, *consumers)):
            return producers, consumers
    return None


def heads(name: str, module: nn.Module) -> list[Group]:
    """The heads of one packed attention as a group, or nothing."""
    fixed = FIXED.get(type(module).__name__) or FIXED.get(type(getattr(module, "processor", None)).__name__, "")
    if isinstance(module, nn.MultiheadAttention):
        return [Group(name, "attention", module.num_heads, (), refused=fixed)]
    found = layout(module)
    if not found:
        return []
    producers, consumers = found
    inner = at(module, consumers[0]).in_features
    width = inner // module.heads
    slices = [
        s
        for producer in producers
        for start in range(0, at(module, producer).out_features, inner)
        for s in linear_rows(f"{name}.{producer}", at(module, producer), width, start)
    ]
    slices += [Slice(f"{name}.{consumer}.weight", 1, 0, width) for consumer in consumers]
    sizes = [*((a, 1) for a in HEAD_COUNTS), ("inner_dim", width)]
    attributes = tuple((name, a, each) for a, each in sizes if type(vars(module).get(a)) is int)
    return [Group(name, "attention", module.heads, tuple(slices), attributes, refused=fixed)]
