"""The founding note's API and script, as written, on a small FLUX.1 pipeline with 4-bit weights and on what ships."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

import reference
from reference import app_pruned, loaders, precision
from reference.pruning import METHODS, check_method, prune_by_method
from tests import svdquant_files as files
from tests.conftest import tiny_mmdit
from tests.zoo import make

HUB_NAME = "nunchaku-tech/nunchaku-flux.1-dev/svdq-fp4_r32-flux.1-dev.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:.*SVDQuant weights were dequantised")


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    """A folder with base/ and the two 4-bit files."""
    folder = tmp_path_factory.mktemp("flux")
    files.write_pipeline(folder / "base")
    files.write_flux(folder, nvfp4=False)
    files.write_flux(folder, nvfp4=True)
    return folder


@pytest.fixture
def hub(flux, monkeypatch):
    """The founding note's names, as if they had been downloaded: file and base repository lead to the small ones."""
    local = {
        ("nunchaku-tech/nunchaku-flux.1-dev", HUB_NAME.rpartition("/")[2]): flux
        / "svdq-fp4_r16-flux.1-dev.safetensors",
        ("black-forest-labs/FLUX.1-dev", "model_index.json"): flux / "base" / "model_index.json",
    }
    monkeypatch.setattr("reference.loaders.hub_file", lambda repo, path: local[repo, path])
    folders = {("black-forest-labs/FLUX.1-dev", ("transformer",)): flux / "base"}
    monkeypatch.setattr("reference.loaders.hub_folder", lambda repo, passed=(): folders[repo, passed])


def small_pictures(pipeline: FluxPipeline) -> FluxPipeline:
    """16 x 16 pixels by default instead of 128 x 128, so that 50 steps take a second."""
    pipeline.default_sample_size = 16
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_founding_notes_example_word_for_word(hub, tmp_path):
    from reference.pruning import apply_magnitude_pruning, create_pruned_pipeline

    pipeline = create_pruned_pipeline(
        model_path="nunchaku-tech/nunchaku-flux.1-dev/svdq-fp4_r32-flux.1-dev.safetensors",
        pruning_amount=0.3,
        method="magnitude",
    )
    report = pipeline.pruning_reports[0]
    assert report.unit_rate == pytest.approx(0.3, abs=1e-4)
    small_pictures(pipeline)
    image = pipeline("A beautiful landscape with mountains", num_inference_steps=50).images[0]
    image.save(tmp_path / "pruned_image.png")
    assert Image.open(tmp_path / "pruned_image.png").size == (16, 16)
    assert apply_magnitude_pruning(pipeline, 0.5).unit_rate == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("nvfp4", [False, True], ids=["int4", "nvfp4"])
def test_dequantise_prune_draw(flux, nvfp4):
    file = flux / f"svdq-{'fp4' if nvfp4 else 'int4'}_r16-flux.1-dev.safetensors"
    pipeline = reference.create_pruned_pipeline(file, 0.3, "magnitude", base_model=flux / "base")
    assert pipeline.transformer.dtype == torch.bfloat16
    for block in pipeline.transformer.transformer_blocks:
        weight = block.ff.net[2].weight
        k = int(0.3 * weight.numel() + 0.5)
        assert int((weight == 0).sum()) >= k  # 4-bit codes have zeros of their own
    image = small_pictures(pipeline)("a cat", num_inference_steps=2).images[0]
    assert len(set(image.getdata())) > 1


def test_prune_heads_as_the_note_writes_it(flux):
    from reference.pruning import prune_heads

    assert prune_heads is reference.prune_heads
    model = tiny_mmdit()
    prune_heads(model, {0: [0, 2], 2: [2, 3]})
    assert [block.attn.heads for block in model.transformer_blocks] == [2, 4, 2]


METHOD_GRANULARITIES = {
    "magnitude": ["weight"],
    "structured": ["neuron"],
    "iterative": ["weight"],
    "head": ["head"],
    "attention head": ["head"],
    "attention_head": ["head"],
    "Attention-Head": ["head"],
    "2:4": ["2:4"],
    "depth": ["block"],
    "random": ["weight"],
    "wanda": ["weight"],
    "output-energy": ["head"],
}


