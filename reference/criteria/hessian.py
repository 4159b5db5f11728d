"""The second-order statistic of a layer and its inverse: what OBS, OBS-Diff and output energy share.

    H = sum_n a_n x_n x_n^T / sum_n a_n,    of which OBS inverts H + lambda I = R R^T,    (H + lambda I)^-1 = U^T U

For one output row w, E (w x)^2 = w H w^T: the Hessian of the layer's squared output error, without its factor 2.
The upper triangular U comes from one Cholesky factorisation instead of the usual three: with J reversing the order of
the inputs and J H J = L L^T, R = J L J is upper triangular and U = R^-1.

Everything is fp32: fp16 overflows here, and TF32 has 10 bits of mantissa, too few for a Cholesky factorisation.

Shapes: g groups (1 unless a grouped convolution), n rows, i inputs of one group (`layer_inputs.py`).
"""

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
    diagonal = H_ii.diagonal()
    dead_i = diagonal == 0
    if dead_i.all():
        raise ValueError(f"the Hessian of {len(H_ii)} inputs is zero: was the layer reached during calibration?")
    for tenfold in range(4):
        lambda_ = damping * 10**tenfold * diagonal[~dead_i].mean()
        damped_ii = H_ii.clone()
        damped_ii.diagonal().copy_(torch.where(dead_i, 1, diagonal + lambda_))
        L_ii, failed = torch.linalg.cholesky_ex(damped_ii)
        if not failed and torch.isfinite(L_ii.diagonal()).all():
            return L_ii, dead_i
    if not torch.isfinite(H_ii).all():
        raise ValueError(f"the Hessian of {len(H_ii)} inputs holds values that are not finite")
    raise ValueError(
        f"the Hessian of {len(H_ii)} inputs is not positive definite, even with {damping * 1000:g} times its mean "
        "diagonal added; calibrate with more or other inputs, or raise the damping"
    )


def inverse_factor(H_ii: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Upper U with U^T U = (H + lambda I)^-1, and which columns were never active."""
    L_ii, dead_i = cholesky(H_ii.flip(0, 1), damping)
    return _inverse_upper(L_ii.flip(0, 1)), dead_i.flip(0)


def _inverse_upper(R_ii: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix: [[A, B], [0, C]]^-1 = [[A^-1, -A^-1 B C^-1], [0, C^-1]]."""
    i = len(R_ii)
    if i <= 256:
        identity = torch.eye(i, dtype=R_ii.dtype, device=R_ii.device)
        return torch.linalg.solve_triangular(R_ii, identity, upper=True)
    half, U_ii = i // 2, torch.zeros_like(R_ii)
    U_ii[:half, :half] = _inverse_upper(R_ii[:half, :half])
    U_ii[half:, half:] = _inverse_upper(R_ii[half:, half:])
    U_ii[:half, half:] = U_ii[:half, :half] @ R_ii[:half, half:] @ U_ii[half:, half:].neg()
    return U_ii
