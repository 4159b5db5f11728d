"""Train an embedded model from scratch: `python -m reference train openmoji-mmdit --steps 6000 --out FOLDER`.

Rectified flow with logit-normal times (Esser et al. 2024, arXiv 2403.03206, section 3.1):
    x_s = (1 - s) x + s e,   e ~ N(0, I),   s = sigmoid(n), n ~ N(0, 1)
    loss = || v(x_s, s, prompt) - (e - x) ||^2
One prompt in ten is dropped for classifier-free guidance; the exponential average of the weights is what is saved.
"""

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import mse_loss
from tqdm import tqdm

from reference.embedded.models import SIZE, build_mmdit
from reference.embedded.openmoji import catalogue, drawings
from reference.embedded.pipeline import EmbeddedPipeline

BATCH, LEARNING_RATE, WARM_UP, EMA, DROPPED_PROMPTS = 128, 8e-4, 200, 0.9995, 0.1
EVERY = 250  # steps between check points, loss records and log lines


def flow_loss(pipeline: EmbeddedPipeline, x_bchw: Tensor, prompts: list[str], generator: torch.Generator) -> Tensor:
    """The loss above, a scalar, for one batch of pictures in [-1, 1]."""
    e = torch.randn(x_bchw.shape, generator=generator)
    s = torch.randn(len(x_bchw), generator=generator).sigmoid()
    s_b111 = s[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        hidden, pooled = pipeline.encode_prompt(prompts)
        v = pipeline.transformer(
            (1 - s_b111) * x_bchw + s_b111 * e,
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=s * 1000,
            return_dict=False,
        )[0]
    return mse_loss(v.float(), e - x_bchw)


def held_out_loss(pipeline: EmbeddedPipeline, x: Tensor, prompts: list[str]) -> float:
    """The same loss on the drawings never trained on, with the same 4 draws of noise and time at every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return sum(flow_loss(pipeline, x, prompts, generator).item() for _ in range(4)) / 4


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return LEARNING_RATE * warm * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())


def train(out: Path, steps: int, seed: int = 0) -> EmbeddedPipeline:
    """Train for `steps` batches of 128, resuming from `out`/checkpoint.pt if it exists; save the pipeline in bf16."""
    torch.manual_seed(seed)
    names, x = drawings(SIZE)
    held_out_names, held_out_x = drawings(SIZE, held_out=True)
    pipeline = build_mmdit(name for _, name in catalogue())
    modules: list[Module] = [pipeline.transformer, pipeline.text_encoder]
    weights = [p for m in modules for p in m.parameters()]
    ema = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)
    record: dict = {"seed": seed, "steps": steps, "batch": BATCH, "drawings": len(names), "curve": []}
    step, seconds = 0, 0.0

    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for p, saved in zip(weights, state["weights"], strict=True):
            p.data.copy_(saved)
        ema, step, seconds = state["ema"], state["step"], state["seconds"]
        record["curve"] = state["curve"]
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])

    losses: list[float] = []
    started = time.monotonic() - seconds
    bar = tqdm(total=steps, initial=step, desc="train", unit="step")
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED_PROMPTS
        prompts = ["" if drop else names[row] for row, drop in zip(rows.tolist(), dropped.tolist(), strict=True)]
        loss = flow_loss(pipeline, x[rows], prompts, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(ema, [p.detach() for p in weights], 1 - decay)
        losses.append(loss.item())
        step += 1
        bar.update()
        if step % EVERY == 0 or step == steps:
            held_out = held_out_loss(pipeline, held_out_x, held_out_names)
            record["curve"].append({"step": step, "train": sum(losses) / len(losses), "held_out": held_out})
            losses.clear()
            bar.set_postfix(loss=f"{record['curve'][-1]['train']:.4f}", held_out=f"{held_out:.4f}")
            state = {
                "weights": [p.detach() for p in weights],
                "ema": ema,
                "step": step,
                "seconds": time.monotonic() - started,
                "curve": record["curve"],
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    bar.close()

    for p, averaged in zip(weights, ema, strict=True):
        p.data.copy_(averaged)
    record["ema_held_out"] = held_out_loss(pipeline, held_out_x, held_out_names)
    record["seconds"] = round(time.monotonic() - started)
    for module in modules:
        module.to(torch.bfloat16)
    pipeline.save_pretrained(out / "pipeline")
    (out / "pipeline" / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return pipeline
