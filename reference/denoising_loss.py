"""The loss that a denoiser was trained on, for criteria that ask it.

Calls bring their targets under the key `target`. A pipeline draws pictures x_0 first; then, at the steps of the run,
    flow matching       x_t = (1 - sigma) x_0 + sigma e,             target e - x_0
    noise prediction    x_t = sqrt(abar) x_0 + sqrt(1 - abar) e,     target e    (or v, or x_0: `prediction_type`)
    L_t = E || target - prediction(x_t, t) ||^2,                     the mean over samples and elements
with noise e that is independent of x_0, one a batch for all its steps.
Deviation from training: x_0 are the model's own pictures, not data.

Shapes: b samples of one call, t steps of a run.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reference.calibration import Call, Calls, Source, batches, calls
from reference.criteria.random import random_generator
from reference.errors import NotPrunable


def training_calls(root: nn.Module, source: Source) -> Iterator[tuple[Call, Tensor]]:
    """Calls with their targets, as the denoiser was trained on. Each time the same ones."""
    if isinstance(source, Calls):
        for call, given in zip(calls(root, source), source.keywords, strict=True):
            if "target" not in given:
                raise ValueError("this criterion asks the loss: each call needs `target`, of the output's shape")
            yield call, given["target"]
        return
    for number, (seen, x_0) in enumerate(batches(root, source)):
        # A generator of its own: seed + number would give back the noise that x_0 was drawn from.
        e = torch.randn(x_0.shape, generator=random_generator(f"noise of batch {number}", source.seed)).to(x_0)
        for call in seen:
            yield _noised(source.pipeline.scheduler, call, x_0, e)


def prediction_of(call: Call) -> Tensor:
    """What the denoiser answers to a call: the first tensor of its output."""
    answer = call.denoiser(**call.keywords)
    while not isinstance(answer, Tensor):
        answer = answer[0] if isinstance(answer, tuple | list) else next(iter(answer.values()))
    return answer


def everything_of(call: Call) -> Tensor:
    """All that the denoiser answers to a call, flat, fp32: a ControlNet gives many tensors."""

    def tensors(answer: object) -> Iterator[Tensor]:
        if isinstance(answer, Tensor):
            yield answer.float().flatten()
        elif isinstance(answer, Mapping | list | tuple):
            for part in answer.values() if isinstance(answer, Mapping) else answer:
                yield from tensors(part)

    return torch.cat(list(tensors(call.denoiser(**call.keywords))))


def squared_errors(call: Call, target: Tensor) -> Tensor:
    """Mean squared error of each sample's prediction, (b,) fp32."""
    prediction = prediction_of(call)
    if prediction.ndim > 1 and prediction.shape[1] == 2 * target.shape[1]:
        prediction = prediction[:, : target.shape[1]]  # the other half is the learned variance
    if prediction.shape != target.shape:
        raise ValueError(f"the denoiser answers with shape {tuple(prediction.shape)}, the target has {target.shape}")
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


@torch.no_grad()
def step_losses(root: nn.Module, source: Source) -> Tensor:
    """L_t (t,) in the order of the run. Raises ValueError if they make no sense."""
    sums, counts, energy = torch.zeros(0), torch.zeros(0), 0.0
    for call, target in training_calls(root, source):
        if not len(sums):
            sums, counts = torch.zeros(call.steps), torch.zeros(call.steps)
        errors_b = squared_errors(call, target).cpu()
        sums.index_add_(0, call.step_b.expand(len(errors_b)), errors_b)
        counts.index_add_(0, call.step_b.expand(len(errors_b)), torch.ones(len(errors_b)))
        energy += float(target.float().square().flatten(1).mean(1).sum())
    if not isinstance(source, Calls) and float(sums.sum()) > energy:
        raise ValueError(
            "the denoiser's loss is larger than that of predicting nothing: it "
            "does not predict what its scheduler says; calibrate with forward keywords that hold `target`"
        )
    return sums / counts.clamp_min(1)


def _noised(scheduler: Any, call: Call, x_0: Tensor, e: Tensor) -> tuple[Call, Tensor]:
    """The call with x_t for its input, and the target that belongs to it."""
    name, x = next(iter(call.keywords.items()))
    if not isinstance(x_0, Tensor) or x.shape[1:] != x_0.shape[1:] or len(x) % len(x_0):
        raise ValueError(
            f"the denoiser takes {name} of shape {tuple(x.shape)}, the pipeline's latents have another; "
            "calibrate with an iterable of forward keywords that hold `target`"
        )
    repeats = (len(x) // len(x_0), *[1] * (x.ndim - 1))
    t = scheduler.timesteps.unique_consecutive()[call.step_b]  # multistep samplers call twice at one time
    for counter in ("_begin_index", "_step_index"):  # of the run that has ended: any t would be taken for its last
        if hasattr(scheduler, counter):
            setattr(scheduler, counter, None)
    if hasattr(scheduler, "scale_noise"):
        x_t, target = scheduler.scale_noise(x_0, t, e), e - x_0
    else:
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"the scheduler predicts {kind!r}; calibrate with forward keywords that hold `target`")
        x_t, target = scheduler.add_noise(x_0, e, t), {"epsilon": e, "sample": x_0}.get(kind)
        target = scheduler.get_velocity(x_0, e, t) if target is None else target
        x_t = scheduler.scale_model_input(x_t, t[0])
    return call._replace(keywords=call.keywords | {name: x_t.repeat(repeats).to(x.dtype)}), target.repeat(repeats)


def gradients(
    root: nn.Module, source: Source, names: Iterable[str], alpha_t: Tensor | None = None
) -> dict[str, Tensor]:
    """sum_t alpha_t dL_t/dw of the named parameters, fp32; without those that the loss does not depend on.

    `alpha_t`: booleans, the steps that enter; None for all of them.
    """
    parameters = {name: root.get_parameter(name) for name in names}
    total: dict[str, Tensor] = {}
    samples = 0
    with _requiring_grad(parameters.values()):
        for call, target in training_calls(root, source):
            alpha_b = torch.ones(1) if alpha_t is None else alpha_t[call.step_b].float()
            if not alpha_b.any():
                continue
            with differentiable(call.denoiser):
                errors_b = squared_errors(call, target)
                loss = (errors_b * alpha_b.to(errors_b.device)).sum()
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            samples += len(errors_b)
            for name, g in zip(parameters, found, strict=True):
                if g is not None:
                    total[name] = g.float() if name not in total else total[name].add_(g)
    return {name: g / samples for name, g in total.items()}


@contextmanager
def differentiable(denoiser: nn.Module) -> Iterator[None]:
    """Autograd on; where the model has no backward pass, say so and name a way out."""
    try:
        with torch.enable_grad():
            yield
    except (NotImplementedError, RuntimeError) as error:
        raise NotPrunable(
            f"{type(denoiser).__name__} gives no gradients here ({str(error).splitlines()[0]}); choose a criterion "
            "without gradients, such as wanda, output-energy or obs"
        ) from error


@contextmanager
def _requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
