"""Stable Diffusion 1.x and 2.x, and anything else in their layout: the embedded tiny model among them."""

import hashlib
import json
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.hardware.transfer import upload
from lpo_platform.models.controlnet_dino import ControlNetDinoModel
from lpo_platform.models.lora import merge, read
from lpo_platform.models.weights import digest, load, split

HALF = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}


class StableDiffusion:
    """Loads a StableDiffusionPipeline folder or hub id and owns its parts; every part frozen until a `tune` says else.

    controls: the starting ControlNet of each task. unet, vae: the part from elsewhere. All of them are
    "<folder or hub id>[::<subfolder>]". lora: an adapter merged into the UNet (models/lora.py says which files); what
    is trained then starts at the merged weights, and an exported adapter is relative to them. reward: a latent reward
    model for these latents, what reward.weights=auto means. half_schedule: noises latents in fp16 or bf16, as the
    authors of CPO did; everything else here does it in float32.
    """

    branch: ClassVar[type[nn.Module]] = ControlNetModel
    folders: ClassVar[dict[str, str]] = {"unet": "unet", "text_encoder": "text_encoder"}
    """What the parts that can learn are called in this pipeline's folder."""

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        resolution: int,
        guidance: float,
        num_inference_steps: int,
        controls: dict[str, str] | None = None,
        unet: str | None = None,
        vae: str | None = None,
        lora: str | None = None,
        reward: str | None = None,
        half_schedule: Literal["fp16", "bf16"] | None = None,
    ) -> None:
        self.name, self.weights, self.resolution = name, weights, resolution
        self.guidance, self.num_inference_steps = guidance, num_inference_steps
        self.controls, self.reward, self.half_schedule = dict(controls or {}), reward, half_schedule
        self.changes = {key: place for key, place in (("unet", unet), ("vae", vae), ("lora", lora)) if place}
        self._load_denoiser()
        if lora:
            factors = read(lora, setting="model.lora", part=self.folders["unet"])
            merge(self.unet, factors, setting=f"model.lora={lora}")
        self.vae = self._load(AutoencoderKL, "vae", torch_dtype=torch.float32)
        self._load_text()
        self._finish()
        self._load_process()

    def _load(self, kind: type[Any], part: str, **options: object) -> Any:
        """A part of the pipeline, or what `unet=`, `vae=` put in its place."""
        weights, subfolder, setting = self.weights, part, "model.weights"
        if part in self.changes:
            (weights, subfolder), setting = split(self.changes[part]), f"model.{part}"
        options |= {"subfolder": subfolder} if subfolder else {}
        return load(kind.from_pretrained, weights, setting=setting, **options)

    def _load_denoiser(self) -> None:
        self.unet = self._load(UNet2DConditionModel, "unet", torch_dtype=torch.float32)

    def _load_process(self) -> None:
        self.process = DDIM.from_config(self._load(DDIMScheduler, "scheduler").config, half=HALF[self.half_schedule])

    def _load_text(self) -> None:
        self.text_encoder = self._load(CLIPTextModel, "text_encoder", dtype=torch.float32)
        self.tokenizer = self._load(CLIPTokenizer, "tokenizer")

    def _finish(self) -> None:
        """Freezes the parts and works out the shape of latents."""
        for part in self.parts:
            part.requires_grad_(False).eval()
        for part in (self.unet, self.vae):
            part.to(memory_format=torch.channels_last)  # a fifth faster on CPUs, more on GPUs
        size = self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_shape = (self.vae.config.latent_channels, size, size)

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return (self.text_encoder,)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return self.unet, self.vae, *self.text_encoders

    @property
    def device(self) -> torch.device:
        return self.process.device

    @property
    def _shift(self) -> float:
        """What FLUX's autoencoder subtracts from latents before it scales them."""
        return self.vae.config.shift_factor or 0.0

    @property
    def fingerprint(self) -> str:
        """Changes with every weight file and with the resolution: the model's part of a cache key."""
        changes = [f"{key}={digest(place)}" for key, place in self.changes.items()]
        return hashlib.sha256(json.dumps([digest(self.weights), self.resolution, *changes]).encode()).hexdigest()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "StableDiffusion":
        """Moves every part; dtype is that of the frozen parts (a trained UNet keeps its own)."""
        for part in self.parts:
            learns = any(p.requires_grad for p in part.parameters())
            part.to(device, dtype=None if learns else dtype)
        self.process.to(device)
        return self

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids padded to the tokenizer's length, (B, L) int64 on the CPU."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(prompts, **options).input_ids

    def embed(self, tokens: Tensor) -> Tensor:
        """Last hidden state of the text encoder: (B, L) -> (B, L, D)."""
        return self.text_encoder(upload(tokens, self.device)).last_hidden_state

    def empty_text(self) -> Tensor:
        """What guidance leads away from, (1, L, D): the embedding of the empty prompt."""
        return self.embed(self.tokenize([""]))

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> Tensor:
        """VAE posterior of pixels (B, 3, H, W) in [0, 1]: mean and log-variance, (B, 2C, h, w) float32."""
        pixels = pixels.to(self.device, self.vae.dtype)
        return self.vae.encode(2 * pixels - 1).latent_dist.parameters.float()

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A draw of the posterior in the UNet's scale: (B, 2C, h, w), (B, C, h, w) -> (B, C, h, w) float32."""
        mean, log_variance = moments.float().chunk(2, 1)
        std = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return (mean + std * noise - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents in the UNet's scale -> pixels (B, 3, H, W) float32 in [0, 1]; a gradient of latents passes."""
        latents = (latents / self.vae.config.scaling_factor + self._shift).to(self.vae.dtype)
        return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    def load_control(self, task: str, weights: str, subfolder: str | None = None) -> ControlNetModel:
        """The ControlNet that a run starts from.

        weights: "auto" is the model's own for this task, "unet" a fresh one initialised from the denoiser, else a
        folder or hub id, of a ControlNet with DINO too. UserError when "auto" knows none.
        """
        if weights == "unet":
            return self._control_from_denoiser().to(memory_format=torch.channels_last)
        if weights == "auto":
            if task not in self.controls:
                known = ", ".join(sorted(self.controls)) or "none"
                raise UserError(
                    f"control.weights=auto: model={self.name} names no ControlNet for task={task} (it has: {known}). "
                    "Pass control.weights=<folder or hub id>, or control.weights=unet to start a new one"
                )
            weights, subfolder = split(self.controls[task])
        options = {"setting": "control.weights"} | ({"subfolder": subfolder} if subfolder else {})
        config = load(self.branch.load_config, weights, **options)
        if config.get("global_pool_conditions") or config.get("controlnet_conditioning_channel_order") == "bgr":
            raise UserError(f"control.weights={weights}: reads pooled or BGR conditions, which no task has")
        kind = ControlNetDinoModel if "adapter_size" in config else self.branch
        control = load(kind.from_pretrained, weights, torch_dtype=torch.float32, **options)
        return control.to(memory_format=torch.channels_last)

    def _control_from_denoiser(self) -> ControlNetModel:
        """from_unet, its condition embedding as deep as this VAE's down-sampling.

        The last layer of that embedding starts at N(0, 0.1) instead of 0: behind the zero convolutions a second zero
        leaves the condition without a gradient for the first hundred steps of a short training.
        """
        depth = len(self.vae.config.block_out_channels)
        channels = (16, 32, 96, 256)[:depth] if depth >= 4 else (8, 16, 32)[:depth]
        control = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=channels)
        if depth < 4:
            nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight, std=0.1)
        return control
