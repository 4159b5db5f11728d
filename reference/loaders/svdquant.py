"""SVDQuant files of FLUX.1 (nunchaku, `svdq-int4_*` and `svdq-fp4_*`) as an ordinary diffusers transformer.

What is lost: the 4 bits are not given back. The result is the 4-bit approximation of the original weights, in 16 bits
(about 24 GB for FLUX.1), without nunchaku's kernels, memory and speed; activations stay in 16 bits, so its pictures
differ from nunchaku's.
"""

import json
import re
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reference.loaders.flux_names import (
    ADANORM_PARTS,
    AFTER_GELU,
    RENAMED_TENSORS,
    block_and_layer,
    diffusers_layers,
    natural,
)
from reference.loaders.packed4 import dense_adanorm, dense_linear
from reference.loaders.single_file import one_line

CLASSES = ("NunchakuFluxTransformer2dModel", "NunchakuFluxTransformer2DModelV2")
W4A4 = {"qweight", "wscales", "wcscales", "wtscale", "bias", "smooth", "smooth_orig", "lora_down", "lora_up"}
AWQ = {"qweight", "wscales", "wzeros", "bias"}


def is_svdquant(metadata: Mapping[str, str], names: set[str]) -> bool:
    """From a header alone: packed weights beside their scales, or metadata that says so."""
    if '"svdquant"' in metadata.get("quantization_config", ""):
        return True
    return any(name.endswith(".qweight") and f"{name[:-7]}wscales" in names for name in names)


def load_svdquant(
    file: Path, dtype: torch.dtype | None = None, read_config: Callable[[], dict] | None = None
) -> FluxTransformer2DModel:
    """The dense transformer (bf16 unless told otherwise); layer by layer, so that only one is ever in fp32.

    `read_config` gives the config of the transformer where the file has none. Raises ValueError, with the tensor, for
    anything that is not a whole SVDQuant file of FLUX.1.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            return _load(file, stored, dtype or torch.bfloat16, read_config)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut short or no safetensors file ({error}); download it again") from error


def _load(file: Path, stored: safe_open, dtype: torch.dtype, read_config: Callable[[], dict] | None):
    metadata, names = stored.metadata() or {}, set(stored.keys())
    kind = metadata.get("model_class", CLASSES[0])
    if kind not in CLASSES or "context_embedder.weight" not in names or "x_embedder.weight" not in names:
        what = f"of class {kind}" if kind not in CLASSES else "not of a FLUX.1 transformer"
        raise ValueError(f"{file}: SVDQuant weights {what}; only FLUX.1 transformers can be dequantised here")
    layers, plain = _sort(file, names)
    model = _empty_model(file, metadata, read_config, layers)
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    _check_names(file, layers, plain, expected)

    dense: dict[str, Tensor] = {}

    def put(name: str, value: Tensor, where: str) -> None:
        if tuple(value.shape) != expected[name]:
            raise ValueError(f"{file}: {where} makes {name} {tuple(value.shape)}; the config says {expected[name]}")
        dense[name] = value.to(dtype).clone(memory_format=torch.contiguous_format)
        if not dense[name].isfinite().all():
            raise ValueError(f"{file}: {where} holds values that are not finite in {dtype}; download the file again")

    for name, target in plain.items():
        tensor = stored.get_tensor(name)
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ValueError(f"{file}: {name} is {tensor.dtype}, a quantisation that SVDQuant files do not have there")
        put(target, tensor, name)
    halves: dict[str, tuple[Tensor, Tensor]] = {}
    for prefix, leaves in layers.items():
        block, layer = block_and_layer(prefix)
        _check_layer(file, prefix, stored, leaves)
        tensors = {leaf: stored.get_tensor(name) for leaf, name in leaves.items() if leaf != "smooth_orig"}
        if layer in ADANORM_PARTS:
            W_nk, bias = dense_adanorm(tensors, ADANORM_PARTS[layer])
        else:
            W_nk, bias = dense_linear(tensors, layer in AFTER_GELU)
        targets = diffusers_layers(block)[layer]
        if targets == ("proj_out",):
            halves[layer] = W_nk, bias
            if len(halves) < 2:
                continue
            W_nk = torch.cat([halves["out_proj"][0], halves["mlp_fc2"][0]], dim=1)
            bias = halves["out_proj"][1] + halves["mlp_fc2"][1]
            halves = {}
        for target, W, b in zip(targets, W_nk.chunk(len(targets)), bias.chunk(len(targets)), strict=True):
            put(f"{block}.{target}.weight", W, prefix)
            put(f"{block}.{target}.bias", b, prefix)
    model.load_state_dict(dense, strict=True, assign=True)
    return model.eval()


def _sort(file: Path, names: set[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Layer -> {tensor of the layer: stored name}, in the order of blocks; and stored name -> name in diffusers."""
    packed = sorted((name[: -len(".qweight")] for name in names if name.endswith(".qweight")), key=natural)
    layers: dict[str, dict[str, str]] = {prefix: {} for prefix in packed}
    plain = {}
    for name in sorted(names):
        prefix, _, leaf = name.rpartition(".")
        leaf = RENAMED_TENSORS.get(leaf, leaf)
        if prefix in layers:
            known = AWQ if block_and_layer(prefix)[1] in ADANORM_PARTS else W4A4
            if leaf not in known:
                raise ValueError(f"{file}: {name} is unknown; a layer of this kind has {', '.join(sorted(known))}")
            layers[prefix][leaf] = name
        else:
            plain[name] = re.sub(r"(blocks\.\d+)\.(norm_(?:added_)?[qk]\.)", r"\1.attn.\2", name)
    return layers, plain


