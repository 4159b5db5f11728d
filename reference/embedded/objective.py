"""What a denoiser is asked at a random time: the input, the time and the right answer, for either kind of process.

Rectified flow with logit-normal times (Esser et al. 2024, arXiv 2403.03206, section 3.1; shift: its equation 23):
    x_s = (1 - s) x + s e,        v = e - x,        s = sigmoid(n), n ~ N(0, 1),  then  s <- c s / (1 + (c - 1) s)
Variance-preserving diffusion with v-prediction (Salimans and Ho 2022, arXiv 2202.00512, appendix D), uniform times:
    x_t = a_t x + s_t e,          v = a_t e - s_t x,        a_t^2 + s_t^2 = 1
Schedulers whose `prediction_type` is epsilon or sample have e or x for the answer. c is the scheduler's own shift.
"""

from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch import Tensor


class Question(NamedTuple):
    """b samples: `x` (b, channels, size, size) as the denoiser sees it, `timestep` (b,), and the answer `v`."""

    x: Tensor
    timestep: Tensor
    v: Tensor


def ask(scheduler: SchedulerMixin, x_bchw: Tensor, generator: torch.Generator) -> Question:
    """Noise clean pictures at random times; `scheduler` says by which process. The same on every device."""
    e, time_b = draw(scheduler, x_bchw.shape, generator)
    return pose(scheduler, x_bchw, e.to(x_bchw.device), time_b.to(x_bchw.device))


def draw(scheduler: SchedulerMixin, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is random about questions: noise e of `shape` and the times (b,), s in (0, 1) or t counted from 0."""
    e = torch.randn(shape, generator=generator)
    if _is_flow(scheduler):
        s = torch.randn(shape[0], generator=generator).sigmoid()
        c = 1.0 if scheduler.config.get("use_dynamic_shifting") else scheduler.config.get("shift", 1.0)
        return e, c * s / (1 + (c - 1) * s)
    return e, torch.randint(len(scheduler.alphas_cumprod), (shape[0],), generator=generator)


def pose(scheduler: SchedulerMixin, x_bchw: Tensor, e: Tensor, time_b: Tensor) -> Question:
    """The questions that noise and times make of clean pictures. Raises ValueError for a process not listed above."""
    if _is_flow(scheduler):
        s_b111 = time_b[:, None, None, None]
        timestep = time_b * scheduler.config.num_train_timesteps
        return Question((1 - s_b111) * x_bchw + s_b111 * e, timestep, e - x_bchw)
    squared_b111 = scheduler.alphas_cumprod.to(x_bchw.device)[time_b][:, None, None, None]
    a_b111, s_b111 = squared_b111.sqrt(), (1 - squared_b111).sqrt()
    v = {"v_prediction": a_b111 * e - s_b111 * x_bchw, "epsilon": e, "sample": x_bchw}
    return Question(a_b111 * x_bchw + s_b111 * e, time_b, v[scheduler.config.get("prediction_type", "epsilon")])


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raises ValueError for a scheduler whose process is not one of those above."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if _is_flow(scheduler):
        return
    if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            f"{type(scheduler).__name__} (prediction_type {kind!r}) is not supported; schedulers of flow matching "
            "(FlowMatchEulerDiscreteScheduler) and of noise, sample or v-prediction with alphas_cumprod are"
        )


def _is_flow(scheduler: SchedulerMixin) -> bool:
    return hasattr(scheduler, "scale_noise")
