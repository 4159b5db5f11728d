"""The benchmark: result files that can be trusted, ratios recomputed from them, honest words for what does not pay."""

import copy
import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import reference
from reference.bench import archive, device, measure, results
from reference.bench.__main__ import PROTOCOLS, main
from reference.bench.embedded import list_jobs
from reference.embedded import load_embedded
from tests.conftest import tiny_mmdit

PROTOCOL = {
    "id": "test-1",
    "model": "openmoji-mmdit",
    "dtype": "float32",
    "storage_dtype": "bfloat16",
    "sampler": {"steps": 2, "guidance": 3.0},
    "noise_seeds": [0, 1],
    "prompts": ["red heart", "pig face"],
    "latency": {"threads": 1, "warmup": 1, "repeats": {1: 3, 16: 2}},
    "recovery": {"kind": "distill", "steps_per_round": 1, "batch": 4, "learning_rate": 3.0e-4},
    "entries": [
        {"entry": "unstructured", "keywords": {"granularity": "weight"}, "amounts": [0.5]},
        {"entry": "head", "keywords": {"granularity": "head"}, "amounts": [0.5, 0.99]},
        {"entry": "broken", "keywords": {"granularity": "expert"}, "amounts": [0.5]},
        {
            "entry": "iterative",
            "keywords": {"granularity": "neuron", "schedule": "cubic", "rounds": 2},
            "amounts": [0.5],
            "recover": True,
        },
    ],
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """One small run of the whole suite: its folder and its runs."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "protocol.yaml"
    file.write_text(yaml.safe_dump(PROTOCOL))
    assert main(["--protocol", str(file), "--out", str(folder / "results")]) == 1  # one entry is broken
    return folder / "results", results.read(folder / "results")


def test_every_run_is_a_valid_file_failures_included(suite):
    folder, runs = suite
    schema = json.loads(results.SCHEMA.read_text())
    assert [r["subject"]["entry"] for r in runs] == ["dense", "unstructured", "head", "head", "broken", "iterative"]
    assert [r["status"] for r in runs] == ["ok", "ok", "ok", "ok", "failed", "ok"]
    assert "unknown granularity 'expert'" in runs[4]["error"]
    for run in runs:
        path = run.pop("path")
        jsonschema.validate(run, schema)
        assert path.stem == run["run_id"]
        run["path"] = path
    strips = {f.name for f in folder.rglob("*.png")}
    assert strips == {a["path"] for r in runs for a in r["artifacts"]}
    assert len(strips) == 5


def test_runs_of_a_finished_protocol_come_back_from_their_archive_byte_for_byte(suite, tmp_path, capsys):
    runs = [{k: v for k, v in run.items() if k != "path"} for run in suite[1]]
    earlier = [run | {"protocol": run["protocol"] | {"id": "earlier"}} for run in runs[:4]]
    for run in [*earlier, *runs[4:]]:
        results.write(run, tmp_path)
    written = {run["run_id"]: (tmp_path / f"{run['run_id']}.json").read_bytes() for run in earlier}
    before = results.read(tmp_path)
    assert archive.main([str(tmp_path), "earlier"]) == 0
    assert len(list(tmp_path.glob("*.json"))) == len(runs) - 4
    after = results.read(tmp_path)
    assert [run["run_id"] for run in after] == [run["run_id"] for run in before]
    packed = {run["run_id"]: archive.as_text(run).encode() for run in after if run["path"].suffix == ".gz"}
    assert packed == written
    twice = tmp_path / f"{earlier[0]['run_id']}.json"
    twice.write_bytes(written[earlier[0]["run_id"]])
    with pytest.raises(ValueError, match=r"is in earlier.jsonl.gz as well; remove the file"):
        results.read(tmp_path)
    twice.unlink()
    assert 10 * (tmp_path / "earlier.jsonl.gz").stat().st_size < 4 * sum(map(len, written.values()))
    for protocol, why in (("earlier", "holds no result file"), ("embedded-1", None)):
        foreign = tmp_path / f"{runs[4]['run_id']}.json"
        foreign.write_text(foreign.read_text().rstrip())  # not as the bench writes it: nothing may go
        assert archive.main([str(tmp_path), protocol if why else runs[4]["protocol"]["id"]]) == 2
        assert (why or "would not come back from an archive as it is") in capsys.readouterr().err
        assert len(list(tmp_path.glob("*.json"))) == len(runs) - 4


@pytest.mark.parametrize("name", ["cut-off.json", "cut-off.jsonl.gz"])
def test_resuming_from_a_damaged_result_is_refused(name, tmp_path, capsys):
    folder = tmp_path / "quality" / "here"
    folder.mkdir(parents=True)
    whole = b'{"run_id": "1", "created": "2026"}'
    (folder / name).write_bytes((gzip.compress(whole) if name.endswith("gz") else whole)[:-5])
    assert main(["--suite", "quality", "--resume", "--out", str(tmp_path)]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {folder / name} cannot be read (")
    assert said.endswith(("and the run is made again", "restore it, as from git"))
    assert [file.name for file in folder.iterdir()] == [name]


def test_runs_that_draw_the_same_share_one_picture(tmp_path):
    pictures = np.zeros((2, 3, 4, 4), dtype=np.float32)
    first, second = (results.write_pictures(pictures, tmp_path) for _ in range(2))
    assert first == second
    assert results.write_pictures(pictures + 1, tmp_path)["path"] != first["path"]
    assert len(list(tmp_path.iterdir())) == 2  # and nothing half written
    assert Image.open(tmp_path / first["path"]).size == (8, 4)


def test_published_pictures_are_those_that_their_runs_drew():
    suites = (device.ROOT / "results" / suite for suite in ("embedded", "quality"))
    runs = [run for suite in suites for run in results.read(suite) if run["artifacts"]]
    assert len(runs) > 90
    for run in runs:
        for artifact in run["artifacts"]:
            data = (run["path"].parent / artifact["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == artifact["sha256"], run["run_id"]


def test_counts_agree_with_arithmetic(suite):
    dense, weight, head, most, _, iterative = (r["achieved"] for r in suite[1])
    assert dense["parameters"] == dense["nonzero"] == 5_425_776
    assert weight["parameters"] == dense["parameters"]
    assert weight["macs"] == dense["macs"]
    assert weight["bytes"] / dense["bytes"] == pytest.approx(1, abs=1e-3)  # a mask saves nothing on disk
    assert weight["bytes_deflated"] < 0.75 * dense["bytes_deflated"]
    assert weight["bytes_sparse"] < 0.45 * dense["bytes"]  # half of the weights, and what is never pruned
    assert weight["bytes_in_memory"] == dense["bytes_in_memory"] > 2 * dense["parameters"]
    assert head["bytes_in_memory"] < 0.9 * dense["bytes_in_memory"]
    assert weight["macs_nonzero"] < 0.6 * dense["macs"]
    assert head["unit_rate"] == pytest.approx(0.6)  # 3 of 5: half rounds up
    assert most["unit_rate"] == pytest.approx(0.8)  # min_keep: one of five stays
    assert head["bytes"] < dense["bytes"] * 0.9
    assert iterative["recovery_seconds"] > 0
    assert weight["recovery_seconds"] == 0


def test_fidelity_is_relative_to_the_dense_model(suite):
    quality = {r["run_id"]: {q["metric"]: q for q in r["quality"]} for r in suite[1]}
    floor, weight, head, most = list(quality.values())[:4]
    assert set(floor) == {"psnr_other_noise"}
    assert (
        0 < weight["prediction_error"]["value"] < head["prediction_error"]["value"] < most["prediction_error"]["value"]
    )
    assert weight["psnr"]["n"] == 4
    low, high = weight["psnr"]["ci95"]
    assert low <= weight["psnr"]["value"] <= high


def test_the_table_recomputes_ratios(suite):
    table = {(row[0], row[1]): row for row in results.rows(suite[1])}
    weight = dict(zip(results.COLUMNS, table["unstructured (weight)", "50 %"], strict=True))
    assert weight["parameters removed"] == "0.0 %"
    assert weight["file"] == "1.00x"
    assert 0.35 < float(weight["packed file"][:-1]) < 0.45
    assert weight["memory"] == "1.00x"
    assert weight["MACs left"] == "1.00x"
    assert float(weight["nominal"][:-1]) > 1.7
    assert table["broken (expert)", "50 %"][2].startswith("unknown granularity")


def test_runs_that_measured_less_are_shown_as_such(suite):
    """Runs of earlier days have no packed size."""
    old = copy.deepcopy(suite[1][:2])
    for run in old:
        del run["achieved"]["bytes_sparse"], run["achieved"]["bytes_in_memory"]
    row = dict(zip(results.COLUMNS, results.rows(old)[1], strict=True))
    assert (row["file"], row["packed file"], row["memory"]) == ("1.00x", "not measured", "not measured")


def test_phantom():
    assert results.is_phantom(nominal=2.0, realised=1.02)
    assert not results.is_phantom(nominal=2.0, realised=1.6)
    assert not results.is_phantom(nominal=1.0, realised=0.98)


def test_runs_are_never_overwritten(suite, tmp_path):
    run = {k: v for k, v in suite[1][0].items() if k != "path"}
    results.write(run, tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        results.write(run, tmp_path)
    with pytest.raises(jsonschema.ValidationError):
        results.write(run | {"run_id": "20260101T000000Z-abcdef", "status": "great"}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_macs_of_one_linear_layer_and_its_zeros():
    layer = torch.nn.Linear(8, 6, bias=False)
    with torch.no_grad():
        layer.weight[:3] = 0
    counted = measure.count(layer, {"input": torch.ones(5, 8)})
    assert counted == {"parameters": 48, "nonzero": 24, "macs": 240, "macs_nonzero": 120}


def test_macs_of_attention_on_a_cpu():
    class Attention(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    counted = measure.count(Attention(), {"x": torch.ones(3, 2, 16, 8)})  # b, heads, tokens, width of a head
    assert counted["macs"] == counted["macs_nonzero"] == 2 * 3 * 2 * 16 * 16 * 8  # q k^T, and its softmax times v


def test_pictures_that_are_no_numbers_are_a_failure():
    pipeline = load_embedded("openmoji-mmdit", torch.float32)
    with torch.no_grad():
        pipeline.denoiser.proj_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match="1 of 1 pictures hold values that are not finite"):
        measure.draw(pipeline, ["red heart"], measure.noise(pipeline, 1, [0]), 2, 3.0)


def test_a_slower_model_is_measured_slower():
    dense, pruned = tiny_mmdit(num_layers=8), tiny_mmdit(num_layers=1)
    inputs = {
        "hidden_states": torch.randn(8, 3, 8, 8),
        "encoder_hidden_states": torch.randn(8, 5, 16),
        "pooled_projections": torch.randn(8, 16),
        "timestep": torch.full((8,), 500.0),
        "return_dict": False,
    }
    times = measure.latency(dense, pruned, inputs, warmup=1, repeats=7, threads=1)
    assert times["speedup"] > 2
    assert times["speedup_ci95"][0] <= times["speedup"] <= times["speedup_ci95"][1]
    assert times["dense"]["p10"] <= times["dense"]["median"] <= times["dense"]["p90"]


def test_published_protocol_lists_the_five_entries():
    protocol = yaml.safe_load((PROTOCOLS / "embedded.yaml").read_text())
    jobs = list_jobs(protocol, None)
    assert [e["entry"] for e in protocol["entries"]] == [
        "unstructured",
        "semi-structured",
        "structured",
        "head",
        "iterative",
    ]
    assert len(jobs) == 13
    assert list_jobs(protocol, ["head"]) == [job for job in jobs if job[0] == "head"]


PRUNE = ["-m", "reference", "prune"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-m", "reference.bench", "--suite", "quality", "--method", "luck"],
            "quality.yaml: no entry 'luck'; there are",
        ),
        (["-m", "reference.bench", "--method", "luck"], "no entry 'luck'; there are unstructured"),
        (["-m", "reference.bench", "--protocol", "missing.yaml"], "missing.yaml"),
        ([*PRUNE, "openmoji-mmdit", "--granularity", "weight", "--amount", "1.0", "--out", "x"], "not 1.0"),
        ([*PRUNE, "openmoji-mmdit", "--granularity", "expert", "--amount", "0.5", "--out", "x"], "unknown granularity"),
        ([*PRUNE, "no/such/folder", "--granularity", "head", "--amount", "0.5", "--out", "x"], "no/such/folder"),
    ],
)
def test_bad_input_ends_in_one_clear_line(arguments, message):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_prune_and_compare_from_the_command_line(tmp_path):
    from reference.__main__ import main as command

    out, picture = str(tmp_path / "pruned"), tmp_path / "compare.png"
    rate = ["--granularity", "neuron", "--component-amount", "feed_forward=0.25"]
    assert command(["prune", "openmoji-mmdit", *rate, "--out", out]) == 0
    assert command(["compare", "openmoji-mmdit", out, "--steps", "2", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 1000


def test_compare_and_prune_refuse_in_one_line_before_they_work(tmp_path, capsys):
    """What took minutes to draw or to prune is not lost to a file name or a folder that was wrong from the start."""
    from reference.__main__ import main as command

    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    model = tiny_mmdit()
    reference.prune(model, "head", 0.5)
    reference.save_pruned(model, tmp_path / "model")
    compare, prune = ["compare", "openmoji-mmdit", f"{tmp_path}/nothing"], ["prune", "openmoji-mmdit"]
    rate = ["--granularity", "neuron", "--amount", "0.3"]
    for arguments, message in (
        ([*compare, "--prompts", f"{tmp_path}/empty.txt"], "empty.txt holds no prompts; write one a line"),
        ([*compare, "--batch", "0"], "--batch is a whole number from 1 on, not 0"),
        ([*compare, "--steps", "0"], "--steps is a whole number from 1 on, not 0"),
        ([*compare, "--out", f"{tmp_path}/x.gif2"], "x.gif2 is no png, jpg or webp file"),
        (["compare", "openmoji-mmdit", f"{tmp_path}/model"], "model holds only a model, which draws nothing"),
        ([*prune, *rate, "--out", f"{tmp_path}/mine"], "mine holds other files; name a new folder"),
        ([*prune, *rate, "--criterion", "taylor", "--prompts", f"{tmp_path}/empty.txt", "--out", "x"], "no prompts;"),
        (["train", "openmoji-mmdit", "--steps", "0", "--out", f"{tmp_path}/x"], "--steps is a whole number from 1"),
    ):
        assert command(arguments) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert message in said[0]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "mine", "model"]


def test_a_result_names_no_folder_of_its_machine(monkeypatch):
    asked = ["x", "--suite", "engine", "--out", "/home/me/results", "--resume", "--out=/home/me/more"]
    monkeypatch.setattr("sys.argv", asked)
    assert results.command() == ["python", "-m", "reference.bench", "--suite", "engine", "--resume"]
    monkeypatch.setattr("sys.argv", ["x", "/home/me/out/seed-1"])
    second = importlib.util.spec_from_loader("reference.bench.second_seed", None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", second)
    assert results.command() == ["python", "-m", "reference.bench.second_seed", "seed-1"]
