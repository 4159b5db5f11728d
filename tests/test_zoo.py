"""The zoo is complete, and sound ground to test on: finite, driven by its inputs, with every parameter at work."""

import importlib
from fnmatch import fnmatch
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import ModelMixin

from tests.zoo import ZOO, make, output, tensors

# --- What is no denoiser ------------------------------------------------------------------------------------------
ELSEWHERE = ("autoencoders", "condition_embedders", "latent_upscaler", "adapter", "shap_e")  # parts of module names
DENOISES_ALL_THE_SAME = {"LTX2VideoDiffusionDecoderModel"}
NO_DENOISERS = {
    "AceStepAudioTokenDetokenizer",
    "AceStepAudioTokenizer",
    "AceStepConditionEncoder",
    "AceStepLyricEncoder",
    "AceStepTimbreEncoder",
    "AudioLDM2ProjectionModel",
    "CLIPImageProjection",
    "ControlNetXSAdapter",  # no forward of its own: UNetControlNetXSModel holds its parts
    "IFWatermarker",
    "Ideogram4PromptEnhancerHead",
    "LTX2DurationHead",
    "LTX2LatentUpsamplerModel",
    "LTX2TextConnectors",
    "LTX2Vocoder",
    "LTX2VocoderWithBWE",
    "LTXLatentUpsamplerModel",
    "LearnedClassifierFreeSamplingEmbeddings",
    "LegacyModelMixin",
    "MiniMaxMusic3RVQDepthDecoder",
    "MotionAdapter",  # no forward of its own: UNetMotionModel holds its parts
    "PaellaVQModel",
    "ReduxImageEncoder",
    "SpectrogramContEncoder",
    "SpectrogramNotesEncoder",
    "StableAudio3DurationEmbedder",
    "StableAudioProjectionModel",
    "StableUnCLIPImageNormalizer",
    "UnCLIPTextProjModel",
    "UniDiffuserTextDecoder",
}

# --- What does not take part ---------------------------------------------------------------------------------------
LAST = "only the image goes on after the last joint block"
FUSED = "stays behind when projections are fused"
UNREAD = "defined, never read by forward"
# {class or case: {pattern of parameter names: why they change nothing}}
DEAD = {
    "Cosmos3OmniTransformer": {
        "lm_head.weight": "writes text, which denoising does not ask for",
        "norm.weight": "the text tower's result is not read",
        **{
            f"layers.2.{name}": "the text tower's last keys and values are the last that the other tower reads"
            for name in ("self_attn.to_q.*", "self_attn.to_out.*", "self_attn.norm_q.*", "mlp.*")
        },
        "layers.2.post_attention_layernorm.weight": "as layers.2.mlp",
    },
    "FluxTransformer2DModel:fused_qkv": {"*.attn.to_[qkv].*": FUSED, "*.attn.add_[qkv]_proj.*": FUSED},
    "HunyuanVideo15Transformer3DModel": {
        f"transformer_blocks.2.{name}": LAST
        for name in ("attn.add_q_proj.*", "attn.to_add_out.*", "attn.norm_added_q.*", "ff_context.*")
    },
    "JoyImageEditTransformer3DModel": {
        f"double_blocks.2.{name}": LAST for name in ("txt_mlp.*", "attn.txt_attn_q_norm.*", "attn.txt_attn_proj.*")
    },
    "LuminaNextDiT2DModel": {"pad_token": UNREAD},
    "MochiTransformer3DModel": {"*.2.attn1.add_q_proj.*": LAST, "*.2.attn1.norm_added_q.*": LAST},
    "NucleusMoEImageTransformer2DModel": {"*.norm_added_q.*": "text has keys and values, no queries"},
    "PriorTransformer": {"clip_mean": "read by post_process_latents only", "clip_std": "as clip_mean"},
    "QwenImageTransformer2DModel": {
        f"*transformer_blocks.2.{name}": LAST
        for name in ("attn.add_q_proj.*", "attn.to_add_out.*", "attn.norm_added_q.*", "txt_mlp.*")
    },
    "SD3ControlNetModel": {
        f"*transformer_blocks.2.{name}": LAST for name in ("attn.add_q_proj.*", "attn.to_add_out.*", "ff_context.*")
    },
    "SD3ControlNetModel:single": {},
    "SD3Transformer2DModel": {"*.2.attn.add_q_proj.*": LAST, "*.2.attn.norm_added_q.*": LAST},
    "SanaWMLTX2RefinerTransformer3DModel": {
        pattern: "the audio half, and what joins it to video, never runs"
        for pattern in ("audio_*", "av_cross_attn_*", "*.audio_*", "*.video_to_audio_*", "*.*a2v*")
    },
    "SanaWMTransformer3DModel": {
        **{
            f"blocks.[13].attn.{name}": "softmax blocks share the layout of the recurrent ones"
            for name in ("A_log", "dt_bias", "beta_proj.*", "gate_proj.*")
        },
        "raymap_embedder.*": "takes the place of chunk_plucker, which is given",
    },
    "SparseControlNetModel": {"conv_in.weight": "the sample is replaced by zeros"},
    "UNet2DConditionModel:fused_qkv": {"*.attn1.to_[qkv].*": FUSED, "*.attn2.to_[kv].*": FUSED},
    "UniDiffuserModel": {"transformer.pos_embed.proj.*": "the model's own patch embedding is used"},
}
DEAD["JoyImageEditPlusTransformer3DModel"] = DEAD["JoyImageEditTransformer3DModel"]
DEAD["QwenImageControlNetModel"] = DEAD["QwenImageMultiControlNetModel"] = DEAD["QwenImageTransformer2DModel"]
DEAD["SD3MultiControlNetModel"] = DEAD["SD3ControlNetModel"]

