"""Save, load, compute: bit-identical, without pickle; broken folders end in one clear line."""

import json

import pytest
import torch
from diffusers import FluxPipeline, SD3Transformer2DModel

import reference
from tests.conftest import forward, tiny_mmdit
from tests.svdquant_files import write_pipeline
from tests.zoo import make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["weight", "2:4", "head", "neuron"])
def test_reload_is_bit_identical(granularity, dtype, tmp_path):
    model = tiny_mmdit().to(dtype)
    reference.prune(model, granularity, None if granularity == "2:4" else 0.4)
    expected = forward(model)
    reference.save_pruned(model, tmp_path / "m")
    loaded = reference.load_pruned(tmp_path / "m")
    assert loaded.dtype == dtype
    assert torch.equal(forward(loaded), expected)
    suffixes = {f.suffix for f in (tmp_path / "m").iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_pruned_twice_and_reloaded_twice(tmp_path):
    model = tiny_mmdit()
    reference.prune(model, "head", 0.25)
    reference.save_pruned(model, tmp_path / "once")
    model = reference.load_pruned(tmp_path / "once")
    reference.prune(model, "neuron", 0.5)
    reference.save_pruned(model, tmp_path / "twice")
    again = reference.load_pruned(tmp_path / "twice")
    assert torch.equal(forward(again), forward(model))
    history = json.loads((tmp_path / "twice" / "pruning.json").read_text())["history"]
    assert [step["granularity"] for step in history] == ["head", "neuron"]


def test_masked_folder_is_plain_diffusers(tmp_path):
    model = tiny_mmdit()
    reference.prune(model, "weight", 0.5)
    reference.save_pruned(model, tmp_path / "m")
    plain = SD3Transformer2DModel.from_pretrained(tmp_path / "m", use_safetensors=True)
    assert torch.equal(forward(plain.eval()), forward(model))


def test_cut_folder_fails_loudly_under_plain_from_pretrained(tmp_path):
    model = tiny_mmdit()
    reference.prune(model, "neuron", 0.5)
    reference.save_pruned(model, tmp_path / "m")
    with pytest.raises(OSError, match="no file named"):
        SD3Transformer2DModel.from_pretrained(tmp_path / "m", use_safetensors=True)


def test_dtype_on_request(tmp_path):
    reference.save_pruned(tiny_mmdit(), tmp_path / "m")
    assert reference.load_pruned(tmp_path / "m", dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_on_request_is_what_from_pretrained_makes_of_it(dtype, tmp_path):
    """Wan keeps time embeddings, norms and tables in fp32 beside 16-bit weights; its rotary table is computed."""
    model, _ = make("WanTransformer3DModel")
    reference.prune(model, "weight", 0.5)
    reference.save_pruned(model, tmp_path / "m")
    loaded = reference.load_pruned(tmp_path / "m", dtype=dtype)
    plain = type(model).from_pretrained(tmp_path / "m", torch_dtype=dtype, use_safetensors=True)
    pairs = [*zip(loaded.named_parameters(), plain.named_parameters(), strict=True)]
    assert [name for (name, p), (_, q) in pairs if p.dtype != q.dtype or not torch.equal(p, q)] == []
    assert {p.dtype for p in loaded.parameters()} == {dtype, torch.float32}
    buffers = zip(loaded.named_buffers(), model.named_buffers(), strict=True)
    assert [name for (name, b), (_, before) in buffers if not torch.equal(b, before)] == []


def test_every_component_comes_back_in_the_dtype_that_it_was_saved_in(tmp_path):
    """A VAE in fp32 beside a denoiser in bf16 is common; it was rounded to bf16."""
    pipeline = FluxPipeline.from_pretrained(write_pipeline(tmp_path / "base"))
    dtypes = {"transformer": torch.bfloat16, "vae": torch.float32, "text_encoder": torch.float16}
    for name, dtype in dtypes.items():
        getattr(pipeline, name).to(dtype)
    reference.prune(pipeline, "neuron", 0.5)
    reference.save_pruned(pipeline, tmp_path / "m")
    loaded = reference.load_pruned(tmp_path / "m")
    assert {name: getattr(loaded, name).dtype for name in dtypes} == dtypes
    for name in dtypes:
        before, after = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    halved = reference.load_pruned(tmp_path / "m", dtype=torch.float16)
    assert {getattr(halved, name).dtype for name in dtypes} == {torch.float16}


def test_truncated_weights_end_in_one_line(tmp_path):
    for granularity, file in (("head", "pruned.safetensors"), ("weight", "diffusion_pytorch_model.safetensors")):
        model = tiny_mmdit()
        reference.prune(model, granularity, 0.5)
        reference.save_pruned(model, tmp_path / granularity)
        weights = tmp_path / granularity / file
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ValueError, match=rf"{file} is missing or cut short .* again") as caught:
            reference.load_pruned(tmp_path / granularity)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other/9"), "format 'other/9'"),
        (lambda m: m.update({"class": "os.system"}), "which diffusers does not have"),
        (
            lambda m: m["shapes"].update({"transformer_blocks.0.attn.to_q.weight": [10**9, 10**9]}),
            "does not fit the model",
        ),
        (lambda m: m["shapes"].update({"../../x": [1]}), "does not fit the model"),
        (lambda m: m["shapes"].update({"transformer_blocks.0.attn.to_q.weight": [6, 24]}), "the manifest says"),
        (lambda m: m["attributes"].update({"transformer_blocks.0.attn": {"heads": "2"}}), "does not fit"),
        (lambda m: m["attributes"].update({"transformer_blocks.0.attn": {"forward": 1}}), "does not fit"),
    ],
)
def test_crafted_manifests_are_refused(tmp_path, change, message):
    model = tiny_mmdit()
    reference.prune(model, "head", 0.5)
    reference.save_pruned(model, tmp_path / "m")
    file = tmp_path / "m" / "pruning.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        reference.load_pruned(tmp_path / "m")


