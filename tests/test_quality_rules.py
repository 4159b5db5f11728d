"""The rules of the quality protocols on made-up runs, and the page that they are published on."""

import io
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scripts import (
    calibration_data,
    quality,
    quality_found,
    quality_parts,
    quality_rates,
    quality_rules,
    quality_runs,
    runs,
)
from scripts.pictures import grid
from scripts.quality_rules import Limits
from tests.test_figures import run as result


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
    assert found.ended_by == ("retrieval",)
    (found,) = quality_rules.limits([DENSE, component(0.1, 0.0, 1.0, fidelity=10.5)])  # overlaps other noise
    assert (found.safe, found.aggressive, found.ended_by) == (None, 0.1, ("fidelity",))
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
    found = [Limits(model, "attention", g, rate, 0.9, [0.1, 0.9], ()) for (model, g), rate in rates.items()]
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


def test_what_a_safe_rate_asks_is_said_of_each_model():
    """The same 10 %: one model has lost names, the other's picture is another one."""
    own = [DENSE, component(0.1, -0.06, 0.9), component(0.3, -0.04, 0.9)]
    other = [run("n", True, [(q["metric"], q["value"], *q["ci95"], {}) for q in DENSE["quality"]])]
    other += [component(0.1, 0.0, 1.0, fidelity=10.5, model="n")]
    text = quality_rates.measured_rates([*own, *other])
    assert (
        "- `m`: retrieval in 1 (of 1 rows). Two dense pictures from different noise agree to 10.0 (9.0 to 11.0) dB."
        in text
    )
    assert "- `n`: fidelity in 1 (of 1 rows)." in text
    assert "loses no more than 5 of 100 names among its first 5 guesses" in text


def test_the_names_that_may_go_are_counted_in_the_runs():
    def lost(names: int, low: float) -> dict:
        return run(quality=[("retrieval_top5_seen_change", -names / 8, low, 0, {})], achieved={}, amount=0.1)

    assert "With 8 names the rule lets 1 go at most" in quality_rates._names_lost(
        [lost(1, -0.04), lost(2, -0.06), lost(0, 0)]
    )


def trained(error: float, loss: str | None, rounds: int = 1) -> dict:
    recovery = {"kind": "distill", "loss": loss} if loss else {"kind": "none"}
    config = {"granularity": "head", "amount": 0.5, "recovery": recovery} | ({"rounds": rounds} if rounds > 1 else {})
    return run(quality=[("prediction_error", error, error - 0.01, error + 0.01, {})], **config)


def test_what_training_bought_is_counted():
    made = [trained(0.8, None), trained(0.5, "output"), trained(0.45, "feature"), trained(0.52, "output", 4)]
    text = quality_found.recovery([DENSE, *made, trained(0.515, "output", 2), trained(0.4, "output", 3)])
    assert "In 1 of 1 cases every kind of training lowered the prediction error." in text
    assert "after one shot: `feature` in 1; in 1 of them its interval is apart" in text
    assert "a lower error in 1 of 3 comparisons, a higher one in 0; in 2 the intervals overlap." in text
    assert "Worse" not in text
    text = quality_found.recovery([DENSE, trained(0.1, None), trained(0.16, "task"), trained(0.11, "output")])
    assert "In 0 of 1 cases" in text
    assert "**Worse than without training**: `task` after 50 % of the heads (0.100 before, 0.160 after)." in text
    assert quality_found.recovery([DENSE, trained(0.8, None)]) == ""


def test_places_of_criteria_count_the_lowest_and_what_overlaps_it():
    def error(value, criterion, amount=0.5, **config):
        quality = [("prediction_error", value, value - 0.05, value + 0.05, {})]
        return run(quality=quality, granularity="head", criterion=criterion, amount=amount, **config)

    made = [error(0.2, "obs"), error(0.28, "taylor"), error(0.9, "random"), error(0.8, "random", scope="global")]
    made += [error(0.3, "taylor", 0.3), error(0.6, "obs", 0.3), error(0.1, "random", 0.7)]  # alone there: no contest
    text = quality_found.criteria([DENSE, *made])
    assert text.startswith("Lowest, or not told from the lowest, over 2 units and rates: ")
    assert text.endswith("`taylor` in 2 of 2, `obs` in 1 of 2, `random` in 0 of 1.")
    assert quality_found.criteria([DENSE]) == ""


def test_verdicts_are_counted_beside_what_chance_would_give(monkeypatch):
    found = [
        (None, quality_rules.Composed(0, 0, 0, (1, 1, 1), (1, 1, 1), word))
        for word in ["composes"] * 40 + ["saturated"]
    ]
    monkeypatch.setattr(quality_found, "composed", lambda runs: found)
    text = quality_found.composition([])
    assert text.startswith("41 pairs: composes 40, saturated 1. Of 40 pairs that can be judged, 1.0 would")
    assert "Most are saturated" not in text
    monkeypatch.setattr(quality_found, "composed", lambda runs: found[39:])
    assert quality_found.composition([]).count("Most are saturated") == 0
    monkeypatch.setattr(quality_found, "composed", lambda runs: found[40:])
    assert "judged" not in quality_found.composition([])
    assert "Most are saturated" in quality_found.composition([])


