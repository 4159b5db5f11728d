"""Save what pruning made, load it anywhere: safetensors and JSON, no pickle, bit-identical.

A model whose shapes are those of its config (masked weights, or fewer blocks, which the config counts) becomes a plain
diffusers folder. A model cut in width cannot: its config has no word for the width of a single block, and plain
`from_pretrained` would re-initialise what does not fit. So its weights go to `pruned.safetensors`, which plain
`from_pretrained` does not find, and `pruning.json` records every shape and size in which the model differs from the one
its config describes. `kept_units.safetensors` holds the numbers of the units that each cut kept, which is what a LoRA
made for the dense model needs (`adapters.py`). `storage="sparse"` packs the weights of either kind
(`sparse_storage.py`).
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reference import low_rank_manifest
from reference.anatomy.skipping import masked_blocks
from reference.inspection import checked_twin, model_class, on_meta, one_line, read_json, read_manifest
from reference.quantised import packed_weight
from reference.request import parse_n_m
from reference.sparse_storage import load_sparse, save_sparse

FORMAT = "reference-pruning/1"
WEIGHTS, MANIFEST = "pruned.safetensors", "pruning.json"
SPARSE, KEPT = "sparse.safetensors", "kept_units.safetensors"
STORAGES = ("dense", "sparse")
PACKAGES = ("awesome-diffusion-pruning", "torch", "diffusers", "safetensors")
PLAIN = "diffusion_pytorch_model"


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
    manifest = manifest_of(model, on_meta(type(model), dict(model.config)), storage)
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


def manifest_of(model: ModelMixin, dense_model: ModelMixin, storage: str) -> dict:
    """All that `pruning.json` says; `dense_model` is what the config alone describes."""
    low_rank, modules = low_rank_manifest.record(model), dict(dense_model.named_modules())
    foreign = [n for n, _ in model.named_modules() if n not in modules]
    if not foreign:
        low_rank_manifest.rebuild(dense_model, low_rank, Path(MANIFEST))
        dense = {n: p.shape for n, p in dense_model.named_parameters()}
        foreign = [n for n, _ in model.named_parameters() if n not in dense]
    if foreign:
        raise ValueError(f"{type(model).__name__} cannot be rebuilt from its config, which knows no {foreign[0]}")
    history = getattr(model, "_pruning_history", [])
    return {
        "format": FORMAT,
        "class": type(model).__name__,
        "module": type(model).__module__,
        "shapes": {n: list(p.shape) for n, p in model.named_parameters() if p.shape != dense[n]},
        "attributes": _changed_sizes(model, dense_model),
        "low_rank": low_rank,
        "storage": storage,
        "source": _source(model),
        "history": [{k: v for k, v in step.items() if k != "keep"} for step in history],
        "versions": {package: _version(package) for package in PACKAGES},
    }


def write_manifest(folder: Path, manifest: dict, model: ModelMixin) -> None:
    """Write pruning.json, the kept units of the model's history, and a word in config.json, which is there already."""
    history = getattr(model, "_pruning_history", [])
    kept = {f"{i}.{group}": k.int() for i, step in enumerate(history) for group, k in step.get("keep", {}).items()}
    if kept:
        save_file(kept, folder / KEPT)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    config = json.loads((folder / "config.json").read_text())
    config["pruning"] = {"format": FORMAT, "manifest": MANIFEST}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this package, run from a checkout that was never installed
        return None


def _source(model: ModelMixin) -> dict[str, str | None]:
    """Where the dense weights came from: a hub id with its commit, or the last two names of a local path."""
    if hasattr(model, "_pruning_source"):
        return model._pruning_source
    return source_of(str(model.config.get("_name_or_path") or ""))


def source_of(name: str) -> dict[str, str | None]:
    """A hub id or path as the manifest records it."""
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})", name)
    if cached:
        return {"name": cached[1].replace("--", "/"), "revision": cached[2]}
    parts = Path(name).parts
    return {"name": "/".join(parts[-2:] if Path(name).is_absolute() else parts) or None, "revision": None}


