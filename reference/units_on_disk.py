"""Which heads, neurons, channels, blocks and directions go, of a checkpoint that does not fit into memory.

Which units there are is read off the model without memory. A pass finds what their scores are made of, the functions
that select in memory select, and the model without memory is cut by the same code as ever, so that names, shapes and
config of the result are known before anything is written:

    head, neuron, channel   a pass: scores (units,) of every slice         written: the indices that stay
    block                   a pass: the sum of squares of every tensor     written: the blocks that stay, renumbered
    rank                    a pass: G (d, d), then its eigenvectors        written: W B^T, and the basis B
    random scores           no pass
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reference.anatomy import denoisers, unit_groups
from reference.anatomy.blocks import BlockList
from reference.anatomy.groups import Group, compressed, norm_factors, staying
from reference.anatomy.modulation import layers_of, times
from reference.anatomy.skipping import members
from reference.criteria.magnitude import square_sum, unit_scores
from reference.depth import remove_blocks
from reference.engine import carry_out, flag_approximate
from reference.errors import NotPrunable
from reference.history import recorded, renamed
from reference.low_rank import gram, remove_directions
from reference.passes import Change, Decision, Passes
from reference.plans import Plan
from reference.streaming import Entry
from reference.structured import remove_units


def decide_units(passes: Passes) -> Decision:
    """What to do to each tensor, and what it amounts to; the model without memory is cut here."""
    root, plan, granularity = passes.root, passes.plan, passes.request.granularity
    groups = {group.name: group for group in unit_groups(root, granularity)[0]}
    select = {"block": select_blocks, "rank": select_directions}.get(granularity, select_widths)
    removed, plan.skipped, plan.weights = select(passes, list(groups.values()))
    chosen = Plan.of(granularity, removed, digest="")
    plan.keep, plan.shapes = chosen.keep, chosen.shapes
    flag_approximate(plan, groups.values(), passes.request.exact_only)
    units = {groups[name]: gone.nonzero().flatten() for name, gone in removed.items()}
    change, added = {"block": keep_all, "rank": project}.get(granularity, shrink)(passes, units)
    names = {name: name for name in root.state_dict()}
    with recorded(root, plan, "cut"):
        carry_out(root, plan, "cut")
    if granularity == "block":
        names = {name: name_after(root, name) for name in names}
        if {*names.values()} - {None} != {*root.state_dict()}:
            raise NotPrunable("blocks share tensors in a way that their names do not show; load the model to prune it")
    total = sum(gone.numel() for gone in removed.values())
    gone = sum(int(gone.sum()) for gone in removed.values())
    facts = {"units": total, "removed": gone, "layers": len(removed), "skipped": len(plan.skipped)}
    return Decision(change, facts, names.__getitem__, added)


def name_after(root: nn.Module, name: str) -> str | None:
    """What a tensor is called after the cut that the history noted last; None if it left."""
    for component, model in denoisers(root).items():
        prefix = f"{component}." if component else ""
        if name.startswith(prefix):
            found = renamed(name.removeprefix(prefix), model._pruning_history[-1]["moved"])
            return found and prefix + found
    raise KeyError(name)


# --- select: group -> booleans (units,), group -> why it was skipped, `plan.weights` ---------------------------------

Selected = tuple[dict[str, Tensor], dict[str, str], dict[str, Tensor]]


def select_widths(passes: Passes, groups: Sequence[Group]) -> Selected:
    """Heads, neurons and channels."""
    if passes.request.criterion == "random":
        return *remove_units(passes.root, passes.request), {}
    scores = passes.found("scores", lambda: width_scores(passes, groups))

    def scorer(*_: object) -> tuple[Callable[[Group], Tensor], dict]:
        return lambda group: scores[group.name], {}

    return *remove_units(passes.root, passes.request, scorer=scorer), {}


def width_scores(passes: Passes, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Magnitudes (units,) of every group: one pass over the tensors that its units span."""
    p = 1 if passes.request.criterion == "magnitude-l1" else 2
    spans: dict[str, list[tuple[Group, int]]] = {}
    for group in groups:
        for i, s in enumerate(group.slices):
            if s.masked:
                spans.setdefault(s.parameter, []).append((group, i))
    parts: dict[tuple[str, int], Tensor] = {}
    for entry, W in passes.read(spans):
        for group, i in spans[entry.name]:
            s = group.slices[i]
            span = W.narrow(s.dim, s.start, s.width * group.count)
            parts[group.name, i] = unit_scores([(span, s.dim)], group.count, p)
    scores = {group.name: torch.zeros(group.count) for group in groups}
    for group in groups:  # added in the order of the slices, as in memory
        for i in (i for i, s in enumerate(group.slices) if s.masked):
            scores[group.name] = scores[group.name] + parts[group.name, i]
    return scores


