"""`python -m reference.bench --suite embedded`: prune, measure, write result files, print the table."""

import argparse
import copy
import hashlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
import transformers
import yaml
from torch import Tensor
from tqdm import tqdm

import reference
from reference.bench import criteria, criteria_table, gpu, measure, quality, quality_cells, quality_table, results
from reference.bench.device import ROOT, device_folder
from reference.bench.launcher import run_on_ray
from reference.embedded import EMBEDDED, load_embedded
from reference.embedded.models import SIZE
from reference.embedded.openmoji import drawings
from reference.embedded.pipeline import EmbeddedPipeline
from reference.recovery import distill

PROTOCOLS = Path(__file__).parent / "protocols"


def main(arguments: list[str] | None = None) -> int:
    """Run a suite; 0 if every run is ok, 1 if one failed, 2 for wrong arguments."""
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
    parser.add_argument("--device", default="cuda", help=f"{', '.join(gpu.SUITES)}: cuda, or cpu for a dry run")
    parser.add_argument("--dry-run", action="store_true", help="GPU suites: shrunk architectures, nothing to publish")
    parser.add_argument("--seed", type=int, default=0, help="embedded: of recovery; quality: of all noise")
    parser.add_argument(
        "--launcher", default="local", choices=["local", "ray"], help="engine, quality: where cells run"
    )
    parser.add_argument("--address", help="ray: of the cluster; left out, one is started on this machine")
    parser.add_argument("--list", action="store_true", help="list the runs and end")
    options = parser.parse_args(arguments)

    if wrong := _launcher_refused(options):
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    if options.suite in gpu.SUITES:
        return gpu.main(options, print_table)
    options.out = options.out or ROOT / "results"
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
            jobs = list_jobs(protocol, options.method)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"error: {file}: {error}", file=sys.stderr)
        return 2
    if options.list:
        for job in jobs:
            print(*job)
        return 0

    folder = options.out / options.suite / device_folder()
    started = time.monotonic()
    if options.suite != "embedded":
        if options.launcher == "ray":
            try:
                runs = run_on_ray(options.suite, file, jobs, folder, options.resume, options.address, options.seed)
            except (ValueError, ConnectionError) as error:
                print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
                return 2
        elif options.suite == "quality":
            runs = quality.run_quality(file, jobs, folder, options.resume, options.budget_s, options.seed)
            if options.budget_s is not None:  # what is left of it is for the next file
                options.budget_s -= time.monotonic() - started
        else:
            runs = criteria.run_criteria(file, jobs, folder, options.resume)
        table = quality_table if options.suite == "quality" else criteria_table
        print_table([list(table.COLUMNS), *table.rows(runs)])
        print(f"\n{len(runs)} runs; result files and pictures: {folder}")
        return int(any(run["status"] == "failed" for run in runs))
    runs = run_suite(protocol, hashlib.sha256(file.read_bytes()).hexdigest(), jobs, folder, options.seed)
    print_table([list(results.COLUMNS), *results.rows(runs)])
    print(f"\n{len(runs)} runs in {time.monotonic() - started:.0f} s; result files and pictures: {folder}")
    print("One row of pictures a run, the same noise and prompts in each: " + ", ".join(protocol["prompts"]))
    return int(any(run["status"] != "ok" for run in runs))


def _launcher_refused(options: argparse.Namespace) -> str | None:
    """Why the launcher does not go with the other options; None if it does."""
    if options.launcher == "local":
        return "--address goes with --launcher ray" if options.address else None
    if options.suite not in ("engine", "quality"):
        return f"--launcher ray runs the suites engine and quality, not {options.suite!r}"
    return "--budget-s goes with --launcher local" if options.budget_s is not None else None


def list_jobs(protocol: dict, only: list[str] | None) -> list[tuple[str, dict, bool]]:
    """(entry, keywords of reference.prune, whether it recovers) of every run after the dense one."""
    entries = [e["entry"] for e in protocol["entries"]]
    for name in only or []:
        if name not in entries:
            raise ValueError(f"no entry {name!r}; there are {', '.join(entries)}")
    return [
        (e["entry"], e["keywords"] | {"amount": amount}, e.get("recover", False))
        for e in protocol["entries"]
        if not only or e["entry"] in only
        for amount in e["amounts"]
    ]


class Session(NamedTuple):
    """What all runs of a suite share."""

    protocol: dict
    dense: EmbeddedPipeline
    inputs: dict[int, dict]  # pictures a batch -> inputs of one guided step
    prompts: list[str]  # one a picture
    noise: Tensor  # (p, 3, size, size)
    trajectory: measure.Trajectory


