"""Stable Diffusion (Rombach et al., arXiv 2112.10752) as it is published, and the scorer of its images, in one module.

    photograph → VAE → moments of its latent        z = s · (mean + deviation · η)
    z_t = √ᾱ_t · z + √(1 − ᾱ_t) · ε                 ε(z_t, t, prompt) ≈ ε  (or the velocity, if the base is so)

Only the U-Net is run with adapters on; VAE, text encoder and scorer lie beside it, so that one hash names all of them
and one call moves them. Nothing is changed in the published classes of diffusers and transformers. Images are drawn
with DDIM (Song et al., arXiv 2010.02502; η = 0) and classifier-free guidance (arXiv 2207.12598), without a safety
checker: what is drawn is embedded and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.errors import ForgeError
from lorascope.forge.recipes._published import loaded

NEEDED = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*.json",
    "tokenizer/merges.txt|tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
)
"""The files of a published Stable Diffusion 1."""


class StableDiffusion(nn.Module):
    """Latents [n, c, h, w] with noise, times [n], embedded prompts [n, tokens, d] → what the U-Net predicts.

    Args:
        folder: with the files of ``NEEDED``.
        scorer: what embeds images and texts to judge them.
        resolution: of the photographs and samples, in pixels.
        adapted: the layers of the U-Net that are adapted, each by the end of its path, such as ``to_q``.

    Raises:
        ForgeError: where the resolution is not a whole number of latents, or no layer has such an end.
    """

    def __init__(self, folder: Path, scorer: nn.Module, resolution: int, adapted: Sequence[str]) -> None:
        super().__init__()
        from transformers import CLIPTextModel, CLIPTokenizer

        diffusers: Any = import_module("diffusers")  # it exports its classes in a way that type checkers do not see
        # of text encoders transformers would take the dtype of the file
        full: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
        self.unet: Any = loaded(diffusers.UNet2DConditionModel, folder, subfolder="unet", **full)
        self.vae: Any = loaded(diffusers.AutoencoderKL, folder, subfolder="vae", **full)
        self.text_encoder: Any = loaded(CLIPTextModel, folder, subfolder="text_encoder", **full)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
        schedule: dict[str, Any] = {"subfolder": "scheduler", "local_files_only": True}
        self.schedule: Any = diffusers.DDPMScheduler.from_pretrained(folder, **schedule)
        self.sampler: Any = diffusers.DDIMScheduler.from_pretrained(folder, **schedule)
        self.scorer = scorer
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if resolution % factor:
            raise ForgeError(
                "is not a whole number of latents",
                key="resolution",
                expected=f"a multiple of {factor}",
                found=resolution,
            )
        self.resolution, self.side = resolution, resolution // factor
        self.sites = self._sites(adapted)

    def _sites(self, adapted: Sequence[str]) -> tuple[str, ...]:
        names = [f"unet.{name}" for name, _ in self.unet.named_modules()]
        for end in adapted:
            if not any(name.endswith(f".{end}") for name in names):
                raise ForgeError(
                    "the U-Net has no layer whose path ends so",
                    key="sites",
                    expected="ends of paths with commas between, such as to_q,to_v",
                    found=end,
                )
        return tuple(name for name in names if name.endswith(tuple(f".{end}" for end in adapted)))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one latent."""
        return int(self.unet.config.in_channels), self.side, self.side

    @torch.no_grad()
    def embedded(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as the U-Net takes them, [n, tokens, d], on the processor."""
        most = self.tokenizer.model_max_length
        states = []
        for prompt in prompts:
            given = self.tokenizer(prompt, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
            states.append(self.text_encoder(given["input_ids"].to(self.unet.device))[0].cpu())
        return torch.cat(states)

    @torch.no_grad()
    def moments(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images [3, height, width], each [n, c, h, w]; one by one."""
        found = [self.vae.encode(image.unsqueeze(0).to(self.unet.device)).latent_dist for image in images]
        return torch.cat([one.mean.cpu() for one in found]), torch.cat([one.std.cpu() for one in found])

    def drawn(self, moments: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """A latent of each image, [n, c, h, w]."""
        mean, deviation = moments
        return (mean + deviation * torch.randn(mean.shape, generator=generator)) * self.vae.config.scaling_factor

    def with_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The latents at these times, and what the U-Net is to predict of them."""
        noisy = self.schedule.add_noise(latents, noise, times)
        predicted = self.schedule.config.prediction_type
        if predicted == "epsilon":
            return noisy, noise
        if predicted == "v_prediction":
            return noisy, self.schedule.get_velocity(latents, noise, times)
        raise ForgeError(
            "there is no loss for what this base predicts",
            key="model",
            expected="epsilon or v_prediction",
            found=predicted,
        )

    def sample(
        self, model: Callable[..., Any], noise: Tensor, prompts: Tensor, steps: int, guidance: float
    ) -> list[Any]:
        """Images of Pillow's from noise [N, c, h, w], one of each adapter.

        Args:
            model: this module with N adapters on.
            noise: where each sample starts.
            prompts: the embedded prompts [N, tokens, d].
            steps: of DDIM.
            guidance: w in ε(nothing) + w · (ε(prompt) − ε(nothing)).
        """
        from diffusers.image_processor import VaeImageProcessor

        self.sampler.set_timesteps(steps)
        nothing = self.embedded([""]).expand_as(prompts)
        conditions = torch.stack([nothing, prompts], 1).flatten(0, 1)  # adapter by adapter
        latents = noise * self.sampler.init_noise_sigma
        for time in self.sampler.timesteps:
            twice = self.sampler.scale_model_input(latents.repeat_interleave(2, 0), time)
            outputs = model(sample=twice, timestep=time.expand(len(twice)), encoder_hidden_states=conditions)
            without, under = outputs.float().cpu().view(len(noise), 2, *noise.shape[1:]).unbind(1)
            latents = self.sampler.step(without + guidance * (under - without), time, latents).prev_sample
        latents = (latents / self.vae.config.scaling_factor).to(self.unet.device)
        decoded = torch.cat([self.vae.decode(latent).sample.cpu() for latent in latents.split(1)])
        images: Any = VaeImageProcessor().postprocess(decoded, output_type="pil")
        return images