def _empty_model(
    file: Path, metadata: Mapping[str, str], read_config: Callable[[], dict] | None, layers: Mapping[str, object]
) -> FluxTransformer2DModel:
    """The model that the config describes, without memory; its number of blocks is checked before it is built."""
    try:
        config = json.loads(metadata["config"]) if "config" in metadata else read_config and read_config()
    except ValueError as error:
        raise ValueError(f"{file}: the config in its metadata is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} has no config in its metadata; name its pipeline by base_model")
    blocks = {block_and_layer(prefix)[0] for prefix in layers}
    for key, kind in (("num_layers", "transformer_blocks."), ("num_single_layers", "single_transformer_blocks.")):
        held = sum(block.startswith(kind) for block in blocks)
        if config.get(key) != held:
            raise ValueError(f"{file} holds {held} {kind[:-1]}, its config says {config.get(key)}")
    # Their class has entries of its own, about which diffusers would tell the user to verify the config.
    config = {key: value for key, value in config.items() if key in signature(FluxTransformer2DModel).parameters}
    with one_line(f"{file}: a FluxTransformer2DModel with its config"), init_empty_weights(include_buffers=False):
        return FluxTransformer2DModel.from_config(config)


def _check_names(file: Path, layers: Mapping[str, object], plain: Mapping[str, str], expected: Mapping) -> None:
    """Every parameter comes from somewhere, and nothing is left over."""
    made = {target: name for name, target in plain.items()}
    fused: dict[str, set[str]] = {}
    for prefix in layers:
        block, layer = block_and_layer(prefix)
        if layer not in diffusers_layers(block):
            raise ValueError(f"{file}: {prefix} is no layer of a FLUX.1 block")
        for target in diffusers_layers(block)[layer]:
            fused.setdefault(f"{block}.{target}", set()).add(layer)
            made |= {f"{block}.{target}.{part}": prefix for part in ("weight", "bias")}
    missing = [name for name in expected if name not in made]
    missing += [target for target, of in fused.items() if target.endswith(".proj_out") and len(of) < 2]
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} parts, e.g. what makes {missing[0]}; download it again")
    extra = [made[target] for target in made if target not in expected]
    if extra:
        raise ValueError(f"{file}: {extra[0]} is not part of the FLUX.1 transformer that its config describes")


def _check_layer(file: Path, prefix: str, stored: safe_open, leaves: Mapping[str, str]) -> None:
    """Types and shapes of one layer's tensors, before any is read."""
    found = {leaf: (s.get_dtype(), tuple(s.get_shape())) for leaf, n in leaves.items() for s in [stored.get_slice(n)]}
    awq = block_and_layer(prefix)[1] in ADANORM_PARTS
    for leaf in AWQ if awq else ("qweight", "wscales", "bias", "smooth"):
        if leaf not in found:
            raise ValueError(f"{file}: {prefix} lacks {leaf}; download the file again")
    if ("lora_up" in found) != ("lora_down" in found):
        raise ValueError(f"{file}: {prefix} has one half of its low-rank branch; download the file again")

    kind, shape = found["qweight"]
    floats = ("BF16", "F16", "F32")
    if kind != ("I32" if awq else "I8") or len(shape) != 2:
        raise ValueError(f"{file}: {prefix}.qweight is {kind} {shape}, not the packed 4-bit codes of SVDQuant")
    N, K = shape[0] * (4 if awq else 1), 2 * shape[1]
    tile = (4 * ADANORM_PARTS[block_and_layer(prefix)[1]], 64) if awq else (128, 128)
    if not N or not K or N % tile[0] or K % tile[1]:
        raise ValueError(f"{file}: {prefix} is {N} x {K}; SVDQuant layers come in multiples of {tile[0]} x {tile[1]}")
    wanted = {"bias": (floats, {(N,)})}
    if awq:
        padded = -(-K // 64 // 16) * 16  # the converter pads the rows of scales to 16
        wanted |= dict.fromkeys(("wscales", "wzeros"), (floats, {(K // 64, N), (padded, N)}))
    else:
        rank = found["lora_up"][1][-1] if "lora_up" in found else 16
        if not rank or rank % 16:
            raise ValueError(f"{file}: {prefix} has a low-rank branch of rank {rank}, which is no multiple of 16")
        nvfp4 = found["wscales"][0] == "F8_E4M3"
        wanted["wscales"] = (("F8_E4M3",), {(K // 16, N)}) if nvfp4 else (floats, {(K // 64, N)})
        wanted |= {"smooth": (floats, {(K,)}), "smooth_orig": (floats, {(K,)}), "wcscales": (floats, {(N,)})}
        wanted |= {
            "wtscale": (floats, {(1,), ()}),
            "lora_up": (floats, {(N, rank)}),
            "lora_down": (floats, {(K, rank)}),
        }
    for leaf, (kind, shape) in found.items():
        if leaf != "qweight" and (kind not in wanted[leaf][0] or shape not in wanted[leaf][1]):
            right = " or ".join(map(str, wanted[leaf][1]))
            raise ValueError(f"{file}: {leaves[leaf]} is {kind} {shape}, not {'/'.join(wanted[leaf][0])} {right}")
