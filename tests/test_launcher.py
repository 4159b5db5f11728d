"""Cells on a Ray cluster: the numbers of a local run, one result a cell although a worker is killed."""

import os
import signal
import threading
import time

import psutil
import pytest
import yaml

from reference.bench import criteria, quality_cells, results
from reference.bench.__main__ import PROTOCOLS, main
from tests.test_engine_suite import SMALL
from tests.test_quality import PROTOCOL, numbers


def kill_a_worker(folder, killed: list[int]) -> None:
    """SIGKILL to one process that works on a cell, once the dense result is there."""
    deadline = time.monotonic() + 600
    while not killed and time.monotonic() < deadline:
        mine = psutil.Process().children(recursive=True) if list(folder.rglob("*.json")) else []
        for process in mine:
            try:
                if process.name().startswith("ray::_run") or "ray::_run" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["quality", "engine"])
def test_a_cluster_that_loses_a_worker_ends_with_the_numbers_of_a_local_run(suite, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else workers yield to everything else on a busy machine
    if suite == "quality":
        protocol, key = PROTOCOL, quality_cells.key
    else:
        protocol = yaml.safe_load((PROTOCOLS / "engine.yaml").read_text()) | SMALL
        protocol["sampler"]["steps"] = 2
        protocol["entries"] = [
            {"entry": "head", "keywords": {"granularity": "head", "amount": 0.4},
             "criteria": [["random", "layer"], ["magnitude", "layer"], ["output-energy", "layer"]]},
        ]  # fmt: skip
        key = lambda run: criteria._key(run["config"])  # noqa: E731
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(protocol))
    arguments = ["--suite", suite, "--protocol", str(file), "--out"]
    local, remote = tmp_path / "local", tmp_path / "remote"
    assert main([*arguments, str(local)]) == 0

    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(remote, killed))
    killer.start()
    assert main([*arguments, str(remote), "--launcher", "ray"]) == 0
    killer.join()
    assert len(killed) == 1
    assert not ray.is_initialized()
    expected, found = ({key(run): run for run in results.read(folder)} for folder in (local, remote))
    assert len(results.read(remote)) == len(found) == len(expected) == 4
    assert {k: numbers(run) for k, run in found.items()} == {k: numbers(run) for k, run in expected.items()}
    assert len({run["subject"]["baseline_run"] for run in found.values()} - {None}) == 1

    lost = next(run for run in found.values() if not run["subject"]["is_baseline"])
    lost["path"].unlink()
    assert main([*arguments, str(remote), "--launcher", "ray", "--resume"]) == 0
    again = {key(run): run for run in results.read(remote)}
    assert len(results.read(remote)) == 4
    assert numbers(again[key(lost)]) == numbers(lost)
    assert sum(run["run_id"] in {r["run_id"] for r in found.values()} for run in again.values()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launcher", "ray"], "--launcher ray runs the suites engine and quality, not 'embedded'"),
        (["--address", "auto"], "--address goes with --launcher ray"),
        (["--suite", "quality", "--launcher", "ray", "--budget-s", "5"], "--budget-s goes with --launcher local"),
        (["--suite", "engine", "--device", "cuda"], "engine runs on the CPU, not on 'cuda'"),
        (["--device", "abacus"], "torch finds no device 'abacus' here; leave --device out for the CPU"),
        (
            ["--suite", "quality", "--device", "abacus", "--launcher", "ray", "--address", "auto"],
            "torch finds no device 'abacus' here; leave --device out for the CPU",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["--suite", "engine", "--launcher", "ray", "--out", str(tmp_path)]) == 2
    assert "--launcher ray needs ray: pip install" in capsys.readouterr().err
