"""The cost suite: how long pruning itself takes, and how much memory, on full-size architectures.

Calibration is a list of forward keyword dicts, drawn, one denoising step each: what a method costs depends on how
much it looks at, not on what it sees. The first cells prune two blocks, so that a number is there soon; the others
whole models.
"""

import time
from collections.abc import Mapping, Sequence

import torch

import reference
from reference.bench import architectures, measure, timing
from reference.bench.cells import Cell, Stage
from reference.request import WITHOUT_DATA


def list_cells(protocol: Mapping) -> list[Cell]:
    """Reach by reach (two blocks, then all), model by model, method by method."""
    return [
        Cell(model, entry["entry"], {"only": only.get(model), **entry["keywords"]})
        for only in ({m: protocol["first"][m] for m in protocol["models"]}, {})
        for model in protocol["models"]
        for entry in protocol["entries"]
    ]


class Measure:
    """Prunes one model after another; keeps none, since pruning changes it."""

    def __init__(self, stage: Stage, rule: Mapping):
        self.stage = stage

    def __call__(self, run: dict, cell: Cell) -> None:
        """Fill in seconds, peak memory and what is left."""
        stage, protocol = self.stage, self.stage.protocol
        architecture = architectures.read(cell.model, stage.tiny)
        model = architectures.build(architecture, stage.device, stage.dtype)
        seen = calibration(architecture, stage, protocol["steps"])
        keywords = {name: value for name, value in cell.keywords.items() if value is not None}
        looks = keywords["criterion"] not in WITHOUT_DATA
        run["config"] |= {"input": architecture["input"], "calibration": {"steps": len(seen) if looks else 0}}
        if stage.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        report = reference.prune(model, **keywords, calibration=seen if looks else None)
        if stage.device == "cuda":
            torch.cuda.synchronize()
            run["config"]["peak_bytes"] = torch.cuda.max_memory_allocated()
        seconds = time.monotonic() - start
        run["achieved"] = measure.count(model, seen[0])
        run["achieved"] |= {"prune_seconds": seconds, "unit_rate": report.unit_rate, "layers": len(report.layers)}
        run["achieved"] |= timing.memory(model, lambda: None, "cpu")


def calibration(architecture: dict, stage: Stage, steps: int) -> list[architectures.Inputs]:
    """Keywords of so many calls, noise and time step other in each."""
    found = []
    for step in range(steps):
        keywords = architectures.inputs(architecture, stage.device, stage.dtype, seed=step)
        share = (steps - step) / steps
        time_step = keywords["timestep"]
        scale = 1 if float(time_step.max()) <= 1 else 1000
        keywords["timestep"] = torch.full_like(time_step, share * scale - (scale > 1))
        found.append(keywords)
    return found


COLUMNS = ("model", "criterion", "granularity", "layers", "seconds", "seconds a layer", "weights GiB", "peak GiB")


def rows(runs: Sequence[Mapping]) -> list[list[str]]:
    """The table."""
    table = []
    for run in runs:
        asked, now = run["config"]["asked"], run["achieved"]
        left = [run["subject"]["model"], asked["criterion"], asked["granularity"]]
        if run["status"] != "ok":
            table.append([*left, run["error"], *["-"] * (len(COLUMNS) - 4)])
            continue
        seconds, peak = now["prune_seconds"], run["config"].get("peak_bytes")
        table.append(
            [
                *left,
                f"{now['layers']:.0f}",
                f"{seconds:.1f}",
                f"{seconds / now['layers']:.2f}",
                f"{now['weight_bytes'] / 2**30:.2f}",
                f"{peak / 2**30:.2f}" if peak else "-",
            ]
        )
    return table
