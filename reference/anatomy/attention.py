"""Heads of an attention with one Linear each for q, k and v, alone or joined by a second stream of text.

Head h owns `head_dim` rows or columns at h * head_dim:
    rows of     q, k, v and of the second stream's add_q_proj, add_k_proj, add_v_proj, with their biases
    columns of  the output projection, and of to_add_out
One softmax runs over both streams, so a head is one unit of all these matrices together. The last joint block of SD3
drops its text output: there to_add_out is None and add_q_proj feeds nothing, yet must keep the common head count.
Where k and v have fewer heads than q (grouped queries), a unit is a head of k and v with the queries that share it;
with a single one (multi-query), the queries' heads alone.

Norms of q and k: per head, they know nothing of other heads; across heads, an RMS norm is rescaled (exact), a
LayerNorm's mean moves (approximate).
"""

from collections.abc import Iterator

from torch import nn

from reference.anatomy.groups import Group, Slice

# Names of q, k, v and of the output projection, where the last may be the first entry of a list.
PROJECTIONS = (
    ("to_q", "to_k", "to_v", "to_out"),
    ("query", "key", "value", "proj_attn"),
    ("to_query", "to_key", "to_value", "out_layer"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
)
# Further producers: as wide as q, or as wide as k and v; further consumers; gates on the output of each head.
Q_LIKE = ("add_q_proj", "to_q_t", "q_img", "to_gate", "to_g")
KV_LIKE = ("add_k_proj", "add_v_proj", "to_k_t", "to_v_t", "k_img", "v_img")
OUT_LIKE = ("to_add_out", "to_out_t")
# One number a head: multiplied with its keys, or made by a Linear as a gate on its output.
PER_HEAD = ("history_key_scale",)
GATES = ("to_gate_logits",)
HEAD_COUNTS = ("heads", "num_heads", "num_attention_heads", "sliceable_head_dim", "n_heads")
KV_COUNTS = ("kv_heads", "num_kv_heads", "num_key_value_heads")
WIDTHS = ("inner_dim", "channels")
KV_WIDTHS = ("inner_kv_dim",)
Q_NORMS = ("norm_q", "norm_added_q", "q_norm", "query_norm", "q_rms_norm", "q_rms_norm_t")
K_NORMS = ("norm_k", "norm_added_k", "k_norm", "key_norm", "k_rms_norm", "k_rms_norm_t")
# Processors of attentions that share their heads with other modules: `tied.py` has those.
TIED = ("LuminaAttnProcessor2_0", "MochiAttnProcessor2_0")
# What processors hold: keys and values of an IP-Adapter's image, which belong to the heads, and a norm, which does not.
IP_ADAPTER = ("to_k_ip", "to_v_ip")
IP_NORM = "norm_ip"
# The type of the processor begins with this -> why the width is fixed.
FIXED = {
    "FluxIPAdapter": "its IP-Adapter adds the heads' outputs to the residual without a projection, so the heads are "
    "fixed",
    "AttnAddedKVProcessor": "its processor reshapes the output to the width of the residual, so the heads are fixed",
    "RFD4Proteina": "its processor reshapes the output to the width of the tokens, so the number of heads is fixed",
}
# Rotary tables over all heads, each at its own frequencies; the cross-attentions to text are given none.
ROTARY_ACROSS_HEADS = ("LTXVideo", "LTX2AudioVideo", "LTX2Perturbed", "SanaWMLTX2")
WITHOUT_ROTARY = ("attn2", "audio_attn2")


def projections(module: nn.Module) -> tuple[str, str, str, str] | None:
    """Attribute names of q, k, v and out (out may be "" where the block holds it), or None if this is no attention."""
    for q, k, v, out in PROJECTIONS:
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in (q, k, v)):
            found = getattr(module, out, None)
            if isinstance(found, nn.Linear):
                return q, k, v, out
            if isinstance(found, nn.ModuleList | nn.Sequential) and isinstance(found[0], nn.Linear):
                return q, k, v, f"{out}.0"
            return q, k, v, ""
    return None


def is_attention(module: nn.Module) -> bool:
    """Has this layout."""
    return projections(module) is not None


def head_count(module: nn.Module) -> int | None:
    """How many heads the queries have."""
    q = projections(module)[0]
    for name in HEAD_COUNTS:
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    head_dim = getattr(module, "head_dim", None)
    return getattr(module, q).out_features // head_dim if head_dim else None


def heads(name: str, module: nn.Module) -> list[Group]:
    """The heads of one attention module as a group, or nothing if it is no attention with its own output."""
    found = projections(module)
    return [whole_group(name, module)] if found and found[3] and _processor(module) not in TIED else []


