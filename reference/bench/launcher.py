"""`--launcher ray`: the cells of a suite on a Ray cluster, the results written here.

    driver                                     worker (a task, with its CPUs and GPU reserved)
    one task a cell without a result    ->     open the suite once a process, run the cell in a scratch folder
    checks and writes the result file   <-     the result and its pictures

Only the driver writes, one file a cell when its task has ended, so a cell whose worker is lost and that Ray runs again
has one result, and a driver that is killed goes on with --resume. Workers compute with as many threads as the driver,
because sums depend on that: on equal processors the numbers are those of a local run. Times are the worker's own, and
each result says on which machine it was made.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from reference.bench import criteria, judge, quality, quality_cells, results
from reference.bench.device import ROOT, code

RETRIES = 3  # of a task whose worker died
# What is not needed on workers stays here.
LEFT_OUT = [".git", ".venv", "results", "site", "_site", "tests", "out", "/*.yaml", "/*.md", "/*.json"]

Files = dict[str, bytes]


def run_on_ray(
    suite: str,
    file: Path,
    cells: Sequence[Any],
    folder: Path,
    resume: bool = False,
    address: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> list[dict]:
    """Run the cells of the suite `quality` or `engine` on the cluster at `address`, or on one started on this machine.

    Hands back the runs of this session and, if resumed, those before. Raises ValueError without ray.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("--launcher ray needs ray: pip install 'awesome-diffusion-pruning[cluster]'") from None
    text = file.read_text()
    protocol, sha256 = yaml.safe_load(text), judge.file_hash(text)
    if suite == "quality":
        runs = quality.finished(sha256, seed, folder) if resume else []
    else:
        runs = [run for run in results.read(folder) if run["protocol"]["sha256"] == sha256] if resume else []
    runs = [run for run in runs if run["status"] != "failed"]
    done = {_key(suite, run): run for run in runs}

    already = ray.is_initialized()
    if not already:
        uploaded = {"working_dir": str(ROOT), "excludes": LEFT_OUT}
        ray.init(
            address=address, runtime_env=uploaded, include_dashboard=None if address else False, log_to_driver=False
        )
    threads = torch.get_num_threads()
    gpus = int(device == "cuda")
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_run_remotely)

    def take(tasks: dict, bar: tqdm) -> Iterator[dict]:
        """Write what comes back, as it comes back."""
        while tasks:
            (ready,), _ = ray.wait(list(tasks), num_returns=1)
            run, files = ray.get(ready)
            tasks.pop(ready)
            run["code"] = run["code"] | code() | {"command": results.command()}
            for name, data in files.items():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            results.write(run, folder)
            bar.update()
            yield run

    try:
        todo = [cell for cell in cells if _key(suite, cell) not in done]
        dense = {key: run for key, run in done.items() if run["subject"]["is_baseline"]}
        models = dict.fromkeys(_model(suite, cell, protocol) for cell in todo)
        first = {m: _dense(suite, m, protocol) for m in models if _key(suite, _dense(suite, m, protocol)) not in dense}
        with tqdm(total=len(first) + len(todo), desc=f"{suite} on ray", unit="cell") as bar:
            for run in take({task.remote(suite, text, c, None, threads, seed, device): c for c in first.values()}, bar):
                dense[_key(suite, run)] = run
                runs.append(run)
            failed = [run["error"] for run in dense.values() if run["status"] != "ok"]
            if failed:
                raise ValueError(f"the dense model cannot be measured: {failed[0]}")
            tasks = {}
            for cell in todo:
                baseline = dense[_key(suite, _dense(suite, _model(suite, cell, protocol), protocol))]
                known = {"run_id": baseline["run_id"]}
                tasks[task.remote(suite, text, cell, known, threads, seed, device)] = cell
            runs += take(tasks, bar)
    finally:
        if not already:
            ray.shutdown()
    return runs


def _run_remotely(
    suite: str, text: str, cell: Any, baseline: dict | None, threads: int, seed: int, device: str
) -> tuple[dict, Files]:
    """On a worker: one cell, or the dense model if there is no baseline; the result and its files by name."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if suite == "quality":
            run = _run_quality((text, seed, device), cell, baseline, folder)
        else:
            run = _run_engine(text, cell, baseline, folder)
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".json"}
    return run, files


def _run_quality(opens: tuple, cell: quality_cells.Cell, baseline: dict | None, folder: Path) -> dict:
    """`opens`: the arguments that open the judge."""
    if baseline is None:
        return quality.open_subject(_judge(*opens), cell.model, None, folder)[1][0]
    return quality.run_cell(_judge(*opens), _subject(opens, cell.model, baseline["run_id"]), cell, folder)


def _run_engine(text: str, cell: criteria.Cell, baseline: dict | None, folder: Path) -> dict:
    session = _engine(text)
    return criteria.run_cell(session, cell, baseline and baseline["run_id"], folder)


@cache
def _judge(text: str, seed: int, device: str) -> judge.Judge:
    return judge.open_judge(text, seed, device)


@cache
def _subject(opens: tuple, model: str, run_id: str) -> quality.Subject:
    with tempfile.TemporaryDirectory() as scratch:  # nothing is written: the dense result is there
        return quality.open_subject(_judge(*opens), model, {"run_id": run_id}, Path(scratch))[0]


@cache
def _engine(text: str) -> criteria.Session:
    return criteria.open_session(text)


def _dense(suite: str, model: str, protocol: dict) -> Any:
    return quality_cells.Cell(model, "dense", {}) if suite == "quality" else criteria.dense_cell(protocol)


def _model(suite: str, cell: Any, protocol: dict) -> str:
    return cell.model if suite == "quality" else protocol["model"]


def _key(suite: str, run: Any) -> Any:
    """What makes two runs of one protocol the same."""
    return (quality_cells if suite == "quality" else criteria).key(run)
