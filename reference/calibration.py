"""Calibration: what the layers see over whole denoising runs.

A denoiser sees other inputs at every step, in both halves of guidance and in every stream of tokens, so statistics come
from complete runs of its pipeline: every step, every call, every row. Only running sums are kept.

    source = Calibration(pipeline, prompts, steps=20)      runs of the pipeline, a seed a batch
    source = [{"hidden_states": x, "timestep": t, ...}]    or the denoiser's forward keywords, call by call

Criteria that ask the loss are served by `denoising_loss.py`.

Shapes: b samples of one call (twice the prompts under guidance); g, n, i as in `criteria/layer_inputs.py`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from reference.criteria.layer_inputs import conv_rows, linear_rows
from reference.errors import NotPrunable

TIMES = ("timestep", "timesteps", "timestep_id", "sigma", "t")  # what denoisers call the time of a call


@dataclass(frozen=True)
class Calibration:
    """Denoising runs to calibrate on: `prompts` in batches, batch number n drawn from seed + n.

    pipeline    holds the model that is pruned
    prompts     texts, or class labels where the pipeline draws classes
    steps       denoising steps of a run
    keywords    further arguments of the pipeline's call, such as height, width, guidance_scale
    packages    OBS criteria: how many lists the layers are cut into; one list's Hessians are in memory at a time
    device      where statistics are kept, by default beside the layer; "cpu" for a model that fills its GPU
    threshold   Diff-Pruning: steps with at most this share of the largest loss do not enter
    """

    pipeline: DiffusionPipeline
    prompts: Sequence[Any]
    steps: int = 20
    seed: int = 0
    batch_size: int = 4
    keywords: Mapping[str, Any] = field(default_factory=dict)
    packages: int = 4
    device: str | torch.device | None = None
    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.pipeline, DiffusionPipeline):
            raise ValueError(f"calibration runs a DiffusionPipeline, not a {type(self.pipeline).__name__}")
        if isinstance(self.prompts, str) or not len(self.prompts):
            raise ValueError(f"prompts is a list with at least one entry, not {self.prompts!r}")
        for name in ("steps", "batch_size", "packages"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number from 1 on, not {getattr(self, name)!r}")


class Calls(NamedTuple):
    """Forward keywords of one denoiser instead of a pipeline, with the defaults of `Calibration`."""

    keywords: list[dict[str, Any]]
    packages: int = 4
    device: None = None
    threshold: float = 0.05


Source = Calibration | Calls


class Call(NamedTuple):
    """One call of a denoiser. `step_b`: number of each sample's denoising step, (b,), or (1,) if they share it."""

    denoiser: nn.Module
    keywords: dict[str, Any]
    step_b: Tensor
    steps: int


def as_source(calibration: Calibration | Iterable[Mapping[str, Any]]) -> Source:
    """Calls as a list, so that they can be run more than once. Raises ValueError if there is nothing to run."""
    if isinstance(calibration, Calibration):
        return calibration
    keywords = [dict(call) for call in calibration]
    if not keywords:
        raise ValueError("calibration is empty; give at least one dict of forward keywords")
    return Calls(keywords)


def run(root: nn.Module, source: Source, before: Callable[[Call], None]) -> None:
    """Run everything once without gradients; `before` is told of each call before it happens."""
    with evaluating(root), torch.no_grad():
        if isinstance(source, Calls):
            for call in calls(root, source):
                before(call)
                call.denoiser(**call.keywords)
        else:
            for number in _bar(source):
                with _watched(root, source, before):
                    _draw(source, number)


def calls(root: nn.Module, source: Source) -> Iterator[Call]:
    """The calls of a run, for criteria that repeat them; a pipeline's one batch after the other."""
    if isinstance(source, Calls):
        denoiser = _only(root)
        step_bs, steps = _steps(source.keywords)
        for keywords, step_b in zip(source.keywords, step_bs, strict=True):
            yield Call(denoiser, {k: v for k, v in keywords.items() if k != "target"}, step_b, steps)
    else:
        for seen, _ in batches(root, source):
            yield from seen


def batches(root: nn.Module, source: Calibration) -> Iterator[tuple[list[Call], Tensor]]:
    """Of each batch of prompts the calls in order, and the latents that the run ended with."""
    for number in _bar(source):
        seen: list[Call] = []
        with evaluating(root), torch.no_grad(), _watched(root, source, seen.append):
            latents = _draw(source, number)
        yield seen, latents


