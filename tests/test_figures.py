"""Rows of runs, and what the charts read from them: states, standing, rates, 2:4 products, pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from scripts import (
    charts,
    figures,
    figures_damage,
    figures_quality,
    figures_speed,
    lab,
    ledger,
    run_table,
    runs,
    subjects,
)
from scripts.text import unbroken

COUNTS = {"parameters": 100, "macs": 1000, "macs_nonzero": 1000, "bytes": 200, "nonzero": 100}
ENVIRONMENT = {"device": "cpu", "cpu": "a <processor>", "cores": 2, "torch": "2", "diffusers": "1", "python": "3"}


def run(
    number: int, entry: str, baseline: str | None, protocol: str = "embedded", sha256: str = "a" * 64, **more
) -> dict:
    """A result as a file holds it."""
    return {
        "schema": "result/1",
        "run_id": f"20260101T0000{number:02d}Z-000000",
        "created": f"2026-01-01T00:00:{number:02d}+00:00",
        "status": "ok",
        "error": None,
        "protocol": {"id": f"{protocol}-1", "sha256": sha256},
        "subject": {"model": "m", "weights_sha256": "0" * 64, "entry": entry, "is_baseline": baseline is None}
        | {"baseline_run": baseline},
        "config": {"dtype": "float32"} | more.pop("config", {}),
        "achieved": COUNTS | more.pop("achieved", {}),
        "quality": more.pop("quality", []),
        "speed": more.pop("speed", []),
        "environment": ENVIRONMENT | more.pop("environment", {}),
        "code": {"commit": "c" * 40, "dirty": False, "command": ["python", "-m", "x"], "wall_seconds": 1.0},
        "artifacts": [],
    } | more


def quality(metric: str, value: float, half: float = 0.1, **more) -> dict:
    """A metric with its interval."""
    return {"metric": metric, "value": value, "ci95": [value - half, value + half], "n": 4} | more


def timed(speedup: float, half: float, **more) -> dict:
    """A timing with its interval."""
    ms = {"median": 1.0, "p10": 0.9, "p90": 1.1}
    return {"dense": ms, "pruned": ms, "speedup": speedup, "speedup_ci95": [speedup - half, speedup + half]} | {
        "warmup": 1, "repeats": 3, **more
    }  # fmt: skip


def test_who_was_measured_is_said_with_sizes_and_machines():
    dense = run(0, "dense", None, achieved={"parameters": 5_425_776})
    rows = runs.of_device([dense, run(1, "head", dense["run_id"])], "quality", "here")
    small = subjects.sentence(rows)
    assert "`m` (5.4 million parameters); all runs on a <processor>, 2 cores, none on a GPU." in small
    assert "says little about the rates of large models" in small
    big = run(2, "dense", None, achieved={"parameters": 2_000_000_000}, environment={"gpu": "a GPU"})
    large = subjects.sentence(runs.of_device([big], "quality", "here"))
    assert large == "Trained models measured so far: `m` (2000.0 million parameters); all runs on a GPU."
    assert subjects.sentence(runs.of_device([dense], "latency", "here")) == ""  # weights drawn at random


def test_states_tell_current_from_earlier_runs():
    dense = run(0, "dense", None)
    old = run(1, "head", dense["run_id"], sha256="b" * 64, config={"granularity": "head", "amount": 0.3})
    first = run(2, "head", dense["run_id"], config={"granularity": "head", "amount": 0.3})
    again = run(3, "head", dense["run_id"], config={"granularity": "head", "amount": 0.3})
    other = run(4, "head", dense["run_id"], "quality-layers", "d" * 64)  # of another file: no change to this one
    rows = runs.of_device([dense, old, first, again, other], "embedded", "here")
    assert [row.state for row in rows] == ["current", "earlier protocol", "earlier run", "current", "current"]
    trained = run(5, "dense", None)
    trained["subject"]["weights_sha256"] = "1" * 64
    states = [row.state for row in runs.of_device([dense, first, trained], "embedded", "here")]
    assert states == ["earlier weights", "earlier weights", "current"]
    assert {row.state for row in runs.of_device([dense, first], "embedded", "there", published=False)} == {
        "third-party"
    }
    assert rows[3].dense is dense
    assert [row.id for row in figures.measured(rows, "embedded")] == [again["run_id"]]


@pytest.mark.parametrize(
    ("config", "unit", "amount", "label"),
    [
        ({"granularity": "head", "amount": 0.3}, "head", 0.3, "head 30 %, magnitude"),
        ({"granularity": "2:4", "amount": None, "criterion": "obs"}, "2:4", 0.5, "2:4, obs"),
        ({"asked": {"mask": 0.5}}, "weight", 0.5, "weight 50 %, magnitude"),
        ({"asked": {"kernel": "2:4", "mode": "compiled"}}, "2:4", 0.5, "2:4, magnitude, compiled"),
        (
            {"asked": {"steps": [["head", 0.3, 1], ["block", 0.3, 1]]}},
            "head + block",
            0.3,
            "head + block 30 %, magnitude",
        ),
        ({"asked": {"steps": [["rank", 16, 1]]}}, "rank", None, "rank, magnitude"),
        ({"asked": {"kernel": "fp8"}}, "", None, "entry, fp8"),
    ],
)
def test_a_run_of_any_suite_says_what_it_removed(config, unit, amount, label):
    (row,) = runs.of_device([run(1, "entry", "none", config=config)], "latency", "here")
    assert (row.unit, row.amount, row.label) == (unit, amount, label)


def test_collect_reads_only_runs_that_bear_the_name_of_their_file(tmp_path):
    folder = tmp_path / "results" / "embedded" / "cpu-amd-epyc-2-cores"
    folder.mkdir(parents=True)
    good = run(1, "dense", None)
    (folder / f"{good['run_id']}.json").write_text(json.dumps(good))
    (folder / "elsewhere.json").write_text(json.dumps(run(2, "dense", None)))
    assert [(row.id, row.state) for row in runs.collect(tmp_path)] == [(good["run_id"], "current")]
    assert len(runs.collect()) > 50


def pareto_rows() -> list[runs.Row]:
    """One far to the right, one high, one beaten within its interval, one clearly."""
    figures_of = [(1.5, 10.0), (1.0, 20.0), (1.48, 9.9), (0.9, 5.0)]
    dense = run(0, "dense", None)
    pruned = [
        run(
            n,
            "head",
            dense["run_id"],
            config={"granularity": "head", "amount": n / 10},
            achieved={"macs_nonzero": 500},
            quality=[quality("psnr", y, 0.5)],
            speed=[timed(x, 0.05, pictures=16)],
        )
        for n, (x, y) in enumerate(figures_of, 1)
    ]
    return runs.of_device([dense, *pruned], "embedded", "here")


def test_standing_knows_the_front_and_the_intervals():
    data = figures_speed.pareto(pareto_rows()).spec["data"]["values"]
    standing = ["on the front", "on the front", "beaten, intervals overlap", "beaten, intervals apart"]
    assert [d["standing"] for d in data] == standing
    # nominal is 2: half of its gain is 1.5
    assert [d["phantom"] for d in data] == ["no", "yes", "yes", "yes"]
    chart = figures_speed.nominal(pareto_rows())
    assert [row[6] for row in chart.table] == ["50 %", "0 %", "48 %", "-10 %"]


def test_rate_curves_of_the_quality_suite_are_drawn_with_all_that_was_measured():
    dense = run(0, "dense", None, "quality", quality=[quality("psnr_other_noise", 15)])
    made = [
        run(
            1 + 10 * c + n,
            "head",
            dense["run_id"],
            "quality",
            config={"granularity": "head", "criterion": criterion, "amount": n / 10},
            achieved={"unit_rate": n / 10},
            quality=[quality("psnr", 30 - n - c, floor=15), quality("prediction_error", n / 10 + c)],
        )
        for c, criterion in enumerate(("taylor", "random"))
        for n in (1, 5, 9)
    ]
    rows = runs.of_device([dense, *made], "quality", "here")
    chart = figures_quality.curves(rows)
    assert len(chart.table) == 2 * len(made)
    assert chart.choices["metric"][1] == ["error of the prediction", "PSNR to the dense picture, dB"]
    assert (
        "m",
        "head",
        "taylor",
        "50 %",
        "PSNR to the dense picture, dB",
        "25.0 (24.9 to 25.1)",
        "15.0",
    ) in chart.table
    svg = charts.drawing(chart)
    assert svg.count('fill="var(--head)"') >= len(made)  # at the start one figure is shown
    assert 'role="img" aria-label="6 runs' in svg
    assert figures_quality.components(rows) is None


def test_calibration_is_drawn_by_the_number_of_prompts_and_what_needs_none_at_0():
    asked = {"granularity": "head", "amount": 0.4, "scope": "layer"}
    made = [run(0, "dense", None, "calibration")]
    for number, (criterion, prompts) in enumerate([("random", 2), ("taylor", 2), ("taylor", 8)], start=1):
        config = asked | {"criterion": criterion, "calibration": {"prompts": prompts, "batch_size": 2}}
        found = [quality("prediction_error", 1 / number), quality("agreement", 0.3 * number)]
        made.append(run(number, "head", made[0]["run_id"], "calibration", config=config, quality=found))
    chart = figures_quality.calibration(runs.of_device(made, "engine", "here"))
    assert [(row[2], row[3], row[5]) for row in chart.table if row[4].startswith("agreement")] == [
        ("random", "0", "0.30 (0.20 to 0.40)"),
        ("taylor", "2", "0.60 (0.50 to 0.70)"),
        ("taylor", "8", "0.90 (0.80 to 1.00)"),
    ]
    assert "3 runs" in charts.drawing(chart)
    assert figures_quality.calibration(runs.of_device(made[:1], "engine", "here")) is None


def test_damage_maps_show_every_layer_at_every_rate_and_every_block_at_every_part():
    def cell(number: int, protocol: str, config: dict, metric: str, **more) -> dict:
        found = [quality(metric, n + number / 10, layer=f"blocks.{n}", **more) for n in range(3)]
        return run(number, "one", "none", protocol, config=config, quality=found)

    rates = ({"granularity": "head", "amount": n / 10} for n in (5, 2))
    layers = [cell(n, "quality-layers", c, "prediction_error_of_layer") for n, c in enumerate(rates, 1)]
    chart = figures_damage.damage(runs.of_device(layers, "quality", "here"), "quality-layers")
    both = "20 %: 2.200 (2.100 to 2.300); 50 %: 2.100 (2.000 to 2.200)"
    assert [line[2] for line in chart.table] == ["blocks.0", "blocks.1", "blocks.2"]
    assert chart.table[2] == ("m", "head", "blocks.2", both)
    svg = charts.drawing(chart)
    assert svg.index(">20 %</text>") < svg.index(">50 %</text>")  # in the order of the rates
    assert "<path" in svg
    parts = [cell(n, "quality-steps", {"part": n}, "picture_error_of_block", steps=[4 * n, 4 * n + 3]) for n in (0, 1)]
    chart = figures_damage.damage(runs.of_device(parts, "quality", "here"), "quality-steps")
    assert all("steps 0-3: " in line[3] and "; steps 4-7: " in line[3] for line in chart.table)
    assert chart.choices["kind"][1] == ["error of the picture"]
    assert runs.fields(runs.of_device(parts, "quality", "here")[1])["quality picture_error_of_block blocks.0 steps 4-7"]


def test_products_by_shape_are_drawn_once_there_are_some():
    asked = {"outputs": 3072, "inputs": 768, "dtype": "bfloat16", "backend": "cutlass", "compiled": False}
    speed = [timed(1.2, 0.1, rows=64), timed(0.7, 0.1, rows=128)]
    (row,) = runs.of_device(
        [run(1, "3072x768", "none", "kernels", config={"asked": asked}, speed=speed)], "kernels", "gpu"
    )
    chart = figures_speed.shapes([row])
    assert [line[:2] + line[4:] for line in chart.table] == [
        ("3072 x 768", 64, "1.20x (1.10 to 1.30)"),
        ("3072 x 768", 128, "0.70x (0.60 to 0.80)"),
    ]
    assert ">1.20</text>" in charts.drawing(chart)


def test_without_runs_a_page_names_the_command_and_draws_no_axes():
    text = figures.shown(figures_speed.pareto([]), "Fidelity", "make bench")
    assert "Fidelity: not measured" in text
    assert "make bench" in text
    assert "<svg" not in text


def test_strings_of_others_stay_text():
    bad = {"config": {"granularity": "<img src=x>", "amount": 0.5, "criterion": '"><b>'}, "error": "<script>"}
    rows = runs.of_device([run(1, "head", "none", status="failed", **bad)], "embedded", "there", published=False)
    page = run_table.page(rows, "")
    assert "<img" not in page
    assert "<b>" not in page.split("<tbody>")[1]
    assert "<script>" not in page
    assert "failed: &lt;script&gt;" in page
    assert "</script" not in run_table.fields_script(rows)


def test_fields_hold_all_that_a_result_says():
    row = pareto_rows()[1]
    fields = runs.fields(row)
    assert fields["quality psnr"] == [10.0, 9.5, 10.5]
    assert fields["speed-up 16 pictures"] == pytest.approx([1.5, 1.45, 1.55])
    assert fields["code command"] == "python -m x"
    assert fields["config amount"] == "0.1"
    assert fields["nominal speed-up"] == "2.000"


def test_pictures_are_compared_one_by_one(tmp_path):
    def strip(values: list[int]) -> np.ndarray:
        return np.concatenate([np.full((4, 4, 3), v, np.uint8) for v in values], axis=1)

    dense, pruned = run(0, "dense", None), run(1, "head", None)
    for one, values in ((dense, [0, 100, 200]), (pruned, [255, 100, 199])):
        one["path"] = tmp_path / f"{one['run_id']}.json"
        one["config"] |= {"prompts": ["worst", "equal", "near"], "granularity": "head", "amount": 0.5}
        one["artifacts"] = [{"role": "pictures", "path": f"{one['run_id']}.png"}]
        Image.fromarray(strip(values)).save(tmp_path / f"{one['run_id']}.png")
    pruned["subject"] |= {"is_baseline": False, "baseline_run": dense["run_id"]}
    (found,) = lab.strips(runs.of_device([dense, pruned], "embedded", "here"))
    assert found.psnr == pytest.approx([0, lab.LARGEST, 20 * np.log10(255)], abs=1e-9)
    pictures = json.loads(lab.script([found]).split("window.lab = ")[1].rstrip(";\n"))[0]["pictures"]
    assert [p["prompt"] for p in pictures] == ["worst", "near", "equal"]
    assert "OpenMoji" in lab.page([found], "OpenMoji")


def test_the_claims_suite_is_judged_beside_the_papers():
    vocab = {"family": {"pruning": {"label": "Pruning"}}, "metric": {"params": {"label": "parameters"}}}
    claim = {"id": "half", "metric": "params", "unit": "B", "dense": 2.0, "pruned": 1.0, "hardware": None}
    claim |= {"setting": "s", "where": "table 1", "evidence": "https://example.org/p"}
    paper = {"id": "alpha", "title": "Alpha", "family": "pruning", "granularity": [], "targets": [], "claims": [claim]}
    printed = {"ratio": 2.0, "hardware": None, "at_least": False}
    named = {"id": "alpha/half", "measure": "parameters", "printed": printed}
    other = {"id": "no-paper", "measure": "saved_gb", "printed": printed, "source": "https://example.org/q"}
    ours = [
        run(1, "claim", None, config={"claim": named}, achieved={"dense_parameters": 195, "parameters": 100}),
        run(2, "claim", None, config={"claim": other}, achieved={"dense_weight_bytes": 3e9, "weight_bytes": 2.5e9}),
    ]
    for one in ours:
        one["subject"]["is_baseline"] = False
    entries = {entry.key: entry for entry in ledger.entries([paper], ours, vocab)}
    half = entries["alpha/half"]
    assert (half.verdict.word, half.claimed) == ("reproduced", 1.0)
    assert half.verdict.measured == pytest.approx(0.95)
    assert entries["no-paper"].verdict.word == "not reproduced"
    assert entries["no-paper"].verdict.reasons[0] == "saves 0.5 GB"
    assert "Reproduced: Alpha" in ledger.feed(list(entries.values()), "")
    assert len(ledger.scatter(list(entries.values())).table) == 1


def test_a_session_is_told_in_days_and_minutes():
    assert run_table.when("2026-11-22T06:00:13", "2026-11-22T06:04:47") == "2026-11-22, 06:00 to 06:04 UTC"
    assert run_table.when("2026-11-21T23:58", "2026-11-22T00:04") == "2026-11-21, 23:58 to 2026-11-22, 00:04 UTC"
    assert [run_table.duration(seconds) for seconds in (12.4, 254, 7205)] == ["12 s", "4 min 14 s", "2 h 0 min 5 s"]


def test_intervals_in_tables_are_not_broken():
    rows = [
        "| 1.00x (0.99 to 1.03) phantom |",
        "| +0 % (-1 % to +2 %) |",
        "| (a to b) |",
        "Text (0.99 to 1.03) at 5 % stays.",
    ]
    assert unbroken("\n".join(rows)).split("\n") == [
        '| 1.00x <span class="interval">(0.99 to 1.03)</span> phantom |',
        '| +0\u00a0% <span class="interval">(-1\u00a0% to +2\u00a0%)</span> |',
        *rows[2:],
    ]
