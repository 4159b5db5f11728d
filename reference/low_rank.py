"""Low-rank modulation: the conditioning vector lives in few directions, so the layers that read it need few columns.

Every block of a DiT turns the same vector e = SiLU(time embedding + pooled text + ...) into its shifts, scales and
gates: a third of SD3 and Qwen-Image, 27 % of FLUX.1-dev. Time and guidance are two numbers; e fills d = 3072 dimensions
with hardly more than a curve. With an orthonormal basis B of the directions that stay and the mean mu,

    W_l e + b_l  ~=  W'_l (B (e - mu)) + b'_l,     W'_l = W_l B^T,     b'_l = b_l + W_l mu

exactly where e - mu lies in the span of B. A group shares B and mu. `anatomy/modulation.py` carries it out.

    1. H = E[e e^T] and mu = E[e] over denoising runs; of all the layers that read e, one is watched
    2. directions b_j: with data the eigenvectors of C = H - mu mu^T, the covariance, with eigenvalues lambda_j
    3. score of b_j, then select and cut like units of any other granularity

Scores, with G = sum_l W_l^T W_l over the group's layers:
    output-energy   S_j = lambda_j * sum_l ||W_l b_j||^2 = lambda_j * b_j^T G b_j
                    What direction j puts out is W_l b_j z_j with z_j = b_j^T (e - mu). E[z_i z_j] = 0 for i != j, being
                    eigenvectors of the covariance. So removing a set J changes the outputs by
                    E sum_l ||sum_J W_l b_j z_j||^2 = sum_J S_j exactly: costs of several directions add up.
    magnitude       no data: mu = 0, b_j the right singular vectors of the stacked W_l, S_j their singular values
    random          no data: mu = 0, a random orthonormal basis, random scores in falling order

A group with a layer that has no bias cannot hold W mu: there mu = 0 and C = H, and the same argument holds for z = B e.

Deviation: published as a community method (2026) that keeps the directions of largest variance; here a direction counts
for what the layers make of it, and directions can be ranked without data.

Shapes: d inputs, o outputs of a layer, n vectors, r directions that stay. Directions are rows, the highest score first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.anatomy import unit_groups
from reference.anatomy.groups import Group
from reference.anatomy.modulation import Basis, layers_of, pieces, shared_by
from reference.calibration import Call, Source, see_inputs
from reference.criteria.hessian import accumulate, full_fp32
from reference.criteria.random import random_scores
from reference.request import Request
from reference.structured import remove_units


class Moments(NamedTuple):
    """Of the vectors that a group's layers read: E[e] (d,) and E[e e^T] (d, d), fp32."""

    mu_d: Tensor
    H_dd: Tensor


def remove_directions(
    root: nn.Module,
    request: Request,
    source: Source | None = None,
    gone: Mapping[str, Tensor] | None = None,
    gram_of: Callable[[Group], Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Tensor]]:
    """Which directions go, group -> booleans (d,); group -> why it was skipped; `plan.weights`. Else as `remove_units`.

    `plan.weights` holds basis (r, d) and mean (d,), fp32, of every group that loses directions. `gram_of`: G (d, d) of
    a group whose weights are not in memory.
    """
    bases: dict[str, Basis] = {}

    def scorer(
        root: nn.Module, groups: Sequence[Group], request: Request, source: Source | None
    ) -> tuple[Callable[[Group], Tensor], dict[str, str]]:
        seen = {} if source is None else moments(root, groups, source)

        def score(group: Group) -> Tensor:
            bases[group.name], S_d = scored_basis(root, group, request, seen.get(group.name), gram_of)
            return S_d

        return score, {g.name: "calibration never reached it" for g in groups if source and g.name not in seen}

    if request.rank is None:
        removed, skipped = remove_units(root, request, source, gone, scorer)
    else:
        nothing, skipped = remove_units(root, replace(request, rank=None, amount=0.0), source, None, scorer)
        removed = {name: torch.arange(len(none)) >= request.rank for name, none in nothing.items()}
    return removed, skipped, plan_weights(bases, removed)


