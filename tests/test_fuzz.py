"""A thousand damaged and crafted folders: each loads or ends in a ValueError of one line, in little memory and time."""

import copy
import ctypes
import json
import random
import resource
import shutil
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging

import reference
from tests.conftest import tiny_mmdit

NONSENSE = [
    None, True, False, 0, 1, -1, 2, 7, 10**5, 10**9, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf"),
    "", "x", "../../../etc/passwd", "/etc/passwd", "os.system", "torch.float8", "a\nb", "\x00", "é" * 1000,
    [], [10**9, 10**9], [-1], [[[]]], {}, {"a": {"b": []}}, {"../x": [10**12]},
]  # fmt: skip
# A folder here holds a tenth of a megabyte. Building a model class costs some; the allocator and threads reserve more.
TOUCHED, RESERVED = 400 << 20, 2 << 30  # bytes
M_MMAP_THRESHOLD = -3  # malloc.h


def mutated(tree, rng):
    """A copy with one to three nodes replaced, removed, renamed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            act = rng.choice(["replace", "replace", "replace", "grow", "remove", "rename"])
            if act == "replace" or (act == "grow" and type(node[key]) is not int):
                node[key] = copy.deepcopy(rng.choice(NONSENSE))
            elif act == "grow":
                node[key] = node[key] * rng.choice([-1, 2, 3, 1000, 10**6, 10**12]) + rng.choice([-1, 0, 1])
            elif act == "remove":
                node.pop(key)
            elif isinstance(node, dict):
                node[rng.choice(["x", "../" * 5 + "x", "", str(key) + ".weight"])] = node.pop(key)
            break
    return tree


def mutate_json(file, rng):
    raw = file.read_bytes()
    if rng.random() < 0.85:
        raw = json.dumps(mutated(json.loads(raw), rng)).encode()
    elif rng.random() < 0.5:
        raw = raw[: rng.randrange(len(raw))]
    else:
        raw = rng.choice([b"[" * 100_000, b"{}", b"[]", b"null", b"\xff\xfe", b'{"format": 1e999}', b"9" * 5000])
    file.write_bytes(raw)


def mutate_safetensors(file, rng):
    """Its header changed in meaning or byte by byte, its length cut or overstated; or bytes of its numbers."""
    raw = bytearray(file.read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = raw[8 : 8 + length], raw[8 + length :]
    kind = rng.random()
    if kind < 0.5:
        header = json.dumps(mutated(json.loads(header), rng)).encode()
        raw = struct.pack("<Q", len(header)) + header + data
    elif kind < 0.6:
        raw = raw[: rng.randrange(len(raw))]
    elif kind < 0.7:
        raw[:8] = struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, len(raw), 10**8, 2**63, 2**64 - 1]))
    else:
        span = (8, 8 + length) if kind < 0.85 else (8 + length, len(raw))
        for _ in range(rng.randint(1, 5)):
            raw[rng.randrange(*span)] = rng.randrange(256)
    file.write_bytes(bytes(raw))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of each kind: widths cut, masked, packed by bits, packed by positions."""
    root = tmp_path_factory.mktemp("whole")
    for name, granularity, storage in (
        ("cut", "head", "dense"),
        ("masked", "weight", "dense"),
        ("bits", "weight", "sparse"),
        ("positions", "2:4", "sparse"),
    ):
        model = tiny_mmdit(num_layers=2)
        reference.prune(model, granularity, None if granularity == "2:4" else 0.5)
        reference.save_pruned(model, root / name, storage=storage)
    return root


