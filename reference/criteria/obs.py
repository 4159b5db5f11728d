"""OBS: remove the weights whose loss the others can best make up for, and let them make up for it.

SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, section 3, algorithm 1) solves, for one layer, with X its inputs,

    minimise E || (W - W') x ||^2 = tr((W - W') H (W - W')^T),    H = E[x x^T] + lambda I

column by column from the left; columns already passed are frozen. With H^-1 = U^T U, U upper triangular, removing
W_oj costs (W_oj / U_jj)^2 and the columns to the right take over:
    mask    unstructured: the lowest costs of a block of 128 columns, all rows together; N:M: of each M columns of a row
    e_o = W_oj / U_jj where removed, else 0;    W_o,j: -= e_o U_j,j:

U comes from `hessian.py`. Updates are lazy: inside 32 columns at once, up to the block's end after 32, beyond the block
after the block. Whole units (neurons, heads) are `obs_units.py`.

Deviations: exactly k of the layer, ties by flat index (the authors' threshold takes k + 1 of a block and every tie);
no factor 2 in H, so that the costs are the rise of the mean squared error itself; columns that were never active cost
nothing and go first, but those that stay keep their weights; if H is not positive definite, lambda grows tenfold.

Shapes: g groups (1 unless a grouped convolution), n rows, o outputs and i inputs of one group (`layer_inputs.py`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from reference.criteria.hessian import DAMPING, full_fp32, inverse_factor
from reference.criteria.layer_inputs import by_group
from reference.select import lowest_n_m, lowest_per_row

BLOCK, INNER = 128, 32


def prune_weights(
    W: Tensor, H_gii: Tensor, k: int, gone: Tensor | None = None, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """Remove exactly k weights: (removed, new weights), both in the shape of W (outputs, ...), the latter in its dtype.

    `gone`: weights removed in an earlier round; they count towards k and stay removed.
    """
    gone = torch.zeros_like(W, dtype=torch.bool) if gone is None else gone.to(W.device)
    if not int(gone.count_nonzero()) <= k <= W.numel():
        raise ValueError(f"cannot remove {k} of {W.numel()} weights, {int(gone.count_nonzero())} of them gone already")
    if k == 0:
        return gone, W.detach().clone()
    gone_goi = by_group(gone, len(H_gii))
    shares = iter(_shares(k, [block for gone_oi in gone_goi for block in gone_oi.split(BLOCK, dim=1)]))

    def choose(costs_ob: Tensor) -> Tensor:
        return lowest_per_row(costs_ob.reshape(1, -1), next(shares)).reshape(costs_ob.shape)

    removed_goi, W_goi = _solve_groups(by_group(W, len(H_gii)), H_gii, gone_goi, BLOCK, choose, damping)
    return removed_goi.reshape(W.shape), W_goi.reshape(W.shape)


def prune_n_m(
    W: Tensor, H_gii: Tensor, n: int, m: int, gone: Tensor | None = None, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """Remove m - n of each m consecutive input channels of an output, at each kernel position; else as above."""
    if W.shape[1] % m:
        raise ValueError(f"{W.shape[1]} inputs do not divide into groups of {m}")
    gone = torch.zeros_like(W, dtype=torch.bool) if gone is None else gone.to(W.device)
    channels_last, gone = W.movedim(1, -1), gone.movedim(1, -1)  # then the m that compete are neighbours
    if W.ndim > 2:
        order_i = torch.arange(W[0].numel(), device=H_gii.device).reshape(W.shape[1], -1).T.flatten()
        H_gii = H_gii[:, order_i][:, :, order_i]

    def choose(costs_om: Tensor) -> Tensor:
        return lowest_n_m(costs_om, n, m)

    W_goi, gone_goi = by_group(channels_last, len(H_gii)), by_group(gone, len(H_gii))
    removed_goi, W_goi = _solve_groups(W_goi, H_gii, gone_goi, m, choose, damping)
    return tuple(t.reshape(channels_last.shape).movedim(-1, 1).contiguous() for t in (removed_goi, W_goi))


def _shares(k: int, gone_blocks: list[Tensor]) -> list[int]:
    """How many weights each block loses: its share of k, at least those that are gone already, k in all."""
    shares, passed = [], 0
    n = sum(block.numel() for block in gone_blocks)
    gone_left = sum(int(block.count_nonzero()) for block in gone_blocks)
    for block in gone_blocks:
        gone_here = int(block.count_nonzero())
        gone_left -= gone_here
        passed += block.numel()
        share = (2 * k * passed + n) // (2 * n) - sum(shares)
        shares.append(min(max(share, gone_here), k - sum(shares) - gone_left))
    return shares


@full_fp32()
def _solve_groups(
    W_goi: Tensor, H_gii: Tensor, gone_goi: Tensor, period: int, choose: Callable[[Tensor], Tensor], damping: float
) -> tuple[Tensor, Tensor]:
    removed_goi, new_goi = torch.empty_like(gone_goi), torch.empty_like(W_goi, requires_grad=False)
    for g, H_ii in enumerate(H_gii):
        solved = _solve(W_goi[g].detach(), H_ii.to(W_goi.device), gone_goi[g], period, choose, damping)
        removed_goi[g], new_goi[g] = solved
    return removed_goi, new_goi.add_(0.0)  # rounding to the weight's dtype may have given -0.0


def _solve(
    W_oi: Tensor, H_ii: Tensor, gone_oi: Tensor, period: int, choose: Callable[[Tensor], Tensor], damping: float
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 with W transposed, so that a column is contiguous.

    `choose` takes the costs (o, period) of the next columns, all up to date, and says which weights go.
    """
    U_ii, dead_i = inverse_factor(H_ii, damping)
    d_i1 = U_ii.diagonal()[:, None].clone()
    W_io = W_oi.float().T.contiguous()
    W_io[dead_i] = 0
    removed_io, any_gone = torch.zeros_like(W_io, dtype=torch.bool), bool(gone_oi.any())
    block = period * max(1, BLOCK // period)
    inner = INNER if period == block else period * max(1, INNER // period)
    for start in range(0, len(W_io), block):
        end = min(start + block, len(W_io))
        E_bo = torch.empty_like(W_io[start:end])
        for near in range(start, end, inner):
            stop = min(near + inner, end)
            for j in range(near, stop):
                if j % period == 0:
                    costs_po = (W_io[j : j + period] / d_i1[j : j + period]).square()
                    if any_gone:
                        costs_po.masked_fill_(gone_oi.T[j : j + period], -1)
                    removed_io[j : j + period] = choose(costs_po.T.contiguous()).T
                torch.div(W_io[j], d_i1[j], out=E_bo[j - start]).mul_(removed_io[j])
                W_io[j:stop].addr_(U_ii[j, j:stop], E_bo[j - start], alpha=-1)
            W_io[stop:end].addmm_(U_ii[near:stop, stop:end].T, E_bo[near - start : stop - start], alpha=-1)
        W_io[end:].addmm_(U_ii[start:end, end:].T, E_bo, alpha=-1)
    W_io[dead_i] = W_oi.T[dead_i].float()
    return removed_io.T, W_io.mul_(~removed_io).T
