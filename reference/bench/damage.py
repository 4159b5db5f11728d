"""Damage maps: where in the network, and when on the way to a picture, something can be missed.

    layers     each layer pruned alone:  err = sqrt( sum_t ||v_pruned - v_dense||^2 / sum_t ||v_dense||^2 )
    blocks     each block left out during one part of the steps: err over the calls of that part, and the root mean
               squared difference of the final pictures if it is missing there and nowhere else

A block left out hands on what it got: a joint block of the MMDiT both streams; a transformer or residual block of the
UNet its input, through the 1 x 1 convolution of the shortcut where it has one. Every record bears its place.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import reference
from reference.anatomy.skipping import pass_on
from reference.bench import measure, metrics
from reference.bench.judge import Judge
from reference.bench.quality_cells import Cell
from reference.embedded.pipeline import EmbeddedPipeline


def layers(judge: Judge, dense: EmbeddedPipeline, trajectory: measure.Trajectory, cell: Cell) -> list[dict]:
    """The error that pruning each layer or group alone brings; `removed` parameters that are zero or gone."""
    records, whole = [], _nonzero(dense.denoiser)
    for unit in reference.units(dense.denoiser, cell.keywords["granularity"]):
        pruned = copy.deepcopy(dense.denoiser)
        reference.prune(pruned, **cell.keywords, only=unit.name)
        found = measure.prediction_error(pruned, trajectory, judge.protocol["prediction_every"])
        place = {"layer": unit.name, "component": unit.component, "removed": whole - _nonzero(pruned)}
        records.append({"metric": "prediction_error_of_layer"} | found | place)
    return records


def blocks(judge: Judge, dense: EmbeddedPipeline, trajectory: measure.Trajectory, cell: Cell) -> list[dict]:
    """For each block, left out during the part of the steps that the cell names: error of prediction and of picture."""
    protocol, part = judge.protocol, cell.keywords["part"]
    first, last = (n * protocol["sampler"]["steps"] // protocol["parts"] for n in (part, part + 1))
    during = trajectory._replace(calls=trajectory.calls[first:last])
    noise = measure.noise(dense, len(judge.names), protocol["noise_seeds"])
    prompts = judge.names * len(protocol["noise_seeds"])
    model = copy.deepcopy(dense)
    records = []
    for name, block in residual_blocks(model.denoiser):
        place = {"layer": name, "steps": [first, last - 1]}
        with hooked(block.register_forward_hook(left_out, with_kwargs=True)):
            found = measure.prediction_error(model.denoiser, during, every=1)
        records.append({"metric": "prediction_error_of_block"} | found | place)
        with hooked(*_during(model.denoiser, block, range(first, last))):
            pictures = measure.draw(model, prompts, noise, **protocol["sampler"])
        records.append({"metric": "picture_error_of_block"} | _picture_error(pictures, trajectory) | place)
    return records


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """Hooks that go when the block of code is left."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def residual_blocks(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Blocks that add to what they get, in the order in which they compute."""
    kinds = ("JointTransformerBlock", "Transformer2DModel", "ResnetBlock2D")
    found = [(name, m) for name, m in denoiser.named_modules() if type(m).__name__ in kinds]
    # A UNet lists its middle last, and the transformers of a stage before the residual blocks that they follow.
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}

    def place(item: tuple[str, nn.Module]) -> tuple:
        path = item[0].split(".")
        if path[0] not in order:
            return (0, int(path[1]), 0, 0)
        kind, number = path[-2], int(path[-1])
        stage = int(path[1]) if path[1].isdigit() else 0
        return (order[path[0]], stage, number, kind == "attentions")

    return iter(sorted(found, key=place))


def left_out(block: nn.Module, args: tuple, keywords: dict, output: object) -> object:
    """Forward hook: what the block got in the place of what it made."""
    if type(block).__name__ == "JointTransformerBlock":
        return pass_on(block, args, keywords, output)
    x = args[0] if args else keywords.get("input_tensor", keywords.get("hidden_states"))
    shortcut = getattr(block, "conv_shortcut", None)
    x = x if shortcut is None else shortcut(x)
    return (x,) if isinstance(output, tuple) else x


def _during(denoiser: nn.Module, block: nn.Module, calls: range) -> list[RemovableHandle]:
    """Hooks that leave the block out at these calls of the denoiser, counted from now on."""
    call = -1

    def count(*_: object) -> None:
        nonlocal call
        call += 1

    def then(*arguments: object) -> object:
        return left_out(*arguments) if call in calls else None

    return [denoiser.register_forward_pre_hook(count), block.register_forward_hook(then, with_kwargs=True)]


def _picture_error(pictures: Tensor, dense: measure.Trajectory) -> dict:
    pair = (x.unflatten(0, (dense.seeds, -1)).double() for x in (pictures, dense.pictures))
    difference = torch.sub(*pair)
    return metrics.interval(difference.square().flatten(2).mean(2).sqrt())


def _nonzero(model: nn.Module) -> int:
    return sum(int(torch.count_nonzero(p)) for p in model.parameters())


MAPS: dict[str, Callable[..., list[dict]]] = {"layers": layers, "blocks": blocks}
