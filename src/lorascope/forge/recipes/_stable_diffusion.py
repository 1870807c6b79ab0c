"""Stable Diffusion (Rombach et al., arXiv 2112.10752) as it is published, and the scorer of its images, in one module.

    photograph → VAE → moments of its latent        z = s · (mean + deviation · η)
    z_t = √ᾱ_t · z + √(1 − ᾱ_t) · ε                 ε(z_t, t, prompt) ≈ ε  (or the velocity, if the base is so)

Only the U-Net is run with adapters on; VAE, text encoder and scorer lie beside it, so that one hash names all of them
and one call moves them. Nothing is changed in the published classes of diffusers and transformers. Images are drawn
with DDIM (Song et al., arXiv 2010.02502; η = 0) and classifier-free guidance (arXiv 2207.12598), without a safety
checker: what is drawn is embedded and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.errors import ForgeError
from lorascope.forge.recipes._clip_tokens import clip_tokenizer
from lorascope.forge.recipes._published import cause, loaded, loaded_part

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
        ForgeError: where files are not as they are published or do not belong together, the resolution is not a whole
            number of latents, or no layer has such an end.
    """

    def __init__(self, folder: Path, scorer: nn.Module, resolution: int, adapted: Sequence[str]) -> None:
        super().__init__()
        from transformers import CLIPTextModel

        diffusers: Any = import_module("diffusers")  # it exports its classes in a way that type checkers do not see
        # of text encoders transformers would take the dtype of the file
        full: dict[str, Any] = {"needed": NEEDED, "use_safetensors": True, "dtype": torch.float32}
        self.unet: Any = loaded(diffusers.UNet2DConditionModel, folder, subfolder="unet", **full)
        self.vae: Any = loaded(diffusers.AutoencoderKL, folder, subfolder="vae", **full)
        # the attention of diffusers' models is not chosen by their configurations, that of transformers' is
        self.text_encoder: Any = loaded(
            CLIPTextModel, folder, subfolder="text_encoder", attn_implementation="sdpa", **full
        )
        self.tokenizer: Any = clip_tokenizer(self.text_encoder.config, folder, "tokenizer")
        self.schedule: Any = loaded_part(diffusers.DDPMScheduler, folder, subfolder="scheduler")
        self.sampler: Any = loaded_part(diffusers.DDIMScheduler, folder, subfolder="scheduler")
        self.scorer = scorer
        self._check_parts(folder)
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

    def _check_parts(self, folder: Path) -> None:
        """See that U-Net, VAE, text encoder and schedule fit each other."""
        unet, vae, factor = self.unet.config, self.vae.config, self.vae.config.scaling_factor
        betas, times = self.schedule.betas, self.schedule.config.num_train_timesteps
        for part, key, fits, expected, found in (
            ("unet", "in_channels", unet.in_channels == vae.latent_channels, vae.latent_channels, unet.in_channels),
            (
                "unet",
                "cross_attention_dim",
                unet.cross_attention_dim == self.text_encoder.config.hidden_size,
                self.text_encoder.config.hidden_size,
                unet.cross_attention_dim,
            ),
            (
                "vae",
                "scaling_factor",
                isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0,
                "a number above 0",
                factor,
            ),
            (
                "scheduler",
                "num_train_timesteps",
                isinstance(times, int) and 0 < times == len(betas),
                f"the number of betas, {len(betas)}, and not 0",
                times,
            ),
            (
                "scheduler",
                "betas",
                bool(((betas > 0) & (betas <= 1)).all()),
                "numbers above 0 and at most 1",
                f"{float(betas.min())} to {float(betas.max())}" if len(betas) else "none",
            ),
        ):
            if not fits:
                raise ForgeError(
                    "is not as it must be for this model", file=folder / part, key=key, expected=expected, found=found
                )

    def check_sampling(self, steps: int) -> None:
        """See that images can be drawn in so many steps of DDIM.

        Raises:
            ForgeError: where the schedule of the model has no such times.
        """
        known = self.sampler.config.num_train_timesteps
        try:
            self.sampler.set_timesteps(steps)
            times = self.sampler.timesteps
            if not bool(((times >= 0) & (times < known)).all()):
                raise ValueError(f"times from {int(times.min())} to {int(times.max())}")
        except Exception as error:  # whatever schedules and models of anyone raise when first run
            raise ForgeError(
                "the schedule of the model has no such times",
                key="sampling_steps",
                expected=f"{steps} of {known} times",
                found=cause(error),
            ) from error

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
