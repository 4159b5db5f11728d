"""Transformers that make sound, and the one that makes proteins."""

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from tests.zoo import case, draw, fractions, mask


@case(
    "StableAudioDiTModel",
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=4,
    num_key_value_attention_heads=2,
    cross_attention_dim=16,
    time_proj_dim=16,
    global_states_input_dim=10,
    cross_attention_input_dim=12,
    sample_size=16,
)
def _():
    """Half of each head is rotated; the global token goes before the sound."""
    rotation = get_1d_rotary_pos_embed(4, 17, use_real=True, repeat_interleave_real=False)
    return {
        "hidden_states": draw(4, 16),
        "timestep": fractions(),
        "encoder_hidden_states": draw(5, 12),
        "global_hidden_states": draw(1, 10),
        "rotary_embedding": rotation,
        "encoder_attention_mask": mask(5),
    }


STABLE_3 = {
    "io_channels": 4,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "cond_token_dim": 12,
    "global_cond_dim": 10,
    "local_add_cond_dim": 5,
    "timestep_features_dim": 16,
    "ff_mult": 2,
    "num_memory_tokens": 3,
}


@case("StableAudio3DiTModel", **STABLE_3)
def stable_3():
    return {
        "hidden_states": draw(4, 16),
        "timestep": fractions(),
        "encoder_hidden_states": draw(5, 12),
        "global_hidden_states": draw(10),
        "encoder_attention_mask": mask(5),
        "local_add_cond": draw(5, 16),
    }


case("StableAudio3DiTModel:plain", **STABLE_3, use_differential_attention=False)(stable_3)


@case(
    "AceStepTransformer1DModel",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    in_channels=12,
    audio_acoustic_hidden_dim=4,
    sliding_window=2,
)
def _():
    return {
        "hidden_states": draw(12, 4),
        "timestep": fractions(),
        "timestep_r": fractions() / 2,
        "encoder_hidden_states": draw(5, 32),
        "context_latents": draw(12, 8),
    }


LONGCAT = {"dit_dim": 32, "dit_depth": 3, "dit_heads": 4, "dit_text_dim": 12, "latent_dim": 4, "ff_mult": 2}


@case("LongCatAudioDiTTransformer", **LONGCAT)
def longcat():
    return {
        "hidden_states": draw(12, 4),
        "encoder_hidden_states": draw(5, 12),
        "encoder_attention_mask": mask(5),
        "timestep": fractions(),
        "attention_mask": mask(12),
        "latent_cond": draw(12, 4),
    }


case("LongCatAudioDiTTransformer:local", **LONGCAT, adaln_type="local", adaln_use_text_cond=False)(longcat)


@case(
    "MiniMaxMusic3Transformer1DModel",
    in_channels=4,
    condition_dim=12,
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=8,
    ff_inner_dim=48,
    rotary_dim=4,
    fourier_embedding_dim=16,
)
def _():
    return {"hidden_states": draw(4, 12), "timestep": fractions(), "encoder_hidden_states": draw(12, 12)}


@case("T5FilmDecoder", input_dims=6, targets_length=16, d_model=32, num_layers=3, num_heads=4, d_kv=8, d_ff=48)
def _():
    """Conditions on notes and on the sound before."""
    return {
        "decoder_input_tokens": draw(12, 6),
        "encodings_and_masks": [(draw(5, 32), mask(5, torch.float32)), (draw(4, 32), mask(4, torch.float32))],
        "decoder_noise_time": fractions(),
    }


@case(
    "RFD4ProteinaTransformer",
    nlayers=4,
    token_dim=32,
    nheads=4,
    dim_cond=16,
    pair_repr_dim=16,
    latent_dim=4,
    token_type_emb_dim=8,
    t_emb_dim=16,
    xt_pair_dist_dim=8,
    feats_seq=("xt_bb_ca", "xt_local_latents", "token_type"),
    feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents", "recycle_remaining"),
    feats_pair_repr=("xt_bb_ca_pair_dists", "bond_mask"),
    tri_mult_c=16,
    num_sequence_classes=10,
)
def _():
    """A backbone of 6 residues in two passes: what passes hand on is dead in the first."""
    context = torch.zeros(2, 6, dtype=torch.bool)
    context[:, 0] = True
    return {
        "bb_ca": draw(6, 3),
        "local_latents": draw(6, 4),
        "bb_ca_time": fractions(),
        "local_latents_time": fractions() / 2,
        "padding_mask": mask(6),
        "token_type": torch.randint(0, 7, (2, 6)),
        "conditioning": {
            "is_in_context_conditioning": context,
            "supports_local_latent": torch.ones(2, 6, dtype=torch.bool),
            "bond_mask": torch.rand(2, 6, 6) > 0.5,
        },
        "recycle_depth": 2,
    }
