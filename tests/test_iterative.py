"""Rounds: monotone, exact at the end, and nothing removed ever comes back."""

import pytest
import torch

import reference
from reference.engine import _plan, carry_out
from reference.iterative import SCHEDULES, rates_by_round
from reference.request import Request
from tests.conftest import deviation, forward, tiny_mmdit


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential"])
def test_schedules_rise_to_the_target(schedule):
    rates = [r.amount for r in rates_by_round(Request("weight", 0.8), schedule, 5)]
    assert rates == sorted(rates)
    assert rates[0] > 0
    assert rates[-1] == 0.8


def test_cubic_is_zhu_and_gupta():
    rates = [r.amount for r in rates_by_round(Request("weight", 0.5), "cubic", 4)]
    assert rates == pytest.approx([0.5 - 0.5 * 0.75**3, 0.5 - 0.5 * 0.5**3, 0.5 - 0.5 * 0.25**3, 0.5])
    assert SCHEDULES["exponential"](0.75, 0.5) == pytest.approx(0.5)  # half, then half of what is left


@pytest.mark.parametrize("granularity", ["weight", "neuron", "head"])
def test_without_recovery_rounds_end_where_one_shot_ends(granularity):
    """Magnitude does not change when other weights are zeroed, so the plans must agree: nothing compounds."""
    once, rounds = tiny_mmdit(), tiny_mmdit()
    a = reference.prune(once, granularity, 0.6)
    b = reference.prune(rounds, granularity, 0.6, schedule="cubic", rounds=5)
    assert all(torch.equal(a.plan.removed(n), b.plan.removed(n)) for n in a.plan.keep)
    assert torch.equal(forward(once), forward(rounds))


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_training_between_rounds_cannot_revive(granularity):
    model, dense = tiny_mmdit(), tiny_mmdit()
    seen = []

    def recover(pruned, number):
        optimizer = torch.optim.AdamW(pruned.parameters(), 0.05)
        for _ in range(3):
            zeros = [int((p == 0).sum()) for p in pruned.parameters()]
            out = pruned(
                torch.ones(1, 3, 8, 8),
                encoder_hidden_states=torch.ones(1, 5, 16),
                pooled_projections=torch.ones(1, 16),
                timestep=torch.tensor([500.0]),
                return_dict=False,
            )[0]
            out.square().mean().backward()
            optimizer.step()
            assert [int((p == 0).sum()) for p in pruned.parameters()] == zeros
            optimizer.zero_grad()
        seen.append((number, sum(zeros)))

    report = reference.prune(model, granularity, 0.5, schedule="cubic", rounds=3, recover=recover)
    assert [number for number, _ in seen] == [1, 2, 3]
    assert seen[0][1] < seen[1][1] < seen[2][1]
    assert report.unit_rate == pytest.approx(0.5, abs=0.01)
    # The plan speaks of the dense model: it applies to it, and removes there what was removed here.
    again = reference.apply(dense, report.plan)
    assert again.parameters_after == report.parameters_after
    assert deviation(forward(dense), forward(model)) > 1e-3  # the weights that were trained differ


def test_rounding_to_tiles_brings_nothing_back(mmdit):
    """Rounded to tiles, a round may remove more of a group than global scope asks of it in the next one."""
    before = None
    for request in rates_by_round(Request("neuron", 0.4, scope="global", round_to=64), "linear", 6):
        plan = _plan(mmdit, request, None, before)
        now = {name: plan.removed(name) for name in plan.keep}
        assert before is None or all((now[name] | ~gone).all() for name, gone in before.items())
        before = now
        carry_out(mmdit, plan, "mask")
    assert sum(int(gone.sum()) for gone in before.values()) > 0


def test_structured_rounds_cut_what_they_masked():
    model = tiny_mmdit()
    masked_outputs = []
    report = reference.prune(
        model, "head", 0.5, schedule="linear", rounds=2, recover=lambda m, r: masked_outputs.append(forward(m))
    )
    assert deviation(forward(model), masked_outputs[-1]) <= 1e-5
    assert all(layer.kept == 2 for layer in report.layers)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"schedule": "quadratic", "rounds": 2}, "unknown schedule 'quadratic'"),
        ({"schedule": "cubic", "rounds": 0}, "rounds is a whole number from 1 on, not 0"),
        ({"rounds": 3}, "'one-shot' has one round"),
    ],
)
def test_rounds_that_make_no_sense(mmdit, keywords, message):
    with pytest.raises(ValueError, match=message):
        reference.prune(mmdit, "weight", 0.5, **keywords)
    with pytest.raises(ValueError, match="cannot grow over rounds"):
        reference.prune(mmdit, "2:4", schedule="cubic", rounds=2)
