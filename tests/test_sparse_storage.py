"""Sparse storage: every bit comes back, the bytes are what was promised, damage ends in one line."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import reference
from reference.sparse_storage import CHUNK, load_sparse, pack_tensor, save_sparse, unpack_tensor
from tests.conftest import forward, tiny_mmdit

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def gaussian(rows, columns, dtype=torch.bfloat16, seed=0):
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def pruned(W, amount):
    k = int(amount * W.numel())
    return W.masked_fill(W.float().abs() <= W.float().abs().flatten().kthvalue(k).values, 0)


def two_of_four(W):
    top = W.float().abs().reshape(-1, 4).topk(2, dim=1).indices
    mask = torch.zeros(W.numel() // 4, 4, dtype=torch.bool).scatter_(1, top, True)
    return W.masked_fill(~mask.reshape(W.shape), 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("numbers", ["any bits", "pruned"])
def test_every_bit_comes_back(dtype, numbers, tmp_path):
    """Any bits: NaNs with payload, infinities, -0.0 and subnormal numbers among them; two chunks and a bit more."""
    count = 2 * CHUNK + 12
    g = np.random.default_rng(0)
    raw = g.integers(0, 256, count * dtype.itemsize, np.uint8).reshape(count, -1)
    if numbers == "pruned":
        raw[g.random(count) < 0.6] = 0
    W = torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(4, -1)
    save_sparse({"W": W}, tmp_path / "f", {"W": (2, 4)})
    loaded = load_sparse(tmp_path / "f", {"W": tuple(W.shape)})["W"]
    assert loaded.dtype == dtype
    assert loaded.shape == W.shape
    assert torch.equal(bits(loaded), bits(W))
    packed = (tmp_path / "f").stat().st_size < W.numel() * dtype.itemsize
    assert packed == (numbers == "pruned")


def test_negative_zero_is_a_value():
    W = torch.zeros(64, 64)
    W[0, 5] = -0.0
    places, parts = pack_tensor(W)
    back = unpack_tensor(parts["packed"], parts["frames"], W.dtype, [64, 64], places)
    assert torch.signbit(back).nonzero().tolist() == [[0, 5]]


@pytest.mark.parametrize(
    ("name", "make", "limit"),
    [
        ("30 %", lambda W: pruned(W, 0.3), 0.51),
        ("50 %", lambda W: pruned(W, 0.5), 0.39),
        ("2:4", two_of_four, 0.38),
    ],
)
def test_size_of_pruned_gaussian_matrices(name, make, limit):
    W = make(gaussian(1536, 3072))
    pattern = (2, 4) if name == "2:4" else None
    places, parts = pack_tensor(W, pattern)
    assert places == ("2:4" if pattern else "bitmask")
    assert torch.equal(unpack_tensor(parts["packed"], parts["frames"], W.dtype, list(W.shape), places), W)
    ratio = sum(part.nbytes for part in parts.values()) / W.nbytes
    assert 0.33 < ratio < limit  # the entropy of mask and values is 0.34 or more


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (1, 16), (4, 16)])
def test_patterns_with_groups_that_hold_fewer(n, m):
    W = torch.zeros(40, 32)
    g = torch.Generator().manual_seed(1)
    for group in W.reshape(-1, m):
        kept = int(torch.randint(0, n + 1, (1,), generator=g))
        group[torch.randperm(m, generator=g)[:kept]] = torch.randn(kept, generator=g)
    places, parts = pack_tensor(W, (n, m))
    assert places == f"{n}:{m}"
    assert torch.equal(unpack_tensor(parts["packed"], parts["frames"], W.dtype, [40, 32], places), W)


def test_what_breaks_the_pattern_takes_a_bitmask():
    W = two_of_four(gaussian(64, 64))
    W[3, :4] = 1
    assert pack_tensor(W, (2, 4))[0] == "bitmask"


def test_what_does_not_profit_stays_dense(tmp_path):
    tensors = {
        "bias": torch.zeros(8),
        "number": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "steps": torch.arange(10_000),
        "flags": torch.zeros(10_000, dtype=torch.bool),
    }
    save_sparse(tensors, tmp_path / "f")
    with safe_open(tmp_path / "f", framework="pt") as stored:
        assert sorted(stored.keys()) == sorted(tensors)
    loaded = load_sparse(tmp_path / "f", {name: tuple(t.shape) for name, t in tensors.items()})
    assert all(torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in tensors.items())


@pytest.mark.parametrize("granularity", ["weight", "2:4", "head", "neuron"])
def test_a_model_saved_sparse_is_the_model_saved_dense(granularity, tmp_path):
    model = tiny_mmdit(attention_head_dim=16, num_attention_heads=6, caption_projection_dim=96).to(torch.bfloat16)
    reference.prune(model, granularity, None if granularity == "2:4" else 0.5)
    reference.save_pruned(model, tmp_path / "dense")
    reference.save_pruned(model, tmp_path / "sparse", storage="sparse")
    loaded = reference.load_pruned(tmp_path / "sparse")
    assert torch.equal(forward(loaded), forward(model))
    assert {n: p.dtype for n, p in loaded.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    size = {s: sum(f.stat().st_size for f in (tmp_path / s).glob("*.safetensors")) for s in ("dense", "sparse")}
    assert size["sparse"] < (0.55 if granularity in ("weight", "2:4") else 0.85) * size["dense"]
    with safe_open(tmp_path / "sparse" / "sparse.safetensors", framework="pt") as stored:
        kinds = {places for _, _, places in json.loads(stored.metadata()["packed"]).values()}
    assert ("2:4" in kinds) == (granularity == "2:4")
    reference.save_pruned(loaded, tmp_path / "again")
    assert torch.equal(forward(reference.load_pruned(tmp_path / "again")), forward(model))


def test_a_pipeline_saved_sparse(tmp_path):
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", 0.5, "2:4")
    reference.save_pruned(pipeline, tmp_path / "p", storage="sparse")
    loaded = reference.load_pruned(tmp_path / "p")
    expected = pipeline.transformer.state_dict()
    actual = loaded.transformer.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_unknown_storage_is_refused(tmp_path):
    with pytest.raises(ValueError, match="storage is 'dense' or 'sparse', not 'zip'"):
        reference.save_pruned(tiny_mmdit(), tmp_path / "m", storage="zip")
    assert list(tmp_path.iterdir()) == []


def rewritten(file, change):
    """The file with its metadata and tensors changed."""
    with safe_open(file, framework="pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    packed = json.loads(metadata["packed"])
    change(packed, tensors)
    save_file(tensors, file, metadata | {"packed": json.dumps(packed)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed, _: packed["W"].__setitem__(1, [1 << 40, 1 << 40]), "not part of the model as described"),
        (lambda packed, _: packed["W"].__setitem__(1, [-1, -64]), "does not describe packed tensors"),
        (lambda packed, _: packed["W"].__setitem__(0, "int32"), "does not describe packed tensors"),
        (lambda packed, _: packed["W"].__setitem__(0, "__class__"), "does not describe packed tensors"),
        (lambda packed, _: packed["W"].__setitem__(0, "float64"), "do not make a tensor"),
        (lambda packed, _: packed["W"].__setitem__(2, "4:2"), "does not describe packed tensors"),
        (lambda packed, _: packed["W"].__setitem__(2, "2:4"), "a compressed frame holds"),
        (lambda packed, _: packed.update(V=packed["W"]), "not part of the model"),
        (lambda _, tensors: tensors["W.frames"].__setitem__((0, 0), -5), "do not make a tensor"),
        (lambda _, tensors: tensors["W.frames"].__setitem__((0, 0), 1 << 62), "do not make a tensor"),
        (lambda _, tensors: tensors["W.packed"].__setitem__(slice(30, 40), 255), "damaged"),
        (lambda _, tensors: tensors.pop("W.packed"), "damaged"),
    ],
)
def test_crafted_files_are_refused(tmp_path, change, message):
    save_sparse({"W": pruned(gaussian(256, 256), 0.5)}, tmp_path / "f")
    rewritten(tmp_path / "f", change)
    with pytest.raises(ValueError, match=message) as caught:
        load_sparse(tmp_path / "f", {"W": (256, 256)})
    assert "\n" not in str(caught.value)


def test_a_frame_that_claims_gigabytes_is_refused_before_any_is_taken():
    """A zstd header of 14 bytes can claim any size."""
    bomb = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + b"\x01\x00\x00"
    frames = torch.tensor([[len(bomb), 1, 1]])
    packed = torch.from_numpy(np.frombuffer(bomb + b"ab", np.uint8).copy())
    with pytest.raises(ValueError, match=f"holds {1 << 40} bytes where 8 belong"):
        unpack_tensor(packed, frames, torch.bfloat16, [8, 8], "bitmask")
