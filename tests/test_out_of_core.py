"""Out of core equals in memory, bit for bit, for every granularity; killed runs go on; broken sources end in a line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, WanTransformer3DModel

import reference
from reference import on_disk, out_of_core, threshold, weights_on_disk
from reference.__main__ import main
from reference.out_of_core import prune_out_of_core
from reference.request import Request
from reference.select import lowest
from reference.streaming import read_header
from tests.conftest import forward, tiny_mmdit, tiny_unet


def flux():
    sizes = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
    return FluxTransformer2DModel(
        in_channels=4, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), **sizes
    )


def wan():
    """Its norms of q and k span all heads, so that their weights are rescaled."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def deep():
    return tiny_mmdit(num_layers=6, dual_attention_layers=(0, 2))


def sharded(make, folder, dtype=torch.bfloat16, shard="60KB"):
    """A model with redrawn weights, saved in several files; read back in the dtype of the files."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard, safe_serialization=True)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return type(model).from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)


def assert_same(folder, expected):
    """The folder loads as this model: every parameter, buffer and size, and the history."""
    actual = reference.load_pruned(folder)
    wanted = expected.state_dict()
    assert actual.state_dict().keys() == wanted.keys()
    for name, tensor in actual.state_dict().items():
        assert tensor.dtype == wanted[name].dtype, name
        assert tensor.shape == wanted[name].shape, name
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), wanted[name].reshape(-1).view(torch.uint8)), name
    for (name, a), (_, b) in zip(actual.named_modules(), expected.named_modules(), strict=True):
        for size in ("heads", "inner_dim", "out_features", "num_groups", "eps", "mlp_hidden_dim"):
            assert getattr(a, size, None) == getattr(b, size, None), (name, size)
    for a, b in zip(actual._pruning_history, expected._pruning_history, strict=True):
        assert {**json.loads(json.dumps({**a, "keep": 0}))} == {**json.loads(json.dumps({**b, "keep": 0}))}
        assert a["keep"].keys() == b["keep"].keys()
        assert all(torch.equal(a["keep"][name], b["keep"][name]) for name in a["keep"])


@pytest.mark.parametrize(
    ("make", "granularity", "keywords"),
    [
        (tiny_mmdit, "weight", {"amount": 0.3}),
        (tiny_mmdit, "weight", {"amount": 0.3, "scope": "global"}),
        (tiny_mmdit, "weight", {"amount": {"attention": 0.6, "*.ff.*": 0.2}, "scope": "component"}),
        (tiny_mmdit, "weight", {"amount": 0.3, "scope": "row"}),
        (tiny_mmdit, "weight", {"amount": 0.3, "criterion": "random", "seed": 3}),
        (tiny_mmdit, "weight", {"amount": 0.3, "criterion": "random", "scope": "global"}),
        (tiny_mmdit, "weight", {"amount": 0.3, "only": ["*attn*"], "skip": "*.0.*"}),
        (tiny_mmdit, "weight", {"amount": 0.0}),
        (tiny_mmdit, "2:4", {}),
        (tiny_mmdit, "1:4", {"criterion": "random"}),
        (tiny_mmdit, "head", {"amount": 0.5}),
        (tiny_mmdit, "neuron", {"amount": 0.3, "scope": "global"}),
        (tiny_mmdit, "neuron", {"amount": 0.3, "criterion": "random"}),
        (tiny_mmdit, "neuron", {"amount": 0.3, "criterion": "magnitude-l1"}),
        (flux, "head", {"amount": 0.5, "scope": "global"}),
        (flux, "neuron", {"amount": 0.3}),
        (tiny_unet, "weight", {"amount": 0.5, "scope": "global"}),
        (tiny_unet, "2:4", {}),
        (tiny_unet, "channel", {"amount": 0.5}),
        (wan, "head", {"amount": 0.5}),
        (deep, "block", {"amount": 0.5}),
        (deep, "block", {"amount": 0.4, "criterion": "random", "seed": 2}),
        (flux, "block", {"amount": 0.5, "scope": "global", "skip": "single*"}),
        (deep, "rank", {"amount": 0.5}),
        (deep, "rank", {"rank": 4, "criterion": "random"}),
        (flux, "rank", {"amount": 0.7, "scope": "global"}),
    ],
)
def test_the_same_as_in_memory(make, granularity, keywords, tmp_path):
    # Of Wan, diffusers loads some tensors in fp32 whatever the file holds; out of core keeps the dtype of the file.
    model = sharded(make, tmp_path / "dense", torch.float32 if make is wan else torch.bfloat16)
    reference.prune(model, granularity, **keywords)
    facts = prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request(granularity, **keywords))
    assert_same(tmp_path / "pruned", model)
    assert facts["removed"] > 0 or keywords["amount"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "pruned"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_other_dtypes(dtype, scope, tmp_path):
    model = sharded(tiny_mmdit, tmp_path / "dense", dtype)
    reference.prune(model, "weight", 0.4, scope=scope)
    prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request("weight", 0.4, scope=scope))
    assert_same(tmp_path / "pruned", model)


def test_in_small_pieces(tmp_path, monkeypatch):
    """Pieces far smaller than the tensors, so that every seam is met; the same bits."""
    monkeypatch.setattr(threshold, "CHUNK", 8)
    monkeypatch.setattr(threshold, "SAMPLE", 40)
    monkeypatch.setattr(weights_on_disk, "ROWS", 50)
    monkeypatch.setattr("reference.criteria.magnitude.CHUNK", 100)
    monkeypatch.setattr("reference.criteria.magnitude.PIECE", 100)
    monkeypatch.setattr("reference.anatomy.modulation.PIECE", 100)
    monkeypatch.setattr("reference.streaming.PIECE", 64)
    for granularity, keywords in (
        ("weight", {"amount": 0.3, "scope": "global"}),
        ("weight", {"amount": 0.3, "scope": "row"}),
        ("weight", {"amount": 0.3, "criterion": "random"}),
        ("1:4", {"criterion": "random"}),
        ("head", {"amount": 0.5}),
        ("block", {"amount": 0.4}),
        ("rank", {"amount": 0.4}),
    ):
        shutil.rmtree(tmp_path / "dense", ignore_errors=True)
        model = sharded(tiny_mmdit, tmp_path / "dense")
        reference.prune(model, granularity, **keywords)
        prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request(granularity, **keywords))
        assert_same(tmp_path / "pruned", model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_bits_select_as_sorting_does(dtype):
    """Gaussian, full of ties, half zeros of both signs; k from 1 to all; narrow and wide keys."""
    g = torch.Generator().manual_seed(0)
    gaussian = torch.randn(300, 171, generator=g)
    ties = torch.randint(-3, 4, (300, 171), generator=g).float()
    zeros = gaussian * (torch.rand(300, 171, generator=g) > 0.5)
    for W in (gaussian, ties, zeros, torch.zeros(300, 171)):
        for k in (1, 2, 15_390, 25_650, W.numel() - 1, W.numel()):
            for wide in (False, True):
                for seam in (64, 1 << 18):
                    pruned = W.to(dtype)
                    expected = pruned.masked_fill(lowest([pruned.float().abs()], k)[0], 0)
                    flat = threshold.bits(pruned)
                    threshold.CHUNK, before = seam, threshold.CHUNK
                    keys = threshold.float_keys(dtype, "W", wide=wide)
                    [cut] = threshold.cuts_in_memory([flat], [lambda: keys], k)  # noqa: B023
                    assert threshold.zero(flat, keys, cut) == k
                    threshold.CHUNK = before
                    assert np.array_equal(flat, threshold.bits(expected))


def test_a_bracket_that_misses_is_widened(tmp_path, monkeypatch):
    model = sharded(tiny_mmdit, tmp_path / "dense")
    tries = []
    right = threshold.bracket

    def wrong_at_first(sample, k, n, widening=1):
        tries.append(widening)
        return (5, 6) if widening == 4 else right(sample, k, n, widening)

    monkeypatch.setattr(threshold, "bracket", wrong_at_first)
    prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request("weight", 0.3, scope="global"))
    assert tries == [4, 32]
    reference.prune(model, "weight", 0.3, scope="global")
    assert_same(tmp_path / "pruned", model)


@pytest.mark.parametrize(("granularity", "amount"), [("weight", 0.3), ("neuron", 0.5), ("block", 0.4), ("rank", 0.5)])
def test_a_killed_run_goes_on(granularity, amount, tmp_path):
    """Killed without warning while it writes its third file; what was whole is not read again."""
    model = sharded(tiny_mmdit, tmp_path / "dense")
    killed = """
