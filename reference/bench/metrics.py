"""How good pictures are: like the dense model's, like the drawings, like the prompt. Each with an interval and a floor.

Shapes: s seeds of the starting noise, p prompts, pictures (s, p, 3, size, size) in [0, 1]; t steps of the sampler.
Pictures of one prompt are alike, so what is drawn again in the bootstrap is the prompt, with all its seeds.

The **noise floor** is the same metric between the dense model and itself from other seeds of noise: a pruned model
that scores like it is as far from the dense one as one random draw is from the next, so the metric tells no more.
"""

import numpy as np
import torch
from scipy import linalg, stats
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from reference.embedded.evaluator import Evaluator, ranks

BOOTSTRAPS = 2000
# Metrics of a picture beside the dense model's; of the dense model to itself they say nothing.
TO_DENSE = ("psnr", "ssim", "feature_cosine", "picture_error")


def interval(values: np.ndarray | Tensor) -> dict:
    """Mean over all values (s, p) or (p,), with a 95 % bootstrap interval over the p prompts.

    Without spread it is a point: of "never in 48 prompts" a bootstrap cannot say how often in the next 48.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    per_prompt, value = values.mean(0), float(values.mean())
    ci95 = [value, value]
    if np.ptp(per_prompt) > 0:
        again = stats.bootstrap((per_prompt,), np.mean, n_resamples=BOOTSTRAPS, method="percentile", rng=0)
        ci95 = [float(again.confidence_interval.low), float(again.confidence_interval.high)]
    return {"value": value, "ci95": ci95, "n": values.size, "prompts": values.shape[1], "seeds": values.shape[0]}


def psnr(pictures: Tensor, dense: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (s, p); identical pictures count 100 dB."""
    mse = (pictures - dense).square().flatten(2).mean(2).clamp_min(1e-10)
    return -10 * mse.log10()


def ssim(pictures: Tensor, dense: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, equation 13; Gaussian window of 11), (s, p)."""
    flat = (x.flatten(0, 1).double() for x in (pictures, dense))  # even areas would round away from 1 in fp32
    values = structural_similarity_index_measure(*flat, data_range=1.0, reduction="none")
    return values.reshape(pictures.shape[:2])


def features(evaluator: Evaluator, pictures: Tensor) -> Tensor:
    """The evaluator's 64 features of (..., 3, size, size)."""
    with torch.no_grad():
        return evaluator.image_features(pictures.flatten(0, -4)).unflatten(0, pictures.shape[:-3])


def fidelity(evaluator: Evaluator, pictures: Tensor, dense: Tensor) -> list[dict]:
    """PSNR, SSIM and feature cosine to the dense model's pictures of the same prompts from the same noise."""
    cosine = cosine_similarity(features(evaluator, pictures), features(evaluator, dense), dim=-1)
    values = {"psnr": psnr(pictures, dense), "ssim": ssim(pictures, dense), "feature_cosine": cosine}
    return [{"metric": metric} | interval(value) for metric, value in values.items()]


