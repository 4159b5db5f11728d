"""The law of every cut: the cut model computes what the masked one computes."""

import pytest
import torch

import reference
from reference.anatomy import unit_groups
from tests.conftest import deviation, forward, tiny_mmdit

LAW = 1e-5


@pytest.mark.parametrize(
    "amount", [0.05, 0.25, 0.3, 0.5, 0.75, 0.9, {"feed_forward": 0.4}, {"*.0.*": 0.6, "*.1.*": 0.2}]
)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("granularity", ["head", "neuron"])
def test_cut_equals_mask(granularity, scope, amount):
    if isinstance(amount, dict) and "feed_forward" in amount and granularity == "head":
        amount = {"attention": 0.4}
    dense, masked, cut = tiny_mmdit(), tiny_mmdit(), tiny_mmdit()
    plan = reference.plan(dense, granularity, amount, scope=scope)
    reference.apply(masked, plan, mode="mask")
    reference.apply(cut, plan, mode="cut")
    assert deviation(forward(cut), forward(masked)) <= LAW
    if sum(int(plan.removed(name).sum()) for name in plan.keep):
        assert deviation(forward(masked), forward(dense)) > 1e-3  # else the law would hold of nothing
        assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in masked.parameters())


def test_cut_equals_mask_with_gated_neurons_and_second_attention():
    """SD3.5 layouts: dual attention; GEGLU through the same rule."""
    for granularity in ("head", "neuron"):
        make = lambda: tiny_mmdit(dual_attention_layers=(0, 1))  # noqa: E731
        plan = reference.plan(make(), granularity, 0.5)
        masked, cut = make(), make()
        reference.apply(masked, plan, mode="mask")
        reference.apply(cut, plan)
        assert deviation(forward(cut), forward(masked)) <= LAW
        assert len(plan.keep) == 5  # 3 + 2 attentions; 3 + 2 feed-forwards, the last block having one stream


def test_geglu_neuron_owns_a_value_row_and_a_gate_row():
    from diffusers.models.attention import FeedForward

    from reference.anatomy.feed_forward import neurons
    from reference.anatomy.groups import cut_units, mask_units

    torch.manual_seed(0)
    dense = torch.nn.ModuleDict({"ff": FeedForward(8, mult=2, activation_fn="geglu")}).eval()
    masked, cut = (torch.nn.ModuleDict({"ff": FeedForward(8, mult=2, activation_fn="geglu")}).eval() for _ in range(2))
    for copy in (masked, cut):
        copy.load_state_dict(dense.state_dict())
    (group,) = neurons("ff", dense["ff"])
    gone = torch.tensor([0, 3, 15])
    mask_units(masked, {group: gone})
    cut_units(cut, {group: gone})
    x = torch.randn(4, 8)
    assert deviation(cut["ff"](x), masked["ff"](x)) <= LAW
    assert tuple(cut["ff"].net[0].proj.weight.shape) == (2 * 13, 8)


def test_head_attributes_follow_the_cut(mmdit):
    reference.prune_heads(mmdit, {0: [0, 2], "transformer_blocks.2.attn": [3]})
    attention = mmdit.transformer_blocks[0].attn
    assert (attention.heads, attention.inner_dim, attention.to_q.out_features, attention.to_out[0].in_features) == (
        2,
        12,
        12,
        12,
    )
    assert mmdit.transformer_blocks[1].attn.heads == 4
    assert mmdit.transformer_blocks[2].attn.heads == 3
    assert torch.isfinite(forward(mmdit)).all()


def test_mask_touches_nothing_else(mmdit):
    """Zero: rows and bias of the producers, columns of the consumers of the removed heads; all else bit-identical."""
    dense = {name: p.clone() for name, p in mmdit.named_parameters()}
    plan = reference.Plan.from_removed(mmdit, "head", {"transformer_blocks.1.attn": [1]})
    reference.apply(mmdit, plan, mode="mask")
    changed = {name: int((p != dense[name]).sum()) for name, p in mmdit.named_parameters()}
    changed = {name: count for name, count in changed.items() if count}
    rows, bias = 6 * 24, 6
    assert changed == {
        f"transformer_blocks.1.attn.{layer}.{kind}": rows if kind == "weight" else bias
        for layer in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
        for kind in ("weight", "bias")
        if kind == "weight" or not layer.startswith(("to_out", "to_add_out"))
    }


def test_only_positive_zero_is_written():
    for granularity in ("weight", "2:4", "head", "neuron"):
        model = tiny_mmdit()
        plan = reference.plan(model, granularity, None if granularity == "2:4" else 0.5)
        reference.apply(model, plan, mode="mask")
        zeros = [p[p == 0] for p in model.parameters()]
        assert sum(len(z) for z in zeros) > 100
        assert not any(torch.signbit(z).any() for z in zeros)


def test_cut_keeps_dtype_grad_and_train_mode():
    model = tiny_mmdit().to(torch.bfloat16).train()
    model.transformer_blocks[0].ff.net[2].weight.requires_grad_(False)
    reference.prune(model, "neuron", 0.5)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.transformer_blocks[0].ff.net[2].weight.requires_grad
    assert model.transformer_blocks[1].ff.net[2].weight.requires_grad


def test_every_slice_of_a_group_exists_and_fits(mmdit):
    for granularity in ("head", "neuron"):
        for group in unit_groups(mmdit, granularity)[0]:
            for s in group.slices:
                assert s.start + s.width * group.count <= mmdit.get_parameter(s.parameter).shape[s.dim]


def test_weights_of_units_are_counted_once(mmdit):
    head = reference.units(mmdit, "head")[0]
    # 8 matrices of 24 x 24 and 6 biases of 24, all of it spanned by the 4 heads.
    assert head == reference.Units("transformer_blocks.0.attn", "attention", 4, 8 * 24 * 24 + 6 * 24)
    neuron = reference.units(mmdit, "neuron")[0]
    assert (neuron.count, neuron.parameters) == (96, 2 * 96 * 24 + 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_units_are_scored_and_cut_as_by_the_plainest_torch(dtype, monkeypatch):
    from reference.anatomy import groups
    from reference.criteria import magnitude

    monkeypatch.setattr(magnitude, "CHUNK", 64)
    g = torch.Generator().manual_seed(0)
    for shape, dim in [((12, 5), 0), ((7, 12), 1), ((12,), 0), ((12, 3, 3, 3), 0), ((5, 12, 3, 3), 1)]:
        W = torch.randn(shape, generator=g).to(dtype)
        other = [d for d in range(W.ndim) if d != dim]
        for p in (1, 2):
            each = W.double().abs().pow(p)
            expected = (each.sum(other) if other else each).reshape(4, 3).sum(1).float()
            assert torch.allclose(magnitude.unit_scores([(W, dim)], 4, p), expected, rtol=1e-5)
        stays = torch.rand(12, generator=g) < 0.6
        cut = groups.compressed(W, dim, stays)
        assert cut.dtype == dtype
        assert torch.equal(cut, W.index_select(dim, stays.nonzero().flatten()))
        kept = torch.nn.Parameter(W.movedim(0, -1))  # not contiguous
        assert torch.equal(groups.compressed(kept.detach(), (dim - 1) % W.ndim, stays), cut.movedim(0, -1).contiguous())
