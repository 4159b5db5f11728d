"""Transformers that make images."""

import torch
from diffusers.models.transformers import transformer_ideogram4

from tests.zoo import case, draw, fractions, grid, mask, rotary, times

# --- Flux and what follows its layout -------------------------------------------------------------------------------
FLUX = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 16,
    "axes_dims_rope": (2, 2, 4),
}


def flux_inputs(**more):
    """Tokens of a 4x4 image and of 5 words."""
    return {
        "hidden_states": draw(16, 4),
        "encoder_hidden_states": draw(5, 16),
        "timestep": fractions(),
        "img_ids": grid(4, 4),
        "txt_ids": torch.zeros(5, 3),
        **more,
    }


@case("FluxTransformer2DModel", **FLUX, pooled_projection_dim=12, guidance_embeds=True)
def flux():
    return flux_inputs(pooled_projections=draw(12), guidance=torch.tensor([3.5, 1.0]))


def fused_flux(**config):
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(**config)
    model.fuse_qkv_projections()
    return model


case("FluxTransformer2DModel:fused_qkv", fused_flux, **FLUX, pooled_projection_dim=12, guidance_embeds=True)(flux)


@case(
    "ChromaTransformer2DModel", **FLUX, approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=2
)
def _():
    return flux_inputs()


case("BriaTransformer2DModel", **FLUX)(flux_inputs)  # guidance_embeds=True fails to build in 0.42.1


@case("BriaFiboTransformer2DModel", **FLUX, text_encoder_dim=12)
def _():
    return flux_inputs(text_encoder_layers=[draw(5, 12) for _ in range(5)])


case("OvisImageTransformer2DModel", **FLUX, out_channels=4)(flux_inputs)
case("LongCatImageTransformer2DModel", **FLUX)(flux_inputs)


@case("Flux2Transformer2DModel", **FLUX | {"axes_dims_rope": (2, 2, 2, 2)}, timestep_guidance_channels=16)
def _():
    ids = {"img_ids": grid(4, 4, 4), "txt_ids": grid(1, 5, 4, 2)}
    return flux_inputs(guidance=torch.tensor([3.5, 1.0])) | ids


@case("Flux3Transformer2DModel", **FLUX | {"axes_dims_rope": (2, 2, 2, 2)}, cond_in_channels=6, timestep_channels=16)
def _():
    """With reference images, or else the modules for them would be dead."""
    ids = {"img_ids": grid(4, 4, 4), "txt_ids": grid(1, 5, 4, 2)}
    return flux_inputs(image_cond_hidden_states=draw(4, 6), image_cond_ids=grid(2, 2, 4) + 1) | ids


# --- Diffusion transformers with cross attention or one stream ------------------------------------------------------
@case(
    "DiTTransformer2DModel",
    num_attention_heads=4,
    attention_head_dim=6,
    num_layers=3,
    sample_size=8,
    num_embeds_ada_norm=8,
)
def _():
    return {"hidden_states": draw(4, 8, 8), "timestep": torch.tensor([7, 2]), "class_labels": torch.tensor([1, 5])}


@case(
    "PixArtTransformer2DModel",
    num_attention_heads=4,
    attention_head_dim=6,
    num_layers=3,
    cross_attention_dim=24,
    caption_channels=10,
    sample_size=8,
    use_additional_conditions=True,
)
def _():
    return {
        "hidden_states": draw(4, 8, 8),
        "encoder_hidden_states": draw(5, 10),
        "timestep": times(),
        "added_cond_kwargs": {"resolution": draw(2) * 8, "aspect_ratio": draw(1)},
        "encoder_attention_mask": mask(5),
    }


TRANSFORMER_2D = {"num_attention_heads": 4, "attention_head_dim": 4, "num_layers": 2, "cross_attention_dim": 12}


@case("Transformer2DModel", **TRANSFORMER_2D, in_channels=16, norm_num_groups=4)
def continuous():
    return {"hidden_states": draw(16, 4, 4), "encoder_hidden_states": draw(5, 12)}


