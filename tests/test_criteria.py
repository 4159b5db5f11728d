"""Every criterion against an independent, plain computation of what its docstring says."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from reference.criteria import (
    block_influence,
    head_gradient,
    hessian,
    learned,
    n_m_permutation,
    obs,
    obs_diff,
    obs_units,
    output_energy,
    taylor,
    wanda,
)
from reference.criteria.layer_inputs import conv_rows, linear_rows
from reference.criteria.random import random_scores
from reference.select import lowest, lowest_n_m, lowest_per_row


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, i: int, seed: int) -> Tensor:
    """Rows of i inputs that a few directions and very different scales dominate, as activations are."""
    low_rank = noise(n, max(i // 4, 1), seed=seed) @ noise(max(i // 4, 1), i, seed=seed + 1)
    return (low_rank + 0.3 * noise(n, i, seed=seed + 2)) * noise(i, seed=seed + 3).exp()


def gram(X_ni: Tensor) -> Tensor:
    H_gii = torch.zeros(1, X_ni.shape[1], X_ni.shape[1])
    hessian.accumulate(H_gii, 0.0, X_ni[None])
    return H_gii


def error(W_oi: Tensor, new_oi: Tensor, X_ni: Tensor) -> float:
    """E || (W - W') x ||^2"""
    return float((X_ni.double() @ (W_oi - new_oi).double().T).square().sum(1).mean())


def best_error(w_i: Tensor, kept: list[int], X_ni: Tensor, lambda_: float = 0.0) -> tuple[Tensor, float]:
    """Least squares: the weights on `kept` that reproduce X w best (with the ridge that damping means), in fp64."""
    H_ii = X_ni.double().T @ X_ni.double() / len(X_ni) + lambda_ * torch.eye(len(w_i))
    best_i = torch.zeros(len(w_i), dtype=torch.float64)
    best_i[kept] = torch.linalg.solve(H_ii[kept][:, kept], H_ii[kept] @ w_i.double())
    delta_i = best_i - w_i.double()
    return best_i, float(delta_i @ H_ii @ delta_i)


def check_sweep(W: Tensor, X: Tensor, removed: Tensor, new: Tensor, period: int, rows_apart: bool) -> None:
    """The algorithm in its plainest form, fp64 and without blocks, along the given mask.

    Whenever columns compete, the removed ones must be the cheapest; in the end the weights must agree.
    """
    i = W.shape[1]
    H = X.double().T @ X.double() / len(X)
    U = torch.linalg.cholesky(torch.linalg.inv(H + 0.01 * H.diagonal().mean() * torch.eye(i)), upper=True)
    V = W.double().clone()
    for j in range(i):
        if j % period == 0:
            costs = (V / U.diagonal()).square()[:, j : j + period]
            gone, dims = removed[:, j : j + period], (1,) if rows_apart else (0, 1)
            dearest = costs.masked_fill(~gone, 0).amax(dims)
            assert (dearest <= costs.masked_fill(gone, torch.inf).amin(dims) * 1.001).all()
        V[:, j:] -= torch.outer(V[:, j] * removed[:, j] / U[j, j], U[j, j:])
    assert torch.allclose(new.double(), V.masked_fill(removed, 0), atol=2e-3)


def is_positive_zero(t: Tensor) -> bool:
    """Every zero of t is +0.0."""
    return not bool((torch.signbit(t) & (t == 0)).any())


# --- random


def test_random_depends_on_name_and_seed_alone():
    first = random_scores((7, 5), "blocks.0.ff", seed=3)
    random_scores((2, 2), "blocks.1.ff", seed=3)
    assert torch.equal(first, random_scores((7, 5), "blocks.0.ff", seed=3))
    assert not torch.equal(first, random_scores((7, 5), "blocks.0.ff", seed=4))
    assert not torch.equal(first, random_scores((7, 5), "blocks.1.ff", seed=3))
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() < 1


def test_random_removes_every_unit_about_equally_often():
    scores = torch.stack([random_scores((10,), "layer", seed) for seed in range(1000)])
    removed = lowest_per_row(scores, 3).int().sum(0)
    assert removed.sum() == 3000
    assert (removed - 300).abs().max() < 75  # five standard deviations


# --- layer inputs

CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise, strided, dilated": {"kernel_size": (3, 2), "stride": 2, "dilation": (2, 1), "groups": 4},
    "1x1": {"kernel_size": 1},
    "uneven padding": {"kernel_size": 3, "padding": (2, 0)},
}


