"""The pixel-space pipeline of the embedded models: prompt and noise in, picture out; no VAE."""

from math import isqrt

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextModel, PreTrainedTokenizerFast


class EmbeddedOutput(BaseOutput):
    """`images`: PIL pictures, or what `output_type` asked for."""

    images: list | Tensor


class EmbeddedPipeline(DiffusionPipeline):
    """Text to a 32 x 32 drawing with classifier-free guidance, by a transformer or by a UNet, whichever is given."""

    model_cpu_offload_seq = "text_encoder->transformer->unet"
    _optional_components = ["transformer", "unet"]  # noqa: RUF012 - diffusers reads it from the class

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler | DDIMScheduler | DPMSolverMultistepScheduler,
        transformer: SD3Transformer2DModel | None = None,
        unet: UNet2DConditionModel | None = None,
        guidance_scale: float = 3.0,
    ):
        super().__init__()
        self.register_to_config(guidance_scale=guidance_scale)
        self.register_modules(
            text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, transformer=transformer, unet=unet
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @property
    def denoiser(self) -> SD3Transformer2DModel | UNet2DConditionModel:
        """The one that this pipeline has."""
        return self.unet if self.transformer is None else self.transformer

    def encode_prompt(self, prompt: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (b, tokens, width) and the pooled state (b, width) of the prompts."""
        tokens = self.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        text = self.text_encoder(tokens.input_ids.to(self.text_encoder.device))
        return text.last_hidden_state, text.pooler_output

    def inputs(self, x: Tensor, timestep: Tensor, hidden: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """Keywords of one call of the denoiser: `x` (b, channels, size, size), `timestep` (b,), the encoded prompts."""
        if self.transformer is None:  # this UNet takes the prompt through cross-attention alone
            return {"sample": x, "timestep": timestep, "encoder_hidden_states": hidden, "return_dict": False}
        text = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
        return {"hidden_states": x, "timestep": timestep, **text, "return_dict": False}

    def fold(self, pictures: Tensor) -> Tensor:
        """(b, 3, 32, 32) -> what the denoiser sees, (b, channels, size, size): f x f pixels become 3 f^2 channels."""
        return pixel_unshuffle(pictures, isqrt(self.denoiser.config.in_channels // 3))

    def unfold(self, x: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return pixel_shuffle(x, isqrt(self.denoiser.config.in_channels // 3))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> EmbeddedOutput:
        """Draw `prompt`.

        Without `guidance_scale` the model's own is used, which is kept with it. `latents` (b, channels, size, size) is
        the starting noise; `output_type` is pil, np, pt or latent (folded). The scheduler must be one that starts from
        noise of variance 1 and takes x as it is, as flow matching and DDIM do.
        """
        prompt = [prompt] if isinstance(prompt, str) else list(prompt)
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        model, guided = self.denoiser, guidance_scale != 1.0
        hidden, pooled = self.encode_prompt([""] * len(prompt) + prompt if guided else prompt)
        hidden, pooled = hidden.to(model.dtype), pooled.to(model.dtype)

        shape = (len(prompt), model.config.in_channels, model.config.sample_size, model.config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=model.device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, but {len(prompt)} prompts need {shape}")
        self.scheduler.set_timesteps(num_inference_steps, device=model.device)
        x = latents.to(model.device, torch.float32)

        for t in self.progress_bar(self.scheduler.timesteps):
            x_in = torch.cat([x, x]) if guided else x
            prediction = model(**self.inputs(x_in.to(model.dtype), t.expand(len(x_in)), hidden, pooled))[0].float()
            if guided:
                without, with_ = prediction.chunk(2)
                prediction = without + guidance_scale * (with_ - without)
            x = self.scheduler.step(prediction, t, x, return_dict=False)[0]

        self.maybe_free_model_hooks()
        x = x.clamp(-1, 1)
        if output_type == "latent":
            return EmbeddedOutput(images=x)
        return EmbeddedOutput(images=self.image_processor.postprocess(self.unfold(x), output_type=output_type))
