"""Training the embedded models: the question asked, the rule for what is kept, resuming, and the untrained UNet."""

import copy
import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch.nn.functional import mse_loss

import reference
from reference.embedded import train as training
from reference.embedded.models import SIZE, build_mmdit, build_unet
from reference.embedded.objective import ask
from reference.embedded.pipeline import EmbeddedPipeline
from reference.recovery import distill

NAMES = ["red heart", "pig face", "green apple", "star"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def unet() -> EmbeddedPipeline:
    torch.manual_seed(0)
    pipeline = build_unet(NAMES)
    pipeline.set_progress_bar_config(disable=True)
    for parameter in pipeline.unet.parameters():  # untrained zeros and ones would hide what cutting does
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=rng(parameter.numel()))
    return pipeline


@pytest.fixture
def few_drawings(monkeypatch):
    """8 random pictures to train on and 4 held out; records every 2 steps, check points always, batches of 4."""
    split = {
        False: (NAMES * 2, torch.rand(8, 3, SIZE, SIZE, generator=rng()) * 2 - 1),
        True: (NAMES, torch.rand(4, 3, SIZE, SIZE, generator=rng(1)) * 2 - 1),
    }
    monkeypatch.setattr(training, "drawings", lambda size, held_out=False: split[held_out])
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "EVERY", 2)
    monkeypatch.setattr(training, "CHECKPOINT", 0)


def test_v_prediction_asks_what_diffusers_answers(unet):
    scheduler = DDIMScheduler.from_config(unet.scheduler.config)
    x = torch.randn(16, 12, 4, 4, generator=rng(3))
    question = ask(unet.scheduler, x, rng())
    e = torch.randn(x.shape, generator=rng())  # the first draw of the same generator
    assert torch.allclose(question.x, scheduler.add_noise(x, e, question.timestep), atol=1e-5)
    assert torch.allclose(question.v, scheduler.get_velocity(x, e, question.timestep), atol=1e-5)
    assert question.timestep.min() < 300
    assert question.timestep.max() > 700


def test_flow_matching_asks_for_the_way_from_picture_to_noise():
    x = torch.randn(16, 3, 4, 4, generator=rng(3))
    question = ask(FlowMatchEulerDiscreteScheduler(), x, rng())
    e, s = torch.randn(x.shape, generator=rng()), question.timestep[:, None, None, None] / 1000
    assert torch.equal(question.v, e - x)
    assert torch.allclose(question.x - s * question.v, x, atol=1e-5)


@pytest.mark.parametrize("sampler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_right_answer_leads_back_to_the_picture(unet, sampler):
    """The shipped sampler and the faster one, given exact v at every step, end in the picture that was asked for."""
    x = torch.rand(2, 12, 16, 16, generator=rng()) * 1.6 - 0.8
    scheduler = sampler.from_config(unet.scheduler.config)
    scheduler.set_timesteps(8)
    now = torch.randn(x.shape, generator=rng(1))
    for t in scheduler.timesteps:
        squared = scheduler.alphas_cumprod[t]
        a, s = squared.sqrt(), (1 - squared).sqrt()
        now = scheduler.step((a * now - x) / s, t, now, return_dict=False)[0]  # v = (a x_t - x) / s
    assert (now - x).abs().max() < 0.01


@pytest.mark.parametrize(("granularity", "criterion"), [("channel", "taylor"), ("head", "output-energy")])
def test_criteria_that_look_at_data_calibrate_on_the_unet(unet, granularity, criterion):
    source = reference.Calibration(unet, NAMES[:2], steps=2)
    plan = reference.plan(unet, granularity, 0.4, criterion=criterion, calibration=source)
    first = reference.plan(unet, granularity, 0.4)
    assert [len(kept) for kept in plan.keep.values()] == [len(kept) for kept in first.keep.values()]
    assert any(not torch.equal(plan.keep[name], first.keep[name]) for name in plan.keep)


def test_folding_pixels_is_lossless(unet):
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=rng())
    assert unet.fold(pictures).shape == (2, 12, 16, 16)
    assert torch.equal(unet.unfold(unet.fold(pictures)), pictures)
    mmdit = build_mmdit(NAMES)
    assert torch.equal(mmdit.fold(pictures), pictures)


def test_the_unet_fits_in_12_megabytes_with_the_whole_vocabulary():
    pipeline = build_unet(f"word{i}" for i in range(1400))
    weights = [p for m in (pipeline.unet, pipeline.text_encoder) for p in m.parameters()]
    assert 11e6 < 2 * sum(p.numel() for p in weights) < 11.9e6


