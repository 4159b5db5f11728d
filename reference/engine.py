"""Plan, apply, prune: the public verbs, each a few lines over score -> select -> cut."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.anatomy.blocks import BlockList
from reference.anatomy.groups import Group, cut_units, mask_units
from reference.anatomy.modulation import Basis, cut_directions, mask_directions
from reference.anatomy.skipping import cut_blocks, mask_blocks
from reference.calibration import Calibration, Source, as_source
from reference.compensation import COMPENSATING, remove_and_compensate
from reference.depth import remove_blocks
from reference.errors import NeedsCalibration, NotPrunable
from reference.heads import plan_heads
from reference.history import recorded
from reference.iterative import rates_by_round, stay_removed
from reference.low_rank import remove_directions
from reference.models import as_root, denoisers_of
from reference.plans import Plan, digest
from reference.quantised import dequantise
from reference.report import Report, make_report
from reference.request import STRUCTURED, WITHOUT_DATA, Request, parse_n_m
from reference.semi_structured import remove_n_m
from reference.structured import remove_units
from reference.unstructured import remove_weights, zero_weights


def plan(
    model: nn.Module | DiffusionPipeline,
    granularity: str,
    amount: float | Mapping[str, float] | None = None,
    criterion: str = "magnitude",
    scope: str = "layer",
    calibration: Calibration | Iterable[Mapping[str, Any]] | None = None,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    round_to: int | str = "auto",
    min_keep: int = 1,
    exact_only: bool = False,
    seed: int = 0,
    rank: int | None = None,
) -> Plan:
    """Decide which units go; the model stays as it is, bit for bit.

    Args:
        model: a diffusers denoiser, or a pipeline, whose denoisers are planned together.
        granularity: `weight`, a pattern `N:M`, `head`, `neuron`, `channel` (whole norm groups in residual blocks),
            `block`, or `rank` (directions of the vector that modulation layers share).
        amount: fraction in [0, 1), or {component or fnmatch pattern: fraction}; left out for `N:M`.
        criterion: how units are scored; which ones serve which granularity and scope is `request.SERVES`.
        scope: among which units the lowest are taken: `row` (weights only), `layer`, `component`, `global`.
        calibration: what criteria that look at data look at: `reference.Calibration(pipeline, prompts)`, or dicts of
            the denoiser's forward keywords, call by call (with `target` for criteria that ask the loss).
        only: fnmatch patterns of layer names to prune; reaches layers outside the repeated blocks as well.
        skip: fnmatch patterns of layer names to leave whole.
        round_to: tile that kept widths are rounded to; `"auto"` is 64 from a width of 1024 on, else 1.
        min_keep: units that every group keeps.
        exact_only: refuse units whose cut only approximates masking them.
        seed: of the random criterion.
        rank: for granularity `rank`, how many directions every group keeps, instead of `amount`.

    Raises:
        ValueError: for arguments that make no sense.
        NotPrunable: for models that have no such units, or none that can be cut.
        NeedsCalibration: for criteria that look at data, without any.
    """
    request = Request(granularity, amount, criterion, scope, only, skip, round_to, min_keep, exact_only, seed, rank)
    root, source = as_root(model), _source(request, calibration)
    if criterion not in COMPENSATING:
        return _plan(root, request, source)
    before, originals = digest(root), {}
    try:
        plan = _plan(root, request, source, originals=originals)
        plan.weights = {name: root.get_parameter(name).detach().cpu().clone() for name in originals}
    finally:
        for name, weight in originals.items():
            root.get_parameter(name).data.copy_(weight)
    plan.digest = before
    return plan


def _source(request: Request, calibration: Calibration | Iterable[Mapping[str, Any]] | None) -> Source | None:
    if request.criterion in WITHOUT_DATA:
        return None
    if calibration is None:
        raise NeedsCalibration(
            f"criterion {request.criterion!r} looks at data: calibration=reference.Calibration(pipeline, prompts), or "
            "dicts of the denoiser's forward keywords"
        )
    return as_source(calibration)


def _plan(
    root: nn.Module,
    request: Request,
    source: Source | None,
    gone: Mapping[str, Tensor] | None = None,
    originals: dict[str, Tensor] | None = None,
) -> Plan:
    """The plan for a checked request; `gone` are units removed in earlier rounds, which stay removed.

    Criteria that compensate write the new weights into the model, and copies of the old ones into `originals`.
    """
    weights: dict[str, Tensor] = {}
    if request.granularity == "rank":
        removed, skipped, weights = remove_directions(root, request, source, gone)
    elif request.criterion in COMPENSATING:
        removed, skipped = remove_and_compensate(root, request, source, gone, originals)
    elif request.granularity in STRUCTURED:
        method = remove_blocks if request.granularity == "block" else remove_units
        removed, skipped = method(root, request, source, gone)
    else:
        method = remove_n_m if parse_n_m(request.granularity) else remove_weights
        removed, skipped = method(root, request, source, gone)
    facts = {"digest": digest(root), "request": asdict(request), "skipped": skipped, "weights": weights}
    plan = Plan.of(request.granularity, removed, **facts)
    if request.granularity in STRUCTURED:
        flag_approximate(plan, unit_groups(root, request.granularity)[0], request.exact_only)
    return plan


def flag_approximate(plan: Plan, groups: Iterable[Group | BlockList], exact_only: bool) -> None:
    """Note in the plan which of its cuts are not exact, and warn; NotPrunable instead if they have to be."""
    plan.approximate = {
        g.name: g.approximate
        for g in groups
        if g.approximate and g.name in plan.keep and len(plan.keep[g.name]) < g.count
    }
    if plan.approximate:
        what = f"cutting {len(plan.approximate)} of {len(plan.keep)} groups only approximates masking them: "
        what += next(iter(plan.approximate.values()))
        if exact_only:
            raise NotPrunable(what)
        warnings.warn(what, stacklevel=4)


def apply(model: nn.Module | DiffusionPipeline, plan: Plan, mode: str = "cut") -> Report:
    """Carry out a plan in place: `cut` removes the units, `mask` zeroes them and keeps every shape.

    A masked block keeps its weights and passes on its input. Weights and N:M patterns have nothing to cut: both modes
    zero them. Raises ValueError if the plan was made for
    another model.
    """
    if mode not in ("cut", "mask"):
        raise ValueError(f"mode is 'cut' or 'mask', not {mode!r}")
    root = as_root(model)
    if digest(root) != plan.digest:
        raise ValueError("the plan was made for another model, or for this one before it changed; make a new plan")
    before = {name: p.numel() for name, p in root.named_parameters()}
    if plan.granularity != "rank":  # whose weights are bases, not replacements
        for name, weight in plan.weights.items():
            root.get_parameter(name).data.copy_(weight)
    with recorded(root, plan, mode):
        carry_out(root, plan, mode)
    return make_report(root, plan, mode, before)


def carry_out(root: nn.Module, plan: Plan, mode: str) -> None:
    """Mask or cut what the plan removes."""
    if plan.granularity not in STRUCTURED:
        return zero_weights(root, plan)
    groups = {group.name: group for group in unit_groups(root, plan.granularity)[0]}
    removed = {name: plan.removed(name) for name in plan.keep}
    if plan.granularity == "rank":
        kept = {
            groups[name]: Basis(plan.weights[f"{name}.basis"], plan.weights[f"{name}.mean"])
            for name, gone in removed.items()
            if gone.any()
        }
        return (cut_directions if mode == "cut" else mask_directions)(root, kept)
    numbers = {groups[name]: gone.nonzero().flatten() for name, gone in removed.items()}
    mask, cut = (mask_blocks, cut_blocks) if plan.granularity == "block" else (mask_units, cut_units)
    (cut if mode == "cut" else mask)(root, numbers)


def prune(
    model: nn.Module | DiffusionPipeline,
    granularity: str,
    amount: float | Mapping[str, float] | None = None,
    schedule: str = "one-shot",
    rounds: int = 1,
    recover: Callable[[Any, int], None] | None = None,
    calibration: Calibration | Iterable[Mapping[str, Any]] | None = None,
    **keywords: Any,
) -> Report:
    """Plan and cut in place, at once or in several rounds (`iterative.py`); keywords as in `plan`.

    Criteria that compensate change the weights package by package and keep no copy of them. Each round calibrates anew.
    `recover(model, round)` is called after each round, rounds counted from 1, to train what is left. Until the last
    round is over, removed units are masked and held at zero through every optimizer step; then they are cut. The
    report's plan refers to the dense model. A quantised model is dequantised first where diffusers can, with a warning.
    """
    request = Request(granularity, amount, **keywords)
    for denoiser in denoisers_of(model).values():
        if done := dequantise(denoiser):
            warnings.warn(done, stacklevel=2)
    root, source = as_root(model), _source(request, calibration)
    rates = rates_by_round(request, schedule, rounds)
    dense, gone = digest(root), None
    for number, rate in enumerate(rates, start=1):
        current = _plan(root, rate, source, gone)
        if number < len(rates):
            gone = {name: current.removed(name) for name in current.keep}
        if recover is not None:
            with stay_removed(lambda: carry_out(root, current, "mask")):  # noqa: B023 - used within this round only
                recover(model, number)
        elif number < len(rates):
            carry_out(root, current, "mask")
    # What recovery changed is the model now: cut it, then hand back the plan as made for the dense one.
    current.digest = digest(root)
    current.request |= {"amount": amount, "schedule": schedule, "rounds": rounds, "recovered": recover is not None}
    report = apply(model, current, "cut")
    current.digest = dense
    return report


def prune_heads(model: nn.Module | DiffusionPipeline, heads: Mapping[int | str, Sequence[int]]) -> Report:
    """Cut named heads: {position in units(model, "head") or its name: [head numbers]}."""
    return apply(model, plan_heads(model, heads))
