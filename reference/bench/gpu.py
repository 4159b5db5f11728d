"""The suites that need a GPU, from the command line: latency, kernels, claims, cost. A dry run needs none."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
import yaml

from reference.bench import claims, cost, kernels, latency, results
from reference.bench.cells import Stage, chosen, open_protocol, run_cells
from reference.bench.device import ROOT, device_folder, keep_fp32

SUITES = {"latency": latency, "kernels": kernels, "claims": claims, "cost": cost}


def main(options: argparse.Namespace, print_table: Callable[[list[list[str]]], None]) -> int:
    """Run one of the suites: 0 when it is through, 2 for wrong arguments. Runs that fail are results, and counted."""
    suite = SUITES[options.suite]
    file = options.protocol or Path(__file__).parent / "protocols" / f"{options.suite}.yaml"
    try:
        options.device = options.device or "cuda"
        out = _out(options)
        device = "cpu" if options.dry_run else options.device
        protocol = open_protocol(file, options.dry_run)
        cells = chosen(suite.list_cells(protocol), options.model, options.method)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"error: {options.suite}: {error}", file=sys.stderr)
        return 2
    if options.list:
        for cell in cells:
            print(*cell)
        return 0
    if device == "cuda" and not torch.cuda.is_available():
        print(f"error: {options.suite} needs a CUDA device; --dry-run goes through it on a CPU", file=sys.stderr)
        return 2

    diffusers.utils.logging.set_verbosity_error()
    keep_fp32()
    folder = out / options.suite / device_folder(device)
    stage = Stage(protocol, folder, device, getattr(torch, protocol["dtype"]), options.dry_run)
    if options.suite == "kernels":
        measure = partial(kernels.measure, stage)
    else:
        kernel_runs = results.read(out / "kernels" / device_folder(device))
        measure = suite.Measure(stage, kernels.learn(kernel_runs))
    runs = run_cells(file, stage, cells, measure, options.resume, options.budget_s)
    print_table([list(suite.COLUMNS), *suite.rows(runs)])
    if options.suite == "kernels":
        print("\nwhich backend from how many rows on: " + json.dumps(kernels.learn(runs)))
    failed = sum(run["status"] != "ok" for run in runs)
    print(f"\n{len(runs)} of {len(cells)} runs, {failed} of them failed or unsupported; result files: {folder}")
    if options.dry_run:
        print("A dry run: shrunk architectures on a CPU. Its numbers mean nothing and must not be published.")
    return 0


def _out(options: argparse.Namespace) -> Path:
    """Where results go. ValueError for numbers that would not be honest there."""
    if options.dry_run:
        out = options.out or Path(tempfile.mkdtemp(prefix="bench-dry-run-"))
        if out.resolve().is_relative_to(ROOT / "results"):
            raise ValueError(f"a dry run does not write below {ROOT / 'results'}; give another --out")
        return out
    if options.device != "cuda":
        raise ValueError("a GPU table is never filled from another device; use --dry-run, or --device cuda")
    return options.out or ROOT / "results"
