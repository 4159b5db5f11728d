"""Plans: what is asked is what happens, and what makes no sense is refused in one line."""

import ast
import copy
import json
import re
from collections import defaultdict
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FirstBlockCacheConfig, apply_first_block_cache
from safetensors.torch import load_file, save_file

import reference
from reference.anatomy import coverage
from reference.models import DENOISERS
from tests.conftest import deviation, forward, tiny_mmdit, tiny_unet
from tests.zoo import make, output


@pytest.mark.parametrize("granularity", ["weight", "head", "neuron"])
@pytest.mark.parametrize("mode", ["cut", "mask"])
def test_zero_is_the_identity_bit_for_bit(granularity, mode):
    dense, pruned = tiny_mmdit(), tiny_mmdit()
    report = reference.apply(pruned, reference.plan(pruned, granularity, 0), mode=mode)
    assert all(
        torch.equal(a, b) for a, b in zip(dense.state_dict().values(), pruned.state_dict().values(), strict=True)
    )
    assert torch.equal(forward(dense), forward(pruned))
    assert report.unit_rate == 0


@pytest.mark.parametrize("granularity", ["weight", "2:4", "head", "neuron"])
def test_planning_leaves_the_model_alone(mmdit, granularity):
    before = {n: p.clone() for n, p in mmdit.named_parameters()}
    reference.plan(mmdit, granularity, None if granularity == "2:4" else 0.5)
    assert all(torch.equal(before[n], p) for n, p in mmdit.named_parameters())


@pytest.mark.parametrize("scope", ["row", "layer", "component", "global"])
def test_weight_counts_are_exact_in_every_scope(mmdit, scope):
    plan = reference.plan(mmdit, "weight", 0.3, scope=scope)
    removed = {name: plan.removed(name) for name in plan.keep}
    total = sum(r.numel() for r in removed.values())
    if scope == "row":
        for r in removed.values():
            assert set(r.sum(1).tolist()) == {int(0.3 * r.shape[1] + 0.5)}
    elif scope == "layer":
        for r in removed.values():
            assert int(r.sum()) == int(0.3 * r.numel() + 0.5)
    elif scope == "global":
        assert sum(int(r.sum()) for r in removed.values()) == int(0.3 * total + 0.5)
        assert len({round(int(r.sum()) / r.numel(), 3) for r in removed.values()}) > 3  # layers differ
    else:
        attention = [r for name, r in removed.items() if ".attn." in name]
        assert sum(int(r.sum()) for r in attention) == int(0.3 * sum(r.numel() for r in attention) + 0.5)


def test_the_smallest_weights_go(mmdit):
    reference.apply(mmdit, reference.plan(mmdit, "weight", 0.4))
    dense = tiny_mmdit()
    for name in (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.ff.net.2",
        "transformer_blocks.0.norm1.linear",
    ):
        before, after = dense.get_submodule(name).weight, mmdit.get_submodule(name).weight
        assert before[after == 0].abs().max() <= before[after != 0].abs().min()


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_every_group_of_m_keeps_exactly_n(pattern, n, m):
    model = tiny_mmdit().to(torch.bfloat16)  # bf16: ties are common
    dense = tiny_mmdit().to(torch.bfloat16)
    report = reference.prune(model, pattern)
    assert len(report.layers) > 20
    for layer in report.layers:
        before, after = dense.get_submodule(layer.name).weight, model.get_submodule(layer.name).weight
        groups, magnitudes = (after != 0).reshape(-1, m), before.abs().float().reshape(-1, m)
        assert set(groups.sum(1).tolist()) == {n}
        kept = torch.where(groups, magnitudes, 0).sum()
        assert torch.isclose(kept, magnitudes.topk(n).values.sum())


def test_a_width_that_does_not_divide_is_skipped_with_the_reason(mmdit):
    report = reference.prune(mmdit, "20:32")  # only the 96 hidden neurons divide
    assert report.skipped["transformer_blocks.0.attn.to_q"] == "24 inputs do not divide into groups of 32"
    assert {layer.name.rpartition(".ff")[2] for layer in report.layers} == {".net.2", "_context.net.2"}
    with pytest.raises(reference.NotPrunable, match="no weights whose inputs divide into groups of 7"):
        reference.prune(tiny_mmdit(), "3:7")


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_convolutions_get_the_pattern_along_their_input_channels(criterion):
    unet, inputs = make("UNet2DConditionModel")
    calibration = [inputs] if criterion == "obs" else None
    report = reference.prune(unet, "2:4", criterion=criterion, calibration=calibration)
    convolutions = [layer.name for layer in report.layers if unet.get_submodule(layer.name).weight.ndim == 4]
    assert len(convolutions) > 4
    for name in convolutions:
        W = unet.get_submodule(name).weight
        zeros = (W == 0).unflatten(1, (-1, 4)).sum(2)
        assert (zeros == 2).all(), name


