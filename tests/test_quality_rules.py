"""The rules of the quality protocols on made-up runs, and the page that they are published on."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scripts import quality, quality_rules, quality_runs
from scripts.quality_rules import Limits


def run(model="m", baseline=False, quality=(), achieved=None, **config) -> dict:
    """The parts of a result that the rules read."""
    records = [{"metric": m, "value": v, "ci95": [low, high], "n": 8, **more} for m, v, low, high, more in quality]
    return {
        "status": "ok",
        "subject": {"model": model, "is_baseline": baseline, "entry": "x", "weights_sha256": "0"},
        "config": {"recovery": {"kind": "none"}, **config},
        "quality": records,
        "achieved": achieved,
    }


FIDELITY = ("psnr", "ssim", "feature_cosine")
DENSE = run(
    baseline=True,
    quality=[(f"{m}_other_noise", 10, 9, 11, {}) for m in FIDELITY] + [("retrieval_top5_seen", 1.0, 1, 1, {})],
)


def component(rate, change, left, fidelity=20.0, model="m", granularity="weight", component="attention"):
    return run(
        model,
        quality=[(m, fidelity + 1, fidelity, fidelity + 2, {}) for m in FIDELITY]
        + [
            ("retrieval_top5_seen_change", change + 0.02, change, 0, {}),
            ("retrieval_top5_seen", left + 0.1, left, 1, {}),
        ],
        achieved={"unit_rate": rate},
        component=component,
        granularity=granularity,
    )


def test_safe_and_aggressive_are_the_last_rates_before_the_first_that_fails():
    curve = [
        component(0.3, -0.04, 0.9),
        component(0.1, 0.0, 1.0),
        component(0.5, -0.06, 0.7),  # loses too much
        component(0.7, -0.04, 0.4),  # less than half is left; that it loses little does not count: 0.5 failed
        component(0.9, 0.0, 0.9),
    ]
    (found,) = quality_rules.limits([DENSE, *curve])
    assert (found.safe, found.aggressive) == (0.3, 0.5)
    assert found.tested == [0.1, 0.3, 0.5, 0.7, 0.9]
    (found,) = quality_rules.limits([DENSE, component(0.1, 0.0, 1.0, fidelity=10.5)])  # overlaps other noise
    assert (found.safe, found.aggressive) == (None, 0.1)
    assert quality_rules.at_most(found.safe, found.tested) == "below 10 %"


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ({("a", "weight"): 0.4, ("b", "weight"): 0.7}, "holds"),
        ({("a", "weight"): 0.2, ("b", "head"): None}, "does not hold"),
        (
            {("a", "weight"): 0.6, ("b", "weight"): 0.4, ("a", "head"): 0.2, ("b", "head"): 0.1},
            "depends on granularity",
        ),
        ({("a", "weight"): 0.6, ("b", "weight"): 0.2, ("a", "head"): 0.4}, "depends on model"),
        ({("a", "weight"): 0.6, ("b", "weight"): 0.2, ("a", "head"): 0.2}, "depends on granularity and model"),
        ({("a", "weight"): 0.3}, "holds for the lower end"),
        ({}, "not measured yet"),
    ],
)
def test_a_row_of_the_founding_note_holds_or_depends(rates, verdict):
    found = [Limits(model, "attention", g, rate, 0.9, [0.1, 0.9]) for (model, g), rate in rates.items()]
    rows = {(c, claim): (v, numbers) for c, claim, v, numbers in quality_rules.founding_note(found)}
    assert len(rows) == 6
    assert rows["attention", "safe 30-40 %"][0] == verdict
    assert rows["conv", "safe 50-60 %"][0] == "not measured yet"


def error(values) -> dict:
    return run(quality=[("picture_error", 0, 0, 0, {"per_prompt": list(values)})])


def test_errors_that_add_like_independent_ones_compose_and_larger_ones_do_not():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.02, 0.04, 48), rng.uniform(0.02, 0.04, 48)
    dense = run(baseline=True, quality=[("picture_error_other_noise", 0, 0, 0, {"per_prompt": [0.3] * 48})])
    cases = {
        "composes": np.sqrt(a**2 + b**2),
        "interferes": 0.9 * (a + b),
        "collides": 1.3 * (a + b),
        "saturated": 0.31 * np.ones(48),
    }
    for verdict, both in cases.items():
        found = quality_rules.compose(error(a), error(b), error(both), dense)
        assert found.verdict == verdict
        assert found.to_independent[1] <= found.to_independent[0] <= found.to_independent[2]
    assert quality_rules.compose(error(a), error(b), error(cases["composes"]), dense).to_independent[
        0
    ] == pytest.approx(1)
    assert quality_rules.compose(error(a), error(a), error(2 * a), dense).to_aligned[0] == pytest.approx(1)


def test_only_the_newest_text_and_weights_of_a_protocol_count():
    def old(created, sha, weights, amount):
        found = run(amount=amount, granularity="weight") | {"created": created}
        found["protocol"] = {"id": quality_runs.protocol("quality")["id"], "sha256": sha}
        found["subject"] = found["subject"] | {"weights_sha256": weights}
        return found

    runs = [old("1", "a", "w", 0.1), old("2", "b", "v", 0.2), old("3", "b", "w", 0.3), old("4", "b", "w", 0.3)]
    found = quality_runs.of_protocol(runs, "quality")
    assert [run["created"] for run in found] == ["4"]


def test_without_runs_every_part_says_so_and_names_its_command(tmp_path):
    ((path, page),) = quality.build(tmp_path).items()
    assert path.name == "quality.md"
    assert page.count("Not measured yet: `python -m reference.bench") == page.count("\n## ") == 9


def test_the_page_needs_no_torch():
    code = "import sys, scripts.quality as q; q.build(q.Path('/nowhere')); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_page_with_runs_shows_charts_tables_and_maps(tmp_path):
    """Numbers made up, of the shape that the suite writes."""
    device = tmp_path / "results" / "quality" / "cpu-amd-epyc-2-cores"
    device.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(device / "strip.png")
    shared = {"dtype": "float32", "sampler": {"steps": 16, "guidance": 3.0}, "noise_seeds": [0], "prompts": ["pig"]}
    sizes = {"unit_rate": 0.5, "nonzero": 50, "macs": 10, "bytes": 100, "recovery_seconds": 60.0}
    sizes |= {"macs_per_picture": 80, "weight_bytes": 50}
    metrics = (
        "prediction_error",
        "psnr",
        "feature_cosine",
        "retrieval_top5_seen",
        "retrieval_top5_seen_change",
        "ssim",
    )
    place = {"layer": "blocks.0", "component": "attention", "removed": 3}

    def put(number, name, baseline, records, **config):
        found = run("openmoji-mmdit", baseline, records, dict(sizes), **shared, **config)
        found |= {"created": f"{number}", "protocol": {"id": quality_runs.protocol(name)["id"], "sha256": "0"}}
        found |= {"environment": {"cpu": "C"}, "artifacts": [{"path": "strip.png"}]}
        (device / f"{number}.json").write_text(json.dumps(found))

    floor = [(f"{m}_other_noise", 0.1, 0.05, 0.2, {}) for m in FIDELITY]
    floor += [
        ("picture_error_other_noise", 0.3, 0.2, 0.4, {"per_prompt": [0.3, 0.35]}),
        ("retrieval_top5_seen", 1, 1, 1, {}),
    ]
    values = [(m, 0.5, 0.4, 0.6, {}) for m in metrics] + [("picture_error", 0.1, 0, 0, {"per_prompt": [0.1, 0.11]})]
    by = {"granularity": "weight", "criterion": "magnitude"}
    layers = [("prediction_error_of_layer", 0.123, 0.1, 0.2, place)]
    steps = [(m, 0.321, 0.3, 0.4, {"layer": "blocks.0", "steps": [0, 3]})
             for m in ("prediction_error_of_block", "picture_error_of_block")]  # fmt: skip
    names = [
        "quality",
        "quality-components",
        "quality-recovery",
        "quality-composition",
        "quality-layers",
        "quality-steps",
    ]
    for number, name in enumerate(names):
        put(10 * number, name, True, floor)
    put(1, "quality", False, values, amount=0.5, **by)
    put(11, "quality-components", False, values, amount=0.5, component="attention", **by)
    put(21, "quality-recovery", False, values, amount=0.5, **by)
    put(31, "quality-composition", False, values, amount=0.5, **by)
    put(32, "quality-composition", False, values, partner="int8")
    put(33, "quality-composition", False, values, partner="int8", amount=0.5, **by)
    put(41, "quality-layers", False, layers, amount=0.5, **by)
    put(51, "quality-steps", False, steps, part=0)
    files = quality.build(tmp_path)
    page = files[quality.PAGE]
    assert page.count("Not measured yet") == 2  # second model, another seed
    for text in (
        "0.123 (0.100 to 0.200)",
        "0.321 (0.300 to 0.400)",
        "| **composes** |",
        "attention, safe 30-40 %",
        "0.50",
    ):
        assert text in page, text
    charts = {path.name: content for path, content in files.items() if path.suffix == ".svg"}
    assert set(charts) == {
        "quality-components-openmoji-mmdit-attention.svg", "quality-layers-openmoji-mmdit-weight.svg",
        "quality-steps-openmoji-mmdit-prediction.svg", "quality-steps-openmoji-mmdit-picture.svg",
    }  # fmt: skip
    assert all(name in page for name in charts)
    assert all(content.startswith("<svg") for content in charts.values())
