"""Low-rank modulation: exact where it says so, its costs add up, one basis for all layers that read one vector."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, SD3Transformer2DModel
from safetensors import safe_open
from torch import nn

import reference
from reference import low_rank
from reference.__main__ import main
from reference.anatomy import all_groups
from reference.anatomy.groups import Group, Slice
from reference.anatomy.modulation import Basis, LowRankLinear, cut_directions, directions, layers_of
from reference.calibration import as_source, see_inputs
from reference.loaders import load_pipeline
from reference.request import Request
from tests.conftest import deviation, forward, tiny_mmdit
from tests.coverage import check_shared_inputs
from tests.zoo import make, output

LAW = 1e-5
WIDTH = 24
GROUP = "transformer_blocks.0.norm1.linear"  # of tiny_mmdit: all seven modulation layers


def calls(count=6, seed=3):
    """Forward keywords of tiny_mmdit; every call brings two more conditioning vectors."""
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "hidden_states": torch.randn(2, 3, 8, 8, generator=g),
            "encoder_hidden_states": torch.randn(2, 5, 16, generator=g),
            "pooled_projections": torch.randn(2, 16, generator=g),
            "timestep": 1000 * torch.rand(2, generator=g),
        }
        for _ in range(count)
    ]


def outputs_of(model, layers, keywords):
    """What the layers put out over all calls, (rows, outputs of all layers)."""
    seen = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen[name].append(y))
        for name in layers
    ]
    with torch.no_grad():
        for call in keywords:
            model(**call)
    for handle in handles:
        handle.remove()
    return torch.cat([torch.cat(rows) for rows in seen.values()], dim=1)


def vectors(model, keywords):
    """What the modulation layers read over all calls, (n, d)."""
    seen = []
    handle = model.get_submodule(GROUP).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for call in keywords:
            model(**call)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("bias", [True, False])
def test_costs_of_removed_directions_add_up(bias):
    """Any set J of directions, not only the cheapest: E sum_l ||change of layer l||^2 = sum_J S_j."""
    torch.manual_seed(0)
    E_nd = torch.randn(400, 8) @ torch.randn(8, 8) + 3
    layers = [nn.Linear(8, o, bias=bias) for o in (5, 16)]
    G_dd = low_rank.gram([layer.weight for layer in layers])
    mu_d = E_nd.mean(0) if bias else torch.zeros(8)
    B_dd, S_d = low_rank.energy_basis(mu_d, E_nd.T @ E_nd / 400, G_dd)
    assert torch.allclose(B_dd @ B_dd.T, torch.eye(8), atol=1e-6)
    assert (S_d[:-1] >= S_d[1:]).all()
    for gone in ([7], [0], [1, 4], [0, 2, 3, 7]):
        keep = [j for j in range(8) if j not in gone]
        model = nn.ModuleList(copy.deepcopy(layers))
        group = Group("0", "modulation", 8, tuple(Slice(f"{i}.weight", 1, 0, 1) for i in range(2)))
        cut_directions(model, {group: Basis(B_dd[keep], mu_d)})
        with torch.no_grad():
            changed = sum(
                (cut(E_nd) - dense(E_nd)).square().sum(1).mean() for cut, dense in zip(model, layers, strict=True)
            )
        assert float(changed) == pytest.approx(float(S_d[gone].sum()), rel=1e-4, abs=1e-6 * float(S_d.sum()))


def test_exact_where_the_vectors_lie_in_the_span():
    """Four samples span three directions around their mean: rank 3 loses nothing, rank 2 does."""
    seen = calls(2)
    dense = tiny_mmdit()
    for rank, exact in ((3, True), (2, False)):
        model = tiny_mmdit()
        reference.prune(model, "rank", rank=rank, criterion="output-energy", calibration=seen)
        with torch.no_grad():
            lost = max(deviation(model(**call)[0], dense(**call)[0]) for call in seen)
        assert (lost <= 1e-4) == exact
        assert exact or lost > 1e-2
        (group,) = all_groups(dense, "rank")
        plan = reference.plan(dense, "rank", rank=rank, criterion="output-energy", calibration=seen)
        G_dd = low_rank.gram([dense.get_submodule(name).weight for name in layers_of(group)])
        basis = Basis(plan.weights[f"{GROUP}.basis"], plan.weights[f"{GROUP}.mean"])
        assert (low_rank.residual(vectors(dense, seen), basis, G_dd) < 1e-4) == exact
        assert low_rank.residual(vectors(dense, calls(2, seed=9)), basis, G_dd) > 0.05  # held out: other vectors


def test_scores_are_what_the_model_loses():
    """Through the public verbs: the squared change of the outputs of all seven layers is the sum of scores."""
    dense, seen = tiny_mmdit(), calls(20)
    (group,) = all_groups(dense, "rank")
    request = Request("rank", 0.5, "output-energy")
    moments = low_rank.moments(dense, [group], as_source(seen))[GROUP]
    E_nd = vectors(dense, seen)
    assert torch.allclose(moments.mu_d, E_nd.mean(0), atol=1e-5)
    assert torch.allclose(moments.H_dd, E_nd.T @ E_nd / len(E_nd), atol=1e-5)
    _, S_d = low_rank.scored_basis(dense, group, request, moments)
    masked = tiny_mmdit()
    reference.apply(masked, reference.plan(masked, "rank", 0.5, "output-energy", calibration=seen), mode="mask")
    before, after = (outputs_of(model, layers_of(group), seen) for model in (dense, masked))
    lost = (after - before).square().sum(1).mean()
    assert float(lost) == pytest.approx(float(S_d[WIDTH // 2 :].sum()), rel=1e-3)
    assert float(lost) > 1e-3


def test_what_no_layer_reads_goes_first():
    """A direction of large variance that every W_l is blind to costs nothing; variance alone would keep it."""
    E_nd = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 1, 1, 1, 1])
    W_od = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    W_od[:, 0] = 0
    B_dd, S_d = low_rank.energy_basis(E_nd.mean(0), E_nd.T @ E_nd / 500, low_rank.gram([W_od]))
    assert B_dd[-1, 0].abs() > 0.99
    assert S_d[-1] < 0.05 * S_d[-2]


def test_magnitude_is_the_best_rank_of_the_stacked_weights():
    dense, masked = tiny_mmdit(), tiny_mmdit()
    reference.apply(masked, reference.plan(masked, "rank", rank=10), mode="mask")
    (group,) = all_groups(dense, "rank")
    stacked, after = (torch.cat([m.get_submodule(n).weight for n in layers_of(group)]) for m in (dense, masked))
    singular = torch.linalg.svdvals(stacked)
    assert torch.allclose(torch.linalg.norm(stacked - after), singular[10:].norm(), rtol=1e-5)  # Eckart-Young
    assert int((torch.linalg.svdvals(after) > 1e-4).sum()) == 10


FAMILIES = (
    "AuraFlowTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "CogView4Transformer2DModel",
    "CosmosTransformer3DModel",
    "DiTTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "HunyuanVideoTransformer3DModel:token_replace",
    "Kandinsky6Transformer3DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel:3.5",
    "StableCascadeUNet",
    "UNet2DConditionModel",
    "ZImageTransformer2DModel",
)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "output-energy"])
@pytest.mark.parametrize("name", FAMILIES)
def test_cut_equals_mask(name, criterion):
    dense, inputs = make(name)
    calibration = [inputs] if criterion == "output-energy" else None
    with torch.no_grad():
        before = output(dense, inputs)
    for amount in (0.3, 0.9):
        masked, cut = make(name)[0], make(name)[0]
        plan = reference.plan(dense, "rank", amount, criterion, calibration=calibration)
        reference.apply(masked, plan, mode="mask")
        reference.apply(cut, plan)
        with torch.no_grad():
            expected, actual = output(masked, inputs), output(cut, inputs)
        assert deviation(actual, expected) <= LAW
    if criterion != "output-energy":  # for which two vectors are few enough to be kept
        assert deviation(expected, before) > 1e-3


def test_groups_read_one_vector():
    """DiT embeds the time in every block, Kandinsky 6 has a vector for sound, HunyuanVideo's refiner its own."""
    sizes = {
        "DiTTransformer2DModel": [1, 1, 1],
        "FluxTransformer2DModel": [8],
        "Kandinsky6Transformer3DModel": [9, 9],
        "HunyuanVideoTransformer3DModel:token_replace": [2, 5, 3],
    }
    for name, expected in sizes.items():
        model, _ = make(name)
        assert sorted(len(layers_of(group)) for group in all_groups(model, "rank")) == sorted(expected)


