"""The quality suite: how pictures get worse with what is removed, and by what else is done to the model.

An experiment is a protocol file. A cell of it (`quality_cells.py`) is one model with one thing done to it, and one
result file, written when the cell is done. Stopped at any moment, even killed, it goes on with `--resume`: cells with a
result of the same protocol (file hash), weights and seed are not run again.
"""

import copy
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import reference
from reference.bench import acceptance, damage, measure, metrics, partners, results
from reference.bench.cells import pending
from reference.bench.device import keep_fp32
from reference.bench.judge import Judge, open_judge
from reference.bench.quality_cells import Cell, key
from reference.embedded import EMBEDDED, load_embedded, on_device
from reference.embedded.pipeline import EmbeddedPipeline
from reference.recovery import distill
from reference.request import WITHOUT_DATA

# The protocols of `--suite quality`, the most telling first.
EXPERIMENTS = (
    "quality", "quality-components", "quality-recovery", "quality-composition", "quality-layers", "quality-steps",
)  # fmt: skip
KEYWORDS = ("component", "granularity", "scope", "only", "criterion", "amount", "schedule", "rounds")
PICTURES, SHOWN = 6, (0.3, 0.5, 0.7)  # saved with a result whose rate is near one that the grids show


class Subject(NamedTuple):
    """A dense model and what its pruned versions are compared with."""

    dense: EmbeddedPipeline
    run_id: str  # of its own result
    trajectory: measure.Trajectory
    floor: dict[str, float]  # metric -> its value for the dense model drawn from other noise


