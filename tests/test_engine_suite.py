"""The engine suite: every criterion on the trained model, a result file each, resumable."""

import json

import numpy as np
import pytest
import yaml

from reference.bench.__main__ import PROTOCOLS, main
from reference.bench.criteria import list_cells, prediction_errors
from reference.calibration import Calibration, calls
from reference.denoising_loss import prediction_of
from reference.loaders import load_pipeline
from reference.request import Request

SMALL = {"noise_seeds": [0, 1], "calibration": {"prompts": 2, "batch_size": 2}, "held_out": 2}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    protocol = yaml.safe_load((PROTOCOLS / "engine.yaml").read_text()) | SMALL
    protocol["sampler"]["steps"] = 2
    protocol["entries"] = [
        {"entry": "low-rank", "keywords": {"granularity": "rank", "amount": 0.8},
         "criteria": [["random", "layer"], ["output-energy", "layer"]]},
        {"entry": "head", "keywords": {"granularity": "head", "amount": 0.4}, "criteria": [["wanda", "layer"]]},
    ]  # fmt: skip
    file = folder / "engine.yaml"
    file.write_text(yaml.safe_dump(protocol))
    assert main(["--suite", "engine", "--protocol", str(file), "--out", str(folder / "out")]) == 1  # wanda fails
    return folder


def read(folder) -> list[dict]:
    runs = [json.loads(file.read_text()) for file in (folder / "out").rglob("*.json")]
    return sorted(runs, key=lambda run: run["created"])


def test_each_criterion_is_a_result_with_its_seeds(suite):
    dense, by_chance, by_energy, wrong = read(suite)
    assert dense["subject"]["is_baseline"]
    assert {run["subject"]["baseline_run"] for run in (by_chance, by_energy)} == {dense["run_id"]}
    assert wrong["status"] == "failed"
    assert "'wanda' does not serve head" in wrong["error"]
    error = by_energy["quality"][0]
    assert error["metric"] == "prediction_error"
    assert error["n"] == 4  # two prompts, two seeds
    assert np.mean(error["per_seed"]) == pytest.approx(error["value"])
    assert error["value"] < 0.2 < by_chance["quality"][0]["value"]
    assert by_energy["achieved"]["parameters"] < dense["achieved"]["parameters"]


def test_resume_runs_what_is_missing_or_failed(suite, capsys):
    before = len(read(suite))
    (lost,) = [run for run in read(suite) if run["config"].get("criterion") == "random"]
    next((suite / "out").rglob(f"{lost['run_id']}.json")).unlink()
    assert main(
        ["--suite", "engine", "--protocol", str(suite / "engine.yaml"), "--out", str(suite / "out"), "--resume"]
    )
    runs = read(suite)
    assert len(runs) == before + 1  # the lost one again, and the failed one beside its first attempt
    again = next(run for run in runs if run["config"].get("criterion") == "random")
    assert again["quality"] == lost["quality"]  # the same seeds give the same numbers
    assert "output-energy" in capsys.readouterr().out


def test_the_dense_model_has_no_error_and_weights_lean_to_early_steps():
    pipeline = load_pipeline("openmoji-mmdit")
    runs = Calibration(pipeline, ["red heart"], steps=3)
    held_out = [(call, prediction_of(call).detach()) for call in calls(pipeline.transformer, runs)]
    assert prediction_errors(pipeline.transformer, held_out, weighted=False).tolist() == [0.0]
    # An error in the first step alone counts more when early steps do, one in the last step less.
    for wrong_step, comparison in ((0, np.greater), (2, np.less)):
        shifted = [(c, v + (int(c.step_b) == wrong_step)) for c, v in held_out]
        plain, weighted = (prediction_errors(pipeline.transformer, shifted, weighted=w) for w in (False, True))
        assert comparison(weighted, plain).all()


def test_the_protocol_asks_only_for_what_the_table_serves():
    protocol = yaml.safe_load((PROTOCOLS / "engine.yaml").read_text())
    cells = list_cells(protocol, None)
    assert len(cells) == sum(len(entry["criteria"]) for entry in protocol["entries"])
    for cell in cells:
        Request(**cell.keywords)
    with pytest.raises(ValueError, match="no entry 'luck'"):
        list_cells(protocol, ["luck"])
