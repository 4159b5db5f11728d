"""Score: from a request to the scores of its units, calibrated first where the criterion looks at data.

Each scorer is a function from one target to its scores, all >= 0, so that one layer's are in memory at a time. Beside
it come the targets that calibration never reached, with the reason, to be left whole. OBS and OBS-Diff, which also
change the weights that stay, are `compensation.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reference.anatomy import WeightLayer
from reference.anatomy.groups import Group
from reference.calibration import Call, Source, see_inputs
from reference.consumers import Consumer, consumers
from reference.criteria import head_gradient, hessian, magnitude, output_energy, taylor, wanda
from reference.criteria.random import random_scores
from reference.denoising_loss import differentiable, gradients, squared_errors, step_losses, training_calls
from reference.learned_gates import learn_gates
from reference.request import Request

UNREACHED = "calibration never reached it"
READINGS = {
    "taylor": taylor.unit_scores,
    "diff-pruning": taylor.diff_pruning_paper,
    "diff-pruning-script": taylor.diff_pruning_script,
    "diff-pruning-experiments": taylor.diff_pruning_experiments,
}


def weight_scorer(
    root: nn.Module, layers: Sequence[WeightLayer], request: Request, source: Source | None
) -> tuple[Callable[[WeightLayer], Tensor], dict[str, str]]:
    """Scores of a layer's weights, in the weight's shape; and layer -> why it has none."""
    if request.criterion == "magnitude":
        return lambda layer: magnitude.weight_scores(layer.module.weight), {}
    if request.criterion == "random":
        return lambda layer: random_scores(layer.module.weight.shape, layer.name, request.seed), {}
    if request.criterion == "wanda":
        squares, rows = input_squares(root, source, {layer.name: layer.module for layer in layers})
        unreached = {layer.name: UNREACHED for layer in layers if layer.name not in squares}
        return lambda la: wanda.weight_scores(la.module.weight, squares[la.name], rows[la.name]), unreached
    g = gradients(root, source, [f"{layer.name}.weight" for layer in layers])
    unreached = {layer.name: "the loss does not depend on it" for layer in layers if f"{layer.name}.weight" not in g}
    return lambda layer: taylor.weight_scores(layer.module.weight, g[f"{layer.name}.weight"]), unreached


def unit_scorer(
    root: nn.Module, groups: Sequence[Group], request: Request, source: Source | None
) -> tuple[Callable[[Group], Tensor], dict[str, str]]:
    """Scores (units,) of a group, fp32 on the CPU; and group -> why it has none."""
    criterion = request.criterion
    if criterion == "random":
        return lambda group: random_scores((group.count,), group.name, request.seed), {}
    if criterion in ("magnitude", "magnitude-l1"):
        p = 1 if criterion == "magnitude-l1" else 2
        return lambda group: magnitude.unit_scores(_spans(root, group), group.count, p).cpu(), {}
    if criterion == "output-energy":
        H = hessians(root, source, {c.name: c.layer for group in groups for c in consumers(root, group)})
        unreached = {g.name: UNREACHED for g in groups if not any(c.name in H for c in consumers(root, g))}
        return lambda group: _energy(root, group, H), unreached
    if criterion == "head-gradient":
        absolute, samples = gate_gradients(root, groups, source)
        unreached = {g.name: "the loss does not depend on it" for g in groups if g.name not in absolute}
        return lambda group: head_gradient.head_scores(absolute[group.name], samples), unreached

    if criterion == "learned":
        scores = learn_gates(root, groups, source, request.seed)
        return lambda group: scores[group.name], {}

    alpha_t = None
    if criterion != "taylor":
        alpha_t = taylor.contributing_steps(step_losses(root, source), source.threshold)
    g = gradients(root, source, {s.parameter for group in groups for s in group.slices}, alpha_t)
    unreached = {
        group.name: "the loss does not depend on it"
        for group in groups
        if not any(s.parameter in g for s in group.slices)
    }
    return lambda group: _taylor(root, group, g, criterion).cpu(), unreached


def input_squares(
    root: nn.Module, source: Source, layers: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Of each layer that is reached the sums of squared inputs (g, i), and over how many rows."""
    squares: dict[str, Tensor] = {}
    rows: dict[str, int] = defaultdict(int)

    def take(name: str, X_gni: Tensor, call: Call) -> None:
        found = wanda.squares(X_gni).to(source.device or X_gni.device)
        squares[name] = squares[name] + found if name in squares else found
        rows[name] += X_gni.shape[1]

    see_inputs(root, source, layers, take)
    return squares, rows


