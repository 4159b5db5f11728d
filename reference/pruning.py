"""The founding note's API: a pruned pipeline in one call, magnitude pruning in another, heads by number."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from reference.calibration import Calibration
from reference.engine import prune, prune_heads
from reference.errors import NeedsCalibration, NotPrunable
from reference.models import units
from reference.precision import quantise, resolve
from reference.report import Report
from reference.request import SERVES, WITHOUT_DATA, Request

__all__ = ["METHODS", "apply_magnitude_pruning", "create_pruned_pipeline", "prune_by_method", "prune_heads"]

# Methods by name -> keywords of `prune`, one after the other where the model has such units. Iterative without training
# in between ends where one shot ends when the criterion is magnitude; it is listed because rounds are what `recover`
# needs. Wanda compares within a row, as its paper does; `plan`'s default is the layer. Besides, every criterion of
# `request.SERVES` is a method: of the first granularity that it serves.
METHODS = {
    "magnitude": [{"granularity": "weight"}],
    "structured": [{"granularity": "neuron"}, {"granularity": "channel"}],
    "iterative": [{"granularity": "weight", "schedule": "cubic", "rounds": 5}],
    "head": [{"granularity": "head"}],
    "2:4": [{"granularity": "2:4"}],
    "depth": [{"granularity": "block"}],
    "wanda": [{"granularity": "weight", "criterion": "wanda", "scope": "row"}],
}
ALIASES = {"attention head": "head"}


def apply_magnitude_pruning(model: nn.Module | DiffusionPipeline, amount: float = 0.3) -> Report:
    """Zero the `amount` smallest weights of every layer inside the repeated blocks, in place."""
    return prune(model, "weight", amount)


def create_pruned_pipeline(
    model_path: str | os.PathLike,
    pruning_amount: float = 0.3,
    method: str = "magnitude",
    base_model: str | os.PathLike | None = None,
    calibration: Calibration | Sequence[str] | Iterable[Mapping[str, Any]] | None = None,
    precision: str = "bf16",
) -> DiffusionPipeline:
    """Load a pipeline, prune its denoisers, quantise them if asked, hand it back ready to draw.

    The pipeline's `pruning_reports` say what went (zeros as they were before any cast to float8), its `precision_note`
    in what it is stored and multiplied.

    Args:
        model_path: whatever `reference.loaders.load_pipeline` takes: `openmoji-mmdit`, the trained model that ships
            here; a folder, a hub id, a single file, `org/name/path/file.safetensors`, an SVDQuant file.
        pruning_amount: fraction of the units to remove.
        method: `magnitude`, `structured`, `iterative`, `head` (or `attention head`), `2:4` (which removes half,
            whatever the amount), `depth`, or the name of a criterion.
        base_model: folder or hub id of the pipeline around a file that holds only the denoiser.
        calibration: for criteria that look at data: prompts; or `reference.Calibration`, which is run on the loaded
            pipeline; or dicts of the denoiser's forward keywords.
        precision: `bf16`, `fp16`, `fp8`, `fp8-storage` or `fp8-compute`; see `precision.py`. Save before quantising.

    Raises:
        ValueError: one line for arguments that make no sense and sources that cannot be loaded.
        NotPrunable: if the model has no such units.
        NeedsCalibration: for criteria that look at data, without any.
    """
    check_method(method, pruning_amount, calibration is not None)
    if isinstance(calibration, str):
        raise ValueError(f"calibration is a list of prompts, not one string: [{calibration!r}]")
    resolved = resolve(precision)

    from reference.loaders import load_pipeline  # text encoders and tokenizers: imported once the request is sound

    pipeline = load_pipeline(model_path, base_model, resolved.dtype)
    if isinstance(calibration, Calibration):
        calibration = replace(calibration, pipeline=pipeline)
    elif isinstance(calibration, Sequence) and all(isinstance(prompt, str) for prompt in calibration):
        calibration = Calibration(pipeline, list(calibration))
    pipeline.pruning_reports = prune_by_method(pipeline, method, pruning_amount, calibration)
    pipeline.precision_note = f"{resolved.meaning}; {quantise(pipeline, resolved)}"
    return pipeline


def prune_by_method(
    model: nn.Module | DiffusionPipeline,
    method: str,
    amount: float,
    calibration: Calibration | Iterable[Mapping[str, Any]] | None = None,
) -> list[Report]:
    """Prune in place by a method's name; a report for each granularity, of which the model must have at least one."""
    steps = check_method(method, amount, calibration is not None)
    if steps[0]["granularity"] == "2:4" and amount != 0.5:
        warnings.warn(f"2:4 removes half of the weights; the amount {amount:g} is ignored", stacklevel=2)
    if method == "iterative":
        warnings.warn(
            "magnitude in 5 rounds without training in between ends where one round ends; reference.prune takes "
            "`recover`, which trains after each round",
            stacklevel=2,
        )
    absent = []
    for keywords in list(steps) if len(steps) > 1 else []:
        try:
            units(model, keywords["granularity"])
        except NotPrunable as reason:
            absent.append(reason)
            steps.remove(keywords)
    if not steps:
        raise absent[0]
    return [prune(model, calibration=calibration, **keywords) for keywords in steps]


def check_method(method: str, amount: float, has_calibration: bool = False) -> list[dict[str, Any]]:
    """Keywords of `prune` for a method by name, all of them sound. Raises ValueError or NeedsCalibration if not."""
    name = ALIASES.get(method.lower().replace("_", " ").replace("-", " "), method)
    if name not in METHODS and name not in SERVES:
        criteria = ", ".join(criterion for criterion in SERVES if criterion not in METHODS)
        raise ValueError(f"unknown method {method!r}; choose {', '.join(METHODS)}, or a criterion: {criteria}")
    by_criterion = [{"granularity": next(iter(SERVES.get(name, [""]))), "criterion": name}]
    steps = []
    for keywords in METHODS.get(name, by_criterion):
        steps.append(keywords | ({} if keywords["granularity"] == "2:4" else {"amount": amount}))
        criterion = keywords.get("criterion", "magnitude")
        Request(keywords["granularity"], steps[-1].get("amount"), criterion)
        if criterion not in WITHOUT_DATA and not has_calibration:
            raise NeedsCalibration(f"method {method!r} looks at data; give calibration, a list of prompts for example")
    return steps
