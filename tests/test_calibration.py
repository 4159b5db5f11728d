"""Calibration and every criterion that looks at data, through the public verbs."""

import copy

import pytest
import torch
from torch import Tensor, nn

import reference
from reference import calibration as calibration_module
from reference.__main__ import main
from reference.anatomy import unit_groups, weight_layers
from reference.calibration import Calibration, Calls, calls, see_inputs
from reference.consumers import consumers
from reference.criteria import obs, output_energy
from reference.criteria.obs_diff import timestep_weights
from reference.denoising_loss import gradients, squared_errors, step_losses, training_calls
from reference.engine import prune
from reference.loaders import load_pipeline
from reference.request import SERVES, WITHOUT_DATA
from reference.scoring import hessians
from tests import svdquant_files
from tests.conftest import TEXT_TOKENS, forward, tiny_mmdit
from tests.zoo import make

PROMPTS = ["red heart", "pig face", "green apple"]
STRUCTURED = ("head", "neuron")
PAIRS = [
    (criterion, granularity)
    for criterion, served in SERVES.items()
    for granularity in served
    if criterion not in WITHOUT_DATA and granularity in ("weight", "N:M", *STRUCTURED)
]


def made_calls(count: int = 3, samples: int = 2, seed: int = 0) -> list[dict]:
    """Forward keywords of `tiny_mmdit` with targets, each sample at another time."""
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "hidden_states": torch.randn(samples, 3, 8, 8, generator=g),
            "encoder_hidden_states": torch.randn(samples, TEXT_TOKENS, 16, generator=g),
            "pooled_projections": torch.randn(samples, 16, generator=g),
            "timestep": torch.rand(samples, generator=g) * 1000,
            "target": torch.randn(samples, 3, 8, 8, generator=g),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("openmoji-mmdit", dtype=torch.float32)


def pattern(granularity: str) -> str:
    return "2:4" if granularity == "N:M" else granularity


def amount_of(granularity: str) -> float | None:
    return None if granularity == "N:M" else 0.5


# -- what a run sees ------------------------------------------------------------------------------------------------


def test_a_run_sees_every_step_and_both_halves_of_guidance(pipe):
    source = Calibration(pipe, PROMPTS, steps=4, batch_size=2)
    seen = list(calls(pipe.transformer, source))
    assert [int(call.step_b) for call in seen] == [0, 1, 2, 3] * 2  # two batches
    assert {call.steps for call in seen} == {4}
    assert [len(call.keywords["hidden_states"]) for call in seen] == [4] * 4 + [2] * 4
    first = seen[0].keywords["hidden_states"]
    assert torch.equal(first[:2], first[2:])  # the noise of both halves
    assert not torch.equal(first[:1], seen[4].keywords["hidden_states"][:1])  # each batch has a seed of its own


def test_the_run_leaves_no_trace(pipe):
    source = Calibration(pipe, PROMPTS[:1], steps=2)
    pipe.transformer.train()
    pipe.transformer.transformer_blocks[0].eval()
    modes = [module.training for module in pipe.transformer.modules()]
    before = dict(pipe._progress_bar_config) if hasattr(pipe, "_progress_bar_config") else {}
    see_inputs(pipe.transformer, source, {"proj_out": pipe.transformer.proj_out}, lambda *_: None)
    assert [module.training for module in pipe.transformer.modules()] == modes
    assert not any(module._forward_pre_hooks for module in pipe.transformer.modules())
    assert pipe._progress_bar_config == before
    pipe.transformer.eval()


def test_rows_are_the_layer_s_own_product(mmdit):
    """X W^T of the rows that are handed over is what the layer answers, at every call."""
    layer, answers, products = mmdit.transformer_blocks[1].ff.net[2], [], []
    handle = layer.register_forward_hook(lambda module, args, output: answers.append(output.flatten(0, -2)))
    source = Calls(made_calls())
    see_inputs(mmdit, source, {"x": layer}, lambda name, X_gni, call: products.append(X_gni[0] @ layer.weight.T))
    handle.remove()
    assert len(answers) == 3
    for answer, product in zip(answers, products, strict=True):
        assert torch.allclose(answer, product + layer.bias, atol=1e-5)


