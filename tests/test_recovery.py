"""Recovery: what is trained gets better, what is gone stays gone, and a killed run ends where it would have ended."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import nn

import reference
from reference.__main__ import main
from reference.conditioning import condition, encode, latent_shape, pack
from reference.embedded import load_embedded
from reference.embedded.models import build_text_encoder, build_tokenizer
from reference.embedded.objective import draw, pose
from reference.embedded.openmoji import catalogue, is_held_out, render
from reference.pictures import InMemory, read_folder
from reference.recover_folder import hold_zeros
from reference.recovery import Recipe, fit
from tests.svdquant_files import write_pipeline

NAMES = ["red heart", "pig face", "green apple", "star"]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one precision a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """16 drawings, captions beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = [(stem, name) for stem, name in catalogue() if not is_held_out(stem)][:16]
    for stem, name in rows:
        Image.fromarray(render(stem, 32)).save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text(name + "\n")
    return folder


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    """Half of the weights masked, a fifth of the heads cut; saved in fp32."""
    pipeline = load_embedded("openmoji-mmdit")
    reference.prune(pipeline, "head", 0.2)
    reference.prune(pipeline, "weight", 0.6)
    folder = tmp_path_factory.mktemp("models") / "pruned"
    reference.save_pruned(pipeline, folder)
    return folder


