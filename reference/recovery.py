"""Recovery: train what is left after pruning.

Per batch of pictures with captions, at random times t (x_t and the right answer v: `embedded/objective.py`):
    L_task = || v_pruned(x_t, t, caption) - v ||^2                       training goes on
    L_out  = || v_pruned(x_t, t, caption) - v_dense(x_t, t, caption) ||^2
    L_feat = sum_l || f_pruned_l - f_dense_l ||^2                        f_l: output of block l
each the mean over elements. `loss` is one of
    task     L_task
    output   L_out: output distillation (Hinton et al. 2015, arXiv 1503.02531)
    feature  L_task + L_out + L_feat: BK-SDM (Kim et al. 2023, arXiv 2305.15798, section 3.3, all weights 1)
The dense model is asked anew at every step, so nothing is stored. One prompt in ten is empty, because guidance asks for
the unconditional prediction as well. Blocks are compared one by one where both models have as many; where blocks were
cut, the last ones of each list.

Runs on `accelerate`: mixed precision, gradient accumulation, several processes. A step is drawn whole from one
generator on the CPU and then divided, so neither the number of processes nor of parts changes what is learned from.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from reference.conditioning import condition, denoiser_of, encode, latent_shape, pack
from reference.embedded.objective import draw, pose
from reference.embedded.pipeline import EmbeddedPipeline
from reference.pictures import InMemory, Pictures

LOSSES = ("task", "output", "feature")
EMPTY_PROMPTS = 0.1


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW without weight decay at a constant rate. `batch` counts the pictures of a whole step."""

    steps: int
    batch: int = 64
    learning_rate: float = 3e-4
    loss: str = "output"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {', '.join(LOSSES[:-1])} or {LOSSES[-1]}, not {self.loss!r}")
        for name in ("steps", "batch"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number from 1 on, not {getattr(self, name)!r}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is a positive number, not {self.learning_rate!r}")


def distill(
    dense: EmbeddedPipeline,
    x: Tensor,
    prompts: list[str],
    steps: int,
    batch: int = 64,
    learning_rate: float = 3e-4,
    seed: int = 0,
    each_step: Callable[[], object] = lambda: None,
    loss: str = "output",
) -> Callable[[EmbeddedPipeline, int], None]:
    """A `recover` callback for `reference.prune`: `steps` AdamW steps after every round.

    `x` (n, 3, size, size) in [-1, 1] are the pictures, `prompts` their n names; `each_step` is called after each step.
    """
    teacher, data = copy.deepcopy(dense.denoiser).eval(), InMemory(x, prompts)

    def recover(pruned: EmbeddedPipeline, round_: int) -> None:
        recipe = Recipe(steps, batch, learning_rate, loss, seed * 1000 + round_)
        accelerator = Accelerator(cpu=pruned.device.type == "cpu")
        fit(pruned, teacher, data, recipe, accelerator, each_step=lambda *_: each_step())

    return recover


def fit(
    pipeline: DiffusionPipeline,
    teacher: nn.Module | None,
    data: Pictures | InMemory,
    recipe: Recipe,
    accelerator: Accelerator,
    check_point: Path | None = None,
    facts: dict[str, Any] | None = None,
    every: int = 100,
    each_step: Callable[[int, float], object] = lambda number, loss: None,
) -> list[float]:
    """Train the pipeline's denoiser in place; the loss of every step.

    `each_step` is told the number of steps so far and the loss. With `check_point`, the file is written every so many
    steps, and if it is there the run goes on from it, with the numbers it would have had; `facts` say what the run is,
    and those of the file must be the same.
    """
    parts = accelerator.num_processes * accelerator.gradient_accumulation_steps
    if recipe.batch % parts:
        raise ValueError(f"batch {recipe.batch} does not divide by processes times accumulated parts, {parts}")
    denoiser = denoiser_of(pipeline)
    if teacher is not None:
        teacher.to(accelerator.device).requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), recipe.learning_rate, weight_decay=0.0)
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    state = _State(denoiser, optimizer, accelerator, torch.Generator().manual_seed(recipe.seed), facts or {})
    losses = state.load(check_point) if check_point is not None and check_point.exists() else []

    with ExitStack() as hooks:
        features = _compare_features(denoiser, teacher, hooks) if recipe.loss == "feature" else None
        for step in range(len(losses), recipe.steps):
            total = torch.zeros((), device=accelerator.device)
            for ask in _questions(pipeline, denoiser, data, recipe.batch, state.generator, accelerator):
                with accelerator.accumulate(model):
                    loss = _loss(model, teacher, recipe.loss, features, accelerator, *ask)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                    total += loss.detach() / accelerator.gradient_accumulation_steps
            losses.append(accelerator.reduce(total, "mean").item())
            each_step(len(losses), losses[-1])
            if check_point is not None and ((step + 1) % every == 0 or step + 1 == recipe.steps):
                state.save(check_point, losses)
    accelerator.free_memory()
    for name in ("forward", "_original_forward"):  # where accelerate hangs its mixed precision
        vars(denoiser).pop(name, None)
    return losses


