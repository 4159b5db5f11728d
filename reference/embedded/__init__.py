"""A trained diffusion model that ships with the repository, its data and its training."""

from pathlib import Path

import torch

from reference.embedded.pipeline import EmbeddedPipeline

EMBEDDED = {"openmoji-mmdit": Path(__file__).parent / "weights" / "openmoji-mmdit"}


def load_embedded(name: str, dtype: torch.dtype | None = None) -> EmbeddedPipeline:
    """The trained pipeline, in fp32 unless told otherwise (it is stored in bf16)."""
    if name not in EMBEDDED:
        raise ValueError(f"no embedded model {name!r}; there is {', '.join(EMBEDDED)}")
    pipeline = EmbeddedPipeline.from_pretrained(EMBEDDED[name], dtype=dtype or torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
