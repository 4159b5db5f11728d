"""The engine suite: every criterion on the trained model, a result file each, resumable."""

import json

import numpy as np
import pytest
import torch
import yaml

from reference.bench import measure
from reference.bench.__main__ import PROTOCOLS, main
from reference.bench.criteria import list_cells, prediction_errors
from reference.calibration import Calibration, calls
from reference.denoising_loss import prediction_of
from reference.loaders import load_pipeline
from reference.plans import Plan
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


def test_several_sizes_of_calibration_are_runs_of_their_own(tmp_path, capsys):
    protocol = yaml.safe_load((PROTOCOLS / "calibration.yaml").read_text()) | SMALL
    protocol["sampler"]["steps"], protocol["calibration"]["prompts"] = 2, [1, 3]
    protocol["entries"] = [
        {"entry": "head", "keywords": {"granularity": "head", "amount": 0.5},
         "criteria": [["random", "layer"], ["magnitude", "layer"], ["output-energy", "layer"]]},
    ]  # fmt: skip
    file = tmp_path / "calibration.yaml"
    file.write_text(yaml.safe_dump(protocol))
    asked = ["--suite", "engine", "--protocol", str(file), "--out", str(tmp_path / "out"), "--resume"]
    assert main(asked) == 0
    dense, by_chance, by_size, few, many = read(tmp_path)
    assert [run["config"]["calibration"]["prompts"] for run in (dense, by_chance, by_size, few, many)] == [
        1,
        1,
        1,
        1,
        3,
    ]
    agreement = {run["run_id"]: run["quality"][2]["value"] for run in (by_chance, by_size, few, many)}
    assert agreement[by_size["run_id"]] == 1  # no data, no difference
    assert agreement[by_chance["run_id"]] < 0.6  # 1 / 3 is expected
    assert agreement[many["run_id"]] > agreement[by_chance["run_id"]]
    assert few["quality"][0]["value"] != many["quality"][0]["value"]
    assert main(asked) == 0
    assert len(read(tmp_path)) == 5  # nothing twice


def test_agreement_is_the_share_of_removed_units_in_common():
    def plan(*removed: list[int]) -> Plan:
        masks = {f"g{i}": torch.tensor([unit in r for unit in range(4)]) for i, r in enumerate(removed)}
        return Plan.of("head", masks, digest="")

    found = measure.agreement([plan([0, 1], [3], []), plan([1, 2], [3], [])])
    assert found["value"] == pytest.approx((1 / 3 + 1) / 2)  # the group that loses nothing does not count
    assert found["n"] == 2
    assert found["ci95"] == pytest.approx([1 / 3, 1])


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


@pytest.mark.parametrize(("name", "count"), [("engine", 43), ("calibration", 60)])
def test_a_protocol_asks_only_for_what_the_table_serves(name, count):
    protocol = yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())
    cells = list_cells(protocol, None)
    assert len(cells) == count
    for cell in cells:
        Request(**cell.keywords)
    with pytest.raises(ValueError, match="no entry 'luck'"):
        list_cells(protocol, ["luck"])
