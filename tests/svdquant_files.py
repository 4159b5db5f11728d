"""SVDQuant files of FLUX.1 made from known numbers, and the small FLUX pipeline that they belong to.

The packer scatters through the same index tables that the loader gathers through; `test_svdquant.py` holds both
against digests of what the upstream packers write.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from reference.loaders import packed4 as p4
from reference.loaders.flux_names import ADANORM_PARTS, AFTER_GELU, DOUBLE, RENAMED_LAYERS, RENAMED_TENSORS, SINGLE

WIDTH, RANK = 128, 16
CONFIG = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": [8, 28, 28],
}


def tile(rows: Tensor, layout: p4.Layout) -> Tensor:
    """The inverse of `untile`, flat."""
    back = torch.tensor(layout.order).argsort().tolist()
    return rows.reshape([layout.view[axis] for axis in layout.order]).permute(back).flatten()


def pack_codes(codes: Tensor) -> Tensor:
    """Codes 0..15 (N, K) -> qweight int8 (N, K / 2)."""
    N, K = codes.shape
    return _bytes(tile(codes, p4.codes_layout(N, K))).view(torch.int8).reshape(N, K // 2)


def pack_scales(scales: Tensor) -> Tensor:
    """Scales (N, G) -> wscales (G, N): int4, or nvfp4 if they are float8."""
    N, G = scales.shape
    if scales.dtype == torch.float8_e4m3fn:
        return tile(scales.view(torch.uint8), p4.nvfp4_scales_layout(N, G)).view(scales.dtype).reshape(G, N)
    return tile(scales, p4.scales_layout(N, G)).reshape(G, N)


def pack_vector(vector: Tensor) -> Tensor:
    return tile(vector[:, None], p4.scales_layout(len(vector), 1))


def pack_up(L_up: Tensor) -> Tensor:
    return tile(L_up, p4.up_layout(*L_up.shape)).reshape(L_up.shape)


def pack_down(L_down: Tensor) -> Tensor:
    return tile(L_down, p4.down_layout(*L_down.shape)).reshape(L_down.T.shape)


def pack_awq(codes: Tensor) -> Tensor:
    """Codes 0..15 (N, K) -> qweight int32 (N / 4, K / 2)."""
    N, K = codes.shape
    return _bytes(tile(codes, p4.awq_layout(N, K))).view(torch.int32).reshape(N // 4, K // 2)


def pack_adanorm(codes: Tensor, scales: Tensor, bias: Tensor, parts: int, padded: bool = False) -> dict[str, Tensor]:
    """W = (codes - 7) * scales, rows in the order of diffusers; codes (N, K), scales (N, K / 64), bias (N,)."""
    N = len(bias)
    order = torch.arange(N).view(parts, N // parts).T.flatten()  # stored row j * parts + s is row s * (N / parts) + j
    bias = bias.clone().view(parts, -1)
    bias[list({1, parts - 2})] += 1
    scales = scales[order].T.contiguous()
    if padded:
        scales = torch.cat([scales, torch.zeros(-len(scales) % 16, N, dtype=scales.dtype)])
    packed = {"qweight": pack_awq(codes[order]), "wscales": scales, "wzeros": (scales.float() * -7).to(scales.dtype)}
    return packed | {"bias": bias.flatten()[order]}


def _bytes(nibbles: Tensor) -> Tensor:
    low, high = nibbles.to(torch.uint8).view(-1, 2).unbind(dim=1)
    return low | high << 4


def linear(
    N: int, K: int, nvfp4: bool, fused: bool, after_gelu: bool, g: torch.Generator
) -> tuple[dict, Tensor, Tensor]:
    """Tensors of one quantised Linear, and its dense weight and bias. All numbers are exact in float32.

    `fused`: several layers of diffusers in one, which have a scale a row instead of one a tensor (nvfp4).
    """
    group = 16 if nvfp4 else 64

    def powers(shape: tuple[int, ...], low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g).double().exp2()

    codes = torch.randint(0, 16, (N, K), generator=g)
    scales, smooth = powers((N, K // group), -6, -3), powers((K,), -1, 2)
    L_up, L_down = (torch.randint(-4, 5, shape, generator=g).double() / 64 for shape in ((N, RANK), (RANK, K)))
    bias = torch.randint(-8, 9, (N,), generator=g).double() / 64
    value = p4.E2M1.double()[codes] if nvfp4 else (codes - 16 * (codes > 7)).double()
    R = value * scales.repeat_interleave(group, dim=1)
    tensors = {"smooth_orig": pack_vector(powers((K,), -1, 2).bfloat16())}
    if nvfp4 and fused:
        rows = powers((N,), -2, 1)
        tensors["wcscales"] = pack_vector(rows.bfloat16())
        R = R * rows[:, None]
    elif nvfp4:
        tensors["wtscale"] = torch.tensor([0.5]).bfloat16()
        R = R * 0.5
    R = R / smooth
    shift = p4.GELU_SHIFT * R.sum(dim=1) if after_gelu and not nvfp4 else torch.zeros(N)
    tensors |= {
        "qweight": pack_codes(codes),
        "wscales": pack_scales(scales.to(torch.float8_e4m3fn if nvfp4 else torch.bfloat16)),
        "bias": pack_vector((bias - shift).float()),
        "smooth": pack_vector(smooth.bfloat16()),
        "lora_up": pack_up(L_up.bfloat16()),
        "lora_down": pack_down(L_down.bfloat16()),
    }
    return tensors, R + L_up @ L_down, bias


def tiny_flux(
    nvfp4: bool = False, newer_names: bool = False, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the file, state dict of the dense transformer in fp32); two double and two single blocks."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    twin = FluxTransformer2DModel(**CONFIG)
    dense = {name: tensor.bfloat16().float() for name, tensor in twin.state_dict().items()}
    in_blocks = {name for name in dense if "blocks." in name and "attn.norm" not in name}
    tensors = {n.replace(".attn.norm", ".norm"): t.bfloat16() for n, t in dense.items() if n not in in_blocks}
    if newer_names:
        tensors = {n: t.bfloat16() for n, t in dense.items() if n not in in_blocks}
    sizes = {"mlp_fc1": (4 * WIDTH, WIDTH), "mlp_context_fc1": (4 * WIDTH, WIDTH)}
    sizes |= {"mlp_fc2": (WIDTH, 4 * WIDTH), "mlp_context_fc2": (WIDTH, 4 * WIDTH)}
    sizes |= {"qkv_proj": (3 * WIDTH, WIDTH), "qkv_proj_context": (3 * WIDTH, WIDTH)}
    for kind, layers in (("transformer_blocks", DOUBLE), ("single_transformer_blocks", SINGLE)):
        for block in (f"{kind}.{i}" for i in range(2)):
            halves: list[tuple[Tensor, Tensor]] = []
            for layer, targets in layers.items():
                if layer in ADANORM_PARTS:
                    packed, W, bias = adanorm(ADANORM_PARTS[layer], g)
                else:
                    size = sizes.get(layer, (WIDTH, WIDTH))
                    packed, W, bias = linear(*size, nvfp4, len(targets) > 1, layer in AFTER_GELU, g)
                for leaf, tensor in packed.items():
                    tensors[_name(kind, block, layer, leaf, newer_names)] = tensor
                if targets == ("proj_out",):
                    halves.append((W, bias))
                    continue
                chunks = zip(targets, W.chunk(len(targets)), bias.chunk(len(targets)), strict=True)
                for target, W_part, bias_part in chunks:
                    dense[f"{block}.{target}.weight"] = W_part.float()
                    dense[f"{block}.{target}.bias"] = bias_part.float()
            if halves:
                dense[f"{block}.proj_out.weight"] = torch.cat([W for W, _ in halves], dim=1).float()
                dense[f"{block}.proj_out.bias"] = sum(bias for _, bias in halves).float()
    return tensors, dense


def adanorm(parts: int, g: torch.Generator) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    N, K = parts * WIDTH, WIDTH
    codes = torch.randint(0, 16, (N, K), generator=g)
    scales = torch.randint(-6, -3, (N, K // 64), generator=g).double().exp2()
    bias = torch.randint(-8, 9, (N,), generator=g).double() / 64
    packed = pack_adanorm(codes, scales.bfloat16(), bias.bfloat16(), parts, padded=True)
    return packed, (codes - 7) * scales.repeat_interleave(64, dim=1), bias


def _name(kind: str, block: str, layer: str, leaf: str, newer: bool) -> str:
    if newer:
        back = {old: new for new, old in RENAMED_LAYERS.items()}
        if kind.startswith("single"):
            back = {"qkv_proj": "attn.to_qkv", "out_proj": "attn.to_out"}
        elif layer == "out_proj":
            back["out_proj"] = "attn.to_out.0"
        layer = back.get(layer, layer)
        leaf = {old: new for new, old in RENAMED_TENSORS.items()}.get(leaf, leaf)
    return f"{block}.{layer}.{leaf}"


def metadata(nvfp4: bool = False) -> dict[str, str]:
    weight = {"dtype": "fp4_e2m1_all" if nvfp4 else "int4", "group_size": 16 if nvfp4 else 64}
    quantization = {"method": "svdquant", "rank": RANK, "weight": weight, "activation": weight}
    return {
        "config": json.dumps(CONFIG | {"_class_name": "NunchakuFluxTransformer2dModel", "in_their_files": 1}),
        "quantization_config": json.dumps(quantization),
        "model_class": "NunchakuFluxTransformer2dModel",
        "comfy_config": "{}",
    }


def write_flux(
    folder: Path, nvfp4: bool = False, newer_names: bool = False, change: Callable[[dict, dict], None] | None = None
) -> tuple[Path, dict[str, Tensor]]:
    """(file, dense state dict). `change(tensors, metadata)` spoils the file before it is written."""
    tensors, dense = tiny_flux(nvfp4, newer_names)
    header = metadata(nvfp4)
    if change:
        change(tensors, header)
    file = folder / f"svdq-{'fp4' if nvfp4 else 'int4'}_r16-flux.1-dev.safetensors"
    save_file(tensors, file, header)
    return file, dense


def write_pipeline(folder: Path) -> Path:
    """A FLUX pipeline folder with random weights: real classes, tokenizers of a few letters."""
    torch.manual_seed(0)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    clip_words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTextConfig(
        vocab_size=len(clip_words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=len(clip_words) - 2,
        eos_token_id=len(clip_words) - 1,
        pad_token_id=len(clip_words) - 1,
    )
    t5_words = ["<pad>", "</s>", "<unk>", "▁", *letters]
    t5 = T5Config(vocab_size=len(t5_words), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    clip_tokenizer = CLIPTokenizer({w: i for i, w in enumerate(clip_words)}, merges=[], model_max_length=77)
    t5_tokenizer = T5TokenizerFast([(w, -1.0) for w in t5_words], extra_ids=0, model_max_length=512)
    vae = AutoencoderKL(
        latent_channels=16,
        block_out_channels=(8,),
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.36,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    transformer = FluxTransformer2DModel(**CONFIG)
    pipeline = FluxPipeline(
        scheduler, vae, CLIPTextModel(clip), clip_tokenizer, T5EncoderModel(t5), t5_tokenizer, transformer
    )
    pipeline.save_pretrained(folder)
    return folder
