"""Pruning, training and measuring quality give on another device what they give on the CPU.

`test_second_device.py` runs it.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

import reference
from reference.bench import acceptance, quality, quality_cells, results
from reference.embedded import load_embedded, on_device, train
from reference.request import SERVES, WITHOUT_DATA
from tests.second_device import second_device
from tests.test_quality import RECOVERY
from tests.test_training import few_drawings  # noqa: F401 - a fixture

# One unit for every criterion, and all units once.
PAIRS = [(criterion, next(iter(granularities))) for criterion, granularities in SERVES.items()]
PAIRS += [("magnitude", granularity) for granularity in ("N:M", "head", "block", "rank")] + [("obs-diff", "neuron")]


def list_weights(pipeline) -> list[torch.Tensor]:
    return list(pipeline.unet.parameters())


@pytest.fixture
def elsewhere():
    with second_device() as device:
        yield device


@pytest.fixture(scope="module")
def dense():
    return load_embedded("openmoji-mmdit")


def test_the_device_refuses_what_a_gpu_refuses(elsewhere):
    x = torch.arange(6.0).to(elsewhere)
    assert x.device.type == elsewhere
    with pytest.raises(RuntimeError, match="same device, but found elsewhere and cpu"):
        x + torch.ones(6)
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    assert (2 * x[torch.tensor([1, 3])] + torch.tensor(1.0)).cpu().tolist() == [3, 7]
    with pytest.raises(ValueError, match="the device 'nowhere' cannot be used"):
        on_device(load_embedded("openmoji-unet"), "nowhere")


@pytest.mark.parametrize(("criterion", "granularity"), PAIRS)
def test_pruning_leaves_the_same_weights(dense, elsewhere, criterion, granularity):
    left = {}
    for device in ("cpu", elsewhere):
        pipeline = copy.deepcopy(dense).to(device)
        data = None if criterion in WITHOUT_DATA else reference.Calibration(pipeline, ["red heart", "cat"], 2, 2)
        unit = {"N:M": "2:4"}.get(granularity, granularity)
        only = {"block": None, "neuron": "*blocks.0.ff", "rank": "*blocks.0.*"}.get(unit, "*blocks.0.attn*")
        reference.prune(pipeline, unit, 0.5, criterion=criterion, calibration=data, only=only)
        left[device] = pipeline.denoiser.state_dict()
    there = left[elsewhere]
    assert {tensor.device.type for tensor in there.values()} == {elsewhere}
    assert there.keys() == left["cpu"].keys()
    for name, tensor in left["cpu"].items():
        assert torch.equal(there[name].cpu(), tensor), name


def test_training_sees_the_same_batches(few_drawings, elsewhere, tmp_path, monkeypatch):  # noqa: F811
    """What is random is drawn on the CPU; check points of either device are read on the other."""
    kinds = set()  # of devices that mixed precision was asked for; the second one has none
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: kinds.add(kind) or nullcontext())
    here = train.train("openmoji-unet", tmp_path / "cpu", 4, seed=3)
    there = train.train("openmoji-unet", tmp_path / "there", 4, seed=3, device=elsewhere)
    again = train.train("openmoji-unet", tmp_path / "there", 4, seed=3)
    assert there.unet.device.type == elsewhere
    assert kinds == {"cpu", elsewhere}
    for (name, a), b, c in zip(here.unet.named_parameters(), *map(list_weights, (there, again)), strict=True):
        assert torch.allclose(a.float(), b.cpu().float(), rtol=1e-2, atol=1e-6), name
        assert torch.equal(b.cpu(), c), name


def test_the_quality_suite_measures_the_same(elsewhere, tmp_path):
    """With recovery: drawing, judging, training and what is left of the model."""
    protocol = RECOVERY | {"noise_seeds": [0], "floor_seeds": [1], "seen": 3}
    protocol["recovery"] = RECOVERY["recovery"] | {"steps": 2}
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(protocol))
    cells = quality_cells.list_cells(protocol, None, None)[-1:]
    runs = {}
    for device in ("cpu", elsewhere):
        AcceleratorState._reset_state(True)
        runs[device] = quality.run_quality(file, cells, tmp_path / device, device=device)
    assert [run["environment"]["device"] for run in runs[elsewhere]] == [elsewhere] * 2
    for here, there in zip(*runs.values(), strict=True):
        assert there["status"] == "ok", there["error"]
        sizes = [{k: v for k, v in run["achieved"].items() if "seconds" not in k} for run in (here, there)]
        assert sizes[0] | {"bytes_deflated": 0} == sizes[1] | {"bytes_deflated": 0}
        for a, b in zip(here["quality"], there["quality"], strict=True):
            assert a["metric"] == b["metric"]
            assert a["value"] == pytest.approx(b["value"], rel=1e-4, abs=1e-6), a["metric"]
    assert len(results.read(tmp_path / elsewhere)) == 2


def test_acceptance_draws_the_same(dense, elsewhere):
    here, there = (
        acceptance.draw(copy.deepcopy(dense).to(device), ["red heart", "cat"], [0], 2) for device in ("cpu", elsewhere)
    )
    assert torch.equal(here, there)