def run_quality(
    file: Path,
    cells: list[Cell],
    folder: Path,
    resume: bool = False,
    budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> list[dict]:
    """Run the cells, a result file each; hand back the runs of this session and, if resumed, those before."""
    judge = open_judge(file.read_text(), seed, device)
    runs = finished(judge.sha256, seed, folder) if resume else []
    done = {key(run): run for run in runs if run["status"] != "failed"}
    subjects: dict[str, Subject] = {}

    for cell in pending(cells, lambda cell: key(cell) in done, budget_s):
        if cell.model not in subjects:
            subjects[cell.model], run = open_subject(judge, cell.model, done.get((cell.model, "")), folder)
            runs += run
        runs.append(run_cell(judge, subjects[cell.model], cell, folder))
    return runs


def finished(sha256: str, seed: int, folder: Path) -> list[dict]:
    """Results of the same protocol, seed and weights."""
    return [
        run
        for run in results.read(folder)
        if (run["protocol"]["sha256"], run["config"].get("seed")) == (sha256, seed)
        and run["subject"]["model"] in EMBEDDED
        and run["subject"]["weights_sha256"] == results.fingerprint(EMBEDDED[run["subject"]["model"]])
    ]


def open_subject(judge: Judge, model: str, before: dict | None, folder: Path) -> tuple[Subject, list[dict]]:
    """Draw with the dense model from its noise and from other noise; write its result unless there is one."""
    start = time.monotonic()
    keep_fp32()
    judge = judge.of(model)
    protocol = judge.protocol
    dense = on_device(load_embedded(model, getattr(torch, protocol["dtype"])), judge.device)
    seeds = protocol["noise_seeds"]
    prompts = judge.names * len(seeds)
    noise, other = (measure.noise(dense, len(judge.names), protocol[key]) for key in ("noise_seeds", "floor_seeds"))
    trajectory = measure.record(dense, prompts, noise, **protocol["sampler"], seeds=len(seeds))
    again = measure.draw(dense, prompts, other, **protocol["sampler"])
    floors = judge.records(again, trajectory.pictures)
    floor = {record["metric"]: record["value"] for record in floors}
    if before is not None:
        return Subject(dense, before["run_id"], trajectory, floor), []
    run = frame(judge, Cell(model, "dense", {}), None)
    run["achieved"] = size(dense, protocol) | {"unit_rate": 0.0, "prune_seconds": 0.0, "recovery_seconds": 0.0}
    own = judge.records(trajectory.pictures, trajectory.pictures)
    to_dense = metrics.TO_DENSE  # of the dense model to itself they say nothing: write the floor
    run["quality"] = [r | {"metric": f"{r['metric']}_other_noise"} for r in floors if r["metric"] in to_dense]
    run["quality"] += [r | {"floor": floor[r["metric"]]} for r in own if r["metric"] not in to_dense]
    finish(run, trajectory.pictures[:PICTURES], folder, start)
    return Subject(dense, run["run_id"], trajectory, floor), [run]


def run_cell(judge: Judge, subject: Subject, cell: Cell, folder: Path) -> dict:
    """Do what the cell asks to a copy of the dense model, draw, judge, write. Refusals and failures are results too."""
    start = time.monotonic()
    judge = judge.of(cell.model)
    run, protocol = frame(judge, cell, subject.run_id), judge.protocol
    pictures = None
    try:
        if "measures" in protocol:
            run["quality"] = damage.MAPS[protocol["measures"]](judge, subject.dense, subject.trajectory, cell)
            return finish(run, None, folder, start)
        pruned = copy.deepcopy(subject.dense)
        facts = prune(pruned, cell, judge, run["config"]["recovery"])
        run["achieved"] = size(pruned, protocol) | facts
        partner, sampler = protocol.get("partners", {}).get(cell.keywords.get("partner"), {}), protocol["sampler"]
        if "partners" in protocol:
            sampler = partners.combine(pruned, partner, sampler)
            run["config"]["sampler"] = sampler
            dtype = getattr(torch, protocol["storage_dtype"])
            run["achieved"] |= partners.costs(pruned, partner, sampler, dtype)
        noise = measure.noise(pruned, len(judge.names), protocol["noise_seeds"])
        prompts = judge.names * len(protocol["noise_seeds"])
        pictures = measure.draw(pruned, prompts, noise, **sampler)
        records = judge.records(pictures, subject.trajectory.pictures)
        if not {"steps", "cache_every"} & set(partner):  # what they change is no single prediction
            wrong = measure.prediction_error(pruned.denoiser, subject.trajectory, protocol.get("prediction_every", 2))
            run["quality"] = [{"metric": "prediction_error"} | wrong]
        run["quality"] += [r | {"floor": subject.floor[r["metric"]]} for r in records]
        pictures = pictures[:PICTURES] if is_shown(cell, protocol) else None
    except (ValueError, RuntimeError) as error:
        unsupported = isinstance(error, reference.NotPrunable)
        run |= {"status": "unsupported" if unsupported else "failed", "error": str(error), "achieved": None}
        run["quality"], pictures = [], None
    return finish(run, pictures, folder, start)


def prune(pipeline: EmbeddedPipeline, cell: Cell, judge: Judge, recovery: dict) -> dict[str, float]:
    """Prune in place as the cell asks; share of the units that went, and seconds."""
    asked = {name: cell.keywords[name] for name in KEYWORDS if name in cell.keywords}
    component = asked.pop("component", None)
    if component and "only" not in asked:
        units = reference.units(pipeline, asked["granularity"])
        asked["only"] = [unit.name for unit in units if unit.component == component]
        if not asked["only"]:
            raise reference.NotPrunable(f"{cell.model} has no units of {component} by {asked['granularity']}")
    if asked:
        needs_data = asked["criterion"] not in WITHOUT_DATA
        asked |= {"calibration": _calibration(pipeline, judge.protocol) if needs_data else None, "seed": judge.seed}
    recover = None
    if recovery["kind"] != "none":
        names, x = judge.drawings
        steps, left = divmod(recovery["steps"], cell.keywords.get("rounds", 1))
        if left:
            raise ValueError(
                f"{recovery['steps']} steps of recovery do not divide into {cell.keywords['rounds']} rounds"
            )
        settings = {name: recovery[name] for name in ("batch", "learning_rate", "loss")}
        recover = distill(pipeline, x, names, steps, **settings, seed=judge.seed)
    return measure.prune_timed(pipeline, asked, recover)


def is_shown(cell: Cell, protocol: dict) -> bool:
    """Whether pictures are kept: hundreds of cells would outweigh the code, and rules look at numbers alone."""
    amount = cell.keywords.get("amount", SHOWN[0])
    return "rules" not in protocol and any(abs(amount - rate) < 0.045 for rate in SHOWN)


def _calibration(pipeline: EmbeddedPipeline, protocol: dict) -> reference.Calibration:
    settings = dict(protocol["calibration"])
    prompts = acceptance.listed_names(100 + settings.pop("prompts"))[100:]
    return reference.Calibration(
        pipeline, prompts, **settings, keywords={"guidance_scale": protocol["sampler"]["guidance"]}
    )


def size(pipeline: EmbeddedPipeline, protocol: dict) -> dict[str, int]:
    counted = measure.count(pipeline.denoiser, measure.guided_inputs(pipeline, 1))
    return counted | measure.bytes_on_disk(pipeline.denoiser, getattr(torch, protocol["storage_dtype"]))


def frame(judge: Judge, cell: Cell, baseline: str | None) -> dict:
    weights = EMBEDDED[cell.model]
    run = results.frame(judge.protocol, judge.sha256, weights, cell.entry, cell.keywords, baseline, judge.device)
    run["config"] |= {"prompts": judge.names, "seed": judge.seed, "recovery": _recovery(judge.protocol, cell)}
    return run


def _recovery(protocol: dict, cell: Cell) -> dict:
    if "recovery" not in cell.keywords:
        return {"kind": "none"}
    loss = cell.keywords["recovery"]
    return {"kind": "finetune" if loss == "task" else "distill", "loss": loss} | protocol["recovery"]


def finish(run: dict, pictures: Tensor | None, folder: Path, start: float) -> dict:
    if pictures is not None:
        run["artifacts"] = [results.write_pictures(pictures.numpy(), folder)]
    run["code"]["wall_seconds"] = round(time.monotonic() - start, 2)
    results.write(run, folder)
    return run
