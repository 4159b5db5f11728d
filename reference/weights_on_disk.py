"""Which single weights go, of a checkpoint that does not fit into memory: `unstructured.py` and N:M out of core.

Layer and row scope and N:M look at one layer while it is in a buffer. Wider scopes take a pass before, which counts
(`threshold.py`): what it leaves behind is one cut for every layer, a key and how many of those equal to it go.
"""

import json

import numpy as np
import torch
from torch import Tensor

from reference import threshold
from reference.criteria.magnitude import weight_scores
from reference.criteria.random import random_generator
from reference.history import recorded
from reference.passes import Decision, Passes
from reference.rates import pools
from reference.request import parse_n_m
from reference.select import count_to_remove, lowest_n_m, lowest_per_row
from reference.streaming import Entry
from reference.targets import weight_targets
from reference.threshold import Cut, Keys, Tally

ROWS = 1 << 20  # weights scored at once where a row is the scope
RUN = 1024  # neighbours that one read of a sample takes


def decide_weights(passes: Passes) -> Decision:
    """What to do to each tensor, and what it amounts to."""
    request, n_m = passes.request, parse_n_m(passes.request.granularity)
    layers, passes.plan.skipped = weight_targets(passes.root, request)
    rates, cuts, removed = {}, {}, 0
    groups = pools(passes.root, layers, request) if not n_m else [(1 - n_m[0] / n_m[1], layers)]
    for rate, members in groups:
        sizes = {la.name: la.module.weight.numel() for la in members}
        n = sum(sizes.values())
        k = count_to_remove(rate, n)
        if request.scope == "row":
            rows = {la.name: len(la.module.weight) for la in members}
            k = sum(rows[name] * count_to_remove(rate, size // rows[name]) for name, size in sizes.items())
        removed += k
        rates |= dict.fromkeys(sizes, rate)
        for name in sizes:
            keys_of(passes, name, wide=False)  # refuses what cannot be ranked before anything is read
        if request.scope in ("component", "global") and not n_m and k:
            cuts |= wide_cuts(passes, list(sizes), k, n)
    weights = {f"{la.name}.weight": la.name for la in layers}

    def change(entry: Entry, W: Tensor) -> Tensor:
        name = weights.get(entry.name)
        if name is None:
            return W
        if n_m or request.scope == "row":
            zero_rows(passes, name, W, n_m, rates[name])
        elif name in cuts:
            cut, wide = cuts[name]
            threshold.zero(threshold.bits(W), keys_of(passes, name, wide, known=True), cut)
        elif request.scope == "layer" and count_to_remove(rates[name], W.numel()):
            flat, k = threshold.bits(W), count_to_remove(rates[name], W.numel())
            [cut] = threshold.cuts_in_memory([flat], [lambda: keys_of(passes, name)], k)
            threshold.zero(flat, keys_of(passes, name, known=True), cut)
        return W

    with recorded(passes.root, passes.plan, "cut"):
        pass  # no shape changes
    total = sum(la.module.weight.numel() for la in layers)
    facts = {"units": total, "removed": removed, "layers": len(layers), "skipped": len(passes.plan.skipped)}
    return Decision(change, facts)


def keys_of(passes: Passes, name: str, wide: bool = False, known: bool = False) -> Keys:
    """The scores of a layer's weights by the requested criterion, as keys, from the first weight on."""
    if passes.request.criterion == "random":
        return threshold.random_keys(random_generator(name, passes.request.seed))
    return threshold.float_keys(passes.dtypes[f"{name}.weight"], name, wide=wide, known=known)


def wide_cuts(passes: Passes, names: list[str], k: int, n: int) -> dict[str, tuple[Cut, bool]]:
    """The exact cuts of layers that are ranked together, n weights of which k go, and whether their keys are wide."""
    wide = len({passes.dtypes[f"{name}.weight"] for name in names}) > 1

    def tallies(low: int, high: int) -> list[Tally]:
        found = {}
        for entry, W in passes.read({f"{name}.weight" for name in names}):
            name = entry.name.removesuffix(".weight")
            found[name] = threshold.tally(threshold.bits(W), keys_of(passes, name, wide), low, high)
        return [found[name] for name in names]

    def find() -> dict[str, Tensor]:
        seen = sample(passes, names, n, wide)
        return {"cuts": torch.tensor(threshold.search(seen, k, n, tallies, widening=4))}  # neighbours are alike

    cuts = passes.found(json.dumps(names), find)["cuts"].tolist()
    return {name: (Cut(*cut), wide) for name, cut in zip(names, cuts, strict=True)}


def sample(passes: Passes, names: list[str], n: int, wide: bool) -> np.ndarray:
    """Keys of some 2^20 of the n weights: short runs, evenly spread over all layers."""
    every, found = max(RUN, n * RUN // (2 * threshold.SAMPLE)), []
    for name in names:
        file, entry = passes.places[f"{name}.weight"]
        itemsize, keys = passes.dtypes[entry.name].itemsize, keys_of(passes, name, wide)
        with open(file, "rb") as stream:
            for at in range(0, (entry.end - entry.start) // itemsize, every):
                stream.seek(entry.start + at * itemsize)
                run = stream.read(min(RUN * itemsize, entry.end - entry.start - at * itemsize))
                found.append(keys(np.frombuffer(run, f"<u{itemsize}")).copy())
    return np.concatenate(found)


def zero_rows(passes: Passes, name: str, W: Tensor, n_m: tuple[int, int] | None, rate: float) -> None:
    """Row scope and N:M: rows are independent, so some are scored at a time."""
    generator = random_generator(name, passes.request.seed)
    step = max(1, ROWS // max(1, W[0].numel()))
    for at in range(0, len(W), step):
        rows = W[at : at + step]
        random = passes.request.criterion == "random"
        S = torch.rand(rows.shape, generator=generator) if random else weight_scores(rows)
        if n_m:
            gone = lowest_n_m(S, *n_m)
        else:
            gone = lowest_per_row(S.flatten(1), count_to_remove(rate, W[0].numel())).reshape(rows.shape)
        rows.masked_fill_(gone, 0)
