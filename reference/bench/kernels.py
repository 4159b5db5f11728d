"""The kernel suite: one packed 2:4 product against the dense one, for the linear layers that these models have.

A cell is one shape, dtype and backend, over all numbers of rows. Every product is compared with the same product by
the masked dense weight, in float32, with bias; and once more with -0.0 where a weight was removed, which some packers
take for a weight that stays. A wrong product is a failed run, whatever its speed.

The rule that follows from the runs says for a shape and a number of rows which backend to use, or none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from reference.anatomy import weight_layers
from reference.bench import architectures, timing
from reference.bench.cells import Cell, Stage
from reference.bench.two_four import FP8, KERNELS, SPARED, Shape, halve_smallest, packed

WRONG = 0.02  # relative error of a product; bf16 alone makes 0.003
GAIN = 1.03  # a layer is converted where its product is at least that much faster


def list_cells(protocol: dict) -> list[Cell]:
    """Kinds by kinds, so that every shape has its bf16 before any has its int8."""
    return [
        Cell(model, f"{outputs}x{inputs}", {"outputs": outputs, "inputs": inputs, **kind})
        for kind in protocol["kinds"]
        for model, outputs, inputs in shapes(protocol["models"], protocol.get("tiny", False))
    ]


def shapes(models: Sequence[str], tiny: bool) -> list[tuple[str, int, int]]:
    """Model, outputs and inputs of every linear layer in repeated blocks, once each; modulation layers left out."""
    found: dict[tuple[int, int], str] = {}
    for model in models:
        for layer in weight_layers(architectures.on_meta(architectures.read(model, tiny))):
            if layer.repeated and layer.component not in SPARED and isinstance(layer.module, nn.Linear):
                found.setdefault(tuple(layer.module.weight.shape), model)
    return [(model, *shape) for shape, model in found.items()]


class Pair(NamedTuple):
    """One product x (n, i) -> (n, o) twice: by the masked dense weight, and by its packed form."""

    dense: Callable[[Tensor], Tensor]
    kernel: Callable[[Tensor], Tensor]
    inputs: int
    dtype: torch.dtype
    device: str

    def draw(self, rows: int, seed: int) -> Tensor:
        """Inputs (n, i); signs for int8, whose sums then seldom leave its range."""
        g = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(rows, self.inputs, generator=g, device=self.device)
        return (x.sign() if self.dtype == torch.int8 else x).to(self.dtype)


def measure(stage: Stage, run: dict, cell: Cell) -> None:
    """Fill in a time for every number of rows. RuntimeError if a product is wrong or the kernel refuses."""
    asked = cell.keywords
    run["config"]["dtype"] = asked["dtype"]
    facts = (asked["outputs"], asked["inputs"], getattr(torch, asked["dtype"]), asked["backend"], stage.device)
    pair = make_pair(*facts)
    run["config"]["minus_zero_error"] = minus = error(make_pair(*facts, minus_zero=True), 64)
    run["config"]["skipped_rows"] = skipped = {}
    for rows in stage.protocol["rows"]:
        try:
            wrong = max(error(pair, rows), minus)
            if not wrong < WRONG:
                raise RuntimeError(f"the product of {rows} rows is off by {wrong:.3f}")
            run["speed"].append(compare(pair, rows, asked["compiled"], stage.protocol) | {"rows": rows, "error": wrong})
        except torch.OutOfMemoryError:
            skipped[str(rows)] = "out of memory"


def make_pair(
    outputs: int, inputs: int, dtype: torch.dtype, backend: str, device: str, minus_zero: bool = False
) -> Pair:
    """Both products for weights drawn anew; those of int8 and fp8 have no bias, and no -0.0."""
    g = torch.Generator(device).manual_seed(0)
    small = dtype in (torch.int8, FP8)
    W = torch.randn(outputs, inputs, generator=g, device=device)
    halve_smallest(W)
    W = (W.sign() if dtype == torch.int8 else W if small else W * inputs**-0.5).to(dtype)
    if not small:
        layer = nn.Linear(1, 1, device="meta")
        layer.in_features, layer.out_features = inputs, outputs
        stored = torch.where(W == 0, torch.full_like(W, -0.0), W) if minus_zero else W
        layer.weight = nn.Parameter(stored, requires_grad=False)
        bias = torch.randn(outputs, generator=g, device=device).to(dtype)
        layer.bias = nn.Parameter(bias, requires_grad=False)
        return Pair(lambda x: F.linear(x, W, bias), packed(layer, backend), inputs, dtype, device)
    P = KERNELS[backend].from_dense(W)
    if dtype == torch.int8:
        return Pair(lambda x: torch._int_mm(x, W.t()), lambda x: F.linear(x, P), inputs, dtype, device)
    one = torch.ones((), device=device)
    dense = lambda x: torch._scaled_mm(x, W.t(), one, one, out_dtype=torch.bfloat16)  # noqa: E731
    kernel = lambda x: torch._scaled_mm(P, x.t(), one, one, out_dtype=torch.bfloat16).t()  # noqa: E731
    return Pair(dense, kernel, inputs, dtype, device)


@torch.inference_mode()
def error(pair: Pair, rows: int) -> float:
    """||y - y_dense|| / ||y_dense|| over at most 1,024 rows."""
    x = pair.draw(min(rows, 1024), seed=rows)
    y, y_dense = pair.kernel(x), pair.dense(x).float()
    if y.dtype == torch.int8:  # which saturates
        y_dense = y_dense.clamp(-128, 127)
    return float((y.float() - y_dense).norm() / y_dense.norm())


@torch.inference_mode()
def compare(pair: Pair, rows: int, compiled: bool, protocol: Mapping) -> dict:
    """Times of both products, in turns."""
    x, calls = pair.draw(rows, seed=1), [pair.dense, pair.kernel]
    if compiled:
        calls = [torch.compile(call, backend=protocol["compile_backend"], dynamic=False) for call in calls]
    turns = protocol["warmup"], protocol["repeats"]
    timed = timing.paired(lambda: calls[0](x), lambda: calls[1](x), pair.device, *turns)
    return timed | {"mode": "compiled" if compiled else "eager"}


def learn(runs: Sequence[Mapping], gain: float = GAIN) -> dict[str, list[dict]]:
    """The rule: "outputs x inputs" -> for each number of rows measured the fastest eager bf16 backend, or None."""
    best: dict[str, dict[int, tuple[float, str | None]]] = {}
    for run in runs:
        asked = run["config"].get("asked", {})
        if run["status"] != "ok" or asked.get("dtype") != "bfloat16" or asked.get("compiled"):
            continue
        at = best.setdefault(f"{asked['outputs']}x{asked['inputs']}", {})
        for entry in run["speed"]:
            fastest = max(at.get(entry["rows"], (gain, None)), (entry["speedup"], asked["backend"]), key=lambda c: c[0])
            at[entry["rows"]] = fastest
    return {s: [{"rows": n, "backend": at[n][1]} for n in sorted(at)] for s, at in best.items()}


def decide(rule: Mapping[str, Sequence[Mapping]], shape: Shape) -> str | None:
    """The backend for a shape: as measured at the largest number of rows that is not more than its own."""
    outputs, inputs, rows = shape
    fitting = [entry for entry in rule.get(f"{outputs}x{inputs}", ()) if entry["rows"] <= rows]
    return fitting[-1]["backend"] if fitting else None


COLUMNS = ("shape", "dtype", "backend", "mode", "speed-up by rows", "largest error")


def rows(runs: Sequence[Mapping]) -> list[list[str]]:
    """The table: one row a run, speed-ups of the packed product over the dense one."""
    table = []
    for run in runs:
        asked = run["config"]["asked"]
        left = [run["subject"]["entry"], asked["dtype"], asked["backend"], "compiled" if asked["compiled"] else "eager"]
        if run["status"] != "ok":
            table.append([*left, run["error"], "-"])
            continue
        speeds = ", ".join(f"{s['rows']}: {s['speedup']:.2f}x" for s in run["speed"])
        table.append([*left, speeds, f"{max(s['error'] for s in run['speed']):.4f}"])
    return table
