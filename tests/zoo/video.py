"""Transformers that make videos."""

from types import SimpleNamespace

import torch
from torch.nn import functional
from torch.nn.attention import flex_attention

from tests.zoo import case, draw, grid, mask, rotary, times

# Three classes attend by flex attention, which else compiles anew for every mask; the results are the same bits.
flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


def resize_without_torchvision(module) -> None:
    """Give a module of diffusers the one thing that it takes from torchvision, where that is not installed."""
    if not hasattr(module, "transforms"):
        resize = lambda image, size, interpolation: functional.interpolate(image, size, mode=interpolation)  # noqa: E731
        module.transforms = SimpleNamespace(
            functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
        )


# --- Wan and its descendants ----------------------------------------------------------------------------------------
WAN = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
FROM_IMAGE = {"image_dim": 10, "added_kv_proj_dim": 32}


def wan_inputs(**more):
    return {"hidden_states": draw(4, 2, 8, 8), "timestep": times(), "encoder_hidden_states": draw(5, 12), **more}


def image_wan_inputs(**more):
    """Cross attention takes the last 512 tokens for words, those before for the image."""
    return wan_inputs(encoder_hidden_states=draw(512, 12), encoder_hidden_states_image=draw(3, 10), **more)


case("WanTransformer3DModel", **WAN)(wan_inputs)
case("WanTransformer3DModel:i2v", **WAN, **FROM_IMAGE)(image_wan_inputs)
case("ChronoEditTransformer3DModel", **WAN, **FROM_IMAGE)(image_wan_inputs)


@case("WanVACETransformer3DModel", **WAN | {"num_layers": 4}, vace_layers=[0, 2], vace_in_channels=8)
def _():
    scales = torch.tensor([1.0, 0.5])
    return wan_inputs(control_hidden_states=draw(8, 2, 8, 8), control_hidden_states_scale=scales)


@case(
    "WanAnimateTransformer3DModel",
    **WAN | FROM_IMAGE | {"in_channels": 12, "num_layers": 4},
    latent_channels=4,
    motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
    motion_encoder_size=16,
    motion_style_dim=8,
    motion_dim=4,
    motion_encoder_dim=16,
    face_encoder_hidden_dim=16,
    face_encoder_num_heads=4,
    inject_face_latents_blocks=2,
)
def _():
    """5 frames of a face become 2 latent ones; a frame of zeros and the reference image go before."""
    return image_wan_inputs(
        hidden_states=draw(12, 3, 8, 8), pose_hidden_states=draw(4, 2, 8, 8), face_pixel_values=draw(3, 5, 16, 16)
    )