def test_what_stays_dense_by_default_is_listed(mmdit):
    report = reference.prune(mmdit, "weight", 0.5)
    assert set(report.skipped) >= {"pos_embed.proj", "context_embedder", "proj_out", "norm_out.linear"}
    assert all("transformer_blocks" not in name for name in report.skipped)
    assert int((mmdit.proj_out.weight == 0).sum()) == 0


@pytest.mark.parametrize(
    ("case", "layers"),
    [
        ("WanTransformer3DModel:i2v", "condition_embedder.image_embedder.ff.net"),
        ("GlmImageTransformer2DModel", "glyph_projector.net"),
        ("Kandinsky3UNet", "add_time_condition.attention.to_out"),
    ],
)
def test_embedders_stay_dense_though_their_layers_lie_in_lists(case, layers):
    """A feed-forward keeps its layers in a list, an attention its output: these are no lists of blocks."""
    model, _ = make(case)
    plan = reference.plan(model, "weight", 0.5)
    assert not [name for name in plan.keep if name.startswith(layers)]
    found = [name for name, _ in model.named_modules() if name.startswith(layers) and name in plan.skipped]
    assert found
    assert {plan.skipped[name] for name in found} == {"outside the repeated blocks; `only` reaches it"}
    assert any(name.rpartition(".")[0].endswith(("net", "to_out")) for name in plan.keep)  # inside blocks they go


def test_only_and_skip(mmdit):
    plan = reference.plan(mmdit, "weight", 0.5, only=["*.attn.*", "proj_out"], skip="*.to_out.*")
    assert "proj_out" in plan.keep
    assert "transformer_blocks.0.attn.to_q" in plan.keep
    assert not any("to_out" in name or ".ff." in name for name in plan.keep)
    assert plan.skipped["transformer_blocks.0.attn.to_out.0"] == "matched by `skip`"


def test_rates_by_component_and_pattern(mmdit):
    plan = reference.plan(mmdit, "weight", {"*.0.attn.*": 0.75, "attention": 0.5, "modulation": 0.25})
    share = {name: plan.removed(name).float().mean().item() for name in plan.keep}
    assert share["transformer_blocks.0.attn.to_q"] == 0.75  # the pattern wins over the component
    assert share["transformer_blocks.1.attn.to_q"] == 0.5
    assert share["transformer_blocks.1.norm1.linear"] == 0.25
    assert share["transformer_blocks.1.ff.net.2"] == 0


def test_min_keep_holds_under_global_scope(mmdit):
    with torch.no_grad():
        mmdit.transformer_blocks[1].attn.to_v.weight.mul_(1e-3)
    plan = reference.plan(mmdit, "head", 0.9, scope="global", min_keep=2)
    assert all(len(kept) >= 2 for kept in plan.keep.values())


def test_global_scope_ranks_by_layer_mean(mmdit):
    """A layer whose weights are all ten times smaller must not lose more than its share for that."""
    dense = reference.plan(mmdit, "neuron", 0.5, scope="global")
    with torch.no_grad():
        for p in mmdit.transformer_blocks[1].ff.parameters():
            p.mul_(0.1)
    scaled = reference.plan(mmdit, "neuron", 0.5, scope="global")
    assert {n: len(k) for n, k in dense.keep.items()} == {n: len(k) for n, k in scaled.keep.items()}


def test_plan_survives_the_disk(mmdit, tmp_path):
    for granularity in ("weight", "head"):
        plan = reference.plan(mmdit, granularity, 0.3, skip="*.2.*")
        plan.save(tmp_path / granularity)
        again = reference.Plan.load(tmp_path / granularity)
        assert again.digest == plan.digest
        assert again.skipped == plan.skipped
        assert all(torch.equal(again.removed(n), plan.removed(n)) for n in plan.keep)
        assert sorted(f.name for f in (tmp_path / granularity).iterdir()) == ["plan.json", "plan.safetensors"]