@case(
    "Transformer2DModel:patches",
    **TRANSFORMER_2D | {"cross_attention_dim": None},
    in_channels=4,
    sample_size=8,
    patch_size=2,
    norm_type="ada_norm_zero",
    num_embeds_ada_norm=8,
    activation_fn="gelu-approximate",
    norm_elementwise_affine=False,
)
def _():
    return {"hidden_states": draw(4, 8, 8), "timestep": torch.tensor([7, 2]), "class_labels": torch.tensor([1, 5])}


@case(
    "Transformer2DModel:codes",
    **TRANSFORMER_2D,
    sample_size=4,
    num_vector_embeds=11,
    norm_type="ada_norm",
    num_embeds_ada_norm=1000,
)
def _():
    codes = torch.randint(0, 11, (2, 16))
    return {"hidden_states": codes, "encoder_hidden_states": draw(5, 12), "timestep": torch.tensor(900)}


case("DreamLiteTransformer2DModel", **TRANSFORMER_2D, in_channels=16, norm_num_groups=4, qk_norm="rms_norm")(continuous)


@case(
    "TransformerTemporalModel",
    num_attention_heads=4,
    attention_head_dim=4,
    num_layers=2,
    in_channels=16,
    norm_num_groups=4,
    positional_embeddings="sinusoidal",
    num_positional_embeddings=8,
)
def _():
    """Two clips of 3 frames."""
    return {"hidden_states": draw(3, 16, 4, 4).flatten(0, 1), "num_frames": 3}


@case("PriorTransformer", num_attention_heads=4, attention_head_dim=8, num_layers=3, embedding_dim=12, num_embeddings=5)
def _():
    return {
        "hidden_states": draw(12),
        "timestep": times(),
        "proj_embedding": draw(12),
        "encoder_hidden_states": draw(5, 12),
        "attention_mask": mask(5),
    }


HUNYUAN_DIT = {
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "hidden_size": 32,
    "cross_attention_dim": 12,
    "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 8,
    "text_len": 5,
    "text_len_t5": 4,
}


def hunyuan_dit_inputs(**more):
    return {
        "hidden_states": draw(4, 8, 8),
        "timestep": times(),
        "encoder_hidden_states": draw(5, 12),
        "text_embedding_mask": mask(5, torch.int64),
        "encoder_hidden_states_t5": draw(4, 16),
        "text_embedding_mask_t5": mask(4, torch.int64),
        "image_meta_size": torch.tensor([[8.0, 8, 8, 8, 0, 0], [8, 6, 8, 8, 1, 0]]),
        "style": torch.tensor([0, 0]),
        "image_rotary_emb": rotary(16, 8),
        **more,
    }


case("HunyuanDiT2DModel", **HUNYUAN_DIT, num_layers=8)(hunyuan_dit_inputs)


LUMINA = {
    "sample_size": 8,
    "in_channels": 4,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 8,
}


@case("LuminaNextDiT2DModel", **LUMINA, cross_attention_dim=12)
def _():
    angles = torch.arange(8)[:, None, None] * torch.tensor([1.0, 0.1, 0, 0])
    angles = angles + torch.arange(8)[None, :, None] * torch.tensor([0, 0, 1.0, 0.1])
    return {
        "hidden_states": draw(4, 8, 8),
        "timestep": fractions(),
        "encoder_hidden_states": draw(5, 12),
        "encoder_mask": mask(5),
        "image_rotary_emb": torch.polar(torch.ones(8, 8, 4), angles),
        "cross_attention_kwargs": {},
    }


@case("Lumina2Transformer2DModel", **LUMINA, axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=12)
def _():
    return {
        "hidden_states": draw(4, 8, 8),
        "timestep": fractions(),
        "encoder_hidden_states": draw(5, 12),
        "encoder_attention_mask": mask(5),
    }


Z_IMAGE = {"in_channels": 4, "dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "cap_feat_dim": 12}
Z_IMAGE |= {"axes_dims": [4, 2, 2], "axes_lens": [128, 32, 32]}


def z_image_inputs(**more):
    """Fewer tokens than a multiple of 32, so that the pad tokens stand in."""
    return {
        "x": [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 12)],
        "t": fractions(),
        "cap_feats": [torch.randn(5, 12), torch.randn(4, 12)],
        **more,
    }


