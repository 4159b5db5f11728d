"""Quality metrics against independent oracles, and the evaluator that some of them look through."""

import json

import numpy as np
import pytest
import torch
import yaml
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from reference.bench import acceptance, metrics
from reference.embedded.evaluator import SIZE, SPLIT, WEIGHTS, Evaluator, augment, load_evaluator, ranks, retrieval
from reference.embedded.openmoji import catalogue, drawings, is_held_out


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return load_evaluator()


@pytest.fixture(scope="module")
def real() -> tuple[list[str], torch.Tensor]:
    """40 names of the evaluator's training split, and their drawings in [0, 1]."""
    names, x = drawings(SIZE, split=SPLIT)
    return names[:400:10], x[:400:10] / 2 + 0.5


def test_an_interval_agrees_with_the_normal_one_and_counts_prompts():
    values = np.random.default_rng(1).normal(10, 2, (1, 400))
    found = metrics.interval(values)
    half_width = 1.96 * values.std() / 20
    assert found["ci95"] == pytest.approx([values.mean() - half_width, values.mean() + half_width], abs=0.05)
    assert (found["n"], found["prompts"], found["seeds"]) == (400, 400, 1)
    # Ten copies of each picture are no evidence: the prompts are what is drawn again.
    copies = metrics.interval(np.repeat(values, 10, axis=0))
    assert copies["ci95"] == pytest.approx(found["ci95"])
    assert copies["n"] == 4000


def test_intervals_shrink_with_pictures():
    g = np.random.default_rng(1)
    few, many = (metrics.interval(g.normal(10, 2, n)) for n in (10, 1000))
    width = lambda i: i["ci95"][1] - i["ci95"][0]  # noqa: E731
    assert width(many) < width(few) / 4
    assert many["ci95"][0] < 10 < many["ci95"][1]


def test_an_interval_without_spread_is_a_point():
    assert metrics.interval(np.full((2, 3), 7.0))["ci95"] == [7.0, 7.0]


def test_fidelity_of_identical_and_of_disturbed_pictures(evaluator, real):
    dense = real[1].unflatten(0, (2, 20))
    same = {r["metric"]: r["value"] for r in metrics.fidelity(evaluator, dense, dense)}
    assert same == {"psnr": pytest.approx(100), "ssim": pytest.approx(1), "feature_cosine": pytest.approx(1)}
    worse = [
        {r["metric"]: r["value"] for r in metrics.fidelity(evaluator, dense + s * torch.randn(dense.shape), dense)}
        for s in (0.05, 0.3)
    ]
    for metric in same:
        assert same[metric] > worse[0][metric] > worse[1][metric]
    assert worse[0]["psnr"] == pytest.approx(-20 * np.log10(0.05), abs=0.2)


def test_kernel_distance_is_the_unbiased_mmd():
    x, y = torch.randn(60, 8, generator=rng(), dtype=torch.double), torch.randn(90, 8, generator=rng(1)).double() + 0.5
    found = metrics.kernel_distance(x, y, prompts=30)
    assert metrics.kernel_distance(x, y[:60], 60)["value"] == pytest.approx(poly_mmd(x, y[:60]).item())
    assert found["ci95"][0] < found["value"] < found["ci95"][1]
    assert (found["n"], found["prompts"], found["seeds"]) == (60, 30, 2)


def test_the_kernel_distance_interval_covers():
    """Over 60 draws from one distribution, whose true distance is 0, the interval holds 0 about 95 % of the time."""
    y = torch.randn(600, 8, generator=rng(99))
    draws = [metrics.kernel_distance(torch.randn(100, 8, generator=rng(s)), y, 100) for s in range(60)]
    value = np.mean([d["value"] for d in draws])
    assert sum(d["ci95"][0] <= value <= d["ci95"][1] for d in draws) >= 50


def test_frechet_distance_agrees_with_torchmetrics_and_sees_a_shift():
    x, y = torch.randn(200, 6, generator=rng()).double(), 2 * torch.randn(300, 6, generator=rng(1)).double() + 1
    oracle = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()
    found = metrics.frechet_distance(x, y, prompts=100)
    assert found["value"] == pytest.approx(oracle, rel=1e-6)
    assert found["ci95"][0] < oracle < found["ci95"][1]
    assert metrics.frechet_distance(y, y, prompts=300)["value"] == pytest.approx(0, abs=1e-6)


def test_distances_to_the_drawings_grow_with_damage(evaluator, real):
    drawn = drawings(SIZE)[1][:400] / 2 + 0.5
    clean, noisy = (
        {r["metric"]: r["value"] for r in metrics.distance(evaluator, x[None], drawn)}
        for x in (real[1], (real[1] + 0.4 * torch.randn(real[1].shape, generator=rng())).clamp(0, 1))
    )
    assert noisy["kernel_distance"] > clean["kernel_distance"]
    assert noisy["frechet_distance"] > clean["frechet_distance"]