@pytest.mark.parametrize(
    ("granularity", "damage", "message"),
    [
        ("head", lambda t, f: f.update(shapes=[3]), "plan.safetensors and plan.json are no whole plan"),
        ("head", lambda t, f: t.pop(next(iter(t))), r"are no whole plan \('keep.transformer_blocks.0.attn'"),
        ("head", lambda t, f: f.pop("digest"), "are no whole plan .*digest"),
        (
            "head",
            lambda t, f: t.update({n: k + 99 for n, k in t.items()}),
            r"what stays of .*attn does not fit its shape",
        ),
        ("head", lambda t, f: t.update({n: k.flip(0) for n, k in t.items()}), "does not fit its shape"),
        ("weight", lambda t, f: t.update({n: k[:-1] for n, k in t.items()}), "does not fit its shape"),
    ],
)
def test_a_damaged_plan_is_refused_with_its_file(mmdit, granularity, damage, message, tmp_path):
    reference.plan(mmdit, granularity, 0.5).save(tmp_path)
    assert reference.Plan.load(tmp_path).keep
    tensors, facts = load_file(tmp_path / "plan.safetensors"), json.loads((tmp_path / "plan.json").read_text())
    damage(tensors, facts)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "plan.safetensors")
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=message) as refused:
        reference.Plan.load(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_plan_that_is_cut_short_is_refused_with_its_file(mmdit, tmp_path):
    reference.plan(mmdit, "head", 0.5).save(tmp_path)
    for name in ("plan.safetensors", "plan.json"):
        file = tmp_path / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=name):
            reference.Plan.load(tmp_path)
        file.write_bytes(whole)


def test_a_plan_takes_an_eighth_of_a_byte_per_weight(mmdit):
    plan = reference.plan(mmdit, "weight", 0.3)
    weights = sum(plan.removed(n).numel() for n in plan.keep)
    assert sum(kept.numel() for kept in plan.keep.values()) == weights / 8


