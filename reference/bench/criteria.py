"""The engine suite: which criterion leaves the prediction closest to the dense model's, at one rate a granularity.

    err_p = sqrt( sum_t a_t ||v_pruned - v_dense||^2 / sum_t a_t ||v_dense||^2 )

of each held-out picture p at the inputs that the dense model had on its own way, with a_t = 1, and once more with the
step weights of OBS-Diff; and whether the same units go whatever it was calibrated on (`measure.agreement`). A run is
one granularity, criterion, scope and number of calibration prompts over all seeds; with `--resume` those that have a
result of the same protocol are left out.
"""

import copy
import hashlib
import random
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

import reference
from reference.bench import measure, metrics, results
from reference.calibration import Call, calls
from reference.criteria.obs_diff import timestep_weights
from reference.denoising_loss import prediction_of
from reference.embedded import EMBEDDED, load_embedded
from reference.embedded.openmoji import catalogue, is_held_out
from reference.embedded.pipeline import EmbeddedPipeline
from reference.request import WITHOUT_DATA


class Cell(NamedTuple):
    """One run: a taxonomy entry, the keywords of `reference.plan`, and on how many prompts it is calibrated."""

    entry: str
    keywords: dict
    prompts: int


class Seed(NamedTuple):
    """What one seed calibrates on, and the dense answers that it is held to."""

    number: int
    calibrations: dict[int, reference.Calibration]  # by the number of prompts
    held_out: list[tuple[Call, Tensor]]


class Session(NamedTuple):
    """What all cells share."""

    protocol: dict
    sha256: str
    dense: EmbeddedPipeline
    seeds: list[Seed]


def list_cells(protocol: dict, entries: list[str] | None) -> list[Cell]:
    """All cells in the order of the protocol."""
    known = [entry["entry"] for entry in protocol["entries"]]
    for name in entries or []:
        if name not in known:
            raise ValueError(f"no entry {name!r}; there are {', '.join(known)}")
    return [
        Cell(entry["entry"], entry["keywords"] | {"criterion": criterion, "scope": scope}, prompts)
        for entry in protocol["entries"]
        if not entries or entry["entry"] in entries
        for criterion, scope in entry["criteria"]
        for prompts in (sizes(protocol)[:1] if criterion in WITHOUT_DATA else sizes(protocol))
    ]


def sizes(protocol: dict) -> list[int]:
    """The numbers of calibration prompts that a protocol asks for: one, or several to compare."""
    asked = protocol["calibration"]["prompts"]
    return asked if isinstance(asked, list) else [asked]


def dense_cell(protocol: dict) -> Cell:
    """The dense model, which all others are held to."""
    return Cell("dense", {}, sizes(protocol)[0])


def run_criteria(file: Path, cells: list[Cell], folder: Path, resume: bool = False) -> list[dict]:
    """Run the cells, a result file each; hand back theirs and, if resumed, those before."""
    session = open_session(file.read_text())
    runs = [run for run in results.read(folder) if run["protocol"]["sha256"] == session.sha256] if resume else []
    runs = [run for run in runs if run["status"] != "failed"]
    done = {key(run) for run in runs}
    baseline = next((run["run_id"] for run in runs if run["subject"]["is_baseline"]), None)
    for cell in tqdm([dense_cell(session.protocol), *cells], desc="criteria", unit="run"):
        if key(cell) in done:
            continue
        runs.append(run_cell(session, cell, baseline, folder))
        baseline = baseline or runs[-1]["run_id"]
    return runs


def open_session(text: str) -> Session:
    """Load the model and calibrate, as a protocol file with this text asks."""
    protocol, sha256 = yaml.safe_load(text), hashlib.sha256(text.encode()).hexdigest()
    dense = load_embedded(protocol["model"], getattr(torch, protocol["dtype"]))
    return Session(protocol, sha256, dense, [open_seed(protocol, dense, n) for n in protocol["noise_seeds"]])


def run_cell(session: Session, cell: Cell, baseline: str | None, folder: Path) -> dict:
    """Measure one cell and write its result, failures included."""
    protocol, weights = session.protocol, EMBEDDED[session.protocol["model"]]
    run = results.frame(protocol, session.sha256, weights, cell.entry, cell.keywords, baseline)
    run["config"] |= {"calibration": protocol["calibration"] | {"prompts": cell.prompts}}
    run["config"] |= {"held_out": protocol["held_out"]}
    start = time.monotonic()
    try:
        _measure(run, cell, session.dense, session.seeds, protocol)
    except (ValueError, RuntimeError) as error:
        run |= {"status": "failed", "error": str(error), "achieved": None, "quality": []}
    run["code"]["wall_seconds"] = round(time.monotonic() - start, 2)
    results.write(run, folder)
    return run