def test_cells_are_counted_as_the_suite_lists_them():
    from reference.bench import quality_cells

    for name in ("", "-components", "-recovery", "-composition", "-layers", "-steps"):
        asked = quality_runs.protocol(f"quality{name}")
        listed = [cell.model for cell in quality_cells.list_cells(asked, None, None)]
        assert quality_found.cells(asked) == {model: listed.count(model) for model in asked["models"]}, name
    one = run("openmoji-mmdit", granularity="weight", amount=0.5)
    assert "1 of 36 for `openmoji-mmdit`, 0 of 36 for `openmoji-unet`" in quality_found.so_far(
        [one], "quality-recovery"
    )


def test_a_damage_map_is_summed_up_by_its_ends():
    layers = {"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.2}
    records = [("prediction_error_of_layer", v, v, v, {"layer": name}) for name, v in layers.items()]
    text = quality_found.damage([DENSE, run(quality=records, granularity="head", amount=0.4)])
    assert "- 40 % of a layer's heads removed: largest prediction error at `a` 0.400, `c` 0.300, `d` 0.200" in text
    assert "smallest at `b` 0.100, `d` 0.200, `c` 0.300." in text


def test_only_current_runs_of_the_device_that_measured_last_count():
    def made(number, sha256="b", **config):
        config = {"granularity": "weight", "amount": 0.3, **config}
        return result(number, "unstructured", "none", "quality", sha256, config=config)

    old, again, seeded, twice = made(1, "a"), made(2), made(3, seed=1), made(4)
    rows = runs.of_device([old, again, seeded, twice], "quality", "here")
    assert quality_runs.of_protocol(rows, "quality") == [twice]
    assert quality_runs.of_protocol(rows, "quality", seed=1) == [seeded]
    later = made(5, "c", amount=0.5)
    both = rows + runs.of_device([later], "quality", "there")
    assert quality_runs.of_protocol(both, "quality") == [later]
    assert quality_runs.of_protocol(both, "quality-steps") == []


def test_without_runs_every_part_says_so_and_names_its_command():
    pages, _ = quality.pages([])
    assert list(pages) == ["quality", "recovery", "damage"]
    assert [page.count("\n## ") for page in pages.values()] == [6, 2, 2]
    for page in pages.values():
        for part in page.split("\n## ")[1:]:
            assert "python -m reference.bench" in part
            assert "<svg" not in part


def test_the_pages_need_no_torch():
    code = "import sys, scripts.quality as q; q.pages([]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pages_with_runs_show_charts_tables_and_pictures(tmp_path):
    """Numbers made up, of the shape that the suite writes."""
    Image.new("RGB", (32, 32)).save(tmp_path / "strip.png")
    shared = {"dtype": "float32", "sampler": {"steps": 16, "guidance": 3.0}, "noise_seeds": [0], "prompts": ["pig"]}
    sizes = {"unit_rate": 0.5, "nonzero": 50, "macs": 10, "bytes": 100, "recovery_seconds": 60.0}
    sizes |= {"macs_per_picture": 80, "weight_bytes": 50}
    numbers, made = count(), {}

    def put(name, records, **config):
        found = result(
            next(numbers),
            "head" if config else "dense",
            made[name][0]["run_id"] if config else None,
            name,
            name,  # in the place of the file's hash: each protocol has its own
            config={"recovery": {"kind": "none"}, **shared, **config},
            achieved=sizes,
            quality=[
                {"metric": m, "value": v, "ci95": [low, high], "n": 8, **more} for m, v, low, high, more in records
            ],
        )
        found |= {"artifacts": [{"path": "strip.png"}], "path": tmp_path / "x.json"}
        made.setdefault(name, []).append(found)

    floor = [(f"{m}_other_noise", 0.1, 0.05, 0.2, {}) for m in FIDELITY]
    floor += [("picture_error_other_noise", 0.3, 0.2, 0.4, {"per_prompt": [0.3, 0.35]})]
    floor += [("retrieval_top5_seen", 1, 1, 1, {})]
    names = ("prediction_error", "psnr", "feature_cosine", "retrieval_top5_seen", "retrieval_top5_seen_change", "ssim")
    values = [(m, 0.5, 0.4, 0.6, {}) for m in names] + [("picture_error", 0.1, 0, 0, {"per_prompt": [0.1, 0.11]})]
    by = {"granularity": "weight", "criterion": "magnitude", "amount": 0.5}
    layers = [("prediction_error_of_layer", 0.123, 0.1, 0.2, {"layer": "blocks.0", "component": "attention"})]
    steps = [
        (m, 0.321, 0.3, 0.4, {"layer": "blocks.0", "steps": [0, 3]})
        for m in ("prediction_error_of_block", "picture_error_of_block")
    ]
    for name in ("", "-components", "-recovery", "-composition", "-layers", "-steps", "-second-seed"):
        put(f"quality{name}", floor)
    put("quality", values, **by)
    put("quality", values, seed=1, **by)
    put("quality-components", values, component="attention", **by)
    put("quality-recovery", values, **by)
    put("quality-composition", values, **by)
    put("quality-composition", values, partner="int8")
    put("quality-composition", values, partner="int8", **by)
    put("quality-layers", layers, **by)
    put("quality-steps", steps, part=0)
    put("quality-second-seed", values, second_weights="0")
    rows = runs.of_device([run for own in made.values() for run in own], "quality", "here")
    pages, grids = quality.pages(rows)
    for page in pages.values():
        for mark in ("Not measured yet", ': not measured"'):
            assert mark not in page, page[page.index(mark) - 300 : page.index(mark) + 60]
    shown = {
        "quality": (
            "| attention | safe 30-40 % |",
            '<figure class="chart" id="components"',
            '<figure class="chart" id="curves"',
            "seed 1: 6 of 7 values (86 %)",
            "would lie so in 83 % of cases, not in 95 %",
            "<td>weight</td><td>50 %</td><td>magnitude</td><td>none</td><td>0.500 (0.400 to 0.600)</td>",
            "| psnr | 0.500 (0.400 to 0.600) | - | 0.100 |",
            "](quality/second-m.png)",
            "between 0.400 and 0.600: 1. Seen names are among the first 5 in 0.50 to 0.50 of their pictures",
            "The line of dashes and dots: the same training with another seed.",
            "](quality/grid-m-50.png)",
        ),
        "recovery": (
            '<figure class="chart" id="recoveries"',
            "<td>composes</td>",
            '<figure class="chart" id="compositions"',
        ),
        "damage": ("50 %: 0.123 (0.100 to 0.200)", "steps 0-3: 0.321 (0.300 to 0.400)"),
    }
    for name, texts in shown.items():
        for text in texts:
            assert text in pages[name], text
    assert grids[Path("site/generated/quality/grid-m-50.png")].startswith(b"\x89PNG")
    charts = quality.drawn(rows)
    (pair,) = charts["recovery"][1].table
    assert pair[2:5] == ("int8", "0.149", "0.105")  # root of 0.1^2 + 0.11^2 over two prompts, as the rule takes it
    assert [line[2] for line in charts["recovery"][0].table] == ["nothing"] * 4
    assert charts["quality"][0].table[0][:4] == ("m", "attention", "weight", "50 %")


def test_a_grid_names_the_rate_that_whole_units_made(tmp_path):
    for rate, label in ((0.4, "head 40 %, obs"), (0.305, "head, obs")):
        asked = {"granularity": "head", "criterion": "obs", "amount": 0.3}
        assert quality_parts._label({"config": asked, "achieved": {"unit_rate": rate}}) == label
    strip = tmp_path / "strip.png"
    Image.new("RGB", (64, 32)).save(strip)
    widths = [Image.open(io.BytesIO(grid([(name, strip)], ["a", "b"]))).width for name in ("dense", "d" * 60)]
    assert widths[1] > widths[0] + 100  # no name is cut off
    more = Image.open(io.BytesIO(grid([("dense", strip)], ["a", "b", "not kept"])))
    assert more.width == widths[0]  # and no empty column


def calibrated(criterion: str, errors: dict[int, tuple[float, float]]) -> list[SimpleNamespace]:
    """Runs of `calibration` for one criterion: prompts -> interval of the error."""
    found = []
    for number, (low, high) in errors.items():
        records = {
            "prediction_error": {"value": (low + high) / 2, "ci95": [low, high]},
            "agreement": {"value": 1 - 1 / number, "ci95": [0, 1]},
        }
        row = SimpleNamespace(model="m", unit="neuron", amount=0.5, criterion=criterion, scope="layer")
        row.run, row.quality = {"config": {"calibration": {"prompts": number}}}, records.get
        found.append(row)
    return found


def test_enough_calibration_is_the_least_from_which_on_no_error_is_told_from_the_last():
    choosing = calibrated("taylor", {128: (0.40, 0.44), 2: (0.42, 0.46), 8: (0.41, 0.45)})
    rewriting = calibrated("obs", {2: (0.39, 0.41), 8: (0.28, 0.32), 32: (0.29, 0.31), 128: (0.19, 0.21)})
    wavering = calibrated("wanda", {2: (0.19, 0.21), 8: (0.5, 0.6), 128: (0.19, 0.21)})
    found = calibration_data.places([*choosing, *calibrated("random", {2: (1, 2)}), *rewriting, *wavering])
    assert [runs[0].criterion for runs in found] == ["obs", "taylor", "wanda"]
    assert [calibration_data.prompts(calibration_data.enough(runs)) for runs in found] == [128, 2, 128]
    told = calibration_data.sentence(found)
    assert "only choose**: in 1 of 2 places the error with 2 prompts is not told from that with the most." in told
    assert told.endswith("(`obs`): in 0 of 1. From 2 prompts to the most it falls by 50 % to 50 %.")
    cells = calibration_data.table(found).splitlines()[3].strip("| ").split(" | ")
    assert cells == [
        "neuron 50 %", "taylor, layer", "2, 8, 128", "0.440 (0.420 to 0.460)", "0.420 (0.400 to 0.440)", "2",
        "0.50 to 0.99",
    ]  # fmt: skip
