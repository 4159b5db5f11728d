"""Block influence: a block that hardly turns its input matters little (ShortGPT, Men et al. 2024, arXiv 2403.03853).

    BI = 1 - E_tokens cos(x_in, x_out)        remove the lowest

Deviation for blocks with two streams (SD3, FLUX): the expectation is over the tokens of both, so each stream counts by
its number of tokens: at 1024 pixels FLUX has 4,096 of the picture and 512 of the text. Only two running sums are kept.

Shapes: d features; any number of leading dimensions (samples, tokens).
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def cosines(x_in: Tensor, x_out: Tensor) -> tuple[float, int]:
    """Sum over tokens of cos(x_in, x_out), and how many tokens: add both up over streams, batches and steps.

    A token that is left as it is counts 1 exactly, a zero token too.
    """
    cos = F.cosine_similarity(x_in.float(), x_out.float(), dim=-1)
    cos = torch.where((x_in == x_out).all(-1), 1.0, cos)
    return float(cos.double().sum()), cos.numel()


def block_influence(cosine_sum: float, tokens: int) -> float:
    """BI in [0, 2] from the running sums."""
    if tokens < 1:
        raise ValueError("block influence needs tokens, and none were seen")
    return 1 - cosine_sum / tokens
