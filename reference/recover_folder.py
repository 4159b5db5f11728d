"""From a pruned folder and a folder of pictures to a recovered folder: what `python -m reference recover` does.

    FOLDER -> fp32 weights -> `recovery.fit` on --data, removed units held at zero -> saved dtype and storage -> OUT

OUT.checkpoint.pt is written on the way and removed when OUT is in place. Not supported: LoRA, FSDP and DeepSpeed (every
process holds the whole denoiser, its gradients and two moments in fp32, 16 bytes a parameter, and the dense one).
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from reference.checkpoint import check_target, load_pruned, save_pruned
from reference.conditioning import denoiser_of, picture_size
from reference.iterative import stay_removed
from reference.loaders import load_pipeline
from reference.manifest import MANIFEST, storage_of
from reference.pictures import Pictures, read_folder
from reference.plans import digest
from reference.recovery import Recipe, fit

RECORD = "recovery.json"
MASKED = ("weight", ":")  # granularities whose cut is a mask


def recover_folder(
    folder: Path,
    data: Path,
    out: Path,
    recipe: Recipe,
    dense: str | None = None,
    size: int | None = None,
    mixed_precision: str = "no",
    accumulate: int = 1,
    every: int = 100,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the pruned pipeline in `folder` on the pictures in `data`, write it to `out`; the record written with it.

    Raises ValueError, one line, before anything is trained: for a folder that holds no pruned pipeline, pictures that
    do not fit, a missing `dense` model (losses `output` and `feature`), or a check point without `resume`.
    """
    if not folder.is_dir() or not list(folder.glob(f"**/{MANIFEST}")):
        raise ValueError(f"{folder} is no folder that `prune` or save_pruned wrote: there is no {MANIFEST} in it")
    if recipe.loss != "task" and dense is None:
        raise ValueError(f"loss {recipe.loss!r} asks the dense model: give --dense, or --loss task")
    if recipe.loss == "task" and dense is not None:
        raise ValueError("loss 'task' asks no dense model: leave --dense out, or choose --loss output or feature")
    check_target(out)
    check_point = out.with_name(out.name + ".checkpoint.pt")
    if resume and not check_point.exists() and (out / RECORD).exists():
        return json.loads((out / RECORD).read_text())
    if check_point.exists() and not resume:
        raise ValueError(f"{check_point} is there, of a run that was stopped: add --resume, or delete it")

    accelerator = Accelerator(mixed_precision=mixed_precision, gradient_accumulation_steps=accumulate)
    pipeline = load_pruned(folder)
    denoiser = denoiser_of(pipeline)
    pictures = read_folder(data, *((size, size) if size else picture_size(pipeline)))
    saved, source = {p: p.dtype for p in denoiser.parameters()}, digest(denoiser)
    teacher = denoiser_of(load_pipeline(dense, dtype=torch.float32)).eval() if dense is not None else None
    facts = {name: value for name, value in asdict(recipe).items() if name != "steps"}
    facts |= {"mixed_precision": mixed_precision, "pruned": source, "dense": digest(teacher) if teacher else None}
    facts |= {"data": _fingerprint(pictures, data)}

    pipeline.to(accelerator.device)
    for parameter in saved:
        parameter.data = parameter.data.float()
    pipeline.set_progress_bar_config(disable=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    bar = tqdm(total=recipe.steps, desc="recover", unit="step", delay=1, disable=not accelerator.is_main_process)

    def each_step(number: int, loss: float) -> None:
        bar.update(number - bar.n)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    with bar, stay_removed(hold_zeros(denoiser)):
        losses = fit(pipeline, teacher, pictures, recipe, accelerator, check_point, facts, every, each_step)

    record = {
        "steps": recipe.steps, "pictures": len(pictures.files), "height": pictures.height, "width": pictures.width,
        "loss_first": _mean(losses[: max(1, len(losses) // 10)]),
        "loss_last": _mean(losses[-max(1, len(losses) // 10) :]),
        "seconds_since_resumed": round(time.monotonic() - start, 1), "losses": losses,
    }  # fmt: skip
    if accelerator.is_main_process:
        for parameter, dtype in saved.items():
            parameter.data = parameter.data.to(dtype)
        save_pruned(pipeline.to("cpu"), out, storage_of(folder))
        (out / RECORD).write_text(json.dumps(facts | record, indent=1) + "\n")
        check_point.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return record


def hold_zeros(denoiser: nn.Module) -> Callable[[], None]:
    """A function that zeroes again what was pruned by masking; it does nothing for a model that was only cut."""
    history = getattr(denoiser, "_pruning_history", [])
    by_weights = any(any(mark in step["granularity"] for mark in MASKED) for step in history)
    by_units = any(step["mode"] == "mask" for step in history)
    held = {
        parameter: parameter.detach() == 0
        for parameter in denoiser.parameters()
        if by_units or (by_weights and parameter.ndim > 1)  # biases may be zero by chance; units lose theirs
    }
    held = {parameter: zero for parameter, zero in held.items() if zero.any()}

    @torch.no_grad()
    def mask() -> None:
        for parameter, zero in held.items():
            parameter.masked_fill_(zero.to(parameter.device), 0.0)

    return mask


def _fingerprint(pictures: Pictures, folder: Path) -> str:
    """Names, file sizes, captions and the size they are read at."""
    files = [(str(file.relative_to(folder)), file.stat().st_size) for file in pictures.files]
    facts = json.dumps([files, pictures.captions, pictures.height, pictures.width])
    return hashlib.sha256(facts.encode()).hexdigest()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
