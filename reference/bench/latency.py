"""The latency suite: one forward of a full-size denoiser, dense and pruned, in turns on one device.

Weights are random (`architectures.py`), units go by magnitude, weights of masks at random: neither changes a time. A
2:4 layer is converted only where its product is faster than the dense one at its number of rows, by the runs of the
kernel suite or else measured on the spot. Nominal is the ratio of multiply-accumulates, realised that of the times.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import reference
from reference.bench import architectures, kernels, measure, results, timing, two_four
from reference.bench.cells import Cell, Stage, free

ROOM = 8 << 30  # bytes left for activations when dense and pruned lie on a GPU together


class Subject(NamedTuple):
    """A dense model that cells are compared with, and its inputs."""

    name: str
    architecture: dict
    inputs: architectures.Inputs
    dense: nn.Module | None  # None where only one model at a time fits


def list_cells(protocol: Mapping) -> list[Cell]:
    """Model by model, each in the order of the protocol."""
    return [
        Cell(model, entry["entry"], {name: value for name, value in entry.items() if name != "entry"})
        for model in protocol["models"]
        for entry in protocol["entries"]
    ]


class Measure:
    """Measures cells; keeps the dense model of the last one."""

    def __init__(self, stage: Stage, rule: Mapping):
        self.stage, self.rule, self.subject = stage, rule, None

    def __call__(self, run: dict, cell: Cell) -> None:
        """Fill in a result."""
        stage, asked = self.stage, cell.keywords
        if self.subject is None or self.subject.name != cell.model:
            self.subject = None
            free(stage.device)
            self.subject = open_subject(stage, cell.model)
        subject, mode = self.subject, asked.get("mode", "eager")
        run["config"] |= {"input": subject.architecture["input"], "resolution": subject.architecture["resolution"]}
        make = partial(self.make, run, asked)
        timed = compare(stage, subject, make, mode)
        run["speed"] = [timed | {"mode": mode, "interleaved": subject.dense is not None}]

    def make(self, run: dict, asked: Mapping) -> nn.Module:
        """The pruned model; what is left of it goes into the result."""
        subject, stage = self.subject, self.stage
        model = architectures.build(subject.architecture, stage.device, stage.dtype)
        start = time.monotonic()
        unit_rate = change(model, asked)
        seconds = time.monotonic() - start
        if asked.get("kernel") == "2:4":
            for layer in two_four.row_counts(model, subject.inputs):
                two_four.halve(model.get_submodule(layer).weight)
        run["achieved"] = measure.count(model, subject.inputs) | {"unit_rate": unit_rate, "prune_seconds": seconds}
        if kernel := asked.get("kernel"):
            decide = partial(decide_for, stage, self.rule)
            run["config"]["converted"] = two_four.convert(model, subject.inputs, kernel, decide)
        with torch.inference_mode():
            run["achieved"] |= timing.memory(model, lambda: model(**subject.inputs), stage.device)
        return model


def open_subject(stage: Stage, name: str) -> Subject:
    """Draw the inputs, and build the dense model if it can stay while another is measured."""
    architecture = architectures.read(name, stage.tiny)
    inputs = architectures.inputs(architecture, stage.device, stage.dtype)
    both = 2 * architecture["parameters"] * stage.dtype.itemsize + ROOM
    fits = stage.device != "cuda" or both < torch.cuda.get_device_properties(0).total_memory
    dense = architectures.build(architecture, stage.device, stage.dtype) if fits else None
    return Subject(name, architecture, inputs, dense)


def change(model: nn.Module, asked: Mapping) -> float:
    """Mask and cut in place; the share of units that the last step took."""
    rate = 0.0
    if "mask" in asked:
        two_four.mask_half(model, asked["mask"])
        rate = asked["mask"]
    for granularity, amount, round_to in asked.get("steps", ()):
        how_much = {"rank": amount} if granularity == "rank" else {"amount": amount, "round_to": round_to}
        rate = reference.prune(model, granularity, **how_much).unit_rate
    return rate


def compare(stage: Stage, subject: Subject, make: Callable[[], nn.Module], mode: str) -> dict:
    """Times of dense and pruned: in turns, or where only one fits one after the other."""
    turns = stage.protocol["warmup"], stage.protocol["repeats"]
    with torch.inference_mode():
        if subject.dense is not None:
            calls = [_call(stage, model, subject.inputs, mode) for model in (subject.dense, make())]
            timed = timing.paired(*calls, stage.device, *turns)
            _as_before(subject.dense, mode)
            return timed
        spent = []
        for build in (partial(architectures.build, subject.architecture, stage.device, stage.dtype), make):
            spent.append(timing.alone(_call(stage, build(), subject.inputs, mode), stage.device, *turns))
            torch._dynamo.reset()
            free(stage.device)
        return timing.compared(*spent, in_turns=False) | {"warmup": turns[0], "repeats": turns[1]}


def _call(stage: Stage, model: nn.Module, inputs: Mapping, mode: str) -> Callable[[], object]:
    if mode == "compiled":
        torch._dynamo.config.recompile_limit = 64  # past it blocks would fall back to eager without a word
        for block in repeated_blocks(model):
            block.compile(backend=stage.protocol["compile_backend"], dynamic=False)
    return lambda: model(**inputs)


def _as_before(model: nn.Module, mode: str) -> None:
    """Undo `_call`: the dense model is eager again for the next cell."""
    if mode == "compiled":
        for block in repeated_blocks(model):
            block._compiled_call_impl = None
        torch._dynamo.reset()


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """What diffusers compiles block by block, or else the transformer blocks by their name."""
    kinds = getattr(model, "_repeated_blocks", None) or ()
    modules = list(model.modules())
    return [m for m in modules if type(m).__name__ in kinds] or [
        m for m in modules if type(m).__name__.endswith("TransformerBlock")
    ]


def decide_for(stage: Stage, rule: dict, shape: two_four.Shape) -> str | None:
    """The backend for a shape, by the rule; for a shape that it does not know measured here, and learnt."""
    outputs, inputs, rows = shape
    known = rule.setdefault(f"{outputs}x{inputs}", [])
    if not any(entry["rows"] <= rows for entry in known):
        best: tuple[float, str | None] = (kernels.GAIN, None)
        for backend in stage.protocol["backends"]:
            try:
                pair = kernels.make_pair(outputs, inputs, stage.dtype, backend, stage.device)
                gain = kernels.compare(pair, rows, False, stage.protocol)["speedup"]
            except (RuntimeError, NotImplementedError):
                continue
            best = max(best, (gain, backend), key=lambda choice: choice[0])
        known.append({"rows": rows, "backend": best[1]})
        known.sort(key=lambda entry: entry["rows"])
    return kernels.decide(rule, shape)


COLUMNS = (
    "model", "entry", "how", "mode", "parameters left", "MACs left", "nominal", "realised", "ms", "peak GiB",
)  # fmt: skip


def rows(runs: Sequence[Mapping]) -> list[list[str]]:
    """The table, every ratio recomputed from the runs; a phantom keeps less than half of what it promises."""
    dense = {r["run_id"]: r["achieved"] for r in runs if r["subject"]["is_baseline"] and r["status"] == "ok"}
    table = []
    for run in runs:
        subject, asked = run["subject"], run["config"]["asked"]
        mode = asked.get("mode", "eager")
        how = ", ".join(f"{g} {a:g} to {r}" for g, a, r in asked.get("steps", ())) or str(asked.get("mask", "-"))
        how += f" {asked['kernel']}" if "kernel" in asked else ""
        left = [subject["model"], subject["entry"], how, mode]
        was = dense.get(subject["baseline_run"] or run["run_id"])
        if run["status"] != "ok" or was is None:
            table.append([*left, run["error"] or "no dense run to compare with", *["-"] * (len(COLUMNS) - 5)])
            continue
        now, speed = run["achieved"], run["speed"][0]
        nominal = was["macs"] / now["macs_nonzero"]
        low, high = speed["speedup_ci95"]
        mark = " phantom" if results.is_phantom(nominal, speed["speedup"]) else ""
        table.append(
            [
                *left,
                f"{now['parameters'] / was['parameters']:.3f}",
                f"{now['macs'] / was['macs']:.3f}",
                f"{nominal:.2f}x",
                f"{speed['speedup']:.2f}x ({low:.2f}-{high:.2f}){mark}",
                f"{speed['pruned']['median']:.2f}",
                f"{now['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in now else "-",
            ]
        )
    return table
