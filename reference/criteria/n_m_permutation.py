"""Channel order for N:M: neighbours compete, so choose who they are (Pool & Yu, NeurIPS 2021, section 3).

    find an order pi of the inputs that keeps more of   sum over rows and groups of the N largest |W_o,pi(i)|

Bounded greedy search by swaps of two columns of different groups, as in NVIDIA's apex: all swaps that gain are done in
order of gain, each group at most once a pass; when none gains, a random swap is tried as an escape, `escapes` times in
all; the best order ever seen is returned, so nothing is ever lost. Deviation: apex also searches small windows
exhaustively.

The gain comes from one table: V[a, b] is what the group of column a retains when b takes the place of a. If y are the
sorted others of that group, V[a, b] = sum over rows of (y_1 + ... + y_(N-1) + max(y_N, |W_ob|)), and
    gain(a, b) = V[a, b] + V[b, a] - retained(group of a) - retained(group of b)

Applying pi: consumer W[:, pi]; producer rows W[pi] and bias[pi], and whatever lies per channel between. In transformers
that is allowed for the hidden neurons of a feed-forward and for value and output within one head, never for the
residual stream.

Cost: O(i^2 o) once and O(i o) a swap; the table is i x i.  Shapes: o outputs, i inputs.
"""

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of what a group retains on average: less is fp32 noise of the sums


def retained(W_oi: Tensor, n: int, m: int) -> float:
    """Sum of the magnitudes that N:M keeps."""
    return float(W_oi.detach().float().abs().reshape(-1, m).topk(n).values.double().sum())


def search(W_oi: Tensor, n: int, m: int, escapes: int = 100, seed: int = 0) -> Tensor:
    """An order (i,) of the columns with retained(W[:, order]) >= retained(W); the same for the same seed."""
    i = W_oi.shape[1]
    if i % m:
        raise ValueError(f"{i} inputs do not divide into groups of {m}")
    generator = torch.Generator().manual_seed(seed)
    A_io = W_oi.detach().float().abs().T.contiguous()  # in the current order
    order = best_order = torch.arange(i, device=W_oi.device)
    best = retained(W_oi, n, m)
    group = torch.arange(i, device=W_oi.device) // m
    V_ii = torch.empty(i, i, device=W_oi.device)
    changed = group.unique()
    while True:
        for g in changed.tolist():
            V_ii[g * m : (g + 1) * m] = _replacements(A_io, g, n, m)
        current_i = V_ii.diagonal()  # b = a: what a's group retains now
        gain_ii = (V_ii + V_ii.T - current_i[:, None] - current_i).masked_fill_(group[:, None] >= group, 0)
        swaps = _disjoint_swaps(gain_ii, TOLERANCE * float(current_i.mean()), m)
        if not swaps:
            now = retained(A_io.T, n, m)
            if now > best:
                best, best_order = now, order
            if escapes == 0 or i == m:
                return best_order
            escapes -= 1
            a, b = torch.randint(i, (2,), generator=generator).tolist()
            swaps = [(a, b)] if a // m != b // m else []
        pairs = torch.tensor(swaps, dtype=torch.long, device=W_oi.device).reshape(-1, 2)
        exchange = torch.arange(i, device=W_oi.device)
        exchange[pairs], changed = pairs.flip(1), group[pairs].flatten().unique()
        A_io, order, V_ii = A_io[exchange], order[exchange], V_ii[:, exchange]


def _replacements(A_io: Tensor, g: int, n: int, m: int) -> Tensor:
    """V of the m columns of group g, (m, i)."""
    rows = []
    for a in range(m):
        others = [g * m + other for other in range(m) if other != a]
        y = A_io[others].sort(dim=0, descending=True).values
        rows.append(torch.maximum(A_io, y[n - 1]).sum(1) + y[: n - 1].sum())
    return torch.stack(rows)


def _disjoint_swaps(gain_ii: Tensor, least: float, m: int) -> list[tuple[int, int]]:
    """Swaps that gain more than `least`, best first (ties by position), no group in two of them."""
    a_s, b_s = (gain_ii > least).nonzero(as_tuple=True)
    best_first = gain_ii[a_s, b_s].argsort(descending=True, stable=True)
    swaps, used = [], set()
    for a, b in zip(a_s[best_first].tolist(), b_s[best_first].tolist(), strict=True):
        if not {a // m, b // m} & used:
            used |= {a // m, b // m}
            swaps.append((a, b))
    return swaps
