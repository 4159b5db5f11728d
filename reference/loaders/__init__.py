"""Load anything that can be pruned: one entry for embedded names, folders, hub ids, single files, 4-bit files.

What comes back is dense, in 16 bits or more: quantised weights are unpacked where diffusers (or `svdquant.py`) can, and
a warning says what that costs; everything else is refused. There is no pickle among what is read.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import torch
from diffusers import AutoModel, DiffusionPipeline, ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer

from reference.checkpoint import load_pruned
from reference.embedded import EMBEDDED, load_embedded
from reference.embedded.pipeline import EmbeddedPipeline
from reference.loaders import single_file
from reference.loaders.hub import hub_file, hub_folder
from reference.loaders.single_file import one_line
from reference.loaders.svdquant import is_svdquant, load_svdquant
from reference.manifest import MANIFEST
from reference.models import DENOISERS, denoisers_of
from reference.on_disk import only_variant, stored_dtype
from reference.quantised import dequantise

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# SVDQuant files hold the transformer only; their names say which pipeline it comes from.
SVDQUANT_BASES = {"flux.1-dev": "black-forest-labs/FLUX.1-dev", "flux.1-schnell": "black-forest-labs/FLUX.1-schnell"}

Source = str | os.PathLike


def load_pipeline(
    model_path: Source, base_model: Source | None = None, dtype: torch.dtype | None = None
) -> DiffusionPipeline:
    """A pipeline with dense denoisers.

    Args:
        model_path: an embedded name (`openmoji-mmdit`); a folder of diffusers or of `save_pruned`; a single file; a hub
            id `org/name`; a file on the hub, `org/name/path/file.safetensors`. Files: safetensors, GGUF, SVDQuant of
            FLUX.1.
        base_model: folder or hub id of the pipeline around a source that holds only the denoiser; guessed for files
            whose names or tensors tell.
        dtype: of the loaded weights; left out, what the source has (quantised ones: bf16). All components of a pipeline
            get one dtype, since they hand tensors to each other: the one that holds the weights of all.

    Raises:
        ValueError: one line, with the remedy, for what cannot be loaded, is gated, or needs the network.
    """
    return _load(model_path, base_model, dtype, alone=False)


def load(
    source: Source, base_model: Source | None = None, dtype: torch.dtype | None = None
) -> DiffusionPipeline | ModelMixin:
    """As `load_pipeline`; a source that holds only a denoiser comes back as that if no `base_model` is given."""
    return _load(source, base_model, dtype, alone=True)


def _load(source: Source, base_model: Source | None, dtype: torch.dtype | None, alone: bool):
    name, path = str(source), Path(source)
    if name in EMBEDDED and not path.exists():
        _no_base(name, base_model)
        return load_embedded(name, dtype)
    if path.is_dir():
        return _load_folder(path, base_model, dtype, alone)
    if path.is_file():
        return _load_file(path, base_model, dtype, alone)
    if path.suffix.lower() in (*single_file.SUFFIXES, *PICKLES):
        parts = name.split("/")
        if len(parts) < 3 or path.is_absolute() or name.startswith((".", "~")) or "://" in name:
            raise ValueError(f"there is no file {name}; a file on the hub is written org/name/path/file.safetensors")
        return _load_file(hub_file("/".join(parts[:2]), "/".join(parts[2:])), base_model, dtype, alone)
    if name.count("/") != 1 or path.is_absolute():
        raise ValueError(f"{name!r} is no embedded model ({', '.join(EMBEDDED)}), no folder or file here and no hub id")
    return _load_folder(hub_folder(name), base_model, dtype, alone)


def _load_folder(folder: Path, base_model: Source | None, dtype: torch.dtype | None, alone: bool):
    """A pipeline folder, or the folder of one model."""
    if (folder / "model_index.json").exists():
        _no_base(folder, base_model)
        if list(folder.glob(f"*/{MANIFEST}")):
            return load_pruned(folder, dtype)
        return _pipeline(folder, dtype)
    if (folder / "transformer_blocks.safetensors").exists():
        raise ValueError(f"{folder} is nunchaku's old layout of two files; merge them with nunchaku.merge_safetensors")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds neither model_index.json nor config.json; name a diffusers folder")
    if base_model is None and not alone:
        raise ValueError(f"{folder} holds only a model; name the pipeline it belongs to by base_model")
    if (folder / MANIFEST).exists():
        model = load_pruned(folder, dtype)
    else:
        dtype = dtype or (torch.bfloat16 if _quantised(folder / "config.json") else _widest([folder]))
        with one_line(folder):
            variant = only_variant([folder])
            model = AutoModel.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, variant=variant)
        _say(folder, dequantise(model, dtype))
    return model if base_model is None else _around(model, base_model, dtype or model.dtype)


def _load_file(file: Path, base_model: Source | None, dtype: torch.dtype | None, alone: bool):
    """A denoiser or a pipeline in one file; its denoisers remember the file, for the manifest of `save_pruned`."""
    loaded = _read_file(file, base_model, dtype, alone)
    hub = re.search(r"models--([^/]+)/snapshots/([0-9a-f]{40})/(.+)", file.as_posix())
    for denoiser in denoisers_of(loaded).values():
        denoiser._pruning_source = (
            {"name": f"{hub[1].replace('--', '/')}/{hub[3]}", "revision": hub[2]}
            if hub
            else {"name": "/".join(file.parts[-2:]), "revision": None}
        )
    return loaded


def _read_file(file: Path, base_model: Source | None, dtype: torch.dtype | None, alone: bool):
    if file.suffix.lower() in PICKLES:
        raise ValueError(f"{file} is of a kind that can run code when it is read; convert it to safetensors")
    if file.suffix.lower() not in single_file.SUFFIXES:
        raise ValueError(f"{file} is none of {', '.join(single_file.SUFFIXES)}; {single_file.what_works()}")
    metadata, tensors = single_file.read_header(file)
    if is_svdquant(metadata, set(tensors)):
        return _load_svdquant_file(file, base_model, dtype, alone)
    if file.suffix != ".gguf":
        single_file.check_readable(file, tensors)
    base = str(base_model or single_file.guess_base(file, tensors))
    dtype = dtype or single_file.stored_dtype(tensors)
    index = _index(base)
    if single_file.is_whole_pipeline(tensors):
        return single_file.load_whole(file, base, str(index.get("_class_name")), dtype)
    subfolder = _denoiser_of(base, index)
    config = _config(base, subfolder)
    model, note = single_file.load_denoiser(file, base, subfolder, index[subfolder][1], config, dtype, tensors)
    _say(file, note)
    return model if base_model is None and alone else _around(model, base, dtype)


def _load_svdquant_file(file: Path, base_model: Source | None, dtype: torch.dtype | None, alone: bool):
    base = base_model
    if base is None and not alone:
        base = next((repo for name, repo in SVDQUANT_BASES.items() if name in file.name.lower()), None)
        if base is None:
            raise ValueError(f"{file} holds only a transformer; name the pipeline it belongs to by base_model")
    subfolder = None
    if base is not None:  # before minutes of unpacking
        index = _index(base)
        subfolder = _denoiser_of(base, index)
        if index[subfolder][1] != "FluxTransformer2DModel":
            raise ValueError(f"{file} is a FLUX.1 transformer, {base} has a {index[subfolder][1]}; name a FLUX.1 one")

    def read_config() -> dict | None:
        return _config(base, subfolder) if base is not None else None

    model = load_svdquant(file, dtype, read_config)
    gigabytes = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    _say(
        file,
        f"4-bit SVDQuant weights were dequantised to {model.dtype} ({gigabytes:.1f} GB): this is the 4-bit "
        "approximation of the original weights, nunchaku's 4-bit speed and memory are not kept, and activations stay "
        "in 16 bits, so pictures differ from nunchaku's",
    )
    return model if base is None else _around(model, base, model.dtype)


def _around(model: ModelMixin, base: Source, dtype: torch.dtype | None) -> DiffusionPipeline:
    """The pipeline of `base` with this denoiser in the place of its own, which is not even downloaded."""
    name = _denoiser_of(base, _index(base))
    folder = Path(base) if Path(base).is_dir() else hub_folder(str(base), passed=(name,))
    return _pipeline(folder, dtype, **{name: model})


def _pipeline(folder: Path, dtype: torch.dtype | None, **passed: ModelMixin) -> DiffusionPipeline:
    index = _index(folder)
    packed = [_quantised(folder / name / "config.json") for name in DENOISERS if name in index and name not in passed]
    folders = [folder / name for name in index if name not in passed]
    if dtype is None:
        dtype = torch.bfloat16 if any(packed) else _widest(folders)
    kind = EmbeddedPipeline if index.get("_class_name") == "EmbeddedPipeline" else DiffusionPipeline
    with one_line(folder):
        variant = only_variant(folders)
        pipeline = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, variant=variant, **passed)
    for name, denoiser in denoisers_of(pipeline).items():
        _say(folder / name, dequantise(denoiser, dtype))
    return pipeline


def _widest(folders: Iterable[Path]) -> torch.dtype | None:
    """The dtype that holds what is stored in all of them without rounding; fp32 for bf16 beside fp16."""
    found = {stored_dtype(folder) for folder in folders} - {None}
    return reduce(torch.promote_types, found) if found else None


def _quantised(config: Path) -> bool:
    """Whether a model is; one for which diffusers has no way back is refused before its gigabytes are read."""
    quantisation = _json(config).get("quantization_config") if config.exists() else None
    if not quantisation:
        return False
    if not isinstance(quantisation, dict):
        raise ValueError(f"{config}: quantization_config is no JSON object")
    method = quantisation.get("quant_method")
    if method == "bitsandbytes":
        method += "_8bit" if quantisation.get("load_in_8bit") else "_4bit"
    quantizer = AUTO_QUANTIZER_MAPPING.get(method)
    if quantizer is None or quantizer._dequantize is DiffusersQuantizer._dequantize:
        raise ValueError(f"{config} is quantised by {method}, which cannot be undone; {single_file.what_works()}")
    return True


def _index(base: Source) -> dict:
    """model_index.json of a pipeline, local or on the hub."""
    file = Path(base) / "model_index.json"
    if not Path(base).is_dir():
        if str(base).count("/") != 1 or Path(base).is_absolute():
            raise ValueError(f"base_model {str(base)!r} is no folder here and no hub id")
        file = hub_file(str(base), "model_index.json")
    if not file.exists():
        raise ValueError(f"{base} holds no model_index.json; base_model is a whole pipeline")
    return _json(file)


def _config(base: Source, subfolder: str) -> dict:
    """config.json of one of its models."""
    file = Path(base) / subfolder / "config.json"
    return _json(file if Path(base).is_dir() else hub_file(str(base), f"{subfolder}/config.json"))


def _denoiser_of(base: Source, index: dict) -> str:
    # ["diffusers", "FluxTransformer2DModel"]; [null, null] is a component that a pipeline can do without
    listed = {n: index[n] for n in DENOISERS if isinstance(index.get(n), list) and len(index[n]) == 2}
    name = next((n for n, (_, kind) in listed.items() if isinstance(kind, str)), None)
    if name is None:
        raise ValueError(f"{base} is a pipeline without a denoiser among {', '.join(DENOISERS)}")
    return name


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def _no_base(source: Source, base_model: Source | None) -> None:
    if base_model is not None:
        raise ValueError(f"{source} is a whole pipeline; base_model is for sources that hold only a denoiser")


def _say(source: Source, note: str | None) -> None:
    if note:
        warnings.warn(f"{source}: {note}", stacklevel=2)