def _load_model(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> ModelMixin:
    model, manifest = skeleton(folder)
    again = low_rank_manifest.stored_elsewhere(manifest.get("low_rank", []))
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in again}
    tensors: dict[str, Tensor] = {}
    read = load_sparse if manifest.get("storage") == "sparse" else _read_tensors
    for file in _weight_files(folder, manifest):
        tensors |= read(file, expected, device)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, e.g. {missing[0]}; copy the folder again")
    # One Parameter under all its names, so that it is one tensor again.
    tensors |= {first: nn.Parameter(tensors[first]) for first in again.values()}
    tensors |= {name: tensors[first] for name, first in again.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    if dtype is not None:
        model.to(dtype)
    return model.to(device).eval()


def skeleton(folder: Path) -> tuple[ModelMixin, dict]:
    """The model of a folder in its true shapes, its weights without memory, and the manifest; history read in."""
    manifest = read_manifest(folder / MANIFEST, FORMAT)
    kind = model_class(manifest["module"], manifest["class"])
    if kind is None:
        raise ValueError(f"{folder / MANIFEST} names the class {manifest['class']!r}, which diffusers does not have")
    config = read_json(folder / "config.json")
    config.pop("pruning", None)
    model = checked_twin(kind, config, _weight_files(folder, manifest))
    low_rank_manifest.rebuild(model, manifest.get("low_rank", []), folder / MANIFEST)
    _resize(model, manifest, folder / MANIFEST)
    model._pruning_history = _with_kept_units(manifest["history"], folder / KEPT)
    model._pruning_source = manifest.get("source", {})
    return model, manifest


def _weight_files(folder: Path, manifest: dict) -> list[Path]:
    if manifest.get("storage") == "sparse":
        return [folder / SPARSE]
    cut = manifest["shapes"] or manifest.get("low_rank")
    return [folder / WEIGHTS] if cut else sorted(folder.glob(f"{PLAIN}*.safetensors"))


def _with_kept_units(history: list[dict], file: Path) -> list[dict]:
    """The history with the numbers of the units that each cut kept: group -> (kept,) ascending."""
    history = [step | {"keep": {}} for step in history]
    try:
        if file.exists():
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                    number, _, group = name.partition(".")
                    kept = stored.get_tensor(name)
                    known = number.isdecimal() and int(number) < len(history)
                    if not known or kept.dtype != torch.int32 or kept.ndim != 1 or (kept.diff() < 1).any():
                        raise ValueError(f"{file}: {name!r} is no ascending list of units of {len(history)} steps")
                    history[int(number)]["keep"][group] = kept.long()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut short ({one_line(error)}); copy or download it again") from error
    for step in history:
        for group, (count, _) in step.get("cut", {}).items():
            kept = step["keep"].get(group)
            if kept is None:
                raise ValueError(f"{file}: the kept units of {group!r} are missing; copy the folder again")
            if len(kept) and not 0 <= int(kept[0]) <= int(kept[-1]) < count:
                raise ValueError(f"{file}: {group!r} keeps unit {int(kept[-1])} or {int(kept[0])} of {count} units")
    return history


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
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing or cut short ({one_line(error)}); copy or download it again") from error


def _resize(model: nn.Module, manifest: dict, file: Path) -> None:
    """Give the twin the recorded shapes and sizes. Only what exists can be changed, and only to something smaller."""
    parameters = dict(model.named_parameters())
    for name, shape in manifest["shapes"].items():
        old = parameters.get(name)
        if old is None or len(shape) != old.ndim or not all(map(_fits, shape, tuple(old.shape))):
            raise ValueError(f"{file}: shape {shape} of {name} does not fit the model that config.json describes")
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner).register_parameter(attribute, nn.Parameter(torch.empty(shape, device="meta")))
    modules = dict(model.named_modules())
    for name, sizes in manifest["attributes"].items():
        for attribute, value in sizes.items():
            old = vars(modules[name]).get(attribute) if name in modules else None
            if not _fits(value, old):
                raise ValueError(f"{file}: {name}.{attribute} = {value!r} does not fit the model of config.json")
            setattr(modules[name], attribute, tuple(value) if isinstance(value, list) else value)


def _fits(new: object, dense: object) -> bool:
    """A recorded size against the dense one: integers and shapes only shrink, an epsilon stays a positive number."""
    if isinstance(dense, Integral):  # numpy's among them: UNetFlat computes its widths with numpy
        return type(new) is int and 0 < new <= dense
    if type(dense) is float:
        return type(new) is float and 0 < new < float("inf")
    is_shape = isinstance(dense, tuple) and isinstance(new, list) and len(new) == len(dense)
    return is_shape and all(map(_fits, new, dense))


def _changed_sizes(model: nn.Module, twin: nn.Module) -> dict[str, dict[str, int]]:
    """Sizes (heads, inner_dim, out_features, eps, ...) in which the model differs from its twin."""
    changed = {}
    for (name, module), (_, dense) in zip(model.named_modules(), twin.named_modules(), strict=True):
        sizes = {a: v for a, v in vars(module).items() if a in vars(dense) and v is not vars(dense)[a] and _is_size(v)}
        sizes = {a: list(v) if isinstance(v, tuple) else v for a, v in sizes.items() if v != vars(dense)[a]}
        if sizes:
            changed[name] = sizes
    return changed


def _is_size(value: object) -> bool:
    return type(value) in (int, float) or (isinstance(value, tuple) and all(type(v) is int for v in value))


def _load_pipeline(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> DiffusionPipeline:
    from reference.embedded.pipeline import EmbeddedPipeline  # a pipeline class of ours, unknown to diffusers

    index = read_json(folder / "model_index.json")
    foreign = [name for name in index if not name.isidentifier()]
    if foreign:
        raise ValueError(f"{folder / 'model_index.json'} names a component {foreign[0]!r}, which is no plain name")
    pruned = {name: _load_model(folder / name, dtype, device) for name in index if (folder / name / MANIFEST).exists()}
    kind = EmbeddedPipeline if index.get("_class_name") == "EmbeddedPipeline" else DiffusionPipeline
    saved = dtype or next(iter(pruned.values())).dtype if pruned else dtype
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
