"""Linear layers that a GPU runs faster than dense ones, if at all: packed 2:4 weights, and fp8.

2:4 by torch core, from Ampere on: cuSPARSELt, or CUTLASS kernels written for Ampere. Neither runs on a CPU; there
`unpacked` stands in, which packs a weight as CUTLASS wants it and unpacks it again for every product. It is slow, and
shows that the packing loses nothing.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from reference.anatomy import weight_layers
from reference.select import lowest_n_m

KERNELS = {"cusparselt": SparseSemiStructuredTensorCUSPARSELT, "cutlass": SparseSemiStructuredTensorCUTLASS}
BACKENDS = (*KERNELS, "unpacked")
FP8 = torch.float8_e4m3fn
SPARED = ("modulation",)  # one row a sample: no kernel gains there
FEWEST_ROWS = 16  # for fp8; below, quantising costs more than the product
Shape = tuple[int, int, int]  # outputs, inputs, rows


class Unpacked(nn.Module):
    """A linear layer whose weight is stored as CUTLASS packs it."""

    def __init__(self, W_oi: Tensor, bias: Tensor | None):
        super().__init__()
        values, meta = sparse_semi_structured_from_dense_cutlass(W_oi)
        self.register_buffer("values", values)
        self.register_buffer("meta", meta)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., i) -> (..., o)."""
        return F.linear(x, sparse_semi_structured_to_dense_cutlass(self.values, self.meta), self.bias)


class Fp8Linear(nn.Module):
    """W and x in e4m3 with one scale a row, largest magnitude 448; the product by `torch._scaled_mm`."""

    def __init__(self, W_oi: Tensor, bias: Tensor | None):
        super().__init__()
        weight, scale_o = _to_fp8(W_oi)
        self.register_buffer("weight", weight)
        self.register_buffer("scale_o", scale_o)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., i) -> (..., o)."""
        x_ni, scale_n = _to_fp8(x.reshape(-1, x.shape[-1]))
        y = torch._scaled_mm(x_ni, self.weight.t(), scale_n, self.scale_o.t(), self.bias, out_dtype=x.dtype)
        return y.unflatten(0, x.shape[:-1])


def _to_fp8(x_ni: Tensor) -> tuple[Tensor, Tensor]:
    """x_ni = fp8 * scale (n, 1)."""
    scale = x_ni.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / torch.finfo(FP8).max
    return (x_ni / scale).to(FP8), scale


def packed(layer: nn.Linear, backend: str) -> nn.Module:
    """The layer, whose weight has the pattern already, with its weight packed. -0.0 is written as 0.0 first.

    Raises RuntimeError where the kernel does not take the device, the dtype or the shape.
    """
    W_oi = layer.weight.detach() + 0.0
    if backend == "unpacked":
        return Unpacked(W_oi, layer.bias)
    found = nn.Linear(1, 1, bias=layer.bias is not None, device="meta")
    found.in_features, found.out_features = layer.in_features, layer.out_features
    found.weight = nn.Parameter(KERNELS[backend].from_dense(W_oi.contiguous()), requires_grad=False)
    found.bias = layer.bias
    return found


@torch.no_grad()
def halve(W_oi: Tensor) -> None:
    """Zero the first and third of every four: which two go changes no time, and to rank them all would take some."""
    W_oi.view(-1, 4)[:, ::2] = 0


@torch.no_grad()
def halve_smallest(W_oi: Tensor) -> None:
    """Zero the two smallest of every four."""
    W_oi.masked_fill_(lowest_n_m(W_oi, 2, 4, magnitudes=True), 0)


@torch.no_grad()
def mask_half(model: nn.Module, amount: float, seed: int = 0) -> None:
    """Zero so many of the weights inside repeated blocks at random, in place: which ones changes no time."""
    for layer in weight_layers(model):
        W = layer.module.weight
        if layer.repeated:
            g = torch.Generator(W.device).manual_seed(seed)
            W.masked_fill_(torch.rand(W.shape, generator=g, device=W.device) < amount, 0)


def row_counts(model: nn.Module, inputs: Mapping) -> dict[str, Shape]:
    """Outputs, inputs and rows of every large linear layer in the repeated blocks, as one forward sees them."""
    found: dict[str, Shape] = {}

    def hook(name: str) -> Callable:
        def seen(layer: nn.Module, args: tuple, _: object) -> None:
            found[name] = (layer.out_features, layer.in_features, args[0].numel() // layer.in_features)

        return seen

    layers = [la for la in weight_layers(model) if la.repeated and la.component not in SPARED]
    handles = [la.module.register_forward_hook(hook(la.name)) for la in layers if isinstance(la.module, nn.Linear)]
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def convert(
    model: nn.Module, inputs: Mapping, kind: str, decide: Callable[[Shape], str | None] | None = None
) -> dict[str, int]:
    """Put `2:4` (any backend that `decide` names for the shape, None for dense) or `fp8` layers into the model.

    Halves the weights of 2:4 layers, those that stay dense too. Returns how many layers each backend took.
    """
    taken: dict[str, int] = {}
    for name, shape in row_counts(model, inputs).items():
        layer = model.get_submodule(name)
        if kind == "2:4":
            if layer.in_features % 4:
                continue
            halve(layer.weight)
            backend = decide(shape)
        else:
            divides = layer.in_features % 16 == layer.out_features % 16 == 0
            backend = "fp8" if divides and shape[2] >= FEWEST_ROWS else None
        taken[backend or "dense"] = taken.get(backend or "dense", 0) + 1
        if backend:
            new = Fp8Linear(layer.weight, layer.bias) if backend == "fp8" else packed(layer, backend)
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, new)
    return taken