def _questions(
    pipeline: DiffusionPipeline,
    denoiser: nn.Module,
    data: Pictures | InMemory,
    batch: int,
    g: torch.Generator,
    accelerator: Accelerator,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Keywords and right answer of this process's parts of one step. The whole step is drawn, whoever takes it."""
    size, scheduler = (data.height, data.width), pipeline.scheduler
    shape = latent_shape(pipeline, batch, *size)
    rows = torch.randint(len(data.captions), (batch,), generator=g).tolist()
    sampled = None if isinstance(pipeline, EmbeddedPipeline) else torch.randn(shape, generator=g)
    e, time = draw(scheduler, shape, g)
    dropped = (torch.rand(batch, generator=g) < EMPTY_PROMPTS).tolist()
    captions = ["" if drop else data.captions[row] for row, drop in zip(rows, dropped, strict=True)]

    own = batch // accelerator.num_processes
    part = own // accelerator.gradient_accumulation_steps
    for first in range(accelerator.process_index * own, (accelerator.process_index + 1) * own, part):
        mine = slice(first, first + part)
        device = accelerator.device
        z = encode(pipeline, data.read(rows[mine]), None if sampled is None else sampled[mine])
        question = pose(scheduler, z.to(device), e[mine].to(device), time[mine].to(device))
        call = condition(pipeline, denoiser, captions[mine], *size)
        x_t = pack(pipeline, question.x).to(next(denoiser.parameters()).dtype)
        yield call.at(x_t, question.timestep), pack(pipeline, question.v)


def _loss(
    model: nn.Module,
    teacher: nn.Module | None,
    kind: str,
    features: Callable[[], Tensor] | None,
    accelerator: Accelerator,
    keywords: dict[str, Any],
    v: Tensor,
) -> Tensor:
    """The loss of the recipe for one part of a step, a scalar."""
    predicted = model(**keywords)[0]
    if kind == "task":
        return _task(predicted, v)
    with torch.no_grad(), accelerator.autocast():
        v_dense = teacher(**keywords)[0]
    loss = mse_loss(predicted.float(), v_dense.float())
    return loss if kind == "output" else _task(predicted, v) + loss + features()


def _task(predicted: Tensor, v: Tensor) -> Tensor:
    if predicted.ndim > 1 and predicted.shape[1] == 2 * v.shape[1]:
        predicted = predicted[:, : v.shape[1]]  # the other half is the learned variance
    return mse_loss(predicted.float(), v)


def _compare_features(denoiser: nn.Module, teacher: nn.Module, hooks: ExitStack) -> Callable[[], Tensor]:
    """L_feat of the latest calls of both models."""
    pairs = list(_pairs(denoiser, teacher))
    if not pairs:
        raise ValueError(f"{type(denoiser).__name__} has no blocks whose features could be compared; use loss 'output'")
    seen: dict[nn.Module, list[Tensor]] = {}
    for block in (block for pair in pairs for block in pair):
        handle = block.register_forward_hook(lambda block, _, output: seen.__setitem__(block, list(_tensors(output))))
        hooks.callback(handle.remove)

    def compare() -> Tensor:
        both = [(f, f_dense) for pair in pairs for f, f_dense in zip(*(seen[b] for b in pair), strict=True)]
        return torch.stack([mse_loss(f.float(), f_dense.float()) for f, f_dense in both]).sum()

    return compare


def _pairs(denoiser: nn.Module, teacher: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    for name, child in denoiser.named_children():
        other = getattr(teacher, name)
        if name == "mid_block" and child is not None:
            yield child, other
        elif isinstance(child, nn.ModuleList) and name.endswith("blocks") and len(child):
            equal = len(child) == len(other)
            yield from zip(child if equal else child[-1:], other if equal else other[-1:], strict=True)


def _tensors(output: object) -> Iterator[Tensor]:
    """The tensors of a block's output; a UNet's down block hands its skips over as well."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


@dataclass
class _State:
    """All that a run is made of, so that one stopped at any moment goes on as if it had not been."""

    denoiser: nn.Module
    optimizer: Any
    accelerator: Accelerator
    generator: torch.Generator
    facts: dict[str, Any]

    def save(self, file: Path, losses: list[float]) -> None:
        """Beside the file first, then moved, so that there is always a whole one."""
        if self.accelerator.is_main_process:
            state = {"facts": self.facts, "losses": losses, "generator": self.generator.get_state()}
            state |= {"weights": [p.detach() for p in self.denoiser.parameters()]}
            state |= {"optimizer": self.optimizer.state_dict()}
            if self.accelerator.scaler is not None:
                state |= {"scaler": self.accelerator.scaler.state_dict()}
            scratch = file.with_name(file.name + ".tmp")
            torch.save(state, scratch)
            os.replace(scratch, file)
        self.accelerator.wait_for_everyone()

    def load(self, file: Path) -> list[float]:
        """Losses of the steps so far. ValueError if the file is of another run, or cut short."""
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{file} cannot be read ({reason}); delete it to start anew") from None
        for name, value in self.facts.items():
            if state["facts"].get(name) != value:
                raise ValueError(
                    f"{file} is of a run with another {name}: {state['facts'].get(name)!r}, now {value!r}; "
                    "give what it was, or delete the file to start anew"
                )
        for p, value in zip(self.denoiser.parameters(), state["weights"], strict=True):
            p.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["losses"]