def test_layers_fed_by_different_vectors_are_noticed(monkeypatch):
    """Were DiT's blocks taken for one group, the coverage tool would say so."""
    check_shared_inputs("DiTTransformer2DModel")
    monkeypatch.setattr("reference.anatomy.modulation.OWN_EMBEDDING", ())
    with pytest.raises(AssertionError, match=r"transformer_blocks\.1\.norm1\.linear does not read the vector of"):
        check_shared_inputs("DiTTransformer2DModel")


def test_layers_share_one_basis():
    model = tiny_mmdit()
    before = sum(p.numel() for p in model.parameters())
    report = reference.prune(model, "rank", rank=4)
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert len(layers) == 7
    assert all(layer.basis is layers[0].basis and layer.mean is layers[0].mean for layer in layers)
    outputs = sum(layer.out_features for layer in layers)
    assert report.parameters_before - report.parameters_after == outputs * WIDTH - outputs * 4 - 4 * WIDTH - WIDTH
    assert report.parameters_before == before
    assert report.layers[0].kept == 4
    model.to(torch.float64)
    assert layers[0].basis is layers[-1].basis
    assert layers[0].basis.dtype == torch.float64


def test_amount_and_rank():
    model = tiny_mmdit()
    (group,) = reference.units(model, "rank")
    assert group == (
        GROUP,
        "modulation",
        WIDTH,
        sum(p.shape[0] * WIDTH for n, p in model.named_parameters() if "norm" in n and n.endswith("linear.weight")),
    )
    assert len(reference.plan(model, "rank", 0.3).keep[GROUP]) == WIDTH - 7
    assert reference.plan(model, "rank", rank=16).keep[GROUP].tolist() == list(range(16))
    assert len(reference.plan(model, "rank", {"modulation": 0.5}).keep[GROUP]) == 12
    assert len(reference.plan(model, "rank", 0.5, round_to=8).keep[GROUP]) == 16
    before = forward(model)
    for nothing in ({"amount": 0.0}, {"rank": WIDTH}, {"rank": 1000}):
        for mode in ("mask", "cut"):
            same = tiny_mmdit()
            reference.apply(same, reference.plan(same, "rank", **nothing), mode=mode)
            assert torch.equal(forward(same), before)
            assert not any(isinstance(m, LowRankLinear) for m in same.modules())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"granularity": "rank", "amount": 0.5, "rank": 4}, "without amount"),
        ({"granularity": "head", "rank": 4}, "goes with granularity 'rank'"),
        ({"granularity": "rank", "rank": 0}, "whole number from 1 on, not 0"),
        ({"granularity": "rank", "rank": True}, "whole number from 1 on, not True"),
        ({"granularity": "rank", "rank": 2.5}, "whole number"),
        ({"granularity": "rank"}, "fraction in"),
        ({"granularity": "rank", "amount": 0.5, "criterion": "wanda"}, "does not serve rank"),
        ({"granularity": "rank", "amount": 0.5, "scope": "row"}, "does not fit rank"),
    ],
)
def test_wrong_arguments_are_refused(keywords, message):
    model = tiny_mmdit()
    with pytest.raises(ValueError, match=message):
        reference.plan(model, **keywords)
    with pytest.raises(ValueError, match=message):
        reference.prune(model, **keywords)


