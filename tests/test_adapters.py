"""A LoRA of the dense model on the pruned one: fusing then cutting equals slicing then fusing."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

import reference
from tests.conftest import deviation, forward, tiny_mmdit, tiny_unet

RANK, ALPHA = 3, 6.0


def lora_for(model, style="peft", seed=0):
    """A and B for every Linear and convolution, in one of the styles."""
    g = torch.Generator().manual_seed(seed)
    lora = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        W = layer.weight
        A = torch.randn(RANK, *W.shape[1:], generator=g) * 0.1
        B = torch.randn(W.shape[0], RANK, *([1] * (W.ndim - 2)), generator=g) * 0.1
        flat = "lora_unet_" + name.replace(".", "_")
        down, up = {
            "peft": (f"{name}.lora_A.weight", f"{name}.lora_B.weight"),
            "peft, prefix and adapter": (
                f"transformer.{name}.lora_A.default.weight",
                f"transformer.{name}.lora_B.default.weight",
            ),
            "diffusers": (f"{name}.lora.down.weight", f"{name}.lora.up.weight"),
            "kohya": (f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"),
        }[style]
        lora |= {down: A, up: B}
        if style == "kohya":
            lora[f"{flat}.alpha"] = torch.tensor(ALPHA)
    return lora


def as_peft(lora):
    """Any of the styles above as {layer, flattened: (A, B)}."""
    pairs = {}
    for key, tensor in lora.items():
        if key.endswith(".alpha"):
            assert tensor == ALPHA
            continue
        name, _, end = key.removeprefix("transformer.").removeprefix("lora_unet_").partition(".lora")
        pairs.setdefault(name.replace(".", "_"), {})["A" if "A" in end or "down" in end else "B"] = tensor
    return pairs


def fuse(model, lora):
    """W + B A for every layer; every pair must find its layer."""
    pairs = as_peft(lora)
    layers = {name.replace(".", "_"): layer for name, layer in model.named_modules()}
    for name, pair in pairs.items():
        W = layers[name].weight
        with torch.no_grad():
            W += (pair["B"].flatten(1) @ pair["A"].flatten(1)).reshape(W.shape)
    return len(pairs)


@pytest.mark.parametrize("granularity", ["head", "neuron"])
@pytest.mark.parametrize("style", ["peft", "peft, prefix and adapter", "diffusers", "kohya"])
def test_slicing_equals_fusing_first(granularity, style, tmp_path):
    dense = tiny_mmdit()
    lora = lora_for(dense, style)
    plan = reference.plan(dense, granularity, 0.5)
    cut = tiny_mmdit()
    reference.apply(cut, plan)
    reference.save_pruned(cut, tmp_path / "m")
    sliced = reference.slice_lora(lora, tmp_path / "m")
    assert sliced.keys() == lora.keys()
    assert sum(sliced[key].numel() < lora[key].numel() for key in lora) >= 10
    assert fuse(cut, sliced) == len(as_peft(lora))

    fused = tiny_mmdit()
    fuse(fused, lora)
    removed = {name: plan.removed(name).nonzero().flatten().tolist() for name in plan.keep}
    reference.apply(fused, reference.Plan.from_removed(fused, granularity, removed))
    assert deviation(forward(cut), forward(fused)) <= 1e-5
    assert deviation(forward(cut), forward(reference.load_pruned(tmp_path / "m"))) > 0.01  # the LoRA does something


def parameters_agree(make, granularity, folder):
    """Every parameter of (cut, then LoRA sliced and fused) against (LoRA fused, then cut)."""
    dense, cut = make(), make()
    lora = lora_for(dense)
    plan = reference.plan(dense, granularity, 0.5)
    reference.apply(cut, plan)
    reference.save_pruned(cut, folder)
    fuse(cut, reference.slice_lora(lora, folder))
    fuse(dense, lora)
    removed = {name: plan.removed(name).nonzero().flatten().tolist() for name in plan.keep}
    reference.apply(dense, reference.Plan.from_removed(dense, granularity, removed))
    expected = dict(dense.named_parameters())
    for name, parameter in cut.named_parameters():
        assert deviation(parameter, expected[name]) <= 1e-6, name


def flux():
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
    text = {"joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8)}
    return FluxTransformer2DModel(in_channels=4, **sizes, **text)


@pytest.mark.parametrize(
    ("make", "granularity"),
    [(flux, "head"), (flux, "neuron"), (tiny_unet, "head"), (tiny_unet, "neuron"), (tiny_unet, "channel")],
)
def test_packed_columns_gates_and_convolutions(make, granularity, tmp_path):
    parameters_agree(make, granularity, tmp_path / "m")


def test_cut_twice_and_saved_twice(tmp_path):
    dense, cut = tiny_mmdit(), tiny_mmdit()
    lora = lora_for(dense)
    steps = [("head", {"transformer_blocks.0.attn": [1]}), ("head", {"transformer_blocks.0.attn": [0, 2]})]
    steps.append(("neuron", {"transformer_blocks.1.ff": [0, 5, 90]}))
    for granularity, removed in steps:
        reference.apply(cut, reference.Plan.from_removed(cut, granularity, removed))
        reference.save_pruned(cut, tmp_path / "m")
        cut = reference.load_pruned(tmp_path / "m")
    sliced = reference.slice_lora(lora, tmp_path / "m")
    B = lora["transformer_blocks.0.attn.to_q.lora_B.weight"]
    assert torch.equal(sliced["transformer_blocks.0.attn.to_q.lora_B.weight"], B[12:18])  # head 2: 1 went, then 0 and 2
    fuse(cut, sliced)
    fuse(dense, lora)
    for granularity, removed in steps:
        reference.apply(dense, reference.Plan.from_removed(dense, granularity, removed))
    assert deviation(forward(cut), forward(dense)) <= 1e-5


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_a_depth_cut_renumbers(style, tmp_path):
    """Block 1 of four leaves, then heads of the new block 1."""
    dense, cut = tiny_mmdit(num_layers=4), tiny_mmdit(num_layers=4)
    lora = lora_for(dense, style)
    steps = [("block", {"transformer_blocks": [1]}), ("head", {"transformer_blocks.1.attn": [0, 2]})]
    for granularity, removed in steps:
        reference.apply(cut, reference.Plan.from_removed(cut, granularity, removed))
    reference.save_pruned(cut, tmp_path / "m")
    sliced = reference.slice_lora(lora, tmp_path / "m")
    assert len(as_peft(sliced)) < len(as_peft(lora))
    fuse(cut, sliced)
    fuse(dense, lora)
    for granularity, removed in steps:
        reference.apply(dense, reference.Plan.from_removed(dense, granularity, removed))
    assert deviation(forward(cut), forward(dense)) <= 1e-5


def test_rank_pruned_models_are_refused(tmp_path):
    reference.save_pruned(tiny_mmdit(), tmp_path / "m")
    file = tmp_path / "m" / "pruning.json"
    manifest = json.loads(file.read_text()) | {"history": [{"granularity": "rank"}]}
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="rank-pruned layers is not supported"):
        reference.slice_lora({}, tmp_path / "m")


def test_a_pipeline_folder_and_its_text_encoder(tmp_path):
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", 0.5, "head")
    reference.save_pruned(pipeline, tmp_path / "p")
    key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"
    lora = {key: torch.randn(160, 4), text: torch.randn(128, 4)}
    sliced = reference.slice_lora(lora, tmp_path / "p")
    kept = pipeline.transformer.transformer_blocks[0].attn.to_q.out_features
    assert sliced[key].shape == (kept, 4)
    assert torch.equal(sliced[text], lora[text])


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("double_blocks.0.img_attn.qkv.lora_A.weight", (3, 24), "does not have; convert its names"),
        ("transformer_blocks.0.attn.to_q.hada_w1_a", (3, 24), "no part of a plain LoRA"),
        ("transformer_blocks.0.attn.to_q.lora_magnitude_vector", (24,), "no part of a plain LoRA"),
        ("transformer_blocks.0.attn.to_q.lora_A.weight", (3, 25), "another width: 25"),
        ("transformer_blocks.0.attn.to_q.lora_B.weight", (7, 3), "has 7 entries where the dense"),
        ("transformer_blocks.0.attn.to_q.lora_A.weight", (24,), "a matrix belongs there"),
    ],
)
def test_what_does_not_fit_is_refused(key, shape, message, tmp_path):
    model = tiny_mmdit()
    reference.prune(model, "head", 0.5)
    reference.save_pruned(model, tmp_path / "m")
    with pytest.raises(ValueError, match=message) as caught:
        reference.slice_lora({key: torch.zeros(shape)}, tmp_path / "m")
    assert "\n" not in str(caught.value)
