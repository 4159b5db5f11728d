"""Exactly k, whatever the ties."""

import pytest
import torch

from reference.select import count_to_remove, lowest, lowest_per_row, rounded_keep


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
