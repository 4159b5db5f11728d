"""`--precision`: what the weights are stored in and what is multiplied, decided by the machine and said plainly.

    bf16, fp16      dense 16-bit weights, the same in the multiplication
    fp8-storage     weights in float8 e4m3, each layer cast to bf16 while it computes: half the bytes, no speed
    fp8-compute     weights and activations in float8, multiplied as such; needs a GPU from sm_89 on and torchao
    fp8             fp8-compute where the machine can, else fp8-storage

Quantisation comes last: zeros stay zeros in float8, but a quantised model cannot be pruned. Storage is unscaled, so a
few tiny weights become zero besides the pruned ones: count zeros before the cast.
"""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import nn

from reference.models import denoisers_of

PRECISIONS = ("bf16", "fp16", "fp8", "fp8-storage", "fp8-compute")


class Precision(NamedTuple):
    """`dtype` that weights are loaded and pruned in; what follows (`none`, `storage`, `compute`); what to tell."""

    dtype: torch.dtype
    quantise: str
    meaning: str


def resolve(precision: str) -> Precision:
    """What a precision means on this machine. Raises ValueError if it is unknown or the machine cannot do it."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose {', '.join(PRECISIONS)}")
    if precision in ("bf16", "fp16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        return Precision(dtype, "none", f"{precision}: 16-bit weights and multiplication")
    lacking = _lacking_for_compute()
    if precision == "fp8-compute" and lacking:
        raise ValueError(f"fp8-compute {lacking}; fp8-storage works here")
    if precision == "fp8-storage" or lacking:
        reason = f" ({lacking})" if precision == "fp8" else ""
        text = f"{precision}: float8 e4m3 storage only, bf16 multiplication, no speed-up{reason}"
        return Precision(torch.bfloat16, "storage", text)
    text = f"{precision}: float8 e4m3 weights and activations, multiplied in float8 by torchao"
    return Precision(torch.bfloat16, "compute", text)


def quantise(pipeline: DiffusionPipeline, precision: Precision) -> str:
    """Quantise the pruned denoisers in place; what became of them in one line."""
    found = list(denoisers_of(pipeline).values())
    if precision.quantise == "compute":
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

        pipeline.to("cuda")
        for denoiser in found:
            quantize_(denoiser, Float8DynamicActivationFloat8WeightConfig())
    elif precision.quantise == "storage":
        for denoiser in found:
            denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=precision.dtype)
    else:
        return "nothing quantised"
    weights = [m.weight for d in found for m in d.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    packed = [w for w in weights if type(w) is not nn.Parameter or w.dtype == torch.float8_e4m3fn]
    return f"{len(packed)} of {len(weights)} layers in float8; the others are in {precision.dtype}"


def _lacking_for_compute() -> str:
    """What this machine lacks for float8 multiplication; empty if nothing."""
    if not torch.cuda.is_available():
        return "needs a GPU, and there is none"
    if torch.cuda.get_device_capability() < (8, 9):
        major, minor = torch.cuda.get_device_capability()
        return f"needs a GPU from sm_89 on, this one is sm_{major}{minor}"
    return "" if find_spec("torchao") else "needs torchao (pip install torchao)"
