"""Layouts that are easily mistaken: what the rules find in them, and what a cut does to it."""

from collections import defaultdict

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

import reference
from reference.anatomy import all_groups
from reference.anatomy.groups import cut_units, mask_units
from tests.conftest import deviation
from tests.zoo import ZOO, make, output, redraw

LAW = 1e-5
QUICK = ("Flux2Transformer2DModel", "LuminaNextDiT2DModel", "MochiTransformer3DModel", "UNet1DModel", "UVit2DModel")
EVERY_CASE = [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in sorted(ZOO)]


@pytest.mark.parametrize("case", EVERY_CASE)
def test_no_weight_belongs_to_two_groups(case):
    """Two groups of a granularity may cross in a matrix, rows of one and columns of the other; they never overlap."""
    model = ZOO[case].build()
    for granularity in ("head", "neuron", "channel"):
        taken = defaultdict(list)
        groups = [group for group in all_groups(model, granularity) if not group.refused]
        assert len({group.name for group in groups}) == len(groups)
        for group in groups:
            for module, attribute, _ in group.attributes:
                assert hasattr(model.get_submodule(module), attribute)
            for s in group.slices:
                end = s.start + s.width * group.count
                assert end <= model.get_parameter(s.parameter).shape[s.dim], s
                assert all(end <= a or b <= s.start for a, b in taken[s.parameter, s.dim]), s
                taken[s.parameter, s.dim].append((s.start, end))


def test_heads_of_mochi_go_from_all_blocks_with_their_frequencies():
    model, _ = make("MochiTransformer3DModel")
    before = model.pos_frequencies.clone()
    (unit,) = reference.units(model, "head")
    assert (unit.name, unit.count) == ("transformer_blocks", before.shape[1])
    reference.prune_heads(model, {0: [1]})
    assert torch.equal(model.pos_frequencies, before[:, [0, *range(2, before.shape[1])]])
    assert {block.attn1.heads for block in model.transformer_blocks} == {before.shape[1] - 1}


def test_heads_of_lumina_next_go_from_both_attentions_with_their_gate():
    model, _ = make("LuminaNextDiT2DModel")
    block = model.layers[1]
    heads, gate = block.attn1.heads, block.gate.clone()
    with pytest.warns(UserWarning, match="norm_q takes its mean across heads"):
        plan = reference.plan(model, "head", 0.5)
    reference.apply(model, plan)
    assert block.attn1.heads == block.attn2.heads == len(block.gate) == heads // 2
    per_unit = len(block.gate) // len(plan.keep["layers.1"])
    assert torch.equal(block.gate, gate.reshape(-1, per_unit)[plan.keep["layers.1"]].flatten())


def test_only_attentions_without_rotary_table_lose_heads_in_ltx():
    model, _ = make("LTXVideoTransformer3DModel")
    report = reference.prune(model, "head", 0.5)
    assert {block.attn1.heads for block in model.transformer_blocks} == {4}
    assert {block.attn2.heads for block in model.transformer_blocks} == {2}
    assert "rotary table spans all heads" in report.skipped["transformer_blocks.0.attn1"]


def test_heads_of_motif_go_where_the_cross_attention_reads_and_adds():
    model, _ = make("MotifVideoTransformer3DModel")
    name = "single_transformer_blocks.0"  # the double blocks project the heads' outputs before the cross-attention
    block = model.get_submodule(name)
    heads, width = block.attn.heads, block.attn.to_q.out_features // block.attn.heads
    reference.prune_heads(model, {f"{name}.attn": [0]})
    assert block.cross_attn.heads == heads  # its own heads are units of their own
    assert block.cross_attn.to_q.in_features == block.cross_attn.to_out[0].out_features == (heads - 1) * width


def with_processors(case, processor, ends):
    """A model of the zoo whose attentions with names that end so have another processor, all parameters drawn anew."""
    model, inputs = make(case)
    for name, module in model.named_modules():
        if name.endswith(ends) and "single" not in name:
            module.set_processor(processor(module))
    redraw(model)
    return model.eval(), inputs