def test_data_and_rates_are_asked_for():
    with pytest.raises(reference.NeedsCalibration):
        reference.plan(tiny_mmdit(), "rank", 0.5, "output-energy")
    with pytest.raises(ValueError, match="rank=4 is not a rate and cannot grow over rounds"):
        reference.prune(tiny_mmdit(), "rank", rank=4, schedule="linear", rounds=2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WanTransformer3DModel", "each block adds a table to one modulation vector that is made once"),
        ("PixArtTransformer2DModel", "each block adds a table"),
        ("ErnieImageTransformer2DModel", "only one layer is fed by this vector"),
        ("ChromaTransformer2DModel", "an approximator makes all modulation vectors"),
        ("Flux3Transformer2DModel", "with a vector for each token"),
        ("PriorTransformer", "no layer turns a conditioning vector into the modulation of a block"),
    ],
)
def test_refusals_name_the_reason(name, reason):
    with pytest.raises(reference.NotPrunable, match=f"{name}: .*{reason}"):
        reference.plan(make(name)[0], "rank", 0.5)


def test_a_low_rank_model_is_not_cut_again():
    model = tiny_mmdit()
    reference.prune(model, "rank", 0.5)
    with pytest.raises(reference.NotPrunable, match="low-rank already; plan on the dense model"):
        reference.plan(model, "rank", 0.5)


