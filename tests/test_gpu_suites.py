"""The GPU suites, gone through on a CPU with shrunk architectures: files, resume, budget, verdicts, packing."""

import json

import jsonschema
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reference.bench import architectures, cells, claims, kernels, latency, results, timing, two_four
from reference.bench.__main__ import PROTOCOLS, main
from reference.bench.device import ROOT

# anchors_reference, section 1.3, billions of parameters; PixArt and Wan as their papers print them.
BILLIONS = {
    "flux.1-dev": 11.90,
    "sd3.5-large": 8.06,
    "qwen-image": 20.43,
    "dit-xl-2-256": 0.75,
    "sdxl": 2.57,
    "sd1.5": 0.86,
    "pixart-sigma-1024": 0.61,
    "wan2.1-1.3b": 1.42,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_architectures_have_the_published_number_of_parameters(name):
    architecture = architectures.read(name)
    counted = sum(p.numel() for p in architectures.on_meta(architecture).parameters())
    assert counted == architecture["parameters"]
    assert round(counted / 1e9, 2) == BILLIONS[name]
    assert architecture["source"].startswith("https://")


def test_every_architecture_is_listed_here():
    assert sorted(BILLIONS) == architectures.names()


@pytest.mark.parametrize("name", ["flux.1-dev", "sd3.5-large", "pixart-sigma-1024", "wan2.1-1.3b", "qwen-image"])
def test_weights_are_drawn_by_seed_and_forward_runs(name):
    architecture = architectures.read(name, tiny=True)
    one, again, other = (architectures.build(architecture, "cpu", torch.float32, seed) for seed in (0, 0, 1))
    inputs = architectures.inputs(architecture, "cpu", torch.float32)
    with torch.inference_mode():
        y_one, y_again, y_other = (model(**inputs)[0] for model in (one, again, other))
    assert torch.equal(y_one, y_again)
    assert not torch.equal(y_one, y_other)
    assert y_one.isfinite().all()
    assert y_one.std() > 0.1


def protocol_file(folder, suite, **changes):
    """The suite's own protocol with some keys replaced."""
    protocol = yaml.safe_load((PROTOCOLS / f"{suite}.yaml").read_text())
    protocol["dry"] |= changes
    file = folder / f"{suite}.yaml"
    file.write_text(yaml.safe_dump(protocol))
    return file


def dry_run(suite, folder, *more, **changes):
    """Exit code and the runs of a dry run that writes to `folder`."""
    file = protocol_file(folder, suite, **changes)
    arguments = ["--suite", suite, "--protocol", str(file), "--dry-run", "--out", str(folder / "out"), *more]
    code = main(arguments)
    return code, results.read(folder / "out" / suite)


@pytest.fixture(scope="module")
def latency_runs(tmp_path_factory):
    entries = yaml.safe_load((PROTOCOLS / "latency.yaml").read_text())["entries"][:8]
    entries.append({"entry": "compiled", "mode": "compiled"})
    entries.append({"entry": "depth", "steps": [["block", 0.25, 1]], "mode": "compiled"})
    entries.append({"entry": "broken", "steps": [["channel", 0.5, 1]]})
    return dry_run("latency", tmp_path_factory.mktemp("latency"), models=["flux.1-dev"], entries=entries, repeats=2)


def test_latency_writes_a_valid_file_for_every_cell_refusals_included(latency_runs):
    code, runs = latency_runs
    assert code == 0
    assert [r["status"] for r in runs] == ["ok"] * 10 + ["unsupported"]
    assert "NotPrunable" in runs[-1]["error"]
    schema = json.loads(results.SCHEMA.read_text())
    for run in runs:
        jsonschema.validate({k: v for k, v in run.items() if k != "path"}, schema)
        assert run["config"]["dry_run"] is True
        assert run["config"]["weights"] == "random"
        assert run["subject"]["baseline_run"] == (None if run["subject"]["entry"] == "dense" else runs[0]["run_id"])


def test_latency_counts_what_is_left(latency_runs):
    dense, mask, two_to_four, heads, depth, fp8, best, rank = (r["achieved"] for r in latency_runs[1][:8])
    assert mask["parameters"] == dense["parameters"]
    assert mask["macs"] == dense["macs"]
    for halved in (mask, two_to_four):  # of the products with weights; those of attention stay whole
        assert 0.48 * dense["macs"] < halved["macs_nonzero"] < 0.55 * dense["macs"]
    assert fp8["macs"] == dense["macs"]
    assert fp8["weight_bytes"] < 0.65 * dense["weight_bytes"]  # the modulation stays as it was
    assert best["parameters"] < min(heads["parameters"], depth["parameters"]) < dense["parameters"]
    assert rank["parameters"] < 0.85 * dense["parameters"]
    assert rank["macs"] > 0.97 * dense["macs"]  # modulation is parameters, not time


def test_a_2_4_layer_is_converted_only_where_it_is_faster(latency_runs):
    converted = latency_runs[1][2]["config"]["converted"]
    assert sum(converted.values()) > 10
    assert converted.get("dense", 0) > 0.5 * sum(converted.values())  # unpacking for every product pays nowhere


def test_table_names_phantoms(latency_runs):
    runs = [r for r in latency_runs[1] if r["status"] == "ok"]
    mask = next(r for r in runs if r["subject"]["entry"] == "unstructured")
    mask["speed"][0] |= {"speedup": 1.0, "speedup_ci95": [0.99, 1.01]}
    table = {tuple(row[1:4]): row for row in latency.rows(runs)}
    assert table["unstructured", "0.5", "eager"][7] == "1.00x (0.99-1.01) phantom"
    assert len(latency.rows(runs)[0]) == len(latency.COLUMNS)


def test_kernels_pack_without_loss_and_say_when_they_refuse(tmp_path):
    code, runs = dry_run("kernels", tmp_path, repeats=1)
    assert code == 0
    unpacked = [r for r in runs if r["config"]["asked"]["backend"] == "unpacked"]
    refused = [r for r in runs if r["config"]["asked"]["backend"] == "cusparselt"]
    assert len(unpacked) == 2 * len(refused) > 0
    for run in unpacked:
        assert run["status"] == "ok"
        assert [s["error"] for s in run["speed"]] == [0, 0]
        assert run["config"]["minus_zero_error"] == 0
    assert all(r["status"] == "failed" and "CUDA" in r["error"] for r in refused)
    assert any(r["subject"]["entry"] == "128x640" for r in runs)  # FLUX's fused projection: heads and neurons together


def test_packing_is_exact_by_torchs_own_cutlass_packer():
    W = torch.randn(64, 128, dtype=torch.bfloat16)
    two_four.halve_smallest(W)
    assert (W.view(-1, 4) == 0).sum(1).eq(2).all()
    layer = nn.Linear(128, 64, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(torch.where(W == 0, -0.0, W))  # -0.0 where a weight went
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    stand_in = two_four.packed(layer, "unpacked")
    assert torch.equal(stand_in(x), F.linear(x, W, layer.bias))
    assert stand_in.values.numel() == W.numel() // 2


def test_fp8_layer_is_near_the_dense_one():
    layer, x = nn.Linear(128, 64), torch.randn(2, 40, 128)
    with torch.inference_mode():
        y, y_dense = two_four.Fp8Linear(layer.weight, layer.bias)(x.bfloat16()), layer(x)
    assert y.shape == y_dense.shape
    assert (y - y_dense).norm() / y_dense.norm() < 0.06


def test_rule_converts_from_the_rows_on_where_a_backend_wins():
    def run(backend, speedups):
        asked = {"outputs": 8, "inputs": 4, "dtype": "bfloat16", "backend": backend, "compiled": False}
        speed = [{"rows": n, "speedup": s} for n, s in speedups.items()]
        return {"status": "ok", "config": {"asked": asked}, "speed": speed}

    rule = kernels.learn([run("cusparselt", {64: 0.6, 1024: 1.2, 4096: 1.3}), run("cutlass", {64: 1.0, 1024: 1.4})])
    assert json.loads(json.dumps(rule)) == rule
    assert kernels.decide(rule, (8, 4, 64)) is None
    assert kernels.decide(rule, (8, 4, 2000)) == "cutlass"
    assert kernels.decide(rule, (8, 4, 5000)) == "cusparselt"
    assert kernels.decide(rule, (8, 4, 10)) is None
    assert kernels.decide(rule, (8, 8, 5000)) is None


def test_resume_after_a_kill_and_budget(tmp_path, monkeypatch):
    changes = {"models": ["flux.1-dev"], "entries": [{"entry": "dense"}, {"entry": "unstructured", "mask": 0.5}]}
    change = latency.change

    def killed(model, asked):
        if "mask" in asked:
            raise KeyboardInterrupt
        return change(model, asked)

    monkeypatch.setattr(latency, "change", killed)
    with pytest.raises(KeyboardInterrupt):
        dry_run("latency", tmp_path, **changes)
    monkeypatch.setattr(latency, "change", change)
    first = results.read(tmp_path / "out")
    assert [r["subject"]["entry"] for r in first] == ["dense"]

    _, runs = dry_run("latency", tmp_path, "--resume", "--budget-s", "0", **changes)
    assert len(runs) == 1  # no time, no cell
    _, runs = dry_run("latency", tmp_path, "--resume", "--budget-s", "100", **changes)
    assert [r["subject"]["entry"] for r in runs] == ["dense", "unstructured"]
    assert runs[0]["run_id"] == first[0]["run_id"] == runs[1]["subject"]["baseline_run"]
    _, again = dry_run("latency", tmp_path, "--resume", **changes)
    assert again == runs


def test_no_gpu_table_from_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--suite", "latency", "--out", str(tmp_path)]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert main(["--suite", "latency", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "never filled from another device" in capsys.readouterr().err
    assert main(["--suite", "latency", "--dry-run", "--out", str(ROOT / "results" / "x")]) == 2
    assert "does not write below" in capsys.readouterr().err
    assert main(["--suite", "latency", "--dry-run", "--model", "flux"]) == 2
    assert "no model 'flux'; there are flux.1-dev" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ratio", "ours", "interval", "word"),
    [
        (2.0, 1.95, None, "reproduced"),
        (2.0, 1.89, None, "partly"),
        (2.0, 1.89, (1.7, 2.1), "reproduced"),
        (1.2, 1.05, (0.9, 1.3), "not reproduced"),  # an interval that holds 1 knows nothing
        (2.0, 1.5, None, "partly"),
        (2.0, 1.49, None, "not reproduced"),
        (1.3, 0.9, None, "not reproduced"),
        (0.6, 0.62, None, "reproduced"),  # a published slow-down
        (2.0, 2.5, None, "partly"),
    ],
)
def test_verdicts(ratio, ours, interval, word):
    assert claims.verdict("time", ratio, ours, interval) == word


def test_verdicts_of_gigabytes_lower_bounds_and_other_settings():
    assert claims.verdict("saved_gb", 7.0, 7.48) == "reproduced"
    assert claims.verdict("saved_gb", 7.0, 3.4) == "not reproduced"
    assert claims.verdict("time", 1.4, 3.0, at_least=True) == "reproduced"
    assert claims.verdict("time", 4.0, 4.0, differs="fewer steps") == "not comparable: fewer steps"


def test_claims_are_in_papers_yaml_or_name_their_source():
    protocol = cells.open_protocol(PROTOCOLS / "claims.yaml", dry_run=False)
    assert len(protocol["claims"]) >= 20
    assert len(claims.list_cells(protocol)) == len({c["id"] for c in protocol["claims"]})
    for claim in protocol["claims"]:
        assert ("/" in claim["id"]) != ("source" in claim and "printed" in claim)
        assert claims.printed(claim)["ratio"] > 0
    assert claims.printed(protocol["claims"][1])["ratio"] == pytest.approx(13.54 / 6.91)
    with pytest.raises(ValueError, match=r"'bk-sdm/none' is not in papers\.yaml"):
        claims.printed({"id": "bk-sdm/none", "measure": "time"})


def test_size_claims_at_full_size():
    """Parameters need no GPU: the architectures that the claims name have what their papers print."""
    protocol = cells.open_protocol(PROTOCOLS / "claims.yaml", dry_run=False)
    judged = {}
    for claim in protocol["claims"]:
        if claim["measure"] == "parameters" and "changes" in claim:
            architecture = architectures.read(claim["model"])
            pruned = sum(p.numel() for p in architectures.on_meta(architecture, claim["changes"]).parameters())
            judged[claim["id"]] = claims.verdict(
                "parameters", claims.printed(claim)["ratio"], architecture["parameters"] / pruned
            )
    assert len(judged) == 10
    assert set(judged.values()) == {"reproduced"}


def test_claims_and_cost_end_to_end(tmp_path):
    protocol = cells.open_protocol(PROTOCOLS / "claims.yaml", dry_run=False)
    wanted = ("flux-1-lite/memory", "obs-diff-block-2-4", "torchao-1460-rows-64", "obs-diff/sd35-s30-flops")
    chosen = [claim for claim in protocol["claims"] if claim["id"] in wanted]
    _, runs = dry_run("claims", tmp_path, claims=chosen)
    assert [r["status"] for r in runs] == ["ok"] * 4
    assert {row[0] for row in claims.rows(runs)} == set(wanted)
    macs = next(r for r in runs if r["config"]["claim"]["id"] == "obs-diff/sd35-s30-flops")["achieved"]
    assert 1 < macs["dense_macs"] / macs["macs"] < 1.43
    block = next(r for r in runs if r["config"]["claim"]["id"] == "obs-diff-block-2-4")
    assert block["achieved"]["macs_nonzero"] < 0.6 * block["achieved"]["dense_macs"]

    entries = yaml.safe_load((PROTOCOLS / "cost.yaml").read_text())["entries"][:3]
    _, runs = dry_run("cost", tmp_path, models=["flux.1-dev"], entries=entries)
    assert [r["status"] for r in runs] == ["ok"] * 6
    assert all(r["achieved"]["layers"] < after["achieved"]["layers"] for r, after in zip(runs, runs[3:], strict=False))
    assert [r["config"]["calibration"]["steps"] for r in runs[:3]] == [0, 2, 2]


def test_memory_counts_shared_and_packed_weights_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert timing.memory(model, lambda: None, "cpu") == {"weight_bytes": 8 * 8 * 4}