def test_apply_refuses_another_model(mmdit):
    plan = reference.plan(mmdit, "head", 0.5)
    with pytest.raises(ValueError, match="made for another model"):
        reference.apply(tiny_mmdit(seed=1), plan)
    reference.apply(mmdit, plan)
    with pytest.raises(ValueError, match="made for another model"):
        reference.apply(mmdit, plan)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"granularity": "weight", "amount": 1.0}, r"fraction in \[0, 1\), not 1.0"),
        ({"granularity": "weight", "amount": -0.1}, r"not -0.1"),
        ({"granularity": "weight"}, r"not None"),
        ({"granularity": "weight", "amount": float("nan")}, r"not nan"),
        ({"granularity": "neurons", "amount": 0.5}, "unknown granularity 'neurons'; choose weight"),
        ({"granularity": "4:2"}, "keeps everything"),
        ({"granularity": "2:4", "amount": 0.3}, r"2:4 removes exactly 0.5"),
        ({"granularity": "weight", "amount": 0.5, "only": "*.convolution.*"}, "only='.*' matches none of the"),
        ({"granularity": "weight", "amount": 0.5, "only": []}, "only is empty, so there is nothing to prune"),
        ({"granularity": "head", "amount": 0.5, "skip": "blocks.*"}, "skip='blocks.*' matches none"),
        ({"granularity": "weight", "amount": {"atention": 0.5}}, "'atention', which matches no layer; components here"),
        ({"granularity": "head", "amount": {"attention": 1}}, r"not 1;"),
        ({"granularity": "head", "amount": 0.5, "scope": "row"}, "scope 'row' does not fit head"),
        ({"granularity": "head", "amount": 0.5, "criterion": "luck"}, "criterion 'luck' does not serve head"),
        ({"granularity": "neuron", "amount": 0.5, "round_to": 0}, "round_to"),
        ({"granularity": "neuron", "amount": 0.5, "min_keep": 0}, "min_keep"),
    ],
)
def test_arguments_that_make_no_sense(mmdit, keywords, message):
    with pytest.raises(ValueError, match=message) as caught:
        reference.plan(mmdit, **keywords)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_pruned_say_why(mmdit):
    class Unheard(type(mmdit)):
        """A class that no test knows."""

    config = {"num_layers": 1, "sample_size": 8, "in_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8}
    with torch.device("meta"):
        on_meta = Unheard(**config)
    with pytest.raises(reference.NotPrunable, match="meta device"):
        reference.plan(on_meta, "weight", 0.5)
    unheard = Unheard(**config)
    with pytest.raises(reference.NotPrunable, match=r"Unheard is not among the .* classes whose cuts are tested"):
        reference.plan(unheard, "head", 0.5)
    assert reference.prune(unheard, "weight", 0.5).unit_rate == pytest.approx(0.5, abs=1e-3)  # weights need no rule
    with pytest.raises(reference.NotPrunable, match="it has no residual blocks of convolutions"):
        reference.plan(mmdit, "channel", 0.5)
    mmdit.transformer_blocks[0].attn.to_q.weight = torch.nn.Parameter(
        torch.zeros(24, 12, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(reference.NotPrunable, match=r"to_q\.weight is quantised"):
        reference.plan(mmdit, "weight", 0.5)


def test_compiled_offloaded_caching_and_adapted_models_are_refused_with_the_remedy():
    """What compiles, offloads or caches remembers parameters and blocks that a cut replaces."""

    def offload(model):
        cpu = torch.device("cpu")
        model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")

    for change, message in (
        (lambda model: model.compile(), "SD3Transformer2DModel was compiled in place, .*; prune first, then compile"),
        (lambda model: model.transformer_blocks[1].compile(), "was compiled in place, as a whole or block by block"),
        (offload, "the hook 'group_offloading'; prune before enabling offload or caching"),
        (lambda model: apply_first_block_cache(model, FirstBlockCacheConfig()), "the hook 'fbc_.*_block_hook'; prune"),
    ):
        model = tiny_mmdit()
        change(model)
        with pytest.raises(reference.NotPrunable, match=message):
            reference.plan(model, "head", 0.5)
    for attribute, value, message in (
        ("_hf_hook", object(), "carries offload hooks; prune before enabling offload, or remove the hooks"),
        ("base_layer", object(), r"carries adapters: pipeline.unload_lora_weights\(\) drops them, .*fuse_lora\(\)"),
    ):
        model = tiny_mmdit()
        setattr(model.transformer_blocks[1].attn.to_q, attribute, value)
        with pytest.raises(reference.NotPrunable, match=message):
            reference.plan(model, "head", 0.5)
    pipeline = DDPMPipeline(tiny_unet(), DDPMScheduler())
    pipeline.unet = torch.compile(pipeline.unet)
    with pytest.raises(reference.NotPrunable, match=r"is compiled; prune the module inside \(model._orig_mod\)"):
        reference.plan(pipeline, "head", 0.5)
    casting, _ = make("FluxTransformer2DModel")
    casting.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    with casting.cache_context("cond"):  # as pipelines do: a registry of hooks without any
        assert reference.prune(casting, "head", 0.5).unit_rate == 0.5


def test_all_denoisers_of_all_pipelines_are_known_by_name():
    """Read off the annotations of every pipeline of diffusers; ControlNets are pruned only if handed in."""
    found = defaultdict(set)
    for file in (Path(diffusers.__file__).parent / "pipelines").glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline"):
                arguments = [arg for f in node.body if getattr(f, "name", "") == "__init__" for arg in f.args.args]
                for arg in (arg for arg in arguments if arg.annotation is not None):
                    named = set(re.findall(r"\w+", ast.unparse(arg.annotation))) & set(coverage())
                    if any("ControlNet" not in kind for kind in named):
                        found[arg.arg].add(node.name)
    assert len(found["transformer"]) > 50
    assert {name: sorted(pipelines) for name, pipelines in found.items() if name not in DENOISERS} == {}
    assert set(DENOISERS) <= set(found)


def test_units_of_tied_tensors_are_refused_and_the_others_cut(mmdit):
    """Two feed-forwards with one tensor: each would cut its own neurons out of it, the second time out of bounds."""
    first, second = (mmdit.transformer_blocks[i].ff.net[0].proj for i in (0, 1))
    second.weight = first.weight
    masked = copy.deepcopy(mmdit)
    plan = reference.plan(mmdit, "neuron", 0.5)
    reason = "transformer_blocks.0.ff.net.0.proj.weight is tied to transformer_blocks.1.ff.net.0.proj.weight"
    assert plan.skipped["transformer_blocks.0.ff"].startswith(reason)
    assert "transformer_blocks.1.ff" in plan.skipped
    assert len(plan.keep) == 3
    reference.apply(mmdit, plan)
    reference.apply(masked, plan, "mask")
    assert deviation(forward(mmdit), forward(masked)) <= 1e-5
    assert second.weight is first.weight


def test_heads_by_position_and_errors(mmdit):
    with pytest.raises(ValueError, match="3 attention layers, numbered from 0; there is no layer 3"):
        reference.prune_heads(mmdit, {3: [0]})
    with pytest.raises(ValueError, match="units 0 to 3, not 4"):
        reference.prune_heads(mmdit, {0: [4]})
    with pytest.raises(ValueError, match=r"leaves nothing"):
        reference.prune_heads(mmdit, {0: [0, 1, 2, 3]})
    with pytest.raises(ValueError, match=r"no group 'blocks\.0'"):
        reference.prune_heads(mmdit, {"blocks.0": [0]})
    assert reference.prune_heads(mmdit, {1: [2, 2]}).layers[0].kept == 3


def test_report_is_json_and_tells_both_rates(mmdit):
    report = reference.prune(mmdit, "neuron", 0.5)
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["unit_rate"] == 0.5
    assert 0.05 < facts["model_rate"] < 0.3  # half the neurons are far less than half the model
    assert facts["parameters_after"] == sum(p.numel() for p in mmdit.parameters())
    assert "50.0% of 480 units in 5 layers; parameters" in str(report)


def test_report_tells_the_asked_rate_beside_the_effective_one_and_how_many_cuts_are_approximate(mmdit):
    """Tiles of 64: 96 neurons lose 32 or none, whatever is asked."""
    report = reference.prune(mmdit, "neuron", 0.2, round_to=64)
    assert (report.asked, report.unit_rate) == (0.2, pytest.approx(1 / 3))
    assert "33.3% of 480 units in 5 layers (20.0% asked); parameters" in str(report)
    assert report.to_dict()["asked"] == 0.2
    by_component = {"attention": 0.25}
    assert reference.prune(tiny_mmdit(), "head", by_component).to_dict()["asked"] == by_component
    assert reference.prune(tiny_mmdit(), "2:4").to_dict()["asked"] is None
    model, _ = make("LuminaNextDiT2DModel")
    with pytest.warns(UserWarning, match="cutting 2 of 2 groups only approximates"):
        assert "2 layers, 2 of them cut approximately; parameters" in str(reference.prune(model, "head", 0.5))


@pytest.mark.parametrize("granularity", ["weight", "2:4", "head", "neuron"])
def test_random_depends_on_the_seed_alone(mmdit, granularity):
    amount = None if granularity == "2:4" else 0.5
    first, again, other = (reference.plan(mmdit, granularity, amount, "random", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first.removed(n), again.removed(n)) for n in first.keep)
    assert any(not torch.equal(first.removed(n), other.removed(n)) for n in first.keep)
    magnitude = reference.plan(mmdit, granularity, amount)
    assert [int(first.removed(n).sum()) for n in first.keep] == [int(magnitude.removed(n).sum()) for n in first.keep]


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "FluxTransformer2DModel", "SanaTransformer2DModel"])
def test_permuted_neurons_compute_the_same_and_keep_more_of_the_pattern(name):
    model, inputs = make(name)
    before = output(model, inputs)
    gains = reference.permute_neurons(model, "2:4", escapes=5)
    assert deviation(output(model, inputs), before) < 1e-5
    assert len(gains) > 1
    assert min(gains.values()) > 1.01  # Gaussian weights: a good order keeps a few per cent more
    with pytest.raises(ValueError, match="no N:M pattern"):
        reference.permute_neurons(model, "half")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["weight", "2:4"])
