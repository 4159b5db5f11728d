"""What a denoiser is asked at a random time: the input, the time and the right answer, for either kind of process.

Rectified flow with logit-normal times (Esser et al. 2024, arXiv 2403.03206, section 3.1):
    x_s = (1 - s) x + s e,        v = e - x,        s = sigmoid(n), n ~ N(0, 1)
Variance-preserving diffusion with v-prediction (Salimans and Ho 2022, arXiv 2202.00512, appendix D), uniform times:
    x_t = a_t x + s_t e,          v = a_t e - s_t x,        a_t^2 + s_t^2 = 1
"""

from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor


class Question(NamedTuple):
    """b samples: `x` (b, channels, size, size) as the denoiser sees it, `timestep` (b,), and the target `v`."""

    x: Tensor
    timestep: Tensor
    v: Tensor


def ask(scheduler: SchedulerMixin, x_bchw: Tensor, generator: torch.Generator) -> Question:
    """Noise clean pictures at random times; `scheduler` says by which process."""
    e = torch.randn(x_bchw.shape, generator=generator)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        s = torch.randn(len(x_bchw), generator=generator).sigmoid()
        s_b111 = s[:, None, None, None]
        return Question((1 - s_b111) * x_bchw + s_b111 * e, s * 1000, e - x_bchw)
    t = torch.randint(len(scheduler.alphas_cumprod), (len(x_bchw),), generator=generator)
    squared_b111 = scheduler.alphas_cumprod[t][:, None, None, None]
    a_b111, s_b111 = squared_b111.sqrt(), (1 - squared_b111).sqrt()
    return Question(a_b111 * x_bchw + s_b111 * e, t, a_b111 * e - s_b111 * x_bchw)
