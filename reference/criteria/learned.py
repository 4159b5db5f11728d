"""Learned gates: which units stay is trained, not scored. Hard-concrete gates on width, categorical ones on depth.

Width (EcoDiff, Zhang et al. 2024, arXiv 2412.02852; the distribution is of Louizos et al. 2018, arXiv 1712.01312): a
logit lambda per head and neuron, whose output is multiplied by
    z = clamp(1.2 s - 0.1, 0, 1),    s = sigmoid((ln u - ln(1 - u) + lambda) / 0.83),    u ~ U(0, 1)
trained on  ||x_masked - x_dense||^2 + beta sum over kinds of mean over layers of ||lambda||_1 / len(lambda).
Afterwards the lowest lambda go.

Depth (TinyFusion, Fang et al. 2024, arXiv 2412.01199, section 3): of each group of M consecutive blocks N stay. All
C(M, N) ways to keep are rows of a table, each with a logit; every sample draws one, hard forward and soft backward
(straight through), and
    x <- m_l block_l(x) + (1 - m_l) x
Afterwards each group keeps the row with the largest logit.

Noise is an argument, never drawn inside: checkpointed recomputation must see the same mask, or the gradient belongs
to another network than the loss (the authors' EcoDiff program draws it again). Draw once a batch, store, pass twice.

Shapes: h gates of a layer, b samples, p = C(M, N) patterns, m blocks of a group.
"""

from itertools import combinations

import torch
from torch import Tensor

TEMPERATURE, STRETCH_LOW, STRETCH_HIGH = 0.83, -0.1, 1.1
EPSILON = 1e-6  # keeps the noise off 0 and 1, where its logit is infinite


def hard_concrete(lambda_h: Tensor, u: Tensor) -> Tensor:
    """Gates z in [0, 1], differentiable in lambda. `u`: stored uniform noise, (h,) or (b, h)."""
    s = torch.sigmoid((torch.logit(u, eps=EPSILON) + lambda_h) / TEMPERATURE)
    return (s * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def gate_penalty(logits: dict[str, list[Tensor]]) -> Tensor:
    """sum over kinds (attention, feed_forward) of the mean over layers of ||lambda||_1 / len(lambda), a scalar."""
    return sum(torch.stack([lambda_h.abs().mean() for lambda_h in layers]).mean() for layers in logits.values())


def keep_patterns(n: int, m: int) -> Tensor:
    """All ways to keep n of m blocks, (C(m, n), m) of zeros and ones, in lexicographic order of the kept blocks."""
    if not 0 < n <= m:
        raise ValueError(f"cannot keep {n} of {m} blocks")
    kept = torch.tensor(list(combinations(range(m), n)))
    return torch.zeros(len(kept), m).scatter_(1, kept, 1)


def sample_keep(logits_p: Tensor, patterns_pm: Tensor, u_bp: Tensor, tau: float, scale: float = 100.0) -> Tensor:
    """Keep gates (b, m): exactly n ones a sample; the gradient reaches the logits through the softmax.

    `u_bp`: stored uniform noise; `tau`: temperature, lowered from 4 to 0.1 in training.
    """
    gumbel_bp = -torch.log(-torch.log(u_bp.clamp(EPSILON, 1 - EPSILON)))
    soft_bp = torch.softmax((scale * logits_p + gumbel_bp) / tau, dim=1)
    hard_bp = torch.zeros_like(soft_bp).scatter_(1, soft_bp.argmax(1, keepdim=True), 1)
    return (hard_bp + (soft_bp - soft_bp.detach())) @ patterns_pm


def gated_block(x: Tensor, block_x: Tensor, keep_b: Tensor) -> Tensor:
    """m block(x) + (1 - m) x, per sample: where m is 0 the sample passes through unchanged."""
    keep = keep_b.reshape(-1, *[1] * (x.ndim - 1))
    return keep * block_x + (1 - keep) * x


def decide(logits_p: Tensor, patterns_pm: Tensor) -> Tensor:
    """Which blocks of the group stay, booleans (m,): the pattern with the largest logit, the first one of a tie."""
    return patterns_pm[logits_p.argmax()].bool()
