"""What was done to a model, step by step: kept with it, saved with it, enough to do the same to a LoRA.

A step is a dictionary of JSON types but for `keep`:
    granularity, mode, request, digest   of the plan; the digest is that of the model before the step
    keep    group -> numbers of the units that stay (kept,), for the groups that lost some in a cut
    cut     group -> [units, [[parameter, dim, start, width], ...]]: what each unit spanned (`anatomy/groups.py`)
    moved   module -> its new name, or None where it left: blocks are renumbered when others go
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from reference.anatomy import denoisers, unit_groups
from reference.anatomy.groups import Group
from reference.plans import Plan
from reference.request import STRUCTURED


@contextmanager
def recorded(root: nn.Module, plan: Plan, mode: str) -> Iterator[None]:
    """Carry out the plan inside; the step is then added to the history of every denoiser of `root`."""
    models = denoisers(root)
    names = {prefix: {m: name for name, m in denoiser.named_modules()} for prefix, denoiser in models.items()}
    groups = unit_groups(root, plan.granularity)[0] if mode == "cut" and plan.granularity in STRUCTURED else []
    cut = [group for group in groups if len(plan.keep.get(group.name, [])) < group.count and group.name in plan.keep]
    yield
    for component, denoiser in models.items():
        prefix = f"{component}." if component else ""
        mine = {group.name.removeprefix(prefix): group for group in cut if group.name.startswith(prefix)}
        after = {m: name for name, m in denoiser.named_modules()}
        step = {
            "granularity": plan.granularity,
            "mode": mode,
            "request": plan.request,
            "digest": plan.digest,
            "keep": {name: plan.keep[group.name] for name, group in mine.items()},
            "cut": {name: _spans(group, prefix) for name, group in mine.items() if isinstance(group, Group)},
            "moved": _moved(names[component], after),
        }
        denoiser._pruning_history = [*getattr(denoiser, "_pruning_history", []), step]


def _spans(group: Group, prefix: str) -> list:
    # UNetFlat computes its widths with numpy, whose integers are no JSON.
    places = ([s.parameter.removeprefix(prefix), *map(int, (s.dim, s.start, s.width))] for s in group.slices)
    return [int(group.count), list(places)]


def _moved(before: dict[nn.Module, str], after: dict[nn.Module, str]) -> dict[str, str | None]:
    """Old name -> new name or None, of the outermost modules whose names changed."""
    moved: dict[str, str | None] = {}
    for module, name in before.items():  # parents come first
        if after.get(module) != renamed(name, moved):
            moved[name] = after.get(module)
    return moved


def renamed(name: str, moved: dict[str, str | None]) -> str | None:
    """The name after a step that moved these modules, None if the module left."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        old = ".".join(parts[:end])
        if old in moved:
            return None if moved[old] is None else moved[old] + name[len(old) :]
    return name
