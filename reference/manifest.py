"""What `pruning.json` says of a pruned model, and the model in its true shapes that is rebuilt from it.

    {"format", "class", "module"     which class of diffusers, built from config.json
     "shapes": {parameter: shape}    where they differ from those that the config describes
     "attributes": {module: {name: size}}   heads, inner_dim, eps, ... that differ
     "low_rank"                      layers that became two (`low_rank_manifest.py`)
     "storage", "source", "history", "versions"}

The numbers of the units that each cut kept, part of the history, lie in `kept_units.safetensors` beside it.
"""

import json
import re
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from reference import low_rank_manifest
from reference.inspection import checked_twin, model_class, on_meta, one_line, read_json, read_manifest

FORMAT = "reference-pruning/1"
MANIFEST, KEPT = "pruning.json", "kept_units.safetensors"
WEIGHTS, SPARSE, PLAIN = "pruned.safetensors", "sparse.safetensors", "diffusion_pytorch_model"
PACKAGES = ("awesome-diffusion-pruning", "torch", "diffusers", "safetensors")


def manifest_of(model: ModelMixin, storage: str) -> dict:
    """All that `pruning.json` says: in what the model differs from the one that its config alone describes."""
    dense_model = on_meta(type(model), dict(model.config))
    low_rank, modules = low_rank_manifest.record(model), dict(dense_model.named_modules())
    foreign = [n for n, _ in model.named_modules() if n not in modules]
    if not foreign:
        low_rank_manifest.rebuild(dense_model, low_rank, Path(MANIFEST))
        dense = {n: p.shape for n, p in dense_model.named_parameters()}
        foreign = [n for n, _ in model.named_parameters() if n not in dense]
    if foreign:
        raise ValueError(
            f"{type(model).__name__} cannot be rebuilt from its config, which knows no {foreign[0]}: unfuse "
            "projections, unload adapters, and undo what else was added before saving"
        )
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this package, run from a checkout that was never installed
        return None


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


def skeleton(folder: Path) -> tuple[ModelMixin, dict]:
    """The model of a folder in its true shapes, its weights without memory, and the manifest; history read in."""
    manifest = read_manifest(folder / MANIFEST, FORMAT)
    kind = model_class(manifest["module"], manifest["class"])
    if kind is None:
        raise ValueError(f"{folder / MANIFEST} names the class {manifest['class']!r}, which diffusers does not have")
    config = read_json(folder / "config.json")
    config.pop("pruning", None)
    model = checked_twin(kind, config, weight_files(folder, manifest))
    low_rank_manifest.rebuild(model, manifest.get("low_rank", []), folder / MANIFEST)
    _resize(model, manifest, folder / MANIFEST)
    model._pruning_history = _with_kept_units(manifest["history"], folder / KEPT)
    model._pruning_source = manifest.get("source", {})
    return model, manifest


def storage_of(folder: Path) -> str:
    """How `save_pruned` stored the weights of a model or pipeline: `dense` or `sparse`."""
    stored = {read_json(file).get("storage") for file in folder.glob(f"**/{MANIFEST}")}
    return "sparse" if "sparse" in stored else "dense"


def weight_files(folder: Path, manifest: dict) -> list[Path]:
    """The files that hold the weights: packed, cut in width, or as diffusers names them."""
    if manifest.get("storage") == "sparse":
        return [folder / SPARSE]
    cut = manifest["shapes"] or manifest.get("low_rank")
    return [folder / WEIGHTS] if cut else sorted(folder.glob(f"{PLAIN}*.safetensors"))


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