def test_hessian_of_a_convolution_is_its_squared_output():
    """w H w^T = E (w x)^2 over the outputs of the convolution itself, stride and padding included."""
    unet, inputs = make("UNet2DModel")
    conv = next(m for m in unet.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2))
    answers = []
    handle = conv.register_forward_hook(lambda module, args, output: answers.append(output))
    H = hessians(unet, Calls([inputs]), {"conv": conv})["conv"][0]
    handle.remove()
    W = conv.weight.detach().flatten(1)
    energy = (answers[0] - conv.bias[:, None, None]).square().mean((0, 2, 3))
    assert torch.allclose(((W @ H) * W).sum(1), energy, rtol=1e-4)


def test_step_weights_reach_the_rows_of_their_samples(mmdit):
    """Each row of H counts as much as the step of its sample, steps numbered from the largest time down."""
    source = Calls(made_calls())
    times = torch.cat([c["timestep"] for c in source.keywords])
    order = times.sort(descending=True).values
    layer, rows = mmdit.transformer_blocks[0].attn.to_q, []
    see_inputs(mmdit, source, {"q": layer}, lambda name, X_gni, call: rows.append(X_gni[0].unflatten(0, (2, -1))))
    a = timestep_weights(6)[(times[:, None] == order).long().argmax(1)]
    X_bni = torch.cat(rows)
    expected = torch.einsum("b,bni,bnj->ij", a, X_bni, X_bni) / (a.sum() * X_bni.shape[1])
    found = hessians(mmdit, source, {"q": layer}, lambda call: timestep_weights(call.steps)[call.step_b])["q"][0]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


# -- the loss -------------------------------------------------------------------------------------------------------


def first_inputs(pipe, source: Calibration) -> list[dict]:
    """Keywords of the first call of every batch: pure noise."""
    return [call.keywords for call in calls(pipe.transformer, source) if int(call.step_b[0]) == 0]


def test_flow_targets_lie_on_the_line_from_noise_to_picture(pipe):
    """x_t = (1 - sigma) x_0 + sigma e and the target is e - x_0: x_t + (1 - sigma) target = e."""
    source = Calibration(pipe, PROMPTS[:1], steps=4)
    made = list(training_calls(pipe.transformer, source))
    sigmas = [call.keywords["timestep"][0] / 1000 for call, _ in made]
    ends = [
        call.keywords["hidden_states"][:1] + (1 - sigma) * target[:1]
        for (call, target), sigma in zip(made, sigmas, strict=True)
    ]
    assert all(torch.allclose(end, ends[0], atol=1e-5) for end in ends)
    assert [round(float(s), 2) for s in sigmas] == [1.0, 0.67, 0.33, 0.0]  # diffusers spaces them so
    # The noise is another than that which the picture was drawn from: it knows nothing of the picture, as in training.
    (seen,) = [keywords["hidden_states"][:1] for keywords in first_inputs(pipe, source)]
    e = ends[0].flatten()
    assert abs(float(torch.corrcoef(torch.stack([e, seen.flatten()]))[0, 1])) < 0.1


def test_every_step_of_flux_is_noised_by_its_own_sigma(tmp_path):
    """FLUX's pipeline tells the scheduler where it begins, after which the scheduler takes any time for the latest."""
    flux = load_pipeline(str(svdquant_files.write_pipeline(tmp_path)), dtype=torch.float32)
    source = Calibration(flux, PROMPTS[:1], steps=4, keywords={"height": 32, "width": 32, "max_sequence_length": 8})
    made = list(training_calls(flux.transformer, source))
    sigmas = [float(call.keywords["timestep"][0]) for call, _ in made]
    assert (len(sigmas), sigmas[0]) == (4, 1)
    assert sigmas == sorted(sigmas, reverse=True)
    ends = [
        call.keywords["hidden_states"] + (1 - sigma) * target
        for (call, target), sigma in zip(made, sigmas, strict=True)
    ]
    assert all(torch.allclose(end, ends[0], atol=1e-4) for end in ends)


