"""Depth pruning: a cut model computes what a masked one computes, and plain diffusers loads it."""

import copy
import json

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

import reference
from reference import learned_depth
from reference.anatomy.skipping import masked_blocks, streams
from reference.criteria.sensitivity import greedy
from tests.conftest import deviation, forward, tiny_mmdit
from tests.zoo import make, output

LAW = 1e-5


def calibration(calls: int = 2) -> list[dict]:
    """Forward keywords of `tiny_mmdit`."""
    g = torch.Generator().manual_seed(3)
    return [
        {
            "hidden_states": torch.randn(2, 3, 8, 8, generator=g),
            "encoder_hidden_states": torch.randn(2, 5, 16, generator=g),
            "pooled_projections": torch.randn(2, 16, generator=g),
            "timestep": torch.tensor([900.0, 250.0]),
        }
        for _ in range(calls)
    ]


@torch.no_grad()
def cut_and_mask(name: str, removed: dict[str, list[int]]):
    """The model of the zoo after cutting the given blocks, once its output was seen to be the masked one's."""
    (cut, inputs), (masked, _) = make(name), make(name)
    plan = reference.Plan.from_removed(cut, "block", removed)
    dense = output(masked, inputs)
    reference.apply(masked, plan, mode="mask")
    reference.apply(cut, plan)
    expected = output(masked, inputs)
    assert deviation(output(cut, inputs), expected) <= LAW
    assert (expected - dense).abs().max() > 1e-3  # else the law would hold of nothing
    return cut


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("amount", [0.2, 0.5, {"transformer_blocks": 0.34}, 0.9])
def test_cut_equals_mask_and_plain_diffusers_loads_it(amount, scope, tmp_path):
    dense, masked, cut = (tiny_mmdit(num_layers=6) for _ in range(3))
    plan = reference.plan(dense, "block", amount, scope=scope)
    reference.apply(masked, plan, mode="mask")
    report = reference.apply(cut, plan)
    assert deviation(forward(cut), forward(masked)) <= LAW
    assert deviation(forward(masked), forward(dense)) > 1e-3
    kept = plan.keep["transformer_blocks"].tolist()
    rate = amount["transformer_blocks"] if isinstance(amount, dict) else amount
    assert len(kept) == 6 - int(6 * rate + 0.5) == cut.config.num_layers
    assert 5 in kept
    assert report.parameters_after == sum(p.numel() for p in cut.parameters()) < report.parameters_before
    reference.save_pruned(cut, tmp_path / "m")
    assert torch.equal(forward(reference.load_pruned(tmp_path / "m")), forward(cut))
    plain = SD3Transformer2DModel.from_pretrained(tmp_path / "m", use_safetensors=True).eval()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), cut.parameters(), strict=True))
    assert torch.equal(forward(plain), forward(cut))


def test_the_blocks_with_the_smallest_weights_go():
    model = tiny_mmdit(num_layers=5)
    with torch.no_grad():
        for i, scale in enumerate((1, 0.3, 0.9, 0.2, 0.1)):  # the last one stays, however small
            for p in model.transformer_blocks[i].parameters():
                p.mul_(scale)
    assert reference.plan(model, "block", 0.4).keep["transformer_blocks"].tolist() == [0, 2, 4]


def test_indices_of_sd35_move_with_their_blocks(tmp_path):
    cut, masked = (tiny_mmdit(num_layers=6, dual_attention_layers=(0, 2, 3)) for _ in range(2))
    plan = reference.Plan.from_removed(cut, "block", {"transformer_blocks": [1, 3]})
    reference.apply(masked, plan, mode="mask")
    reference.apply(cut, plan)
    assert cut.config.dual_attention_layers == (0, 1)  # 0 and 2; 3 is gone
    assert deviation(forward(cut), forward(masked)) <= LAW
    reference.save_pruned(cut, tmp_path / "m")
    plain = SD3Transformer2DModel.from_pretrained(tmp_path / "m", use_safetensors=True).eval()
    assert torch.equal(forward(plain), forward(cut))