def test_every_method_is_tested():
    assert set(METHODS) <= set(METHOD_GRANULARITIES)


@pytest.mark.filterwarnings("ignore:2.4 removes half", "ignore:magnitude in 5 rounds")
@pytest.mark.parametrize("method", METHOD_GRANULARITIES)
def test_every_method_draws(method):
    calibration = ["red heart"] if method in ("wanda", "output-energy") else None
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", 0.4, method, calibration=calibration)
    assert [report.granularity for report in pipeline.pruning_reports] == METHOD_GRANULARITIES[method]
    asked = 0.5 if method == "2:4" else 0.4
    assert pipeline.pruning_reports[0].unit_rate == pytest.approx(asked, abs=0.1)  # 6 blocks, 5 heads: not every rate
    assert pipeline("red heart", num_inference_steps=1).images[0].size == (32, 32)


def test_structured_takes_neurons_and_channels_where_there_are_both():
    unet, _ = make("UNet2DConditionModel")
    reports = prune_by_method(unet, "structured", 0.5)
    assert [report.granularity for report in reports] == ["neuron", "channel"]
    assert all(report.model_rate > 0 for report in reports)


def test_a_calibration_is_run_on_the_loaded_pipeline():
    made_for = reference.create_pruned_pipeline("openmoji-mmdit", 0.0)
    calibration = reference.Calibration(made_for, ["red heart"], steps=2)
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", 0.3, "wanda", calibration=calibration)
    report = pipeline.pruning_reports[0]
    assert report.unit_rate == pytest.approx(0.3, abs=1e-4)
    # Wanda by its name is the paper's: every output row loses as many.
    layer = report.layers[0].name
    per_row = report.plan.removed(layer).flatten(1).sum(1)
    assert (per_row == int(0.3 * report.plan.shapes[layer][1] + 0.5)).all()


def test_nonsense_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("reference.loaders.load_pipeline", None)  # calling it would fail
    for message, keywords in {
        "unknown method 'heads'; choose magnitude, structured, .*wanda, or a criterion: .*obs-diff": {
            "method": "heads"
        },
        r"amount is a fraction in \[0, 1\), not 1.5": {"pruning_amount": 1.5},
        "unknown precision 'int4'; choose bf16, fp16": {"precision": "int4"},
        "fp8-compute needs a GPU": {"precision": "fp8-compute"},
        r"a list of prompts, not one string: \['red heart'\]": {"method": "wanda", "calibration": "red heart"},
    }.items():
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(ValueError, match=message):
            reference.create_pruned_pipeline("openmoji-mmdit", **keywords)
    with pytest.raises(reference.NeedsCalibration, match="method 'wanda' looks at data; give calibration"):
        reference.create_pruned_pipeline("openmoji-mmdit", method="wanda")


def test_iterative_says_that_rounds_need_training():
    model, at_once = tiny_mmdit(), tiny_mmdit()
    with pytest.warns(UserWarning, match="without training in between ends where one round ends"):
        prune_by_method(model, "iterative", 0.3)
    prune_by_method(at_once, "magnitude", 0.3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), at_once.parameters(), strict=True))


def test_two_four_says_that_its_rate_is_fixed():
    with pytest.warns(UserWarning, match="2:4 removes half of the weights; the amount 0.3 is ignored"):
        prune_by_method(tiny_mmdit(), "2:4", 0.3)
    assert check_method("2:4", 0.3) == [{"granularity": "2:4"}]


