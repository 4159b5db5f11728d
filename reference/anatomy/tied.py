"""Heads that several attentions have in common: they go together or not at all.

Lumina-Next: in a block, self-attention and cross-attention have no projection of their own between their heads and
             the sum  to_out(self + tanh(gate) * cross);  head h is that of both, with its gate.
Mochi:       one learned table of rotary frequencies (3, heads, head_dim / 2) serves all blocks, head by head; head h
             is that of every block, with its frequencies.
"""

from collections.abc import Sequence

from torch import nn

from reference.anatomy.attention import head_count, head_group, is_attention, projections, whole_group
from reference.anatomy.groups import Group, Slice


def heads(name: str, module: nn.Module) -> list[Group]:
    """The heads of Lumina-Next's block or of a whole Mochi model as one group, or nothing."""
    prefix = f"{name}." if name else ""
    parameters = vars(module)["_parameters"]
    if parameters.get("pos_frequencies") is not None and hasattr(module, "transformer_blocks"):
        groups = [
            whole_group(f"{prefix}transformer_blocks.{i}.attn1", block.attn1)
            for i, block in enumerate(module.transformer_blocks)
        ]
        return [_together(f"{prefix}transformer_blocks", groups, Slice(f"{prefix}pos_frequencies", 1, 0, 1, False))]
    own, cross = (getattr(module, part, None) for part in ("attn1", "attn2"))
    if parameters.get("gate") is None or not (own and cross and is_attention(own) and is_attention(cross)):
        return []
    if projections(own)[3]:
        return []
    groups = [head_group(f"{name}.attn1", own, head_count(own)), whole_group(f"{name}.attn2", cross)]
    return [_together(name, groups, Slice(f"{name}.gate", 0, 0, head_count(own) // groups[0].count, False))]


def _together(name: str, groups: Sequence[Group], shared: Slice) -> Group:
    """One group whose unit u is unit u of all the groups, with its part of a parameter that they share."""
    slices = (*(s for group in groups for s in group.slices), shared)
    reasons = sorted({group.approximate for group in groups} - {""})
    return Group(
        name,
        "attention",
        groups[0].count,
        slices,
        tuple(a for group in groups for a in group.attributes),
        tuple(n for group in groups for n in group.rms_norms),
        "; ".join(reasons),
    )