def select_blocks(passes: Passes, groups: Sequence[BlockList]) -> Selected:
    """Blocks, by the sums of squares of their tensors."""
    root = passes.root
    names = {parameter: name for name, parameter in root.named_parameters()}
    blocks = [module for group in groups for module in members(root, group, range(group.count))]
    theirs = {names[parameter] for block in blocks for parameter in block.parameters()}

    def find() -> dict[str, Tensor]:
        return {entry.name: torch.tensor(square_sum(W), dtype=torch.float64) for entry, W in passes.read(theirs)}

    sums = {} if passes.request.criterion == "random" else passes.found("squares", find)
    return *remove_blocks(root, passes.request, square_sum=lambda parameter: float(sums[names[parameter]])), {}


def select_directions(passes: Passes, groups: Sequence[Group]) -> Selected:
    """Directions of the modulation's inputs: G is d x d, whatever the number of layers; one of them is read at a time.

    The eigenvectors, in fp64, take more memory than the buffers, which are given up for them and taken again.
    """

    def find(group: Group) -> dict[str, Tensor]:
        return {"G": gram(W for _, W in passes.read_in_order([f"{layer}.weight" for layer in layers_of(group)]))}

    def gram_of(group: Group) -> Tensor:
        passes.make_buffers()
        G_dd = passes.found(group.name, lambda: find(group))["G"]
        passes.buffers = None
        return G_dd

    selected = remove_directions(passes.root, passes.request, gram_of=gram_of)
    passes.make_buffers()
    return selected


# --- what to write for each tensor, and which tensors are new; asked before the model is cut -------------------------

Units = Mapping[Group, Tensor] | Mapping[BlockList, Tensor]


def shrink(passes: Passes, units: Units) -> tuple[Change, dict[str, Tensor]]:
    """The indices that stay, of every dimension that units span; norms over all units rescaled."""
    kept = staying(passes.root, units)
    factors = {}
    for group, gone in units.items():
        if len(gone):
            factors |= norm_factors(group, group.count - len(gone))

    def change(entry: Entry, W: Tensor) -> Tensor:
        if entry.name in factors:
            W.mul_(factors[entry.name])
        for dim in range(W.ndim):
            if (entry.name, dim) in kept:
                W = compressed(W, dim, kept[entry.name, dim])
        return W

    return change, {}


def keep_all(passes: Passes, units: Units) -> tuple[Change, dict[str, Tensor]]:
    """Blocks leave as a whole; what stays keeps its bits."""
    return lambda entry, W: W, {}


def project(passes: Passes, units: Units) -> tuple[Change, dict[str, Tensor]]:
    """W B^T for every layer of a group; basis and mean are new, named after its first layer. Biases stay: mu = 0."""
    bases, added = {}, {}
    for group in (group for group, gone in units.items() if len(gone)):
        for layer in layers_of(group):
            bases[f"{layer}.weight"] = passes.plan.weights[f"{group.name}.basis"]
        for part in ("basis", "mean"):
            of_dtype = passes.plan.weights[f"{group.name}.{part}"].to(passes.dtypes[f"{group.name}.weight"])
            added[f"{group.name}.{part}"] = of_dtype
    return lambda entry, W: times(W, bases[entry.name].T) if entry.name in bases else W, added