def peak():
    """Most bytes of memory that were in use at once since the count was last cleared."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def little_memory():
    """Inside, allocations of more than RESERVED fail, touched or not; at the end no more than TOUCHED was ever used."""
    # A class is built with parameters that live for an instant. Once glibc has seen large blocks go it may take the
    # next ones from its heap, whose holes use up addresses: above 1 MiB it is to map and unmap them, always.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + RESERVED, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert peak() - before < TOUCHED


def test_the_guard_bites():
    with little_memory(), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2 * RESERVED, dtype=torch.uint8)
    with pytest.raises(AssertionError), little_memory():
        torch.zeros(TOUCHED + (1 << 20), dtype=torch.uint8).add_(1)
    with little_memory():
        torch.zeros(TOUCHED // 4, dtype=torch.uint8).add_(1)


def complaint(folder):
    """The message of the ValueError that loading ends in, None if it loads; another error is not caught."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reference.load_pruned(folder)
        except ValueError as error:
            return str(error)
    return None


@pytest.mark.parametrize(
    ("suffix", "mutate", "count", "refused"),
    [
        ("pruning.json", mutate_json, 350, 150),
        ("config.json", mutate_json, 300, 100),
        (".safetensors", mutate_safetensors, 400, 200),
    ],
)
def test_damage_ends_in_one_line(folders, tmp_path, monkeypatch, suffix, mutate, count, refused):
    diffusers_logging.set_verbosity_error()
    opened = []
    monkeypatch.setattr(torch, "load", lambda *a, **_: opened.append(a))
    for name in ("cut", "masked", "bits", "positions"):
        reference.load_pruned(folders / name)  # whole ones load, and imports are done
    seen = 0
    for seed in range(count):
        rng = random.Random(f"{suffix}{seed}")
        folder = tmp_path / "m"
        shutil.copytree(folders / rng.choice(["cut", "masked", "bits", "positions"]), folder)
        mutate(rng.choice([f for f in sorted(folder.iterdir()) if f.name.endswith(suffix)]), rng)
        with little_memory():
            message = complaint(folder)
        if message is not None:
            seen += 1
            assert "\n" not in message, seed
            assert len(message) < 1500, seed
        shutil.rmtree(folder)
    assert seen >= refused
    assert opened == []


@pytest.mark.parametrize(
    ("key", "value"), [("num_layers", 10**7), ("num_attention_heads", 10**5), ("pos_embed_max_size", 10**5)]
)
def test_a_config_that_asks_for_terabytes(folders, tmp_path, key, value):
    shutil.copytree(folders / "masked", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config[key] = value
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with little_memory(), pytest.raises(ValueError, match=r"config\.json"):
        reference.load_pruned(tmp_path / "m")


def test_wrong_kept_units_are_refused_by_slice_lora(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    lora = {"transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(24, 2)}
    assert reference.slice_lora(lora, folders / "cut")["transformer_blocks.0.attn.to_q.lora_B.weight"].shape == (12, 2)
    shutil.copytree(folders / "cut", tmp_path / "m")
    file = tmp_path / "m" / "kept_units.safetensors"
    whole = load_file(file)
    name = next(iter(whole))
    for wrong, message in (
        ({name: torch.tensor([0, 9], dtype=torch.int32)}, "of 4 units"),
        ({name: torch.tensor([2, 1], dtype=torch.int32)}, "ascending"),
        ({name: torch.tensor([-1, 1], dtype=torch.int32)}, "of 4 units"),
        ({name: torch.tensor([0.5])}, "ascending"),
        ({f"7.{name}": torch.tensor([0], dtype=torch.int32)}, "ascending"),
        ({}, "are missing"),
    ):
        save_file({k: v for k, v in whole.items() if k != name} | wrong, file)
        with pytest.raises(ValueError, match=message):
            reference.slice_lora(lora, tmp_path / "m")


def test_a_pipeline_that_points_outside_its_folder(tmp_path):
    pipeline = reference.create_pruned_pipeline("openmoji-mmdit", 0.5)
    reference.save_pruned(pipeline, tmp_path / "p")
    index = json.loads((tmp_path / "p" / "model_index.json").read_text())
    index["../p/transformer"] = index["transformer"]
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no plain name"):
        reference.load_pruned(tmp_path / "p")