def test_defaults_of_the_class_do_not_come_back():
    """An entry left at its default is dropped when a config is used again, unless it is registered as given."""
    model, _ = make("HunyuanVideoTransformer3DModel")
    assert "num_refiner_layers" in model.config["_use_default_values"]
    reference.prune(model, "block", 0.5, only="*refiner*")
    assert len(type(model).from_config(model.config).context_embedder.token_refiner.refiner_blocks) == 1


def test_the_last_joint_block_stays(mmdit):
    with pytest.raises(ValueError, match="transformer_blocks: block 2 stays: the last block has no text output"):
        reference.Plan.from_removed(mmdit, "block", {"transformer_blocks": [2]})
    assert reference.plan(mmdit, "block", 0.9).keep["transformer_blocks"].tolist() == [2]


def test_flux_lists_are_counted_apart(tmp_path):
    cut = cut_and_mask("FluxTransformer2DModel", {"transformer_blocks": [0], "single_transformer_blocks": [0, 2]})
    assert (cut.config.num_layers, cut.config.num_single_layers) == (1, 1)
    reference.save_pruned(cut, tmp_path / "m")
    plain = FluxTransformer2DModel.from_pretrained(tmp_path / "m", use_safetensors=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), cut.parameters(), strict=True))


def test_skip_pairs_go_together():
    cut = cut_and_mask("HunyuanDiT2DModel", {"blocks": [1, 6]})
    assert cut.config.num_layers == 6
    assert [block.skip_linear is not None for block in cut.blocks] == [False] * 4 + [True] * 2
    model, _ = make("HunyuanDiT2DModel")
    with pytest.raises(ValueError, match="blocks: blocks 0, 7 go together or not at all"):
        reference.Plan.from_removed(model, "block", {"blocks": [0]})
    with pytest.raises(ValueError, match="blocks: block 3 stays: the two blocks in the middle"):
        reference.Plan.from_removed(model, "block", {"blocks": [3, 4]})


def test_both_ends_of_a_u_vit_lose_mirrored_blocks():
    (dense, _), cut = make("UTransformer2DModel"), cut_and_mask("UTransformer2DModel", {"transformer_in_blocks": [0]})
    assert cut.config.num_layers == 2
    pairs = (  # what pairs with 0 on the way in is the last on the way out
        (cut.transformer_in_blocks[0], dense.transformer_in_blocks[1]),
        (cut.transformer_out_blocks[0], dense.transformer_out_blocks[0]),
    )
    for kept, before in pairs:
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "removed", "entries"),
    [
        ("LatteTransformer3DModel", {"transformer_blocks": [2]}, {"num_layers": 3}),  # both zipped lists
        ("WanVACETransformer3DModel", {"blocks": [1]}, {"num_layers": 3, "vace_layers": [0, 1]}),
        ("BriaFibo2Transformer2DModel", {"layers": [0, 2]}, {"n_layers": 2, "injection_layer_ids": (0, 1)}),
        ("EasyAnimateTransformer3DModel", {"transformer_blocks": [0]}, {"num_layers": 2, "mmdit_layers": 1}),
        ("EasyAnimateTransformer3DModel", {"transformer_blocks": [2]}, {"num_layers": 2, "mmdit_layers": 2}),
        ("MotifVideoTransformer3DModel", {"single_transformer_blocks": [0, 2]}, {"num_decoder_layers": 1}),
        ("HiDreamImageTransformer2DModel", {"double_stream_blocks": [0]}, {"llama_layers": (1, 2, 2)}),
        ("HiDreamImageTransformer2DModel", {"single_stream_blocks": [0]}, {"llama_layers": (0, 1, 2)}),
        ("AceStepTransformer1DModel", {"layers": [1, 3]}, {"layer_types": ["sliding_attention"] * 2}),
        ("ConsisIDTransformer3DModel", {"transformer_blocks": [0, 1]}, {"num_layers": 2}),  # and a face attention
        ("WanAnimateTransformer3DModel", {"blocks": [2, 3]}, {"num_layers": 2}),  # and a face adapter
        ("RFD4ProteinaTransformer", {"transformer_layers": [0, 1]}, {"nlayers": 2}),  # and an update of the pairs
        ("SanaWMTransformer3DModel", {"blocks": [0, 1]}, {"num_layers": 2}),  # a period of two kinds of attention
        ("NucleusMoEImageTransformer2DModel", {"transformer_blocks": [3]}, {"num_layers": 5}),
        ("StableCascadeUNet", {"up_blocks.1": [3, 4, 5]}, {"up_num_layers_per_block": (2, 1)}),
        ("LTX2VideoDiffusionDecoderModel", {"decoder.det_stages.1": [0]}, {"decoder_stage_depths": (2, 1, 2, 2, 2)}),
    ],
)
def test_what_the_config_says_of_places_follows(name, removed, entries):
    cut = cut_and_mask(name, removed)
    assert {key: cut.config[key] for key in entries} == entries


