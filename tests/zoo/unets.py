"""U-Nets, and the convolutional priors and decoders of Cascade and Wuerstchen."""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

from tests.zoo import case, draw, fractions, mask, times

# --- Stable Diffusion and what shares its class ---------------------------------------------------------------------
SD = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,  # which means the number of heads
}
CASCADED = SD | {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 8,  # here it means what it says
    "resnet_time_scale_shift": "scale_shift",
    "out_channels": 8,
}


def unet_inputs(**more):
    return {"sample": draw(4, 8, 8), "timestep": times(), "encoder_hidden_states": draw(5, 12), **more}


case(
    "UNet2DConditionModel",
    **SD
    | {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32, 32),
    },
)(unet_inputs)


@case(
    "UNet2DConditionModel:sdxl",
    **SD
    | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 3),
    },
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 10,
)
def _():
    return unet_inputs(added_cond_kwargs={"text_embeds": draw(10), "time_ids": draw(6) * 8})


@case(
    "UNet2DConditionModel:deepfloyd_if",
    **CASCADED | {"cross_attention_dim": 64},  # 32 groups
    act_fn="gelu",
    addition_embed_type="text",
    addition_embed_type_num_heads=4,
    cross_attention_norm="group_norm",
    encoder_hid_dim=12,
    encoder_hid_dim_type="text_proj",
    resnet_skip_time_act=True,
    class_embed_type="timestep",
)
def _():
    return unet_inputs(class_labels=times() / 2, encoder_attention_mask=mask(5))


@case(
    "UNet2DConditionModel:kandinsky21",
    **CASCADED | {"cross_attention_dim": 16},
    addition_embed_type="text_image",
    encoder_hid_dim=12,
    encoder_hid_dim_type="text_image_proj",
)
def _():
    return unet_inputs(added_cond_kwargs={"text_embeds": draw(16), "image_embeds": draw(16)})


@case(
    "UNet2DConditionModel:kandinsky22",
    **CASCADED,
    addition_embed_type="image",
    encoder_hid_dim=12,
    encoder_hid_dim_type="image_proj",
)
def _():
    return unet_inputs(encoder_hidden_states=None, added_cond_kwargs={"image_embeds": draw(12)})


@case(
    "UNet2DConditionModel:k_upscaler",
    **SD
    | {
        "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
        "block_out_channels": (32, 64, 64),  # groups of 32 channels; the last as wide as the time embedding
        "attention_head_dim": 8,
        "norm_num_groups": None,
    },
    act_fn="gelu",
    conv_in_kernel=1,
    conv_out_kernel=1,
    cross_attention_norm="layer_norm",
    resnet_time_scale_shift="scale_shift",
    time_cond_proj_dim=10,
    time_embedding_type="fourier",
    timestep_post_act="gelu",
)
def _():
    return unet_inputs(timestep=torch.tensor([0.5, -0.3]), timestep_cond=draw(10))


@case("UNet2DConditionModel:gligen", **SD, attention_type="gated")
def _():
    """Three boxes with their phrases; the second sample has two."""
    boxes = {"boxes": torch.rand(2, 3, 4), "positive_embeddings": draw(3, 12), "masks": mask(3, torch.float32)}
    return unet_inputs(cross_attention_kwargs={"gligen": boxes})


def ip_adapter(**config):
    """As `load_ip_adapter` leaves it: keys and values of image tokens in every cross attention's processor."""
    model = UNet2DConditionModel(**config)
    width, processors = config["cross_attention_dim"], {}
    for name, processor in model.attn_processors.items():
        attention = model.get_submodule(name.removesuffix(".processor"))
        if name.endswith("attn2.processor"):
            processor = IPAdapterAttnProcessor2_0(attention.inner_dim, width, num_tokens=(4,))
        processors[name] = processor
    model.set_attn_processor(processors)
    projection = ImageProjection(image_embed_dim=10, cross_attention_dim=width, num_image_text_embeds=4)
    model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return model


@case("UNet2DConditionModel:ip_adapter", ip_adapter, **SD)
def _():
    return unet_inputs(added_cond_kwargs={"image_embeds": [draw(1, 10)]})


