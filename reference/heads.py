"""Attention-head pruning: structured pruning whose unit is a head.

    y = sum over h in K of W_O^(h) softmax(Q_h K_h^T / sqrt(d)) V_h    K: the heads that stay

"Are sixteen heads really better than one?" (Michel et al. 2019, arXiv 1905.10650) removes heads by the gradient of a
gate; here the score is the magnitude of all matrices of the head. A head of a joint attention (SD3, FLUX) is one unit
of both streams: up to eight matrices lose it together (`anatomy/attention.py`).
"""

from collections.abc import Mapping, Sequence

from torch import nn

from reference.models import units
from reference.plans import Plan


def plan_heads(model: nn.Module, heads: Mapping[int | str, Sequence[int]]) -> Plan:
    """A plan that removes the given heads: position in `units(model, "head")`, or its name, -> head numbers."""
    names = [group.name for group in units(model, "head")]
    removed = {}
    for key, numbers in heads.items():
        if isinstance(key, int) and not 0 <= key < len(names):
            raise ValueError(f"the model has {len(names)} attention layers, numbered from 0; there is no layer {key}")
        removed[names[key] if isinstance(key, int) else key] = numbers
    return Plan.from_removed(model, "head", removed)
