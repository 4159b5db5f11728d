"""Every kind of source that can be loaded, and one clear line for every kind that cannot."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel, ModelMixin, TorchAoConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import reference
from reference.__main__ import main
from reference.loaders import load, load_pipeline
from reference.quantised import dequantise, packed_weight
from tests import svdquant_files as files
from tests.conftest import tiny_mmdit
from tests.hub_server import environment, serving


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return files.write_pipeline(tmp_path_factory.mktemp("flux") / "base")


@pytest.fixture(scope="module")
def dense(base) -> dict[str, Tensor]:
    return FluxTransformer2DModel.from_pretrained(base, subfolder="transformer").state_dict()


def same(model: nn.Module, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name].to(dtype)) for name in state)


def refused(message: str, *arguments, **keywords) -> str:
    """`load_pipeline` raises a ValueError of one line that matches."""
    with pytest.raises(ValueError, match=message) as raised:
        load_pipeline(*arguments, **keywords)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_embedded_name():
    assert type(load_pipeline("openmoji-mmdit", dtype=torch.bfloat16).transformer).__name__ == "SD3Transformer2DModel"
    refused("openmoji-mmdit is a whole pipeline; base_model is for", "openmoji-mmdit", "elsewhere")


def test_local_pipeline_folder(base, dense):
    pipeline = load_pipeline(base, dtype=torch.bfloat16)
    assert isinstance(pipeline, FluxPipeline)
    assert same(pipeline.transformer, dense, torch.bfloat16)
    refused("is a whole pipeline; base_model is for", base, base)


def test_a_folder_keeps_the_dtype_that_it_is_stored_in(base, dense, tmp_path):
    """Diffusers loads fp32 unless told: a bf16 folder came out of `prune` twice as large."""
    pipeline = load_pipeline(base, dtype=torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "half")
    assert same(load(tmp_path / "half" / "transformer"), dense, torch.bfloat16)
    loaded = load_pipeline(tmp_path / "half")
    assert {loaded.transformer.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.bfloat16}
    assert main(["prune", str(tmp_path / "half"), "--granularity", "neuron", "--amount=.5", f"--out={tmp_path}/p"]) == 0
    assert reference.load_pruned(tmp_path / "p").transformer.dtype == torch.bfloat16
    around = load_pipeline(tmp_path / "half" / "transformer", base)
    assert {around.transformer.dtype, around.vae.dtype} == {torch.bfloat16}
    pipeline.vae.float().save_pretrained(tmp_path / "half" / "vae")  # components hand tensors on: one dtype, the wider
    assert {getattr(load_pipeline(tmp_path / "half"), name).dtype for name in ("transformer", "vae")} == {torch.float32}


@pytest.mark.parametrize("shard", ["10GB", "40KB"])
def test_a_folder_that_holds_a_variant_alone_is_read(base, dense, tmp_path, shard):
    """Downloads of fp16 files alone were refused in the words of diffusers."""
    folder = tmp_path / "fp16"
    load_pipeline(base, dtype=torch.float16).save_pretrained(folder, variant="fp16", max_shard_size=shard)
    assert not [file for file in folder.rglob("*.safetensors") if ".fp16" not in file.name]
    pipeline = load_pipeline(folder)
    assert same(pipeline.transformer, dense, torch.float16)
    assert {pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float16}
    assert same(load(folder / "transformer"), dense, torch.float16)
    if shard == "10GB":
        file = folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors"
        shutil.copy(file, file.with_name("diffusion_pytorch_model.ema.safetensors"))
        refused(r"transformer: there are several variants \(ema, fp16\); keep one", folder)


def test_a_pipeline_class_of_ours_and_a_pruned_one_come_back_from_folders(tmp_path):
    pipeline = load_pipeline("openmoji-mmdit")
    pipeline.save_pretrained(tmp_path / "plain")
    assert type(load_pipeline(tmp_path / "plain")).__name__ == "EmbeddedPipeline"
    reference.prune(pipeline, "head", 0.4)
    reference.save_pruned(pipeline, tmp_path / "pruned")
    assert load_pipeline(tmp_path / "pruned").transformer.transformer_blocks[0].attn.heads == 3


def test_model_folder_needs_a_pipeline_around_it(base, dense):
    folder = base / "transformer"
    refused("holds only a model; name the pipeline it belongs to by base_model", folder)
    assert same(load(folder), dense)
    assert same(load_pipeline(folder, base).transformer, dense)
    refused("elsewhere' is no folder here and no hub id", folder, "elsewhere")


def test_single_file_through_diffusers(base, dense, tmp_path):
    file = tmp_path / "flux.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in dense.items()}, file)
    pipeline = load_pipeline(file, base)
    assert isinstance(pipeline, FluxPipeline)
    assert same(pipeline.transformer, dense, torch.bfloat16)
    assert pipeline.vae.dtype == torch.bfloat16
    refused("does not say which model it is; name its pipeline by base_model", file)


def test_plain_fp8_file_is_exact_in_bf16(base, dense, tmp_path):
    fp8 = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in dense.items()}
    save_file(fp8, tmp_path / "fp8.safetensors")
    model = load_pipeline(tmp_path / "fp8.safetensors", base).transformer
    assert same(model, fp8, torch.bfloat16)
    assert packed_weight(model) is None


def test_a_file_in_its_authors_layout_names_its_own_pipeline(tmp_path):
    file = tmp_path / "flux1-dev.safetensors"
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(2), "img_in.weight": torch.ones(4, 4)}, file)
    refused(r"black-forest-labs/FLUX.1-\w+ \(model_index.json\) is not in the local cache and the hub cannot", file)


def test_a_file_with_text_encoders_becomes_a_whole_pipeline(base, tmp_path, monkeypatch):
    asked, whole = {}, load_pipeline(base)
    monkeypatch.setattr(FluxPipeline, "from_single_file", lambda file, **keywords: asked.update(keywords) or whole)
    file = tmp_path / "all.safetensors"
    save_file({"first_stage_model.w": torch.ones(2, dtype=torch.float16), "model.w": torch.ones(1)}, file)
    assert load_pipeline(file, base) is whole
    assert asked == {"config": str(base), "dtype": torch.float16}


@pytest.mark.parametrize("part", ["missing", "extra"])
def test_single_files_that_do_not_fit_are_refused(base, dense, tmp_path, part):
    state = dict(dense)
    if part == "missing":
        del state["single_transformer_blocks.1.proj_mlp.weight"]
    else:
        state["single_transformer_blocks.2.proj_mlp.weight"] = torch.ones(2)
    save_file(state, tmp_path / "flux.safetensors")
    refused(
        "flux.safetensors .*single_transformer_blocks.*name the right base_model", tmp_path / "flux.safetensors", base
    )


def write_gguf(path: Path, dense: dict[str, Tensor]) -> Path:
    """Linears in Q8_0, norms in BF16 (which diffusers leaves packed), the rest in F32."""
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in dense.items():
        kind = gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2 and "blocks" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
        elif "norm_q" in name:
            kind = gguf.GGMLQuantizationType.BF16
        array = tensor.numpy().astype(np.float32)
        packed = array if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_is_dequantised_and_says_so(base, dense, tmp_path):
    file = write_gguf(tmp_path / "flux.gguf", dense)
    with pytest.warns(UserWarning, match="gguf weights were dequantised to torch.bfloat16"):
        pipeline = load_pipeline(file, base)
    model = pipeline.transformer
    assert packed_weight(model) is None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, tensor in dense.items():
        # Q8_0 has steps of max / 127 in 32 weights, bf16 keeps 8 bits: together within 1 % of the largest weight.
        assert (model.state_dict()[name].float() - tensor).abs().max() <= 0.01 * tensor.abs().max(), name
    report = reference.prune(pipeline, "weight", 0.5)
    assert report.unit_rate == pytest.approx(0.5, abs=1e-4)

    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused("flux.gguf is cut short or no GGUF file", file, base)


def test_a_gguf_model_in_memory_is_dequantised_by_prune_and_refused_by_plan(base, dense, tmp_path):
    from diffusers import GGUFQuantizationConfig

    model = FluxTransformer2DModel.from_single_file(
        str(write_gguf(tmp_path / "flux.gguf", dense)),
        config=str(base),
        subfolder="transformer",
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )
    layer = model.transformer_blocks[0].attn.to_q
    assert isinstance(layer, nn.Linear)
    assert layer.weight.dtype == torch.uint8
    before = layer.weight.clone()
    with pytest.raises(reference.NotPrunable, match="prune first and quantise afterwards"):
        reference.plan(model, "weight", 0.5)
    assert torch.equal(before, layer.weight)
    with pytest.warns(UserWarning, match="gguf weights were dequantised to torch.float32"):
        reference.prune(model, "weight", 0.5)
    weight = model.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.float32
    assert int((weight == 0).sum()) == weight.numel() // 2


class OtherParameter(nn.Parameter):
    """As quantisers define them."""


def quantise_by(kind: str, model: ModelMixin) -> None:
    layer = model.transformer_blocks[0].attn.to_q
    if kind == "int8":
        layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    elif kind == "float8":
        layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    elif kind == "subclass":
        layer.weight = OtherParameter(layer.weight.detach())
    elif kind == "packed shape":
        layer.weight = nn.Parameter(layer.weight.detach().reshape(-1, 1))
    elif kind == "buffer":
        model.transformer_blocks[0].register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))
    elif kind == "torch's mask":
        torch_prune.l1_unstructured(layer, "weight", amount=0.5)
    elif kind == "parametrization":
        parametrizations.weight_norm(layer)
    elif kind == "layerwise casting":
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize(
    "kind",
    ["int8", "float8", "subclass", "packed shape", "buffer", "torch's mask", "parametrization", "layerwise casting"],
)
def test_quantised_weights_are_recognised_by_tensor_and_stay_as_they_are(kind):
    model = tiny_mmdit()
    assert packed_weight(model) is None
    quantise_by(kind, model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(reference.NotPrunable, match=r"transformer_blocks.0|weight is") as raised:
        reference.prune(model, "weight", 0.5)
    assert "\n" not in str(raised.value)
    after = model.state_dict()
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_what_diffusers_cannot_dequantise_is_refused():
    class Quantizer:
        class quantization_config:  # noqa: N801
            quant_method = "quanto"

        def dequantize(self, model: nn.Module) -> None:
            raise NotImplementedError

    model = tiny_mmdit()
    quantise_by("int8", model)
    model.hf_quantizer = Quantizer()
    with pytest.raises(reference.NotPrunable, match="diffusers cannot dequantise quanto"):
        dequantise(model)
    with pytest.raises(reference.NotPrunable, match="diffusers cannot dequantise quanto"):
        reference.prune(model, "weight", 0.5)


def quantised_by(base: Path, folder: Path, method: dict) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((base / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    return folder


@pytest.mark.parametrize("method", ["quanto", "modelopt", "nunchaku_lite", "auto-round", "of tomorrow"])
def test_folders_that_cannot_be_dequantised_are_refused_before_they_are_read(base, tmp_path, method):
    folder = quantised_by(base, tmp_path / "quantised", {"quant_method": method})
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # were it read, the message would differ
    message = refused(f"is quantised by {method}, which cannot be undone; what works: bf16, fp16", folder)
    assert str(folder) in message
    assert "bitsandbytes or torchao" in message


def test_a_folder_whose_package_is_missing_is_refused(base, tmp_path):
    """bitsandbytes dequantises on a GPU only: without the package or the GPU diffusers refuses, here in one line."""
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    refused("bnb (needs a package that is not here|cannot be loaded): ", quantised_by(base, tmp_path / "bnb", method))


def test_torchao_folder_is_dequantised(base, dense, tmp_path):
    pytest.importorskip("torchao", reason="an optional package")
    from torchao.quantization import Int8WeightOnlyConfig

    folder = shutil.copytree(base, tmp_path / "torchao")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = FluxTransformer2DModel.from_pretrained(
        base, subfolder="transformer", quantization_config=config, dtype=torch.bfloat16
    )
    model.save_pretrained(folder / "transformer")
    with pytest.warns(UserWarning, match="torchao weights were dequantised"):
        pipeline = load_pipeline(folder)
    name = "transformer_blocks.0.attn.to_q.weight"
    assert (pipeline.transformer.get_parameter(name) - dense[name]).abs().max() <= 0.01 * dense[name].abs().max()
    assert "quantization_config" not in pipeline.transformer.config


FORMATS = {
    "x.weight.scale_weight": "scaled fp8",
    "scaled_fp8": "scaled fp8",
    "x.weight_scale": "scaled fp8 or nvfp4",
    "x.weight.absmax": "bitsandbytes",
    "x.SCB": "bitsandbytes",
    "x.qzeros": "GPTQ or AWQ",
    "x.weight_packed": "compressed-tensors",
}


@pytest.mark.parametrize("name", FORMATS)
def test_quantised_files_that_nothing_unpacks_are_refused(base, tmp_path, name):
    save_file({"x.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), name: torch.ones(1)}, tmp_path / "q.safetensors")
    message = refused(f"quantised as {FORMATS[name]}.*; what works: ", tmp_path / "q.safetensors", base)
    assert "GGUF" in message


def test_integers_for_weights_are_refused(base, tmp_path):
    save_file({"x.weight": torch.ones(4, 4, dtype=torch.uint8)}, tmp_path / "q.safetensors")
    refused("x.weight shows weights quantised as U8", tmp_path / "q.safetensors", base)


def test_what_is_no_source_is_refused_in_one_line(base, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "model.ckpt").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "transformer_blocks.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    refused("cut short or no safetensors file", tmp_path / "cut.safetensors", base)
    refused("can run code when it is read; convert it to safetensors", tmp_path / "model.ckpt", base)
    refused(r"notes.txt is none of \.safetensors, \.sft, \.gguf; what works", tmp_path / "notes.txt", base)
    refused("nunchaku's old layout of two files", tmp_path / "old", base)
    refused("holds neither model_index.json nor config.json", tmp_path / "empty", base)
    refused("broken/model_index.json cannot be read as JSON", tmp_path / "broken")
    refused("there is no file .*absent.safetensors; a file on the hub is written org/name/path", "absent.safetensors")
    refused("there is no file ./a/b/c.safetensors", "./a/b/c.safetensors")
    refused("no embedded model .*openmoji-mmdit.*, no folder or file here and no hub id", "openmoji")
    refused("holds no model_index.json; base_model is a whole pipeline", base / "transformer", base / "vae")


def test_a_folder_with_weights_of_another_shape_or_none_is_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "spoilt")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file(state | {"proj_out.weight": torch.ones(3, 3)}, weights)
    refused("spoilt cannot be loaded", folder)
    weights.unlink()
    refused("spoilt cannot be loaded", folder)


def test_offline_is_one_line():
    refused("org/model .* is not in the local cache and the hub cannot be reached: go online once", "org/model")
    refused(
        r"nunchaku-tech/nunchaku-flux.1-dev \(svdq-fp4_r32-flux.1-dev.safetensors\) is not in the local cache",
        "nunchaku-tech/nunchaku-flux.1-dev/svdq-fp4_r32-flux.1-dev.safetensors",
    )
    refused("is no file or folder here and no hub id", "org/mo del")


@pytest.mark.parametrize("nvfp4", [False, True], ids=["int4", "nvfp4"])
def test_svdquant_file_in_its_pipeline(base, tmp_path, nvfp4):
    file, state = files.write_flux(tmp_path, nvfp4)
    with pytest.warns(UserWarning, match="4-bit SVDQuant weights were dequantised to torch.bfloat16 .* are not kept"):
        pipeline = load_pipeline(file, base)
    assert isinstance(pipeline, FluxPipeline)
    assert same(pipeline.transformer, state, torch.bfloat16)
    assert pipeline.dtype == torch.bfloat16
    refused(r"black-forest-labs/FLUX.1-dev \(model_index.json\) is not in the local cache", file)
    other = shutil.copy(file, tmp_path / "mine.safetensors")
    refused("mine.safetensors holds only a transformer; name the pipeline it belongs to by base_model", other)
    with warnings.catch_warnings(record=True):
        alone = load(other, dtype=torch.float32)
    assert same(alone, state)
    assert alone._pruning_source == {"name": f"{tmp_path.name}/mine.safetensors", "revision": None}


def test_svdquant_file_without_a_config_takes_that_of_its_pipeline(base, tmp_path):
    file, state = files.write_flux(tmp_path, change=lambda tensors, metadata: metadata.clear())
    with warnings.catch_warnings(record=True):
        assert same(load_pipeline(file, base).transformer, state, torch.bfloat16)


def test_an_svdquant_file_pruned_on_the_command_line(tmp_path):
    file, _ = files.write_flux(tmp_path)
    arguments = ["prune", str(file), "--granularity", "head", "--amount", "0.5", "--out", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="4-bit SVDQuant weights were dequantised"):
        assert main(arguments) == 0
    model = reference.load_pruned(tmp_path / "out")
    assert [block.attn.heads for block in model.transformer_blocks] == [1, 1]


def test_an_svdquant_file_needs_a_flux_pipeline(tmp_path):
    file, _ = files.write_flux(tmp_path)
    load_pipeline("openmoji-mmdit").save_pretrained(tmp_path / "other")
    refused("is a FLUX.1 transformer, .*other has a SD3Transformer2DModel; name a FLUX.1 one", file, tmp_path / "other")


HUB = """
import json, sys, warnings
warnings.simplefilter("ignore")
from reference.loaders import load_pipeline
answers = {}
for source, base in json.loads(sys.argv[1]):
    try:
        answers[source] = type(load_pipeline(source, base)).__name__
    except ValueError as error:
        answers[source] = str(error)
