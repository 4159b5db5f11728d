"""Train an embedded model from scratch: `python -m reference train openmoji-unet --steps 4000 --out FOLDER`.

    loss = || v_model(x_t, t, prompt) - v ||^2        (`objective.py` says what x_t, t and v are)

Drawings are shifted by up to one pixel; they are not mirrored, because many have a direction that their name does not
tell (back arrow, musical note, question mark). One prompt in ten is dropped for classifier-free guidance. The learning
rate is constant and falls linearly to zero over the last fifth: until then `--steps` may still be changed, and the run
is the one that the final number would have given.

What is saved is an exponential average of the weights, of the last record (one every 250 steps) at which the held-out
loss of that average was at most 1.1 times the lowest so far: later ones only remember their drawings better.
"""

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import mse_loss, pad
from tqdm import tqdm

from reference.embedded import on_device
from reference.embedded.models import SIZE, build_mmdit, build_unet
from reference.embedded.objective import ask
from reference.embedded.openmoji import catalogue, drawings
from reference.embedded.pipeline import EmbeddedPipeline

BUILDERS = {"openmoji-mmdit": build_mmdit, "openmoji-unet": build_unet}
BATCH, LEARNING_RATE, WARM_UP, COOL_DOWN, EMA, DROPPED_PROMPTS = 64, 6e-4, 200, 0.2, 0.999, 0.1
SHIFT = 1  # pixels
EVERY, TOLERANCE = 250, 1.1  # steps between records; the rule above
CHECKPOINT = 30  # seconds between check points


def loss_of(pipeline: EmbeddedPipeline, pictures: Tensor, prompts: list[str], generator: torch.Generator) -> Tensor:
    """The loss above, a scalar, for one batch of pictures (b, 3, 32, 32) in [-1, 1]."""
    x, timestep, v = ask(pipeline.scheduler, pipeline.fold(pictures), generator)
    with torch.autocast(x.device.type, torch.bfloat16):
        hidden, pooled = pipeline.encode_prompt(prompts)
        predicted = pipeline.denoiser(**pipeline.inputs(x, timestep, hidden, pooled))[0]
    return mse_loss(predicted.float(), v)


def held_out_loss(pipeline: EmbeddedPipeline, x: Tensor, prompts: list[str]) -> float:
    """The same loss on the drawings never trained on, with the same 4 draws of noise and time at every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return sum(loss_of(pipeline, x, prompts, generator).item() for _ in range(4)) / 4


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear to zero over the last fifth."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / (COOL_DOWN * steps))


def shifted(x_bchw: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to SHIFT pixels along both axes; what comes in is white."""
    size = x_bchw.shape[-1]
    canvas = pad(x_bchw, [SHIFT] * 4, value=1.0)
    corners = torch.randint(2 * SHIFT + 1, (len(x_bchw), 2), generator=generator).tolist()
    return torch.stack([c[:, i : i + size, j : j + size] for c, (i, j) in zip(canvas, corners, strict=True)])


def train(name: str, out: Path, steps: int, seed: int = 0, device: str = "cpu") -> EmbeddedPipeline:
    """Train for `steps` batches, resuming from `out`/checkpoint.pt if it exists; save the pipeline in bf16.

    All that is random is drawn on the CPU: on a GPU the model sees the same batches, times and noise.
    """
    torch.manual_seed(seed)
    names, x = drawings(SIZE)
    held_out_names, held_out_x = drawings(SIZE, held_out=True)
    pipeline = on_device(BUILDERS[name](prompt for _, prompt in catalogue()), device)
    x, held_out_x = x.to(device), held_out_x.to(device)
    modules: list[Module] = [pipeline.denoiser, pipeline.text_encoder]
    weights = [p for m in modules for p in m.parameters()]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)
    state: dict = {
        "step": 0,
        "seconds": 0.0,
        "curve": [],
        "losses": [],  # since the last record
        "weights": [p.detach() for p in weights],
        "ema": [p.detach().clone() for p in weights],
        "kept": [p.detach().clone() for p in weights],
        "kept_step": 0,
    }
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        _put(weights, state["weights"])
        state["weights"] = [p.detach() for p in weights]
        optimizer.load_state_dict(state.pop("optimizer"))
        generator.set_state(state.pop("generator").cpu())

    started = time.monotonic() - state["seconds"]
    saved = time.monotonic()
    bar = tqdm(total=steps, initial=state["step"], desc="train", unit="step")
    for step in range(state["step"], steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED_PROMPTS
        prompts = ["" if drop else names[row] for row, drop in zip(rows.tolist(), dropped.tolist(), strict=True)]
        loss = loss_of(pipeline, shifted(x[rows], generator), prompts, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(state["ema"], state["weights"], 1 - decay)
        state["losses"].append(loss.item())
        bar.update()
        state["step"] = step + 1
        if state["step"] % EVERY == 0 or state["step"] == steps:
            trained = [p.clone() for p in state["weights"]]
            _put(weights, state["ema"])
            held_out = held_out_loss(pipeline, held_out_x, held_out_names)
            _put(weights, trained)
            train_loss = sum(state["losses"]) / len(state["losses"])
            state["curve"].append({"step": state["step"], "train": train_loss, "held_out": held_out})
            state["losses"] = []
            if held_out <= TOLERANCE * min(record["held_out"] for record in state["curve"]):
                state["kept"], state["kept_step"] = [p.clone() for p in state["ema"]], state["step"]
            bar.set_postfix(loss=f"{train_loss:.4f}", held_out=f"{held_out:.4f}", kept=state["kept_step"])
        if time.monotonic() - saved >= CHECKPOINT or state["step"] == steps:
            saved = time.monotonic()
            state["seconds"] = saved - started
            torch.save(
                state | {"optimizer": optimizer.state_dict(), "generator": generator.get_state()},
                checkpoint.with_suffix(".tmp"),
            )
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    bar.close()

    _put(weights, state["kept"])
    record = {"seed": seed, "steps": steps, "batch": BATCH, "drawings": len(names)}
    record |= {"device": device, "seconds": round(state["seconds"])}
    record |= {key: state[key] for key in ("kept_step", "curve")}
    for module in modules:
        module.to(torch.bfloat16)
    pipeline.save_pretrained(out / "pipeline")
    (out / "pipeline" / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return pipeline


def _put(weights: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(weights, values, strict=True):
        p.data.copy_(value)
