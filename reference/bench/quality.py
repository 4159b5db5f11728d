"""The quality suite: how pictures get worse with the rate, for each granularity and criterion.

A cell is one model, granularity, criterion and rate, and one result file, written when the cell is done. Stopped at any
moment, even killed, it goes on with `--resume`: cells with a result of the same protocol (file hash) are not run again.
"""

import copy
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

import reference
from reference.bench import acceptance, measure, metrics, results
from reference.bench.cells import pending
from reference.embedded import EMBEDDED, load_embedded
from reference.embedded.evaluator import Evaluator, load_evaluator
from reference.embedded.models import SIZE
from reference.embedded.openmoji import catalogue, drawings
from reference.embedded.pipeline import EmbeddedPipeline
from reference.request import WITHOUT_DATA

PICTURES = 10  # saved with every result
ASKED = ("granularity", "scope", "criterion", "amount")  # the keywords that tell cells apart


class Cell(NamedTuple):
    """One run: which model, which taxonomy entry, and the keywords of `reference.prune`."""

    model: str
    entry: str
    keywords: dict


class Subject(NamedTuple):
    """A dense model and what its pruned versions are compared with."""

    dense: EmbeddedPipeline
    run_id: str  # of its own result
    trajectory: measure.Trajectory
    floor: dict[str, float]  # metric -> its value for the dense model drawn from other noise


class Judge(NamedTuple):
    """What every picture is looked at with."""

    protocol: dict
    sha256: str
    evaluator: Evaluator
    names: list[str]  # seen, then unseen
    gallery: list[str]
    drawn: Tensor  # (m, 3, size, size) in [0, 1]: the drawings that models were trained on

    def records(self, pictures: Tensor, dense: Tensor) -> list[dict]:
        """All metrics of pictures (s * p, 3, size, size); those of the drawings and prompts do not look at `dense`."""
        pictures, dense = (x.unflatten(0, (-1, len(self.names))) for x in (pictures, dense))
        seen = self.protocol["seen"]
        found = metrics.fidelity(self.evaluator, pictures, dense)
        found += metrics.distance(self.evaluator, pictures[:, :seen], self.drawn)
        for split, part in (("seen", slice(None, seen)), ("unseen", slice(seen, None))):
            found += metrics.retrieval(self.evaluator, pictures[:, part], self.names[part], self.gallery, split)
        return found


def list_cells(protocol: dict, models: list[str] | None, entries: list[str] | None) -> list[Cell]:
    """All cells, coarse rates first: every curve has its middle before any has its ends."""
    known = [entry["entry"] for entry in protocol["entries"]]
    for name in entries or []:
        if name not in known:
            raise ValueError(f"no entry {name!r}; there are {', '.join(dict.fromkeys(known))}")
    for name in models or []:
        if name not in protocol["models"]:
            raise ValueError(f"no model {name!r} in the protocol; there are {', '.join(protocol['models'])}")
    return [
        Cell(
            model, entry["entry"], {key: entry[key] for key in ASKED if key in entry} | {"criterion": c, "amount": rate}
        )
        for rate in dict.fromkeys(r for part in (protocol, *protocol["entries"]) for r in part.get("rates", []))
        for model in models or protocol["models"]
        for entry in protocol["entries"]
        if rate in entry.get("rates", protocol["rates"])
        if model in entry.get("models", protocol["models"]) and (not entries or entry["entry"] in entries)
        for c in entry["criteria"]
    ]


def run_quality(
    file: Path, cells: list[Cell], folder: Path, resume: bool = False, budget_s: float | None = None
) -> list[dict]:
    """Run the cells, a result file each; hand back the runs of this session and, if resumed, those before."""
    judge = open_judge(file.read_text())
    runs = [run for run in results.read(folder) if run["protocol"]["sha256"] == judge.sha256] if resume else []
    done = {_key(run): run for run in runs if run["status"] != "failed"}
    subjects: dict[str, Subject] = {}

    for cell in pending(cells, lambda cell: _key(cell) in done, budget_s):
        if cell.model not in subjects:
            subjects[cell.model], run = open_subject(judge, cell.model, done.get((cell.model, "")), folder)
            runs += run
        runs.append(run_cell(judge, subjects[cell.model], cell, folder))
    return runs


def open_judge(text: str) -> Judge:
    """What a protocol file with this text asks for."""
    protocol = yaml.safe_load(text)
    names = acceptance.listed_names(protocol["seen"]) + acceptance.unseen_names()[: protocol["unseen"]]
    gallery = [name for _, name in catalogue()]
    return Judge(protocol, file_hash(text), load_evaluator(), names, gallery, drawings(SIZE)[1] / 2 + 0.5)


def file_hash(text: str) -> str:
    """SHA-256 of a protocol file with this text."""
    return hashlib.sha256(text.encode()).hexdigest()


def open_subject(judge: Judge, model: str, before: dict | None, folder: Path) -> tuple[Subject, list[dict]]:
    """Draw with the dense model from its noise and from other noise; write its result unless there is one."""
    start = time.monotonic()
    protocol = judge.protocol
    dense = load_embedded(model, getattr(torch, protocol["dtype"]))
    seeds = protocol["noise_seeds"]
    prompts = judge.names * len(seeds)
    noise, other = (measure.noise(dense, len(judge.names), protocol[key]) for key in ("noise_seeds", "floor_seeds"))
    trajectory = measure.record(dense, prompts, noise, **protocol["sampler"], seeds=len(seeds))
    again = measure.draw(dense, prompts, other, **protocol["sampler"])
    floors = judge.records(again, trajectory.pictures)
    floor = {record["metric"]: record["value"] for record in floors}
    if before is not None:
        return Subject(dense, before["run_id"], trajectory, floor), []
    run = _frame(judge, Cell(model, "dense", {}), None)
    run["achieved"] = _size(dense, protocol) | {"unit_rate": 0.0, "prune_seconds": 0.0, "recovery_seconds": 0.0}
    own = judge.records(trajectory.pictures, trajectory.pictures)
    fidelity = ("psnr", "ssim", "feature_cosine")  # of the dense model to itself they say nothing: write the floor
    run["quality"] = [r | {"metric": f"{r['metric']}_other_noise"} for r in floors if r["metric"] in fidelity]
    run["quality"] += [r | {"floor": floor[r["metric"]]} for r in own if r["metric"] not in fidelity]
    _finish(run, trajectory.pictures[:PICTURES], folder, start)
    return Subject(dense, run["run_id"], trajectory, floor), [run]


