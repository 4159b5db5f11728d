"""Which layers and groups a request reaches: the default targets, narrowed by `only` and `skip`."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from reference.anatomy import WeightLayer, weight_layers
from reference.anatomy.groups import Group
from reference.errors import NotPrunable
from reference.request import Request, parse_n_m

Target = TypeVar("Target", WeightLayer, Group)


def weight_targets(root: nn.Module, request: Request) -> tuple[list[WeightLayer], dict[str, str]]:
    """The weight layers to prune, and why each other one is left whole.

    By default the Linear and convolution weights inside lists of blocks; `only` can reach the rest. For N:M those whose
    input channels divide into groups of M.
    """
    layers = list(weight_layers(root))
    if not layers:
        raise NotPrunable(f"{type(root).__name__} has no Linear or convolution weights")
    chosen, skipped = matching(layers, request)
    if request.only is None:
        for layer in [layer for layer in chosen if not layer.repeated]:
            skipped[layer.name] = "outside the repeated blocks; `only` reaches it"
        chosen = [layer for layer in chosen if layer.repeated]
    if not chosen:
        raise NotPrunable(f"{type(root).__name__} has no weights inside lists of blocks; name layers with `only`")
    if parse_n_m(request.granularity):
        _, m = parse_n_m(request.granularity)
        for layer in [layer for layer in chosen if layer.module.weight.shape[1] % m]:
            skipped[layer.name] = f"{layer.module.weight.shape[1]} inputs do not divide into groups of {m}"
        chosen = [layer for layer in chosen if layer.name not in skipped]
        if not chosen:
            raise NotPrunable(f"{type(root).__name__} has no weights whose inputs divide into groups of {m}")
    return chosen, skipped


def matching(targets: Sequence[Target], request: Request) -> tuple[list[Target], dict[str, str]]:
    """Targets whose names match `only` and none of `skip`. A pattern that matches nothing raises ValueError."""
    only, skip = patterns(request.only), patterns(request.skip)
    names = [target.name for target in targets]
    if request.only is not None and not only:
        raise ValueError("only is empty, so there is nothing to prune; leave it out, or name layers")
    for keyword, given in (("only", only), ("skip", skip)):
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"{keyword}={pattern!r} matches none of the {len(names)} layers, e.g. {names[0]!r}")
    chosen, skipped = [], {}
    for target in targets:
        if only and not any(fnmatchcase(target.name, pattern) for pattern in only):
            skipped[target.name] = "not matched by `only`"
        elif any(fnmatchcase(target.name, pattern) for pattern in skip):
            skipped[target.name] = "matched by `skip`"
        else:
            chosen.append(target)
    return chosen, skipped


def patterns(given: str | Sequence[str] | None) -> list[str]:
    """`only` or `skip` as a list."""
    return [] if given is None else [given] if isinstance(given, str) else list(given)
