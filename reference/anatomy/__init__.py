"""Cut: which units a diffusers model has, and how each is masked and removed.

A rule describes one family of layout and is matched by the attributes that a module has, never by tracing. It answers
with `Group`s: the units that compete with each other, and every slice of every parameter that a unit spans.
To add a model: add its class to PROVEN once `tests/test_cut.py` passes on it, and a rule where none matches.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from reference.anatomy import attention, feed_forward
from reference.anatomy.groups import Group
from reference.errors import NotPrunable

RULES = {"head": (attention.heads,), "neuron": (feed_forward.neurons,)}
# Classes on which the tests show that cutting equals masking.
PROVEN = ("SD3Transformer2DModel",)
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class WeightLayer(NamedTuple):
    """A Linear or convolution; `repeated` says that it lies in a list of blocks."""

    name: str
    module: nn.Module
    component: str
    repeated: bool


def unit_groups(root: nn.Module, granularity: str) -> list[Group]:
    """All groups of `granularity` in module order. Raises NotPrunable if the model has none or no rule is proven."""
    for denoiser in denoisers_of(root):
        if type(denoiser).__name__ not in PROVEN:
            raise NotPrunable(
                f"no rule for {granularity!r} is proven on {type(denoiser).__name__}; proven: {', '.join(PROVEN)}. "
                "Granularities 'weight' and 'N:M' work on every class."
            )
    groups = []
    for name, module in root.named_modules():
        for rule in RULES[granularity]:
            groups.extend(rule(name, module))
    if not groups:
        raise NotPrunable(f"{type(root).__name__} has no {granularity}s")
    return groups


def denoisers_of(root: nn.Module) -> list[nn.Module]:
    """The denoisers themselves: of a pipeline's ModuleDict its values, else the model."""
    return list(root.values()) if isinstance(root, nn.ModuleDict) else [root]


def weight_layers(root: nn.Module) -> Iterator[WeightLayer]:
    """Every Linear and convolution, in module order."""
    modules = dict(root.named_modules())
    for name, module in modules.items():
        if not isinstance(module, WEIGHT_LAYERS):
            continue
        parts = name.split(".")
        ancestors = [modules[".".join(parts[:i])] for i in range(len(parts))]
        repeated = any(isinstance(a, nn.ModuleList) for a in ancestors)
        yield WeightLayer(name, module, _component(ancestors, module), repeated)


def _component(ancestors: list[nn.Module], layer: nn.Module) -> str:
    """Part of the network, decided by the innermost ancestor that a rule recognises."""
    for module in reversed(ancestors):
        if attention.is_attention(module):
            return "attention"
        if feed_forward.is_feed_forward(module):
            return "feed_forward"
        # AdaLayerNormZero and its kin: one Linear from the time embedding to shift, scale and gate.
        if isinstance(getattr(module, "linear", None), nn.Linear) and hasattr(module, "silu"):
            return "modulation"
    return "other" if isinstance(layer, nn.Linear) else "conv"
