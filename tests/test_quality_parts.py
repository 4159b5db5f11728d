"""What the quality experiments are made of: partners, damage maps, cells; on tiny models, in seconds."""

import copy
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import reference
from reference.bench import damage, partners, quality, quality_cells
from reference.bench.__main__ import PROTOCOLS
from reference.embedded import EMBEDDED
from reference.iterative import SCHEDULES
from reference.recovery import LOSSES
from reference.request import Request
from tests.conftest import forward, tiny_mmdit, tiny_unet


def answer(unet: nn.Module, t: float = 500.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 3, 16, generator=g)
    with torch.no_grad():
        return unet(x, torch.tensor(t), text, return_dict=False)[0]


@pytest.mark.parametrize("shape", [(5, 7), (6, 4, 3, 3)])
def test_int8_is_off_by_half_a_step_of_its_channel_and_keeps_zeros(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    weight[2] *= 100
    weight[weight.abs() < 0.2] = 0
    integers, scale = partners.int8(weight)
    assert integers.dtype == torch.int8
    assert integers.flatten(1).abs().amax(1).tolist() == [0 if row == 1 else 127 for row in range(shape[0])]
    assert ((integers * scale - weight).abs() <= scale / 2 + 1e-6).all()
    assert (integers[weight == 0] == 0).all()


def test_caching_computes_the_deep_part_at_every_second_call_only():
    for model, ask, deep in (
        (tiny_mmdit(), forward, lambda m: m.transformer_blocks[1]),
        (tiny_unet().eval(), answer, lambda m: m.mid_block.resnets[0]),
    ):
        expected = ask(model)
        cached = copy.deepcopy(model)
        ran = []
        deep(cached).attn.register_forward_hook(lambda *_, ran=ran: ran.append(1)) if hasattr(
            deep(cached), "attn"
        ) else deep(cached).register_forward_hook(lambda *_, ran=ran: ran.append(1))
        partners.cache(cached, 2)
        first, second, third = ask(cached), ask(cached), ask(cached)
        assert torch.equal(first, expected)
        assert torch.allclose(second, expected, atol=1e-5)  # the same question: what was kept is right
        assert torch.equal(third, expected)
        assert len(ran) == 2


def test_between_them_what_was_kept_answers_for_other_inputs():
    model = tiny_unet().eval()
    cached = copy.deepcopy(model)
    partners.cache(cached, 2)
    answer(cached, 900.0)
    wrong, right = answer(cached, 10.0), answer(model, 10.0)
    assert 1e-6 < (wrong - right).abs().max() < (answer(model, 900.0) - right).abs().max() * 2


def test_a_joint_block_left_out_is_a_masked_block(mmdit):
    blocks = dict(damage.residual_blocks(mmdit))
    assert list(blocks) == [f"transformer_blocks.{i}" for i in range(3)]
    plan = reference.Plan.from_removed(mmdit, "block", {"transformer_blocks": [1]})
    masked = copy.deepcopy(mmdit)
    reference.apply(masked, plan, mode="mask")
    with damage.hooked(blocks["transformer_blocks.1"].register_forward_hook(damage.left_out, with_kwargs=True)):
        without = forward(mmdit)
    assert torch.equal(without, forward(masked))
    assert not torch.equal(without, forward(mmdit))


def test_a_unets_block_left_out_adds_nothing():
    unet = tiny_unet().eval()
    blocks = dict(damage.residual_blocks(unet))
    assert list(blocks) == [
        "down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "down_blocks.1.resnets.0",
        "mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1",
        "up_blocks.0.resnets.0", "up_blocks.0.resnets.1",
        "up_blocks.1.resnets.0", "up_blocks.1.attentions.0", "up_blocks.1.resnets.1", "up_blocks.1.attentions.1",
    ]  # fmt: skip
    for name, last in (("up_blocks.1.resnets.0", "conv2"), ("down_blocks.0.attentions.0", "proj_out")):
        silent = copy.deepcopy(unet)
        nn.init.zeros_(silent.get_submodule(f"{name}.{last}").weight)
        nn.init.zeros_(silent.get_submodule(f"{name}.{last}").bias)
        with damage.hooked(blocks[name].register_forward_hook(damage.left_out, with_kwargs=True)):
            assert torch.allclose(answer(unet), answer(silent), atol=1e-6), name
        assert not torch.allclose(answer(unet), answer(silent), atol=1e-4)


def test_a_block_left_out_at_some_calls_is_there_at_the_others(mmdit):
    whole = forward(mmdit)
    with damage.hooked(*damage._during(mmdit, mmdit.transformer_blocks[1], range(1, 3))):
        answers = [forward(mmdit) for _ in range(4)]
    assert [torch.equal(a, whole) for a in answers] == [True, False, False, True]
    assert torch.equal(forward(mmdit), whole)


@pytest.mark.parametrize("granularity", ["neuron", "head", "weight"])
def test_rounds_without_training_end_where_one_shot_by_magnitude_ends(granularity):
    """So `quality-recovery.yaml` has no rows for rounds without recovery."""
    models = []
    for keywords in ({}, {"schedule": "linear", "rounds": 4}, {"schedule": "cubic", "rounds": 4}):
        model = tiny_mmdit()
        reference.prune(model, granularity, 0.5, **keywords)
        models.append(model.state_dict())
    for other in models[1:]:
        assert all(torch.equal(models[0][name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize("name", quality.EXPERIMENTS)
def test_every_protocol_lists_cells_that_the_engine_takes(name, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "openmoji-unet", EMBEDDED["openmoji-mmdit"])
    protocol = yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())
    cells = quality_cells.list_cells(protocol, None, None)
    keys = [quality_cells.key(cell) for cell in cells]
    assert len(set(keys)) == len(keys) > 0
    assert {cell.model for cell in cells} == set(protocol["models"])
    for cell in cells:
        asked = {k: v for k, v in cell.keywords.items() if k in ("granularity", "scope", "criterion", "amount")}
        assert not asked or Request(**asked)
        assert cell.keywords.get("partner") in (None, *protocol.get("partners", {}))
        assert cell.keywords.get("recovery") in (None, *LOSSES)
        assert cell.keywords.get("schedule", "one-shot") in SCHEDULES
        assert protocol.get("recovery", {"steps": 0})["steps"] % cell.keywords.get("rounds", 1) == 0
    assert protocol.get("measures", "layers") in damage.MAPS


def test_a_run_has_the_key_of_its_cell():
    protocol = yaml.safe_load((PROTOCOLS / "quality-recovery.yaml").read_text())
    for cell in quality_cells.list_cells(protocol, ["openmoji-mmdit"], None):
        loss = cell.keywords.get("recovery")
        recovery = {"kind": "distill", "loss": loss, "steps": 60} if loss else {"kind": "none"}
        run = {"subject": {"model": cell.model}, "config": cell.keywords | {"recovery": recovery, "seed": 0}}
        assert quality_cells.key(run) == quality_cells.key(cell)


def test_models_without_weights_are_left_out_unless_named(monkeypatch):
    monkeypatch.delitem(EMBEDDED, "openmoji-unet", raising=False)
    protocol = yaml.safe_load((PROTOCOLS / "quality-components.yaml").read_text())
    assert {cell.model for cell in quality_cells.list_cells(protocol, None, None)} == {"openmoji-mmdit"}
    with pytest.raises(ValueError, match="no weights of 'openmoji-unet' here"):
        quality_cells.list_cells(protocol, ["openmoji-unet"], None)


def test_only_the_component_named_is_pruned(monkeypatch):
    """All parts of `quality-components` on a UNet: what is pruned lies in the component, and is of the rate asked."""
    asked = {}
    monkeypatch.setattr(quality.measure, "prune_timed", lambda pipeline, keywords, recover: asked.update(keywords))
    protocol = yaml.safe_load((PROTOCOLS / "quality-components.yaml").read_text())
    monkeypatch.setitem(EMBEDDED, "openmoji-unet", EMBEDDED["openmoji-mmdit"])
    judge = SimpleNamespace(protocol=protocol, seed=0)
    parts = {"attention": ".attn", "feed_forward": ".ff", "conv": "", "modulation": "time_emb_proj"}
    cells = quality_cells.list_cells(protocol, ["openmoji-unet"], None)
    for cell in {(c.keywords["component"], c.keywords["granularity"]): c for c in cells}.values():
        component, granularity = cell.keywords["component"], cell.keywords["granularity"]
        asked.clear()
        unet = tiny_unet()
        quality.prune(unet, cell, judge, {"kind": "none"})
        report = reference.prune(unet, **asked)
        touched = [layer.name for layer in report.layers if layer.kept < layer.units]
        assert touched, (component, granularity)
        assert [layer.name for layer in report.layers] == touched
        if granularity == "weight":
            assert all(parts[component] in name for name in touched), (component, touched)
            convolutions = [isinstance(unet.get_submodule(name), nn.Conv2d) for name in touched]
            assert set(convolutions) == {component == "conv"}, (component, touched)
            assert report.unit_rate == pytest.approx(cell.keywords["amount"], abs=0.01)
