"""The names of FLUX.1 layers in SVDQuant files and in diffusers."""

import re

# Layers of a block in the file -> layers of diffusers, which share the rows evenly.
DOUBLE = {
    "qkv_proj": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "qkv_proj_context": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "out_proj": ("attn.to_out.0",),
    "out_proj_context": ("attn.to_add_out",),
    "mlp_fc1": ("ff.net.0.proj",),
    "mlp_fc2": ("ff.net.2",),
    "mlp_context_fc1": ("ff_context.net.0.proj",),
    "mlp_context_fc2": ("ff_context.net.2",),
    "norm1.linear": ("norm1.linear",),
    "norm1_context.linear": ("norm1_context.linear",),
}
# The output of a single block is one Linear over [attention | feed-forward]: two layers of the file side by side.
SINGLE = {
    "qkv_proj": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "out_proj": ("proj_out",),
    "mlp_fc1": ("proj_mlp",),
    "mlp_fc2": ("proj_out",),
    "norm.linear": ("norm.linear",),
}
ADANORM_PARTS = {"norm1.linear": 6, "norm1_context.linear": 6, "norm.linear": 3}
AFTER_GELU = ("mlp_fc2", "mlp_context_fc2")
# Newer names -> the names above.
RENAMED_LAYERS = {
    "attn.to_qkv": "qkv_proj",
    "attn.add_qkv_proj": "qkv_proj_context",
    "attn.to_out.0": "out_proj",
    "attn.to_out": "out_proj",
    "attn.to_add_out": "out_proj_context",
    "ff.net.0.proj": "mlp_fc1",
    "ff.net.2": "mlp_fc2",
    "ff_context.net.0.proj": "mlp_context_fc1",
    "ff_context.net.2": "mlp_context_fc2",
}
RENAMED_TENSORS = {
    "smooth_factor": "smooth",
    "smooth_factor_orig": "smooth_orig",
    "proj_down": "lora_down",
    "proj_up": "lora_up",
}


def block_and_layer(prefix: str) -> tuple[str, str]:
    """`transformer_blocks.3.attn.to_qkv` -> `transformer_blocks.3`, `qkv_proj`."""
    block, layer = re.fullmatch(r"((?:single_)?transformer_blocks\.\d+)\.(.+)|.*", prefix).groups()
    return block or "", RENAMED_LAYERS.get(layer, layer or prefix)


def diffusers_layers(block: str) -> dict[str, tuple[str, ...]]:
    """Layers of the file -> layers of diffusers, for this block; nothing for what is no block."""
    return SINGLE if block.startswith("single_") else DOUBLE if block else {}


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