def see_inputs(
    root: nn.Module, source: Source, layers: Mapping[str, nn.Module], take: Callable[[str, Tensor, Call], None]
) -> None:
    """Run everything once and hand over each layer's input rows: take(name, X_gni, call), again and again.

    Layers that the run does not reach are never handed over.
    """
    now: list[Call] = []

    def hook(name: str) -> Callable:
        def seen(layer: nn.Module, args: tuple, keywords: dict) -> None:
            X = (args or tuple(keywords.values()))[0]
            take(name, input_rows(layer, X), now[0])

        return seen

    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(hook(name), with_kwargs=True)
            hooks.callback(handle.remove)
        run(root, source, lambda call: now.__setitem__(slice(None), [call]))


def input_rows(layer: nn.Module, X: Tensor) -> Tensor:
    """The rows X_gni that a Linear or convolution multiplies its weight with."""
    if isinstance(layer, nn.Linear):
        return linear_rows(X)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NotPrunable(
            f"a convolution pads with {layer.padding_mode!r}, {layer.padding!r}: calibration knows zeros and numbers; "
            "leave it out with `skip`, or use a criterion without data"
        )
    return conv_rows(X, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """No dropout while calibrating; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in root.modules()}
    root.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def forward_keywords(denoiser: nn.Module, args: tuple, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, in the order of the signature."""
    bound = dict(inspect.signature(denoiser.forward).bind(*args, **keywords).arguments)
    return bound | bound.pop("kwargs", {})


@contextmanager
def _watched(root: nn.Module, source: Calibration, before: Callable[[Call], None]) -> Iterator[None]:
    """Tell `before` of each call of a denoiser; a new step begins when the time that it is given changes."""
    components = list(source.pipeline.components.values())
    denoisers = list(root.values()) if isinstance(root, nn.ModuleDict) else [root]
    step, last = -1, None

    def hook(denoiser: nn.Module, args: tuple, keywords: dict) -> None:
        nonlocal step, last
        bound = forward_keywords(denoiser, args, keywords)
        time = _time(bound)
        if last is None or time is None or not torch.equal(time.flatten()[:1].cpu(), last):
            step, last = step + 1, None if time is None else time.flatten()[:1].cpu()
        steps = max(len(source.pipeline.scheduler.timesteps), step + 1)
        before(Call(denoiser, bound, torch.tensor([step]), steps))

    with ExitStack() as hooks:
        for denoiser in denoisers:
            if not any(component is denoiser for component in components):
                raise ValueError(
                    f"calibration.pipeline does not hold the {type(denoiser).__name__} that is pruned; "
                    "hand in the pipeline it came from, or an iterable of its forward keywords"
                )
            hooks.callback(denoiser.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _draw(source: Calibration, number: int) -> Tensor:
    """Run the pipeline on one batch; what comes out, before any decoder."""
    pipeline, first = source.pipeline, number * source.batch_size
    batch = list(source.prompts[first : first + source.batch_size])
    takes = inspect.signature(pipeline.__call__).parameters
    name = next((n for n in ("prompt", "class_labels") if n in takes), None)
    if name is None:
        raise ValueError(f"{type(pipeline).__name__} takes no prompt; calibrate with an iterable of forward keywords")
    drawn = pipeline(
        **{name: batch},
        num_inference_steps=source.steps,
        generator=torch.Generator().manual_seed(source.seed + number),
        **({"output_type": "latent"} if "output_type" in takes else {}),
        **source.keywords,
    )
    return next(iter(drawn.values())) if isinstance(drawn, Mapping) else drawn[0]


def _steps(keywords: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], int]:
    """Number of each sample's step in each call, and how many steps: distinct times, the largest one first."""
    times = [_time(call) for call in keywords]
    if any(time is None for time in times):
        return [torch.zeros(1, dtype=torch.long)] * len(times), 1
    distinct = torch.cat([time.flatten().double().cpu() for time in times]).unique().flip(0)
    return [(time.flatten().double().cpu()[:, None] == distinct).long().argmax(1) for time in times], len(distinct)


def _time(keywords: Mapping[str, Any]) -> Tensor | None:
    found = next((keywords[name] for name in TIMES if keywords.get(name) is not None), None)
    return None if found is None else torch.as_tensor(found)


def _only(root: nn.Module) -> nn.Module:
    denoisers = list(root.values()) if isinstance(root, nn.ModuleDict) else [root]
    if len(denoisers) > 1:
        raise ValueError(f"the pipeline has {len(denoisers)} denoisers; calibrate it with reference.Calibration")
    return denoisers[0]


def _bar(source: Calibration) -> Iterator[int]:
    """Batch numbers, with a progress bar on a terminal and the pipeline's own one silenced."""
    before = getattr(source.pipeline, "_progress_bar_config", {})
    source.pipeline.set_progress_bar_config(disable=True)
    try:
        batches = -(-len(source.prompts) // source.batch_size)
        yield from tqdm(range(batches), desc="calibrate", unit="batch", leave=False, disable=None)
    finally:
        source.pipeline.set_progress_bar_config(**before)
