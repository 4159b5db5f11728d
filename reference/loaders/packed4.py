"""The arithmetic of SVDQuant and AWQ weights: from the packed 4-bit codes of a layer to its dense matrix.

SVDQuant (Li et al. 2024, arXiv 2411.05007) keeps a low-rank branch in 16 bits and quantises the rest to 4:

    W = R + L_up L_down,    R_nk = code_nk * scale_ng * (one scale a tensor) * (one scale a row n) / smooth_k

with g = k // 64 for int4 and k // 16 for nvfp4. The kernels divide the activations by `smooth`, so the dense weight is
divided by it; the low-rank branch sees the raw activations. For int4 the second Linear of a feed-forward gets
GELU(x) + 0.171875, so that its 4 bits need no sign; what that shift adds is in the bias and comes out again here.

The AdaNorm layers are quantised by another scheme (AWQ): code * scale + zero, in groups of 64.

Everything is stored in the order in which a tile of the GPU reads it: a `Layout` is the view of the stored elements
and the order of axes that makes them rows and columns again.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # nvfp4: bit 3 is the sign
GELU_SHIFT = 0.171875


class Layout(NamedTuple):
    """`flat.reshape(view).permute(order).reshape(shape)` are rows and columns."""

    view: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]


def codes_layout(N: int, K: int) -> Layout:
    """4-bit codes (N, K) of a quantised Linear, as nibbles, the low half of a byte first."""
    return Layout((N // 128, K // 64, 8, 8, 4, 2, 2, 8), (0, 2, 5, 3, 1, 6, 4, 7), (N, K))


def scales_layout(N: int, G: int) -> Layout:
    """int4 scales (N, G), one for 64 columns. With G = 1: bias, smooth and row scales."""
    return Layout((N // 128, G, 8, 4, 2, 2), (0, 2, 4, 3, 5, 1), (N, G))


def nvfp4_scales_layout(N: int, G: int) -> Layout:
    """nvfp4 scales (N, G), one for 16 columns."""
    return Layout((N // 128, G // 4, 8, 4, 4, 4), (0, 4, 3, 2, 1, 5), (N, G))


def up_layout(N: int, R: int) -> Layout:
    """L_up (N, R)."""
    return Layout((N // 16, R // 16, 8, 4, 2, 2, 2), (0, 4, 2, 1, 5, 3, 6), (N, R))


def down_layout(R: int, K: int) -> Layout:
    """L_down (R, K)."""
    return Layout((K // 16, R // 16, 8, 4, 2, 2, 2), (1, 4, 2, 0, 5, 3, 6), (R, K))


def awq_layout(N: int, K: int) -> Layout:
    """4-bit codes (N, K) of an AdaNorm layer, as nibbles."""
    return Layout((N // 4, K // 64, 4, 2, 8, 4), (0, 2, 1, 3, 5, 4), (N, K))


def untile(stored: Tensor, layout: Layout) -> Tensor:
    """Rows and columns of what is stored, whatever its stored shape."""
    return stored.reshape(layout.view).permute(layout.order).reshape(layout.shape)


def nibbles(stored: Tensor) -> Tensor:
    """The two 4-bit codes 0..15 of every byte, low half first, flat uint8."""
    octets = stored.contiguous().flatten().view(torch.uint8)
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten()


def dense_linear(t: Mapping[str, Tensor], after_gelu: bool) -> tuple[Tensor, Tensor]:
    """W_nk (N, K) and the bias (N,) of a quantised Linear from its tensors (older names), both fp32.

    `after_gelu`: the layer is the second of a feed-forward, where int4 inputs are shifted.
    """
    N, K = t["qweight"].shape[0], 2 * t["qweight"].shape[1]
    codes = untile(nibbles(t["qweight"]), codes_layout(N, K))
    int4 = t["wscales"].dtype != torch.float8_e4m3fn
    if int4:
        value = ((codes ^ 8).to(torch.int8) - 8).float()  # two's complement
        scale = untile(t["wscales"], scales_layout(N, K // 64)).float()
    else:
        value = E2M1.index_select(0, codes.flatten().int()).reshape(N, K)
        scale = untile(t["wscales"].view(torch.uint8), nvfp4_scales_layout(N, K // 16)).contiguous()
        scale = scale.view(torch.float8_e4m3fn).float()
    R_nk = (value.view(N, scale.shape[1], -1) * scale[:, :, None]).view(N, K)
    if "wtscale" in t:
        R_nk *= t["wtscale"].float()
    if "wcscales" in t:
        R_nk *= vector(t["wcscales"])[:, None]
    R_nk /= vector(t["smooth"])
    bias = vector(t["bias"])
    if int4 and after_gelu:
        bias = bias + GELU_SHIFT * R_nk.sum(dim=1)
    if "lora_up" in t:
        rank = t["lora_up"].shape[1]
        L_up, L_down = untile(t["lora_up"], up_layout(N, rank)), untile(t["lora_down"], down_layout(rank, K))
        R_nk.addmm_(L_up.float(), L_down.float())
    return R_nk, bias


def dense_adanorm(t: Mapping[str, Tensor], parts: int) -> tuple[Tensor, Tensor]:
    """W_nk (N, K) and the bias (N,) of an AdaNorm Linear, whose rows make `parts` vectors (shift, scale, gate, ...).

    Stored row j * parts + s belongs to vector s. The 1 of every `1 + scale` is in the stored bias; diffusers adds its
    own, so it comes off: vectors 1 and, of six, 4.
    """
    N, K = 4 * t["qweight"].shape[0], 2 * t["qweight"].shape[1]
    codes = untile(nibbles(t["qweight"]), awq_layout(N, K)).float()
    scale, zero = (t[name][: K // 64].float().T[:, :, None] for name in ("wscales", "wzeros"))
    W_nk = (codes.view(N, K // 64, 64) * scale + zero).view(N, K)
    bias = t["bias"].float().view(-1, parts).T.clone()
    bias[list({1, parts - 2})] -= 1
    return W_nk.view(N // parts, parts, K).transpose(0, 1).reshape(N, K), bias.flatten()


def vector(stored: Tensor) -> Tensor:
    """bias, smooth or row scales (N,) in fp32."""
    return untile(stored, scales_layout(stored.numel(), 1)).float().flatten()