# At work, yet without a gradient. {class: {pattern: why}}
FLEX = "flex attention has no backward on a CPU"
NO_GRADIENT = {
    "AnyFlowFARTransformer3DModel": {"*": FLEX},
    "HiDreamImageTransformer2DModel": {
        "*.experts.*": "experts run under no_grad in eval mode",
        "*.ff_i.gate.weight": "routing does, too",
    },
    "Kandinsky6SRTransformer3DModel": {"*": FLEX},
    "LTX2VideoDiffusionDecoderModel": {"*": FLEX},
}

# {class: {input: why it changes nothing}}
INERT = {
    "SparseControlNetModel": {"sample": "replaced by zeros"},
    "WanAnimate2Transformer3DModel": {"timestep": "the reference pass has a time of its own"},
}


def entry(table, name):
    """The table's entry for a case, or else for its class."""
    return table.get(name, table.get(name.partition(":")[0], {}))


def matches(name, patterns):
    return any(fnmatch(name, pattern) for pattern in patterns)


def subclasses(cls):
    for found in cls.__subclasses__():
        yield found
        yield from subclasses(found)


def test_every_denoiser_of_diffusers_is_in_the_zoo():
    """Fails for a class that a new diffusers brings: add a case, or, if it does not denoise, a name above."""
    for source in Path(diffusers.__file__).parent.rglob("*.py"):
        path = source.relative_to(Path(diffusers.__file__).parent.parent).with_suffix("")
        defines = path.parts[1] == "models" or "ModelMixin" in source.read_text()
        if path.parts[1] in ("models", "pipelines") and defines and path.name != "__init__":
            try:
                importlib.import_module(".".join(path.parts))
            except ImportError:  # of something that is not installed
                continue
    known = {
        cls.__name__
        for cls in subclasses(ModelMixin)
        if cls.__module__.startswith("diffusers.")
        and cls.__name__ not in NO_DENOISERS
        and (cls.__name__ in DENOISES_ALL_THE_SAME or not any(part in cls.__module__ for part in ELSEWHERE))
    }
    assert known == {name.partition(":")[0] for name in ZOO}


@pytest.mark.parametrize("name", ZOO)
def test_case_is_finite_and_repeats(name):
    model, inputs = make(name)
    with torch.no_grad():
        y = output(model, inputs)
    assert sum(p.numel() for p in model.parameters()) < 5e6
    assert not model.training
    assert torch.isfinite(y).all()
    assert 0.05 < y.std() < 50
    state = torch.random.get_rng_state()
    again, same_inputs = make(name)
    with torch.no_grad():
        assert torch.equal(output(again, same_inputs), y)
    with torch.no_grad():
        assert torch.equal(output(model, inputs), y)  # a cache or a mutated input would show
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_output_depends_on_every_input(name):
    model, inputs = make(name)
    y = output(model, inputs)
    inert = {given for given in inputs if numbers(inputs[given]) and change(model, inputs, given, y) < 1e-3}
    assert inert == set(entry(INERT, name))
    assert next(iter(inputs)) not in inert


def numbers(value):
    """Whether an input holds numbers to disturb."""
    return next(tensors(value), None) is not None


def change(model, inputs, given, y):
    """How much the output moves, relative to its largest value, when one input is disturbed."""
    torch.manual_seed(5)
    return relative(output(model, {**inputs, given: disturbed(inputs[given])}), y)


def disturbed(value):
    """The same nesting, with noise on all floating numbers."""
    if isinstance(value, torch.Tensor):
        floating = value.is_floating_point() or value.is_complex()
        return value + torch.randn_like(value) * (value.abs().mean() / 2 + 0.1) if floating else value
    if isinstance(value, dict):
        return {key: disturbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(disturbed(item) for item in value)
    return value


def relative(y, expected):
    return ((y - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_takes_part(name):
    """A gradient shows that a parameter does; where there is none, disturbing it must."""
    model, inputs = make(name)
    parameters = dict(model.named_parameters())
    without = entry(NO_GRADIENT, name)
    if "*" not in without:
        y = output(model, inputs)
        torch.manual_seed(3)
        (y * torch.randn_like(y)).sum().backward()  # random: the sum alone is blind to what a last norm takes out
    largest = max((p.grad.abs().max().item() for p in parameters.values() if p.grad is not None), default=0)
    silent = [
        key
        for key, p in parameters.items()
        # Softmax does not see what is added to all keys alike: there a bias has the gradient of rounding errors.
        if p.grad is None or p.grad.abs().max() <= (0 if key.endswith("bias") else 1e-8 * largest)
    ]
    with torch.no_grad():
        y = output(model, inputs)
        dead = {key for key in silent if unmoved(model, parameters[key], inputs, y)}
    expected = {key for key in parameters if matches(key, entry(DEAD, name))}
    assert dead == expected
    trained = {key for key in silent if parameters[key].requires_grad} - dead
    assert trained == {key for key in parameters if matches(key, without)} - dead


def unmoved(model, parameter, inputs, y):
    """Whether the output stays as it is when a parameter is disturbed."""
    before = parameter.clone()
    torch.manual_seed(5)
    parameter.copy_(disturbed(before))
    same = relative(output(model, inputs), y) < 1e-6
    parameter.copy_(before)
    return same
