"""How fast the hot paths are, beside a plain copy and beside their peers: `python -m tests.perf [--peers DIR]`.

Every time is processor time of one thread, median of five (or as many as said), and a ratio to a copy or a peer timed
in the same process: what else runs on the machine then matters little. No test asserts a time. Results go to
results/perf/<device>/. Part S is the site in a browser (`perf_site.py`); it needs `make site` first.

Peers that are not part of torch are looked for in DIR, which is out/peers by default. To put them there:

    git clone https://github.com/IST-DASLab/sparsegpt DIR/sparsegpt     (147d2159dc4f)
    git clone https://github.com/locuslab/wanda DIR/wanda               (8e8fc87b4a2f)
    pip install --no-deps --target DIR/torch-pruning torch-pruning==1.6.1
"""

import argparse
import ast
import contextlib
import copy
import ctypes
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

import reference
from reference.anatomy.feed_forward import neurons
from reference.anatomy.groups import cut_units
from reference.bench.device import ROOT, code, device_folder, environment
from reference.criteria import obs, wanda
from reference.request import Request
from reference.scoring import unit_scorer
from reference.select import count_to_remove, lowest, lowest_n_m, lowest_per_row, rounded_keep
from reference.unstructured import zero_weights
from tests import perf_site

OUT, IN = 3072, 12288  # a feed-forward matrix of FLUX.1
TARGETS = {"at least": lambda ratio, bound: ratio >= bound, "at most": lambda ratio, bound: ratio <= bound}


class Row(NamedTuple):
    """One ratio beside its target; `measured` None if the peer is not there, `target` None for what is only shown."""

    id: str
    what: str
    unit: str  # what the ratio is of
    measured: float | None
    target: tuple[str, float] | None
    details: dict

    @property
    def met(self) -> bool | None:
        """None where there is nothing to compare."""
        return (
            TARGETS[self.target[0]](self.measured, self.target[1])
            if self.target and self.measured is not None
            else None
        )


