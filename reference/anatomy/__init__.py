"""Cut: which units a diffusers model has, and how each is masked and removed.

A rule describes one family of layout and is matched by the attributes that a module has, never by tracing. It answers
with `Group`s: the units that compete with each other, and every slice of every parameter that a unit spans.

`coverage.json` says for every denoiser class of diffusers and every granularity whether cutting was shown to equal
masking; `python -m tests.coverage` writes it by trying. A class that is not in it is refused: a wrong cut is silent.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from torch import nn

from reference.anatomy import attention, blocks, convolution, feed_forward, modulation, packed, parallel, tied
from reference.anatomy.blocks import BlockList
from reference.anatomy.groups import Group
from reference.errors import NotPrunable

RULES = {
    "head": (attention.heads, packed.heads, parallel.heads, tied.heads),
    "neuron": (feed_forward.neurons, parallel.neurons, convolution.neurons),
    "channel": (convolution.channels,),
    "block": (blocks.block_lists,),
    "rank": (modulation.directions,),
}
# What no rule can see from a module alone, because something around it depends on the units.
REFUSED = {
    ("PriorTransformer", "head"): "the mask is repeated by the config's head count, on which the token width depends",
    ("RFD4ProteinaTransformer", "rank"): "every norm reads another vector, made anew for each token",
    ("Flux3Transformer2DModel", "rank"): "one layer a modality serves all its blocks, with a vector for each token",
    ("ChromaTransformer2DModel", "rank"): "an approximator makes all modulation vectors; no block has a Linear for it",
}
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class WeightLayer(NamedTuple):
    """A Linear or convolution; `repeated` says that it lies in a list of blocks."""

    name: str
    module: nn.Module
    component: str
    repeated: bool


@cache
def coverage() -> dict[str, dict[str, dict[str, str]]]:
    """Class name -> granularity -> {"status": exact | approximate | refused | none, "reason": ...}."""
    return json.loads((Path(__file__).parent / "coverage.json").read_text())


def unit_groups(root: nn.Module, granularity: str) -> tuple[list[Group] | list[BlockList], dict[str, str]]:
    """The groups of `granularity` that can be cut, in module order, and name -> reason of those that cannot.

    Raises NotPrunable, with the reason, if the class is unknown or nothing of it can be cut.
    """
    for denoiser in denoisers(root).values():
        kind = type(denoiser).__name__
        if kind not in coverage():
            raise NotPrunable(
                f"{kind} is not among the {len(coverage())} classes whose cuts are tested; granularities 'weight' and "
                "'N:M' work on it. To add it: tests/zoo, then python -m tests.coverage"
            )
        verdict = coverage()[kind][granularity]
        if verdict["status"] in ("refused", "none"):
            raise NotPrunable(f"{kind}: {verdict['reason']}")
    found = without_ties(root, all_groups(root, granularity))
    groups = [group for group in found if not group.refused]
    refused = {group.name: group.refused for group in found if group.refused}
    if not groups:
        reason = next(iter(refused.values()), f"this configuration has no {granularity}s that a rule finds")
        raise NotPrunable(f"{type(root).__name__}: {reason}")
    return groups, refused


def all_groups(root: nn.Module, granularity: str) -> list[Group] | list[BlockList]:
    """What the rules find, tested or not. A config belongs to a whole denoiser, so the rules of blocks ask that."""
    modules = denoisers(root) if granularity == "block" else dict(root.named_modules())
    return [g for name, module in modules.items() for rule in RULES[granularity] for g in rule(name, module)]


def without_ties(root: nn.Module, groups: list[Group] | list[BlockList]) -> list[Group] | list[BlockList]:
    """The groups; those are refused that span one tensor under two names, for each has other units to cut from it."""
    names: dict[nn.Parameter, set[str]] = defaultdict(set)
    for group in (group for group in groups if isinstance(group, Group)):
        for s in group.slices:
            names[root.get_parameter(s.parameter)].add(s.parameter)
    tied = {name: sorted(same - {name})[0] for same in names.values() if len(same) > 1 for name in same}
    if not tied:
        return groups
    found = []
    for group in groups:
        shared = next((s.parameter for s in group.slices if s.parameter in tied), None)
        why = f"{shared} is tied to {tied[shared]}; give each a tensor of its own" if shared else group.refused
        found.append(group._replace(refused=why))
    return found


def denoisers(root: nn.Module) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by component name, or the one model under the name ""."""
    return dict(root.items()) if isinstance(root, nn.ModuleDict) else {"": root}


def weight_layers(root: nn.Module) -> Iterator[WeightLayer]:
    """Every Linear and convolution, in module order."""
    modules = dict(root.named_modules())
    for name, module in modules.items():
        if not isinstance(module, WEIGHT_LAYERS):
            continue
        parts = name.split(".")
        ancestors = [modules[".".join(parts[:i])] for i in range(len(parts))]
        repeated = any(isinstance(a, nn.ModuleList) and not _is_layer(above) for above, a in pairwise(ancestors))
        yield WeightLayer(name, module, _component(ancestors, module), repeated)


def _is_layer(module: nn.Module) -> bool:
    """An attention or a feed-forward, whose `to_out` and `net` are lists of layers, not of blocks."""
    return attention.is_attention(module) or feed_forward.is_feed_forward(module)


def _component(ancestors: list[nn.Module], layer: nn.Module) -> str:
    """Part of the network, decided by the innermost ancestor that a rule recognises."""
    if not isinstance(layer, nn.Linear):
        return "conv"
    for module in reversed(ancestors):
        if attention.is_attention(module) or packed.layout(module) or parallel.is_flux2_attention(module):
            return "attention"
        if feed_forward.is_feed_forward(module) or getattr(module, "proj_mlp", None) is layer:
            return "feed_forward"
        # AdaLayerNormZero and its kin: one Linear from the time embedding to shift, scale and gate.
        if isinstance(getattr(module, "linear", None), nn.Linear) and hasattr(module, "silu"):
            return "modulation"
    return "other"