@case(
    "WanAnimate2Transformer3DModel",
    text_len=8,
    in_dim=10,
    dim=32,
    ffn_dim=48,
    freq_dim=16,
    text_dim=12,
    out_dim=4,
    num_heads=4,
    num_layers=3,
)
def _():
    """The reference pass, which fills the cache: the other one attends by compiled flex attention only."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [torch.randn(4, 2, 4, 4)],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [torch.randn(5, 12)],
        "condition_latents": [torch.randn(6, 2, 4, 4)],
        "encoder_hidden_states_image": torch.randn(1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(3),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


@case("SkyReelsV2Transformer3DModel", **WAN, inject_sample_info=True)
def _():
    return wan_inputs(fps=torch.tensor([0, 1]))


@case("SkyReelsV2Transformer3DModel:forcing", **WAN)
def _():
    """Diffusion forcing: every frame at its own time. With frame rates 0.42.1 takes a single sample only."""
    per_frame = torch.tensor([[900.0, 600.0], [250.0, 100.0]])
    return wan_inputs(timestep=per_frame, enable_diffusion_forcing=True)


def any_flow_inputs(**more):
    per_frame = times()[:, None].repeat(1, 2)
    return wan_inputs(hidden_states=draw(2, 4, 8, 8), timestep=per_frame, r_timestep=per_frame / 2, **more)


case("AnyFlowTransformer3DModel", **WAN)(any_flow_inputs)


@case("AnyFlowFARTransformer3DModel", **WAN | {"attention_head_dim": 16}, full_chunk_limit=1)
def _():
    """Two chunks of a frame; the first is seen at low resolution."""
    return any_flow_inputs(chunk_partition=[1, 1])


@case(
    "HeliosTransformer3DModel",
    **{k: v for k, v in WAN.items() if k != "rope_max_seq_len"},
    rope_dim=(4, 2, 2),
    is_amplify_history=True,
)
def _():
    """Two new frames after histories of 1, 2 and 4 frames, which are patched ever more coarsely."""
    return wan_inputs(
        hidden_states=draw(4, 2, 8, 8),
        latents_history_short=draw(4, 1, 8, 8),
        latents_history_mid=draw(4, 2, 8, 8),
        latents_history_long=draw(4, 4, 8, 8),
        indices_hidden_states=torch.arange(7, 9).expand(2, -1),
        indices_latents_history_short=torch.arange(6, 7).expand(2, -1),
        indices_latents_history_mid=torch.arange(4, 6).expand(2, -1),
        indices_latents_history_long=torch.arange(4).expand(2, -1),
    )


# --- One or two streams of text and video ---------------------------------------------------------------------------
COGVIDEO = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 12,
    "num_layers": 3,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": 5,
}


def cogvideo_inputs(**more):
    return {"hidden_states": draw(2, 4, 8, 8), "encoder_hidden_states": draw(5, 12), "timestep": times(), **more}


case("CogVideoXTransformer3DModel", **COGVIDEO)(cogvideo_inputs)


@case(
    "CogVideoXTransformer3DModel:1.5",
    **COGVIDEO,
    patch_size_t=2,
    patch_bias=False,
    ofs_embed_dim=16,
    use_rotary_positional_embeddings=True,
)
def _():
    return cogvideo_inputs(image_rotary_emb=rotary(16, 8), ofs=torch.tensor([2.0, 2.0]))


@case(
    "ConsisIDTransformer3DModel",
    **COGVIDEO | {"attention_head_dim": 12, "num_layers": 4},
    is_train_face=True,
    cross_attn_dim_head=8,
    cross_attn_num_heads=4,
    LFE_id_dim=12,
    LFE_vit_dim=10,
    LFE_depth=4,
    LFE_dim_head=8,
    LFE_num_heads=4,
    LFE_num_id_token=2,
    LFE_num_querie=3,
    LFE_output_dim=32,  # two thirds of the model's width
    LFE_ff_mult=2,
    LFE_num_scale=2,
)
def _():
    return cogvideo_inputs(id_cond=draw(12), id_vit_hidden=[draw(4, 10), draw(4, 10)])


@case(
    "MochiTransformer3DModel",
    num_attention_heads=4,
    attention_head_dim=8,
    num_layers=3,
    pooled_projection_dim=24,
    in_channels=4,
    text_embed_dim=16,  # pooled by 8 heads
    time_embed_dim=16,
)
def _():
    return wan_inputs(encoder_hidden_states=draw(5, 16), encoder_attention_mask=mask(5))


HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 2,
    "patch_size": 2,
    "text_embed_dim": 12,
    "rope_axes_dim": (4, 2, 2),
}
HUNYUAN_1 = HUNYUAN | {"num_single_layers": 3, "pooled_projection_dim": 10, "mlp_ratio": 2}


def hunyuan_inputs(**more):
    return wan_inputs(
        encoder_attention_mask=mask(5), pooled_projections=draw(10), guidance=torch.tensor([6000.0, 1000.0]), **more
    )


case("HunyuanVideoTransformer3DModel", **HUNYUAN_1)(hunyuan_inputs)
case("HunyuanVideoTransformer3DModel:token_replace", **HUNYUAN_1, image_condition_type="token_replace")(hunyuan_inputs)


@case(
    "HunyuanVideoFramepackTransformer3DModel",
    **HUNYUAN_1,
    has_image_proj=True,
    image_proj_dim=14,
    has_clean_x_embedder=True,
)
def _():
    return hunyuan_inputs(
        image_embeds=draw(3, 14),
        indices_latents=torch.arange(7, 9),
        latents_clean=draw(4, 2, 8, 8),
        indices_latents_clean=torch.tensor([0, 6]),
        latents_history_2x=draw(4, 2, 8, 8),
        indices_latents_history_2x=torch.tensor([4, 5]),
        latents_history_4x=draw(4, 4, 8, 8),
        indices_latents_history_4x=torch.arange(4),
    )


@case(
    "HunyuanVideo15Transformer3DModel",
    **HUNYUAN | {"num_layers": 3, "patch_size": 1, "mlp_ratio": 2},
    text_embed_2_dim=10,
    image_embed_dim=14,
    target_size=16,
    use_meanflow=True,
)
def _():
    return wan_inputs(
        hidden_states=draw(4, 2, 4, 4),
        timestep_r=times() / 2,
        encoder_attention_mask=mask(5),
        encoder_hidden_states_2=draw(4, 10),
        encoder_attention_mask_2=mask(4),
        image_embeds=draw(3, 14),
    )


@case(
    "MotifVideoTransformer3DModel",
    **HUNYUAN,
    num_single_layers=4,
    num_decoder_layers=2,
    image_embed_dim=14,
    enable_text_cross_attention_dual=True,
    enable_text_cross_attention_single=True,
)
def _():
    return wan_inputs(encoder_attention_mask=mask(5), image_embeds=draw(3, 14))


@case(
    "EasyAnimateTransformer3DModel",
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    patch_size=2,
    sample_width=8,
    sample_height=8,
    num_layers=3,
    mmdit_layers=2,
    time_embed_dim=16,
    add_norm_text_encoder=True,
    text_embed_dim=12,
    text_embed_dim_t5=12,  # 0.42.1 takes no other width here
)
def _():
    return wan_inputs(encoder_hidden_states_t5=draw(4, 12))


# --- Cross attention to the text ------------------------------------------------------------------------------------
@case(
    "LatteTransformer3DModel",
    num_attention_heads=4,
    attention_head_dim=8,
    in_channels=4,
    out_channels=8,
    num_layers=4,
    cross_attention_dim=32,
    attention_bias=True,
    sample_size=8,
    patch_size=2,
    activation_fn="gelu-approximate",
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    caption_channels=12,
    video_length=3,
)
def _():
    return wan_inputs(hidden_states=draw(4, 3, 8, 8))


@case(
    "AllegroTransformer3DModel",
    num_attention_heads=4,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    cross_attention_dim=48,
    sample_height=8,
    sample_width=8,
    sample_frames=2,
    caption_channels=12,
)
def _():
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(12, ((0, 0), (4, 4)), (4, 4), 2, (1.0, 1.0, 1.0))
    places = torch.cartesian_prod(t, h, w).long().T[:, None]
    return wan_inputs(encoder_attention_mask=mask(5), image_rotary_emb=(tables, places))


LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "num_layers": 3,
    "caption_channels": 12,
}


def ltx_inputs(**more):
    """Tokens of 2 frames of 4x4."""
    return {
        "hidden_states": draw(32, 4),
        "encoder_hidden_states": draw(5, 12),
        "timestep": times(),
        "encoder_attention_mask": mask(5),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        **more,
    }


case("LTXVideoTransformer3DModel", **LTX)(ltx_inputs)
LTX_2 = {
    **LTX,
    "num_layers": 2,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 16,
}


@case("LTX2VideoTransformer3DModel", **LTX_2)
def ltx_2():
    return ltx_inputs(
        audio_hidden_states=draw(9, 4),
        audio_encoder_hidden_states=draw(5, 12),
        audio_encoder_attention_mask=mask(5),
        audio_num_frames=9,
        fps=25.0,
    )


@case(
    "LTX2VideoTransformer3DModel:2.3",
    **LTX_2,
    rope_type="split",
    gated_attn=True,
    cross_attn_mod=True,
    audio_gated_attn=True,
    audio_cross_attn_mod=True,
    perturbed_attn=True,
)
def _():
    return ltx_2() | {"sigma": times(), "audio_sigma": times()}


@case("SanaWMLTX2RefinerTransformer3DModel", **LTX_2)
def _():
    """Every token at its sample's time; the audio half of the blocks never runs."""
    keep = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask")
    inputs = {k: v for k, v in ltx_inputs().items() if k in keep}
    return inputs | {
        "timestep": times()[:, None].repeat(1, 32),
        "video_rotary_emb": tuple(t[None] for t in rotary(32, 32)),
    }