def plan_weights(bases: Mapping[str, Basis], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Basis and mean of every group that loses directions, as `plan.weights` names them."""
    weights = {}
    for name, gone in removed.items():
        if gone.any():
            B_dd, mu_d = bases[name]
            weights |= {f"{name}.basis": B_dd[~gone].contiguous(), f"{name}.mean": mu_d}
    return weights


def magnitude_weights(root: nn.Module, removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`plan.weights` of a plan by hand: booleans (d,) over the directions by magnitude."""
    groups = [group for group in unit_groups(root, "rank")[0] if group.name in removed]
    bases = {group.name: scored_basis(root, group, Request("rank", 0.0), None)[0] for group in groups}
    return plan_weights(bases, removed)


def larger_than_dense(root: nn.Module, before: Mapping[str, int]) -> dict[str, str]:
    """First layer -> the numbers, for every low-rank group with more parameters than its dense layers had.

    `before`: parameter name -> number of weights before pruning.
    """
    larger = {}
    for layers in shared_by(root):
        names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        now = {id(p): p.numel() for layer in layers for p in root.get_submodule(layer).parameters()}
        dense, low_rank = sum(before.get(name, 0) for name in names), sum(now.values())
        if low_rank > dense:
            larger[layers[0]] = f"low rank takes {low_rank:,} parameters where the dense layers took {dense:,}"
    return larger


def moments(root: nn.Module, groups: Sequence[Group], source: Source) -> dict[str, Moments]:
    """What calibration shows the first layer of each group, for the groups that it reaches."""
    found: dict[str, Moments] = {}
    rows: dict[str, float] = {}

    def take(name: str, X_1nd: Tensor, call: Call) -> None:
        X_1nd = X_1nd.to(source.device or X_1nd.device)
        n, d = X_1nd.shape[1:]
        if name not in found:
            found[name], rows[name] = Moments(X_1nd.new_zeros(d).float(), X_1nd.new_zeros(d, d).float()), 0.0
        mu_d, H_dd = found[name]
        mu_d += (X_1nd[0].float() - mu_d).sum(0) / (rows[name] + n)
        rows[name] = accumulate(H_dd[None], rows[name], X_1nd)

    see_inputs(root, source, {g.name: root.get_submodule(layers_of(g)[0]) for g in groups}, take)
    return found


@torch.no_grad()
def scored_basis(
    root: nn.Module,
    group: Group,
    request: Request,
    seen: Moments | None,
    gram_of: Callable[[Group], Tensor] | None = None,
) -> tuple[Basis, Tensor]:
    """All directions (d, d) of a group with its mean, and their scores (d,) in falling order; fp32 on the CPU."""
    d = group.count
    if request.criterion == "random":
        uniform_dd = random_scores((d, d), f"{group.name}.basis", request.seed).clamp(1e-6, 1 - 1e-6)
        B_dd = torch.linalg.qr(torch.special.ndtri(uniform_dd.double()))[
            0
        ].float()  # of normal numbers: no axis preferred
        S_d = random_scores((d,), group.name, request.seed).sort(descending=True).values
        return Basis(B_dd, torch.zeros(d)), S_d
    layers = [root.get_submodule(name) for name in layers_of(group)]
    G_dd = gram_of(group) if gram_of else gram([layer.weight for layer in layers]).cpu()
    if seen is None:
        B_dd, S_d = magnitude_basis(G_dd)
        return Basis(B_dd, torch.zeros(d)), S_d
    mu_d, H_dd = (t.cpu() for t in seen)
    if any(layer.bias is None for layer in layers):
        mu_d = torch.zeros_like(mu_d)
    B_dd, S_d = energy_basis(mu_d, H_dd, G_dd)
    return Basis(B_dd, mu_d), S_d


@full_fp32()
def gram(weights: Iterable[Tensor]) -> Tensor:
    """G = sum_l W_l^T W_l (d, d) fp32 of the layers' weights (o, d), of which one at a time is looked at."""
    G_dd = None
    for W_od in weights:
        if G_dd is None:
            G_dd = torch.zeros(W_od.shape[1], W_od.shape[1], device=W_od.device)
        for rows_pd in pieces(W_od.detach()):
            rows_pd = rows_pd.float()
            G_dd.addmm_(rows_pd.T, rows_pd)
    return G_dd


def magnitude_basis(G_dd: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors of the stacked weights as rows (d, d), and the singular values (d,), largest first."""
    squares_d, V_dd = torch.linalg.eigh(G_dd.double())  # G = V diag(s^2) V^T
    return V_dd.T.flip(0).float(), squares_d.flip(0).clamp_min(0).sqrt().float()


def energy_basis(mu_d: Tensor, H_dd: Tensor, G_dd: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of H - mu mu^T as rows (d, d), and S_j = lambda_j b_j^T G b_j (d,), the costliest first."""
    mu_d = mu_d.double()
    lambda_d, V_dd = torch.linalg.eigh(H_dd.double() - torch.outer(mu_d, mu_d))
    S_d = lambda_d.clamp_min(0) * ((G_dd.double() @ V_dd) * V_dd).sum(0)
    order = S_d.argsort(descending=True, stable=True)
    return V_dd.T[order].float(), S_d[order].float()


def residual(E_nd: Tensor, basis: Basis, G_dd: Tensor) -> float:
    """||W (e - e^)|| / ||W e|| over vectors E and all layers of a group, e^ = mu + B^T B (e - mu): give held-out E.

    `G_dd` from `gram`, of the dense layers.
    """
    B_rd, mu_d, E_nd, G_dd = (t.double().cpu() for t in (*basis, E_nd, G_dd))
    centred_nd = E_nd - mu_d
    lost_nd = centred_nd - centred_nd @ B_rd.T @ B_rd
    return float((((lost_nd @ G_dd) * lost_nd).sum() / ((E_nd @ G_dd) * E_nd).sum()).clamp_min(0).sqrt())
