"""The claims suite: published figures of speed and size that need no trained weights, measured at their shapes.

    gain        ratio - 1, where the ratio is dense / pruned (of throughput pruned / dense); of memory saved, gigabytes
    reproduced  our gain is within 10 % of the printed one, or the printed ratio lies in our interval and 1 does not:
                an interval that knows no gain from a loss reproduces nothing
    partly      at least half of the printed gain
    not reproduced
    not comparable   the protocol names what differs

Ratios are judged on other hardware too, and labelled so; absolute times never are. Sizes need no hardware at all.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import yaml
from torch import nn

import reference
from reference.bench import architectures, kernels, measure, timing, two_four
from reference.bench.cells import Cell, Stage
from reference.bench.device import ROOT

WITHIN, PARTLY = 0.1, 0.5
SIZES = ("parameters", "macs", "saved_gb")
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


def measured(run: Mapping) -> tuple[float, tuple[float, float] | None]:
    """Our ratio (or gigabytes) and its interval, recomputed from the run."""
    kind, now = run["config"]["claim"]["measure"], run["achieved"]
    if kind == "time":
        speed = run["speed"][0]
        return speed["speedup"], tuple(speed["speedup_ci95"])
    if kind == "saved_gb":
        size = "peak_bytes" if "peak_bytes" in now else "weight_bytes"
        return (now[f"dense_{size}"] - now[size]) / 1e9, None
    return now[f"dense_{kind}"] / now[kind], None


def verdict(
    kind: str,
    ratio: float,
    ours: float,
    interval: tuple[float, float] | None = None,
    at_least: bool = False,
    differs: str = "",
) -> str:
    """The word for our ratio beside the printed one; the rules are at the top of the file."""
    if differs:
        return f"not comparable: {differs}"
    offset = 0 if kind == "saved_gb" else 1
    share = (ours - offset) / (ratio - offset)
    inside = interval is not None and interval[0] <= ratio <= interval[1] and not interval[0] <= 1 <= interval[1]
    if inside or abs(share - 1) <= WITHIN or (at_least and share >= 1 - WITHIN):
        return "reproduced"
    return "partly" if share >= PARTLY else "not reproduced"


def judge(run: Mapping) -> str:
    """The verdict on the claim of a run, and where the hardware is another, that."""
    claim = run["config"]["claim"]
    told, kind = claim["printed"], claim["measure"]
    word = verdict(kind, told["ratio"], *measured(run), told["at_least"], claim.get("differs", ""))
    same = told["hardware"] and told["hardware"].split()[-1] in run["environment"].get("gpu", "")
    return word if kind in SIZES or same or claim.get("differs") else f"{word}, on other hardware"


COLUMNS = ("claim", "of", "printed", "ours", "verdict", "note")


def rows(runs: Sequence[Mapping]) -> list[list[str]]:
    """The table: the printed ratio beside ours."""
    table = []
    for run in runs:
        if run["status"] != "ok":
            table.append([run["config"]["asked"]["claim"], run["subject"]["model"], "-", "-", run["error"], ""])
            continue
        claim = run["config"]["claim"]
        unit = " GB" if claim["measure"] == "saved_gb" else "x"
        least = "at least " if claim["printed"]["at_least"] else ""
        told, ours = f"{least}{claim['printed']['ratio']:.2f}{unit}", f"{measured(run)[0]:.2f}{unit}"
        table.append([claim["id"], claim["measure"], told, ours, judge(run), claim.get("note", "")])
    return table