@case(
    "LTX2VideoDiffusionDecoderModel",
    latent_channels=4,
    patch_size=2,
    decoder_head_dim=16,
    decoder_stage_channels=(64, 64, 64, 64, 64),
    decoder_stage_depths=(2,) * 5,
    decoder_stage_kernels=((1, 2, 2),) * 4,
    decoder_upsample_strides=((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2)),
    decoder_upsample_channel_reductions=(1, 1, 1, 1),
    decoder_stage5_kernel=(1, 2, 2),
    decoder_t_emb_dim=16,
    spatial_compression_ratio=4,
    temporal_compression_ratio=1,
)
def _():
    return {"z": draw(4, 2, 4, 4)}


COSMOS = {
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
}


def cosmos(**config):
    from diffusers.models.transformers import transformer_cosmos

    resize_without_torchvision(transformer_cosmos)
    return transformer_cosmos.CosmosTransformer3DModel(**config)


def cosmos_inputs(**more):
    padding = torch.zeros(1, 1, 8, 8)
    padding[..., -1] = 1
    return {
        "hidden_states": draw(4, 2, 8, 8),
        "timestep": times() / 1000,
        "encoder_hidden_states": draw(5, 16),
        "attention_mask": mask(5),
        "fps": 24,
        "padding_mask": padding,
        **more,
    }