def test_heads_of_sd3_go_with_the_keys_and_values_of_its_ip_adapter():
    """SD3's processor holds one Linear for each, that of U-Nets a list of them."""

    def processor(attention):
        width = attention.to_q.out_features
        return SD3IPAdapterJointAttnProcessor2_0(width, 10, width // attention.heads, timesteps_emb_dim=width)

    (masked, inputs), (cut, _) = (with_processors("SD3Transformer2DModel", processor, "attn") for _ in range(2))
    width, heads = cut.transformer_blocks[0].attn.to_q.out_features, cut.transformer_blocks[0].attn.heads
    image = {"ip_hidden_states": torch.randn(2, 5, 10), "temb": torch.randn(2, width)}
    plan = reference.plan(cut, "head", 0.5)
    reference.apply(cut, plan)
    reference.apply(masked, plan, "mask")
    with torch.no_grad():
        pair = [output(model, inputs | {"joint_attention_kwargs": image}) for model in (cut, masked)]
    assert deviation(*pair) <= LAW
    processor = cut.transformer_blocks[0].attn.processor
    assert processor.to_k_ip.weight.shape == (width // heads * (heads - heads // 2), 10)


def test_heads_of_flux_stay_while_an_ip_adapter_adds_them_to_the_residual():
    def processor(attention):
        return FluxIPAdapterAttnProcessor(attention.to_q.out_features, 10, scale=[1.0])

    model, _ = with_processors("FluxTransformer2DModel", processor, "attn")
    report = reference.prune(model, "head", 0.5)
    assert {layer.name.split(".")[0] for layer in report.layers} == {"single_transformer_blocks"}
    assert "IP-Adapter adds the heads' outputs" in report.skipped["transformer_blocks.0.attn"]


def test_processors_with_projections_that_no_rule_knows_keep_their_heads():
    """Cutting these as if they were plain moved the output by half its size."""

    def processor(attention):
        width, text = attention.to_q.in_features, attention.to_k.in_features
        return CustomDiffusionAttnProcessor2_0(hidden_size=width, cross_attention_dim=text)

    (masked, inputs), (cut, _) = (with_processors("UNet2DConditionModel", processor, "attn2") for _ in range(2))
    plan = reference.plan(cut, "head", 0.5)
    assert not any(name.endswith("attn2") for name in plan.keep)
    refused = {why for name, why in plan.skipped.items() if name.endswith("attn2")}
    assert len(refused) == 1
    assert "has a projection 'to_k_custom_diffusion' that no rule knows" in refused.pop()
    reference.apply(cut, plan)
    reference.apply(masked, plan, "mask")
    with torch.no_grad():
        assert deviation(output(cut, inputs), output(masked, inputs)) <= LAW


def test_stacked_experts_lose_the_same_neurons():
    model, _ = make("NucleusMoEImageTransformer2DModel")
    name, experts = next((n, m) for n, m in model.named_modules() if hasattr(m, "gate_up_proj"))
    gate_up, down = experts.gate_up_proj.clone(), experts.down_proj.clone()
    hidden = down.shape[1]
    reference.apply(model, reference.Plan.from_removed(model, "neuron", {name: [0, hidden - 1]}))
    kept = [*range(1, hidden - 1), *range(hidden + 1, 2 * hidden - 1)]
    assert torch.equal(experts.gate_up_proj, gate_up[:, :, kept])
    assert torch.equal(experts.down_proj, down[:, 1:-1])


def test_experts_cannot_be_watched_and_the_error_says_what_to_do():
    model, inputs = make("NucleusMoEImageTransformer2DModel")
    with pytest.raises(reference.NotPrunable, match=r"experts\.down_proj belongs to no .* skip='.*\.experts'"):
        reference.plan(model, "neuron", 0.5, criterion="output-energy", calibration=[inputs])
    plan = reference.plan(model, "neuron", 0.5, criterion="output-energy", calibration=[inputs], skip="*.experts")
    assert plan.keep
    assert not any(name.endswith(".experts") for name in plan.keep)


def test_permuting_neurons_leaves_stacked_experts_alone():
    model, inputs = make("NucleusMoEImageTransformer2DModel")
    with torch.no_grad():
        before = output(model, inputs)
        gains = reference.permute_neurons(model)
        assert deviation(output(model, inputs), before) <= LAW
    assert gains
    assert not any(name.endswith(".experts") for name in gains)


def test_response_norms_stay_exact():
    """Without scaling gamma, half the neurons would double the share of each in the mean."""
    (masked, inputs), (cut, _) = make("UVit2DModel"), make("UVit2DModel")
    group = next(g for g in all_groups(cut, "neuron") if g.response_norms)
    norm = cut.get_submodule(group.response_norms[0])
    gamma, beta = norm.gamma.flatten().clone(), norm.beta.flatten().clone()
    gone = torch.arange(0, group.count, 2)
    mask_units(masked, {group: gone})
    cut_units(cut, {group: gone})
    assert torch.allclose(norm.gamma.flatten(), 2 * gamma[1::2])
    assert torch.equal(norm.beta.flatten(), beta[1::2])
    with torch.no_grad():
        assert deviation(output(cut, inputs), output(masked, inputs)) <= LAW
        norm.gamma.div_(2)
        assert deviation(output(cut, inputs), output(masked, inputs)) > 1e-3


@pytest.mark.parametrize(
    ("case", "stranger"),
    [
        ("StableAudioDiTModel", ""),  # proj_in and proj_out around the whole model
        ("WanVACETransformer3DModel", "vace_blocks.0"),  # proj_in and proj_out around a block
        ("Kandinsky5Transformer3DModel", "time_embeddings"),  # in_layer and out_layer, as the feed-forwards
        ("MochiTransformer3DModel", "time_embed.pooler"),  # to_q and to_kv, as Stable Audio 3
    ],
)
def test_what_only_looks_like_it(case, stranger):
    model = ZOO[case].build()
    assert stranger in dict(model.named_modules())
    names = {group.name for g in ("head", "neuron") for group in all_groups(model, g)}
    assert names
    assert stranger not in names