def test_what_the_config_does_not_know_is_refused_with_the_remedy(tmp_path):
    model, _ = make("FluxTransformer2DModel:fused_qkv")
    reference.prune(model, "neuron", 0.5)
    with pytest.raises(ValueError, match=r"knows no transformer_blocks\.0\.attn\.to_qkv: unfuse projections"):
        reference.save_pruned(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_folders_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        reference.save_pruned(tiny_mmdit(), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match=r"holds no pruning\.json"):
        reference.load_pruned(tmp_path / "thesis")


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    model = tiny_mmdit()
    reference.prune(model, "head", 0.25)
    reference.save_pruned(model, tmp_path / "m")
    before = forward(reference.load_pruned(tmp_path / "m"))

    def broken(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("reference.checkpoint.save_file", broken)
    reference.prune(model, "head", 0.5)
    with pytest.raises(OSError, match="no space left"):
        reference.save_pruned(model, tmp_path / "m")
    assert torch.equal(forward(reference.load_pruned(tmp_path / "m")), before)
    assert [f.name for f in tmp_path.iterdir()] == ["m"]


def test_saving_again_replaces(tmp_path):
    for amount in (0.25, 0.5):
        model = tiny_mmdit()
        reference.prune(model, "head", amount)
        reference.save_pruned(model, tmp_path / "m")
    assert reference.load_pruned(tmp_path / "m").transformer_blocks[0].attn.heads == 2
    assert [f.name for f in tmp_path.iterdir()] == ["m"]


def test_nothing_in_the_package_unpickles():
    from pathlib import Path

    for file in Path(reference.__file__).parent.rglob("*.py"):
        text = file.read_text()
        assert "pickle" not in text.replace("no pickle", "")
        assert text.count("torch.load(") == text.count("weights_only=True"), file


def test_the_manifest_says_where_the_model_comes_from(tmp_path):
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", 0.3, "head")
    reference.save_pruned(pipeline, tmp_path / "p")
    again = reference.load_pruned(tmp_path / "p")
    reference.save_pruned(again, tmp_path / "again")
    for folder in ("p", "again"):
        manifest = json.loads((tmp_path / folder / "transformer" / "pruning.json").read_text())
        assert manifest["source"] == {"name": "openmoji-mmdit/transformer", "revision": None}
        (step,) = manifest["history"]
        assert (step["request"]["criterion"], step["request"]["amount"], step["mode"]) == ("magnitude", 0.3, "cut")
        assert len(step["digest"]) == 64
        assert manifest["versions"]["torch"] == torch.__version__
        assert manifest["versions"].keys() == {"awesome-diffusion-pruning", "torch", "diffusers", "safetensors"}


def test_a_hub_source_is_recorded_with_its_commit(tmp_path):
    model = tiny_mmdit()
    commit = "0123456789abcdef0123456789abcdef01234567"
    model.register_to_config(_name_or_path=f"/x/hub/models--org--name/snapshots/{commit}/transformer")
    reference.save_pruned(model, tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "pruning.json").read_text())
    assert manifest["source"] == {"name": "org/name", "revision": commit}


def test_a_quantised_model_is_not_saved_as_if_it_were_whole(mmdit, tmp_path):
    """A folder of float8 codes would load and could not draw."""
    reference.prune(mmdit, "head", 0.5)
    mmdit.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="save the pruned model first, quantise it afterwards"):
        reference.save_pruned(mmdit, tmp_path / "m")
    assert not (tmp_path / "m").exists()
