"""Trained diffusion models that ship with the repository, their data, their training and their judge."""

from pathlib import Path

import torch

from reference.embedded.pipeline import EmbeddedPipeline

# Pipelines only: the evaluator, which lies beside them, draws nothing.
EMBEDDED = {file.parent.name: file.parent for file in sorted(Path(__file__).parent.glob("weights/*/model_index.json"))}


def load_embedded(name: str, dtype: torch.dtype | None = None) -> EmbeddedPipeline:
    """The trained pipeline, in fp32 unless told otherwise (it is stored in bf16)."""
    if name not in EMBEDDED:
        raise ValueError(f"no embedded model {name!r}; there is {', '.join(EMBEDDED)}")
    pipeline = EmbeddedPipeline.from_pretrained(EMBEDDED[name], dtype=dtype or torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def on_device(pipeline: EmbeddedPipeline, device: str) -> EmbeddedPipeline:
    """The pipeline moved to `device`; ValueError where this machine or this torch has none."""
    try:
        return pipeline.to(device)
    except (AssertionError, RuntimeError) as error:  # torch's two ways of saying so
        raise ValueError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