def open_seed(protocol: dict, dense: EmbeddedPipeline, number: int) -> Seed:
    """Shuffle the names that the model was trained on; the first calibrate, the next are held out from all sizes."""
    names = sorted({name for stem, name in catalogue() if not is_held_out(stem)})
    random.Random(number).shuffle(names)
    asked, first, then = sizes(protocol), max(sizes(protocol)), protocol["held_out"]
    shared = {
        "steps": protocol["sampler"]["steps"],
        "keywords": {"guidance_scale": protocol["sampler"]["guidance"]},
    }
    batch, seed = protocol["calibration"]["batch_size"], 1000 * number
    seen = {n: reference.Calibration(dense, names[:n], seed=seed, batch_size=batch, **shared) for n in asked}
    unseen = reference.Calibration(dense, names[first : first + then], seed=seed + 500, batch_size=then, **shared)
    with torch.no_grad():
        return Seed(number, seen, [(call, prediction_of(call)) for call in calls(dense.denoiser, unseen)])


def _measure(run: dict, cell: Cell, dense: EmbeddedPipeline, seeds: list[Seed], protocol: dict) -> None:
    """Prune once a seed and fill in what is left and how far the predictions are."""
    errors: dict[str, list[np.ndarray]] = {"prediction_error": [], "weighted_prediction_error": []}
    seconds, plans = [], []
    for seed in seeds if cell.keywords else []:
        looks_at_data = cell.keywords["criterion"] not in WITHOUT_DATA
        began = time.monotonic()
        data = seed.calibrations[cell.prompts] if looks_at_data else None
        plan = reference.plan(dense.denoiser, **cell.keywords, seed=seed.number, calibration=data)
        plans.append(plan)
        seconds.append(time.monotonic() - began)
        pruned = copy.deepcopy(dense.denoiser)
        report = reference.apply(pruned, plan)
        for weighted, found in enumerate(errors.values()):
            found.append(prediction_errors(pruned, seed.held_out, bool(weighted)))
    model = pruned if cell.keywords else dense.denoiser
    run["achieved"] = {
        **measure.count(model, measure.guided_inputs(dense, 1)),
        **measure.bytes_on_disk(model, getattr(torch, protocol["storage_dtype"])),
        "unit_rate": report.unit_rate if cell.keywords else 0.0,
        "prune_seconds": float(np.median(seconds)) if seconds else 0.0,
        "recovery_seconds": 0.0,
    }
    for metric, of_seeds in errors.items() if cell.keywords else []:
        found = metrics.interval(np.concatenate(of_seeds))
        run["quality"].append({"metric": metric, **found, "per_seed": [float(e.mean()) for e in of_seeds]})
    if len(plans) > 1 and plans[0].granularity != "rank":  # whose directions are of another basis each time
        run["quality"].append({"metric": "agreement"} | measure.agreement(plans))


def prediction_errors(model: nn.Module, held_out: list[tuple[Call, Tensor]], weighted: bool) -> np.ndarray:
    """err_p of every held-out picture, both halves of guidance together."""
    wrong, total = 0.0, 0.0
    with torch.no_grad():
        for call, v_dense in held_out:
            a = float(timestep_weights(call.steps)[call.step_b]) if weighted else 1.0
            v = prediction_of(call._replace(denoiser=model))
            wrong = wrong + a * (v - v_dense).square().flatten(1).sum(1)
            total = total + a * v_dense.square().flatten(1).sum(1)
    wrong, total = (x.unflatten(0, (2, -1)).sum(0) for x in (wrong, total))
    return (wrong / total).sqrt().numpy()


def key(run: Cell | dict) -> str:
    """What makes two runs of one protocol the same."""
    config = run["config"] if isinstance(run, dict) else run.keywords
    prompts = run["config"]["calibration"]["prompts"] if isinstance(run, dict) else run.prompts
    return " ".join(str(config.get(name)) for name in ("granularity", "amount", "criterion", "scope")) + f" {prompts}"
