"""The published coverage table: what it says of a class is what happens when one tries."""

import json

import pytest
import torch
from diffusers import ModelMixin

import reference
from reference import anatomy
from tests.coverage import LAW, groups_of, over_variants, verdict
from tests.zoo import ZOO, make, output

TABLE = anatomy.coverage()
# One class a family of layout; `make test-all` tries every class.
FAMILIES = (
    "AuraFlowTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "DiTTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "Lumina2Transformer2DModel",
    "MochiTransformer3DModel",
    "PRXTransformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "StableAudio3DiTModel",
    "UNet1DModel",
    "UNet2DConditionModel",
    "UNet2DModel",
    "WanTransformer3DModel",
    "UNetFlatConditionModel",
    "WuerstchenPrior",
)
# Its dense model cannot be saved by diffusers either: it borrows modules of a transformer.
NOT_REBUILT = ("ZImageControlNetModel",)
EVERY_CLASS = [pytest.param(kind, marks=() if kind in FAMILIES else pytest.mark.slow) for kind in TABLE]


def test_every_class_and_granularity_has_a_verdict():
    assert set(TABLE) == {case.partition(":")[0] for case in ZOO}
    assert len(TABLE) == 109
    for kind, row in TABLE.items():
        assert set(row) == set(anatomy.RULES), kind
        for found in row.values():
            assert found["status"] in ("exact", "approximate", "refused", "none")
            assert bool(found["reason"]) == (found["status"] != "exact")


def test_most_classes_can_be_cut():
    exact = {g: sum(row[g]["status"] == "exact" for row in TABLE.values()) for g in anatomy.RULES}
    assert exact["head"] >= 105
    assert exact["neuron"] >= 107
    assert exact["channel"] >= 18
    assert exact["rank"] >= 70
    assert exact["block"] >= 85


@pytest.mark.parametrize("kind", EVERY_CLASS)
def test_the_table_is_what_one_finds(kind):
    cases = [case for case in ZOO if case.partition(":")[0] == kind]
    assert {g: over_variants([verdict(case, g) for case in cases]) for g in anatomy.RULES} == TABLE[kind]


@pytest.mark.parametrize("kind", EVERY_CLASS)
def test_cut_models_come_back_from_disk(kind, tmp_path):
    cuttable = [g for g, found in TABLE[kind].items() if found["status"] in ("exact", "approximate")]
    cases = [case for case in ZOO if case.partition(":")[0] == kind]
    for granularity in cuttable:
        # Not every variant of a class has such units.
        model, inputs = next(m for m in map(make, cases) if any(g.count > 1 for g in groups_of(m[0], granularity)))
        if not isinstance(model, ModelMixin) or not hasattr(model, "config"):
            continue
        report = reference.prune(model, granularity, 0.5)
        assert report.parameters_after < report.parameters_before or report.larger  # tiny layers, a basis of their own
        if kind in NOT_REBUILT:
            with pytest.raises(ValueError, match=f"{kind} cannot be rebuilt from its config"):
                reference.save_pruned(model, tmp_path / granularity)
            continue
        reference.save_pruned(model, tmp_path / granularity)
        with torch.no_grad():
            expected, actual = output(model, inputs), output(reference.load_pruned(tmp_path / granularity), inputs)
        assert torch.equal(expected, actual)
        if (
            granularity == "block"
        ):  # plain diffusers reads it; its tensors lie elsewhere, so kernels may round otherwise
            plain = type(model).from_pretrained(tmp_path / granularity, use_safetensors=True)
            assert plain.state_dict().keys() == model.state_dict().keys()
            assert all(torch.equal(t, model.state_dict()[name]) for name, t in plain.state_dict().items())


def test_a_refused_class_says_why():
    model, _ = make("PriorTransformer")
    with pytest.raises(reference.NotPrunable, match="PriorTransformer: the mask is repeated by the config's"):
        reference.plan(model, "head", 0.5)


def test_rms_norms_across_heads_stay_exact():
    """Wan normalises q and k over all heads: without rescaling the norm, cutting a head changes the others."""
    (masked, inputs), (cut, _) = make("WanTransformer3DModel"), make("WanTransformer3DModel")
    before = {name: (m.weight.clone(), m.eps) for name, m in cut.named_modules() if name.endswith("attn1.norm_q")}
    plan = reference.plan(cut, "head", 0.5)
    assert not plan.approximate
    reference.apply(masked, plan, mode="mask")
    reference.apply(cut, plan)
    with torch.no_grad():
        expected, actual = output(masked, inputs), output(cut, inputs)
    assert (expected - actual).abs().max() <= LAW * max(1.0, expected.abs().max().item())
    for name, (weight, eps) in before.items():
        norm = cut.get_submodule(name)
        assert norm.eps == pytest.approx(2 * eps)
        kept = plan.keep[name.removesuffix(".norm_q")]
        rows = weight.reshape(-1, weight.numel() // (2 * len(kept)))[kept].flatten()
        assert torch.allclose(norm.weight, rows * 2**0.5)


def test_the_table_file_is_sorted_json():
    text = (anatomy.Path(anatomy.__file__).parent / "coverage.json").read_text()
    assert text == json.dumps(dict(sorted(json.loads(text).items())), indent=1) + "\n"