def seconds(call: Callable[[], object], repeats: int = 5, before: Callable[[], object] = lambda: None) -> float:
    """Processor time of this thread for a call, median; `before` each, not counted."""
    times = []
    for _ in range(repeats):
        before()
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def extra_bytes(call: Callable[[], object]) -> int:
    """By how much the process grows at most during a call, over what it holds before (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # else the call would live on what earlier ones left
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _memory("VmRSS")
    call()
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Layers(nn.Module):
    """Four linear layers as blocks, 151 million weights."""

    def __init__(self, weights: list[Tensor]):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(IN, OUT, bias=False, device="meta") for _ in weights)
        for block, W in zip(self.blocks, weights, strict=True):
            block.weight = nn.Parameter(W.clone(), requires_grad=False)


def global_magnitude(dtype: torch.dtype) -> Iterator[Row]:
    """P1: the 30 % smallest weights of four layers together, exactly k of them, become +0.0."""
    g = torch.Generator().manual_seed(0)
    weights = [(torch.randn(OUT, IN, generator=g) * 0.02).to(dtype) for _ in range(4)]
    model = Layers(weights)
    n, name = sum(W.numel() for W in weights), str(dtype).removeprefix("torch.")

    def reset() -> None:
        for block, W in zip(model.blocks, weights, strict=True):
            block.weight.data.copy_(W)

    def own() -> None:
        zero_weights(model, reference.plan(model, "weight", 0.3, scope="global"))

    def peer() -> None:
        pairs = [(block, "weight") for block in model.blocks]
        torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.3)
        for pair in pairs:
            torch_prune.remove(*pair)

    reset()
    copy_s, own_s = seconds(reset), seconds(own, before=reset)
    zeros = sum(int((block.weight == 0).sum()) for block in model.blocks)
    negative = sum(int(torch.signbit(block.weight[block.weight == 0]).sum()) for block in model.blocks)
    assert (zeros, negative) == (count_to_remove(0.3, n), 0)
    reset()
    bytes_ = extra_bytes(own)
    whole_s = seconds(lambda: reference.prune(model, "weight", 0.3, scope="global"), before=reset)
    reset()
    peer_bytes = extra_bytes(peer)
    peer_s = seconds(peer, repeats=1, before=reset)
    details = {"own_s": own_s, "copy_s": copy_s, "peer_s": peer_s, "peer_bytes_per_weight": peer_bytes / n}
    details |= {"weights": n, "zeros": zeros, "negative_zeros": negative}
    what = f"global magnitude, plan + apply, {name}"
    yield Row("P1", what, "x faster than torch prune.global_unstructured", peer_s / own_s, ("at least", 60), details)
    yield Row("P1", what, "x copy", own_s / copy_s, ("at most", 8), details)
    yield Row("P1", what, "bytes a weight", bytes_ / n, ("at most", 0.2), details)
    yield Row("P1", f"reference.prune with its report, {name}", "x copy", whole_s / copy_s, None, {"own_s": whole_s})


def two_of_four(dtype: torch.dtype) -> Iterator[Row]:
    """P3: the mask of the 2:4 pattern by magnitude, ties by index."""
    W = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)).to(dtype)
    warm = W.clone()
    copy_s, own_s = seconds(lambda: warm.copy_(W), repeats=15), seconds(lambda: lowest_n_m(W, 2, 4, magnitudes=True))
    assert set(lowest_n_m(W, 2, 4, magnitudes=True).reshape(-1, 4).sum(1).tolist()) == {2}
    topk_s = seconds(
        lambda: (
            torch.zeros_like(W, dtype=torch.bool)
            .reshape(-1, 4)
            .scatter_(1, W.abs().reshape(-1, 4).topk(2, dim=1, largest=False).indices, True)
        ),
        repeats=1,
    )
    details = {"own_s": own_s, "copy_s": copy_s, "topk_and_scatter_s": topk_s}
    yield Row(
        "P3", f"2:4 mask, {str(dtype).removeprefix('torch.')}", "x copy", own_s / copy_s, ("at most", 10), details
    )


def sparsegpt(peers: Path) -> Iterator[Row]:
    """P4: OBS against its authors' solver on the same layer and Hessian, 3072 x 3072."""
    d = 3072
    g = torch.Generator().manual_seed(0)
    W = torch.randn(d, d, generator=g) * 0.02
    X = torch.randn(4096, d, generator=g) @ (torch.eye(d) + torch.randn(d, d, generator=g) / d**0.5)
    H = X.T @ X / len(X)
    error = lambda new: float(((new - W) @ H * (new - W)).sum())  # noqa: E731

    for what, target, own in (
        ("unstructured 50 %", 2.5, lambda: obs.prune_weights(W, H[None], d * d // 2)[1]),
        ("2:4", 1.8, lambda: obs.prune_n_m(W, H[None], 2, 4)[1]),
    ):
        row = Row("P4", f"OBS, {what}, 3072 x 3072", "x faster than SparseGPT", None, ("at least", target), {})
        if not (peers / "sparsegpt").exists():
            yield row
            continue
        with _importable(peers / "sparsegpt", "sparsegpt") as module:
            layer, n_m = nn.Linear(d, d, bias=False), (2, 4) if what == "2:4" else (0, 0)

            def peer(module=module, layer=layer, n_m=n_m) -> None:
                layer.weight.data = W.clone()
                solver = module.SparseGPT(layer)
                solver.H = 2 * H
                with contextlib.redirect_stdout(io.StringIO()):
                    solver.fasterprune(0.5, *n_m)

            times = [(seconds(peer, repeats=1), seconds(own, repeats=1)) for _ in range(3)]
        peer_s, own_s = (statistics.median(column) for column in zip(*times, strict=True))
        errors = {"error_own_over_peer": error(own()) / error(layer.weight.data)}
        yield row._replace(measured=peer_s / own_s, details={"own_s": own_s, "peer_s": peer_s} | errors)


def wanda_rows(peers: Path) -> Iterator[Row]:
    """P4: Wanda's scores and mask against its authors' lines, run from their file; 50 % of each row of 3072 x 3072."""
    row = Row("P4", "Wanda, 50 % a row, 3072 x 3072", "x faster than its authors' code", None, ("at least", 20), {})
    if not (peers / "wanda").exists():
        yield row
        return
    d = 3072
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(d, d, bias=False)
    W = torch.randn(d, d, generator=g) * 0.02
    squares_i, n = torch.rand(d, generator=g), 1
    tree = ast.parse((peers / "wanda" / "lib" / "prune.py").read_text())
    function = next(f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "prune_wanda")
    loops = [s for s in ast.walk(function) if isinstance(s, ast.For)]
    loop = next(s for s in loops if any(ast.unparse(line).startswith("W_metric = ") for line in s.body))
    lines = compile(ast.Module([s for s in loop.body if "data[W_mask]" not in ast.unparse(s)], []), "peer", "exec")
    scope = {"torch": torch, "subset": {"": layer}, "name": "", "i": 0, "prune_n": 0, "prune_m": 0}
    scope["wrapped_layers"] = {"": SimpleNamespace(scaler_row=squares_i)}
    scope["args"] = SimpleNamespace(use_variant=False, sparsity_ratio=0.5)
    layer.weight.data = W

    def peer() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(lines, scope)
        return scope["W_mask"]

    def own() -> Tensor:
        return lowest_per_row(wanda.weight_scores(W, squares_i[None], n), d // 2)

    differ = int((peer() != own()).sum())
    times = [(seconds(peer, repeats=1), seconds(own, repeats=3)) for _ in range(3)]
    peer_s, own_s = (statistics.median(column) for column in zip(*times, strict=True))
    yield row._replace(
        measured=peer_s / own_s, details={"own_s": own_s, "peer_s": peer_s, "mask_entries_that_differ": differ}
    )


def structured_cut(peers: Path, dtype: torch.dtype) -> Iterator[Row]:
    """P5: score the neurons of a feed-forward 3072-12288-3072 and cut 30 % of them."""
    torch.manual_seed(0)
    dense = nn.ModuleDict({"ff": FeedForward(OUT, mult=4, activation_fn="gelu")}).to(dtype)
    warm, holder = copy.deepcopy(dense), {}

    def copy_() -> None:
        for to, source in zip(warm.parameters(), dense.parameters(), strict=True):
            to.data.copy_(source)

    def own() -> None:
        model = holder["model"]
        (group,) = neurons("ff", model["ff"])
        request = Request("neuron", 0.3)
        score, _ = unit_scorer(model, [group], request, None)
        keep = rounded_keep(group.count - count_to_remove(0.3, group.count), group.count, "auto", 1)
        cut_units(model, {group: lowest([score(group)], group.count - keep)[0].nonzero().flatten()})

    def fresh() -> None:
        holder["model"] = copy.deepcopy(dense)

    name = str(dtype).removeprefix("torch.")
    own_s, copy_s = seconds(own, before=fresh), seconds(copy_, repeats=15)
    kept = holder["model"]["ff"].net[2].weight.shape[1]
    details = {"own_s": own_s, "copy_s": copy_s, "kept": kept}
    faster = Row(
        "P5", f"cut 30 % of an FFN pair, {name}", "x faster than torch-pruning", None, ("at least", 5), details
    )
    if (peers / "torch-pruning").exists():
        with _importable(peers / "torch-pruning", "torch_pruning") as tp:

            def build() -> None:
                net = copy.deepcopy(dense["ff"].net)
                model = nn.Sequential(net[0].proj, nn.GELU(), net[2])
                holder["pruner"] = tp.pruner.MagnitudePruner(
                    model,
                    torch.randn(1, OUT, dtype=dtype),
                    tp.importance.MagnitudeImportance(p=2),
                    pruning_ratio=0.3,
                    ignored_layers=[model[2]],
                )

            peer_s = seconds(lambda: holder["pruner"].step(), repeats=3, before=build)
        faster = faster._replace(measured=peer_s / own_s, details=details | {"peer_s": peer_s})
    yield faster
    yield Row("P5", f"cut 30 % of an FFN pair, {name}", "x copy", own_s / copy_s, ("at most", 6), details)


def dit(sample: int) -> DiTTransformer2DModel:
    """A DiT of width 1152, 16 heads, 4 layers; sample / 2 tokens along each side."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(16, 72, in_channels=4, num_layers=4, sample_size=sample, norm_num_groups=4).eval()


def unet() -> UNet2DModel:
    """A UNet of 128 to 256 channels at 64 x 64."""
    torch.manual_seed(0)
    down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    return UNet2DModel(64, down_block_types=down, up_block_types=up, block_out_channels=(128, 256, 256, 256)).eval()


@torch.no_grad()
def realised(repeats: int) -> Iterator[Row]:
    """P6: by how much faster a cut model is, over by how many fewer operations it has; dense and cut in turns."""
    tokens = {256: (2, 32), 1024: (1, 64)}
    cuts = [
        (
            f"DiT, {count} tokens, {what}",
            0.92,
            lambda side=side: dit(side),
            dict(class_labels=torch.zeros(b).long()),
            b,
            4,
            side,
            steps,
        )
        for count, (b, side) in tokens.items()
        for what, steps in (
            ("neurons 30 %", [("neuron", 0.3)]),
            ("neurons and heads 30 %", [("neuron", 0.3), ("head", 0.3)]),
            ("blocks 50 %", [("block", 0.5)]),
        )
    ]
    cuts += [(f"UNet, channels {rate:.0%}", 0.87, unet, {}, 1, 3, 64, [("channel", rate)]) for rate in (0.25, 0.3, 0.5)]
    for what, target, make, keywords, batch, channels, side, steps in cuts:
        dense, cut = make(), make()
        for granularity, amount in steps:
            reference.prune(cut, granularity, amount)
        x, t = torch.randn(batch, channels, side, side), torch.full((batch,), 500)
        operations, times = [], []
        for model in (dense, cut):
            with FlopCounterMode(display=False) as counter:
                model(x, t, **keywords)
            operations.append(counter.get_total_flops())
        for _ in range(repeats):
            times.append([seconds(partial(model, x, t, **keywords), repeats=1) for model in (dense, cut)])
        nominal = operations[0] / operations[1]
        speedup = statistics.median(a / b for a, b in times)
        details = {"nominal": nominal, "realised": speedup, "dense_s": statistics.median(a for a, _ in times)}
        yield Row("P6", what, "of the nominal speed-up realised", speedup / nominal, ("at least", target), details)


@contextlib.contextmanager
def _importable(folder: Path, name: str) -> Iterator:
    """The peer's module, imported from its own folder; what waits for a GPU in it does not."""
    synchronize, torch.cuda.synchronize = torch.cuda.synchronize, lambda *_: None
    sys.path.insert(0, str(folder))
    try:
        yield __import__(name)
    finally:
        sys.path.remove(str(folder))
        torch.cuda.synchronize = synchronize


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write the result file; 0 whether targets are met or not."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf", description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, default=ROOT / "out" / "peers", help="folder of the peers' code")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the result files")
    parser.add_argument("--only", nargs="+", metavar="P", help="of these targets only, such as P1 P6")
    parser.add_argument("--repeats", type=int, default=5, help="forward passes of each model for P6")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.monotonic()
    parts = [
        *(("P1", lambda dtype=dtype: global_magnitude(dtype)) for dtype in (torch.bfloat16, torch.float32)),
        *(("P3", lambda dtype=dtype: two_of_four(dtype)) for dtype in (torch.bfloat16, torch.float32)),
        ("P4", lambda: sparsegpt(options.peers)),
        ("P4", lambda: wanda_rows(options.peers)),
        *(
            ("P5", lambda dtype=dtype: structured_cut(options.peers, dtype))
            for dtype in (torch.bfloat16, torch.float32)
        ),
        ("P6", lambda: realised(options.repeats)),
        ("S", lambda: (Row(*fields) for fields in perf_site.rows())),
    ]
    rows = []
    print(f"{'':3} {'what':44} {'measured':>9}  {'target':15}  {'':7} ratio")
    for id_, part in parts:
        for row in part() if not options.only or id_ in options.only else ():
            rows.append(row)
            measured = "-" if row.measured is None else f"{row.measured:.2f}"
            target = "{} {:g}".format(*row.target) if row.target else "-"
            met = {None: "no peer" if row.measured is None else "", True: "met", False: "NOT MET"}[row.met]
            print(f"{row.id:3} {row.what:44} {measured:>9}  {target:15}  {met:7} {row.unit}", flush=True)
    if any(row.measured is None for row in rows):
        print(f"\nPeers not found in {options.peers}; how to get them:\n" + __doc__.split("there:\n\n")[1].rstrip())
    now = datetime.now(UTC)
    result = {
        "created": now.isoformat(timespec="seconds"),
        "command": " ".join(["python -m tests.perf", *(["--only", *options.only] if options.only else [])]),
        "code": code(),
        "environment": environment(),
        "threads": 1,
        "clock": "processor time of the thread, median; ratios within one process",
        "rows": [row._asdict() | {"met": row.met} for row in rows],
    }
    file = options.out / "perf" / device_folder() / f"{now:%Y%m%dT%H%M%SZ}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{len(rows)} ratios in {time.monotonic() - started:.0f} s; written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
