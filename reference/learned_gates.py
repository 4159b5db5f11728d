"""Learned pruning: train a gate on every unit, then let the lowest gates go (`criteria/learned.py` has the formulas).

Heads and neurons (EcoDiff, arXiv 2412.02852): the consumer reads z_u a_u instead of a_u, z_u a hard-concrete gate, and
the logits lambda are trained by AdamW on
    ||v_gated - v_dense||^2 / ||v_dense||^2 + beta sum over components of mean over layers of ||lambda||_1 / len(lambda)
over the calls of dense calibration runs, all weights frozen. The uniform noise u is drawn once a call and stored.

Deviations: EcoDiff compares the final latents and backpropagates through the sampler step by step; here every call is
compared on its own, at the inputs that the dense run had, so one step is in memory. The error is relative, so that one
beta serves all models. All calls are kept in memory: for small models.

Shapes: u units of a group, w consecutive inputs of its consumer that one unit spans.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from reference.anatomy.groups import Group
from reference.calibration import Call, Source, calls
from reference.consumers import consumers
from reference.criteria.learned import gate_penalty, hard_concrete
from reference.denoising_loss import differentiable, everything_of

EPOCHS, LEARNING_RATE, BETA, START = 4, 0.1, 0.05, 3.0


def learn_gates(root: nn.Module, groups: Sequence[Group], source: Source, seed: int = 0) -> dict[str, Tensor]:
    """Scores in (0, 1) of each group's units, (u,): sigmoid(lambda) after training."""
    with torch.no_grad():
        recorded = [(call, everything_of(call)) for call in calls(root, source)]
    lambdas = {group.name: torch.full((group.count,), START, requires_grad=True) for group in groups}
    by_component: dict[str, list[Tensor]] = {}
    for group in groups:
        by_component.setdefault(group.component, []).append(lambdas[group.name])
    optimizer = torch.optim.AdamW(lambdas.values(), LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)

    order = [n for _ in range(EPOCHS) for n in torch.randperm(len(recorded), generator=generator).tolist()]
    for n in tqdm(order, desc="learn gates", unit="call", leave=False, disable=None):
        call, v_dense = recorded[n]
        noise = {name: torch.rand(len(lambda_u), generator=generator) for name, lambda_u in lambdas.items()}
        gates = {name: hard_concrete(lambda_u, noise[name]) for name, lambda_u in lambdas.items()}
        with _gated(root, groups, gates), differentiable(call.denoiser):
            error = relative_error(call, v_dense)
            loss = error + BETA * gate_penalty(by_component).to(error.device)
            found = torch.autograd.grad(loss, list(lambdas.values()))
        for lambda_u, g in zip(lambdas.values(), found, strict=True):
            lambda_u.grad = g
        optimizer.step()
    return {name: lambda_u.detach().sigmoid() for name, lambda_u in lambdas.items()}


def relative_error(call: Call, v_dense: Tensor) -> Tensor:
    """||v - v_dense||^2 / ||v_dense||^2 of one call, a scalar."""
    return (everything_of(call) - v_dense).square().sum() / v_dense.square().sum()


@contextmanager
def _gated(root: nn.Module, groups: Sequence[Group], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Every consumer reads its units times their gates."""

    def multiply(columns: slice, gate_i: Tensor) -> Callable:
        def gated(layer: nn.Module, args: tuple) -> tuple:
            A = args[0].clone()
            shape = (-1, *[1] * (A.ndim - 2)) if isinstance(layer, nn.modules.conv._ConvNd) else (-1,)
            dim = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
            part = A.narrow(dim, columns.start, columns.stop - columns.start)
            part.mul_(gate_i.to(A).reshape(shape))
            return (A, *args[1:])

        return gated

    with ExitStack() as hooks:
        for group in groups:
            for c in consumers(root, group):
                width = c.width // c.kernel
                columns = slice(c.start // c.kernel, c.start // c.kernel + group.count * width)
                gate_i = gates[group.name].repeat_interleave(width)
                hooks.callback(c.layer.register_forward_pre_hook(multiply(columns, gate_i)).remove)
        yield