def rows_of(conv: nn.Module, X: Tensor) -> Tensor:
    return conv_rows(X, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_a_linear_layer_on_its_rows(case):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, bias=False, **CONVOLUTIONS[case])
    X = noise(2, 4, 9, 7)
    W_goi = conv.weight.reshape(conv.groups, 8 // conv.groups, -1)
    y_gno = rows_of(conv, X) @ W_goi.mT
    y = conv(X)
    assert torch.allclose(y_gno.permute(1, 0, 2).reshape(2, *y.shape[2:], 8).movedim(-1, 1), y, atol=1e-5)


def test_rows_of_one_and_three_dimensional_convolutions():
    for conv, X in ((nn.Conv1d(3, 2, 3, 2, 1), noise(2, 3, 8)), (nn.Conv3d(2, 2, (3, 1, 2)), noise(1, 2, 4, 3, 5))):
        y_no = rows_of(conv, X)[0] @ conv.weight.flatten(1).T + conv.bias
        y = conv(X)
        assert torch.allclose(y_no.reshape(len(X), *y.shape[2:], -1).movedim(-1, 1), y, atol=1e-5)


# --- Taylor


def test_taylor_scores_predict_a_small_step_towards_zero():
    """S_u is the slope of the loss along the line on which the unit shrinks (central differences, fp64)."""
    torch.manual_seed(0)
    up, down = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    x, y = noise(16, 5).double(), noise(16, 3, seed=1).double()

    def loss() -> Tensor:
        return (down(torch.tanh(up(x))) - y).square().mean()

    loss().backward()
    spans = [(p, p.grad, dim) for p, dim in ((up.weight, 0), (up.bias, 0), (down.weight, 1))]
    S_u = taylor.unit_scores(spans, 4)
    for u in range(4):
        step, at = 1e-5, []
        with torch.no_grad():
            for sign in (1, -1):
                saved = [p.clone() for p, _, _ in spans]
                for p, _, dim in spans:
                    p.select(dim, u).mul_(1 + sign * step)
                at.append(float(loss()))
                for (p, _, _), old in zip(spans, saved, strict=True):
                    p.copy_(old)
        assert float(S_u[u]) == pytest.approx(abs(at[0] - at[1]) / (2 * step), rel=1e-5)
    assert torch.allclose(taylor.weight_scores(up.weight, up.weight.grad), (up.weight * up.weight.grad).abs().float())


def test_the_three_readings_of_diff_pruning():
    W, V, norm = noise(6, 3), noise(2, 6, seed=1), noise(6, seed=2)
    gW, gV, gn = noise(6, 3, seed=3), noise(2, 6, seed=4), noise(6, seed=5)
    matrices = [(W, gW, 0), (V, gV, 1)]
    paper, script = taylor.diff_pruning_paper(matrices, 3), taylor.diff_pruning_script(matrices, 3)
    experiments = taylor.diff_pruning_experiments([*matrices, (norm, gn, 0)], 3)
    for u in range(3):  # units of width 2
        own = [W[a, b] * gW[a, b] for a in (2 * u, 2 * u + 1) for b in range(3)]
        own += [V[b, a] * gV[b, a] for a in (2 * u, 2 * u + 1) for b in range(2)]
        norms = [norm[a] * gn[a] for a in (2 * u, 2 * u + 1)]
        assert float(paper[u]) == pytest.approx(float(sum(abs(p) for p in own)), rel=1e-5)
        squares = sum(p * p for p in own) + sum(abs(p) for p in norms)
        assert float(experiments[u]) == pytest.approx(float(squares), rel=1e-5)
    assert torch.allclose(script, paper / paper.mean())
    assert torch.equal(taylor.diff_pruning_script([(W, 0 * gW, 0)], 3), torch.zeros(3))


def test_contributing_steps():
    assert taylor.contributing_steps(torch.tensor([1.0, 0.5, 0.05, 0.02, 0.06]), 0.05).tolist() == [1, 1, 0, 0, 1]
    with pytest.raises(ValueError, match="finite"):
        taylor.contributing_steps(torch.tensor([1.0, torch.nan]), 0.05)


# --- Wanda


def test_wanda_against_the_plain_formula():
    W, X = noise(6, 8), noise(50, 8, seed=1)
    total = sum(wanda.squares(x[None]) for x in X.split(13))
    S = wanda.weight_scores(W, total, 50)
    assert torch.allclose(S * 50**0.5, W.abs() * X.norm(dim=0), rtol=1e-5)
    assert (lowest_per_row(S.flatten(1), 3).sum(1) == 3).all()
    with pytest.raises(ValueError, match="calibration"):
        wanda.weight_scores(W, total, 0)


def test_wanda_of_a_grouped_convolution_uses_the_inputs_of_the_group():
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    X = noise(2, 4, 5, 5)
    X[:, 2:] *= 10  # the second group's channels
    rows_gni = rows_of(conv, X)
    S = wanda.weight_scores(conv.weight, wanda.squares(rows_gni), rows_gni.shape[1])
    for o in range(6):
        rms = rows_gni[o // 3].square().mean(0).sqrt()
        assert torch.allclose(S[o].flatten(), conv.weight[o].flatten().abs() * rms, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 12), (4, 8, 3, 3)])