print(json.dumps(answers))
"""


def test_hub_by_http(base, tmp_path):
    """Repositories, files in them, a renamed organisation; gated, missing and incomplete ones: one line each."""
    repo = tmp_path / "svdq"
    repo.mkdir()
    file, _ = files.write_flux(repo)
    (repo / "empty").mkdir()
    (repo / "empty" / "README.md").write_text("hello")
    repositories = {"org/flux": base, "org/around": base, "nunchaku-ai/flux": repo, "org/empty": repo / "empty"}
    repositories |= {"org/only": base / "transformer", "org/fp16": tmp_path / "fp16", "org/pickles": tmp_path / "bin"}
    DiffusionPipeline.from_pretrained(base).save_pretrained(tmp_path / "fp16", variant="fp16")
    shutil.copytree(base, tmp_path / "bin")
    for weights in (tmp_path / "bin" / "transformer").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    asked = [
        ("org/flux", None),
        (f"nunchaku-tech/flux/{file.name}", "org/around"),
        ("org/only", "org/flux"),
        ("org/fp16", None),
        ("org/pickles", None),
        ("org/closed", None),
        (f"org/closed/{file.name}", None),
        (f"nunchaku-ai/flux/{file.name}", "org/closed"),
        ("org/missing", None),
        ("org/empty", None),
        ("org/flux/absent.safetensors", None),
    ]
    with serving(repositories, gated=("org/closed",)) as address:
        run = subprocess.run(
            [sys.executable, "-c", HUB, json.dumps(asked)],
            env={**os.environ, **environment(address, tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    closed = "org/closed is gated: accept its terms on its hub page, log in with `hf auth login`, or name a local copy"
    assert json.loads(run.stdout) == {
        "org/flux": "FluxPipeline",
        f"nunchaku-tech/flux/{file.name}": "FluxPipeline",
        "org/only": "FluxPipeline",
        "org/fp16": "FluxPipeline",
        "org/pickles": "org/pickles does not hold all its weights as safetensors, the one kind that is read",
        "org/closed": closed,
        f"org/closed/{file.name}": closed,
        f"nunchaku-ai/flux/{file.name}": closed,
        "org/missing": "the hub has no repository org/missing, or it is private: log in with `hf auth login`",
        "org/empty": "org/empty has no file model_index.json",
        "org/flux/absent.safetensors": "org/flux has no file absent.safetensors",
    }
    cached = tmp_path / "home" / "hub"
    with_transformer = {f.parts[-5] for f in cached.rglob("snapshots/*/transformer/*.safetensors")}
    assert with_transformer == {
        "models--org--flux",
        "models--org--fp16",
    }  # a denoiser that is passed in is not downloaded


def test_nothing_here_is_a_pipeline_of_diffusers_by_chance(base):
    """The folder that the tests load is one that plain diffusers loads as well."""
    assert isinstance(DiffusionPipeline.from_pretrained(base), FluxPipeline)
