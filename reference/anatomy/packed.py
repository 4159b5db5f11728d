"""Heads of an attention whose projections share one Linear: [q | k | v], or [k | v] for a second stream.

Head h owns `head_dim` rows at h * head_dim of each third (or half), and as many columns of the output.
"""

from torch import nn

from reference.anatomy.attention import HEAD_COUNTS, linear_rows
from reference.anatomy.groups import Group, Slice

# {packed producer: parts}, consumers.
LAYOUTS = (
    ({"img_qkv_proj": 3, "txt_kv_proj": 2}, ("to_out.0",)),  # PRX
    ({"img_attn_qkv": 3, "txt_attn_qkv": 3}, ("img_attn_proj", "txt_attn_proj")),  # JoyImage
)


def layout(module: nn.Module) -> tuple[dict[str, int], tuple[str, ...]] | None:
    """The layout that the module has, or None."""
    for producers, consumers in LAYOUTS:
        if all(isinstance(getattr(module, producer, None), nn.Linear) for producer in producers):
            return producers, consumers
    return None


def heads(name: str, module: nn.Module) -> list[Group]:
    """The heads of one packed attention as a group, or nothing."""
    found = layout(module)
    if not found:
        return []
    producers, consumers = found
    width = module.get_submodule(consumers[0]).in_features // module.heads
    inner = width * module.heads
    slices = [
        s
        for producer, parts in producers.items()
        for part in range(parts)
        for s in linear_rows(f"{name}.{producer}", getattr(module, producer), width, part * inner)
    ]
    slices += [Slice(f"{name}.{consumer}.weight", 1, 0, width) for consumer in consumers]
    sizes = [*((a, 1) for a in HEAD_COUNTS), ("inner_dim", width)]
    attributes = tuple((name, a, each) for a, each in sizes if type(vars(module).get(a)) is int)
    return [Group(name, "attention", module.heads, tuple(slices), attributes)]
