"""The quality suite on three cells: results that say what they are, and a killed run that loses and doubles nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

from reference.bench import quality, quality_cells, quality_table, results
from reference.bench.__main__ import PROTOCOLS, main

PROTOCOL = {
    "id": "test-quality",
    "models": ["openmoji-mmdit"],
    "dtype": "float32",
    "storage_dtype": "bfloat16",
    "sampler": {"steps": 2, "guidance": 3.0},
    "noise_seeds": [0, 1],
    "floor_seeds": [2, 3],
    "seen": 6,
    "unseen": 3,
    "calibration": {"prompts": 2, "steps": 2, "batch_size": 2, "seed": 100},
    "rates": [0.5],
    "entries": [
        {"entry": "structured", "granularity": "neuron", "criteria": ["output-energy"]},
        {"entry": "structured", "granularity": "channel", "criteria": ["magnitude"]},
        {"entry": "head", "granularity": "head", "criteria": ["magnitude"]},
    ],
}
METRICS = ["psnr", "ssim", "feature_cosine", "kernel_distance", "frechet_distance"]
METRICS += [f"retrieval_top{k}_{split}" for split in ("seen", "unseen") for k in (1, 5)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Killed (SIGKILL) after its second result, then resumed: protocol file, folder, runs before and after."""
    folder = tmp_path_factory.mktemp("quality")
    file = folder / "protocol.yaml"
    file.write_text(yaml.safe_dump(PROTOCOL))
    arguments = ["--suite", "quality", "--protocol", str(file), "--out", str(folder / "results")]
    process = subprocess.Popen([sys.executable, "-m", "reference.bench", *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(folder.rglob("results/**/*.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = results.read(folder / "results")
    assert 2 <= len(before) < 4
    assert main([*arguments, "--resume"]) == 0
    return file, folder / "results", before, results.read(folder / "results")


def test_a_killed_suite_resumes_with_nothing_lost_or_doubled(suite):
    _, folder, before, after = suite
    assert {run["run_id"] for run in before} < {run["run_id"] for run in after}
    keys = [quality_cells.key(run) for run in after]
    assert len(keys) == len(set(keys)) == 4  # the dense model and three cells
    assert len({run["subject"]["baseline_run"] for run in after[1:]}) == 1
    assert not list(folder.rglob("*.tmp"))


def test_resuming_what_is_finished_runs_nothing(suite):
    file, folder, _, after = suite
    cells = quality_cells.list_cells(PROTOCOL, None, None)
    target = next(folder.rglob("*.json")).parent
    assert len(quality.run_quality(file, cells, target, resume=True)) == len(after)
    assert len(results.read(folder)) == len(after)


def test_every_result_is_valid_and_bears_all_metrics(suite):
    schema = json.loads(results.SCHEMA.read_text())
    dense, *pruned = suite[3]
    for run in suite[3]:
        jsonschema.validate({k: v for k, v in run.items() if k != "path"}, schema)
    assert [q["metric"] for q in dense["quality"]] == [
        *(f"{metric}_other_noise" for metric in METRICS[:3]),
        *METRICS[3:],
    ]
    assert {run["status"] for run in pruned if run["config"]["granularity"] == "channel"} == {"unsupported"}
    for run in pruned:
        if run["status"] == "ok":
            found = {q["metric"]: q for q in run["quality"]}
            assert list(found) == ["prediction_error", *METRICS]
            assert all("floor" in found[metric] for metric in METRICS)
            assert (found["psnr"]["n"], found["retrieval_top1_unseen"]["n"]) == (18, 6)


def test_the_table_names_what_failed(suite):
    table = list(quality_table.rows(suite[3]))
    assert {len(row) for row in table} == {len(quality_table.COLUMNS)}
    assert any("no residual blocks of convolutions" in row[6] for row in table if row[1] == "channel")


def test_the_protocol_goes_coarse_first_through_pairs_that_the_contract_allows():
    protocol = yaml.safe_load((PROTOCOLS / "quality.yaml").read_text())
    cells = quality_cells.list_cells(protocol, None, None)
    from reference.request import Request

    for cell in cells:
        Request(**cell.keywords)
    assert {cell.keywords["amount"] for cell in cells[: len(cells) // 9]} == {0.5}
    rates = {cell.keywords["amount"] for cell in cells if cell.keywords["granularity"] == "weight"}
    assert sorted(rates) == [i / 10 for i in range(1, 10)]
    assert {cell.keywords["amount"] for cell in cells if cell.keywords["granularity"] == "2:4"} == {0.5}
    keys = [quality_cells.key(cell) for cell in cells]
    assert len(set(keys)) == len(keys)
    with pytest.raises(ValueError, match="no entry 'luck'"):
        quality_cells.list_cells(protocol, None, ["luck"])
    with pytest.raises(ValueError, match="no model 'sdxl'"):
        quality_cells.list_cells(protocol, ["sdxl"], None)