def test_wanda_n_m_is_legal_in_every_group(shape):
    S = noise(*shape).abs().mul(3).round()  # full of ties
    removed = lowest_n_m(S, 2, 4)
    for position in removed.flatten(2).unbind(2) if len(shape) > 2 else [removed]:
        assert (position.reshape(-1, 4).sum(1) == 2).all()
    with pytest.raises(ValueError, match="divide"):
        lowest_n_m(S[:, :6], 2, 4)


# --- the Hessian


def test_running_weighted_mean():
    X, a = noise(1, 40, 5), torch.rand(40, generator=torch.Generator().manual_seed(1))
    H, weight = torch.zeros(1, 5, 5), 0.0
    for start in range(0, 40, 8):
        weight = hessian.accumulate(H, weight, X[:, start : start + 8].bfloat16(), a[start : start + 8])
    X = X.bfloat16().double()[0]
    assert weight == pytest.approx(float(a.sum()))
    assert torch.allclose(H[0].double(), (X.T * a) @ X / a.double().sum(), atol=1e-6)


@pytest.mark.parametrize("i", [5, 300])
def test_factor_of_the_inverse(i):
    X = correlated(2 * i, i, seed=i)
    H = gram(X)[0]
    U, dead = hessian.inverse_factor(H, 0.01)
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(i)
    assert not dead.any()
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.double().T @ U.double() @ damped, torch.eye(i).double(), atol=1e-3)


def test_damping_grows_until_the_factorisation_succeeds_or_says_so():
    H = torch.diag(torch.tensor([4.0, 3.0, 2.0, -0.2]))  # not positive definite: needs lambda > 0.2, mean is 2.2
    L, _ = hessian.cholesky(H, 0.01)
    assert torch.allclose((L @ L.T).diagonal() - H.diagonal(), torch.full((4,), 0.1 * 2.2), atol=1e-5)
    with pytest.raises(ValueError, match="not positive definite"):
        hessian.cholesky(torch.diag(torch.tensor([1.0, 1.0, -90.0])), 0.01)
    with pytest.raises(ValueError, match="zero"):
        hessian.cholesky(torch.zeros(3, 3), 0.01)
    with pytest.raises(ValueError, match="finite"):
        hessian.cholesky(torch.full((3, 3), torch.nan), 0.01)


# --- OBS, single weights


