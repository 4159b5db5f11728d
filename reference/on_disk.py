"""A checkpoint on disk as diffusers writes it: its files and tensors, and a model without memory that explains them."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from torch import nn

from reference.inspection import checked_on_meta, model_class, read_json
from reference.manifest import MANIFEST, PLAIN, skeleton, source_of, weight_files
from reference.models import DENOISERS
from reference.streaming import DTYPES, Entry, read_header

INDEX = f"{PLAIN}.safetensors.index.json"


class Shard(NamedTuple):
    """One file of weights. Names of its tensors carry the component's name, as the parameters of a pipeline do."""

    component: str
    file: Path
    metadata: dict[str, str]
    entries: list[Entry]


class Checkpoint(NamedTuple):
    """What is on disk, and a model without memory that says what it means."""

    root: nn.Module
    folders: dict[str, Path]  # component -> its folder; of a lone model the component is ""
    shards: list[Shard]


def open_checkpoint(source: Path) -> Checkpoint:
    """Read configs and headers; ValueError unless every tensor of the model is there, and no other."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; out of core reads a local folder of diffusers: download it first")
    folders, models, shards = denoiser_folders(source), {}, []
    for component, folder in folders.items():
        model, files = _pruned(folder) if (folder / MANIFEST).exists() else _dense(folder)
        models[component] = model
        expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        for file in files:
            metadata, entries = read_header(file)
            for name, shape in ((entry.name, entry.shape) for entry in entries):
                if expected.pop(name, None) != shape:
                    raise ValueError(
                        f"{file}: {name} of shape {shape} is no part of {type(model).__name__}, or twice there"
                    )
            prefix = f"{component}." if component else ""
            shards.append(Shard(component, file, metadata, [e._replace(name=prefix + e.name) for e in entries]))
        if expected:
            raise ValueError(f"{folder}: {len(expected)} tensors are missing, e.g. {next(iter(expected))}")
    return Checkpoint(models[""] if "" in models else nn.ModuleDict(models), folders, shards)


def _dense(folder: Path) -> tuple[ModelMixin, list[Path]]:
    """The model that config.json describes, and its files."""
    config = read_json(folder / "config.json")
    kind = model_class("diffusers", str(config.get("_class_name")))
    if kind is None:
        raise ValueError(
            f"{folder / 'config.json'} names the class {config.get('_class_name')!r}, unknown to diffusers"
        )
    files = _files(folder)
    model = checked_on_meta(kind, config, files)
    model._pruning_source = source_of(str(folder.resolve()))
    return model, files


def _pruned(folder: Path) -> tuple[ModelMixin, list[Path]]:
    """The same of a folder that was pruned before, whose history goes on."""
    model, manifest = skeleton(folder)
    if manifest.get("storage") == "sparse" or manifest.get("low_rank"):
        raise ValueError(f"{folder} is packed, or of low rank, which cannot be streamed; load it by load_pruned")
    return model, weight_files(folder, manifest)


def denoiser_folders(source: Path) -> dict[str, Path]:
    """The denoisers of a pipeline's folder, or the folder itself."""
    if not (source / "model_index.json").exists():
        return {"": source}
    found = {name: source / name for name in DENOISERS if (source / name / "config.json").exists()}
    if not found:
        raise ValueError(f"{source} has no denoiser among {', '.join(DENOISERS)}")
    return found


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of 16 bits or more that most weights in a model's folder have; None if there are none.

    Files of a variant, `model.fp16.safetensors`, count only where there are no others: see `only_variant`.
    """
    counts: Counter[torch.dtype] = Counter()
    files = list(folder.glob("*.safetensors"))
    for file in [file for file in files if "." not in file.stem] or files:
        for entry in read_header(file)[1]:
            dtype = DTYPES[entry.dtype]
            if dtype.is_floating_point and dtype.itemsize > 1:
                counts[dtype] += math.prod(entry.shape)
    return max(counts, key=counts.get, default=None)


def only_variant(folders: Iterable[Path]) -> str | None:
    """`variant_of` the weight files in folders."""
    return variant_of(file for folder in folders for file in folder.glob("*.safetensors"))


def variant_of(files: Iterable[PurePath]) -> str | None:
    """The variant, such as fp16, of which one folder has files while it has no others; None if there is none.

    diffusers reads such files only when it is told the variant. Raises ValueError if there are several.
    """
    found, stems = {}, defaultdict(list)
    for file in files:
        stems[file.parent].append(file.stem)
    for folder, own in stems.items():
        if all("." in stem for stem in own):
            found |= {re.sub(r"-\d+-of-\d+$", "", stem).rpartition(".")[2]: folder for stem in own}
    if len(found) > 1:
        raise ValueError(
            f"{list(found.values())[-1]}: there are several variants ({', '.join(sorted(found))}); keep one"
        )
    return next(iter(found), None)


def _files(folder: Path) -> list[Path]:
    """The weight files, as the index names them if there is one."""
    if not (folder / INDEX).exists():
        if not (folder / f"{PLAIN}.safetensors").exists():
            raise ValueError(f"{folder} holds no {PLAIN}.safetensors and no {INDEX}; save the model by save_pretrained")
        return [folder / f"{PLAIN}.safetensors"]
    names = set(read_json(folder / INDEX).get("weight_map", {}).values())
    foreign = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if foreign or not names:
        raise ValueError(f"{folder / INDEX} names the file {foreign[0] if foreign else None!r}, which is no plain name")
    return [folder / name for name in sorted(names)]
