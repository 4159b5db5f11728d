"""Learned depth: train which blocks stay (TinyFusion, Fang et al. 2024, arXiv 2412.01199; `criteria/learned.py`).

The n blocks of a list, k of which are to go, form g = gcd(n, k) groups of M = n / g consecutive blocks, each of which
keeps N = (n - k) / g: 14 of 28 is 1:2 fourteen times, the pattern that served the paper best. Each group has a logit
for every one of its C(M, N) ways to keep. One draw a training step, hard forward and soft backward,

    x <- m_l block_l(x) + (1 - m_l) x,        loss  ||v_gated - v_dense||^2 / ||v_dense||^2

over the calls of dense calibration runs. The weights train along, because a pattern is as good as what training makes
of it, not as what it breaks; afterwards they are put back, and each group keeps the pattern with the largest logit.

Deviations: one draw a call, not one a sample; the loss is the distance to the dense model, not the data's; all weights
of the blocks train, where the paper prefers LoRA on large models; gradients are not clipped, and the last logits decide
where the authors' program asks their exponential average. Calls and a copy of the blocks are kept in memory: for small
models.

Shapes: p = C(M, N) patterns, m blocks of a group.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from reference.anatomy.blocks import BlockList
from reference.anatomy.skipping import members, pass_on
from reference.calibration import Source, calls
from reference.criteria.learned import decide, gated_block, keep_patterns, sample_keep
from reference.denoising_loss import differentiable, everything_of
from reference.learned_gates import relative_error

STEPS, LOGIT_RATE, WEIGHT_RATE = 200, 1e-3, 1e-4
HOT, COLD = 4.0, 0.1  # temperature at the start and at the end
START = 0.02  # standard deviation of the first logits
MOST_PATTERNS = 20_000


def learn_depth(
    root: nn.Module, group: BlockList, left: Sequence[int], k: int, source: Source, seed: int = 0
) -> Tensor:
    """Which of a list's bundles stay: booleans (left,), all but k of those whose numbers are in `left`."""
    if k in (0, len(left)):
        return torch.full((len(left),), k == 0)
    parts = math.gcd(len(left), k)
    m = len(left) // parts
    n = m - k // parts
    if math.comb(m, n) > MOST_PATTERNS:
        raise ValueError(
            f"{group.name}: {k} of {len(left)} blocks can go in {math.comb(m, n):,} ways, too many to train; "
            "choose an amount that splits the list into equal groups"
        )
    generator = torch.Generator().manual_seed(seed)
    patterns_pm = keep_patterns(n, m)
    logits = [START * torch.randn(len(patterns_pm), generator=generator) for _ in range(parts)]
    _train(root, group, left, patterns_pm, logits, source, generator)
    return torch.cat([decide(logits_p, patterns_pm) for logits_p in logits])


def temperature(step: int) -> float:
    """Falls linearly; the last step has COLD."""
    return HOT + (COLD - HOT) * step / max(STEPS - 1, 1)


def _train(
    root: nn.Module,
    group: BlockList,
    left: Sequence[int],
    patterns_pm: Tensor,
    logits: Sequence[Tensor],
    source: Source,
    generator: torch.Generator,
) -> None:
    """Train the logits in place."""
    with torch.no_grad():
        recorded = [(call, everything_of(call)) for call in calls(root, source)]
    bundles = [members(root, group, group.bundles[b]) for b in left]
    weights = list({parameter: None for bundle in bundles for block in bundle for parameter in block.parameters()})
    trained = [*logits, *weights]
    with _borrowed(weights):
        for logits_p in logits:
            logits_p.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            [{"params": logits, "lr": LOGIT_RATE}, {"params": weights, "lr": WEIGHT_RATE}], weight_decay=0.0
        )
        for step in tqdm(range(STEPS), desc="learn depth", unit="step", leave=False, disable=None):
            call, v_dense = recorded[int(torch.randint(len(recorded), (1,), generator=generator))]
            tau = temperature(step)
            u_1p = (torch.rand(1, len(patterns_pm), generator=generator) for _ in logits)
            m_b = torch.cat([sample_keep(lo, patterns_pm, u, tau)[0] for lo, u in zip(logits, u_1p, strict=True)])
            keep = {block: m for bundle, m in zip(bundles, m_b, strict=True) for block in bundle}
            with _gated(keep), differentiable(call.denoiser):
                found = torch.autograd.grad(relative_error(call, v_dense), trained, allow_unused=True)
            for parameter, g in zip(trained, found, strict=True):
                parameter.grad = g
            optimizer.step()
    for logits_p in logits:
        logits_p.requires_grad_(False)


@contextmanager
def _gated(keep: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Every block returns m block(x) + (1 - m) x, on each stream."""

    def hook(m: Tensor) -> Callable:
        def gated(block: nn.Module, args: tuple, kwargs: Mapping, output: object) -> object:
            passed = pass_on(block, args, kwargs, output)
            pairs = zip(passed, output, strict=True) if isinstance(output, tuple) else [(passed, output)]
            mixed = tuple(x if x is None else gated_block(x, block_x, m.to(x)) for x, block_x in pairs)
            return mixed if isinstance(output, tuple) else mixed[0]

        return gated

    with ExitStack() as hooks:
        for block, m in keep.items():
            hooks.callback(block.register_forward_hook(hook(m), with_kwargs=True).remove)
        yield


@contextmanager
def _borrowed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Train these parameters; afterwards their values, gradients and `requires_grad` are what they were."""
    before = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in parameters]
    for p, *_ in before:
        p.requires_grad_(True)
        p.grad = None
    try:
        yield
    finally:
        for p, value, grad, required in before:
            p.data.copy_(value)
            p.grad = grad
            p.requires_grad_(required)