def test_sdxl_attentions_get_a_number_each(tmp_path):
    stage = "down_blocks.1.attentions"
    removed = {f"{stage}.0.transformer_blocks": [1], "up_blocks.0.attentions.2.transformer_blocks": [0, 2]}
    cut = cut_and_mask("UNet2DConditionModel:sdxl", removed)
    assert cut.config.transformer_layers_per_block == [2, [2, 3]]
    assert cut.config.reverse_transformer_layers_per_block == [[3, 3, 1], 2]
    assert len(cut.mid_block.attentions[0].transformer_blocks) == 2  # it repeats the last stage's first attention
    reference.save_pruned(cut, tmp_path / "m")
    plain = type(cut).from_pretrained(tmp_path / "m", use_safetensors=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), cut.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "path", "names"),
    [
        ("SD3Transformer2DModel", "transformer_blocks.0", ("encoder_hidden_states", "hidden_states")),
        ("FluxTransformer2DModel", "single_transformer_blocks.1", ("encoder_hidden_states", "hidden_states")),
        ("CogVideoXTransformer3DModel", "transformer_blocks.1", ("hidden_states", "encoder_hidden_states")),
        ("LTX2VideoTransformer3DModel", "transformer_blocks.0", ("hidden_states", "audio_hidden_states")),
        ("Kandinsky6Transformer3DModel", "visual_transformer_blocks.1", ("vis", "aud")),
        ("Cosmos3OmniTransformer", "layers.1", ("und_seq", "gen_seq")),
        ("Kandinsky5Transformer3DModel", "visual_transformer_blocks.1", ("visual_embed",)),
        ("T5FilmDecoder", "decoders.1", ("hidden_states",)),
    ],
)
def test_a_masked_block_is_the_identity_on_every_stream(name, path, names):
    model, inputs = make(name)
    seen = []

    def watch(block, args, kwargs, out):
        found = dict(kwargs)
        found |= dict(zip(block.forward.__code__.co_varnames[1:], args, strict=False))
        seen.append((found, out if isinstance(out, tuple) else (out,), streams(block, args, kwargs, out)))

    group, _, place = path.rpartition(".")
    block = model.get_submodule(path)
    handle = block.register_forward_hook(watch, with_kwargs=True)
    output(model, inputs)
    handle.remove()
    reference.apply(model, reference.Plan.from_removed(model, "block", {group: [int(place)]}), mode="mask")
    assert masked_blocks(model) == [path]
    block.register_forward_hook(watch, with_kwargs=True)
    output(model, inputs)
    (_, _, busy), (given, out, idle) = seen
    assert len(out) == len(idle) == len(names)
    for stream, x_out, (x_in, same), (x, y) in zip(names, out, idle, busy, strict=True):
        assert x_out is x_in is same is given[stream]
        assert x.shape == y.shape
        assert not torch.equal(x, y)


