"""What a folder claims, checked before memory is taken for it: folders are downloaded, and not only from friends.

`pruning.json` and `config.json` decide which tensors are made, so a few bytes could ask for terabytes. The model is
therefore built without memory first, its size compared with the size of the weights beside it, and only then for real.
Every complaint is a ValueError of one line. Nothing that a file names is imported or called, except model classes
of diffusers.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import register_module_module_registration_hook

JSON_BYTES = 1 << 26
SMALL = 1 << 24  # elements that a dense layer or all buffers may have, however little is stored
DENSE_TO_STORED = 16  # beyond that: elements of the largest dense layer for a byte of all the weights


def read_json(file: Path) -> dict:
    """A JSON object."""
    try:
        if file.stat().st_size > JSON_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes are too many")
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"an object belongs there, not {type(content).__name__}")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({one_line(error)})") from error


def read_manifest(file: Path, format: str) -> dict:
    """The manifest, every part of which has the type that it should have."""
    manifest = read_json(file)
    if manifest.get("format") != format:
        raise ValueError(f"{file} has format {manifest.get('format')!r}; this version reads {format}")
    parts = {
        "class": isinstance(manifest.get("class"), str),
        "module": isinstance(manifest.get("module"), str),
        "shapes": _is_map(manifest.get("shapes"), list),
        "attributes": _is_map(manifest.get("attributes"), dict),
        "storage": manifest.get("storage", "dense") in ("dense", "sparse"),
        "source": isinstance(manifest.get("source", {}), dict),
        "history": isinstance(manifest.get("history"), list) and all(map(_is_step, manifest["history"])),
    }
    wrong = [name for name, right in parts.items() if not right]
    if wrong:
        raise ValueError(f"{file}: the entry {wrong[0]!r} is missing or of the wrong kind; copy the folder again")
    return manifest


MOST_DIMS = 5  # of a parameter: a convolution of video has this many


def _is_step(step: object) -> bool:
    """A step of the history, as `history.py` describes it."""
    if not isinstance(step, dict) or not isinstance(step.get("granularity"), str):
        return False
    if not _is_map(step.get("cut", {}), list) or not _is_map(step.get("moved", {}), str | None):
        return False
    for spans in step.get("cut", {}).values():
        if len(spans) != 2 or type(spans[0]) is not int or not 0 < spans[0] <= SMALL or not isinstance(spans[1], list):
            return False
        for s in spans[1]:
            if not isinstance(s, list) or [type(part) for part in s] != [str, int, int, int]:
                return False
            if not 0 <= s[1] < MOST_DIMS or s[2] < 0 or not 0 < s[3] <= SMALL // spans[0]:
                return False
    return True


def _is_map(value: object, of: type) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, of) for entry in value.values())


def model_class(module: str, name: str) -> type[ModelMixin] | None:
    """A model class of diffusers, exported or not; nothing outside diffusers is ever imported for a manifest."""
    kind = None
    for home in (module, "diffusers"):  # in the second if the class has moved since
        if kind is None and (home + ".").startswith("diffusers."):
            try:
                kind = getattr(import_module(home), name, None)
            except Exception:  # modules of diffusers that need what is not installed fail in many ways
                continue
    return kind if isinstance(kind, type) and issubclass(kind, ModelMixin) else None


def checked_twin(kind: type[ModelMixin], config: dict, files: Sequence[Path]) -> ModelMixin:
    """`twin`, once its size is known to be plausible for these weight files."""
    checked_on_meta(kind, config, files)
    return twin(kind, config)


def checked_on_meta(kind: type[ModelMixin], config: dict, files: Sequence[Path]) -> ModelMixin:
    """`on_meta`; ValueError if the config is nonsense, or asks for far more than these weight files hold."""
    stored_bytes = sum(file.stat().st_size for file in files if file.exists())
    most = 1000 + 20 * sum(len(_names(file)) for file in files)
    modules = 0

    def count(*_: object) -> None:
        nonlocal modules
        modules += 1
        if modules > most:
            raise ValueError(f"it asks for more than {most} layers, far more than there are weights for")

    handle = register_module_module_registration_hook(count)
    try:
        model = on_meta(kind, config)
    except Exception as error:  # what a constructor makes of nonsense can be anything
        raise ValueError(f"config.json does not describe a {kind.__name__} ({one_line(error)})") from error
    finally:
        handle.remove()
    largest = max((p.numel() for p in model.parameters()), default=0)
    buffers = sum(b.numel() for b in model.buffers())
    if max(largest, buffers) > max(SMALL, DENSE_TO_STORED * stored_bytes):
        raise ValueError(
            f"config.json asks for a layer of {max(largest, buffers):,} numbers, yet only {stored_bytes:,} bytes of "
            "weights are stored; they do not belong together"
        )
    return model


def on_meta(kind: type[ModelMixin], config: dict) -> ModelMixin:
    """The dense model that the config describes, nothing of it in memory."""
    with torch.device("meta"):
        return kind.from_config({k: v for k, v in config.items() if k != "_name_or_path"})


def twin(kind: type[ModelMixin], config: dict) -> ModelMixin:
    """The dense model that the config describes, its parameters without memory, its computed buffers real."""
    with init_empty_weights(include_buffers=False):
        return kind.from_config({k: v for k, v in config.items() if k != "_name_or_path"})


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as stored:
            return list(stored.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is missing or cut short ({one_line(error)}); copy or download it again") from error


def one_line(error: BaseException) -> str:
    """An error's type and first line, at most 200 characters."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."
