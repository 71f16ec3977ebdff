"""FLUX.1: a transformer on packed latents that predicts velocities, conditioned on T5 and on CLIP's pooled text.

Its text is packed into one tensor as that of SDXL is: T5's states, and CLIP's pooled vector as the last row.
"""

import hashlib
import json
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance, NotNegative, SamplingSteps, Whole
from lpo_platform.diffusion.flow import Flow, Noise
from lpo_platform.hardware.transfer import upload
from lpo_platform.models import fields, flux_transformer
from lpo_platform.models.policy import guides
from lpo_platform.models.stable_diffusion import StableDiffusion, without_spread
from lpo_platform.models.stable_diffusion_xl import pack


class Flux(StableDiffusion):
    """Loads a FluxPipeline folder or hub id and owns its parts, as StableDiffusion does. `unet` is the transformer.

    The attribute text_encoder is T5, the pipeline's text_encoder_2, because it can learn; `clip` gives the pooled text.

    Args:
        name, weights, resolution, num_inference_steps, controls, lora, reward, variant, revision, toy: see
            StableDiffusion.
        guidance: classifier-free guidance; 1 is none.
        distilled_guidance: the guidance that the model reads as an input, in training and in sampling. Published: 3.5.
        max_tokens: length of T5's text. Published: 512.
        control_layers: double and single blocks of a new ControlNet.
        noise: of a step of the sampler with eta above 0 (diffusion/flow.py).
        transformer, vae, text_encoder (CLIP), tokenizer: the part from elsewhere, as <folder or hub id>[::<subfolder>].
    """

    denoiser: ClassVar[str] = "transformer"
    pipelines: ClassVar[tuple[str, str]] = ("FluxPipeline", "FluxControlNetPipeline")
    scheduler: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    branch: ClassVar[type[nn.Module]] = FluxControlNetModel
    folders: ClassVar[dict[str, str]] = {"unet": "transformer", "text_encoder": "text_encoder_2"}
    index: ClassVar[fields.Fields] = fields.INDEX_FLUX
    branch_fields: ClassVar[fields.Fields] = fields.FLUX_CONTROLNET

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        resolution: Count,
        guidance: Guidance,
        num_inference_steps: SamplingSteps,
        distilled_guidance: NotNegative = 3.5,
        max_tokens: Count = 512,
        control_layers: tuple[Count, Whole] = (4, 4),
        noise: Noise = "sde",
        controls: dict[str, str] | None = None,
        transformer: str | None = None,
        vae: str | None = None,
        text_encoder: str | None = None,
        tokenizer: str | None = None,
        lora: str | None = None,
        reward: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        toy: bool = False,
    ) -> None:
        self.distilled_guidance, self.max_tokens, self.control_layers = distilled_guidance, max_tokens, control_layers
        self.noise = noise
        self.elsewhere = {"transformer": transformer, "text_encoder": text_encoder, "tokenizer": tokenizer}
        super().__init__(
            name=name, weights=weights, resolution=resolution, guidance=guidance,
            num_inference_steps=num_inference_steps, controls=controls, vae=vae, lora=lora, reward=reward,
            variant=variant, revision=revision, toy=toy,
        )  # fmt: skip

    def stock_parts(self) -> dict[str, Any]:
        encoders = {"text_encoder": self.clip, "text_encoder_2": self.text_encoder}
        return encoders | {"tokenizer_2": self.t5_tokenizer}

    def stock_scheduler(self, found: Any) -> Any:
        return found

    def stock_call(self, latents: Tensor) -> dict[str, Any]:
        given = {"guidance_scale": self.distilled_guidance, "max_sequence_length": self.max_tokens}
        if guides(self.guidance):
            given |= {"true_cfg_scale": self.guidance, "negative_prompt": [""] * len(latents)}
        return given | {"latents": flux_transformer.patches(latents)}

    def stock_control(self, pipeline: Any, images: Tensor) -> dict[str, Any]:
        without_spread(pipeline.vae)
        return {"control_image": 2 * images - 1}  # a tensor is taken as it is

    def _load_denoiser(self) -> None:
        self.changes |= {part: place for part, place in self.elsewhere.items() if place}
        self.unet = self._load_model(FluxTransformer2DModel, "transformer", fields.FLUX)
        self.unet.distilled_guidance = self.distilled_guidance

    def _load_text(self) -> None:
        self.text_encoder = self._load_model(T5EncoderModel, "text_encoder_2", fields.T5)
        self.t5_tokenizer = self._load_tokenizer(T5TokenizerFast, "tokenizer_2", self.text_encoder)
        self.clip = self._load_model(CLIPTextModel, "text_encoder", fields.CLIP_TEXT)
        self.tokenizer = self._load_tokenizer(CLIPTokenizer, "tokenizer", self.clip)

    @property
    def _encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.clip, "text_encoder_2": self.text_encoder}

    def _check_fit(self) -> None:
        config, latents = self.unet.config, self.vae.config.latent_channels
        self._fits("in_channels", config.in_channels, 4 * latents, "2 x 2 of the autoencoder's latents have")
        self._fits("out_channels", config.out_channels or config.in_channels, 4 * latents, "2 x 2 latents have")
        self._fits("joint_attention_dim", config.joint_attention_dim, self.text_encoder.config.d_model, "T5 has")
        self._fits("pooled_projection_dim", config.pooled_projection_dim, self.clip.config.hidden_size, "CLIP has")

    def _load_process(self) -> None:
        """Raises UserError where the latents cannot be packed into tokens of 2 x 2."""
        _, height, width = self.latent_shape
        if height % 2:
            needed = 2 * self.resolution / height
            raise UserError(f"model.resolution={self.resolution}: FLUX needs a multiple of {needed:g}")
        config = self._scheduler_config(FlowMatchEulerDiscreteScheduler, fields.FLOW_MATCH)
        with self._named("scheduler"):
            self.process = Flow.from_config(config, height * width // 4, noise=self.noise)

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return self.text_encoder, self.clip

    @property
    def fingerprint(self) -> str:
        """Includes what text and losing conditions in a cache depend on."""
        settings = [super().fingerprint, self.max_tokens, self.distilled_guidance]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids of T5 and then of CLIP: (B, L5 + L) int64 on the CPU."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        t5 = self.t5_tokenizer(prompts, max_length=self.max_tokens, **options)
        return torch.cat([t5.input_ids, super().tokenize(prompts)], 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Packed text: (B, L5 + L) -> (B, L5 + 1, D)."""
        t5, clip = upload(tokens, self.device).split([self.max_tokens, tokens.shape[1] - self.max_tokens], 1)
        return pack(self.text_encoder(t5).last_hidden_state, self.clip(clip).pooler_output)

    def _check_control(self, control: FluxControlNetModel, where: str) -> None:
        """UserError for a ControlNet of another transformer; its number of blocks is its own."""
        for name in (
            "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
            "pooled_projection_dim", "guidance_embeds",
        ):  # fmt: skip
            own, wanted = control.config[name], self.unet.config[name]
            if own != wanted:
                raise UserError(f"{where}: {name}={own}, and the transformer of model={self.name} has {wanted}")

    def _control_from_denoiser(self) -> FluxControlNetModel:
        """from_transformer(), whose embedder of the condition starts at 0, as the branch's output layers do.

        For the short training of a tiny model it starts as a copy of the latents' instead: with both at 0 the
        condition has no gradient at first (as in StableDiffusion).
        """
        config, (double, single) = self.unet.config, self.control_layers
        control = FluxControlNetModel.from_transformer(
            self.unet,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=config.attention_head_dim,
            num_attention_heads=config.num_attention_heads,
        )
        if len(self.vae.config.block_out_channels) < 4:
            control.controlnet_x_embedder.load_state_dict(self.unet.x_embedder.state_dict())
        return control