def recover(*arguments) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return main(["recover", *map(str, arguments)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(reference.load_pruned(folder).denoiser.named_parameters())


def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_bits(pruned, data, tmp_path, capsys):
    run = [pruned, "--data", data, "--steps", 20, "--batch", 4, "--checkpoint-every", 4, "--seed", 3]
    run += ["--learning-rate", 1e-4]
    assert recover(*run, "--out", tmp_path / "whole") == 0

    killed = [*run, "--out", tmp_path / "killed"]
    command = [sys.executable, "-m", "reference", "recover", *map(str, killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = tmp_path / "killed.checkpoint.pt"
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(torch.load(file, weights_only=True)["losses"])
    assert 4 <= done < 20
    assert not (tmp_path / "killed").exists()

    assert recover(*killed) == 2  # neither starts over nor goes on unasked
    assert recover(*killed, "--seed", 4, "--resume") == 2
    refusals = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "of a run that was stopped: add --resume, or delete it" in refusals[0]
    assert "is of a run with another seed: 3, now 4" in refusals[1]

    assert recover(*killed, "--resume") == 0
    whole, again = ((tmp_path / name / "transformer").glob("*.safetensors") for name in ("whole", "killed"))
    assert [file.read_bytes() for file in whole] == [file.read_bytes() for file in again]
    losses = [json.loads((tmp_path / n / "recovery.json").read_text())["losses"] for n in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 20
    assert not file.exists()
    before = (tmp_path / "killed" / "recovery.json").stat().st_mtime_ns
    assert recover(*killed, "--resume") == 0  # what is finished is not done again
    assert (tmp_path / "killed" / "recovery.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("loss", ["output", "feature"])
def test_distillation_from_the_command_line_lowers_the_loss_and_revives_nothing(pruned, data, tmp_path, loss):
    run = [pruned, "--data", data, "--steps", 12, "--batch", 8, "--learning-rate", 3e-4, "--out", tmp_path / "out"]
    assert recover(*run, "--loss", loss, "--dense", "openmoji-mmdit") == 0
    record = json.loads((tmp_path / "out" / "recovery.json").read_text())
    assert record["loss_last"] < 0.85 * record["loss_first"]
    before, after = weights(pruned), weights(tmp_path / "out")
    zeros = {name: w == 0 for name, w in before.items() if w.ndim > 1 and (w == 0).float().mean() > 0.3}
    assert len(zeros) > 30
    assert all((after[name][zero] == 0).all() for name, zero in zeros.items())
    assert {name: w.shape for name, w in after.items()} == {name: w.shape for name, w in before.items()}
    assert sum(not torch.equal(after[name], w) for name, w in before.items()) > 0.9 * len(before)


def memory(n: int = 8, size: int = 32) -> InMemory:
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return InMemory(x, [NAMES[i % 4] for i in range(n)])


def test_parts_of_a_step_add_up_to_the_step():
    """Gradient accumulation in four parts follows the whole step, rounding aside."""
    losses = []
    for parts in (1, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        pipeline = load_embedded("openmoji-mmdit")
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
        losses.append(fit(pipeline, None, memory(), Recipe(4, 8, 1e-3, "task"), accelerator))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ValueError, match="batch 6 does not divide by processes times accumulated parts, 4"):
        fit(pipeline, None, memory(), Recipe(1, 6, loss="task"), accelerator)


def test_mixed_precision_trains_fp32_weights_and_leaves_the_model_as_it_was():
    pipeline = load_embedded("openmoji-mmdit")
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    losses = fit(pipeline, None, memory(), Recipe(2, 4, 1e-4, "task"), accelerator)
    assert {p.dtype for p in pipeline.denoiser.parameters()} == {torch.float32}
    assert 0 < losses[0] < 4
    assert "forward" not in vars(pipeline.denoiser)
    assert copy.deepcopy(pipeline)("star", num_inference_steps=1, output_type="pt").images.dtype == torch.float32


def stable_diffusion(prediction: str = "epsilon") -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(NAMES)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=128, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = PNDMScheduler(prediction_type=prediction, skip_prk_steps=True)
    return StableDiffusionPipeline(
        vae, build_text_encoder(len(tokenizer)), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_latent_unet_is_asked_what_its_scheduler_noises(prediction):
    pipeline = stable_diffusion(prediction)
    pictures, g = memory(2, 16).x, torch.Generator().manual_seed(0)
    shape = latent_shape(pipeline, 2, 16, 16)
    e, t = draw(pipeline.scheduler, shape, g)
    z = encode(pipeline, pictures, torch.zeros(shape))
    mean = pipeline.vae.encode(pictures).latent_dist.mean
    assert torch.allclose(z, mean * pipeline.vae.config.scaling_factor, atol=1e-6)
    question, ddpm = pose(pipeline.scheduler, z, e, t), DDPMScheduler.from_config(pipeline.scheduler.config)
    assert torch.allclose(question.x, ddpm.add_noise(z, e, t), atol=1e-5)
    assert torch.allclose(question.v, e if prediction == "epsilon" else ddpm.get_velocity(z, e, t), atol=1e-5)
    call = condition(pipeline, pipeline.unet, ["star", "pig face"], 16, 16).at(question.x, question.timestep)
    assert torch.equal(call["timestep"], t)
    assert call["encoder_hidden_states"].shape == (2, 12, 128)
    assert pipeline.unet(**call)[0].shape == question.v.shape


def test_a_latent_unet_recovers_from_the_command_line(data, tmp_path):
    pipeline = stable_diffusion()
    reference.prune(pipeline, "neuron", 0.5)
    reference.save_pruned(pipeline, tmp_path / "pruned", storage="sparse")
    run = [tmp_path / "pruned", "--data", data, "--steps", 30, "--batch", 8, "--learning-rate", 3e-3]
    assert recover(*run, "--accumulate", 2) == 0
    record = json.loads((tmp_path / "pruned-recovered" / "recovery.json").read_text())
    assert (record["height"], record["pictures"]) == (16, 16)
    assert record["loss_last"] < record["loss_first"]
    assert type(reference.load_pruned(tmp_path / "pruned-recovered")) is StableDiffusionPipeline
    assert (tmp_path / "pruned-recovered" / "unet" / "sparse.safetensors").exists()  # packed as it came


def test_flux_packs_its_latents_and_counts_time_in_thousandths(tmp_path):
    pipeline = FluxPipeline.from_pretrained(write_pipeline(tmp_path / "flux"), use_safetensors=True)
    denoiser, factor = pipeline.transformer, pipeline.vae_scale_factor
    size = 4 * factor
    shape = latent_shape(pipeline, 2, size, size)
    z = encode(pipeline, torch.zeros(2, 3, size, size), torch.zeros(shape))
    e, s = draw(pipeline.scheduler, shape, torch.Generator().manual_seed(0))
    question = pose(pipeline.scheduler, z, e, s)
    call = condition(pipeline, denoiser, ["star", "pig face"], size, size)
    keywords = call.at(pack(pipeline, question.x), question.timestep)
    assert torch.allclose(keywords["timestep"], s, atol=1e-6)
    assert keywords["hidden_states"].shape == (2, 4, denoiser.config.in_channels)
    assert torch.equal(pipeline._unpack_latents(pack(pipeline, e), size, size, factor), e)


def test_the_shift_of_the_scheduler_moves_training_times():
    plain, shifted = (FlowMatchEulerDiscreteScheduler(shift=c) for c in (1.0, 3.0))
    times = [draw(s, torch.Size((64, 1, 1, 1)), torch.Generator().manual_seed(0))[1] for s in (plain, shifted)]
    assert torch.allclose(times[1], 3 * times[0] / (1 + 2 * times[0]))


def test_zeros_are_held_only_where_pruning_masked():
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=4,
    )  # fmt: skip
    bias = model.transformer_blocks[0].attn.to_q.bias
    nn.init.zeros_(bias)
    reference.prune(model, "neuron", 0.5)
    weight = model.transformer_blocks[0].attn.to_q.weight
    mask = hold_zeros(model)
    with torch.no_grad():
        bias.add_(1)
    mask()
    assert bias.eq(1).all()  # cut, nothing masked
    reference.prune(model, "weight", 0.5)
    zero, mask = weight == 0, hold_zeros(model)
    with torch.no_grad():
        weight.add_(1)
    mask()
    assert torch.equal(weight == 0, zero)
    assert bias.eq(1).all()


def test_metadata_captions_sizes_and_transparency(tmp_path):
    Image.new("RGBA", (40, 80), (0, 0, 0, 0)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "b.png")
    lines = [{"file_name": "b.png", "text": "black"}, {"file_name": "a.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    pictures = read_folder(tmp_path, 32, 32)
    assert pictures.captions == ["black", ""]
    x = pictures.read([0, 1])
    assert x.shape == (2, 3, 32, 32)
    assert (x[0] == -1).all()
    assert (x[1] == 1).all()


def bad_metadata(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": "c.png"}\n')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds no pictures (.png, "),
        (lambda folder: Image.new("RGB", (32, 31)).save(folder / "a.png"), "a.png has 32 x 31 pixels, training asks"),
        (lambda folder: (folder / "a.png").write_text("no"), "a.png cannot be read as a picture"),
        (bad_metadata, "metadata.jsonl:2: there is no picture"),
        (lambda folder: (folder / "metadata.jsonl").write_text("{}"), 'metadata.jsonl:1: no JSON object with a "file'),
    ],
)
def test_bad_pictures_end_in_one_line(pruned, tmp_path, capsys, make, message):
    make(tmp_path)
    assert recover(pruned, "--data", tmp_path, "--steps", 1, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "output"], "asks the dense model: give --dense, or --loss task"),
        (["--loss", "luck"], "loss is task, output or feature, not 'luck'"),
        (["--steps", "0"], "steps is a whole number from 1 on, not 0"),
        (["--learning-rate", "nan"], "learning_rate is a positive number, not nan"),
        (["--accumulate", "3", "--steps", "1"], "batch 16 does not divide by processes times accumulated parts, 3"),
        (["--size", "24"], "shape (16, 3, 32, 32), its VAE makes"),
    ],
)
def test_bad_settings_end_in_one_line(pruned, data, tmp_path, capsys, arguments, message):
    assert recover(pruned, "--data", data, "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_only_pruned_pipelines_are_taken(pruned, data, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    assert recover(data, "--data", data) == 2
    assert recover(pruned / "transformer", "--data", data, "--out", tmp_path / "out") == 2
    assert recover(pruned, "--data", data, "--out", tmp_path / "full") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "there is no pruning.json in it" in errors[0]
    assert "a lone SD3Transformer2DModel cannot be trained" in errors[1]
    assert "holds other files" in errors[2]