import os, sys
from reference import out_of_core, passes
from reference.request import Request
real, calls = passes.rewrite, []
def rewrite(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.pwrite(arguments[4], b"half a tensor", arguments[5])
        os._exit(9)
    return real(*arguments)
passes.rewrite = rewrite
out_of_core.prune_out_of_core(sys.argv[1], sys.argv[2], Request(sys.argv[3], float(sys.argv[4]), scope="global"))
"""
    request = [str(tmp_path / "dense"), str(tmp_path / "pruned"), granularity, str(amount)]
    assert subprocess.run([sys.executable, "-c", killed, *request], check=False).returncode == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pruned.partial", "dense"]
    facts = prune_out_of_core(*request[:2], Request(granularity, amount, scope="global"))
    whole = sum(f.stat().st_size for f in (tmp_path / "dense").glob("*.safetensors"))
    assert 0 < facts["bytes_read"] < 0.8 * whole
    reference.prune(model, granularity, amount, scope="global")
    assert_same(tmp_path / "pruned", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "pruned"]


def test_another_request_does_not_go_on_with_the_old_one(tmp_path, monkeypatch):
    model = sharded(tiny_mmdit, tmp_path / "dense")

    def broken(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("reference.streaming._spill", broken)
        with pytest.raises(OSError, match="no space left"):
            prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request("weight", 0.9, scope="global"))
    assert not (tmp_path / "pruned").exists()
    prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request("weight", 0.2, scope="global"))
    reference.prune(model, "weight", 0.2, scope="global")
    assert_same(tmp_path / "pruned", model)


def test_a_pipeline_by_the_command_line(tmp_path, capsys):
    """The embedded pipeline: its denoiser pruned, the rest copied; it draws what the one pruned in memory draws."""
    from reference.embedded import EMBEDDED, load_embedded

    folder, out = str(EMBEDDED["openmoji-mmdit"]), tmp_path / "pruned"
    arguments = ["--granularity", "weight", "--amount", "0.3", "--scope", "global", "--out", str(out)]
    assert main(["prune", folder, *arguments, "--out-of-core"]) == 0
    printed = capsys.readouterr().out
    dense = load_embedded("openmoji-mmdit", torch.bfloat16)
    report = reference.prune(dense, "weight", 0.3, scope="global")
    removed = sum(layer.units - layer.kept for layer in report.layers)
    assert f"removed {removed:,} of" in printed
    assert_same(out / "transformer", dense.transformer)
    loaded = reference.load_pruned(out)
    pictures = [
        p("red heart", 2, generator=torch.Generator().manual_seed(0), output_type="pt").images for p in (dense, loaded)
    ]
    assert torch.equal(*pictures)


def test_it_is_chosen_where_memory_is_short(tmp_path, monkeypatch, capsys):
    sharded(tiny_mmdit, tmp_path / "dense")
    assert not out_of_core.exceeds_memory(tmp_path / "dense")
    assert not out_of_core.exceeds_memory("org/name")
    monkeypatch.setattr(out_of_core.psutil, "virtual_memory", lambda: type("M", (), {"available": 1000}))
    arguments = ["prune", str(tmp_path / "dense"), "--granularity", "2:4", "--out", str(tmp_path / "m")]
    assert main(arguments) == 0
    assert "out of core: removed" in capsys.readouterr().out
    assert forward(reference.load_pruned(tmp_path / "m")).isfinite().all()


def test_memory_stays_a_few_tensors(tmp_path):
    """Over 100 MB of weights, the largest 8 MB: less than three of those and 50 MB above what importing takes."""
    width = {"attention_head_dim": 64, "num_attention_heads": 16, "caption_projection_dim": 1024, "num_layers": 2}
    sharded(lambda: tiny_mmdit(**width), tmp_path / "dense")
    header = [e for f in (tmp_path / "dense").glob("*.safetensors") for e in read_header(f)[1]]
    sizes = [entry.end - entry.start for entry in header]
    assert sum(sizes) > 100e6
    program = """
import sys, pathlib
from reference.out_of_core import prune_out_of_core
from reference.request import Request
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
prune_out_of_core(sys.argv[2], sys.argv[3] + "0", Request("weight", .3))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
prune_out_of_core(sys.argv[1], sys.argv[3], Request("weight", .3, scope="global"))
print(peak() - before)
"""
    shutil.copytree(tmp_path / "dense", tmp_path / "x")
    tiny_mmdit().to(torch.bfloat16).save_pretrained(tmp_path / "tiny")
    arguments = [str(tmp_path / name) for name in ("dense", "tiny", "out")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 3 * max(sizes) + 50e6


def stored(folder):
    """Name -> dtype and bytes of every tensor in the weight files of a folder."""
    found = {}
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        found |= {e.name: (e.dtype, raw[e.start : e.end]) for e in read_header(file)[1]}
    return found


@pytest.mark.parametrize("shard", ["10KB", "60KB", "10MB"])
def test_a_shorter_model_is_a_plain_folder(shard, tmp_path):
    """The same tensors, byte for byte, and the same config as by `save_pruned`; files of which nothing is left go."""
    dense, pruned, expected = (tmp_path / name for name in ("dense", "pruned", "expected"))
    deep().to(torch.bfloat16).save_pretrained(dense, max_shard_size=shard, safe_serialization=True)
    model = SD3Transformer2DModel.from_pretrained(dense, torch_dtype=torch.bfloat16, use_safetensors=True)
    reference.prune(model, "block", 0.5)
    reference.save_pruned(model, expected)
    prune_out_of_core(dense, pruned, Request("block", 0.5))
    assert stored(pruned) == stored(expected)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (pruned, expected)]
    configs[1].pop("_name_or_path")
    assert configs[0] == configs[1]
    assert configs[0]["num_layers"] == len(model.transformer_blocks) == 3
    plain = SD3Transformer2DModel.from_pretrained(pruned, torch_dtype=torch.bfloat16, use_safetensors=True)
    assert torch.equal(forward(plain.eval()), forward(model.eval()))
    before, after = (sorted(path.name for path in folder.glob("diff*.safetensors")) for folder in (dense, pruned))
    kept = [f"transformer_blocks.{i}." for i in model._pruning_history[0]["keep"]["transformer_blocks"].tolist()]
    left = [f for f in before if any(_stays(e.name, kept) for e in read_header(dense / f)[1])]
    assert len(after) == len(left)
    assert (len(left) < len(before)) == (shard != "10MB")
    numbered = [f"{on_disk.PLAIN}-{i:05d}-of-{len(after):05d}.safetensors" for i in range(1, len(after) + 1)]
    assert after == (numbered if len(after) > 1 else [f"{on_disk.PLAIN}.safetensors"])
    assert (pruned / on_disk.INDEX).exists() == (len(after) > 1)


def _stays(name, kept):
    return not name.startswith("transformer_blocks.") or name.startswith(tuple(kept))


def test_low_rank_files_hold_the_same_bytes(tmp_path):
    model = sharded(flux, tmp_path / "dense")
    reference.prune(model, "rank", 0.5)
    reference.save_pruned(model, tmp_path / "expected")
    prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request("rank", 0.5))
    assert stored(tmp_path / "pruned") == stored(tmp_path / "expected")
    assert any(name.endswith(".basis") for name in stored(tmp_path / "pruned"))


@pytest.mark.parametrize("granularity", ["block", "rank", "head"])
def test_two_denoisers_of_a_pipeline(granularity, tmp_path):
    """Each comes out as if it had been pruned alone; what is no denoiser is copied."""
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    for component in ("transformer", "transformer_2"):
        model = sharded(deep, dense / component)
        if component == "transformer_2":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.flip(0))
            shutil.rmtree(dense / component)
            model.save_pretrained(dense / component, max_shard_size="60KB", safe_serialization=True)
        reference.prune(model, granularity, 0.5)
        reference.save_pruned(model, tmp_path / "expected" / component)
    (dense / "scheduler").mkdir()
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        (dense / file).write_text('{"_class_name": "WanPipeline"}')
    prune_out_of_core(dense, pruned, Request(granularity, 0.5))
    for component in ("transformer", "transformer_2"):
        assert stored(pruned / component) == stored(tmp_path / "expected" / component)
    assert (pruned / "scheduler" / "scheduler_config.json").exists()
    first, second = (reference.load_pruned(pruned / name) for name in ("transformer", "transformer_2"))
    assert not torch.equal(forward(first), forward(second))


def test_a_pruned_folder_is_pruned_again(tmp_path):
    """Heads, then blocks, then weights: shapes, history and source go on; what is packed is refused."""
    model = sharded(deep, tmp_path / "0")
    for i, (granularity, amount) in enumerate((("head", 0.25), ("block", 0.4), ("weight", 0.3))):
        reference.prune(model, granularity, amount)
        prune_out_of_core(tmp_path / str(i), tmp_path / str(i + 1), Request(granularity, amount))
    assert_same(tmp_path / "3", model)
    manifest = json.loads((tmp_path / "3" / "pruning.json").read_text())
    assert [step["granularity"] for step in manifest["history"]] == ["head", "block", "weight"]
    assert manifest["source"]["name"].endswith("/0")
    reference.save_pruned(model, tmp_path / "packed", storage="sparse")
    with pytest.raises(ValueError, match="cannot be streamed; load it by load_pruned"):
        prune_out_of_core(tmp_path / "packed", tmp_path / "m", Request("weight", 0.3))


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "cannot be read as JSON"),
        (lambda d: next(d.glob("*1-of*.safetensors")).unlink(), r"1-of-\d+\.safetensors is"),
        (lambda d: os.truncate(next(d.glob("*1-of*.safetensors")), 5000), r"1-of-\d+\.safetensors is"),
        (lambda d: (d / on_disk.INDEX).write_text('{"weight_map": {"a": "../x.safetensors"}}'), "no plain name"),
        (lambda d: (d / on_disk.INDEX).unlink(), "holds no diffusion_pytorch_model"),
        (lambda d: (d / "config.json").write_text('{"_class_name": "os.system"}'), "unknown to diffusers"),
        (lambda d: edit_config(d, num_layers="x"), "does not describe a SD3Transformer2DModel"),
        (lambda d: edit_config(d, num_attention_heads=10**5), "do not belong together"),
        (lambda d: edit_config(d, num_layers=4), "is no part of"),
        (lambda d: edit_config(d, num_layers=2), "is no part of"),
    ],
)
def test_broken_sources_end_in_one_line(damage, message, tmp_path):
    sharded(tiny_mmdit, tmp_path / "dense")
    damage(tmp_path / "dense")
    with pytest.raises(ValueError, match=message) as caught:
        prune_out_of_core(tmp_path / "dense", tmp_path / "pruned", Request("weight", 0.3))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_what_cannot_be_streamed_is_refused(tmp_path):
    model = sharded(tiny_mmdit, tmp_path / "dense")
    with pytest.raises(ValueError, match="'wanda' looks at data and has to run the model"):
        prune_out_of_core(tmp_path / "dense", tmp_path / "m", Request("weight", 0.3, "wanda"))
    with pytest.raises(ValueError, match="is no folder"):
        prune_out_of_core("org/name", tmp_path / "m", Request("weight", 0.3))
    with torch.no_grad():
        model.transformer_blocks[0].attn.to_q.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.to_q holds values that are not finite"):
        prune_out_of_core(tmp_path / "nan", tmp_path / "m", Request("weight", 0.3))
    assert main(["prune", str(tmp_path / "dense"), "--granularity", "2:4", "--storage", "sparse", "--out-of-core",
                 "--out", str(tmp_path / "m")]) == 2  # fmt: skip
    assert not (tmp_path / "m").exists()
