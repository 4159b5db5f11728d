"""A denoiser or a whole pipeline in one file, through diffusers' own `from_single_file`, its weights dense afterwards.

What a file holds is decided by its header before anything is read. Quantised files for which diffusers has no way back
are refused: their codes look like weights and would be loaded as such.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, GGUFQuantizationConfig, ModelMixin
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import SafetensorError, safe_open

from reference.quantised import dequantise

SUFFIXES = (".safetensors", ".sft", ".gguf")
# Tensors that only quantised files have, by the end of their names.
QUANTISED = {
    ".scale_weight": "scaled fp8 (ComfyUI)",
    "scaled_fp8": "scaled fp8 (ComfyUI)",
    ".comfy_quant": "ComfyUI's quantisation",
    ".weight_scale": "scaled fp8 or nvfp4",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qzeros": "GPTQ or AWQ",
    ".qweight": "GPTQ, AWQ or another packed format",
    ".weight_packed": "compressed-tensors",
}
OTHER_PARTS = ("first_stage_model.", "conditioner.", "cond_stage_model.", "vae.", "text_encoders.")
STABLE_DIFFUSION_1 = "model.diffusion_model.input_blocks.0.0.weight"
OTHER_BASE = "name the right base_model, or download the file again"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_header(file: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Metadata, and name -> (dtype, shape) of every tensor; no tensor is read."""
    try:
        if file.suffix == ".gguf":
            return {}, _gguf_header(file)
        with safe_open(file, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            return stored.metadata() or {}, {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut short or no safetensors file ({error}); download it again") from error


def _gguf_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(f"{file}: GGUF files need the package gguf (pip install gguf)") from None
    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(f"{file} is cut short or no GGUF file ({error}); download it again") from error
    return {tensor.name: (tensor.tensor_type.name, tuple(map(int, reversed(tensor.shape)))) for tensor in tensors}


def check_readable(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse safetensors files whose weights are codes that nothing here unpacks."""
    for name, (kind, _) in tensors.items():
        format = next((format for end, format in QUANTISED.items() if name.endswith(end)), None)
        if format is None and kind not in DTYPES and not kind.startswith("F8") and name.endswith("weight"):
            format = kind
        if format:
            raise ValueError(f"{file}: {name} shows weights quantised as {format}; {what_works()}")


def what_works() -> str:
    """What can be loaded, for error messages."""
    return (
        "what works: bf16, fp16, fp32 and unscaled fp8 files, GGUF, SVDQuant files of FLUX.1, and folders quantised "
        "by bitsandbytes or torchao"
    )


def guess_base(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    """The hub id of the pipeline that a file in its author's own layout belongs to, as diffusers sees it."""
    shapes = {name: torch.empty(shape, device="meta") for name, (_, shape) in tensors.items()}
    base = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    # Stable Diffusion 1.5 is what diffusers answers to anything it does not know.
    if base.endswith("stable-diffusion-v1-5") and STABLE_DIFFUSION_1 not in shapes:
        raise ValueError(f"{file} does not say which model it is; name its pipeline by base_model")
    return base


def is_whole_pipeline(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bool:
    """Whether the file brings a VAE or text encoders along."""
    return any(name.startswith(OTHER_PARTS) for name in tensors)


def load_whole(file: Path, base: str, kind: str, dtype: torch.dtype | None) -> DiffusionPipeline:
    """A pipeline of class `kind` whose configs come from `base` and whose weights come from the file."""
    with one_line(file):
        return _reader(file, kind)(str(file), config=base, dtype=dtype)


def load_denoiser(
    file: Path, base: str, subfolder: str, kind: str, config: dict, dtype: torch.dtype | None, tensors: dict
) -> tuple[ModelMixin, str | None]:
    """A model of class `kind` with the config of `base`/`subfolder`, dense; and what that took."""
    read = _reader(file, kind)
    with one_line(file), init_empty_weights():
        expected = set(getattr(diffusers, kind).from_config(config).state_dict())
    if len(expected & set(tensors)) > len(expected) / 2:  # names of diffusers; others are converted
        _complain(file, f"{kind} in {base}", expected - set(tensors), set(tensors) - expected)
    keywords = {"config": base, "subfolder": subfolder, "dtype": dtype}
    if file.suffix == ".gguf":
        keywords["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype or torch.bfloat16)
    with one_line(file):
        model = read(str(file), **keywords)
    empty = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    _complain(file, f"{kind} in {base}", empty, set())
    return model.eval(), dequantise(model, dtype)


def _reader(file: Path, kind: str) -> Callable:
    reader = getattr(getattr(diffusers, kind, None), "from_single_file", None)
    if reader is None:
        raise ValueError(f"{file}: diffusers cannot read a {kind} from one file; convert it to a folder")
    return reader


def _complain(file: Path, what: str, lacking: set[str], left_over: set[str]) -> None:
    if lacking:
        raise ValueError(f"{file} lacks {len(lacking)} weights of the {what}, e.g. {min(lacking)}; {OTHER_BASE}")
    if left_over:
        raise ValueError(f"{file} has {min(left_over)}, which is not of the {what}; {OTHER_BASE}")


@contextmanager
def one_line(source: Path | str) -> Iterator[None]:
    """What diffusers and transformers say in paragraphs, or in tracebacks, as a ValueError of one line."""
    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,
        ImportError,
        LookupError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = "needs a package that is not here" if isinstance(error, ImportError) else "cannot be loaded"
        said = lines[0][:300] if lines else ""
        raise ValueError(f"{source} {what}: {type(error).__name__}: {said}") from error


def stored_dtype(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> torch.dtype:
    """The dtype that most weights of a file have; bf16 if that is less than 16 bits."""
    counts: dict[str, int] = {}
    for kind, shape in tensors.values():
        counts[kind] = counts.get(kind, 0) + torch.Size(shape).numel()
    return DTYPES.get(max(counts, key=counts.get, default="BF16"), torch.bfloat16)
