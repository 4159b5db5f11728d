"""The pixel-space pipeline of the embedded models: prompt and noise in, picture out; no VAE."""

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast


class EmbeddedOutput(BaseOutput):
    """`images`: PIL pictures, or what `output_type` asked for."""

    images: list | Tensor


class EmbeddedPipeline(DiffusionPipeline):
    """Text to a 32 x 32 drawing by flow matching with classifier-free guidance."""

    model_cpu_offload_seq = "text_encoder->transformer"

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    def encode_prompt(self, prompt: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (b, tokens, width) and the pooled state (b, width) of the prompts."""
        tokens = self.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        text = self.text_encoder(tokens.input_ids.to(self.text_encoder.device))
        return text.last_hidden_state, text.pooler_output

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> EmbeddedOutput:
        """Draw `prompt`. `latents` (b, 3, 32, 32) is the starting noise; `output_type` is pil, np or pt."""
        prompt = [prompt] if isinstance(prompt, str) else list(prompt)
        model, guided = self.transformer, guidance_scale != 1.0
        hidden, pooled = self.encode_prompt([""] * len(prompt) + prompt if guided else prompt)
        hidden, pooled = hidden.to(model.dtype), pooled.to(model.dtype)

        shape = (len(prompt), model.config.in_channels, model.config.sample_size, model.config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=model.device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, but {len(prompt)} prompts need {shape}")
        x = latents.to(model.device, torch.float32)

        self.scheduler.set_timesteps(num_inference_steps, device=model.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            x_in = torch.cat([x, x]) if guided else x
            velocity = model(
                hidden_states=x_in.to(model.dtype),
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                timestep=t.expand(len(x_in)),
                return_dict=False,
            )[0].float()
            if guided:
                without, with_ = velocity.chunk(2)
                velocity = without + guidance_scale * (with_ - without)
            x = self.scheduler.step(velocity, t, x, return_dict=False)[0]

        self.maybe_free_model_hooks()
        return EmbeddedOutput(images=self.image_processor.postprocess(x.clamp(-1, 1), output_type=output_type))
