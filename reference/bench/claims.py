"""The claims suite: published figures of speed and size that need no trained weights, measured at their shapes.

What a run says of its claim is read in `claims_table.py`.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
import yaml
from torch import nn

import reference
from reference.bench import architectures, kernels, measure, timing, two_four
from reference.bench.cells import Cell, Stage
from reference.bench.claims_table import COLUMNS, judge, measured, rows, verdict
from reference.bench.device import ROOT

__all__ = ["COLUMNS", "Measure", "judge", "list_cells", "measured", "printed", "rows", "verdict"]
PAIRS = ("params", "latency", "memory", "macs", "flops")  # metrics of papers.yaml that print dense and pruned


def list_cells(protocol: Mapping) -> list[Cell]:
    """One a claim, in the order of the protocol. ValueError for an id that papers.yaml does not have."""
    for claim in protocol["claims"]:
        printed(claim)
    return [Cell(claim["model"], "claim", {"claim": claim["id"]}) for claim in protocol["claims"]]


@cache
def _papers() -> dict[str, dict]:
    papers = yaml.load((ROOT / "papers.yaml").read_text(), Loader=yaml.CSafeLoader)
    return {f"{paper['id']}/{claim['id']}": claim for paper in papers for claim in paper.get("claims") or ()}


def printed(claim: Mapping) -> dict:
    """What was printed: `ratio` (or gigabytes) to compare with, and on which hardware; from papers.yaml by the id."""
    found = claim.get("printed") or _papers().get(claim["id"])
    if found is None:
        raise ValueError(f"claim {claim['id']!r} is not in papers.yaml; correct the id, or give `printed` and `source`")
    dense, pruned = claim.get("dense", found["dense"]), found["pruned"]
    if claim["measure"] == "saved_gb":
        ratio = pruned if found["unit"] == "GB less" else dense - pruned
    elif found["metric"] == "speed-up":
        ratio = pruned
    elif found["metric"] == "throughput":
        ratio = pruned / dense
    elif found["metric"].endswith("-removed"):
        ratio = 1 / (1 - pruned / 100)
    elif found["metric"] in PAIRS:
        ratio = dense / pruned
    else:
        raise ValueError(f"claim {claim['id']!r}: no rule for the metric {found['metric']!r}")
    return {"ratio": ratio, "hardware": found.get("hardware"), "at_least": claim.get("at_least", False)}


class Measure:
    """Measures claims; keeps nothing between them."""

    def __init__(self, stage: Stage, rule: Mapping):
        self.stage = stage
        self.claims = {claim["id"]: claim for claim in stage.protocol["claims"]}

    def __call__(self, run: dict, cell: Cell) -> None:
        """Fill in dense and pruned counts, and times where the claim is about time."""
        stage, claim = self.stage, self.claims[cell.keywords["claim"]]
        run["config"]["claim"] = dict(claim) | {"printed": printed(claim)}
        if "linear" in claim:
            run["speed"] = [product(stage, claim["linear"])]
            return
        architecture = architectures.read(cell.model, stage.tiny)
        architecture["config"] |= claim.get("common", {})
        architecture["input"] |= {} if stage.tiny else claim.get("input", {})
        inputs = architectures.inputs(architecture, stage.device, stage.dtype)
        dense = architectures.build(architecture, stage.device, stage.dtype)
        pruned = architectures.build(architecture, stage.device, stage.dtype, changes=claim.get("changes"))
        prune(pruned, claim, architecture)
        if claim.get("kernel") == "2:4":
            for name in two_four.row_counts(pruned, inputs):
                two_four.halve(pruned.get_submodule(name).weight)
        before, after = measure.count(dense, inputs), measure.count(pruned, inputs)
        if claim.get("kernel") == "2:4":
            two_four.convert(pruned, inputs, "2:4", lambda shape: stage.protocol["backend"])
        with torch.inference_mode():
            before |= timing.memory(dense, lambda: dense(**inputs), stage.device)
            after |= timing.memory(pruned, lambda: pruned(**inputs), stage.device)
            run["achieved"] = after | {f"dense_{name}": value for name, value in before.items()}
            if claim["measure"] == "time":
                calls = [part(model, inputs, claim.get("part")) for model in (dense, pruned)]
                turns = stage.protocol["warmup"], stage.protocol["repeats"]
                run["speed"] = [timing.paired(*calls, stage.device, *turns) | {"mode": "eager"}]


def prune(model: nn.Module, claim: Mapping, architecture: Mapping) -> None:
    """Heads, neurons or a mask, as the claim's method does it; layers named with {last} are those of the last block."""
    last = architecture["config"].get("num_layers", 1) - 1
    skip = [pattern.replace("{last}", str(last)) for pattern in claim.get("skip", ())] or None
    for granularity, amount, round_to in claim.get("steps", ()):
        reference.prune(model, granularity, amount, round_to=round_to, skip=skip)
    if "mask" in claim:
        two_four.mask_half(model, claim["mask"])


def part(model: nn.Module, inputs: Mapping, name: str | None) -> Callable[[], object]:
    """A call of the model, or of one of its modules with what the model gives it."""
    if name is None:
        return lambda: model(**inputs)
    module, seen = model.get_submodule(name), {}
    handle = module.register_forward_pre_hook(lambda _, a, k: seen.update(args=a, keywords=k), with_kwargs=True)
    model(**inputs)
    handle.remove()
    return lambda: module(*seen["args"], **seen["keywords"])


def product(stage: Stage, linear: Mapping) -> dict:
    """Times of one dense and packed product, by the backend of the protocol."""
    shape = (64, 64) if stage.tiny else (linear["outputs"], linear["inputs"])
    pair = kernels.make_pair(*shape, getattr(torch, linear["dtype"]), stage.protocol["backend"], stage.device)
    timed = kernels.compare(pair, linear["rows"], False, stage.protocol)
    return timed | {"rows": linear["rows"], "error": kernels.error(pair, linear["rows"])}
