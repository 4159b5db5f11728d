"""ControlNets, and the containers that run several at once."""

import torch
from diffusers import ZImageControlNetModel, ZImageTransformer2DModel

from tests.zoo import case, denoiser, draw, times
from tests.zoo.image import (
    FLUX,
    HUNYUAN_DIT,
    QWEN,
    SANA,
    SD3,
    Z_IMAGE,
    flux_inputs,
    hunyuan_dit_inputs,
    qwen_inputs,
    sana_inputs,
    sd3_inputs,
    z_image_inputs,
)
from tests.zoo.unets import SD, unet_inputs
from tests.zoo.video import resize_without_torchvision


def several(name, single, nets=2):
    """How to build the container `name` of `nets` models of class `single`."""
    return lambda **config: denoiser(name)([denoiser(single)(**config) for _ in range(nets)])


# --- Of U-Nets ------------------------------------------------------------------------------------------------------
ENCODER = {k: v for k, v in SD.items() if k not in ("sample_size", "up_block_types")}
ENCODER |= {"conditioning_embedding_out_channels": (8, 16)}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 10,
}
UNION = (
    ENCODER | TEXT_TIME | {"num_trans_channel": 16, "num_trans_head": 4, "num_trans_layer": 2, "num_proj_channel": 16}
)


@case("ControlNetModel", **ENCODER, transformer_layers_per_block=2)
def _():
    return unet_inputs(controlnet_cond=draw(3, 16, 16))


@case("MultiControlNetModel", several("MultiControlNetModel", "ControlNetModel"), **ENCODER)
def _():
    conditions = [draw(3, 16, 16), draw(3, 16, 16)]
    return unet_inputs(controlnet_cond=conditions, conditioning_scale=[1.0, 0.5], return_dict=False)


def union_inputs(**more):
    """Two of six kinds of condition."""
    return unet_inputs(
        controlnet_cond=[draw(3, 16, 16), draw(3, 16, 16)],
        control_type=torch.tensor([[1, 0, 0, 1, 0, 0]] * 2),
        control_type_idx=[0, 3],
        added_cond_kwargs={"text_embeds": draw(10), "time_ids": draw(6) * 8},
        **more,
    )


case("ControlNetUnionModel", **UNION)(union_inputs)


@case("MultiControlNetUnionModel", several("MultiControlNetUnionModel", "ControlNetUnionModel"), **UNION)
def _():
    one = union_inputs()
    return one | {
        "controlnet_cond": [one["controlnet_cond"], [draw(3, 16, 16)]],
        "control_type": [one["control_type"], torch.tensor([[0, 1, 0, 0, 0, 0]] * 2)],
        "control_type_idx": [[0, 3], [1]],
        "conditioning_scale": [[1.0, 1.0], [0.5]],
        "return_dict": False,
    }


@case(
    "SparseControlNetModel",
    **ENCODER | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")},
    motion_num_attention_heads=4,
    motion_max_seq_length=8,
    transformer_layers_per_block=2,
)
def _():
    """A condition for the first of 3 frames. The sample itself is replaced by zeros."""
    known = torch.zeros(2, 1, 3, 8, 8)
    known[:, :, 0] = 1
    return {
        "controlnet_cond": draw(4, 3, 8, 8),
        "conditioning_mask": known,
        **unet_inputs(sample=draw(4, 3, 8, 8), encoder_hidden_states=draw(3, 5, 12).flatten(0, 1)),
    }


@case(
    "UNetControlNetXSModel",
    **{k: v for k, v in SD.items() if k != "attention_head_dim"},
    num_attention_heads=4,
    time_embedding_mix=0.5,
    ctrl_conditioning_embedding_out_channels=(8, 16),
    ctrl_learn_time_embedding=True,
    ctrl_block_out_channels=(8, 16),
    ctrl_max_norm_num_groups=4,
)
def _():
    return unet_inputs(controlnet_cond=draw(3, 16, 16))


# --- Of transformers ------------------------------------------------------------------------------------------------
CONTROL_FLUX = {**FLUX, "pooled_projection_dim": 12, "guidance_embeds": True, "num_mode": 3}


def control_flux_inputs(**more):
    guidance = torch.tensor([3.5, 1.0])
    return flux_inputs(controlnet_cond=draw(16, 4), pooled_projections=draw(12), guidance=guidance, **more)


@case("FluxControlNetModel", **CONTROL_FLUX)
def _():
    return control_flux_inputs(controlnet_mode=torch.tensor([[0], [2]]))


@case("FluxMultiControlNetModel", several("FluxMultiControlNetModel", "FluxControlNetModel"), **CONTROL_FLUX)
def _():
    one = control_flux_inputs(controlnet_mode=[torch.tensor([0, 2]), torch.tensor([1, 0])])
    conditions = [one["controlnet_cond"], draw(16, 4)]
    return one | {"controlnet_cond": conditions, "conditioning_scale": [1.0, 0.5], "return_dict": False}


