"""The second-order statistic of a layer and its inverse: what OBS, OBS-Diff and output energy share.

    H = sum_n a_n x_n x_n^T / sum_n a_n,    of which OBS inverts H + lambda I = R R^T,    (H + lambda I)^-1 = U^T U

For one output row w, E (w x)^2 = w H w^T: the Hessian of the layer's squared output error, without its factor 2.
The upper triangular U comes from one factorisation with an upper triangular R instead of the usual three Cholesky
factorisations: U = R^-1.

Everything is fp32: fp16 overflows here, and TF32 has 10 bits of mantissa, too few for a Cholesky factorisation.

Shapes: g groups (1 unless a grouped convolution), n rows, i inputs of one group (`layer_inputs.py`).
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

DAMPING = 0.01  # lambda as a fraction of the mean of the diagonal


@contextmanager
def full_fp32():
    """Matrix products in full fp32 on CUDA, whatever the process has set."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@full_fp32()
def accumulate(H_gii: Tensor, weight: float, X_gni: Tensor, a_n: Tensor | None = None) -> float:
    """Take X into the running mean H = sum a_n x_n x_n^T / sum a_n, in place (fp32, zeros at first).

    `weight`: sum of a_n so far, 0 at first; returns the new one. `a_n`: weight of each row >= 0, by default 1.
    """
    X_gni = X_gni.float() if a_n is None else X_gni.float() * a_n.float().sqrt()[:, None]
    total = weight + (X_gni.shape[1] if a_n is None else float(a_n.sum()))
    if total > 0:
        H_gii.baddbmm_(X_gni.mT, X_gni, beta=weight / total, alpha=1 / total)
    return total


def cholesky(H_ii: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Lower L with L L^T = H + lambda I, and which columns were never active (booleans; their diagonal becomes 1)."""
    return _factorise(torch.linalg.cholesky_ex, H_ii, damping)


def inverse_factor(H_ii: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Upper U with U^T U = (H + lambda I)^-1, and which columns were never active."""
    return _factorise(_inverse_upper, H_ii, damping)


def _factorise(
    factor: Callable[[Tensor], tuple[Tensor, Tensor]], H_ii: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """`factor` of H + lambda I, which also says whether it failed: then lambda grows tenfold, up to three times."""
    diagonal = H_ii.diagonal()
    dead_i = diagonal == 0
    if dead_i.all():
        raise ValueError(f"the Hessian of {len(H_ii)} inputs is zero: was the layer reached during calibration?")
    for tenfold in range(4):
        lambda_ = damping * 10**tenfold * diagonal[~dead_i].mean()
        damped_ii = H_ii.clone()
        damped_ii.diagonal().copy_(torch.where(dead_i, 1, diagonal + lambda_))
        factor_ii, failed = factor(damped_ii)
        if not failed and torch.isfinite(factor_ii.diagonal()).all():
            return factor_ii, dead_i
    if not torch.isfinite(H_ii).all():
        raise ValueError(f"the Hessian of {len(H_ii)} inputs holds values that are not finite")
    raise ValueError(
        f"the Hessian of {len(H_ii)} inputs is not positive definite, even with {damping * 1000:g} times its mean "
        "diagonal added; calibrate with more or other inputs, or raise the damping"
    )


def _inverse_upper(H_ii: Tensor) -> tuple[Tensor, Tensor]:
    """Upper U with U^T U = H^-1, and whether H was not positive definite. H is overwritten.

    With H = R R^T and R = [[R_1, P], [0, R_2]] upper triangular, H_12 = P R_2^T. By halves, from the lower right:
        U_2 = R_2^-1,    P = H_12 U_2^T,    U_1 from H_11 - P P^T,    U = R^-1 = [[U_1, -U_1 P U_2], [0, U_2]]
    Almost all of it is products of matrices, which run at the processor's full speed as no factorisation does.
    """
    U_ii, failures = torch.zeros_like(H_ii), []

    def halve(start: int, end: int) -> None:
        if end - start <= 192:
            L, failed = torch.linalg.cholesky_ex(H_ii[start:end, start:end].flip(0, 1))
            failures.append(failed)
            identity = torch.eye(end - start, dtype=H_ii.dtype, device=H_ii.device)
            U_ii[start:end, start:end] = torch.linalg.solve_triangular(L.flip(0, 1), identity, upper=True)
            return
        middle = (start + end) // 2
        first, second = slice(start, middle), slice(middle, end)
        halve(middle, end)
        P = H_ii[first, second] @ U_ii[second, second].T
        for left in range(start, middle, 512):  # H is symmetric: of P P^T only what lies above the diagonal counts
            right = min(left + 512, middle)
            H_ii[start:right, left:right].addmm_(P[: right - start], P[left - start : right - start].T, alpha=-1)
        halve(start, middle)
        U_ii[first, second] = U_ii[first, first] @ P.neg_() @ U_ii[second, second]

    halve(0, len(H_ii))
    return U_ii, torch.stack(failures).any()