def run_cell(judge: Judge, subject: Subject, cell: Cell, folder: Path) -> dict:
    """Prune, draw, judge, write. What cannot be pruned, or fails, is a result too."""
    start = time.monotonic()
    run, protocol = _frame(judge, cell, subject.run_id), judge.protocol
    pictures = None
    try:
        pruned = copy.deepcopy(subject.dense)
        seconds = time.monotonic()
        needs_data = cell.keywords["criterion"] not in WITHOUT_DATA
        calibration = _calibration(pruned, protocol) if needs_data else None
        report = reference.prune(pruned, **cell.keywords, calibration=calibration)
        seconds = time.monotonic() - seconds
        run["achieved"] = _size(pruned, protocol) | {
            "unit_rate": report.unit_rate,
            "prune_seconds": seconds,
            "recovery_seconds": 0.0,
        }
        noise = measure.noise(pruned, len(judge.names), protocol["noise_seeds"])
        prompts = judge.names * len(protocol["noise_seeds"])
        pictures = measure.draw(pruned, prompts, noise, **protocol["sampler"])
        wrong = measure.prediction_error(pruned.denoiser, subject.trajectory)
        records = judge.records(pictures, subject.trajectory.pictures)
        run["quality"] = [{"metric": "prediction_error"} | wrong]
        run["quality"] += [r | {"floor": subject.floor[r["metric"]]} for r in records]
        pictures = pictures[:PICTURES]
    except (ValueError, RuntimeError) as error:
        unsupported = isinstance(error, reference.NotPrunable)
        run |= {"status": "unsupported" if unsupported else "failed", "error": str(error), "achieved": None}
        run["quality"], pictures = [], None
    return _finish(run, pictures, folder, start)


def _calibration(pipeline: EmbeddedPipeline, protocol: dict) -> reference.Calibration:
    settings = dict(protocol["calibration"])
    prompts = acceptance.listed_names(100 + settings.pop("prompts"))[100:]
    return reference.Calibration(
        pipeline, prompts, **settings, keywords={"guidance_scale": protocol["sampler"]["guidance"]}
    )


def _size(pipeline: EmbeddedPipeline, protocol: dict) -> dict[str, int]:
    counted = measure.count(pipeline.denoiser, measure.guided_inputs(pipeline, 1))
    return counted | measure.bytes_on_disk(pipeline.denoiser, getattr(torch, protocol["storage_dtype"]))


def _frame(judge: Judge, cell: Cell, baseline: str | None) -> dict:
    weights = EMBEDDED[cell.model]
    run = results.frame(judge.protocol, judge.sha256, weights, cell.entry, cell.keywords, baseline)
    run["config"] |= {"prompts": judge.names, "seed": 0, "recovery": {"kind": "none"}}
    return run


def _finish(run: dict, pictures: Tensor | None, folder: Path, start: float) -> dict:
    if pictures is not None:
        run["artifacts"] = [results.write_pictures(pictures.numpy(), folder / f"{run['run_id']}.png")]
    run["code"]["wall_seconds"] = round(time.monotonic() - start, 2)
    results.write(run, folder)
    return run


def _key(run: Cell | dict) -> tuple[str, str]:
    """What makes two runs of one protocol the same: the model and what was asked of it."""
    if isinstance(run, dict):
        run = Cell(run["subject"]["model"], run["subject"]["entry"], run["config"])
    return run.model, " ".join(str(run.keywords[name]) for name in ASKED if name in run.keywords)


COLUMNS = (
    "model", "granularity", "scope", "criterion", "rate", "weights removed", "prediction error", "PSNR, dB", "SSIM",
    "kernel distance", "top 5, seen", "top 5, unseen",
)  # fmt: skip
SHOWN = (
    ("prediction_error", 3), ("psnr", 1), ("ssim", 3), ("kernel_distance", 3), ("retrieval_top5_seen", 2),
    ("retrieval_top5_unseen", 2),
)  # fmt: skip


def rows(runs: list[dict]) -> Iterator[list[str]]:
    """The curves as a table, the dense model of each first; a dense row shows the noise floor of PSNR and SSIM."""
    dense = {run["run_id"]: run["achieved"] for run in runs if run["subject"]["is_baseline"]}
    order = lambda run: [str(run["config"].get(k, "")) for k in ASKED]  # noqa: E731
    for run in sorted(runs, key=lambda run: [run["subject"]["model"], *order(run)]):
        left = [run["subject"]["model"], *(part or "-" for part in order(run))]
        if run["status"] != "ok":
            yield [*left, run["error"], *["-"] * (len(COLUMNS) - 6)]
            continue
        was = dense[run["subject"]["baseline_run"] or run["run_id"]]
        quality = {q["metric"].removesuffix("_other_noise"): q for q in run["quality"]}
        shown = [results.value(quality.get(metric), digits) for metric, digits in SHOWN]
        yield [*left, f"{1 - run['achieved']['nonzero'] / was['nonzero']:.1%}", *shown]
