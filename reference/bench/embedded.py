"""The embedded suite: every method once on a model that ships, in minutes on a CPU; a result file for each run."""

import copy
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

import reference
from reference.bench import measure, results
from reference.bench.device import keep_fp32
from reference.embedded import EMBEDDED, load_embedded, on_device
from reference.embedded.models import SIZE
from reference.embedded.openmoji import drawings
from reference.embedded.pipeline import EmbeddedPipeline
from reference.recovery import distill


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


def run_embedded(file: Path, jobs: list, folder: Path, seed: int, device: str = "cpu") -> list[dict]:
    """The dense baseline, then every job; a result file each, also for those that fail."""
    protocol, sha256 = yaml.safe_load(file.read_text()), hashlib.sha256(file.read_bytes()).hexdigest()
    recovery = protocol["recovery"]
    training = sum(recovery["steps_per_round"] * k.get("rounds", 1) for _, k, recovers in jobs if recovers)
    bar = tqdm(total=1 + 3 * (1 + len(jobs)) + training, desc="dense trajectory", dynamic_ncols=True)
    session = open_session(protocol, device)
    names, x = drawings(SIZE) if training else ([], None)
    bar.update()

    runs: list[dict] = []
    for entry, keywords, recovers in [("dense", {}, False), *jobs]:
        bar.set_description(f"{entry} {keywords['amount']:.0%}" if keywords else entry)
        start = time.monotonic()
        baseline, weights = runs[0]["run_id"] if runs else None, EMBEDDED[protocol["model"]]
        run = results.frame(protocol, sha256, weights, entry, keywords, baseline, device)
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


def open_session(protocol: dict, device: str = "cpu") -> Session:
    """Load the dense model and record its trajectory."""
    keep_fp32()
    dense = on_device(load_embedded(protocol["model"], getattr(torch, protocol["dtype"])), device)
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