@pytest.mark.parametrize("granularity", ["head", "neuron", "channel", "weight", "2:4"])
def test_the_unet_can_be_pruned_and_comes_back_from_disk(unet, granularity, tmp_path):
    before = reference.units(unet, granularity)
    assert all(units.name.startswith("unet.") for units in before)
    keywords = {} if granularity == "2:4" else {"amount": 0.4}
    reference.prune(unet, granularity, **keywords)
    if granularity == "channel":
        assert {units.count for units in before} == {16}
        assert {units.count for units in reference.units(unet, "channel")} == {10}  # 6.4 of 16 rounds to 6 removed
    elif granularity == "head":
        assert {units.count for units in before} == {7}
        assert {units.count for units in reference.units(unet, "head")} == {4}
    drawn = unet("red heart", 2, generator=rng(), output_type="pt").images
    reference.save_pruned(unet, tmp_path / "pruned")
    loaded = reference.load_pruned(tmp_path / "pruned")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded("red heart", 2, generator=rng(), output_type="pt").images, drawn)


def test_distillation_brings_a_pruned_unet_nearer(unet):
    pictures = torch.rand(4, 3, SIZE, SIZE, generator=rng(2)) * 2 - 1
    question = ask(unet.scheduler, unet.fold(pictures), rng(5))
    inputs = unet.inputs(question.x, question.timestep, *(text.detach() for text in unet.encode_prompt(NAMES)))
    pruned = copy.deepcopy(unet)
    reference.prune(pruned, "weight", 0.8)

    def error() -> float:
        with torch.no_grad():
            return mse_loss(pruned.unet(**inputs)[0], unet.unet(**inputs)[0]).item()

    before = error()
    distill(unet, pictures, NAMES, steps=10, batch=4)(pruned, 1)
    assert error() < 0.7 * before


def test_the_learning_rate_does_not_know_the_number_of_steps_before_the_last_fifth():
    rates = [[training.learning_rate(step, steps) for step in range(steps)] for steps in (1000, 2000)]
    assert rates[0][:800] == rates[1][:800]
    assert rates[0][0] == pytest.approx(training.LEARNING_RATE / training.WARM_UP)
    assert rates[0][500] == training.LEARNING_RATE
    assert rates[0][900] == pytest.approx(training.LEARNING_RATE / 2)
    assert 0 < rates[0][-1] < 0.01 * training.LEARNING_RATE


def test_shifted_drawings_keep_what_does_not_leave_the_canvas():
    x = torch.full((50, 1, 6, 6), -1.0)
    moved = training.shifted(x, rng())
    white = (moved == 1).sum((1, 2, 3))
    assert set(white.tolist()) == {0, 6, 11}  # not moved, along one axis, along both
    assert moved.unique().tolist() == [-1, 1]


def test_a_resumed_run_is_the_uninterrupted_run(few_drawings, tmp_path):
    whole = training.train("openmoji-unet", tmp_path / "whole", 8, seed=3)

    checkpoint = tmp_path / "parts" / "checkpoint.pt"

    class Killed(Exception):
        pass

    save = torch.save

    def save_and_die(state, file):
        save(state, file)
        if state["step"] == 3:
            file.replace(checkpoint)
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save_and_die)
        with pytest.raises(Killed):
            training.train("openmoji-unet", tmp_path / "parts", 8, seed=3)
    again = training.train("openmoji-unet", tmp_path / "parts", 8, seed=3)
    for a, b in zip(whole.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(a, b)
    records = [json.loads((tmp_path / run / "pipeline" / "training.json").read_text()) for run in ("whole", "parts")]
    assert records[0]["curve"] == records[1]["curve"]
    assert [point["step"] for point in records[0]["curve"]] == [2, 4, 6, 8]


def test_the_last_average_within_a_tenth_of_the_best_is_kept(few_drawings, tmp_path, monkeypatch):
    averages = []

    def held_out(pipeline, x, prompts):
        averages.append(pipeline.denoiser.conv_in.weight.detach().clone())
        return [1.0, 0.80, 0.87, 0.89][len(averages) - 1]

    monkeypatch.setattr(training, "held_out_loss", held_out)
    pipeline = training.train("openmoji-unet", tmp_path, 8)
    record = json.loads((tmp_path / "pipeline" / "training.json").read_text())
    assert record["kept_step"] == 6  # 0.87 <= 1.1 * 0.80 < 0.89
    assert torch.equal(pipeline.unet.conv_in.weight, averages[2].to(torch.bfloat16))
    loaded = EmbeddedPipeline.from_pretrained(tmp_path / "pipeline")
    assert loaded.transformer is None
    assert loaded("red heart", 2, output_type="pt").images.shape == (1, 3, SIZE, SIZE)
