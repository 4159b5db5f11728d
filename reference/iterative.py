"""Iterative pruning: several rounds, each followed by some training of what is left.

Schedules of the rate after round r of R, final rate s_f, from s_0 = 0:
    one-shot     s_r = s_f, a single round
    linear       s_r = s_f * r / R
    cubic        s_r = s_f - s_f * (1 - r / R)^3     (Zhu & Gupta 2017, arXiv 1710.01878, equation 1)
    exponential  s_r = 1 - (1 - s_f)^(r / R)         (every round removes the same share of what is left)

Rates always count original units, so rounds do not compound, and a removed unit never comes back.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch.optim.optimizer import register_optimizer_step_post_hook

from reference.request import Request, parse_n_m

SCHEDULES = {
    "one-shot": lambda s_f, x: s_f,
    "linear": lambda s_f, x: s_f * x,
    "cubic": lambda s_f, x: s_f - s_f * (1 - x) ** 3,
    "exponential": lambda s_f, x: 1 - (1 - s_f) ** x,
}


def rates_by_round(request: Request, schedule: str, rounds: int) -> list[Request]:
    """The request of every round; the last asks for exactly what the caller asked for."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; choose {', '.join(SCHEDULES)}")
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds is a whole number from 1 on, not {rounds!r}")
    if schedule == "one-shot" and rounds > 1:
        raise ValueError("schedule 'one-shot' has one round; choose linear, cubic or exponential for more")
    if parse_n_m(request.granularity) or request.rank is not None:
        if rounds > 1:
            what = f"rank={request.rank}" if request.rank else f"{request.granularity}, a pattern,"
            raise ValueError(f"{what} is not a rate and cannot grow over rounds")
        return [request]

    def scaled(x: float) -> Request:
        def rate(s_f: float) -> float:
            return SCHEDULES[schedule](s_f, x)

        if isinstance(request.amount, Mapping):
            return replace(request, amount={key: rate(s_f) for key, s_f in request.amount.items()})
        return replace(request, amount=rate(request.amount))

    return [scaled(r / rounds) for r in range(1, rounds)] + [request]


@contextmanager
def stay_removed(mask: Callable[[], None]) -> Iterator[None]:
    """Mask now and again after every step of any optimizer inside, so that training cannot revive what is gone."""
    mask()
    handle = register_optimizer_step_post_hook(lambda *_: mask())
    try:
        yield
    finally:
        handle.remove()
        mask()
