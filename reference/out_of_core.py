"""Prune a checkpoint that does not fit into memory: read, change, write, tensor by tensor (`streaming.py`).

What can be decided from shapes and the config alone is decided on a model without memory, by the same code as ever:
which layers and units there are, how many go. What needs the numbers takes a pass over them:
    weight, layer or row scope   none: a layer is selected while it is in the buffer
    N:M                          none
    weight, wider scopes         one (`threshold.py`): counts, never the scores themselves
    neuron, head, channel        one: scores (units,) of every slice
    block                        one: sums of squares
    rank                         one: a matrix (d, d), d being the width of the vector that modulation layers read
    random                       none for units; for weights the numbers are drawn twice
Then one pass writes. The result is bit for bit that of `reference.prune` on the model in the dtype of its file.

A run that was killed goes on after the last whole file when it is started again with the same request; until the end
the output lies beside its place, under the name `.<name>.partial`.
"""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from reference.checkpoint import check_target, take_place
from reference.manifest import PLAIN, WEIGHTS
from reference.on_disk import Checkpoint, denoiser_folders, open_checkpoint
from reference.passes import Passes
from reference.request import STRUCTURED, WITHOUT_DATA, Request
from reference.units_on_disk import decide_units
from reference.weights_on_disk import decide_weights


def exceeds_memory(source: str | os.PathLike) -> bool:
    """Whether `source` is a local folder whose denoisers' weights are larger than the memory that is free."""
    folders = denoiser_folders(Path(source)).values() if Path(source).is_dir() else []
    files = [file for folder in folders for name in (f"{PLAIN}*.safetensors", WEIGHTS) for file in folder.glob(name)]
    return sum(file.stat().st_size for file in files) > psutil.virtual_memory().available


def prune_out_of_core(source: str | os.PathLike, out: str | os.PathLike, request: Request) -> dict:
    """Prune the model or pipeline in the folder `source` into the folder `out`; what was done, as JSON types.

    Raises ValueError for what cannot be streamed: other folders, criteria that look at data, quantised weights.
    """
    start, source, out = time.perf_counter(), Path(source), Path(out)
    if request.criterion not in WITHOUT_DATA:
        raise ValueError(
            f"out of core scores by {', '.join(WITHOUT_DATA)}; {request.criterion!r} looks at data and has to run the "
            "model: load it"
        )
    check_target(out)
    checkpoint = open_checkpoint(source)
    partial = out.parent / f".{out.name}.partial"
    progress = _begin(partial, checkpoint, request)
    passes = Passes(checkpoint, request, progress)
    decision = (decide_units if request.granularity in STRUCTURED else decide_weights)(passes)
    passes.write(partial, decision)
    _copy_rest(source, partial, set(checkpoint.folders))
    shutil.rmtree(progress)
    take_place(partial, out)
    return decision.facts | {"bytes_read": passes.bytes_read, "seconds": time.perf_counter() - start}


def _begin(partial: Path, checkpoint: Checkpoint, request: Request) -> Path:
    """The folder of progress files: those of an earlier run if it did the same to the same files, else an empty one."""
    files = [[str(s.file), s.file.stat().st_size, s.file.stat().st_mtime_ns] for s in checkpoint.shards]
    job = json.dumps([asdict(request), files])
    progress = partial / "progress"
    if not (progress / "job.json").exists() or (progress / "job.json").read_text() != job:
        shutil.rmtree(partial, ignore_errors=True)
        progress.mkdir(parents=True)
        (progress / "job.new").write_text(job)
        os.replace(progress / "job.new", progress / "job.json")
    return progress


def _copy_rest(source: Path, partial: Path, components: set[str]) -> None:
    """What is no denoiser of a pipeline: text encoders, VAE, scheduler, as they are."""
    for path in source.iterdir() if "" not in components else []:
        if path.is_dir() and path.name not in components:
            shutil.copytree(path, partial / path.name, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy2(path, partial / path.name)
