"""Exactly k, whatever the ties."""

import numpy as np
import pytest
import torch

from reference import select, threshold
from reference.select import count_to_remove, keep_highest, lowest, lowest_n_m, lowest_per_row, rounded_keep

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def stable_lowest(scores: list[torch.Tensor], k: int) -> torch.Tensor:
    """What `lowest` promises, in the plainest words: the first k of a stable sort of everything."""
    flat = torch.cat([s.flatten().float() for s in scores])
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[torch.argsort(flat, dim=0, stable=True)[:k]] = True
    return gone


@pytest.mark.parametrize("trial", range(60))
def test_lowest_equals_a_stable_sort(trial):
    g = torch.Generator().manual_seed(trial)
    sizes = torch.randint(1, 60, (4,), generator=g).tolist()
    scores = [torch.randn(n, generator=g) for n in sizes]
    if trial % 3 == 1:  # many ties, both zeros
        scores = [(s * 2).round() for s in scores]
    if trial % 3 == 2:  # subnormals to huge
        scores = [s * 10.0 ** torch.randint(-42, 38, s.shape, generator=g) for s in scores]
        scores = [s.nan_to_num(0, 3e38, -3e38) for s in scores]
    n = sum(sizes)
    k = int(torch.randint(0, n + 1, (1,), generator=g))
    gone = torch.cat([mask.flatten() for mask in lowest(scores, k)])
    assert torch.equal(gone, stable_lowest(scores, k))