case("ZImageTransformer2DModel", **Z_IMAGE)(z_image_inputs)


@case("ZImageTransformer2DModel:omni", **Z_IMAGE, siglip_feat_dim=10)
def _():
    """Each sample has a reference image, with its SigLIP features, and the image to denoise."""
    return {
        "x": [[torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)] for _ in range(2)],
        "t": fractions(),
        "cap_feats": [[torch.randn(5, 12), torch.randn(4, 12)] for _ in range(2)],
        "siglip_feats": [[torch.randn(3, 3, 10), None] for _ in range(2)],
        "image_noise_mask": [[0, 1], [0, 1]],
    }


SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 3,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 32,
    "caption_channels": 12,
    "sample_size": 8,
}


def sana_inputs(**more):
    return {
        "hidden_states": draw(4, 8, 8),
        "encoder_hidden_states": draw(5, 12),
        "timestep": times(),
        "encoder_attention_mask": mask(5),
        **more,
    }


case("SanaTransformer2DModel", **SANA)(sana_inputs)


@case(
    "SanaTransformer2DModel:sprint",
    **SANA,
    qk_norm="rms_norm_across_heads",
    guidance_embeds=True,
    interpolation_scale=1.0,
)
def _():
    return sana_inputs(guidance=torch.tensor([4.5, 1.0]))


@case(
    "OmniGenTransformer2DModel",
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=48,
    num_layers=3,
    pad_token_id=0,
    vocab_size=50,
    time_step_dim=16,
    pos_embed_max_size=8,
    rope_scaling={"long_factor": [1, 1, 2, 3], "short_factor": [1, 1, 1, 2]},
)
def _():
    """The first sample has a reference image of 4x4 tokens among its words; then time and image follow."""
    tokens = 24 + 1 + 16
    return {
        "hidden_states": draw(4, 8, 8),
        "timestep": fractions(),
        "input_ids": torch.randint(1, 50, (2, 24)),
        "input_img_latents": [torch.randn(1, 4, 8, 8)],
        "input_image_sizes": {0: [[2, 18]]},
        "attention_mask": torch.ones(2, tokens, tokens),
        "position_ids": torch.arange(tokens).expand(2, -1),
    }


@case(
    "HiDreamImageTransformer2DModel",
    patch_size=2,
    in_channels=4,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=8,
    num_attention_heads=4,
    caption_channels=[12, 10],
    text_emb_dim=14,
    axes_dims_rope=(4, 2, 2),
    max_resolution=(16, 16),
    llama_layers=(0, 1, 2, 2),
)
def _():
    return {
        "hidden_states": draw(4, 8, 8),
        "timesteps": times(),
        "encoder_hidden_states_t5": draw(5, 12),
        "encoder_hidden_states_llama3": torch.randn(3, 2, 5, 10),
        "pooled_embeds": draw(14),
    }


@case("PRXTransformer2DModel", in_channels=4, context_in_dim=12, hidden_size=32, num_heads=4, depth=3, axes_dim=[4, 4])
def _():
    return {
        "hidden_states": draw(4, 8, 8),
        "timestep": fractions(),
        "encoder_hidden_states": draw(5, 12),
        "attention_mask": mask(5),
    }


@case(
    "ErnieImageTransformer2DModel",
    hidden_size=32,
    num_attention_heads=4,
    num_layers=3,
    ffn_hidden_size=48,
    in_channels=4,
    out_channels=4,
    text_in_dim=12,
    rope_axes_dim=(4, 2, 2),
)
def _():
    return {
        "hidden_states": draw(4, 4, 4),
        "timestep": times(),
        "text_bth": draw(5, 12),
        "text_lens": torch.tensor([5, 4]),
    }