def test_masked_models_are_not_saved_but_cut(tmp_path):
    model = tiny_mmdit()
    plan = reference.plan(model, "block", 0.5)
    report = reference.apply(model, plan, mode="mask")
    assert report.model_rate == 0
    assert report.nonzero < report.parameters_after  # what is masked does not count as working
    with pytest.raises(ValueError, match=r"2 blocks are masked, e.g. transformer_blocks.0, .* mode='cut'"):
        reference.save_pruned(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    expected = forward(model)
    reference.apply(model, plan)
    reference.save_pruned(model, tmp_path / "m")
    assert torch.equal(forward(reference.load_pruned(tmp_path / "m")), expected)


def test_depth_and_width_are_stored_together(tmp_path):
    model = tiny_mmdit(num_layers=5, dual_attention_layers=(1, 2))
    reference.prune(model, "head", 0.5)
    reference.prune(model, "block", 0.4)
    reference.prune(model, "neuron", 0.3)
    reference.save_pruned(model, tmp_path / "m")
    loaded = reference.load_pruned(tmp_path / "m")
    assert torch.equal(forward(loaded), forward(model))
    assert len(loaded.transformer_blocks) == 3
    history = json.loads((tmp_path / "m" / "pruning.json").read_text())["history"]
    assert [step["granularity"] for step in history] == ["head", "block", "neuron"]


def test_rounds_count_original_blocks_and_recovery_trains_the_rest():
    model, seen = tiny_mmdit(num_layers=8), []

    def recover(model, number):
        seen.append(len(masked_blocks(model)))
        model.zero_grad()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model(**calibration(1)[0], return_dict=False)[0].square().mean().backward()
        assert all(p.grad is None for p in model.get_submodule(masked_blocks(model)[0]).parameters())
        optimizer.step()

    report = reference.prune(model, "block", 0.5, schedule="linear", rounds=2, recover=recover)
    assert seen == [2, 4]
    assert report.unit_rate == 0.5
    assert len(model.transformer_blocks) == 4
    assert not masked_blocks(model)


@pytest.mark.parametrize(
    ("criterion", "scope"),
    [
        ("block-influence", "layer"),
        ("block-influence", "global"),
        ("sensitivity", "layer"),
        ("sensitivity", "global"),
        ("learned", "layer"),
    ],
)
def test_a_block_that_does_nothing_goes_first(criterion, scope):
    model = tiny_mmdit(num_layers=6)
    with torch.no_grad():
        for norm in (model.transformer_blocks[3].norm1, model.transformer_blocks[3].norm1_context):
            norm.linear.weight.zero_()  # all gates
            norm.linear.bias.zero_()
    before = copy.deepcopy(model.state_dict())
    plan = reference.plan(model, "block", 1 / 6, criterion=criterion, scope=scope, calibration=calibration())
    assert plan.keep["transformer_blocks"].tolist() == [0, 1, 2, 4, 5]
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_temperature_falls_from_hot_to_cold():
    found = [learned_depth.temperature(step) for step in (0, learned_depth.STEPS - 1)]
    assert found == pytest.approx([4.0, 0.1])


def test_learned_gates_keep_as_many_of_each_group_and_put_the_weights_back():
    """Half of 8 blocks: four groups of two, each keeps one. The list that has no such split is refused in one line."""
    model = tiny_mmdit(num_layers=9)
    before = copy.deepcopy(model.state_dict())
    plan = reference.plan(model, "block", 4 / 9, criterion="learned", calibration=calibration())
    kept = plan.keep["transformer_blocks"].tolist()
    assert [sum(2 * pair <= block < 2 * pair + 2 for block in kept) for pair in range(4)] == [1, 1, 1, 1]
    assert 8 in kept
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    again = reference.plan(model, "block", 4 / 9, criterion="learned", calibration=calibration())
    assert torch.equal(again.keep["transformer_blocks"], plan.keep["transformer_blocks"])
    with pytest.raises(ValueError, match="10 of 23 blocks can go in 1,144,066 ways"):
        reference.plan(tiny_mmdit(num_layers=24), "block", 10 / 24, criterion="learned", calibration=calibration())


@torch.no_grad()
def test_sensitivity_sees_all_that_a_controlnet_answers():
    """Its first residual comes before all blocks."""
    model, inputs = make("ControlNetModel")
    block = model.mid_block.attentions[0].transformer_blocks[1]
    for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
        layer.weight.zero_()
        layer.bias.zero_()
    plan = reference.plan(model, "block", 0.5, criterion="sensitivity", only="mid_block*", calibration=[inputs])
    assert {name: kept.tolist() for name, kept in plan.keep.items()} == {
        "mid_block.attentions.0.transformer_blocks": [0]
    }


@pytest.mark.parametrize("name", ["WuerstchenPrior", "WanAnimateTransformer3DModel", "HunyuanDiT2DModel"])
def test_influence_of_bundles_is_the_sum_of_their_blocks(name):
    """Convolutional blocks, blocks with a follower, skip pairs: the bundle that does next to nothing goes."""
    model, inputs = make(name)
    group = next(iter(reference.units(model, "block"))).name
    bundle = {"WuerstchenPrior": [3, 4, 5], "WanAnimateTransformer3DModel": [2, 3], "HunyuanDiT2DModel": [1, 6]}[name]

    def hardly_turn(block, args, kwargs, out):
        return (args or tuple(kwargs.values()))[0] + 1e-3 * torch.tanh(out)

    for place in bundle:
        model.get_submodule(group)[place].register_forward_hook(hardly_turn, with_kwargs=True)
    plan = reference.plan(model, "block", 0.34, criterion="block-influence", calibration=[inputs])
    assert plan.removed(group).nonzero().flatten().tolist() == bundle


def test_sensitivity_asks_again_after_every_removal():
    """Two blocks that undo each other: each alone matters, both together do not."""
    errors = {(0,): 9.0, (1,): 2.0, (2,): 3.0, (0, 1): 9.0, (1, 2): 5.0, (0, 2): 8.0}
    assert greedy([0, 1, 2], 1, lambda removed: errors[tuple(sorted(removed))]) == [1]
    assert greedy([0, 1, 2], 2, lambda removed: errors[tuple(sorted(removed))]) == [1, 2]
    assert greedy([2, 0, 1], 1, lambda removed: 1.0) == [2]
    with pytest.raises(ValueError, match="cannot remove 4 of 3"):
        greedy([0, 1, 2], 4, lambda removed: 0.0)


def test_sensitivity_is_the_least_error_of_all_single_removals():
    model = tiny_mmdit(num_layers=5)
    calls = calibration()
    with torch.no_grad():
        dense = [model(**call, return_dict=False)[0] for call in calls]
        errors = []
        for place in range(4):
            cut = copy.deepcopy(model)
            reference.apply(cut, reference.Plan.from_removed(cut, "block", {"transformer_blocks": [place]}))
            pairs = zip(calls, dense, strict=True)
            errors.append(sum(float((cut(**call, return_dict=False)[0] - y).square().mean()) for call, y in pairs))
    plan = reference.plan(model, "block", 0.2, criterion="sensitivity", calibration=calls)
    assert plan.removed("transformer_blocks").tolist().index(True) == errors.index(min(errors))


def test_classes_whose_blocks_are_bound_to_their_place_say_so():
    for name, why in (
        ("ChromaTransformer2DModel", "the modulation of every block is computed from its place"),
        ("FluxControlNetModel", "every block has an output of its own"),
        ("UNet2DModel", "every residual block gives a skip connection"),
    ):
        with pytest.raises(reference.NotPrunable, match=f"{name}: {why}"):
            reference.plan(make(name)[0], "block", 0.5)
    with pytest.raises(reference.NotPrunable, match="its transformers hold one block each"):
        reference.plan(make("UNet2DConditionModel")[0], "block", 0.5)
    with pytest.raises(ValueError, match="criterion 'wanda' does not serve block; choose magnitude"):
        reference.plan(tiny_mmdit(), "block", 0.5, criterion="wanda")
    with pytest.raises(reference.NeedsCalibration):
        reference.plan(tiny_mmdit(), "block", 0.5, criterion="block-influence")


def test_pipelines_lose_blocks_and_come_back(tmp_path):
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", pruning_amount=0.25, method="depth")
    pipeline.set_progress_bar_config(disable=True)
    keywords = {"num_inference_steps": 2, "output_type": "np"}
    draw = lambda p: p("red heart", generator=torch.Generator().manual_seed(0), **keywords).images  # noqa: E731
    plan_names = [unit.name for unit in reference.units(pipeline, "block")]
    assert plan_names == ["transformer.transformer_blocks"]
    reference.save_pruned(pipeline, tmp_path / "p")
    loaded = reference.load_pruned(tmp_path / "p")
    loaded.set_progress_bar_config(disable=True)
    assert (draw(loaded) == draw(pipeline)).all()
    assert loaded.transformer.config.num_layers == len(pipeline.transformer.transformer_blocks)
