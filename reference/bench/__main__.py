"""`python -m reference.bench --suite embedded`: prune, measure, write result files, print the table."""

import argparse
import sys
import time
from pathlib import Path

import diffusers
import torch
import transformers
import yaml

from reference.bench import criteria, criteria_table, embedded, gpu, quality, quality_cells, quality_table, results
from reference.bench.device import ROOT, device_folder
from reference.bench.launcher import run_on_ray

PROTOCOLS = Path(__file__).parent / "protocols"


def main(arguments: list[str] | None = None) -> int:
    """Run a suite; 0 if no run failed, 1 if one did, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m reference.bench", description=__doc__)
    parser.add_argument("--suite", default="embedded", choices=["embedded", "engine", "quality", *gpu.SUITES])
    parser.add_argument(
        "--protocol", type=Path, help="a protocol file, or the name of one; left out, the suite's own (quality: all)"
    )
    parser.add_argument("--method", action="append", help="only this entry, e.g. head (may be repeated)")
    parser.add_argument("--model", action="append", help="only this model (may be repeated); not for embedded, engine")
    parser.add_argument("--resume", action="store_true", help="leave out what has a result already; not for embedded")
    parser.add_argument("--budget-s", type=float, help="start no run after so many seconds; not for embedded, engine")
    parser.add_argument("--out", type=Path, help="folder of the result files (results/; a dry run's: a temporary one)")
    parser.add_argument("--device", help=f"cpu or cuda; left out, {', '.join(gpu.SUITES)} take cuda, the others cpu")
    parser.add_argument("--dry-run", action="store_true", help="GPU suites: shrunk architectures, nothing to publish")
    parser.add_argument("--seed", type=int, default=0, help="embedded: of recovery; quality: of all noise")
    parser.add_argument(
        "--launcher", default="local", choices=["local", "ray"], help="engine, quality: where cells run"
    )
    parser.add_argument("--address", help="ray: of the cluster; left out, one is started on this machine")
    parser.add_argument("--list", action="store_true", help="list the runs and end")
    options = parser.parse_args(arguments)

    if wrong := _launcher_refused(options) or _device_refused(options) or _results_refused(options):
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    if options.suite in gpu.SUITES:
        return gpu.main(options, print_table)
    options.out, options.device = options.out or ROOT / "results", options.device or "cpu"
    for library in (diffusers, transformers):  # one bar is enough
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    if options.suite == "quality" and options.protocol is None:
        files = [PROTOCOLS / f"{name}.yaml" for name in quality.EXPERIMENTS]
        files = [file for file in files if _knows(file, options.method or [])] or files[:1]  # whose error names them
    else:
        files = [protocol_file(options.protocol or Path(options.suite))]
    return max([run_file(file, options) for file in files])


def protocol_file(named: Path) -> Path:
    """A protocol file by its path or, without folder and ending, by its name."""
    is_name = named.name == str(named) and not named.suffix
    return PROTOCOLS / f"{named}.yaml" if is_name else named


def _knows(file: Path, entries: list[str]) -> bool:
    return set(entries) <= {entry["entry"] for entry in yaml.safe_load(file.read_text())["entries"]}


def run_file(file: Path, options: argparse.Namespace) -> int:
    """Run what a protocol file of a CPU suite asks for and print the table; 1 if a run failed, else 0."""
    try:
        protocol = yaml.safe_load(file.read_text())
        if options.suite == "quality":
            jobs = quality_cells.list_cells(protocol, options.model, options.method)
        elif options.suite == "engine":
            jobs = criteria.list_cells(protocol, options.method)
        else:
            jobs = embedded.list_jobs(protocol, options.method)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"error: {file}: {error}", file=sys.stderr)
        return 2
    if options.list:
        for job in jobs:
            print(*job)
        return 0

    folder = options.out / options.suite / device_folder(options.device)
    common, where = (file, jobs, folder), (options.seed, options.device)
    started = time.monotonic()
    if options.launcher == "ray":
        try:
            runs = run_on_ray(options.suite, *common, options.resume, options.address, *where)
        except (ValueError, ConnectionError) as error:
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
            return 2
    elif options.suite == "quality":
        runs = quality.run_quality(*common, options.resume, options.budget_s, *where)
        if options.budget_s is not None:  # what is left of it is for the next file
            options.budget_s -= time.monotonic() - started
    elif options.suite == "engine":
        runs = criteria.run_criteria(*common, options.resume)
    else:
        runs = embedded.run_embedded(*common, *where)
    table = {"quality": quality_table, "engine": criteria_table, "embedded": results}[options.suite]
    print_table([list(table.COLUMNS), *table.rows(runs)])
    print(f"\n{len(runs)} runs in {time.monotonic() - started:.0f} s; result files and pictures: {folder}")
    if options.suite == "embedded":
        print("One row of pictures a run, the same noise and prompts in each: " + ", ".join(protocol["prompts"]))
    return int(any(run["status"] == "failed" for run in runs))


def _launcher_refused(options: argparse.Namespace) -> str | None:
    """Why the launcher does not go with the other options; None if it does."""
    if options.launcher == "local":
        return "--address goes with --launcher ray" if options.address else None
    if options.suite not in ("engine", "quality"):
        return f"--launcher ray runs the suites engine and quality, not {options.suite!r}"
    return "--budget-s goes with --launcher local" if options.budget_s is not None else None


def _device_refused(options: argparse.Namespace) -> str | None:
    """Why a CPU suite cannot run on the device; None if it can. Those of a GPU know a dry run, and look themselves."""
    if options.suite in gpu.SUITES or options.device in (None, "cpu"):
        return None
    if options.suite == "engine":
        return f"engine runs on the CPU, not on {options.device!r}"
    has_it = options.device == "cuda" and torch.cuda.is_available()  # also for ray: results are filed by this device
    return None if has_it else f"torch finds no device {options.device!r} here; leave --device out for the CPU"


def _results_refused(options: argparse.Namespace) -> str | None:
    """Why --resume cannot go on from the results that are there; None if it can."""
    try:
        if options.resume:
            results.read((options.out or ROOT / "results") / options.suite)
    except ValueError as error:
        return str(error)
    return None


def print_table(table: list[list[str]]) -> None:
    """The table on the terminal, its first row the heads."""
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