@case(
    "Ideogram4Transformer2DModel",
    in_channels=8,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=4,
    intermediate_size=48,
    adaln_dim=16,
    llm_features_dim=12,
    mrope_section=(2, 1, 1),
)
def _():
    """5 words, then 16 image tokens, in one row."""
    words, image = torch.zeros(2, 5, 8), torch.zeros(2, 16, 12)
    ids = torch.cat(
        [torch.arange(5)[:, None].expand(5, 3), grid(4, 4).long() + transformer_ideogram4.IMAGE_POSITION_OFFSET]
    )
    kinds = [transformer_ideogram4.LLM_TOKEN_INDICATOR] * 5 + [transformer_ideogram4.OUTPUT_IMAGE_INDICATOR] * 16
    return {
        "hidden_states": torch.cat([words, draw(16, 8)], 1),
        "timestep": fractions(),
        "encoder_hidden_states": torch.cat([draw(5, 12), image], 1),
        "position_ids": ids.expand(2, -1, -1),
        "segment_ids": torch.ones(2, 21, dtype=torch.long),
        "indicator": torch.tensor([kinds] * 2),
    }


@case(
    "Krea2Transformer2DModel",
    in_channels=8,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    timestep_embed_dim=16,
    text_hidden_dim=24,
    num_text_layers=3,
    text_num_attention_heads=4,
    text_num_key_value_heads=2,
    text_intermediate_size=40,
    axes_dims_rope=(4, 2, 2),
)
def _():
    return {
        "hidden_states": draw(16, 8),
        "encoder_hidden_states": draw(5, 3, 24),
        "timestep": fractions(),
        "position_ids": torch.cat([torch.zeros(5, 3), grid(4, 4)]),
        "encoder_attention_mask": mask(5),
    }


@case(
    "BriaFibo2Transformer2DModel",
    in_channels=4,
    dim=32,
    n_layers=4,
    n_heads=4,
    cap_feat_dim=12,
    injection_layer_ids=(1, 3),
    min_num_gist_tokens=4,
    max_num_gist_tokens=8,
    gist_step=2,
    gist_min_text_len=2,
    gist_max_text_len=8,
    axes_dims=(4, 2, 2),
    axes_lens=(32, 32, 32),
)
def _():
    """One bundle of text features for the perceiver, one for each injecting layer, and an image to edit."""
    return {
        "hidden_states": draw(4, 8, 8),
        "timestep": fractions(),
        "encoder_hidden_states": draw(3, 8, 12),
        "encoder_attention_mask": mask(8),
        "context_latents": [draw(4, 4, 4)],
    }


# --- Two streams that meet in one attention -------------------------------------------------------------------------
SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 4,
}


def sd3_inputs(**more):
    return {
        "hidden_states": draw(4, 8, 8),
        "encoder_hidden_states": draw(5, 16),
        "pooled_projections": draw(12),
        "timestep": times(),
        **more,
    }


case("SD3Transformer2DModel", **SD3)(sd3_inputs)
case("SD3Transformer2DModel:3.5", **SD3, qk_norm="rms_norm", dual_attention_layers=(0, 1))(sd3_inputs)


@case(
    "AuraFlowTransformer2DModel",
    sample_size=8,
    num_mmdit_layers=2,
    num_single_dit_layers=2,
    attention_head_dim=8,
    num_attention_heads=4,
    joint_attention_dim=16,
    caption_projection_dim=32,
    pos_embed_max_size=16,
)
def _():
    return {"hidden_states": draw(4, 8, 8), "encoder_hidden_states": draw(5, 16), "timestep": fractions()}


COGVIEW = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "text_embed_dim": 12,
    "time_embed_dim": 16,
    "condition_dim": 8,
}


def cogview_inputs(**more):
    return {
        "hidden_states": draw(4, 8, 8),
        "encoder_hidden_states": draw(5, 12),
        "timestep": times(),
        "target_size": torch.tensor([[64.0, 64], [64, 48]]),
        "crop_coords": torch.tensor([[0.0, 0], [8, 0]]),
        **more,
    }


@case("CogView3PlusTransformer2DModel", **COGVIEW, pos_embed_max_size=8, sample_size=8)
def cogview():
    return cogview_inputs(original_size=torch.tensor([[64.0, 64], [80, 64]]))


case("CogView4Transformer2DModel", **COGVIEW, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8))(cogview)


@case("GlmImageTransformer2DModel", **COGVIEW, prior_vq_quantizer_codebook_size=32)
def _():
    drop = torch.tensor([[False], [True]]).expand(2, 16)
    return cogview_inputs(prior_token_id=torch.randint(0, 32, (2, 16)), prior_token_drop=drop)