def test_the_trained_model_knows_its_loss_and_a_flipped_one_is_refused(pipe):
    source = Calibration(pipe, PROMPTS, steps=4)
    losses = step_losses(pipe.transformer, source)
    assert losses.shape == (4,)
    assert losses[:3].max() < 0.5  # predicting nothing costs about 1.9
    assert losses[3] > 1  # at sigma = 0.001 nobody can see the noise
    flipped = copy.copy(pipe.transformer.proj_out.weight.data)
    pipe.transformer.proj_out.weight.data.neg_()
    pipe.transformer.proj_out.bias.data.neg_()
    try:
        with pytest.raises(ValueError, match="larger than that of predicting nothing"):
            step_losses(pipe.transformer, source)
    finally:
        pipe.transformer.proj_out.weight.data.copy_(flipped)
        pipe.transformer.proj_out.bias.data.neg_()


def test_gradients_are_autograd_s_and_only_chosen_steps_enter(mmdit):
    source = Calls(made_calls(count=2, samples=1))
    name = "transformer_blocks.1.ff.net.2.weight"
    W = mmdit.get_parameter(name)
    losses = [squared_errors(call, target).sum() for call, target in training_calls(mmdit, source)]
    by_hand = [torch.autograd.grad(loss, W)[0] for loss in losses]
    assert torch.allclose(gradients(mmdit, source, [name])[name], sum(by_hand) / 2, atol=1e-6)
    later = int(source.keywords[0]["timestep"] < source.keywords[1]["timestep"])  # the call with the larger time
    only_first = gradients(mmdit, source, [name], torch.tensor([True, False]))[name]
    assert torch.allclose(only_first, by_hand[later], atol=1e-6)
    assert W.grad is None


def test_frozen_models_have_gradients_too(mmdit):
    mmdit.requires_grad_(False)
    plan = reference.plan(mmdit, "head", 0.5, "head-gradient", calibration=made_calls())
    assert all(len(kept) == 2 for kept in plan.keep.values())
    reference.plan(mmdit, "neuron", 0.5, "taylor", calibration=made_calls())
    assert not any(p.requires_grad for p in mmdit.parameters())


def test_gradient_checkpointing_changes_no_plan(mmdit):
    """The backward pass runs the blocks once more, in front of everybody who watches."""
    plain = reference.plan(mmdit, "head", 0.5, "head-gradient", calibration=made_calls())
    mmdit.enable_gradient_checkpointing()
    again = reference.plan(mmdit, "head", 0.5, "head-gradient", calibration=made_calls())
    assert plain.keep.keys() == again.keep.keys()
    assert all(torch.equal(plain.keep[name], again.keep[name]) for name in plain.keep)


# -- every criterion through plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("criterion", "granularity"), PAIRS)
def test_plans_are_exact_and_leave_the_model_alone(mmdit, criterion, granularity):
    before = {n: p.clone() for n, p in mmdit.named_parameters()}
    plan = reference.plan(mmdit, pattern(granularity), amount_of(granularity), criterion, calibration=made_calls())
    assert all(torch.equal(before[n], p) for n, p in mmdit.named_parameters())
    assert len(plan.keep) > 0
    for name in plan.keep:
        removed = plan.removed(name)
        assert int(removed.sum()) == int(0.5 * removed.numel() + 0.5)
        if granularity == "N:M":
            assert (removed.reshape(-1, 4).sum(1) == 2).all()
    report = reference.apply(mmdit, plan)
    assert report.unit_rate == pytest.approx(0.5, abs=0.01)
    assert torch.isfinite(forward(mmdit)).all()


@pytest.mark.parametrize(("criterion", "granularity"), PAIRS)
def test_data_must_be_given(mmdit, criterion, granularity):
    with pytest.raises(reference.NeedsCalibration, match=f"'{criterion}' looks at data"):
        reference.plan(mmdit, pattern(granularity), amount_of(granularity), criterion)


@pytest.mark.parametrize("criterion", ["wanda", "taylor", "obs", "obs-diff"])
def test_nothing_asked_nothing_changed(mmdit, criterion):
    before = {n: p.clone() for n, p in mmdit.named_parameters()}
    reference.prune(mmdit, "weight", 0, criterion=criterion, calibration=made_calls())
    assert all(torch.equal(before[n], p) for n, p in mmdit.named_parameters())


