"""Save what pruning made, load it anywhere: safetensors and JSON, no pickle, bit-identical.

A model whose shapes are those of its config (masked weights, or fewer blocks, which the config counts) becomes a plain
diffusers folder. A model cut in width cannot: its config has no word for the width of a single block, and plain
`from_pretrained` would re-initialise what does not fit. So its weights go to `pruned.safetensors`, which plain
`from_pretrained` does not find, and `pruning.json` records every shape and size in which the model differs from the one
its config describes (`manifest.py`). `storage="sparse"` packs the weights of either kind (`sparse_storage.py`).
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reference import low_rank_manifest
from reference.anatomy.skipping import masked_blocks
from reference.inspection import one_line, read_json
from reference.manifest import MANIFEST, SPARSE, WEIGHTS, manifest_of, skeleton, weight_files, write_manifest
from reference.on_disk import stored_dtype
from reference.quantised import cast, packed_weight
from reference.request import parse_n_m
from reference.sparse_storage import load_sparse, save_sparse

STORAGES = ("dense", "sparse")


def save_pruned(model: ModelMixin | DiffusionPipeline, folder: str | os.PathLike, storage: str = "dense") -> None:
    """Write a model or pipeline to `folder`, which must be new, empty, or an earlier output of this function.

    `storage="sparse"` packs the weights of what was pruned: zeros take no room on disk, loading brings every bit back,
    memory at run time is that of the dense file, and only `load_pruned` reads it. Nothing at `folder` is touched until
    everything is written beside it.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage is {' or '.join(map(repr, STORAGES))}, not {storage!r}")
    folder = Path(folder)
    check_target(folder)
    with _moved_into_place(folder) as scratch:
        if isinstance(model, DiffusionPipeline):
            with _pruned_saved_here(model, storage):
                model.save_pretrained(scratch, safe_serialization=True)
        else:
            _save_model(model, scratch, storage)


def load_pruned(
    folder: str | os.PathLike, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> ModelMixin | DiffusionPipeline:
    """What `save_pruned` wrote: a model or a pipeline. `dtype=None` keeps the saved one.

    Every tensor must be there in the recorded shape; nothing is ever re-initialised. Raises ValueError, with the file
    and what to do, if something is missing, cut short or does not fit.
    """
    folder = Path(folder)
    if (folder / "model_index.json").exists():
        return _load_pipeline(folder, dtype, device)
    if not (folder / MANIFEST).exists():
        raise ValueError(
            f"{folder} holds no {MANIFEST}; load folders that save_pruned did not write by from_pretrained"
        )
    return _load_model(folder, dtype, device)


@contextmanager
def _pruned_saved_here(pipeline: DiffusionPipeline, storage: str) -> Iterator[None]:
    """Inside, the pipeline's pruned models are written once, by `_save_model`: diffusers cannot write all of them."""

    def instead(module: ModelMixin) -> Callable[..., None]:
        def save(folder: str) -> None:
            Path(folder).mkdir()
            _save_model(module, Path(folder), storage)

        return save

    found = {m for m in pipeline.components.values() if isinstance(m, ModelMixin) and hasattr(m, "_pruning_history")}
    for module in found:
        module.save_pretrained = instead(module)
    try:
        yield
    finally:
        for module in found:
            del module.save_pretrained


def _save_model(model: ModelMixin, folder: Path, storage: str) -> None:
    masked = masked_blocks(model)
    if masked:
        raise ValueError(
            f"{type(model).__name__}: {len(masked)} blocks are masked, e.g. {masked[0]}, which no file can hold; "
            "cut them with reference.apply(model, plan, mode='cut'), then save"
        )
    packed = packed_weight(model)
    if packed:
        raise ValueError(f"{type(model).__name__}: {packed}; save the pruned model first, quantise it afterwards")
    manifest = manifest_of(model, storage)
    again = low_rank_manifest.stored_elsewhere(manifest["low_rank"])
    if storage == "sparse":
        model.save_config(folder)
        patterns = [parse_n_m(step["granularity"]) for step in manifest["history"]]
        patterns = [pattern for pattern in patterns if pattern]
        tensors = {n: t for n, t in model.state_dict().items() if n not in again}
        save_sparse(tensors, folder / SPARSE, dict.fromkeys(tensors, patterns[-1]) if patterns else None)
    elif manifest["shapes"] or manifest["low_rank"]:
        model.save_config(folder)
        tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n not in again}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    else:
        type(model).save_pretrained(model, folder, safe_serialization=True)
    write_manifest(folder, manifest, model)


