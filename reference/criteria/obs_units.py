"""OBS for whole units: neurons and heads, with the consumer's remaining columns making up for the removed ones.

The structured half of OBS-Diff (Zhu et al. 2025, arXiv 2510.06751), for the layer that consumes the units (the second
matrix of a feed-forward, the output projection of an attention). With B_u = [H^-1]_uu, the block of unit u in H^-1:

    cost     err_u = tr(W_u B_u^-1 W_u^T)                    the exact rise of E ||error||^2 after compensation
    remove   W   -= W_P B_P^-1 [H^-1]_P,:                    for all units P of one batch together
    shrink   H^-1 -= [H^-1]_:,P B_P^-1 [H^-1]_P,:            which is the inverse of what remains of H

Batches: one head a round. Neurons in greedy batches of c = min(left, max(64, min(b, 1024))), where b starts at
(k - 512) // 2 and becomes (b - 512) // 2 every round: large first, fine towards the end.

Joint attention (SD3, FLUX) has one output projection a stream and one set of heads: rank the heads in each stream and
fuse the ranks (reciprocal rank fusion, Cormack et al. 2009: sum over streams of 1 / (60 + rank), ranks from 1).

Deviations from the authors' code (3383a4f): the cost of a head is the joint one; they divide by squared diagonal
entries of the Cholesky factor of B_u and so treat a head's columns as if they went one by one without changing each
other (for neurons both are W_j^2 / [H^-1]_jj). H^-1 shrinks by a block instead of a new inversion every round. Equal
fused ranks go by index, not by the first stream's rank.

Shapes: u units, w = width of a unit, o outputs, i = u * w inputs; P the columns of one batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.criteria.hessian import DAMPING, cholesky, full_fp32


def fuse_ranks(scores_su: Sequence[Tensor]) -> Tensor:
    """One score (u,) from the scores of several streams; the lowest is the unit that all streams spare best."""
    fused_u = torch.zeros(len(scores_su[0]), dtype=torch.float64)
    for S_u in scores_su:
        rank_u = torch.empty(len(S_u), dtype=torch.float64)
        rank_u[S_u.cpu().argsort(stable=True)] = torch.arange(1, len(S_u) + 1, dtype=torch.float64)
        fused_u -= 1 / (60 + rank_u)
    return fused_u


@full_fp32()
def prune_units(
    layers: Sequence[tuple[Tensor, Tensor]],
    k: int,
    width: int = 1,
    gone: Tensor | None = None,
    damping: float = DAMPING,
) -> tuple[Tensor, list[Tensor]]:
    """Remove exactly k units from all layers alike: removed (u,) and the new weights, in their dtypes.

    `layers`: pairs W_oi, H_ii of the consumers, one a stream. `gone`: units removed in an earlier round, zero already;
    they count towards k.
    """
    units = layers[0][0].shape[1] // width
    removed_u = torch.zeros(units, dtype=torch.bool) if gone is None else gone.cpu().clone()
    left = k - int(removed_u.sum())
    if not 0 <= left <= int((~removed_u).sum()):
        raise ValueError(f"cannot remove {k} of {units} units, {int(removed_u.sum())} of them gone already")
    if left == 0:
        return removed_u, [W_oi.detach().clone() for W_oi, _ in layers]
    factors = [cholesky(H_ii.to(W_oi.device), damping) for W_oi, H_ii in layers]
    new = [W_oi.detach().float().masked_fill(dead_i, 0) for (W_oi, _), (_, dead_i) in zip(layers, factors, strict=True)]
    inverses = [torch.cholesky_inverse(L_ii) for L_ii, _ in factors]
    b = (left - 512) // 2
    while left:
        c = 1 if width > 1 else min(left, max(64, min(b, 1024)))
        remaining = (~removed_u).nonzero().flatten()
        errors = [unit_errors(*pair, width).cpu()[remaining] for pair in zip(new, inverses, strict=True)]
        units_c = remaining[fuse_ranks(errors).argsort(stable=True)[:c]]
        columns_p = (units_c[:, None] * width + torch.arange(width)).flatten()
        for W_oi, inverse_ii in zip(new, inverses, strict=True):
            _remove_columns(W_oi, inverse_ii, columns_p.to(W_oi.device))
        removed_u[units_c] = True
        left, b = left - c, (b - 512) // 2
    removed_i = removed_u.repeat_interleave(width)
    for W_new, (W_oi, _), (_, dead_i) in zip(new, layers, factors, strict=True):
        W_new[:, dead_i] = W_oi.detach()[:, dead_i].float()
        W_new[:, removed_i.to(W_new.device)] = 0
    return removed_u, [W_new.to(W_oi.dtype) + 0.0 for W_new, (W_oi, _) in zip(new, layers, strict=True)]


def unit_errors(W_oi: Tensor, inverse_ii: Tensor, width: int) -> Tensor:
    """err_u = tr(W_u B_u^-1 W_u^T) (u,), units of E ||error||^2: what each unit costs alone, after compensation.

    `inverse_ii`: H^-1. Through the Cholesky factors of its blocks B_u.
    """
    blocks_uww = inverse_ii.unflatten(0, (-1, width)).unflatten(2, (-1, width)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    W_uwo = W_oi.T.unflatten(0, (-1, width))
    return torch.linalg.solve_triangular(torch.linalg.cholesky(blocks_uww), W_uwo, upper=False).square().sum((1, 2))


def _remove_columns(W_oi: Tensor, inverse_ii: Tensor, columns_p: Tensor) -> None:
    """Compensate W for the loss of columns P and shrink H^-1, both in place; P is left zero, with an identity block."""
    L_pp = torch.linalg.cholesky(inverse_ii[columns_p][:, columns_p])
    Z_pi = torch.linalg.solve_triangular(L_pp, inverse_ii[columns_p], upper=False)
    Y_po = torch.linalg.solve_triangular(L_pp, W_oi[:, columns_p].T, upper=False)
    W_oi.addmm_(Y_po.T, Z_pi, alpha=-1)
    inverse_ii.addmm_(Z_pi.T, Z_pi, alpha=-1)
    W_oi[:, columns_p] = 0
    inverse_ii[columns_p], inverse_ii[:, columns_p] = 0, 0
    inverse_ii[columns_p, columns_p] = 1
