"""Save what pruning made, load it anywhere: safetensors and JSON, no pickle, bit-identical.

A model whose shapes are those of its config (masked weights, or fewer blocks, which the config counts) becomes a plain
diffusers folder. A model cut in width cannot: its config has no word for the width of a single block, and plain
`from_pretrained` would re-initialise what does not fit. So its weights go to `pruned.safetensors`, which plain
`from_pretrained` does not find, and `pruning.json` records every shape and size in which the model differs from the one
its config describes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from numbers import Integral
from pathlib import Path

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reference import low_rank_manifest
from reference.anatomy.skipping import masked_blocks

FORMAT = "reference-pruning/1"
WEIGHTS, MANIFEST = "pruned.safetensors", "pruning.json"
PLAIN = "diffusion_pytorch_model"


def save_pruned(model: ModelMixin | DiffusionPipeline, folder: str | os.PathLike) -> None:
    """Write a model or pipeline to `folder`, which must be new, empty, or an earlier output of this function.

    Nothing at `folder` is touched until everything is written beside it.
    """
    folder = Path(folder)
    check_output(folder)
    with _moved_into_place(folder) as scratch:
        if isinstance(model, DiffusionPipeline):
            with _pruned_saved_here(model):
                model.save_pretrained(scratch, safe_serialization=True)
        else:
            _save_model(model, scratch)


def check_output(folder: Path) -> None:
    """Raises ValueError for a folder that `save_pruned` would refuse to write to."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not list(folder.glob(f"**/{MANIFEST}")):
        raise ValueError(f"{folder} holds other files; name a new folder, or one that save_pruned wrote")


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
def _pruned_saved_here(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Inside, the pipeline's pruned models are written once, by `_save_model`: diffusers cannot write all of them."""

    def instead(module: ModelMixin) -> Callable[..., None]:
        def save(folder: str) -> None:
            Path(folder).mkdir()
            _save_model(module, Path(folder))

        return save

    found = {m for m in pipeline.components.values() if isinstance(m, ModelMixin) and hasattr(m, "_pruning_history")}
    for module in found:
        module.save_pretrained = instead(module)
    try:
        yield
    finally:
        for module in found:
            del module.save_pretrained


def _save_model(model: ModelMixin, folder: Path) -> None:
    masked = masked_blocks(model)
    if masked:
        raise ValueError(
            f"{type(model).__name__}: {len(masked)} blocks are masked, e.g. {masked[0]}, which no file can hold; "
            "cut them with reference.apply(model, plan, mode='cut'), then save"
        )
    twin, low_rank = _twin(type(model), dict(model.config)), low_rank_manifest.record(model)
    modules = dict(twin.named_modules())
    foreign = [n for n, _ in model.named_modules() if n not in modules]
    if not foreign:
        low_rank_manifest.rebuild(twin, low_rank, Path(MANIFEST))
        dense = {n: p.shape for n, p in twin.named_parameters()}
        foreign = [n for n, _ in model.named_parameters() if n not in dense]
    if foreign:
        raise ValueError(f"{type(model).__name__} cannot be rebuilt from its config, which knows no {foreign[0]}")
    shapes = {n: list(p.shape) for n, p in model.named_parameters() if p.shape != dense[n]}
    manifest = {
        "format": FORMAT,
        "class": type(model).__name__,
        "module": type(model).__module__,
        "shapes": shapes,
        "attributes": _changed_sizes(model, twin),
        "low_rank": low_rank,
        "history": getattr(model, "_pruning_history", []),
        "versions": {package: version(package) for package in ("torch", "diffusers", "safetensors")},
    }
    if shapes or low_rank:
        model.save_config(folder)
        again = low_rank_manifest.stored_elsewhere(low_rank)
        tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n not in again}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    else:
        type(model).save_pretrained(model, folder, safe_serialization=True)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    config = json.loads((folder / "config.json").read_text())
    config["pruning"] = {"format": FORMAT, "manifest": MANIFEST}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _load_model(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> ModelMixin:
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{folder / MANIFEST} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    name = manifest.get("class")
    kind = _model_class(str(manifest.get("module")), str(name))
    if kind is None:
        raise ValueError(f"{folder / MANIFEST} names the class {name!r}, which diffusers does not have")
    config = _read_json(folder / "config.json")
    config.pop("pruning", None)
    model, low_rank = _twin(kind, config), manifest.get("low_rank", [])
    low_rank_manifest.rebuild(model, low_rank, folder / MANIFEST)
    _resize(model, manifest, folder / MANIFEST)

    tensors: dict[str, Tensor] = {}
    files = [folder / WEIGHTS] if manifest["shapes"] or low_rank else sorted(folder.glob(f"{PLAIN}*.safetensors"))
    again = low_rank_manifest.stored_elsewhere(low_rank)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in again}
    for file in files:
        tensors |= _read_tensors(file, expected, device)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, e.g. {missing[0]}; copy the folder again")
    # One Parameter under all its names, so that it is one tensor again.
    tensors |= {first: nn.Parameter(tensors[first]) for first in again.values()}
    tensors |= {name: tensors[first] for name, first in again.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    model._pruning_history = manifest["history"]
    if dtype is not None:
        model.to(dtype)
    return model.to(device).eval()


def _model_class(module: str, name: str) -> type[ModelMixin] | None:
    """A model class of diffusers, exported or not; nothing outside diffusers is ever imported for a manifest."""
    try:
        home = import_module(module) if module.startswith("diffusers.") else diffusers
    except ImportError:
        home = diffusers  # the class has moved since
    kind = getattr(home, name, None) or getattr(diffusers, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, ModelMixin) else None


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
        raise ValueError(f"{file} is missing or cut short ({error}); copy or download it again") from error


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


def _twin(kind: type[ModelMixin], config: dict) -> ModelMixin:
    """The dense model that the config describes, its parameters without memory, its computed buffers real."""
    with init_empty_weights(include_buffers=False):
        return kind.from_config({k: v for k, v in config.items() if k != "_name_or_path"})


def _load_pipeline(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> DiffusionPipeline:
    from reference.embedded.pipeline import EmbeddedPipeline  # a pipeline class of ours, unknown to diffusers

    index = _read_json(folder / "model_index.json")
    pruned = {name: _load_model(folder / name, dtype, device) for name in index if (folder / name / MANIFEST).exists()}
    kind = EmbeddedPipeline if index.get("_class_name") == "EmbeddedPipeline" else DiffusionPipeline
    saved = dtype or next(iter(pruned.values())).dtype if pruned else dtype
    return kind.from_pretrained(folder, dtype=saved, use_safetensors=True, **pruned).to(device)


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from error


@contextmanager
def _moved_into_place(folder: Path) -> Iterator[Path]:
    """A scratch folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, old / "old")
            os.replace(scratch, folder)
            shutil.rmtree(old)
        else:
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