def _load_model(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> ModelMixin:
    model, manifest = skeleton(folder)
    again = low_rank_manifest.stored_elsewhere(manifest.get("low_rank", []))
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in again}
    tensors: dict[str, Tensor] = {}
    read = load_sparse if manifest.get("storage") == "sparse" else _read_tensors
    for file in weight_files(folder, manifest):
        tensors |= read(file, expected, device)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, e.g. {missing[0]}; copy the folder again")
    # One Parameter under all its names, so that it is one tensor again.
    tensors |= {first: nn.Parameter(tensors[first]) for first in again.values()}
    tensors |= {name: tensors[first] for name, first in again.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    if dtype is not None:
        cast(model, dtype)
    return model.to(device).eval()


def _read_tensors(file: Path, expected: dict[str, tuple[int, ...]], device: str | torch.device) -> dict[str, Tensor]:
    """All tensors of a file, their names and shapes checked before any is read."""
    try:
        with safe_open(file, framework="pt", device=str(device)) as stored:
            names = list(stored.keys())
            for name in names:
                shape = tuple(stored.get_slice(name).get_shape())
                if name not in expected:
                    raise ValueError(f"{file}: tensor {name} is not part of the model; the folder mixes two models")
                if shape != expected[name]:
                    raise ValueError(f"{file}: {name} has shape {shape}, the manifest says {expected[name]}")
            # A clone lies at an aligned address, so that kernels take the path they took before saving.
            return {name: stored.get_tensor(name).clone() for name in names}
    except MemoryError as error:
        raise ValueError(
            f"{file} does not fit into memory ({one_line(error)}); free some, or prune out of core"
        ) from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing or cut short ({one_line(error)}); copy or download it again") from error


def _load_pipeline(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> DiffusionPipeline:
    from reference.embedded.pipeline import EmbeddedPipeline  # a pipeline class of ours, unknown to diffusers

    index = read_json(folder / "model_index.json")
    foreign = [name for name in index if not name.isidentifier()]
    if foreign:
        raise ValueError(f"{folder / 'model_index.json'} names a component {foreign[0]!r}, which is no plain name")
    pruned = {name: _load_model(folder / name, dtype, device) for name in index if (folder / name / MANIFEST).exists()}
    kind = EmbeddedPipeline if index.get("_class_name") == "EmbeddedPipeline" else DiffusionPipeline
    # Told nothing, diffusers loads the others in fp32; told one dtype, it rounds a VAE that was saved in fp32.
    saved = dtype or {name: stored_dtype(folder / name) or torch.float32 for name in index}
    return kind.from_pretrained(folder, dtype=saved, use_safetensors=True, **pruned).to(device)


def check_target(folder: Path) -> None:
    """Raise ValueError if writing to `folder` would destroy something else than an earlier output."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not list(folder.glob(f"**/{MANIFEST}")):
        raise ValueError(f"{folder} holds other files; name a new folder, or one that save_pruned wrote")


@contextmanager
def _moved_into_place(folder: Path) -> Iterator[Path]:
    """A scratch folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        take_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def take_place(scratch: Path, folder: Path) -> None:
    """Move `scratch` to `folder`, and what was there away."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old / "old")
        os.replace(scratch, folder)
        shutil.rmtree(old)
    else:
        os.replace(scratch, folder)