def test_prediction_errors_by_step():
    g = rng()
    calls = [({"input": torch.randn(4, 5, generator=g)},) for _ in range(3)]
    dense, pruned = (torch.nn.Linear(5, 5) for _ in range(2))
    model = lambda layer: lambda input: (layer(input),)  # noqa: E731
    recorded = [(inputs, dense(inputs["input"]).detach()) for (inputs,) in calls]
    wrong, total = metrics.prediction_errors(model(dense), recorded, 3.0)
    assert wrong.shape == total.shape == (3, 2)
    assert wrong.abs().max() < 1e-10
    wrong, total = metrics.prediction_errors(model(pruned), recorded, 1.0)
    kept = recorded[1][0]["input"][2:]  # guidance 1 is the conditional half alone
    assert wrong[1] == pytest.approx((pruned(kept) - dense(kept)).square().sum(1).detach())
    assert total[1] == pytest.approx(dense(kept).square().sum(1).detach())


def test_the_evaluator_finds_real_drawings_and_not_wrong_ones(evaluator, real):
    names, x = real
    gallery = [name for _, name in catalogue()]
    right = metrics.retrieval(evaluator, x[None], names, gallery, "seen")
    assert [r["metric"] for r in right] == ["retrieval_top1_seen", "retrieval_top5_seen"]
    assert right[1]["value"] > 0.9
    wrong = metrics.retrieval(evaluator, x.roll(1, 0)[None], names, gallery, "seen")
    assert wrong[1]["value"] < 0.1


def test_a_rank_counts_better_names(evaluator, real):
    names, x = real
    cosine = evaluator.similarity(x[:1], names)[0]
    best = names[int(cosine.argmax())]
    worst = names[int(cosine.argmin())]
    assert ranks(evaluator, x[:1].repeat(2, 1, 1, 1), [best, worst], names).tolist() == [0, len(names) - 1]


def test_a_picture_that_is_no_number_finds_nothing(evaluator, real):
    names, x = real
    broken = torch.full_like(x[:2], float("nan"))
    assert ranks(evaluator, broken, names[:2], names).tolist() == [len(names)] * 2


def test_the_evaluator_ships_small_with_its_own_retrieval(evaluator):
    files = [f for f in WEIGHTS.iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 4_000_000
    assert {f.name for f in files} == {"README.md", "config.json", "model.safetensors", "training.json"}
    record = json.loads((WEIGHTS / "training.json").read_text())
    found = retrieval(evaluator)
    for key, value in found.items():
        assert value == pytest.approx(record[key], abs=0.02)
    assert found["held_out_top5"] > 2 * 5 / found["held_out_names"]  # better than twice chance on names never seen
    card = (WEIGHTS / "README.md").read_text()
    for fact in ("CC BY-SA 4.0", "OpenMoji", "python -m reference train openmoji-evaluator", "held-out"):
        assert fact in card


def test_the_evaluator_has_a_split_of_its_own():
    own = {stem for stem, _ in catalogue() if is_held_out(stem, SPLIT)}
    models = {stem for stem, _ in catalogue() if is_held_out(stem)}
    assert 40 < len(own) < 100
    assert len(own & models) < 10


def test_unknown_words_are_told_apart_by_their_letters(evaluator):
    a, b = evaluator.text_features(["zzyzx", "qwfpg"])
    assert (a - b).abs().max() > 0.1
    assert torch.allclose(a, evaluator.text_features(["Zzyzx"])[0], atol=1e-6)


def test_augmented_pictures_stay_pictures(real):
    x = augment(real[1], rng())
    assert x.shape == real[1].shape
    assert x.min() >= 0
    assert x.max() <= 1
    assert (x - real[1]).abs().mean() > 0.02
    assert torch.equal(x, augment(real[1], rng()))


def test_the_acceptance_list_follows_its_rule():
    protocol = yaml.safe_load(acceptance.PROTOCOL.read_text())
    assert protocol["names"] == acceptance.listed_names(100)
    assert len(set(protocol["names"])) == 100
    assert not set(protocol["names"]) & set(acceptance.unseen_names())
    held_out = {name for stem, name in catalogue() if is_held_out(stem)}
    assert set(acceptance.unseen_names()) < held_out


def test_acceptance_judges_what_a_model_draws(real):
    """A stand-in that hands out the real drawings is accepted; one that draws every prompt's neighbour is not."""
    names, x = drawings(SIZE)
    numbers = {name: i for i, (_, name) in enumerate(catalogue())}
    pictures = dict(zip(names, x / 2 + 0.5, strict=True)) | dict(
        zip(*[part for part in drawings(SIZE, held_out=True)], strict=True)
    )
    everything = list(numbers)

    def model(move):
        def draw(prompts, steps, generator, output_type):
            shown = [everything[(numbers[p] + move) % len(everything)] for p in prompts]
            return type("Drawn", (), {"images": torch.stack([pictures[name] for name in shown])})

        return draw

    protocol = yaml.safe_load(acceptance.PROTOCOL.read_text())
    right, shown = acceptance.judge(model(0), protocol)
    assert right["accepted"]
    assert right["found_top5"] > 90
    assert shown.shape == (100, 3, 32, 32)
    wrong, _ = acceptance.judge(model(7), protocol)
    assert not wrong["accepted"]
    assert wrong["found_top5"] < 20
    assert acceptance.grid(shown, 10).size == (320, 320)


def test_acceptance_of_what_is_no_model_ends_in_one_line(capsys, tmp_path):
    for model in ("openmoji-gan", str(tmp_path)):
        assert acceptance.main([model, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()
