"""Taylor: what the loss would change, to first order, if a weight became zero; and Diff-Pruning on top of it.

Weights (Molchanov et al. 2019, arXiv 1906.10771, section 3):  S_oi = |W_oi g_oi|    (squared there: the same order)
Units   (the same, as one joint removal):                      S_u  = |sum over w in u of w g|

Diff-Pruning (Fang et al. 2023, arXiv 2305.10924, section 4) chooses which time steps enter the gradient:
    g = sum_t alpha_t dL_t/dw,    alpha_t = 1[L_t / max_t L_t > T],    L_t = E ||eps - eps_theta(x_t, t)||^2
and its paper and the authors' two programs (VainF/Diff-Pruning, 71e922e) then score units in three ways:
    paper         S_u = sum over w in u of |w g|
    script        S_u = mean over coupled tensors of sum |w g|, divided by the group's mean        (ddpm_prune.py)
    experiments   S_u = sum (w g)^2 over matrices and kernels + sum |w g| over norm weights        (ddpm_exp/)
The script's scores are thus the paper's with mean 1 (averaging over tensors cancels) and compare only inside a group;
the other two also compare across groups of one model.

Deviations: the script adds the gradient of the step that ends its loop although alpha_t = 0 there; here it does not
enter. Both programs stop at the first step below the threshold, which equals alpha_t only while L_t falls with t (true
of noise prediction, not of flow matching or v-prediction): here losses come first, then alpha, then gradients.
The authors leave biases out; whoever wants their numbers passes no biases.

Noise: g is an estimate from some prompts, noises and time steps. |w g|, and its square, turn the noise of g into score:
where the true gradient is near zero, as it is for most weights of a trained model, the expected score still grows with
|w| and with the spread of g. Sums with signs over a unit average part of that away; sums of absolute values do not.
With few calibration prompts the order of close scores is therefore partly chance: use many, and trust an order that
another seed repeats.

Shapes: o outputs, i inputs, u units, t time steps, r the weights of one unit in one tensor.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

# A tensor, its accumulated gradient, the dimension along which it is cut (of length count * width).
Spans = Iterable[tuple[Tensor, Tensor, int]]


def contributing_steps(L_t: Tensor, T: float) -> Tensor:
    """alpha_t as booleans (t,): the steps whose loss is more than the fraction `T` of the largest one."""
    if not (torch.isfinite(L_t).all() and (L_t >= 0).all()):
        raise ValueError(f"losses of {tuple(L_t.shape)} time steps must be finite and not negative")
    return L_t > T * L_t.max()


def weight_scores(W: Tensor, g: Tensor) -> Tensor:
    """|W g| in fp32, same shape."""
    return (W.detach().float() * g.float()).abs()


def unit_scores(spans: Spans, count: int) -> Tensor:
    """S_u (u,): absolute sum over everything the unit owns. The signs inside a unit cancel, as in a joint removal."""
    return sum(wg_ur.sum(1) for wg_ur in _products(spans, count)).abs()


def diff_pruning_paper(spans: Spans, count: int) -> Tensor:
    """S_u (u,): sum of |w g|."""
    return sum(wg_ur.abs().sum(1) for wg_ur in _products(spans, count))


def diff_pruning_script(spans: Spans, count: int) -> Tensor:
    """S_u (u,): mean over tensors of sum |w g|, divided by its mean over the units (all zero stays zero)."""
    S_u = torch.stack([wg_ur.abs().sum(1) for wg_ur in _products(spans, count)]).mean(0)
    return S_u / S_u.mean().clamp_min(torch.finfo().tiny)


def diff_pruning_experiments(spans: Spans, count: int) -> Tensor:
    """S_u (u,): sum of (w g)^2 over matrices and kernels, of |w g| over tensors of one dimension (norm weights).

    The two kinds of terms have different units; so have they in the authors' code.
    """
    spans = list(spans)
    products = zip(spans, _products(spans, count), strict=True)
    return sum((wg_ur.abs() if tensor.ndim == 1 else wg_ur.square()).sum(1) for (tensor, _, _), wg_ur in products)


def _products(spans: Spans, count: int) -> Iterator[Tensor]:
    """w g of each tensor, (u, r) fp32 on the first tensor's device."""
    device = None
    for tensor, g, dim in spans:
        device = device or tensor.device
        yield (tensor.detach().float() * g.float()).movedim(dim, 0).reshape(count, -1).to(device)
