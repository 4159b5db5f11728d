"""Recovery: train what is left after a round of pruning.

Output distillation (Hinton et al. 2015, arXiv 1503.02531; for diffusion: BK-SDM, arXiv 2305.15798, equation 2):
    loss = || v_pruned(x_t, t, prompt) - v_dense(x_t, t, prompt) ||^2        (x_t, t: `embedded/objective.py`)
The dense model is asked anew at every step, so nothing is stored and no label is needed.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from reference.embedded.objective import ask
from reference.embedded.pipeline import EmbeddedPipeline


def distill(
    dense: EmbeddedPipeline,
    x: Tensor,
    prompts: list[str],
    steps: int,
    batch: int = 64,
    learning_rate: float = 3e-4,
    seed: int = 0,
    each_step: Callable[[], object] = lambda: None,
) -> Callable[[EmbeddedPipeline, int], None]:
    """A `recover` callback for `reference.prune`: `steps` AdamW steps after every round.

    `x` (n, 3, size, size) in [-1, 1] are the pictures, `prompts` their n names; `each_step` is called after each step.
    """
    teacher = copy.deepcopy(dense.denoiser).eval()
    x = dense.fold(x)

    def recover(pruned: EmbeddedPipeline, round_: int) -> None:
        g = torch.Generator().manual_seed(seed * 1000 + round_)
        model = pruned.denoiser
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,), generator=g)
            noised, timestep, _ = ask(pruned.scheduler, x[rows], g)
            with torch.no_grad():
                # One prompt in ten is empty, because guidance asks for the unconditional prediction as well.
                dropped = torch.rand(batch, generator=g) < 0.1
                names = ["" if d else prompts[r] for r, d in zip(rows.tolist(), dropped.tolist(), strict=True)]
                inputs = pruned.inputs(noised, timestep, *pruned.encode_prompt(names))
                v_dense = teacher(**inputs)[0]
            mse_loss(model(**inputs)[0], v_dense).backward()
            optimizer.step()
            optimizer.zero_grad()
            each_step()

    return recover