def whole_group(name: str, module: nn.Module) -> Group:
    """The group of an attention that has an output projection."""
    q, _, _, out = projections(module)
    group = head_group(name, module, head_count(module))
    columns = Slice(f"{name}.{out}.weight", 1, 0, module.get_submodule(q).out_features // group.count)
    extra = [columns._replace(parameter=f"{name}.{path}.weight") for path in OUT_LIKE if _has(module, path)]
    return group._replace(slices=(*group.slices, columns, *extra))


def head_group(name: str, module: nn.Module, count: int) -> Group:
    """The group of an attention without its consumers."""
    q, k, v, _ = projections(module)
    width = module.get_submodule(q).out_features // count
    kv_width = module.get_submodule(k).out_features
    kv_count = max(1, kv_width // width)
    shared = count // kv_count if kv_count > 1 else 1  # query heads a unit
    units = count // shared

    slices, norms, reasons = [], [], []
    for producer in (q, *Q_LIKE):
        if _has(module, producer):
            slices += linear_rows(f"{name}.{producer}", getattr(module, producer), width * shared)
    for producer in (k, v, *KV_LIKE):
        if _has(module, producer) and kv_count > 1:  # the one head of multi-query attention serves whoever is left
            slices += linear_rows(f"{name}.{producer}", getattr(module, producer), width)
    slices += _of_processor(name, module, width)
    parameters = dict(module.named_parameters())
    for p in PER_HEAD:
        if p in parameters and len(parameters[p]) == count:
            slices.append(Slice(f"{name}.{p}", 0, 0, shared, masked=False))
    for gate in GATES:
        if _has(module, gate):
            slices += linear_rows(f"{name}.{gate}", getattr(module, gate), shared)
    for candidates, each in ((Q_NORMS, width * shared), (K_NORMS, width)):
        for norm in candidates:
            weight = getattr(getattr(module, norm, None), "weight", None)
            if weight is None or weight.numel() == width:
                continue
            slices.append(Slice(f"{name}.{norm}.weight", 0, 0, each, masked=False))
            if getattr(getattr(module, norm), "bias", None) is not None:
                slices.append(Slice(f"{name}.{norm}.bias", 0, 0, each, masked=False))
            eps = next(e for e in ("eps", "variance_epsilon") if hasattr(getattr(module, norm), e))
            if "RMS" in type(getattr(module, norm)).__name__:
                norms.append((f"{name}.{norm}", eps))
            else:
                reasons.append(f"{norm} takes its mean across heads")

    # Attention.sliceable_head_dim is another number than heads where the width was given by out_dim.
    sizes = [(a, shared) for a in HEAD_COUNTS if getattr(module, a, None) == count]
    sizes += [(a, 1) for a in KV_COUNTS if kv_count > 1]
    if _processor(module).startswith(("OmniGen", "Cosmos")):
        sizes.append(("out_dim", width * shared))  # these processors read the inner width under this name
    sizes += [(a, width * shared) for a in WIDTHS] + [(a, width) for a in KV_WIDTHS if kv_count > 1]
    attributes = tuple((name, a, each) for a, each in sizes if type(vars(module).get(a)) is int)
    why = refusal(name, module)
    return Group(name, "attention", units, tuple(slices), attributes, tuple(norms), "; ".join(reasons), why)


def refusal(name: str, module: nn.Module) -> str:
    """Why the heads of this attention cannot be removed although their layout is known, or ""."""
    if getattr(module, "fused_projections", False):
        return "its projections are fused; call unfuse_qkv_projections() first"
    for kind, why in FIXED.items():
        if _processor(module).startswith(kind):
            return why
    for part, child in getattr(getattr(module, "processor", None), "_modules", {}).items():
        if part not in (*IP_ADAPTER, IP_NORM) and any(isinstance(m, nn.Linear) for m in child.modules()):
            return f"its processor, {_processor(module)}, has a projection {part!r} that no rule knows"
    if _processor(module).startswith(ROTARY_ACROSS_HEADS) and name.rpartition(".")[2] not in WITHOUT_ROTARY:
        return "the rotary table spans all heads, each at its own frequencies, and forward takes no part of it"
    if _processor(module).startswith("EasyAnimate") and not _has(module, "to_add_out"):
        return "the text stream takes this attention's output without a projection"
    return ""


def _of_processor(name: str, module: nn.Module, width: int) -> Iterator[Slice]:
    """Projections that live in the processor: the image keys and values of an IP-Adapter, of several in a list."""
    for part in IP_ADAPTER:
        found = getattr(getattr(module, "processor", None), part, None)
        if found is not None:
            for path, linear in found.named_modules(prefix=f"{name}.processor.{part}"):
                if isinstance(linear, nn.Linear):
                    yield from linear_rows(path, linear, width)


def linear_rows(name: str, linear: nn.Linear, width: int, start: int = 0) -> Iterator[Slice]:
    """The rows of a Linear and its bias."""
    yield Slice(f"{name}.weight", 0, start, width)
    if linear.bias is not None:
        yield Slice(f"{name}.bias", 0, start, width)


def _processor(module: nn.Module) -> str:
    return type(getattr(module, "processor", None)).__name__


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Linear)
