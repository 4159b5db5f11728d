"""Heads of an attention with separate projections, alone or joined by a second stream of text.

Layout (diffusers' `Attention`, as in SD3; head h owns `head_dim` rows or columns at h * head_dim):
    rows of     to_q, to_k, to_v, and of add_q_proj, add_k_proj, add_v_proj with their biases
    columns of  to_out[0], and of to_add_out
One softmax runs over both streams, so a head is one unit of all these matrices together. The last joint block of SD3
drops its text output: there to_add_out is None and add_q_proj feeds nothing, yet must keep the common head count.
"""

from torch import nn

from reference.anatomy.groups import Group, Slice
from reference.errors import NotPrunable

PRODUCERS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def is_attention(module: nn.Module) -> bool:
    """Has this layout."""
    return all(isinstance(getattr(module, p, None), nn.Linear) for p in PRODUCERS[:3]) and hasattr(module, "heads")


def heads(name: str, module: nn.Module) -> list[Group]:
    """The heads of one attention module as a group, or nothing if it is no attention."""
    if not is_attention(module):
        return []
    head_dim = module.inner_dim // module.heads
    if module.inner_kv_dim != module.inner_dim:
        raise NotPrunable(f"{name}: grouped-query heads (k and v narrower than q) have no rule yet")
    for norm in NORMS:
        weight = getattr(getattr(module, norm, None), "weight", None)
        if weight is not None and weight.numel() != head_dim:
            raise NotPrunable(f"{name}.{norm} spans all heads, so a head cannot be removed exactly; no rule yet")

    slices = []
    for producer in PRODUCERS:
        linear = getattr(module, producer, None)
        if linear is not None:
            slices.append(Slice(f"{name}.{producer}.weight", 0, 0, head_dim))
            if linear.bias is not None:
                slices.append(Slice(f"{name}.{producer}.bias", 0, 0, head_dim))
    slices.append(Slice(f"{name}.to_out.0.weight", 1, 0, head_dim))
    if getattr(module, "to_add_out", None) is not None:
        slices.append(Slice(f"{name}.to_add_out.weight", 1, 0, head_dim))

    # The processor reshapes by `heads`: left stale, it silently mixes heads whenever the width happens to divide.
    attributes = (
        (name, "heads", 1),
        (name, "sliceable_head_dim", 1),
        (name, "inner_dim", head_dim),
        (name, "inner_kv_dim", head_dim),
    )
    return [Group(name, "attention", module.heads, tuple(slices), attributes)]
