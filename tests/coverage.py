"""Try every cut on every denoiser class of diffusers and write down what holds: `python -m tests.coverage`.

Writes reference/anatomy/coverage.json, which the engine obeys and the site publishes. Status of a class and
granularity, over its variants in `tests/zoo`:
    exact        cut equals mask, at three rates and after three rounds in a row, to 1e-5
    approximate  the units can be cut, but norms see what is gone; the reason names them
    refused      the units exist and cannot be cut; why
    none         it has no such units, and what it has instead

What can be cut has its parameters beside it, of the dense tiny model and with half of the units cut.
For `rank`, the inputs of all layers of a group are watched too: they must be the same vectors.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import nn
from tqdm import tqdm

from reference import anatomy
from reference.anatomy.blocks import BlockList
from reference.anatomy.groups import Group, cut_units, mask_units
from reference.anatomy.modulation import Basis, cut_directions, layers_of, mask_directions
from reference.anatomy.skipping import cut_blocks, mask_blocks
from reference.calibration import as_source, see_inputs
from tests.zoo import ZOO, make, output, seeded

FILE = Path(anatomy.__file__).parent / "coverage.json"
LAW = 1e-5
RATES = (0.25, 0.5, 0.75)
NONE = {
    "head": "it has no attention",
    "neuron": "its blocks are convolutions and attention, without feed-forwards",
    "channel": "it has no residual blocks of convolutions",
    "rank": "no layer turns a conditioning vector into the modulation of a block",
}
# Where convolutional blocks have other units than channels.
DEPTHWISE = "its convolutions are depthwise, at the residual width; the hidden width beside them is granularity neuron"
FEED_FORWARD = "its convolutional blocks are feed-forwards, whose hidden width is granularity neuron"


class Compared(NamedTuple):
    """Largest relative difference between the masked and the cut model; parameters of both."""

    deviation: float
    before: int
    after: int


def compared(masked: nn.Module, cut: nn.Module, inputs: dict[str, Any]) -> Compared:
    """Run both."""
    expected, actual = output(masked, inputs), output(cut, inputs)
    difference = (expected - actual).abs().max().item() / max(1.0, expected.abs().max().item())
    return Compared(difference, *(sum(p.numel() for p in model.parameters()) for model in (masked, cut)))


def verdict(name: str, granularity: str) -> dict[str, Any]:
    """Status and reason of one case of the zoo; parameters dense, and with half of the units cut."""
    reason = anatomy.REFUSED.get((name.partition(":")[0], granularity))
    if reason:
        return {"status": "refused", "reason": reason}
    model, _ = make(name)
    found = anatomy.all_groups(model, granularity)
    groups = [g for g in found if not g.refused and g.count > 1]
    if not groups:
        refused = next((g.refused for g in found if g.refused), "")
        return {"status": "refused" if refused else "none", "reason": refused or none_of(model, granularity)}
    if granularity == "rank":
        check_shared_inputs(name)
    measure = compare_rank if granularity == "rank" else compare
    found = [measure(name, granularity, rates) for rates in (*([rate] for rate in RATES), RATES)]
    deviations, half = [each.deviation for each in found], found[RATES.index(0.5)]
    parameters = {"parameters": [half.before, half.after]}
    approximate = next((g.approximate for g in groups if g.approximate), "")
    if max(deviations) <= LAW:
        return {"status": "exact", "reason": ""} | parameters
    if approximate:
        return {"status": "approximate", "reason": approximate} | parameters
    raise AssertionError(f"{name} {granularity}: cut and mask differ by {max(deviations):.1e}; add a rule or a refusal")


def none_of(model: nn.Module, granularity: str) -> str:
    """Why a model has no units of a granularity."""
    found = anatomy.all_groups(model, "neuron") if granularity == "channel" else []
    if any(group.response_norms for group in found):
        return DEPTHWISE
    convolutional = any(model.get_parameter(s.parameter).ndim == 4 for group in found for s in group.slices)
    return FEED_FORWARD if convolutional else NONE[granularity]


@torch.no_grad()
def compare(name: str, granularity: str, rates: tuple[float, ...] | list[float]) -> Compared:
    """Masking against cutting, cut in as many rounds as there are rates."""
    (masked, inputs), (cut, _) = make(name), make(name)
    mask, remove = (mask_blocks, cut_blocks) if granularity == "block" else (mask_units, cut_units)
    alive: dict[str, torch.Tensor] = {}
    for round_, rate in enumerate(rates):
        dense = {g.name: g for g in groups_of(masked, granularity)}
        now = {g.name: g for g in groups_of(cut, granularity)}
        alive = alive or {n: torch.arange(g.count) for n, g in dense.items()}
        from_mask, from_cut = {}, {}
        for i, (n, g) in enumerate(dense.items()):
            if n not in now:
                continue  # a list of blocks that has no choice left
            generator = torch.Generator().manual_seed(1000 * round_ + i)
            target = min(g.count - 1, int(rate * g.count + 0.5))  # of the original units
            bundles = now[n].bundles if granularity == "block" else torch.arange(len(alive[n]))[:, None].tolist()
            more = max(0, target - (g.count - len(alive[n]))) // len(bundles[0])
            order = torch.randperm(len(bundles), generator=generator)
            chosen = torch.tensor([u for b in order[:more] for u in bundles[b]], dtype=torch.long).sort().values
            from_mask[g], from_cut[now[n]] = alive[n][chosen].sort().values, chosen
            stays = torch.ones(len(alive[n]), dtype=torch.bool).index_fill(0, chosen, False)
            alive[n] = alive[n][stays]
        mask(masked, from_mask)
        remove(cut, from_cut)
    return compared(masked, cut, inputs)


@torch.no_grad()
def compare_rank(name: str, granularity: str, rates: tuple[float, ...] | list[float]) -> Compared:
    """As `compare`, for directions of random bases: each round keeps fewer of the same basis, the last one cuts."""
    (masked, inputs), (cut, _) = make(name), make(name)
    for rate in rates:
        for i, group in enumerate(groups_of(masked, granularity)):
            generator = torch.Generator().manual_seed(i)
            r = max(1, round((1 - rate) * group.count))
            B_dd = torch.linalg.qr(torch.randn(group.count, group.count, generator=generator))[0]
            biased = all(masked.get_submodule(layer).bias is not None for layer in layers_of(group))
            basis = Basis(B_dd[:r], torch.randn(group.count, generator=generator) * biased)
            mask_directions(masked, {group: basis})
            (cut_directions if rate == rates[-1] else mask_directions)(cut, {group: basis})
    return compared(masked, cut, inputs)


def check_shared_inputs(name: str) -> None:
    """Raise AssertionError if two layers of a group are fed by different vectors."""
    model, inputs = make(name)
    groups = groups_of(model, "rank")
    seen: dict[str, list[torch.Tensor]] = {}
    layers = {layer: model.get_submodule(layer) for group in groups for layer in layers_of(group)}
    with seeded(1):
        see_inputs(
            model, as_source([inputs]), layers, lambda layer, X_1nd, _: seen.setdefault(layer, []).append(X_1nd[0])
        )
    for group in groups:
        distinct = [torch.cat(seen[layer]).unique(dim=0) for layer in layers_of(group)]
        for layer, rows in zip(layers_of(group), distinct, strict=True):
            if not torch.equal(rows, distinct[0]):
                raise AssertionError(f"{name}: {layer} does not read the vector of {group.name}")


def groups_of(model: nn.Module, granularity: str) -> list[Group] | list[BlockList]:
    """Those that can be cut."""
    return [g for g in anatomy.all_groups(model, granularity) if not g.refused]


def over_variants(verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Over variants: what can be cut counts, as the engine refuses group by group; approximate comes before exact."""
    order = ("approximate", "exact", "refused", "none")
    return min(verdicts, key=lambda v: order.index(v["status"]))


def main(names: list[str]) -> int:
    """Update the rows of the given classes, or all."""
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    table = json.loads(FILE.read_text()) if names else {}
    classes = names or sorted({case.partition(":")[0] for case in ZOO})
    wrong = []
    for kind in tqdm(classes, unit="class"):
        cases = [case for case in ZOO if case.partition(":")[0] == kind]
        for granularity in anatomy.RULES:
            try:
                found = over_variants([verdict(case, granularity) for case in cases])
            except (AssertionError, RuntimeError) as error:
                wrong.append(f"{kind} {granularity}: {error}".splitlines()[0])
            else:
                table.setdefault(kind, {})[granularity] = found
    print(*wrong, sep="\n", file=sys.stderr)
    if not wrong:
        FILE.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