case("CosmosTransformer3DModel", cosmos, **COSMOS, in_channels=4)(cosmos_inputs)


@case(
    "CosmosTransformer3DModel:2.5",
    cosmos,
    **COSMOS,
    in_channels=5,
    extra_pos_embed_type=None,
    use_crossattn_projection=True,
    crossattn_proj_in_channels=12,
    encoder_hidden_states_channels=16,
    img_context_dim_in=10,
    img_context_num_tokens=3,
    img_context_dim_out=48,
)
def _():
    """Text and image context, and a mask of known frames."""
    known = torch.zeros(2, 1, 2, 8, 8)
    known[:, :, 0] = 1
    return cosmos_inputs(encoder_hidden_states=(draw(5, 12), draw(3, 10)), condition_mask=known, attention_mask=None)


@case(
    "SanaVideoTransformer3DModel",
    in_channels=4,
    out_channels=4,
    num_attention_heads=4,
    attention_head_dim=12,
    num_layers=3,
    num_cross_attention_heads=4,
    cross_attention_head_dim=12,
    cross_attention_dim=48,
    caption_channels=12,
    sample_size=8,
    rope_max_seq_len=32,
)
def _():
    return wan_inputs(encoder_attention_mask=mask(5))


@case(
    "SanaWMTransformer3DModel",
    in_channels=4,
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    softmax_every_n=2,
    linear_head_dim=8,
    chunk_plucker_channels=6,
    caption_channels=12,
)
def _():
    """Cameras that move by the frame: a 4x4 pose, then focal lengths and the image's centre."""
    pose = torch.eye(4).repeat(2, 3, 1, 1)
    pose[..., :3, 3] = draw(3, 3) / 4
    lens = torch.tensor([4.0, 4.0, 2.0, 2.0]).expand(2, 3, 4)
    return {
        "hidden_states": draw(4, 3, 4, 4),
        "timestep": times()[:, None, None].repeat(1, 1, 3),
        "encoder_hidden_states": draw(1, 5, 12),
        "encoder_attention_mask": mask(5),
        "camera_conditions": torch.cat([pose.flatten(2), lens], -1),
        "chunk_plucker": draw(6, 3, 4, 4),
    }


# --- Kandinsky, Cosmos 3, MiniMax -----------------------------------------------------------------------------------
KANDINSKY = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 12,
    "in_text_dim2": 10,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 48,
    "num_text_blocks": 2,
    "num_visual_blocks": 3,
    "axes_dims": (4, 2, 2),
    "visual_cond": True,
}


def kandinsky_inputs(**more):
    """Noise, condition and its mask: 2 * 4 + 1 channels, last."""
    return {
        "hidden_states": draw(2, 8, 8, 9),
        "encoder_hidden_states": draw(5, 12),
        "pooled_projections": draw(10),
        "timestep": times(),
        **more,
    }


@case("Kandinsky5Transformer3DModel", **KANDINSKY)
def _():
    axes = (torch.arange(2), torch.arange(4), torch.arange(4))
    return kandinsky_inputs(visual_rope_pos=axes, text_rope_pos=torch.arange(5))