@pytest.mark.parametrize("granularity", ["weight", "2:4", "head", "neuron"])
def test_pruning_in_place_ends_where_the_plan_ends(granularity):
    """OBS writes package by package without a copy; plan and apply must give the same model."""
    planned, in_place = tiny_mmdit(), tiny_mmdit()
    amount = None if granularity == "2:4" else 0.5
    plan = reference.plan(planned, granularity, amount, "obs", calibration=made_calls())
    reference.apply(planned, plan)
    report = prune(in_place, granularity, amount, criterion="obs", calibration=made_calls())
    assert all(torch.equal(a, b) for a, b in zip(planned.parameters(), in_place.parameters(), strict=True))
    assert report.plan.digest == plan.digest
    assert not report.plan.weights
    assert plan.weights


def test_a_plan_with_new_weights_survives_the_disk(tmp_path):
    here, there = tiny_mmdit(), tiny_mmdit()
    plan = reference.plan(here, "neuron", 0.5, "obs", calibration=made_calls())
    plan.save(tmp_path)
    reference.apply(here, plan)
    reference.apply(there, reference.Plan.load(tmp_path))
    assert torch.equal(forward(here), forward(there))


def test_later_packages_see_earlier_ones_pruned(mmdit, monkeypatch):
    """With one package all Hessians come from the dense model, with four most do not: the new weights differ."""
    one = Calls([dict(c) for c in made_calls()], packages=1)
    monkeypatch.setattr("reference.engine.as_source", lambda calibration: one)
    together = reference.plan(mmdit, "weight", 0.5, "obs", calibration=made_calls())
    monkeypatch.setattr("reference.engine.as_source", calibration_module.as_source)
    in_four = reference.plan(mmdit, "weight", 0.5, "obs", calibration=made_calls())
    first, last = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.2.ff.net.2.weight"
    assert torch.equal(together.weights[first], in_four.weights[first])
    assert not torch.equal(together.weights[last], in_four.weights[last])


def test_rounds_recalibrate_and_keep_what_is_gone(mmdit):
    seen = []

    def recover(model, round_):
        seen.append([int((p == 0).sum()) for n, p in model.named_parameters() if n.endswith("ff.net.2.weight")])

    report = reference.prune(
        mmdit, "weight", 0.6, "linear", 3, recover, made_calls(), criterion="obs", only="*.ff.net.2"
    )
    assert [sum(zeros) for zeros in seen] == sorted(sum(zeros) for zeros in seen)
    for name in report.plan.keep:
        removed = report.plan.removed(name)
        assert int(removed.sum()) == int(0.6 * removed.numel() + 0.5)
        assert (mmdit.get_submodule(name).weight[removed] == 0).all()


def test_unit_errors_of_one_head_match_masking_it(mmdit):
    """Output energy is what masking one head alone adds to the squared output, over all streams."""
    group = unit_groups(mmdit, "head")[0][0]
    source = Calls(made_calls())
    readers = consumers(mmdit, group)
    assert [c.name.rsplit(".attn.")[1] for c in readers] == ["to_out.0", "to_add_out"]
    H = hessians(mmdit, source, {c.name: c.layer for c in readers})
    energy = sum(output_energy.unit_scores(c.layer.weight, H[c.name][0], c.width) for c in readers)
    rows: dict[str, list[Tensor]] = {}
    see_inputs(mmdit, source, {c.name: c.layer for c in readers}, lambda n, X, _: rows.setdefault(n, []).append(X[0]))
    for h in range(4):
        columns = slice(h * 6, h * 6 + 6)
        rise = sum(
            (torch.cat(rows[c.name])[:, columns] @ c.layer.weight[:, columns].T).square().sum(1).mean() for c in readers
        )
        assert energy[h].item() == pytest.approx(rise.item(), rel=1e-4)


# -- a unit that does nothing ---------------------------------------------------------------------------------------


