"""SVDQuant files: the packer equals upstream, the loader gives the numbers back, wrong files are refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference.loaders import packed4 as p4
from reference.loaders.svdquant import load_svdquant
from tests import svdquant_files as files

# sha256 of what the packers of deepcompressor (69f3473f) and nunchaku (92e46957) write for the inputs given below.
UPSTREAM = {
    "qweight": "367b191735a908111635e13d09e8886c64b840fa0573c44f35edf510a73dca98",
    "wscales_int4": "c67367538051b23af9183eab34aa22cdfc661bc8c3f5cd996e44e768eb5f5ace",
    "wscales_nvfp4": "443727e2ec432e534ec7048025ee2269634749ee0afbc4d1914fb8f10f1cc84e",
    "vector": "317cc51f8a688e0800b592023c967824b896ff89e582de2fc7b7e6cd982c7aa0",
    "lora_down": "a390d0d400b7b9f39147bdfc70ae5407a3867672d92a87e622524050c1ed143f",
    "lora_up": "d074e6e62b5a44ea64e555a46f82d314b2e3cbaa83c8825c1e34707b67f47a74",
    "awq/qweight": "2f67100e938f616c72a87ab6726e10fd5489ade75ccac8908385dd955a1e0290",
    "adanorm3/qweight": "79ffa2bea9781662eb529c7ab238542c04693e197d4e5fa818883921ee8568f6",
    "adanorm3/wscales": "a43cd2f515a1f4a7f5df0695ed3b25ae57057e0e118a8ba2cce5e42f81681a9e",
    "adanorm3/wzeros": "25cceef659d9d0c50aaa84cadd8cd527c0f6c3abcd4f72dcbddc661e30ecf9d1",
    "adanorm3/bias": "c4741a0480f318c894a12cdd106cee21257dd9c630cd8d079e28c198d9a51f27",
}


def grid(N: int, K: int) -> tuple[Tensor, Tensor]:
    return torch.arange(N)[:, None], torch.arange(K)[None]


def anchors() -> dict[str, Tensor]:
    """What our packer writes for the inputs of `UPSTREAM`."""
    i, j = grid(256, 256)
    codes = (7 * i + 3 * j + 5 * (i // 16) + 11 * (j // 32)) % 16
    i_g, g = grid(256, 4)
    scales = ((1 + (13 * i_g + 29 * g) % 97) / 64).bfloat16()
    i_h, h = grid(256, 16)
    scales_fp8 = ((5 * i_h + 11 * h) % 120).to(torch.uint8).view(torch.float8_e4m3fn)
    up_i, up_j = grid(256, 32)
    L_up = ((((19 * up_i + 23 * up_j) % 255) - 127) / 128).bfloat16()
    down_i, down_j = grid(32, 256)
    L_down = ((((19 * down_i + 23 * down_j) % 255) - 127) / 128).bfloat16()
    a_i, a_j = grid(384, 128)
    awq = (7 * a_i + 3 * a_j + 5 * (a_i // 4) + 9 * (a_j // 64)) % 16
    n, k = grid(384, 2)
    awq_scales = torch.exp2(-(4.0 + (n + k) % 3)).bfloat16()
    awq_bias = ((11 * torch.arange(384) % 127 - 63) / 64).bfloat16()
    adanorm = files.pack_adanorm(awq, awq_scales, awq_bias, parts=3)
    return {
        "qweight": files.pack_codes(codes),
        "wscales_int4": files.pack_scales(scales),
        "wscales_nvfp4": files.pack_scales(scales_fp8),
        "vector": files.pack_vector(((37 * torch.arange(256) % 251 - 125) / 64).bfloat16()),
        "lora_down": files.pack_down(L_down),
        "lora_up": files.pack_up(L_up),
        "awq/qweight": files.pack_awq(awq),
        **{f"adanorm3/{name}": tensor for name, tensor in adanorm.items()},
    }


def test_packer_equals_the_upstream_packers():
    ours = {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in anchors().items()
    }
    assert ours == UPSTREAM


@pytest.mark.parametrize("newer_names", [False, True], ids=["older names", "newer names"])
@pytest.mark.parametrize("nvfp4", [False, True], ids=["int4", "nvfp4"])
def test_dense_weights_come_back_bit_for_bit(tmp_path, nvfp4, newer_names):
    file, dense = files.write_flux(tmp_path, nvfp4, newer_names)
    loaded = load_svdquant(file, torch.float32).state_dict()
    assert loaded.keys() == dense.keys()
    different = [name for name in dense if not torch.equal(loaded[name], dense[name])]
    assert different == []
    in_bf16 = load_svdquant(file)
    assert {tensor.dtype for tensor in in_bf16.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(in_bf16.x_embedder.weight, dense["x_embedder.weight"].bfloat16())


@pytest.mark.parametrize("nvfp4", [False, True], ids=["int4", "nvfp4"])
def test_dense_linear_computes_what_the_kernel_computes(nvfp4):
    """The kernel: smoothed input through the codes, raw input through the low rank, the int4 shift before the codes."""
    g = torch.Generator().manual_seed(1)
    tensors, _, _ = files.linear(128, 256, nvfp4, fused=False, after_gelu=True, g=g)
    x = torch.randint(-8, 9, (3, 256), generator=g).double() / 8
    codes = p4.untile(p4.nibbles(tensors["qweight"]), p4.codes_layout(128, 256))
    smooth, bias = p4.vector(tensors["smooth"]).double(), p4.vector(tensors["bias"]).double()
    if nvfp4:
        value = p4.E2M1.double()[codes.long()] * tensors["wtscale"].double()
        scales = p4.untile(tensors["wscales"].view(torch.uint8), p4.nvfp4_scales_layout(128, 16)).contiguous()
        scale, x_in = scales.view(torch.float8_e4m3fn).double(), x
    else:
        value = (codes.long() - 16 * (codes > 7)).double()
        scale, x_in = p4.untile(tensors["wscales"], p4.scales_layout(128, 4)).double(), x + p4.GELU_SHIFT
    quantised = (x_in / smooth) @ (value * scale.repeat_interleave(256 // scale.shape[1], dim=1)).T
    L_up, L_down = tensors["lora_up"], tensors["lora_down"]
    L_up = p4.untile(L_up, p4.up_layout(128, 16)).double()
    L_down = p4.untile(L_down, p4.down_layout(16, 256)).double()
    W, b = p4.dense_linear(tensors, after_gelu=True)
    assert torch.equal(x @ W.double().T + b.double(), quantised + bias + (x @ L_down.T) @ L_up.T)


@pytest.mark.skipif("SVDQUANT_FILE" not in os.environ, reason="SVDQUANT_FILE names no published file (24 GB of memory)")
def test_a_published_file():
    model = load_svdquant(Path(os.environ["SVDQUANT_FILE"]))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_smoothing_folded_into_the_layer_before_needs_nothing(tmp_path):
    def fold(tensors: dict, metadata: dict) -> None:
        for name in [name for name in tensors if name.endswith(".smooth")]:
            tensors[name] = torch.ones_like(tensors[name])

    file, dense = files.write_flux(tmp_path, change=fold)
    model = load_svdquant(file, torch.float32)
    assert not torch.equal(model.transformer_blocks[0].attn.to_q.weight, dense["transformer_blocks.0.attn.to_q.weight"])
    assert torch.equal(
        model.transformer_blocks[0].norm1.linear.weight, dense["transformer_blocks.0.norm1.linear.weight"]
    )


def test_a_file_without_metadata_is_read_with_a_config_from_elsewhere(tmp_path):
    file, dense = files.write_flux(tmp_path, nvfp4=True, change=lambda tensors, metadata: metadata.clear())
    loaded = load_svdquant(file, torch.float32, lambda: files.CONFIG).state_dict()
    assert all(torch.equal(loaded[name], dense[name]) for name in dense)
    with pytest.raises(ValueError, match="no config in its metadata; name its pipeline by base_model"):
        load_svdquant(file)


def without(name: str):
    return lambda tensors, metadata: tensors.pop(name)


def replaced(name: str, make):
    return lambda tensors, metadata: tensors.update({name: make(tensors[name])})


QKV = "transformer_blocks.0.qkv_proj"


def poison(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor[0] = float("nan")
    return tensor


def odd_inputs(tensors: dict, metadata: dict) -> None:
    tensors[f"{QKV}.qweight"] = tensors[f"{QKV}.qweight"][:, :32].contiguous()


def described(**changes):
    return lambda tensors, metadata: metadata.update({key: json.dumps(value) for key, value in changes.items()})


REFUSED = {
    "missing qweight": (without(f"{QKV}.qweight"), "transformer_blocks.0"),
    "missing scales": (without(f"{QKV}.wscales"), f"{QKV} lacks wscales"),
    "half a low rank": (without(f"{QKV}.lora_up"), "one half of its low-rank branch"),
    "missing plain tensor": (without("proj_out.weight"), "lacks 1 parts, e.g. what makes proj_out.weight"),
    "missing half of proj_out": (
        lambda tensors, metadata: [
            tensors.pop(n) for n in list(tensors) if n.startswith("single_transformer_blocks.1.mlp_fc2")
        ],
        "what makes single_transformer_blocks.1.proj_out",
    ),
    "foreign tensor": (lambda t, m: t.update({"y_embedder.weight": torch.zeros(2)}), "y_embedder.weight is not part"),
    "foreign leaf": (lambda t, m: t.update({f"{QKV}.zeros": torch.zeros(2)}), f"{QKV}.zeros is unknown"),
    "foreign layer": (
        lambda t, m: t.update({f"transformer_blocks.0.gate.{n}": t[f"{QKV}.{n}"].clone() for n in ("qweight", "bias")}),
        "transformer_blocks.0.gate is no layer of a FLUX.1 block",
    ),
    "64 inputs": (odd_inputs, "384 x 64; SVDQuant layers come in multiples of 128 x 128"),
    "scales of another width": (replaced(f"{QKV}.wscales", lambda t: t[:1].clone()), r"wscales is BF16 \(1, 384\)"),
    "unpacked weight": (replaced(f"{QKV}.qweight", lambda t: t.float()), "not the packed 4-bit codes"),
    "rank 8": (
        lambda t, m: t.update({f"{QKV}.{n}": t[f"{QKV}.{n}"][:, :8].clone() for n in ("lora_up", "lora_down")}),
        "rank 8, which is no multiple of 16",
    ),
    "not finite": (replaced("x_embedder.bias", poison), "x_embedder.bias holds values that are not finite"),
    "smooth of zero": (replaced(f"{QKV}.smooth", torch.zeros_like), f"{QKV} holds values that are not finite"),
    "8 bits elsewhere": (replaced("x_embedder.weight", lambda t: t.to(torch.int8)), "x_embedder.weight is torch.int8"),
    "other model": (lambda t, m: m.update(model_class="NunchakuQwenImageTransformer2DModel"), "only FLUX.1"),
    "SDXL": (lambda t, m: (m.pop("model_class"), t.pop("context_embedder.weight")), "only FLUX.1"),
    "broken config": (lambda t, m: m.update(config="{"), "config in its metadata is no JSON"),
    "config of no model": (
        described(config=files.CONFIG | {"num_attention_heads": "two"}),
        "with its config cannot be loaded",
    ),
    "config without end": (
        described(config=files.CONFIG | {"in_channels": 10**30}),
        "with its config cannot be loaded",
    ),
    "another depth": (described(config=files.CONFIG | {"num_layers": 10**9}), "holds 2 transformer_blocks, its config"),
    "another width": (described(config=files.CONFIG | {"num_attention_heads": 4}), "the config says"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_files_are_refused_in_one_line(tmp_path, case):
    change, message = REFUSED[case]
    file, _ = files.write_flux(tmp_path, change=change)
    with pytest.raises(ValueError, match=message) as raised:
        load_svdquant(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_truncated_file_is_refused(tmp_path):
    file, _ = files.write_flux(tmp_path)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut short or no safetensors file"):
        load_svdquant(file)


def test_rows_of_zeros_that_pad_the_scales_change_nothing():
    g = torch.Generator().manual_seed(0)
    packed, W, bias = files.adanorm(6, g)
    assert packed["wscales"].shape == (16, 768)
    short = packed | {name: packed[name][:2] for name in ("wscales", "wzeros")}
    for tensors in (packed, short):
        found, b = p4.dense_adanorm(tensors, 6)
        assert torch.equal(found.double(), W)
        assert torch.equal(b.double(), bias)
