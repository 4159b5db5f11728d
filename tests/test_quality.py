"""The quality suite on three cells: results that say what they are, and a killed run that loses and doubles nothing."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import torch
import yaml

from reference.bench import quality, quality_cells, quality_table, results, second_seed
from reference.bench.__main__ import PROTOCOLS, main
from reference.bench.judge import open_judge
from reference.embedded import load_embedded

PROTOCOL = {
    "id": "test-quality",
    "models": ["openmoji-mmdit"],
    "dtype": "float32",
    "storage_dtype": "bfloat16",
    "sampler": {"steps": 2, "guidance": 3.0},
    "noise_seeds": [0, 1],
    "floor_seeds": [2, 3],
    "seen": 4,
    "unseen": 2,
    "drawings": 80,
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
    deadline = time.monotonic() + 600
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


def test_pictures_are_kept_where_grids_show_them():
    cell = lambda **keywords: quality_cells.Cell("openmoji-mmdit", "head", keywords)  # noqa: E731
    assert [quality.is_shown(cell(amount=rate), {}) for rate in (0.3, 0.34, 0.35, 0.4, 0.5, 0.9)] == [
        True, True, False, False, True, False,
    ]  # fmt: skip
    assert quality.is_shown(cell(), {})
    assert not quality.is_shown(cell(amount=0.5), {"rules": {}})


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
            assert (found["psnr"]["n"], found["retrieval_top1_unseen"]["n"]) == (12, 4)


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


RECOVERY = PROTOCOL | {
    "id": "test-recovery",
    "seen": 5,
    "unseen": 0,
    "paired": True,
    "recovery": {"steps": 12, "batch": 2, "learning_rate": 3e-4},
    "entries": [{"entry": "structured", "granularity": "neuron", "criteria": ["magnitude"]}],
    "variants": [{}, {"recovery": "output", "schedule": "cubic", "rounds": 2}],
}


def numbers(run: dict) -> tuple:
    """All that a result measures except times."""
    sizes = {k: v for k, v in (run["achieved"] or {}).items() if not k.endswith("_seconds")}
    return run["status"], run["error"], sizes, run["quality"], [picture["sha256"] for picture in run["artifacts"]]


def run_until_killed(arguments: list[str], at_step: int) -> int:
    """Run a suite in a process that gets SIGKILL in the middle of a step of recovery; how it ended."""

    def run() -> None:
        torch.set_num_threads(1)  # a forked process has no others
        steps = iter(range(1, at_step + 1))
        step = torch.optim.AdamW.step

        def killed(*arguments, **keywords):
            if next(steps) == at_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **keywords)

        torch.optim.AdamW.step = killed
        main(arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def test_killed_in_the_middle_of_recovery_it_ends_with_the_numbers_of_an_unbroken_run(tmp_path):
    """One seed, one set of numbers; another seed, numbers of which most lie inside the first one's intervals."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(RECOVERY))
    arguments = ["--suite", "quality", "--protocol", str(file), "--out"]
    assert run_until_killed([*arguments, str(tmp_path / "killed")], at_step=5) == -signal.SIGKILL
    before = results.read(tmp_path / "killed")
    assert len(before) == 2  # the dense model and the cell without recovery
    assert main([*arguments, str(tmp_path / "killed"), "--resume"]) == 0
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    killed, whole = (
        {quality_cells.key(run): run for run in results.read(tmp_path / name)} for name in ("killed", "whole")
    )
    assert len(results.read(tmp_path / "killed")) == len(killed) == 3
    assert {run["run_id"] for run in before} < {run["run_id"] for run in killed.values()}
    assert {key: numbers(run) for key, run in killed.items()} == {key: numbers(run) for key, run in whole.items()}
    recovered = next(run for run in whole.values() if run["config"]["recovery"]["kind"] == "distill")
    assert recovered["config"]["recovery"]["steps"] == 12
    assert recovered["achieved"]["recovery_seconds"] > 0

    assert main([*arguments, str(tmp_path / "whole"), "--resume", "--seed", "1"]) == 0
    runs = results.read(tmp_path / "whole")
    assert sorted(run["config"]["seed"] for run in runs) == [0, 0, 0, 1, 1, 1]
    other = {quality_cells.key(run): run for run in runs if run["config"]["seed"] == 1}
    assert {run["config"]["noise_seeds"][0] for run in other.values()} == {1000}
    inside = [
        q["ci95"][0] <= again["value"] <= q["ci95"][1]
        for key, run in whole.items()
        for q, again in zip(run["quality"], other[key]["quality"], strict=True)
    ]
    differing = [numbers(run) != numbers(other[key]) for key, run in whole.items()]
    print(f"{sum(inside)} of {len(inside)} values of seed 1 inside the intervals of seed 0")
    assert all(differing)
    assert sum(inside) >= 0.6 * len(inside)  # 22 of 29 when this was written, with five prompts
    torch.set_num_threads(threads)


def test_a_second_model_is_told_the_prompts_by_its_own_text_encoder(tmp_path):
    judge = open_judge(yaml.safe_dump(PROTOCOL | {"paired": True}))
    same, deaf = load_embedded("openmoji-mmdit"), load_embedded("openmoji-mmdit")
    deaf.text_encoder.get_input_embeddings().weight.data.zero_()
    found = []
    for number, second in enumerate((same, deaf)):
        runs = second_seed.compare(judge, "openmoji-mmdit", second, tmp_path / str(number), {"second_weights": "x"})
        assert [run["subject"]["entry"] for run in runs] == ["dense", "second seed"]
        assert runs[1]["subject"]["baseline_run"] == runs[0]["run_id"]
        found.append({q["metric"]: q["value"] for q in runs[1]["quality"]})
    assert found[0]["prediction_error"] < 1e-6
    assert found[0]["psnr"] == 100
    assert found[0]["picture_error"] == 0
    assert found[1]["prediction_error"] > 0.1
    assert found[1]["retrieval_top5_seen"] < found[0]["retrieval_top5_seen"]


def test_all_experiments_with_one_entry_are_those_that_know_it(capsys):
    from reference.bench.__main__ import main

    assert main(["--suite", "quality", "--method", "channel", "--list"]) == 2
    assert main(["--suite", "quality", "--method", "depth", "--list"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 24  # 12 of each model, of the rate curves alone
    assert printed.err.count("no entry 'channel'") == 1