def test_obs_compensates_one_weight_by_least_squares():
    """One weight goes: those to its left stay as they were, those to its right solve least squares."""
    X = correlated(60, 5, seed=9)
    W = noise(1, 5)
    removed, new = obs.prune_weights(W, gram(X), 1, damping=1e-6)
    j = int(removed.flatten().nonzero())
    # Columns left of j are frozen: least squares over those to the right, the rest as it was.
    target = X.double() @ W[0].double() - X[:, :j].double() @ W[0, :j].double()
    right = torch.linalg.lstsq(X[:, j + 1 :].double(), target[:, None]).solution.flatten()
    assert torch.equal(new[0, :j], W[0, :j])
    assert new[0, j] == 0
    assert torch.allclose(new[0, j + 1 :].double(), right, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_obs_costs_are_those_of_brute_force(seed):
    """(W_j / U_jj)^2 equals the least squares error of dropping column j with the columns before it frozen."""
    i = 6
    X, w = correlated(50, i, seed), noise(i, seed=seed)
    lambda_ = 0.01 * float(gram(X)[0].diagonal().mean())
    U, _ = hessian.inverse_factor(gram(X)[0], 0.01)
    H = gram(X)[0].double() + lambda_ * torch.eye(i)
    for j in range(i):
        right = H[j:, j:]  # the frozen columns have no error, so theirs do not enter
        delta = torch.zeros(i - j, dtype=torch.float64)
        delta[0] = -w[j]
        if j + 1 < i:
            delta[1:] = torch.linalg.solve(right[1:, 1:], right[1:, 0] * w[j])
        assert float((w[j] / U[j, j]).square()) == pytest.approx(float(delta @ right @ delta), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_obs_update_is_optimal_for_a_prefix_mask(seed):
    """If the removed columns come first, freezing costs nothing: the sweep must reach the least squares optimum."""
    X, W = correlated(80, 8, seed), noise(3, 8, seed=seed)
    gone = torch.zeros(3, 8, dtype=torch.bool)
    gone[:, :3] = True
    _, new = obs.prune_weights(W, gram(X), 9, gone=gone)
    lambda_ = 0.01 * float(gram(X)[0].diagonal().mean())
    for o in range(3):
        best, _ = best_error(W[o], list(range(3, 8)), X, lambda_)
        assert torch.allclose(new[o].double(), best, atol=1e-3)


def test_obs_identities():
    X, W = correlated(80, 8, 0), noise(4, 8)
    removed, new = obs.prune_weights(W, gram(X), 0)
    assert not removed.any()
    assert torch.equal(new, W)
    # H = I: nothing can be made up for, what remains is magnitude within the block, and no weight changes.
    W = noise(20, 256)
    removed, new = obs.prune_weights(W, torch.eye(256)[None], 2560, damping=0.0)
    for block in (slice(0, 128), slice(128, 256)):
        assert torch.equal(removed[:, block], lowest([W[:, block].abs()], 1280)[0])
    assert torch.allclose(new, W.masked_fill(removed, 0))
    removed, _ = obs.prune_n_m(W, torch.eye(256)[None], 2, 4, damping=0.0)
    assert torch.equal(removed, lowest_per_row(W.abs().reshape(-1, 4), 2).reshape(W.shape))


@pytest.mark.parametrize("k", [200, 1200, 2000])
def test_obs_in_blocks_equals_the_plain_sweep(k):
    X, W = correlated(600, 300, k), noise(8, 300)
    removed, new = obs.prune_weights(W, gram(X), k)
    check_sweep(W, X, removed, new, period=128, rows_apart=False)


@pytest.mark.parametrize("k", [1, 777, 1000, 2399, 2400])
def test_obs_removes_exactly_k_whatever_the_ties(k):
    W = noise(8, 300).mul(2).round().bfloat16()
    removed, new = obs.prune_weights(W, gram(correlated(600, 300, 1)), k)
    assert int(removed.sum()) == k
    assert new.dtype == torch.bfloat16
    assert (new[removed] == 0).all()
    assert is_positive_zero(new)
    with pytest.raises(ValueError, match="cannot remove"):
        obs.prune_weights(W, gram(correlated(600, 300, 1)), 2401)


def test_obs_keeps_removed_weights_removed_in_later_rounds():
    X, W = correlated(600, 300, 2), noise(8, 300)
    first, once = obs.prune_weights(W, gram(X), 600)
    second, twice = obs.prune_weights(once, gram(X), 601, gone=first)
    assert int(second.sum()) == 601
    assert (second | first).equal(second)
    skewed = torch.zeros(8, 300, dtype=torch.bool)
    skewed[:, 256:] = True  # all that is gone lies in the last block, more than its share
    third, _ = obs.prune_weights(W, gram(X), 400, gone=skewed)
    assert int(third.sum()) == 400
    assert third[skewed].all()
    third, _ = obs.prune_weights(W, gram(X), 400, gone=skewed.flip(1))  # and in the first
    assert int(third.sum()) == 400
    assert third[skewed.flip(1)].all()
    assert (twice[second] == 0).all()


def test_obs_on_columns_that_were_never_active():
    X = correlated(80, 8, 3)
    X[:, [1, 5]] = 0
    W = noise(4, 8)
    removed, new = obs.prune_weights(W, gram(X), 6)
    assert removed[:, [1, 5]].sum() == 6  # they cost nothing, so they go first
    kept = ~removed
    assert torch.equal(new[kept], W[kept])  # and nothing has to make up for them
    removed, (new,) = obs_units.prune_units([(W, gram(X)[0])], 1)
    assert removed.tolist() == [False, True, *[False] * 6]
    assert torch.equal(new, W.masked_fill(removed, 0))
    removed, (new,) = obs_units.prune_units([(W, gram(X)[0])], 3, width=2)
    assert (new[:, removed.repeat_interleave(2)] == 0).all()


def test_obs_writes_no_negative_zero():
    X, W = correlated(80, 8, 3), noise(4, 8)
    X[:, 6:], W[:, 6:], W[1:3] = 0, -0.0, -0.0  # columns that keep their weights, and some that are compensated
    H_gii = gram(X)
    for new in (
        obs.prune_weights(W, H_gii, 3)[1],
        obs.prune_n_m(W, H_gii, 3, 4)[1],
        obs_units.prune_units([(W, H_gii[0])], 1)[1][0],
    ):
        assert int((new == 0).sum()) >= 8
        assert is_positive_zero(new)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 5), (10, 48), (10, 100), (100, 200)])
def test_obs_n_m_is_legal_in_every_group_and_equals_the_plain_sweep(n, m):
    i = 400 if m in (5, 100, 200) else 192
    X, W = correlated(600, i, 4), noise(6, i)
    removed, new = obs.prune_n_m(W, gram(X), n, m)
    check_sweep(W, X, removed, new, period=m, rows_apart=True)
    assert (removed.reshape(-1, m).sum(1) == m - n).all()
    assert torch.equal(new == 0, removed)
    assert is_positive_zero(new)


