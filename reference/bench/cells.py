"""The runner of the GPU suites: a cell is one result file, written when it is done, so that a killed run goes on."""

import gc
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import yaml
from tqdm import tqdm

import reference
from reference.bench import results
from reference.bench.architectures import CONFIGS


class Cell(NamedTuple):
    """One run: which architecture, what is done to it, and everything else that tells it from other cells."""

    model: str
    entry: str
    keywords: dict


class Stage(NamedTuple):
    """Where and how the cells of a suite run."""

    protocol: dict
    folder: Path
    device: str  # cpu or cuda
    dtype: torch.dtype
    tiny: bool  # a dry run: shrunk architectures, nothing that may be published


AnyCell = TypeVar("AnyCell", bound=tuple)  # of a model, an entry and keywords


def open_protocol(file: Path, dry_run: bool) -> dict:
    """The protocol; for a dry run with what it has under `dry` on top."""
    protocol = yaml.safe_load(file.read_text())
    dry = protocol.pop("dry", {})
    return protocol | (dry if dry_run else {})


def pending(cells: Sequence[AnyCell], is_done: Callable[[AnyCell], bool], budget_s: float | None) -> Iterator[AnyCell]:
    """The cells that are not done, until the budget is over, under a progress bar. No cell is cut short."""
    started = time.monotonic()
    with tqdm(cells, unit="cell") as bar:
        for number, cell in enumerate(bar):
            if is_done(cell):
                continue
            if budget_s is not None and time.monotonic() - started > budget_s:
                tqdm.write(f"{budget_s:.0f} s are over; {len(cells) - number} cells are left for --resume")
                return
            bar.set_postfix_str(describe(cell))
            yield cell


def describe(cell: tuple) -> str:
    """A cell in one short line."""
    model, entry, keywords = cell
    return " ".join(map(str, (model, entry, *keywords.values())))[:100]


def run_cells(
    file: Path,
    stage: Stage,
    cells: Sequence[Cell],
    measure: Callable[[dict, Cell], None],
    resume: bool = False,
    budget_s: float | None = None,
) -> list[dict]:
    """Run every cell and write its result; hand back the runs of this session and, if resumed, those before.

    `measure(run, cell)` fills in a result. What it raises is a result too: out of memory, no kernel, no such units.
    """
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    runs = [run for run in results.read(stage.folder) if run["protocol"]["sha256"] == sha256] if resume else []
    done = {key(run) for run in runs if run["status"] != "failed"}
    failed = {key(run) for run in runs} - done
    # What failed is tried again, after all else: a cell that always fails must not eat every budget.
    cells = sorted(cells, key=lambda cell: key(cell) in failed and cell.entry != "dense")
    baselines = {r["subject"]["model"]: r["run_id"] for r in runs if r["subject"]["is_baseline"] and key(r) in done}
    for cell in pending(cells, lambda cell: key(cell) in done, budget_s):
        start = time.monotonic()
        baseline = None if cell.entry == "dense" else baselines.get(cell.model)
        weights = CONFIGS / f"{cell.model}.json"
        run = results.frame(stage.protocol, sha256, weights, cell.entry, cell.keywords, baseline, stage.device)
        run["subject"]["is_baseline"] = cell.entry == "dense"
        run["config"] |= {
            "asked": cell.keywords,
            "weights": "random",
            "seed": 0,
            "dtype": str(stage.dtype).removeprefix("torch."),
            "dry_run": stage.tiny,
        }
        try:
            measure(run, cell)
        except Exception as error:  # whatever a kernel or a compiler throws
            unsupported = isinstance(error, reference.NotPrunable | NotImplementedError)
            text = " ".join(str(error).split())[:500]
            run |= {"status": "unsupported" if unsupported else "failed", "error": f"{type(error).__name__}: {text}"}
            run |= {"achieved": None, "speed": []}
        run["code"]["wall_seconds"] = round(time.monotonic() - start, 2)
        results.write(run, stage.folder)
        runs.append(run)
        if run["subject"]["is_baseline"]:
            baselines[cell.model] = run["run_id"]
        free(stage.device)
    return runs


def free(device: str) -> None:
    """Hand back what the last cell held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def key(run: Cell | Mapping) -> str:
    """What makes two runs of one protocol the same."""
    if isinstance(run, Cell):
        return repr((run.model, run.entry, sorted(run.keywords.items(), key=repr)))
    return key(Cell(run["subject"]["model"], run["subject"]["entry"], run["config"]["asked"]))


def chosen(cells: Iterable[Cell], models: Sequence[str] | None, entries: Sequence[str] | None) -> list[Cell]:
    """The cells of these models and entries, in order; ValueError for a name that no cell has."""
    cells = list(cells)
    for part, asked in (("model", models), ("entry", entries)):
        known = list(dict.fromkeys(getattr(cell, part) for cell in cells))
        for name in asked or []:
            if name not in known:
                raise ValueError(f"no {part} {name!r}; there are {', '.join(known)}")
    return [c for c in cells if (not models or c.model in models) and (not entries or c.entry in entries)]