def kernel_distance(x_nf: Tensor, y_mf: Tensor, prompts: int) -> dict:
    """Kernel distance (Binkowski et al. 2018, arXiv 1801.01401, section 4) of n pictures to m drawings, by features.

    Unbiased squared MMD with k(a, b) = (<a, b> / f + 1)^3, for independent pictures: with several seeds, those of one
    prompt are alike, which lifts it a little, the dense model's as well. The interval is a bootstrap over the
    `prompts` (the last of the axes that x was flattened from) of the first-order terms of the estimate, for fixed
    drawings.
    """
    k = lambda a, b: ((a @ b.T) / a.shape[1] + 1) ** 3  # noqa: E731
    x, y = x_nf.double(), y_mf.double()
    n, m = len(x), len(y)
    k_xx, k_yy = k(x, x), k(y, y)
    near_own_n = (k_xx.sum(1) - k_xx.diagonal()) / (n - 1)
    near_drawn_n = k(x, y).mean(1)
    value = (near_own_n - 2 * near_drawn_n).mean() + (k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    terms = 2 * (near_own_n - near_drawn_n)
    return interval(((terms - terms.mean()) + value).reshape(-1, prompts))


def frechet_distance(x_nf: Tensor, y_mf: Tensor, prompts: int) -> dict:
    """Frechet distance (Heusel et al. 2017, arXiv 1706.08500, equation 6) between Gaussians fitted to the features.

        d = ||mu_x - mu_y||^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    It falls with n, so it is only compared at equal n; where features outnumber pictures most of it is that. The
    interval is how far values at this n spread, 1.96 standard deviations by the jackknife over the p prompts:
        var = (p - 1) / p * sum_i (d without prompt i - their mean)^2
    A bootstrap would not do: prompts that are drawn twice make n smaller still, and d larger by more than it spreads.
    """
    y = y_mf.double().numpy()
    mu_y, c_y = y.mean(0), np.cov(y, rowvar=False)
    spread, axes = linalg.eigh(c_y)
    s_y = axes * np.sqrt(np.clip(spread, 0, None)) @ axes.T  # C_y^(1/2); C_x C_y has the eigenvalues of s_y C_x s_y
    x_spf = x_nf.double().numpy().reshape(-1, prompts, x_nf.shape[1])

    def distance(x_spf: np.ndarray) -> float:
        x = x_spf.reshape(-1, x_spf.shape[2])
        c_x = np.cov(x, rowvar=False)
        root = np.sqrt(np.clip(linalg.eigvalsh(s_y @ c_x @ s_y), 0, None)).sum()
        return float(np.square(x.mean(0) - mu_y).sum() + np.trace(c_x) + np.trace(c_y) - 2 * root)

    value = distance(x_spf)
    without_p = np.array([distance(np.delete(x_spf, prompt, axis=1)) for prompt in range(prompts)])
    half = 1.96 * float(np.sqrt((prompts - 1) * without_p.var()))
    ci95 = [max(0.0, value - half), value + half]
    return {"value": value, "ci95": ci95, "n": len(x_nf), "prompts": prompts, "seeds": len(x_spf)}


def distance(evaluator: Evaluator, pictures: Tensor, drawings: Tensor) -> list[dict]:
    """Kernel and Frechet distance of pictures (s, p, ...) to drawings (m, 3, size, size), both in [0, 1]."""
    x, y = features(evaluator, pictures).flatten(0, 1), features(evaluator, drawings)
    prompts = pictures.shape[1]
    return [
        {"metric": "kernel_distance"} | kernel_distance(x, y, prompts),
        {"metric": "frechet_distance"} | frechet_distance(x, y, prompts),
    ]


def retrieval(evaluator: Evaluator, pictures: Tensor, prompts: list[str], gallery: list[str], split: str) -> list[dict]:
    """Share of pictures whose prompt is the first, and among the first 5, of all names of the gallery.

    `split` says whether the model under test was trained on these prompts: `seen` or `unseen`.
    """
    rank = ranks(evaluator, pictures.flatten(0, 1), prompts * len(pictures), gallery).reshape(pictures.shape[:2])
    return [{"metric": f"retrieval_top{k}_{split}"} | interval((rank < k).double()) for k in (1, 5)]


def paired(evaluator: Evaluator, pictures: Tensor, dense: Tensor, prompts: list[str], gallery: list[str]) -> list[dict]:
    """What pruning changed, prompt by prompt: pictures (s, p, ...) against the dense model's from the same noise.

    `retrieval_top5_seen_change` is the share of pictures whose name is among the first 5, minus the dense model's;
    `picture_error` the root of the mean squared difference of pixels, here for every prompt as well.
    """
    found_sp = [
        (ranks(evaluator, x.flatten(0, 1), prompts * len(x), gallery) < 5).double().reshape(x.shape[:2])
        for x in (pictures, dense)
    ]
    error_p = (pictures - dense).double().square().flatten(2).mean((0, 2)).sqrt()
    error = interval(error_p) | {"n": found_sp[0].numel(), "seeds": len(pictures)}
    return [
        {"metric": "retrieval_top5_seen_change"} | interval(found_sp[0] - found_sp[1]),
        {"metric": "picture_error"} | error | {"per_prompt": [round(e, 5) for e in error_p.tolist()]},
    ]


def prediction_errors(model: nn.Module, calls: list[tuple[dict, Tensor]], guidance: float) -> tuple[Tensor, Tensor]:
    """Squared errors of the guided prediction and squared norms of the dense one, both (t, s * p), on the CPU.

    `calls` are the dense model's own calls of its denoiser, so that the errors of one step do not carry to the next:
        err_t = sqrt( sum ||v_pruned - v_dense||^2 / sum ||v_dense||^2 )
    """
    wrong, total = [], []
    with torch.no_grad():
        for inputs, output in calls:
            v_dense, v_pruned = guided(output, guidance), guided(model(**inputs)[0], guidance)
            wrong.append((v_pruned - v_dense).square().flatten(1).sum(1))
            total.append(v_dense.square().flatten(1).sum(1))
    return torch.stack(wrong).cpu(), torch.stack(total).cpu()


def guided(output: Tensor, guidance: float) -> Tensor:
    """Both halves of a guided batch joined as the sampler does."""
    without, with_ = output.chunk(2)
    return without + guidance * (with_ - without)