def test_plans_are_small_and_come_back(tmp_path):
    model = tiny_mmdit()
    plan = reference.plan(model, "rank", 0.5, "output-energy", calibration=calls())
    assert {name: tuple(t.shape) for name, t in plan.weights.items()} == {
        f"{GROUP}.basis": (12, WIDTH),
        f"{GROUP}.mean": (WIDTH,),
    }
    assert plan.weights[f"{GROUP}.mean"].abs().max() > 0.01
    plan.save(tmp_path)
    by_file, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    reference.apply(by_file, reference.Plan.load(tmp_path))
    reference.apply(model, plan)
    assert torch.equal(forward(by_file), forward(model))
    reference.apply(by_hand, reference.Plan.from_removed(by_hand, "rank", {GROUP: range(12, WIDTH)}))
    by_magnitude = tiny_mmdit()
    reference.prune(by_magnitude, "rank", 0.5)
    assert torch.equal(forward(by_hand), forward(by_magnitude))
    with pytest.raises(ValueError, match="made for another model"):
        reference.apply(model, plan)


def test_layers_without_bias_keep_their_mean_in_the_basis():
    """FLUX.2's have none to put W mu into, so directions are those of H itself and mu is 0."""
    model, inputs = make("Flux2Transformer2DModel")
    plan = reference.plan(model, "rank", 0.5, "output-energy", calibration=[inputs])
    (mean,) = (t for name, t in plan.weights.items() if name.endswith(".mean"))
    assert not mean.any()
    with torch.no_grad():
        before = output(model, inputs)
        reference.apply(model, plan)
        assert deviation(output(model, inputs), before) <= 1e-4  # two vectors lie in 16 directions


def test_dtype_device_and_gradients_are_kept():
    model = tiny_mmdit().to(torch.bfloat16).requires_grad_(False).train()
    exact = tiny_mmdit()
    exact.load_state_dict({name: t.float() for name, t in model.state_dict().items()})
    plan, of_exact = (reference.plan(m, "rank", 0.25) for m in (model, exact))
    assert torch.equal(plan.weights[f"{GROUP}.basis"], of_exact.weights[f"{GROUP}.basis"])  # computed in fp32
    reference.apply(model, plan)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    reference.apply(exact, of_exact)
    assert deviation(forward(model.eval()).float(), forward(exact)) < 0.05