def control_sd3_inputs(**more):
    return sd3_inputs(controlnet_cond=draw(5, 8, 8), **more)


CONTROL_SD3 = {**SD3, "extra_conditioning_channels": 1}
case("SD3ControlNetModel", **CONTROL_SD3)(control_sd3_inputs)


@case("SD3ControlNetModel:single", **CONTROL_SD3 | {"joint_attention_dim": None}, use_pos_embed=False)
def _():
    """Without text, as for SD3.5 Large: it takes the transformer's embedded image tokens."""
    return control_sd3_inputs(hidden_states=draw(16, 32), encoder_hidden_states=None)


@case("SD3MultiControlNetModel", several("SD3MultiControlNetModel", "SD3ControlNetModel"), **CONTROL_SD3)
def _():
    conditions = [draw(5, 8, 8), draw(5, 8, 8)]
    return control_sd3_inputs() | {
        "controlnet_cond": conditions,
        "conditioning_scale": [1.0, 0.5],
        "return_dict": False,
    }


CONTROL_HUNYUAN = {**HUNYUAN_DIT, "transformer_num_layers": 6}


@case("HunyuanDiT2DControlNetModel", **CONTROL_HUNYUAN)
def _():
    return hunyuan_dit_inputs(controlnet_cond=draw(4, 8, 8))


@case(
    "HunyuanDiT2DMultiControlNetModel",
    several("HunyuanDiT2DMultiControlNetModel", "HunyuanDiT2DControlNetModel"),
    **CONTROL_HUNYUAN,
)
def _():
    conditions = [draw(4, 8, 8), draw(4, 8, 8)]
    return hunyuan_dit_inputs(controlnet_cond=conditions, conditioning_scale=[1.0, 0.5], return_dict=False)


CONTROL_QWEN = {**QWEN, "extra_condition_channels": 4}


@case("QwenImageControlNetModel", **CONTROL_QWEN)
def _():
    return qwen_inputs(controlnet_cond=draw(16, 20))


@case(
    "QwenImageMultiControlNetModel",
    several("QwenImageMultiControlNetModel", "QwenImageControlNetModel", nets=1),
    **CONTROL_QWEN,
)
def _():
    """One net for two conditions: with more nets forward is not implemented."""
    conditions = [draw(16, 20), draw(16, 20)]
    return qwen_inputs(controlnet_cond=conditions, conditioning_scale=[1.0, 0.5], return_dict=False)


@case("SanaControlNetModel", **SANA)
def _():
    return sana_inputs(controlnet_cond=draw(4, 8, 8))


def control_z_image(**config):
    """Its embedders and refiners are those of a transformer."""
    model = ZImageControlNetModel(dim=32, n_heads=4, n_kv_heads=4, **config)
    model.gradient_checkpointing = False  # forward reads it, 0.42.1 never sets it
    return ZImageControlNetModel.from_transformer(model, ZImageTransformer2DModel(**Z_IMAGE))


PLACES = {"control_layers_places": [0, 2], "control_refiner_layers_places": [0, 1], "control_in_dim": 5}


@case("ZImageControlNetModel", control_z_image, **PLACES)
def control_z_image_inputs():
    return z_image_inputs(control_context=[torch.randn(5, 1, 8, 8), torch.randn(5, 1, 8, 12)])


case("ZImageControlNetModel:refiner", control_z_image, **PLACES, add_control_noise_refiner="control_noise_refiner")(
    control_z_image_inputs
)


def control_cosmos(**config):
    from diffusers.models.controlnets import controlnet_cosmos

    resize_without_torchvision(controlnet_cosmos)
    return controlnet_cosmos.CosmosControlNetModel(**config)


@case(
    "CosmosControlNetModel",
    control_cosmos,
    n_controlnet_blocks=3,
    in_channels=6,
    latent_channels=6,
    model_channels=48,
    num_attention_heads=4,
    attention_head_dim=12,
    mlp_ratio=2,
    text_embed_dim=16,
    adaln_lora_dim=4,
    max_size=(4, 16, 16),
    img_context_dim_in=10,
    img_context_dim_out=48,
    use_crossattn_projection=True,
    crossattn_proj_in_channels=12,
    encoder_hidden_states_channels=16,
)
def _():
    """Text and image context; 4 latent channels, a condition mask and a padding mask."""
    padding = torch.zeros(1, 1, 8, 8)
    padding[..., -1] = 1
    return {
        "controls_latents": draw(4, 2, 8, 8),
        "latents": draw(4, 2, 8, 8),
        "timestep": times() / 1000,
        "encoder_hidden_states": (draw(5, 12), draw(3, 10)),
        "condition_mask": torch.ones(2, 1, 2, 8, 8),
        "padding_mask": padding,
    }