def fused_unet(**config):
    model = UNet2DConditionModel(**config)
    model.fuse_qkv_projections()
    return model


case("UNet2DConditionModel:fused_qkv", fused_unet, **SD)(unet_inputs)


@case(
    "DreamLiteUNetModel",
    sample_size=8,
    block_out_channels=(16, 32, 32),
    layers_per_block=2,
    cross_attention_dim=12,
    attention_head_dim=4,
    norm_num_groups=4,
    ff_mult=2,
    transformer_layers_per_block=2,
)
def _():
    return unet_inputs()


@case("AudioLDM2UNet2DConditionModel", **SD | {"cross_attention_dim": ((None, 12, 10),) * 2})
def _():
    """Each level attends to itself, to the words and to a second encoder's words."""
    return unet_inputs(encoder_hidden_states_1=draw(6, 10), encoder_attention_mask_1=mask(6))


@case(
    "UNetFlatConditionModel",
    **SD
    | {
        "down_block_types": ("CrossAttnDownBlockFlat", "DownBlockFlat"),
        "up_block_types": ("UpBlockFlat", "CrossAttnUpBlockFlat"),
    },
    transformer_layers_per_block=2,
)
def _():
    """Channels times 4 values each: the latents of a text."""
    return unet_inputs(sample=draw(4, 4, 1))


# --- Unconditional and one-dimensional ------------------------------------------------------------------------------
PIXELS = {"sample_size": 8, "block_out_channels": (16, 32, 32), "layers_per_block": 2, "norm_num_groups": 4}
PIXELS |= {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}


def pixels():
    return {"sample": draw(3, 8, 8), "timestep": times()}


case("UNet2DModel", **PIXELS)(pixels)


@case(
    "UNet2DModel:adm",
    **PIXELS,
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    num_class_embeds=5,
)
def _():
    return pixels() | {"class_labels": torch.tensor([1, 4])}


@case(
    "UNet2DModel:ncsnpp",
    **PIXELS
    | {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 64, 64),  # some groups are fixed at 32
        "norm_num_groups": None,
    },
    time_embedding_type="fourier",
    mid_block_scale_factor=2**0.5,
)
def _():
    return {"sample": draw(3, 8, 8), "timestep": fractions()}


@case("UNet1DModel", sample_size=32, extra_in_channels=64, block_out_channels=(32, 64, 128), layers_per_block=2)
def _():
    """128 channels: heads have 32."""
    return {"sample": draw(2, 32), "timestep": fractions()}


PLANS = {
    "in_channels": 6,
    "out_channels": 6,
    "down_block_types": ("DownResnetBlock1D",) * 3,
    "block_out_channels": (16, 32, 64),
    "use_timestep_embedding": True,
    "time_embedding_type": "positional",
    "freq_shift": 1.0,
    "flip_sin_to_cos": False,
    "act_fn": "mish",
}


@case(
    "UNet1DModel:rl",
    **PLANS,
    up_block_types=("UpResnetBlock1D",) * 2,
    mid_block_type="MidResTemporalBlock1D",
    out_block_type="OutConv1DBlock",
)
def plans():
    return {"sample": draw(6, 32), "timestep": times()}


case(
    "UNet1DModel:value_rl",
    **PLANS,
    up_block_types=(),
    mid_block_type="ValueFunctionMidBlock1D",
    out_block_type="ValueFunction",
    downsample_each_block=True,
)(plans)


# --- Video ----------------------------------------------------------------------------------------------------------
CLIPS = SD | {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}


@case("UNet3DConditionModel", **CLIPS)
def _():
    return unet_inputs(sample=draw(4, 3, 8, 8))


@case("I2VGenXLUNet", **CLIPS)
def _():
    return unet_inputs(
        sample=draw(4, 3, 8, 8), fps=torch.tensor([16, 8]), image_latents=draw(4, 3, 8, 8), image_embeddings=draw(12)
    )


@case(
    "UNetMotionModel",
    sample_size=8,
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    block_out_channels=(16, 32),
    norm_num_groups=4,
    cross_attention_dim=12,
    num_attention_heads=4,
    motion_num_attention_heads=4,
    motion_max_seq_length=8,
    transformer_layers_per_block=2,
)
def _():
    return unet_inputs(sample=draw(4, 3, 8, 8), encoder_hidden_states=draw(3, 5, 12).flatten(0, 1))