def test_memory_layout_and_dtype_change_nothing(dtype, granularity):
    """A channels_last convolution and a transposed Linear weight lose the same weights as contiguous ones, to +0.0."""

    def make(scattered: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.blocks = torch.nn.ModuleList([torch.nn.Conv2d(8, 6, 3), torch.nn.Linear(20, 12, bias=False)]).to(dtype)
        if scattered:
            model.blocks.to(memory_format=torch.channels_last)
            model.blocks[1].weight.data = model.blocks[1].weight.data.T.contiguous().T
            assert not any(layer.weight.is_contiguous() for layer in model.blocks)
        return model

    amount = None if granularity == "2:4" else 0.4
    plain, scattered = make(False), make(True)
    reports = [reference.prune(model, granularity, amount, scope="layer") for model in (plain, scattered)]
    for a, b in zip(plain.blocks, scattered.blocks, strict=True):
        assert torch.equal(a.weight, b.weight)
        zeros = b.weight[b.weight == 0]
        assert len(zeros) == int((amount or 0.5) * b.weight.numel() + 0.5)
        assert not torch.signbit(zeros).any()
    counted = sum(int(torch.count_nonzero(p)) for p in plain.parameters())
    assert [report.nonzero for report in reports] == [counted, counted]
    assert [layer.kept for layer in reports[0].layers] == [int((a.weight != 0).sum()) for a in plain.blocks]