def test_layers_of_two_dtypes_do_not_share():
    """Some models keep a part in fp32: it gets a basis in fp32, and both parts keep their dtype."""
    model = tiny_mmdit()
    model.transformer_blocks[1].norm1.linear.to(torch.bfloat16)
    before = {name: p.dtype for name, p in model.named_parameters()}
    assert [len(layers_of(group)) for group in all_groups(model, "rank")] == [6, 1]
    reference.prune(model, "rank", rank=4)
    assert all(p.dtype == before[name] for name, p in model.named_parameters() if name in before)
    mixed = model.transformer_blocks[1].norm1.linear
    assert {p.dtype for p in mixed.parameters()} == {torch.bfloat16}
    assert mixed(torch.zeros(1, WIDTH, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rounds_end_where_one_shot_ends():
    one, three = tiny_mmdit(), tiny_mmdit()
    reference.prune(one, "rank", 0.5)
    reference.prune(three, "rank", 0.5, schedule="linear", rounds=3)
    assert deviation(forward(three), forward(one)) <= 1e-4


def test_recovery_cannot_revive_a_direction():
    model, norms = tiny_mmdit(), []

    def recover(model, number):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for call in calls(3):
            model(**call)[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        (group,) = all_groups(model, "rank")
        stacked = torch.cat([model.get_submodule(name).weight for name in layers_of(group)])
        norms.append(int((torch.linalg.svdvals(stacked) > 1e-4).sum()))

    report = reference.prune(model, "rank", 0.5, schedule="linear", rounds=2, recover=recover)
    assert norms == [18, 12]
    assert report.layers[0].kept == 12


def test_a_rank_that_does_not_pay_is_named():
    model, _ = make("CosmosTransformer3DModel")
    report = reference.prune(model, "rank", 0.1)
    assert report.parameters_after > report.parameters_before
    ((layer, numbers),) = report.larger.items()
    assert layer.endswith("linear_1")
    grown = report.parameters_after - report.parameters_before
    low, dense = (int(word.replace(",", "")) for word in numbers.split() if word[0].isdigit())
    assert low - dense == grown
    assert numbers in str(report)
    json.dumps(report.to_dict())
    assert not reference.prune(tiny_mmdit(), "rank", 0.5).larger


def test_low_rank_models_come_back_in_another_process(tmp_path):
    model = tiny_mmdit()
    reference.prune(model, "rank", rank=5, criterion="output-energy", calibration=calls())
    reference.save_pruned(model, tmp_path / "m")
    torch.save(forward(model), tmp_path / "expected.pt")
    script = (
        "import sys, torch, reference\n"
        "from tests.conftest import forward\n"
        "model = reference.load_pruned(sys.argv[1])\n"
        "expected = torch.load(sys.argv[2], weights_only=True)\n"
        "assert torch.equal(forward(model), expected)\n"
        "print(len({p.data_ptr() for n, p in model.named_parameters(remove_duplicate=False) if n.endswith('.basis')}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m"), str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    manifest = json.loads((tmp_path / "m" / "pruning.json").read_text())
    ((layers, rank),) = ((group["layers"], group["rank"]) for group in manifest["low_rank"])
    assert (len(layers), rank) == (7, 5)
    with safe_open(tmp_path / "m" / "pruned.safetensors", "pt") as file:
        assert [name for name in file.keys() if name.endswith((".basis", ".mean"))] == [  # noqa: SIM118
            f"{GROUP}.basis",
            f"{GROUP}.mean",
        ]


def test_masked_folder_is_plain_diffusers(tmp_path):
    model = tiny_mmdit()
    reference.apply(model, reference.plan(model, "rank", 0.5), mode="mask")
    reference.save_pruned(model, tmp_path / "m")
    plain = SD3Transformer2DModel.from_pretrained(tmp_path / "m", use_safetensors=True)
    assert torch.equal(forward(plain.eval()), forward(model))


@pytest.mark.parametrize("order", [("rank", "channel"), ("channel", "rank"), ("rank", "head", "neuron")])
def test_other_granularities_before_and_after(order, tmp_path):
    """A residual block's channels own rows of its time projection, low-rank or not."""
    (masked, inputs), (cut, _) = make("UNet2DConditionModel"), make("UNet2DConditionModel")
    for granularity in order:
        # The mask of the later cut is planned on the model that the earlier one has shrunk already.
        plan = reference.plan(cut, granularity, 0.5)
        masked = copy.deepcopy(cut)
        reference.apply(masked, plan, mode="mask")
        reference.apply(cut, plan)
        with torch.no_grad():
            assert deviation(output(cut, inputs), output(masked, inputs)) <= LAW
    reference.save_pruned(cut, tmp_path / "m")
    again = reference.load_pruned(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(output(again, inputs), output(cut, inputs))


def _group(**changes):
    return lambda manifest: manifest["low_rank"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(low_rank="all"), "low_rank is no list of groups"),
        (lambda m: m.update(low_rank=[GROUP]), "low_rank is no list of groups"),
        (_group(rank=10**9), "rank 1000000000 of .* does not fit its 24 inputs"),
        (_group(rank=0), "rank 0 of"),
        (_group(rank=True), "rank True of"),
        (_group(rank="5"), "rank '5' of"),
        (_group(layers=[]), "instead of layers"),
        (_group(layers=[[GROUP]]), "instead of layers"),
        (_group(layers=["../../x"]), "are not Linears of one width"),
        (_group(layers=[""]), "are not Linears of one width"),
        (_group(layers=[GROUP, GROUP]), "are not Linears of one width"),
        (_group(layers=[GROUP, "context_embedder"]), "are not Linears of one width"),
        (_group(layers=[GROUP]), "is not part of the model|are missing|the manifest says"),
        (_group(rank=6), "the manifest says"),
        (lambda m: m.pop("low_rank"), "cannot be read|missing|not part of"),
    ],
)
def test_crafted_manifests_are_refused(tmp_path, change, message):
    model = tiny_mmdit()
    reference.prune(model, "rank", rank=5)
    reference.save_pruned(model, tmp_path / "m")
    file = tmp_path / "m" / "pruning.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message) as caught:
        reference.load_pruned(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "share"),
    [
        (lambda: FluxTransformer2DModel(guidance_embeds=True), 0.27),
        (lambda: QwenImageTransformer2DModel(), 0.33),
        (
            lambda: SD3Transformer2DModel(  # 3.5 large
                sample_size=128,
                num_layers=38,
                num_attention_heads=38,
                joint_attention_dim=4096,
                caption_projection_dim=2432,
                pooled_projection_dim=2048,
                qk_norm="rms_norm",
            ),
            0.33,
        ),
    ],
    ids=["FLUX.1-dev", "Qwen-Image", "SD3.5-large"],
)
def test_share_of_full_size_models(build, share):
    """Counted on the meta device at rank 16."""
    with init_empty_weights():
        model = build()
    before = sum(p.numel() for p in model.parameters())
    (group,) = directions("", model)
    meta = {"device": "meta"}
    cut_directions(model, {group: Basis(torch.empty(16, group.count, **meta), torch.empty(group.count, **meta))})
    assert 1 - sum(p.numel() for p in model.parameters()) / before == pytest.approx(share, abs=0.005)


def test_the_trained_model_lives_in_few_directions():
    """openmoji-mmdit at rank 16 of 160, on prompts that calibration did not see: data beats magnitude beats chance."""
    pipeline = load_pipeline("openmoji-mmdit")
    root = nn.ModuleDict({"transformer": pipeline.transformer})
    (group,) = all_groups(root, "rank")
    G_dd = low_rank.gram([root.get_submodule(name).weight for name in layers_of(group)])
    held_out = []
    runs = [
        reference.Calibration(pipeline, prompts, steps=8, seed=seed)
        for prompts, seed in ((["red heart", "pig face", "rocket", "tree"], 0), (["green apple", "moon"], 1))
    ]
    first = {group.name: root.get_submodule(layers_of(group)[0])}
    see_inputs(root, runs[1], first, lambda _, X_1nd, __: held_out.append(X_1nd[0]))
    residuals = []
    for criterion in ("output-energy", "magnitude", "random"):
        calibration = runs[0] if criterion == "output-energy" else None
        plan = reference.plan(pipeline, "rank", rank=16, criterion=criterion, calibration=calibration)
        basis = Basis(plan.weights[f"{group.name}.basis"], plan.weights[f"{group.name}.mean"])
        residuals.append(low_rank.residual(torch.cat(held_out), basis, G_dd))
    assert residuals[0] < 0.05 < residuals[1] < 0.3 < residuals[2]
    assert reference.apply(pipeline, plan).model_rate > 0.29


def test_low_rank_pipelines_come_back(tmp_path):
    pipeline = load_pipeline("openmoji-mmdit")
    reference.prune(pipeline, "rank", rank=16)
    reference.save_pruned(pipeline, tmp_path / "p")
    assert "save_pretrained" not in vars(pipeline.transformer)
    again = reference.load_pruned(tmp_path / "p")
    layers = [m for m in again.transformer.modules() if isinstance(m, LowRankLinear)]
    assert len(layers) == 13
    assert all(layer.basis is layers[0].basis for layer in layers)
    drawn = []
    for p in (pipeline, again):
        p.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(p(["red heart"], num_inference_steps=2, generator=[generator], output_type="np").images)
    assert (drawn[0] == drawn[1]).all()


def test_blocks_leave_a_low_rank_model(tmp_path):
    """The first layer of the group, under whose name the basis is stored, goes with its block."""
    model = tiny_mmdit()
    reference.prune(model, "rank", rank=5)
    plan = reference.Plan.from_removed(model, "block", {"transformer_blocks": [0]})
    reference.apply(model, plan)
    reference.save_pruned(model, tmp_path / "m")
    assert torch.equal(forward(reference.load_pruned(tmp_path / "m")), forward(model))
    manifest = json.loads((tmp_path / "m" / "pruning.json").read_text())
    assert len(manifest["low_rank"][0]["layers"]) == 5


def test_command_line(tmp_path, capsys):
    prune = ["prune", "openmoji-mmdit", "--granularity", "rank", "--out", str(tmp_path / "p"), "--rank", "16"]
    assert main([*prune, "--amount", "0.5"]) == 2
    assert "goes with granularity 'rank', without amount" in capsys.readouterr().err
    assert main(prune) == 0
    assert "rank (cut): 90.0% of 160 units" in capsys.readouterr().out
    assert reference.load_pruned(tmp_path / "p").transformer.norm_out.linear.basis.shape == (16, 160)
