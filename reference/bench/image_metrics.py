"""`--metrics fid,clip` of `python -m reference compare`: the large judges, for real pipelines and people with internet.

    fid     Frechet distance of Inception-v3 features (Heusel et al. 2017, arXiv 1706.08500, equation 6), by
            torchmetrics and torch-fidelity, whose weights are fetched at the first use
    clip    100 * cosine of the CLIP embeddings of picture and prompt, below 0 counted 0 (Hessel et al. 2021,
            arXiv 2104.08718, with w = 100 as torchmetrics has it), by transformers (torchmetrics 1.9 cannot read what
            the embedding functions of transformers 5 hand back)

FID shrinks as pictures become more: compare only values of the same n, and none of a few hundred with a paper's 5,000.
The embedded models are judged by their own small evaluator instead (`metrics.py`): Inception has seen no drawings.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reference.bench.metrics import interval

METRICS = ("fid", "clip")
CLIP = "openai/clip-vit-base-patch16"
BATCH = 16
LACKING = "--metrics fid needs torch-fidelity: pip install 'awesome-diffusion-pruning[metrics]'"


def parse(text: str) -> list[str]:
    """Names of metrics, separated by commas. Raises ValueError for unknown ones."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"--metrics knows {' and '.join(METRICS)}, not {name!r}")
    return names


def fid(pictures: Tensor, reference: Tensor, network: int | nn.Module = 2048) -> float:
    """FID of pictures (n, 3, height, width) uint8 to a reference of any size; `network`: features of Inception-v3.

    Another network that makes (b, features) of a uint8 batch serves as well. Raises ValueError without torch-fidelity.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        distance = FrechetInceptionDistance(feature=network)
    except ModuleNotFoundError:
        raise ValueError(LACKING) from None
    distance.set_dtype(torch.float64)
    for some, real in ((reference, True), (pictures, False)):
        for batch in some.split(BATCH):
            distance.update(batch, real=real)
    return distance.compute().item()


def clip_scores(pictures: Tensor, prompts: Sequence[str], load: Callable[[], tuple] | None = None) -> Tensor:
    """CLIP score (n,) of each picture (n, 3, height, width) uint8 and its prompt.

    `load` hands back a CLIP model and its processor; left out, `CLIP` from the hub. Raises OSError without internet.
    """
    model, processor = (load or _from_hub)()
    scores = []
    for first in range(0, len(prompts), BATCH):
        some = slice(first, first + BATCH)
        asked = {"text": list(prompts[some]), "images": list(pictures[some])}
        inputs = processor(**asked, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            found = model(**inputs)
        scores.append(100 * (found.image_embeds * found.text_embeds).sum(1))  # both of length 1
    return torch.cat(scores).clamp(min=0)


def _from_hub() -> tuple:
    from transformers import CLIPModel, CLIPProcessor

    return CLIPModel.from_pretrained(CLIP).eval(), CLIPProcessor.from_pretrained(CLIP)


def report(names: Sequence[str], dense: Tensor, pruned: Tensor, prompts: Sequence[str]) -> list[str]:
    """A line a number: dense and pruned pictures (n, 3, height, width) uint8 of the same prompts and noise."""
    lines = []
    if "fid" in names:
        lines.append(f"FID of the pruned pictures to the dense ones: {fid(pruned, dense):.3f}, n = {len(dense)} each")
    if "clip" in names:
        scores = {name: clip_scores(x, prompts) for name, x in (("dense", dense), ("pruned", pruned))}
        scores["pruned minus dense"] = scores["pruned"] - scores["dense"]
        for name, values in scores.items():
            found = interval(values)
            low, high = found["ci95"]
            lines.append(f"CLIP score, {name}: {found['value']:.2f} ({low:.2f} to {high:.2f}), n = {found['n']}")
    return lines