def test_reconstruction_error_obs_below_wanda_below_magnitude():
    """The same number of weights gone; inputs correlated and of different scales."""
    obs_wins = wanda_wins = 0
    for seed in range(20):
        X, W = correlated(500, 64, 10 * seed), noise(32, 64, seed=seed)
        _, by_obs = obs.prune_weights(W, gram(X), 1024)
        S = wanda.weight_scores(W, wanda.squares(X[None]), len(X))
        by_wanda = W.masked_fill(lowest_per_row(S, 32), 0)
        by_magnitude = W.masked_fill(lowest([W.abs()], 1024)[0], 0)
        errors = [error(W, new, X) for new in (by_obs, by_wanda, by_magnitude)]
        obs_wins += errors[0] < errors[1]
        wanda_wins += errors[1] < errors[2]
    assert (obs_wins, wanda_wins) == (20, 20)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_obs_of_a_convolution_equals_the_explicit_linear_layers(groups):
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    rows_gni = rows_of(conv, noise(6, 4, 8, 8))
    i = rows_gni.shape[2]
    H_gii = torch.zeros(groups, i, i)
    hessian.accumulate(H_gii, 0.0, rows_gni)
    removed, new = obs.prune_weights(conv.weight, H_gii, conv.weight.numel() // 2)
    W_goi = conv.weight.detach().reshape(groups, -1, i)
    for g in range(groups):
        one, new_one = obs.prune_weights(W_goi[g], gram(rows_gni[g]), W_goi[g].numel() // 2)
        assert torch.equal(one, removed.reshape(W_goi.shape)[g])
        assert torch.allclose(new_one, new.reshape(W_goi.shape)[g], atol=1e-5)


def test_obs_n_m_of_a_convolution_groups_channels_at_each_position():
    conv = nn.Conv2d(8, 4, (3, 2), groups=2)
    rows_gni = rows_of(conv, noise(6, 8, 8, 8))
    H_gii = torch.zeros(2, 24, 24)
    hessian.accumulate(H_gii, 0.0, rows_gni)
    removed, new = obs.prune_n_m(conv.weight, H_gii, 2, 4)
    assert (removed.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()
    assert torch.equal(new == 0, removed)
    for g in range(2):  # each group is the linear layer with its channels last
        mine = slice(2 * g, 2 * g + 2)
        last_first = rows_gni[g].unflatten(1, (4, 6)).mT.flatten(1)
        W = conv.weight[mine].detach().movedim(1, -1).flatten(1)
        one, new_one = obs.prune_n_m(W, gram(last_first), 2, 4)
        assert torch.equal(one, removed[mine].movedim(1, -1).flatten(1))
        assert torch.allclose(new_one, new[mine].detach().movedim(1, -1).flatten(1), atol=1e-5)


# --- OBS, whole units


def unit_errors(W, H, width, damping=0.01):
    L, _ = hessian.cholesky(H, damping)
    return obs_units.unit_errors(W, torch.cholesky_inverse(L), width)


@pytest.mark.parametrize("width", [1, 3])
def test_unit_errors_and_compensation_are_least_squares(width):
    X, W = correlated(200, 12, 5), noise(4, 12)
    H = gram(X)
    lambda_ = 0.01 * float(H[0].diagonal().mean())
    errors = unit_errors(W, H[0], width)
    units = 12 // width
    for u in range(units):
        kept = [j for j in range(12) if j // width != u]
        assert float(errors[u]) == pytest.approx(sum(best_error(w, kept, X, lambda_)[1] for w in W), rel=2e-3)
    removed, (new,) = obs_units.prune_units([(W, H[0])], 2, width)
    assert int(removed.sum()) == 2
    kept = (~removed.repeat_interleave(width)).nonzero().flatten().tolist()
    for o in range(4):
        assert torch.allclose(new[o].double(), best_error(W[o], kept, X, lambda_)[0], atol=2e-3)
    assert is_positive_zero(new)


def test_heads_one_by_one_are_the_greedy_choice():
    at_once = 0
    for seed in range(8):
        X, W = correlated(200, 24, seed), noise(5, 24, seed=seed)
        H = gram(X)[0]
        lambda_ = 0.01 * float(H.diagonal().mean())
        gone: list[int] = []
        for _ in range(3):  # brute force: the head whose removal leaves the smallest total error
            totals = {}
            for h in set(range(6)) - set(gone):
                kept = [j for j in range(24) if j // 4 not in (*gone, h)]
                totals[h] = sum(best_error(w, kept, X, lambda_)[1] for w in W)
            gone.append(min(totals, key=totals.get))
        removed, _ = obs_units.prune_units([(W, H)], 3, width=4)
        assert removed.nonzero().flatten().tolist() == sorted(gone)
        at_once += lowest([unit_errors(W, H, 4)], 3)[0].equal(removed)
    assert at_once < 8  # scores taken once would have chosen otherwise


def test_neurons_in_batches_beat_magnitude_and_stay_optimal_for_their_mask():
    X, W = correlated(900, 300, 7), noise(16, 300)
    H = gram(X)
    removed, (new,) = obs_units.prune_units([(W, H[0])], 150)  # batches of 64, 64, 22
    assert int(removed.sum()) == 150
    columns = W.square().sum(0)
    assert error(W, new, X) < 0.5 * error(W, W.masked_fill(lowest([columns], 150)[0], 0), X)
    lambda_ = 0.01 * float(H[0].diagonal().mean())
    best, _ = best_error(W[0], (~removed).nonzero().flatten().tolist(), X, lambda_)
    assert torch.allclose(new[0].double(), best, atol=5e-3)


def test_units_gone_before_count_and_stay():
    X, W = correlated(200, 12, 8), noise(4, 12)
    first, (once,) = obs_units.prune_units([(W, gram(X)[0])], 3)
    X[:, first] = 0  # a masked unit puts out nothing
    second, (twice,) = obs_units.prune_units([(once, gram(X)[0])], 5, gone=first)
    assert int(second.sum()) == 5
    assert second[first].all()
    assert (twice[:, second] == 0).all()
    same, (unchanged,) = obs_units.prune_units([(once, gram(X)[0])], 3, gone=first)
    assert torch.equal(same, first)
    assert torch.equal(unchanged, once)
    with pytest.raises(ValueError, match="cannot remove"):
        obs_units.prune_units([(W, gram(X)[0])], 13)


def test_joint_attention_removes_the_same_heads_from_both_streams():
    X, Y, W, V = correlated(200, 12, 9), correlated(90, 12, 10), noise(5, 12), noise(7, 12, seed=1)
    removed, (new_W, new_V) = obs_units.prune_units([(W, gram(X)[0]), (V, gram(Y)[0])], 2, width=3)
    gone = removed.repeat_interleave(3)
    assert int(removed.sum()) == 2
    assert (new_W[:, gone] == 0).all()
    assert (new_V[:, gone] == 0).all()
    assert error(W, new_W, X) < error(W, W.masked_fill(gone, 0), X)
    assert error(V, new_V, Y) < error(V, V.masked_fill(gone, 0), Y)


def test_fused_ranks():
    fused = obs_units.fuse_ranks([torch.tensor([3.0, 1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0])])
    plain = [-(1 / 63 + 1 / 61), -(1 / 61 + 1 / 63), -(1 / 62 + 1 / 62)]
    assert fused.tolist() == pytest.approx(plain, abs=1e-15)
    assert fused[0] == fused[1]  # a tie: the lower index goes first


# --- OBS-Diff


@pytest.mark.parametrize("strategy", obs_diff.STRATEGIES)
def test_timestep_weights(strategy):
    a = obs_diff.timestep_weights(25, strategy)
    if strategy == "uniform":
        assert torch.equal(a, torch.ones(25))
        return
    assert float(a.min()) == pytest.approx(0.8)
    assert float(a.max()) == pytest.approx(1.2)
    rising = bool((a.diff() > 0).all())
    assert rising == strategy.endswith("increase")
    assert rising or (a.diff() < 0).all()
    if strategy == "log-decrease":
        tau = torch.arange(25)
        assert torch.allclose(a, 0.8 + 0.4 * torch.log(25.0 - tau) / torch.log(torch.tensor(25.0)))


def test_timestep_weights_of_bad_or_single_steps():
    assert torch.equal(obs_diff.timestep_weights(1), torch.ones(1))
    with pytest.raises(ValueError, match="log-decrease"):
        obs_diff.timestep_weights(5, "cosine")


def test_weighted_accumulation_counts_samples_by_their_step():
    X_bni, a_b = noise(3, 4, 5), torch.tensor([1.2, 1.0, 0.8])
    H, weight = torch.zeros(1, 5, 5), 0.0
    weight = hessian.accumulate(H, weight, linear_rows(X_bni), a_b.repeat_interleave(4))
    weight = hessian.accumulate(H, weight, linear_rows(X_bni[:1]), torch.full((4,), 0.5))
    plain = sum(a * x.T @ x for a, x in zip((*a_b, 0.5), (*X_bni, X_bni[0]), strict=True)) / (4 * 3.5)
    assert weight == pytest.approx(4 * 3.5)
    assert torch.allclose(H[0], plain, atol=1e-6)


@pytest.mark.parametrize(("n", "count"), [(10, 4), (4, 4), (3, 4), (0, 4), (23, 5), (7, 1)])
def test_packages_are_contiguous_and_even(n, count):
    cut = obs_diff.packages(range(n), count)
    assert [item for package in cut for item in package] == list(range(n))
    sizes = [len(package) for package in cut]
    assert sizes == sorted(sizes, reverse=True)
    assert len(cut) == min(n, count)
    assert not sizes or sizes[0] - sizes[-1] <= 1


# --- heads, energy, blocks


def test_head_gradient_equals_autograd_on_explicit_gates():
    torch.manual_seed(0)
    b, n, h, d = 3, 5, 4, 6
    out = nn.Linear(h * d, 7)
    A, target = noise(b, n, h * d), noise(b, n, 7, seed=1)
    gates = torch.ones(b, h, requires_grad=True)  # one a sample, so that E_x |.| can be read off
    ((out(A * gates.repeat_interleave(d, 1)[:, None]) - target).square().sum()).backward()
    leaf = A.clone().requires_grad_()
    ((out(leaf) - target).square().sum()).backward()
    gradients = head_gradient.gate_gradients(leaf, leaf.grad, h)
    assert torch.allclose(gradients, gates.grad, rtol=1e-4, atol=1e-4)
    scores = head_gradient.head_scores(gradients.abs().sum(0), b)
    plain = gates.grad.abs().mean(0)
    assert torch.allclose(scores, plain / plain.norm(), rtol=1e-4)
    assert torch.equal(head_gradient.head_scores(torch.zeros(h), b), torch.zeros(h))


@pytest.mark.parametrize("width", [1, 4])
def test_output_energy_is_the_rise_when_a_unit_is_removed_alone(width):
    A, W = correlated(300, 12, 11), noise(5, 12)
    S_u = output_energy.unit_scores(W, gram(A)[0], width)
    for u in range(12 // width):
        without = W.clone()
        without[:, u * width : (u + 1) * width] = 0
        assert float(S_u[u]) == pytest.approx(error(W, without, A), rel=1e-4)
    assert (unit_errors(W, gram(A)[0], width, damping=1e-4) <= S_u * 1.01).all()  # compensation only helps


def test_block_influence():
    text, image = noise(2, 5, 16), noise(2, 9, 16, seed=1)
    text[0, 0] = 0
    running = [block_influence.cosines(x, x) for x in (text, image)]
    assert block_influence.block_influence(*map(sum, zip(*running, strict=True))) == 0  # the identity, exactly
    new_text, new_image = text + noise(2, 5, 16, seed=2), image * 3
    running = [block_influence.cosines(text, new_text), block_influence.cosines(image, new_image)]
    cosines = torch.cat([nn.functional.cosine_similarity(text, new_text, -1).flatten(), torch.ones(18)])
    assert block_influence.block_influence(*map(sum, zip(*running, strict=True))) == pytest.approx(
        1 - float(cosines.mean()), abs=1e-6
    )
    assert block_influence.block_influence(*block_influence.cosines(image, -image)) == pytest.approx(2)
    with pytest.raises(ValueError, match="tokens"):
        block_influence.block_influence(0.0, 0)


# --- permutation


def test_permutation_never_loses_magnitude_and_is_reproducible():
    gained = 0
    for seed in range(6):
        W = noise(12, 16, seed=seed) * noise(16, seed=seed + 50).exp()
        order = n_m_permutation.search(W, 2, 4, escapes=10, seed=seed)
        assert torch.equal(order.sort().values, torch.arange(16))
        assert torch.equal(order, n_m_permutation.search(W, 2, 4, escapes=10, seed=seed))
        before, after = n_m_permutation.retained(W, 2, 4), n_m_permutation.retained(W[:, order], 2, 4)
        assert after >= max(before, n_m_permutation.retained(W[:, n_m_permutation.search(W, 2, 4, 0)], 2, 4))
        gained += after > before
        kept = W[:, order].masked_fill(lowest_n_m(W[:, order].abs(), 2, 4), 0)
        assert float(kept.abs().sum()) == pytest.approx(after, rel=1e-5)
    assert gained == 6
    assert torch.equal(n_m_permutation.search(W[:, :4], 2, 4), torch.arange(4))


def test_permutation_finds_the_best_order_of_two_groups():
    """Two groups of four: brute force over the 35 ways to split eight columns."""
    found = 0
    for seed in range(10):
        W = noise(6, 8, seed=seed)
        splits = [[0, *rest] for rest in combinations(range(1, 8), 3)]
        orders = [split + [j for j in range(8) if j not in split] for split in splits]
        best = max(n_m_permutation.retained(W[:, order], 2, 4) for order in orders)
        order = n_m_permutation.search(W, 2, 4, escapes=20, seed=seed)
        assert n_m_permutation.retained(W[:, order], 2, 4) <= best + 1e-4
        found += n_m_permutation.retained(W[:, order], 2, 4) >= best - 1e-4
        greedy, escaped = (n_m_permutation.search(W, 2, 4, escapes, seed) for escapes in (0, 1))
        assert n_m_permutation.retained(W[:, escaped], 2, 4) >= n_m_permutation.retained(W[:, greedy], 2, 4)
    assert found == 10


def test_permutation_keeps_the_function():
    torch.manual_seed(0)
    up, down, x = nn.Linear(6, 16), nn.Linear(16, 5), noise(9, 6)
    y = down(torch.nn.functional.gelu(up(x)))
    order = n_m_permutation.search(down.weight, 2, 4, escapes=5)
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(x @ up.weight[order].T + up.bias[order])
        assert torch.allclose(hidden @ down.weight[:, order].T + down.bias, y, atol=1e-6)


# --- learned gates


def test_hard_concrete_gates_repeat_under_stored_noise():
    logits = torch.full((2000,), 0.5, requires_grad=True)
    u = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    u[:2] = torch.tensor([0.0, 1.0])
    z = learned.hard_concrete(logits, u)
    assert torch.equal(z, learned.hard_concrete(logits, u))
    assert torch.isfinite(z).all()
    assert (z == 0).any()
    assert (z == 1).any()
    assert ((z > 0) & (z < 1)).any()
    z.sum().backward()
    inside = (z > 0) & (z < 1)
    s = (z.detach() + 0.1) / 1.2
    assert torch.allclose(logits.grad[inside], (1.2 * s * (1 - s) / 0.83)[inside], rtol=1e-3)
    assert (logits.grad[~inside] == 0).all()
    # P(z = 0) = sigmoid(0.83 ln(0.1 / 1.1) - lambda), Louizos et al., section 2.2
    p_zero = torch.sigmoid(0.83 * torch.log(torch.tensor(0.1 / 1.1)) - 0.5)
    assert float((z == 0).float().mean()) == pytest.approx(float(p_zero), abs=0.02)


def test_checkpointed_recomputation_sees_the_same_mask():
    logits = torch.zeros(8, requires_grad=True)
    u = torch.rand(8, generator=torch.Generator().manual_seed(1))
    x = noise(3, 8)

    def loss(lambda_h: Tensor) -> Tensor:
        return (x * learned.hard_concrete(lambda_h, u)).square().sum()

    torch.utils.checkpoint.checkpoint(loss, logits, use_reentrant=False).backward()
    recomputed = logits.grad.clone()
    logits.grad = None
    loss(logits).backward()
    assert torch.equal(recomputed, logits.grad)


def test_gate_penalty_is_the_mean_over_layers_of_each_kind():
    logits = {"attention": [torch.tensor([2.0, -4.0]), torch.tensor([1.0])], "feed_forward": [torch.tensor([5.0])]}
    assert float(learned.gate_penalty(logits)) == pytest.approx((3 + 1) / 2 + 5)


def test_depth_gates_keep_n_of_m_and_pass_the_rest_through():
    patterns = learned.keep_patterns(2, 4)
    assert patterns.shape == (6, 4)
    assert (patterns.sum(1) == 2).all()
    assert len(patterns.unique(dim=0)) == 6
    logits = torch.full((6,), 0.02, requires_grad=True)
    u = torch.rand(50, 6, generator=torch.Generator().manual_seed(2))
    keep = learned.sample_keep(logits, patterns, u, tau=4.0)
    assert torch.equal(keep, learned.sample_keep(logits, patterns, u, tau=4.0))
    assert torch.equal(keep, keep.round())  # hard, exactly
    assert (keep.sum(1) == 2).all()
    assert len(keep.unique(dim=0)) > 1  # samples differ
    x, y = noise(50, 3, 5), noise(50, 3, 5, seed=1)
    out = learned.gated_block(x, y, keep[:, 0])
    assert torch.equal(out, torch.where(keep[:, 0].bool()[:, None, None], y, x))
    out.square().sum().backward()
    assert logits.grad.abs().sum() > 0
    with torch.no_grad():
        logits[3] += 1
    assert torch.equal(learned.decide(logits, patterns), patterns[3].bool())
    with pytest.raises(ValueError, match="keep"):
        learned.keep_patterns(5, 4)


def test_depth_gates_learn_which_block_matters():
    """Four blocks of which two halve the loss: the logits must find them."""
    patterns, logits = learned.keep_patterns(2, 4), torch.full((6,), 0.02, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(150):
        keep = learned.sample_keep(logits, patterns, torch.rand(16, 6, generator=generator), 4 - 3.9 * step / 150, 10.0)
        loss = ((keep @ torch.tensor([0.1, 1.0, 0.2, 2.0]) - 3) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert learned.decide(logits, patterns).tolist() == [False, True, False, True]
