"""Which rate applies to which group, and which groups are ranked together."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from reference.anatomy import WeightLayer
from reference.anatomy.groups import Group
from reference.request import Request

COMPONENTS = ("attention", "feed_forward", "conv", "modulation", "other")
Target = TypeVar("Target", WeightLayer, Group)


def rate_keys(targets: Sequence[Target], amount: float | Mapping[str, float]) -> list[tuple[str, float]]:
    """For each target the key of `amount` that decides its rate, and the rate.

    Of a mapping the component names come first, then the patterns; the last that matches wins; no match is rate 0.
    """
    if not isinstance(amount, Mapping):
        return [("", float(amount))] * len(targets)
    used = set()
    decided = []
    ordered = sorted(amount, key=lambda key: key not in COMPONENTS)  # stable: patterns keep their order
    for target in targets:
        decision = ("", 0.0)
        for key in ordered:
            if key == target.component or (key not in COMPONENTS and fnmatchcase(target.name, key)):
                decision = (key, float(amount[key]))
                used.add(key)
        decided.append(decision)
    unused = [key for key in amount if key not in used]
    if unused:
        present = sorted({target.component for target in targets})
        raise ValueError(
            f"amount has the key {unused[0]!r}, which matches no layer; components here: {', '.join(present)}; "
            f"layers are named like {targets[0].name!r}"
        )
    return decided


def pools(root: nn.Module, targets: Sequence[Target], request: Request) -> list[tuple[float, list[Target]]]:
    """(rate, targets ranked together). Component and global scope rank within one rate of one denoiser."""
    together: dict[tuple, tuple[float, list[Target]]] = {}
    for target, (key, rate) in zip(targets, rate_keys(targets, request.amount), strict=True):
        denoiser = target.name.split(".")[0] if isinstance(root, nn.ModuleDict) else ""
        pool = {
            "row": target.name,
            "layer": target.name,
            "component": (denoiser, target.component, key),
            "global": (denoiser, key),
        }[request.scope]
        together.setdefault(pool, (rate, []))[1].append(target)
    return list(together.values())