def hessians(
    root: nn.Module,
    source: Source,
    layers: Mapping[str, nn.Module],
    weigh: Callable[[Call], Tensor] | None = None,
) -> dict[str, Tensor]:
    """H = E[x x^T] (g, i, i) fp32 of each layer that is reached; `weigh`: the weight of each sample of a call, (b,)."""
    H: dict[str, Tensor] = {}
    weights: dict[str, float] = defaultdict(float)

    def take(name: str, X_gni: Tensor, call: Call) -> None:
        g, n, i = X_gni.shape
        device = source.device or X_gni.device
        if name not in H:
            H[name] = torch.zeros(g, i, i, device=device)
        a_b = None if weigh is None else weigh(call)
        a_n = None
        if a_b is not None:
            a_b = a_b if n % len(a_b) == 0 else a_b.mean()[None]
            a_n = a_b.repeat_interleave(n // len(a_b)).to(device)
        weights[name] = hessian.accumulate(H[name], weights[name], X_gni.to(device), a_n)

    see_inputs(root, source, layers, take)
    return H


def gate_gradients(root: nn.Module, groups: Sequence[Group], source: Source) -> tuple[dict[str, Tensor], int]:
    """Of each group the sum over samples of |dL/dxi| (units,), and how many samples that were."""
    readers = [(group, consumer) for group in groups for consumer in consumers(root, group)]
    seen: list[tuple[Group, Consumer, Tensor]] = []
    absolute: dict[str, Tensor] = {}
    samples = 0

    def watch(group: Group, consumer: Consumer) -> Callable:
        return lambda layer, args: seen.append((group, consumer, args[0]))

    handles = [consumer.layer.register_forward_pre_hook(watch(group, consumer)) for group, consumer in readers]
    try:
        for call, target in training_calls(root, source):
            seen.clear()
            first, x = next(iter(call.keywords.items()))
            with differentiable(call.denoiser):
                # The input carries the graph, so that frozen models are served as well.
                x = x.detach().requires_grad_()
                errors_b = squared_errors(call._replace(keywords=call.keywords | {first: x}), target)
                watched = tuple(seen)  # under gradient checkpointing the backward pass runs the layers once more
                found = torch.autograd.grad(errors_b.sum(), [A for _, _, A in watched], allow_unused=True)
            b = len(errors_b)
            samples += b
            gates: dict[str, Tensor] = {}
            for (group, consumer, A), g in zip(watched, found, strict=True):
                if g is not None:
                    parts = [
                        consumer.of(part, group.count).reshape(b, -1, group.count * consumer.width) for part in (A, g)
                    ]
                    of_stream_bh = head_gradient.gate_gradients(*parts, group.count)
                    gates[group.name] = gates.get(group.name, 0) + of_stream_bh
            for name, gate_bh in gates.items():
                absolute[name] = absolute.get(name, 0) + gate_bh.abs().sum(0).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return absolute, samples


def _spans(root: nn.Module, group: Group) -> Iterable[tuple[Tensor, int]]:
    for s in (s for s in group.slices if s.masked):
        yield root.get_parameter(s.parameter).detach().narrow(s.dim, s.start, s.width * group.count), s.dim


def _energy(root: nn.Module, group: Group, H: Mapping[str, Tensor]) -> Tensor:
    """Of all streams together."""
    energy_u = torch.zeros(group.count)
    for c in consumers(root, group):
        if c.name in H:
            W_oi = c.of(c.layer.weight.detach().flatten(1), group.count)
            H_ii = c.of(c.of(H[c.name][0], group.count).mT, group.count).to(W_oi.device)
            energy_u += output_energy.unit_scores(W_oi, H_ii, c.width).cpu()
    return energy_u


def _taylor(root: nn.Module, group: Group, g: Mapping[str, Tensor], criterion: str) -> Tensor:
    spans = []
    for s in group.slices:
        bias = s.parameter.endswith(".bias") and criterion != "taylor"  # which Diff-Pruning leaves out
        if s.parameter in g and not bias:
            parts = [
                t.detach().narrow(s.dim, s.start, s.width * group.count)
                for t in (root.get_parameter(s.parameter), g[s.parameter])
            ]
            spans.append((*parts, s.dim))
    return READINGS[criterion](spans, group.count)