@case(
    "UNetSpatioTemporalConditionModel",
    sample_size=8,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=(64, 64),  # groups are fixed at 32
    layers_per_block=(2, 1),
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=24,
    cross_attention_dim=12,
    num_attention_heads=4,
)
def _():
    return unet_inputs(sample=draw(3, 8, 8, 8), added_time_ids=torch.tensor([[6, 127, 0.02], [8, 90, 0.1]]))


# --- Kandinsky 3, aMUSEd, Cascade, Wuerstchen -----------------------------------------------------------------------
@case(
    "Kandinsky3UNet",
    time_embedding_dim=32,
    groups=4,
    attention_head_dim=4,
    layers_per_block=2,
    block_out_channels=(16, 16, 32, 32),
    cross_attention_dim=16,
    encoder_hid_dim=12,
)
def _():
    return unet_inputs(sample=draw(4, 16, 16), encoder_attention_mask=mask(5))


AMUSED = {
    "hidden_size": 32,
    "cond_embed_dim": 12,
    "micro_cond_encode_dim": 8,
    "micro_cond_embed_dim": 40,
    "encoder_hidden_size": 12,
    "vocab_size": 24,
    "codebook_size": 20,
    "in_channels": 16,
    "block_out_channels": 16,
    "num_res_blocks": 2,
    "block_num_heads": 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "sample_size": 4,
}


@case("UVit2DModel", **AMUSED)
def codes():
    return {
        "input_ids": torch.randint(0, 20, (2, 4, 4)),
        "encoder_hidden_states": draw(5, 12),
        "pooled_text_emb": draw(12),
        "micro_conds": draw(5) * 8,
    }


case("UVit2DModel:512", **AMUSED, downsample=True, upsample=True)(codes)

MIXED = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
CASCADE = {
    "in_channels": 4,
    "out_channels": 4,
    "timestep_ratio_embedding_dim": 16,
    "conditioning_dim": 32,
    "block_out_channels": (16, 32),
    "down_num_layers_per_block": (2, 2),
    "up_num_layers_per_block": (2, 2),
    "clip_text_pooled_in_channels": 10,
}


def cascade_inputs(**more):
    return {"sample": draw(4, 8, 8), "timestep_ratio": fractions(), "clip_text_pooled": draw(1, 10), **more}


@case(
    "StableCascadeUNet",
    **CASCADE,
    num_attention_heads=(4, 4),
    block_types_per_layer=(MIXED, MIXED),
    clip_text_in_channels=12,
    clip_image_in_channels=14,
    switch_level=(False,),
)
def _():
    """The prior, stage C."""
    return cascade_inputs(clip_text=draw(5, 12), clip_img=draw(1, 14))


@case(
    "StableCascadeUNet:decoder",
    **CASCADE,
    patch_size=2,
    num_attention_heads=(0, 4),
    block_types_per_layer=(MIXED[:2], MIXED),
    down_blocks_repeat_mappers=(1, 2),
    up_blocks_repeat_mappers=(3, 2),
    effnet_in_channels=6,
    pixel_mapper_in_channels=3,
    timestep_conditioning_type=("sca",),
)
def _():
    """Stage B."""
    return cascade_inputs(effnet=draw(6, 3, 3), pixels=draw(3, 4, 4))


@case("WuerstchenPrior", c_in=4, c=32, c_cond=12, c_r=16, depth=3, nhead=4)
def _():
    return {"x": draw(4, 8, 8), "r": fractions(), "c": draw(5, 12)}


@case(
    "WuerstchenDiffNeXt",
    c_r=16,
    c_cond=32,
    c_hidden=[16, 32],
    nhead=[-1, 4],
    blocks=[2, 2],
    level_config=["CT", "CTA"],
    inject_effnet=[False, True],
    effnet_embd=6,
    clip_embd=12,
)
def _():
    return {"x": draw(4, 8, 8), "r": fractions(), "effnet": draw(6, 3, 3), "clip": draw(5, 12)}