def random_weights(trial: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights of every kind: Gaussian, few distinct values, every finite bit pattern, signed zeros, subnormals."""
    g = torch.Generator().manual_seed(trial)
    dtype, kind = DTYPES[trial % 4], trial // 4 % 5
    W = torch.randn(shape, generator=g)
    if kind == 1:
        W = (W * 2).round()
    if kind == 2:
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        info = torch.iinfo(integers)
        W = torch.randint(info.min, info.max, shape, generator=g, dtype=integers).view(dtype)
        W = torch.where(W.float().isfinite(), W, -0.0)
    if kind == 3:
        W = torch.where(W > 0, 0.0, -0.0)
    if kind == 4:
        W = W * torch.finfo(dtype).smallest_normal / 4
    return W.to(dtype)


@pytest.mark.parametrize("small_chunks", [False, True])
def test_no_weight_is_chosen_otherwise_than_by_a_stable_sort(small_chunks, monkeypatch):
    """300 times three tensors of every dtype; the second time in small chunks with brackets that miss."""
    if small_chunks:
        monkeypatch.setattr(threshold, "CHUNK", 64)
        monkeypatch.setattr(threshold, "SAMPLE", 4)
    for trial in range(300):
        g = torch.Generator().manual_seed(trial)
        weights = [random_weights(trial, (3, int(i))) for i in torch.randint(1, 99, (3,), generator=g)]
        if trial % 7 == 0:  # dtypes that differ compare as fp32
            weights[1] = weights[1].float()
        if trial % 11 == 0:
            weights[2] = torch.nn.Parameter(weights[2].T)  # not contiguous
        n = sum(W.numel() for W in weights)
        k = int(torch.randint(0, n + 1, (1,), generator=g))
        expected = stable_lowest([W.detach().abs() for W in weights], k)
        packed = [bits.numpy() for bits in keep_highest(weights, k)]
        kept = [np.unpackbits(bits, count=W.numel()) for bits, W in zip(packed, weights, strict=True)]
        assert [len(bits) for bits in packed] == [(W.numel() + 7) // 8 for W in weights]
        assert np.array_equal(np.concatenate(kept) == 0, expected.numpy()), trial
        signed = torch.cat([mask.flatten() for mask in lowest(weights, k)])
        assert torch.equal(signed, stable_lowest([W.detach() for W in weights], k)), trial


@pytest.mark.parametrize("amount", [0.3, 0.4999, 0.5, 0.5001, 0.8])
def test_a_key_that_half_of_all_share_takes_no_memory(amount, monkeypatch):
    """As when a pruned layer is pruned again: its zeros are counted, and under 1 % of the keys are kept."""
    W = torch.randn(1 << 21, generator=torch.Generator().manual_seed(0))
    W[torch.randperm(len(W), generator=torch.Generator().manual_seed(1))[: len(W) // 2]] = 0
    kept, right = [], threshold.tally
    monkeypatch.setattr(threshold, "tally", lambda *arguments: kept.append(right(*arguments)) or kept[-1])
    k = count_to_remove(amount, len(W))
    [packed] = keep_highest([W], k)
    stays = torch.from_numpy(np.unpackbits(packed.numpy(), count=len(W)))
    assert torch.equal(stays == 0, stable_lowest([W.abs()], k))
    assert sum(len(t.inside) for t in kept) < 0.01 * len(W)


def test_other_devices_choose_alike():
    """The torch path, run here on the CPU, against the NumPy path."""
    for trial in range(40):
        scores = [random_weights(trial, (5, 7)), random_weights(trial + 40, (9,))]
        k = 1 + trial
        same = zip(select._lowest_on_device(scores, k), lowest(scores, k), strict=True)
        assert all(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize("n_m", [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (5, 8), (2, 6), (8, 16)])
def test_every_group_loses_the_first_of_a_stable_sort(n_m, monkeypatch):
    n, m = n_m
    monkeypatch.setattr(threshold, "CHUNK", 64)
    for trial in range(40):
        W = random_weights(trial, (7, 3 * m))
        for magnitudes in (True, False):
            S = (W.abs() if magnitudes else W).float().reshape(-1, m)
            expected = torch.zeros_like(S, dtype=torch.bool)
            expected.scatter_(1, torch.sort(S, dim=1, stable=True).indices[:, : m - n], True)
            assert torch.equal(lowest_n_m(W, n, m, magnitudes), expected.reshape(W.shape)), (trial, magnitudes)


def test_groups_of_a_convolution_lie_along_its_inputs():
    W = torch.randn(3, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    gone = lowest_n_m(W, 2, 4, magnitudes=True)
    assert gone.shape == W.shape
    for o, y, x in [(0, 0, 0), (2, 1, 2)]:
        assert torch.equal(gone[o, :, y, x], lowest_n_m(W[o, :, y, x][None], 2, 4, magnitudes=True)[0])
    with pytest.raises(ValueError, match="8 inputs do not divide into groups of 3"):
        lowest_n_m(W, 2, 3)


def test_rows_lose_the_first_of_a_stable_sort():
    for trial in range(100):
        S = random_weights(trial, (6, 33))
        k = trial % 34
        expected = torch.zeros_like(S, dtype=torch.bool)
        expected.scatter_(1, torch.sort(S.float(), dim=1, stable=True).indices[:, :k], True)
        assert torch.equal(lowest_per_row(S, k), expected), trial


def test_k_is_exact_when_every_score_ties():
    masks = lowest([torch.ones(3, 5), torch.ones(4)], 16)
    assert [int(m.sum()) for m in masks] == [15, 1]
    assert masks[1].tolist() == [True, False, False, False]


def test_bf16_ties_do_not_overshoot():
    weights = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    k = count_to_remove(0.31, weights.numel())
    assert k == 10158
    assert int(lowest([weights.abs()], k)[0].sum()) == k
    threshold = weights.abs().flatten().float().kthvalue(k).values
    assert int((weights.abs().float() <= threshold).sum()) > k  # what a bare threshold would take


def test_rows_lose_k_each_and_ties_go_by_index():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0], [3.0, 2.0, 2.0, 9.0]])
    assert lowest_per_row(scores, 2).int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert int(lowest_per_row(scores, 0).sum()) == 0


@pytest.mark.parametrize(
    ("amount", "n", "k"), [(0.3, 5, 2), (0.5, 5, 3), (0.25, 10, 3), (0.3, 10, 3), (0, 7, 0), (0.999, 4, 4)]
)
def test_half_rounds_up(amount, n, k):
    assert count_to_remove(amount, n) == k


def test_not_finite_scores_are_refused():
    with pytest.raises(ValueError, match=r"scores\[1\].*not finite"):
        lowest([torch.ones(2), torch.tensor([1.0, float("nan")])], 1)
    for dtype in DTYPES:
        for value in (float("nan"), float("inf"), -float("inf"), -float("nan")):
            W = torch.ones(2, 8, dtype=dtype)
            W[1, 3] = value
            with pytest.raises(ValueError, match=r"scores\[1\], of shape \(2, 8\), holds values that are not finite"):
                keep_highest([W.clone().fill_(1), W], 1)
            with pytest.raises(ValueError, match=r"scores\[0\].*not finite"):
                lowest([W], 1)
            with pytest.raises(ValueError, match=r"scores\[0\].*not finite"):
                lowest_per_row(W, 1)
            with pytest.raises(ValueError, match=r"scores\[0\].*not finite"):
                lowest_n_m(W, 2, 4, magnitudes=True)


@pytest.mark.parametrize(
    ("keep", "width", "round_to", "min_keep", "kept"),
    [
        (2150, 3072, "auto", 1, 2176),  # nearest multiple of 64
        (700, 1000, "auto", 1, 700),  # narrow: as asked
        (5, 16, 4, 1, 4),
        (1, 16, 8, 1, 8),  # never below one tile
        (16, 16, 5, 1, 16),  # a group that loses nothing is left alone
        (0, 6, 1, 2, 2),
    ],
)
def test_rounding(keep, width, round_to, min_keep, kept):
    assert rounded_keep(keep, width, round_to, min_keep) == kept
