"""The embedded text-to-image models: stock diffusers and transformers classes, small enough to ship and prune on a CPU.

An MMDiT (Stable Diffusion 3, arXiv 2403.03206) in pixel space: 32 x 32 pixels, patches of 4, so 64 image tokens and
12 text tokens; 6 joint blocks of width 160 with 5 heads of 32; q and k are RMS-normalised per head as in SD 3.5.

A UNet (Stable Diffusion, arXiv 2112.10752) in pixel space: 2 x 2 pixels folded into 12 channels, then stages of
16 x 16, 8 x 8 and 4 x 4 positions; the two lower ones and the middle attend to the prompt with heads of 16 and have
GEGLU feed-forwards. Norms have 16 groups, so that channels, which go in whole groups, can go in steps of a sixteenth.
"""

import re
from collections.abc import Iterable

from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from reference.embedded.pipeline import EmbeddedPipeline

SIZE = 32
TEXT_WIDTH = 128
TEXT_TOKENS = 12
WORD = r"[\w]+"


def build_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, between a start and an end token."""
    words = sorted({word for prompt in prompts for word in re.findall(WORD, prompt.lower())})
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<start>", "<end>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=TEXT_TOKENS,
    )


def build_text_encoder(vocabulary: int) -> CLIPTextModel:
    """An untrained text encoder, 2 layers of width 128; trained with its denoiser."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,  # CLIPTextModel pools at this token; the value 2 would switch it to a legacy rule
        )
    )


def build_mmdit(prompts: Iterable[str]) -> EmbeddedPipeline:
    """An untrained pipeline; `prompts` give the vocabulary. Weights come from torch's global generator: seed it."""
    tokenizer = build_tokenizer(prompts)
    text_encoder = build_text_encoder(len(tokenizer))
    transformer = SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=4,
        in_channels=3,
        out_channels=3,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=160,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=SIZE // 4,
        qk_norm="rms_norm",
    )
    return EmbeddedPipeline(text_encoder, tokenizer, FlowMatchEulerDiscreteScheduler(shift=1.0), transformer)


def build_unet(prompts: Iterable[str]) -> EmbeddedPipeline:
    """As `build_mmdit`: an untrained pipeline around a UNet that predicts v and is sampled by DDIM."""
    tokenizer = build_tokenizer(prompts)
    text_encoder = build_text_encoder(len(tokenizer))
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 112, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(4, 7, 7),  # diffusers means the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # starts from noise alone; the predicted picture is clipped to [-1, 1]
    )
    return EmbeddedPipeline(text_encoder, tokenizer, scheduler, unet=unet, guidance_scale=1.5)