def run_suite(protocol: dict, sha256: str, jobs: list, folder: Path, seed: int) -> list[dict]:
    """The dense baseline, then every job; a result file each, also for those that fail."""
    recovery = protocol["recovery"]
    training = sum(recovery["steps_per_round"] * k.get("rounds", 1) for _, k, recovers in jobs if recovers)
    bar = tqdm(total=1 + 3 * (1 + len(jobs)) + training, desc="dense trajectory", dynamic_ncols=True)
    session = open_session(protocol)
    names, x = drawings(SIZE) if training else ([], None)
    bar.update()

    runs: list[dict] = []
    for entry, keywords, recovers in [("dense", {}, False), *jobs]:
        bar.set_description(f"{entry} {keywords['amount']:.0%}" if keywords else entry)
        start = time.monotonic()
        run = results.frame(
            protocol, sha256, EMBEDDED[protocol["model"]], entry, keywords, runs[0]["run_id"] if runs else None
        )
        run["config"] |= {"recovery": recovery if recovers else {"kind": "none"}, "seed": seed}
        try:
            pruned = copy.deepcopy(session.dense)
            recover = None
            if recovers:
                settings = {name: recovery[name] for name in ("batch", "learning_rate")} | {"seed": seed}
                recover = distill(
                    session.dense, x, names, recovery["steps_per_round"], each_step=bar.update, **settings
                )
            facts = measure.prune_timed(pruned, keywords, recover)
            bar.update()
            measure_run(run, session, pruned, facts, folder, bar)
        except (ValueError, RuntimeError) as error:
            unsupported = isinstance(error, reference.NotPrunable)
            run |= {"status": "unsupported" if unsupported else "failed", "error": str(error), "achieved": None}
            run |= {"quality": [], "speed": [], "artifacts": []}
        run["code"]["wall_seconds"] = round(time.monotonic() - start, 2)
        results.write(run, folder)
        runs.append(run)
    bar.close()
    return runs


def open_session(protocol: dict) -> Session:
    """Load the dense model and record its trajectory."""
    dense = load_embedded(protocol["model"], getattr(torch, protocol["dtype"]))
    seeds, prompts = protocol["noise_seeds"], protocol["prompts"]
    noise = measure.noise(dense, len(prompts), seeds)
    inputs = {pictures: measure.guided_inputs(dense, pictures) for pictures in protocol["latency"]["repeats"]}
    trajectory = measure.record(dense, prompts * len(seeds), noise, **protocol["sampler"], seeds=len(seeds))
    return Session(protocol, dense, inputs, prompts * len(seeds), noise, trajectory)


def measure_run(run: dict, session: Session, pruned: EmbeddedPipeline, facts: dict, folder: Path, bar: tqdm) -> None:
    """Fill in what is left, how far the pictures are, how fast it is, and save the pictures."""
    protocol, trajectory = session.protocol, session.trajectory
    run["achieved"] = {
        **measure.count(pruned.denoiser, session.inputs[min(session.inputs)]),
        **measure.bytes_on_disk(pruned.denoiser, getattr(torch, protocol["storage_dtype"])),
        **facts,
    }
    pictures = measure.draw(pruned, session.prompts, session.noise, **protocol["sampler"])
    if run["subject"]["is_baseline"]:  # the floor: how alike are two drawings of one prompt from other noise
        other = trajectory.pictures.roll(len(protocol["prompts"]), 0)
        run["quality"] = [{"metric": "psnr_other_noise"} | measure.psnr(other, trajectory)]
    else:
        run["quality"] = [
            {"metric": "prediction_error"} | measure.prediction_error(pruned.denoiser, trajectory),
            {"metric": "psnr"} | measure.psnr(pictures, trajectory),
        ]
    bar.update()
    timing = protocol["latency"]
    for n, repeats in timing["repeats"].items():
        models = session.dense.denoiser, pruned.denoiser
        times = measure.latency(*models, session.inputs[n], timing["warmup"], repeats, timing["threads"])
        run["speed"].append({"pictures": n} | times)
    shown = pictures[: len(protocol["prompts"])]
    run["artifacts"] = [results.write_pictures(shown.numpy(), folder)]
    bar.update()


def print_table(table: list[list[str]]) -> None:
    """The table on the terminal, its first row the heads."""
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