@pytest.mark.parametrize("asked", ["fp8", "fp8-storage"])
def test_fp8_storage_keeps_every_zero_and_draws(flux, asked, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = flux / "svdq-int4_r16-flux.1-dev.safetensors"
    plain = reference.create_pruned_pipeline(file, 0.3, base_model=flux / "base")
    pipeline = reference.create_pruned_pipeline(file, 0.3, base_model=flux / "base", precision=asked)
    name = "transformer_blocks.0.ff.net.2.weight"
    weight, stored = plain.transformer.get_parameter(name), pipeline.transformer.get_parameter(name)
    assert stored.dtype == torch.float8_e4m3fn
    assert not stored.float()[weight == 0].any()
    assert pipeline.pruning_reports[0].nonzero == plain.pruning_reports[0].nonzero
    assert pipeline.transformer.dtype == torch.bfloat16
    assert f"{asked}: float8 e4m3 storage only, bf16 multiplication, no speed-up" in pipeline.precision_note
    found = re.search(r"(\d+) of (\d+) layers in float8", pipeline.precision_note)
    float8, layers = (int(number) for number in found.groups())
    assert 0.8 * layers < float8 < layers  # the last projection and the embedders of diffusers' list stay
    pictures = [
        small_pictures(p)(
            "a", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for p in (plain, pipeline)
    ]
    assert 0 < abs(pictures[0] - pictures[1]).max() < 0.2


@pytest.mark.parametrize(
    ("gpu", "torchao", "meaning"),
    [
        (None, True, "storage only, bf16 multiplication, no speed-up (needs a GPU, and there is none)"),
        ((8, 0), True, "storage only, bf16 multiplication, no speed-up (needs a GPU from sm_89 on, this one is sm_80)"),
        ((9, 0), False, "storage only, bf16 multiplication, no speed-up (needs torchao (pip install torchao))"),
        ((9, 0), True, "weights and activations, multiplied in float8 by torchao"),
    ],
)
def test_fp8_means_what_the_machine_can_do(monkeypatch, gpu, torchao, meaning):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: gpu)
    monkeypatch.setattr(precision, "find_spec", lambda name: torchao or None)
    assert precision.resolve("fp8").meaning == f"fp8: float8 e4m3 {meaning}"
    if "storage" in meaning:
        with pytest.raises(ValueError, match=r"fp8-compute needs .*; fp8-storage works here"):
            precision.resolve("fp8-compute")
    else:
        assert precision.resolve("fp8-compute").quantise == "compute"


def run(arguments: str, capsys) -> tuple[int, str, str]:
    code = app_pruned.main(shlex.split(arguments))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_script_with_every_flag_of_the_note(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    picture = tmp_path / "new" / "cat.png"
    arguments = '--pruning_amount 0.5 --prompt "A cat wearing sunglasses" --precision fp8 --steps 3'
    code, out, err = run(f"{arguments} --method head --output {picture}", capsys)
    assert (code, [line for line in err.splitlines() if line.startswith("error")]) == (0, [])
    assert "head (cut): 60.0% of 30 units" in out  # 3 of 5 heads: half of 5 is not whole
    assert "fp8: float8 e4m3 storage only, bf16 multiplication, no speed-up (needs a GPU, and there is none)" in out
    assert Image.open(picture).size == (32, 32)
    assert [file.name for file in picture.parent.iterdir()] == ["cat.png"]


def test_script_without_arguments_prunes_a_third_of_what_ships(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("", capsys)
    assert code == 0
    assert "weight (cut): 30.0% of 5,196,800 units" in out
    assert "bf16: 16-bit weights and multiplication" in out
    assert Image.open(tmp_path / "pruned_image.png").size == (32, 32)


def test_script_on_a_4_bit_file_says_what_is_lost(flux, capsys, tmp_path, monkeypatch):
    load = loaders.load_pipeline
    monkeypatch.setattr(loaders, "load_pipeline", lambda *arguments: small_pictures(load(*arguments)))
    file = flux / "svdq-fp4_r16-flux.1-dev.safetensors"
    code, out, err = run(
        f"--model_path {file} --base_model {flux / 'base'} --steps 2 --output {tmp_path / 'a.png'}", capsys
    )
    assert code == 0
    assert "weight (cut): 30.0%" in out
    assert err.count("note: ") == 1
    assert "4-bit SVDQuant weights were dequantised to torch.bfloat16" in err
    assert Image.open(tmp_path / "a.png").size == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pruning_amount 2", "amount is a fraction"),
        ("--precision fp4", "unknown precision 'fp4'"),
        ("--method lottery", "unknown method 'lottery'"),
        ("--steps 0", "--steps is a whole number from 1 on"),
        ("--output picture.txt", "picture.txt is no png"),
        ("--model_path absent.safetensors", "there is no file absent.safetensors"),
        (f"--model_path {HUB_NAME}", "is not in the local cache and the hub cannot be reached"),
    ],
)
def test_script_answers_wrong_input_with_one_line(arguments, message, capsys):
    code, _, err = run(arguments, capsys)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
