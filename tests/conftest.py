"""Models for the tests: tiny, seeded, every parameter re-drawn so that zero gates hide nothing."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

TEXT_TOKENS, WIDTH = 5, 24


def tiny_mmdit(seed: int = 0, **changes) -> SD3Transformer2DModel:
    """Three joint blocks, 4 heads of 6; the last block has no text output, as in SD3."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 3,
        "out_channels": 3,
        "num_layers": 3,
        "attention_head_dim": 6,
        "num_attention_heads": 4,
        "joint_attention_dim": 16,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 4,
        "qk_norm": "rms_norm",
    }
    model = SD3Transformer2DModel(**(config | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def tiny_unet() -> UNet2DConditionModel:
    """Two stages, attention in the outer one; 8 norm groups, so that channels can go."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
        layers_per_block=1,
    )


@pytest.fixture
def mmdit() -> SD3Transformer2DModel:
    return tiny_mmdit()


def forward(model: SD3Transformer2DModel) -> Tensor:
    """One prediction on fixed inputs, two samples at different times."""
    g = torch.Generator().manual_seed(7)
    inputs = {
        "hidden_states": torch.randn(2, 3, 8, 8, generator=g),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 16, generator=g),
        "pooled_projections": torch.randn(2, 16, generator=g),
    }
    inputs = {name: x.to(model.dtype) for name, x in inputs.items()}
    with torch.no_grad():
        return model(**inputs, timestep=torch.tensor([900.0, 250.0]), return_dict=False)[0]


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value where that is above 1."""
    return (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