def plant(model: nn.Module, granularity: str, unit: int) -> None:
    """Make one unit of each group put out nothing, while its weights stay the largest of all."""
    for group in unit_groups(model, granularity)[0]:
        producers = [s for s in group.slices if s.dim == 0 and s.masked]
        if granularity == "head":
            silent = [s for s in producers if s.parameter.split(".")[-2] in ("to_v", "add_v_proj")]
        else:
            silent = producers
        for s in group.slices:
            span = model.get_parameter(s.parameter).data.narrow(s.dim, s.start + unit * s.width, s.width)
            span.zero_() if s in silent else span.mul_(5)


# Gates are trained under noise: to rank 96 neurons takes more calls than a test has, 4 heads do not.
RANKED = [pair for pair in PAIRS if pair[1] in STRUCTURED and pair != ("learned", "neuron")]


@pytest.mark.parametrize(("criterion", "granularity"), RANKED)
def test_a_unit_that_does_nothing_goes_first(criterion, granularity):
    model = tiny_mmdit()
    plant(model, granularity, 2)
    rate = 1.0 / (4 if granularity == "head" else 96)
    plan = reference.plan(model, granularity, rate, criterion, calibration=made_calls())
    for name in plan.keep:
        assert plan.removed(name).nonzero().flatten().tolist() == [2], name


def test_magnitude_does_not_see_that_it_does_nothing():
    model = tiny_mmdit()
    plant(model, "head", 2)
    plan = reference.plan(model, "head", 0.25)
    assert all(not plan.removed(name)[2] for name in plan.keep)


# -- the order of the criteria on the trained model -----------------------------------------------------------------


def test_obs_beats_wanda_beats_magnitude_on_the_trained_model(pipe):
    """Error of the prediction along dense trajectories of prompts that calibration did not see, 2:4."""
    source = Calibration(
        pipe, ["dog", "rocket", "umbrella", "cat face", "sleeping face", "guitar"], steps=8, batch_size=6
    )
    held_out = Calibration(pipe, PROMPTS, steps=8, batch_size=3, seed=50)
    with torch.no_grad():
        dense = [(c, c.denoiser(**c.keywords | {"return_dict": False})[0]) for c in calls(pipe.transformer, held_out)]
    errors = {}
    for criterion in ("magnitude", "wanda", "obs"):
        pruned = copy.deepcopy(pipe.transformer)
        data = None if criterion == "magnitude" else source
        reference.apply(pruned, reference.plan(pipe.transformer, "2:4", criterion=criterion, calibration=data))
        with torch.no_grad():
            errors[criterion] = sum(
                float((pruned(**c.keywords | {"return_dict": False})[0] - v).square().mean()) for c, v in dense
            )
    assert errors["obs"] < 0.9 * errors["wanda"]
    assert errors["wanda"] < 0.9 * errors["magnitude"]


