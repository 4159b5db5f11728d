"""OBS-Diff: OBS on a Hessian that counts some denoising steps more, package by package (Zhu et al. 2025, 2510.06751).

    H = sum_tau a_tau X_tau^T X_tau / sum of a_tau over rows,    tau = 0 (pure noise) ... T - 1 (picture)

    log-decrease (the paper's choice)   a_tau = a_min + (a_max - a_min) ln(T - tau) / ln T,    a_min, a_max = 0.8, 1.2

so that the first steps count most: their error runs through all the others. The weights go by step *index*: a sampler
with other spacing weighs the same noise level otherwise.

Packages: the layers, in module order, are cut into P = 4 contiguous lists. One calibration run serves all Hessians of a
package; the next package sees the earlier ones pruned. P passes, 1 / P of the memory. Module order is the order in
which layers run, but for two: diffusers lists the middle of a U-Net after the way up, and `proj_out` of FLUX's single
blocks before their attention.

The formulas are those of the authors' program (Alrightlone/OBS-Diff, 3383a4f; its default is uniform, not the paper's
log-decrease). Deviations: rows are counted, not pictures, a constant factor of H while pictures have equally many; the
authors keep q, k and v of an attention in one package, here a package may end between them.

Shapes: T steps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

STRATEGIES = ("uniform", "linear-increase", "linear-decrease", "log-increase", "log-decrease")
Item = TypeVar("Item")


def timestep_weights(T: int, strategy: str = "log-decrease", a_min: float = 0.8, a_max: float = 1.2) -> Tensor:
    """a_tau (T,) for steps in the order in which they run. A single step weighs 1."""
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; choose {', '.join(STRATEGIES)}")
    if strategy == "uniform" or T == 1:
        return torch.ones(T)
    i = torch.arange(T, dtype=torch.float64)
    rise = i / (T - 1) if strategy.startswith("linear") else torch.log1p(i) / math.log(T)
    a_T = a_min + (a_max - a_min) * rise
    return (a_T if strategy.endswith("increase") else a_T.flip(0)).float()


def packages(items: Sequence[Item], count: int = 4) -> list[list[Item]]:
    """`items` in order, cut into `count` contiguous lists, the first ones longer by one; never an empty list."""
    if count < 1:
        raise ValueError(f"at least one package, not {count}")
    count = min(count, len(items))
    size, longer = divmod(len(items), count) if items else (0, 0)
    starts = [p * size + min(p, longer) for p in range(count + 1)]
    return [list(items[start:stop]) for start, stop in pairwise(starts)]
