"""What was pruned and saved computes the same bits in a process that never saw it; plain diffusers too, or it refuses.

One other process loads every folder: each granularity, dense and packed, model and pipeline.
"""

import copy
import hashlib
import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoModel, DDPMPipeline, DDPMScheduler, DiffusionPipeline, FluxPipeline, ModelMixin

import reference
from tests import svdquant_files
from tests.zoo import ZOO, make, output

GRANULARITIES = {"weight": 0.5, "2:4": None, "neuron": 0.5, "head": 0.5, "block": 0.5, "rank": 0.5, "channel": 0.5}
STORAGES, KINDS = ("dense", "sparse"), ("model", "pipeline")
PLAIN = ("weight", "2:4", "block")  # stored dense, plain diffusers loads these
CASES = [(g, storage, kind) for g in GRANULARITIES for storage in STORAGES for kind in KINDS]


def digest(loaded: ModelMixin | DiffusionPipeline) -> str:
    """Of what it computes from fixed inputs: a forward, or a picture in two steps."""
    if isinstance(loaded, ModelMixin):
        inputs = ZOO[type(loaded).__name__].inputs()
        with torch.no_grad():
            result = output(loaded.eval(), inputs)
    else:
        loaded.set_progress_bar_config(disable=True)
        prompt = {"prompt": "a cat", "height": 16, "width": 16} if isinstance(loaded, FluxPipeline) else {}
        noise = torch.Generator().manual_seed(0)
        result = loaded(**prompt, num_inference_steps=2, generator=noise, output_type="np").images
        result = torch.from_numpy(result)
    assert result.isfinite().all()
    return hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest()


def load_all(root: str) -> dict[str, list[str]]:
    """Folder -> digests of what `load_pruned` and plain diffusers load, or the error that plain diffusers ends in."""
    found = {}
    for name in ("-".join(case).replace(":", "") for case in CASES):
        folder = f"{root}/{name}"
        kind = DiffusionPipeline if name.endswith("pipeline") else AutoModel
        found[name] = [digest(reference.load_pruned(folder))]
        try:
            found[name].append(digest(kind.from_pretrained(folder, use_safetensors=True)))
        except OSError as error:
            found[name].append(str(error))
    return found


def pipeline_around(model: ModelMixin, base: FluxPipeline) -> DiffusionPipeline:
    """A stock pipeline of diffusers with this denoiser."""
    if type(model).__name__ == "UNet2DModel":
        return DDPMPipeline(model, DDPMScheduler())
    return FluxPipeline(**base.components | {"transformer": model})


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """Case -> digest before saving, of `load_pruned` and of plain diffusers in another process."""
    root = tmp_path_factory.mktemp("saved")
    base = FluxPipeline.from_pretrained(svdquant_files.write_pipeline(root / "base"))
    before = {}
    for granularity, amount in GRANULARITIES.items():
        dense = make("UNet2DModel" if granularity == "channel" else "FluxTransformer2DModel")[0]
        pipeline = pipeline_around(copy.deepcopy(dense if granularity == "channel" else base.transformer), base)
        for kind, subject in zip(KINDS, (dense, pipeline), strict=True):
            unpruned = digest(subject)
            reference.prune(subject, granularity, amount)
            pruned = digest(subject)
            assert pruned != unpruned, granularity
            for storage in STORAGES:
                name = "-".join((granularity, storage, kind)).replace(":", "")
                before[name] = pruned
                reference.save_pruned(subject, root / name, storage)
    program = "import json, sys, torch; torch.set_num_threads(int(sys.argv[2])); from tests import test_fresh_process; "
    program += "print(json.dumps(test_fresh_process.load_all(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(root), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = json.loads(done.stdout.splitlines()[-1])
    return {name: (before[name], *after[name]) for name in before}


@pytest.mark.parametrize(("granularity", "storage", "kind"), CASES)
def test_the_same_bits(digests, granularity, storage, kind):
    before, pruned, plain = digests["-".join((granularity, storage, kind)).replace(":", "")]
    assert pruned == before
    if storage == "dense" and granularity in PLAIN:
        assert plain == before
    else:
        assert "no file named diffusion_pytorch_model" in plain
