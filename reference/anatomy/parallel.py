"""Single-stream blocks, where attention and MLP run side by side and share the output projection.

Two layouts, both with the columns of the output ordered [attention | MLP]:
    FLUX and its kin   block.attn has q, k, v but no output; block.proj_mlp; block.proj_out
    FLUX.2             attn.to_qkv_mlp_proj holds the rows [q | k | v | gate | value], attn.to_out the columns
A neuron's column therefore starts after the attention's width: counted from 0 it would cut into the heads, in silence.
"""

from torch import nn

from reference.anatomy.attention import head_count, head_group, linear_rows, projections
from reference.anatomy.groups import Group, Slice


def is_flux_block(module: nn.Module) -> bool:
    """FLUX's single block."""
    attention = getattr(module, "attn", None)
    found = projections(attention) if isinstance(attention, nn.Module) else None
    linears = (getattr(module, "proj_mlp", None), getattr(module, "proj_out", None))
    return bool(found) and not found[3] and all(isinstance(linear, nn.Linear) for linear in linears)


def is_flux2_attention(module: nn.Module) -> bool:
    """FLUX.2's fused attention and MLP."""
    return isinstance(getattr(module, "to_qkv_mlp_proj", None), nn.Linear)


def heads(name: str, module: nn.Module) -> list[Group]:
    """The heads of a single-stream block."""
    if is_flux_block(module):
        group = head_group(f"{name}.attn", module.attn, head_count(module.attn))
        width = module.attn.get_submodule(projections(module.attn)[0]).out_features // group.count
        slices = [*group.slices, Slice(f"{name}.proj_out.weight", 1, 0, width)]
        if isinstance(getattr(module, "cross_attn", None), nn.Module):
            # Motif: it reads the heads' outputs without a projection between, and adds its own to them.
            into, out = f"{name}.cross_attn.to_q", f"{name}.cross_attn.to_out.0"
            slices += [Slice(f"{into}.weight", 1, 0, width), *linear_rows(out, module.cross_attn.to_out[0], width)]
        return [group._replace(slices=tuple(slices))]
    if is_flux2_attention(module):
        width, inner = module.head_dim, module.inner_dim
        rows = [
            s
            for i in range(3)
            for s in linear_rows(f"{name}.to_qkv_mlp_proj", module.to_qkv_mlp_proj, width, i * inner)
        ]
        columns = Slice(f"{name}.to_out.weight", 1, 0, width)
        attributes = ((name, "heads", 1), (name, "inner_dim", width))
        return [Group(name, "attention", inner // width, (*rows, columns), attributes)]
    return []


def neurons(name: str, module: nn.Module) -> list[Group]:
    """The neurons of a single-stream block."""
    if is_flux_block(module):
        q = module.attn.get_submodule(projections(module.attn)[0])
        start, producer, owner = q.out_features, f"{name}.proj_mlp", module
        hidden = module.proj_out.in_features - start
        linear, first, consumer = module.proj_mlp, 0, f"{name}.proj_out.weight"
    elif is_flux2_attention(module):
        start, producer, owner = module.inner_dim, f"{name}.to_qkv_mlp_proj", module
        hidden = module.to_out.in_features - start
        linear, first, consumer = module.to_qkv_mlp_proj, 3 * start, f"{name}.to_out.weight"
    else:
        return []
    rows = [s for at in range(first, linear.out_features, hidden) for s in linear_rows(producer, linear, 1, at)]
    sized = type(vars(owner).get("mlp_hidden_dim")) is int
    attributes = ((name, "mlp_hidden_dim", 1),) if sized else ()
    return [Group(name, "feed_forward", hidden, (*rows, Slice(consumer, 1, start, 1)), attributes)]