@case(
    "Kandinsky6Transformer3DModel",
    **KANDINSKY,
    in_audio_dim=6,
    out_audio_dim=6,
    model_dim_a=48,
    time_dim_a=16,
    ff_dim_a=40,
    ca_rope=True,
    cross_gates=True,
    visual_token_type_num_embeddings=2,
)
def _():
    return kandinsky_inputs(
        audio_hidden_states=draw(6, 6),
        encoder_attention_mask=mask(5),
        visual_token_type_ids=torch.tensor([[0, 1], [1, 0]]),
    )


@case(
    "Kandinsky6SRTransformer3DModel",
    in_visual_dim=4,
    out_visual_dim=8,
    time_dim=16,
    model_dim=64,
    ff_dim=48,
    num_visual_blocks=2,
    axes_dims=(8, 4, 4),
    nabla_window=(1, 1, 1),
)
def _():
    """A 8x8 neighbourhood of tokens is one attention block."""
    return {"hidden_states": draw(2, 8, 16, 9), "timestep": times()}


COSMOS_3 = {
    "head_dim": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "latent_channel": 4,
    "latent_patch_size": 1,
    "patch_latent_dim": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "rope_axes_dim": [2, 1, 1],
    "vocab_size": 32,
}


def cosmos_3_inputs(more=0):
    """3 words, then 2 frames of 2x2, the first of them known, then `more` tokens. There is no batch."""
    vision = torch.arange(3, 11)
    frames = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(2)).T
    places = [torch.arange(3).expand(3, 3), frames + 3, torch.arange(more).expand(3, more) + 5]
    return {
        "vision_tokens": [torch.randn(1, 4, 2, 2, 2)],
        "input_ids": torch.tensor([5, 17, 9]),
        "text_indexes": torch.arange(3),
        "position_ids": torch.cat(places, 1),
        "und_len": 3,
        "sequence_length": 11 + more,
        "vision_token_shapes": [(2, 2, 2)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision[4:],
        "vision_timesteps": torch.full((4,), 600.0),
        "vision_noisy_frame_indexes": [torch.tensor([1])],
    }


case("Cosmos3OmniTransformer", **COSMOS_3)(cosmos_3_inputs)


@case(
    "Cosmos3OmniTransformer:nemotron",
    **COSMOS_3,
    hidden_act="relu2",
    qk_norm_for_text=False,
    use_und_k_norm_for_gen=True,
    sound_gen=True,
    sound_dim=6,
    action_gen=True,
    action_dim=5,
    num_embodiment_domains=3,
)
def _():
    """The other backbone, with 3 tokens of sound and 2 of action."""
    inputs = cosmos_3_inputs(more=5)
    for name, start, count in (("sound", 11, 3), ("action", 14, 2)):
        inputs |= {
            f"{name}_token_shapes": [(count, 1, 1)],
            f"{name}_sequence_indexes": torch.arange(start, start + count),
            f"{name}_mse_loss_indexes": torch.arange(start, start + count),
            f"{name}_timesteps": torch.full((count,), 300.0),
            f"{name}_noisy_frame_indexes": [torch.arange(count)],
        }
    sound, action = [torch.randn(6, 3)], [torch.randn(2, 5)]
    return inputs | {"sound_tokens": sound, "action_tokens": action, "action_domain_ids": [torch.tensor(1)]}


@case(
    "MiniMaxH3Transformer3DModel",
    num_attention_heads=4,
    attention_head_dim=16,
    hidden_size=24,
    num_layers=3,
    ffn_dim=32,
    in_channels=4,
    audio_in_channels=6,
    text_dim=8,
    freq_dim=8,
    time_embed_hidden_dim=24,
    time_embed_dim=16,
    rope_freq_dim=2,
)
def _():
    """One row of 4 words, 6 audio and 8 video tokens; audio has a time of its own."""
    text, audio, video = torch.arange(4), torch.arange(4, 10), torch.arange(10, 18)
    positions = torch.zeros(18, 3)
    positions[:, 0] = torch.arange(18)
    positions[video, 1:] = grid(4, 2)[:, 1:]
    return {
        "hidden_states": draw(8, 16),
        "audio_hidden_states": draw(6, 6),
        "encoder_hidden_states": draw(4, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": torch.tensor([0] * 4 + [1] * 6 + [0] * 8),
        "token_tags": torch.tensor([1] * 4 + [2] * 6 + [0] * 8),
        "position_ids": positions,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
    }