QWEN = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 2, 2),
}


def qwen_inputs(**more):
    return {
        "hidden_states": draw(16, 16),
        "encoder_hidden_states": draw(5, 12),
        "encoder_hidden_states_mask": mask(5, torch.int64),
        "timestep": fractions(),
        "img_shapes": [[(1, 4, 4)]] * 2,
        **more,
    }


case("QwenImageTransformer2DModel", **QWEN)(qwen_inputs)


@case(
    "QwenImage21Transformer2DModel",
    **{k: QWEN[k] for k in ("num_layers", "attention_head_dim", "num_attention_heads", "axes_dims_rope")},
    in_channels=8,
    out_channels=8,
    context_in_dim=12,
)
def _():
    """Two words, 4 slots for a reference image of 4x4 tokens, 3 words; the image to denoise comes last."""
    slots = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    return {
        "hidden_states": draw(32, 8),
        "encoder_hidden_states": draw(9, 12),
        "timestep": fractions(),
        "img_shapes": [[(1, 4, 4), (1, 4, 4)]] * 2,
        "img_mask": slots.expand(2, -1),
        "encoder_hidden_states_mask": mask(9),
    }


@case(
    "NucleusMoEImageTransformer2DModel",
    **QWEN | {"num_layers": 6},
    mlp_ratio=6,
    num_key_value_heads=2,
    num_experts=4,
    moe_intermediate_dim=16,
    capacity_factors=2.0,
)
def _():
    return qwen_inputs(img_shapes=[(1, 4, 4)] * 2)


@case(
    "HunyuanImageTransformer2DModel",
    in_channels=4,
    out_channels=4,
    num_attention_heads=4,
    attention_head_dim=8,
    num_layers=2,
    num_single_layers=2,
    text_embed_dim=12,
    text_embed_2_dim=10,
    rope_axes_dim=(4, 4),
    guidance_embeds=True,
    use_meanflow=True,
)
def _():
    return {
        "hidden_states": draw(4, 4, 4),
        "timestep": times(),
        "encoder_hidden_states": draw(5, 12),
        "encoder_attention_mask": mask(5),
        "timestep_r": times() / 2,
        "encoder_hidden_states_2": draw(4, 10),
        "encoder_attention_mask_2": mask(4),
        "guidance": torch.tensor([3500.0, 1000.0]),
    }


JOY = {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 4, "text_dim": 12, "num_layers": 3}
JOY |= {"rope_dim_list": [4, 2, 2]}


@case("JoyImageEditTransformer3DModel", **JOY)
def _():
    return {"hidden_states": draw(4, 2, 8, 8), "timestep": times(), "encoder_hidden_states": draw(5, 12)}


@case("JoyImageEditPlusTransformer3DModel", **JOY)
def _():
    """A reference image of 2x2 patches and one of 2x3 to denoise."""
    return {
        "hidden_states": draw(10, 4, 1, 2, 2),
        "timestep": times(),
        "encoder_hidden_states": draw(5, 12),
        "encoder_hidden_states_mask": mask(5),
        "shape_list": [[(1, 2, 2), (1, 2, 3)]] * 2,
    }


# --- UniDiffuser ----------------------------------------------------------------------------------------------------
UNI = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "num_layers": 4, "sample_size": 8}
UNI |= {"patch_size": 2, "attention_bias": True}


@case("UTransformer2DModel", **UNI, use_patch_pos_embed=True)
def _():
    """Tokens come out as embeddings: this class has no output projection."""
    return {"hidden_states": draw(4, 8, 8), "unpatchify": False, "return_dict": False}


@case(
    "UniDiffuserModel",
    **UNI,
    out_channels=4,
    activation_fn="gelu",
    text_dim=12,
    clip_img_dim=10,
    num_text_tokens=5,
    use_timestep_embedding=True,
    use_data_type_embedding=True,
)
def _():
    return {
        "latent_image_embeds": draw(4, 8, 8),
        "image_embeds": draw(1, 10),
        "prompt_embeds": draw(5, 12),
        "timestep_img": times(),
        "timestep_text": times() / 2,
        "data_type": torch.tensor([1, 0]),
    }