def test_obs_diff_serves_the_steps_that_weigh_more(pipe, monkeypatch):
    """With weights that differ a hundredfold, the weighted error of the layers is lower than that of plain OBS.

    The paper's own weights, 0.8 to 1.2, change so little that either comes out first (`--suite engine`).
    """

    def steep(steps: int) -> Tensor:
        return timestep_weights(steps, a_min=0.1, a_max=10.0)

    monkeypatch.setattr("reference.compensation.obs_diff.timestep_weights", steep)
    source = Calibration(pipe, ["dog", "rocket", "umbrella", "cat face"], steps=6)
    layers = {f"{i}.{p}": pipe.transformer.transformer_blocks[0].get_submodule(p) for i, p in enumerate(
        ("attn.to_q", "attn.add_q_proj", "norm1.linear"))}  # fmt: skip
    H = hessians(pipe.transformer, source, layers, lambda call: steep(call.steps)[call.step_b])
    errors = {}
    for criterion in ("obs", "obs-diff"):
        plan = reference.plan(pipe.transformer, "weight", 0.5, criterion, calibration=source)
        errors[criterion] = 0.0
        for name, layer in layers.items():
            E = layer.weight.detach() - plan.weights[f"transformer_blocks.0.{name[2:]}.weight"]
            errors[criterion] += float(((E @ H[name][0]) * E).sum())
    assert errors["obs-diff"] < 0.98 * errors["obs"]


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "one text"}, "prompts is a list"),
        ({"prompts": []}, "prompts is a list"),
        ({"prompts": ["a"], "steps": 0}, "steps is a whole number"),
        ({"prompts": ["a"], "packages": 0}, "packages is a whole number"),
    ],
)
def test_calibrations_that_make_no_sense(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        Calibration(pipe, **arguments)


def test_calibration_refuses_what_it_cannot_use(pipe, mmdit):
    with pytest.raises(ValueError, match="runs a DiffusionPipeline"):
        Calibration(mmdit, ["a"])
    with pytest.raises(ValueError, match="does not hold the SD3Transformer2DModel"):
        reference.plan(mmdit, "weight", 0.5, "wanda", calibration=Calibration(pipe, ["a"], steps=1))
    with pytest.raises(ValueError, match="calibration is empty"):
        reference.plan(mmdit, "weight", 0.5, "wanda", calibration=[])
    without = [{k: v for k, v in call.items() if k != "target"} for call in made_calls()]
    with pytest.raises(ValueError, match="needs `target`"):
        reference.plan(mmdit, "weight", 0.5, "taylor", calibration=without)
    one_step = [call | {"timestep": torch.full((2,), 500.0)} for call in made_calls()]
    with pytest.raises(ValueError, match="a single one"):
        reference.plan(mmdit, "weight", 0.5, "obs-diff", calibration=one_step)
    with pytest.raises(ValueError, match="scope 'global' does not fit head by obs"):
        reference.plan(mmdit, "head", 0.5, "obs", "global", calibration=made_calls())


def test_an_interrupted_plan_gives_the_model_back(mmdit, monkeypatch):
    """The third solve fails: the weights that were already written over come back."""
    before = {n: p.clone() for n, p in mmdit.named_parameters()}
    solved = []

    def failing(*arguments, **keywords):
        solved.append(1)
        if len(solved) == 3:
            raise ValueError("the Hessian of 24 inputs is zero")
        return obs.prune_weights(*arguments, **keywords)

    monkeypatch.setattr("reference.compensation.obs.prune_weights", failing)
    with pytest.raises(ValueError, match="Hessian"):
        reference.plan(mmdit, "weight", 0.5, "obs", calibration=made_calls())
    assert all(torch.equal(before[n], p) for n, p in mmdit.named_parameters())


def test_layers_that_no_call_reaches_stay_whole_and_are_named(mmdit):
    mmdit.unused = nn.ModuleList([nn.Linear(8, 8)])
    plan = reference.plan(mmdit, "weight", 0.5, "wanda", calibration=made_calls())
    assert plan.skipped["unused.0"] == "calibration never reached it"
    assert "unused.0" not in plan.keep
    assert {layer.name for layer in weight_layers(mmdit) if layer.repeated} == {*plan.keep, "unused.0"}


# -- memory and the command line ------------------------------------------------------------------------------------


def test_a_model_is_calibrated_in_the_memory_of_one_package(mmdit, monkeypatch):
    """Hessians of one package at a time: each run asks for a part of the layers, and together for each layer once."""
    asked = []

    def watched(root, source, layers, weigh=None):
        asked.append(sum(layer.weight.shape[1] ** 2 for layer in layers.values()))
        return hessians(root, source, layers, weigh)

    monkeypatch.setattr("reference.compensation.hessians", watched)
    reference.plan(mmdit, "weight", 0.5, "obs", calibration=made_calls())
    assert len(asked) == 4
    layers = [layer.module for layer in weight_layers(mmdit) if layer.repeated]
    assert sum(asked) == sum(layer.weight.shape[1] ** 2 for layer in layers)
    assert max(asked) < 0.5 * sum(asked)


def test_the_command_line_calibrates(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red heart\n\ngreen apple\n")
    arguments = ["prune", "openmoji-mmdit", "--granularity", "head", "--amount", "0.4", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--criterion", "obs-diff"]) == 2
    assert "give --prompts FILE" in capsys.readouterr().err
    assert main([*arguments, "--criterion", "obs-diff", "--prompts", str(prompts), "--steps", "2"]) == 0
    loaded = reference.load_pruned(tmp_path / "out")
    assert {block.attn.heads for block in loaded.transformer.transformer_blocks} == {3}
    assert loaded.transformer._pruning_history[0]["request"]["criterion"] == "obs-diff"
