"""Quantised weights: recognised by their tensors, made dense where diffusers offers it, never changed while packed.

`isinstance(module, nn.Linear)` is not enough: a GGUF or 4-bit Linear *is* an `nn.Linear` whose weight is a matrix of
bytes, and zeroing the smallest bytes would corrupt it silently.
"""

import torch
from torch import Tensor, nn

from reference.errors import NotPrunable

REMEDY = "prune first and quantise afterwards, from weights of 16 bits or more"
HOLD_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def packed_weight(model: nn.Module) -> str | None:
    """What is not a plain matrix of at least 16-bit floats: its name and why; None if everything can be pruned."""
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"{name} is quantised or sharded ({type(parameter).__name__})"
        if _is_code(parameter):
            return f"{name} is quantised ({parameter.dtype})"
    for name, buffer in model.named_buffers():
        if buffer.ndim == 2 and "weight" in name.rpartition(".")[2] and _is_code(buffer):
            return f"{name} is quantised ({buffer.dtype})"
    for name, module in model.named_modules():
        if not isinstance(module, HOLD_WEIGHTS):
            continue
        if "weight" not in module._parameters:
            return f"{name}.weight is computed anew in every forward; remove the parametrization or torch's mask"
        if isinstance(module, nn.Linear) and tuple(module.weight.shape) != (module.out_features, module.in_features):
            return f"{name}.weight is packed: shape {tuple(module.weight.shape)} in a Linear of another size"
    return None


def dequantise(model: nn.Module, dtype: torch.dtype | None = None) -> str | None:
    """Make a model that diffusers quantised dense in place; what was done, or None if it is not quantised.

    `dtype` of the dense weights, by default the one that the quantised model computes in. Raises NotPrunable where
    diffusers has no way back.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None
    method = str(
        getattr(quantizer.quantization_config.quant_method, "value", quantizer.quantization_config.quant_method)
    )
    dtype = dtype or getattr(quantizer, "compute_dtype", None) or model.dtype
    try:
        model.dequantize()
    except NotImplementedError:
        raise NotPrunable(f"{packed_weight(model)}: diffusers cannot dequantise {method}; {REMEDY}") from None
    for module in model.modules():  # GGUF: diffusers unpacks the Linears only
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "quant_type", None) is not None:
                from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

                setattr(module, name, nn.Parameter(dequantize_gguf_tensor(parameter)))
    model._internal_dict = type(model.config)({k: v for k, v in model.config.items() if k != "quantization_config"})
    cast(model, dtype)
    left = packed_weight(model)
    if left:
        raise NotPrunable(f"{left} after dequantising {method}: {REMEDY}")
    return f"{method} weights were dequantised to {dtype}: their memory and speed are not kept"


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """What is stored of a model to another dtype, in place, as `from_pretrained` does it.

    Unlike `model.to(dtype)` it leaves in fp32 what the class wants in fp32 (time embeddings and norms of Wan), and
    computed buffers, such as rotary frequencies, as they are.
    """
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if keep & set(name.split(".")) else dtype)


def _is_code(tensor: Tensor) -> bool:
    """Integers, or floats of 8 bits and fewer, that stand for weights."""
    return not tensor.dtype.is_floating_point or tensor.itemsize < 2
