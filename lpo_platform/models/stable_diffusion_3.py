"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): a transformer that predicts velocities, conditioned on three texts.

The text is packed into one tensor as that of SDXL is: the states of both CLIP encoders side by side and padded with
zeros, those of T5 behind them, and the pooled vectors of both CLIP encoders as the last row.
"""

import hashlib
import json
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance, SamplingSteps
from lpo_platform.diffusion.flow import Flow, Noise
from lpo_platform.hardware.transfer import upload
from lpo_platform.models import fields, sd3_transformer
from lpo_platform.models.stable_diffusion import StableDiffusion, without_spread
from lpo_platform.models.stable_diffusion_xl import pack


class StableDiffusion3(StableDiffusion):
    """Loads a StableDiffusion3Pipeline folder or hub id and owns its parts, as StableDiffusion does.

    The attribute `unet` is the transformer. The attribute `text_encoder`, which can be trained, is T5, or without it
    the first CLIP encoder.

    Args:
        name, weights, resolution, guidance, num_inference_steps, controls, lora, reward, variant, revision, config,
            toy: see StableDiffusion.
        t5: whether T5 is read. Without it, and where the folder has none, its rows of the text are zeros.
        max_tokens: length of T5's text. Published: 256; Flow-GRPO, DiffusionNFT and DiNa-LRM train with 128.
        control_layers: blocks of a new ControlNet, fewer than the transformer has.
        noise: of a step of the sampler with eta above 0 (diffusion/flow.py).
        transformer, vae, text_encoder, text_encoder_2, text_encoder_3, tokenizer, tokenizer_2, tokenizer_3: the part
            from elsewhere, as <folder or hub id>[::<subfolder>].
    """

    denoiser: ClassVar[str] = "transformer"
    pipelines: ClassVar[tuple[str, str]] = ("StableDiffusion3Pipeline", "StableDiffusion3ControlNetPipeline")
    scheduler: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    branch: ClassVar[type[nn.Module]] = SD3ControlNetModel
    lora_targets: ClassVar[tuple[str, ...]] = tuple(
        f"attn.{layer}"  # as in yifan123/flow_grpo: of both streams, without the second attention to the picture
        for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    )
    index: ClassVar[fields.Fields] = fields.INDEX_SD3
    branch_fields: ClassVar[fields.Fields] = fields.SD3_CONTROLNET

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        resolution: Count,
        guidance: Guidance,
        num_inference_steps: SamplingSteps,
        t5: bool = True,
        max_tokens: Count = 256,
        control_layers: Count = 12,
        noise: Noise = "sde",
        controls: dict[str, str] | None = None,
        transformer: str | None = None,
        vae: str | None = None,
        text_encoder: str | None = None,
        text_encoder_2: str | None = None,
        text_encoder_3: str | None = None,
        tokenizer: str | None = None,
        tokenizer_2: str | None = None,
        tokenizer_3: str | None = None,
        lora: str | None = None,
        reward: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        config: str | None = None,
        toy: bool = False,
    ) -> None:
        self.t5, self.max_tokens, self.control_layers, self.noise = t5, max_tokens, control_layers, noise
        self.elsewhere = {
            "transformer": transformer, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2,
            "text_encoder_3": text_encoder_3, "tokenizer": tokenizer, "tokenizer_2": tokenizer_2,
            "tokenizer_3": tokenizer_3,
        }  # fmt: skip
        super().__init__(
            name=name, weights=weights, resolution=resolution, guidance=guidance,
            num_inference_steps=num_inference_steps, controls=controls, vae=vae, lora=lora, reward=reward,
            variant=variant, revision=revision, config=config, toy=toy,
        )  # fmt: skip

    @property
    def folders(self) -> dict[str, str]:
        return {"unet": "transformer", "text_encoder": "text_encoder_3" if self.t5 else "text_encoder"}

    def stock_parts(self) -> dict[str, Any]:
        encoders = {"text_encoder_3": None} | self._encoders
        return encoders | {"tokenizer_2": self.tokenizer_2, "tokenizer_3": self.tokenizer_3 if self.t5 else None}

    def stock_scheduler(self, found: Any) -> Any:
        return found

    def stock_call(self, latents: Tensor) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "max_sequence_length": self.max_tokens, "latents": latents}

    def stock_control(self, pipeline: Any, images: Tensor) -> dict[str, Any]:
        without_spread(pipeline.vae)
        return {"control_image": 2 * images - 1}  # a tensor is taken as it is

    def _read_index(self) -> None:
        self.changes |= {part: place for part, place in self.elsewhere.items() if place}
        super()._read_index()
        if "text_encoder_3" in self.settings and "text_encoder_3" not in self.changes:
            self.t5 = self.t5 and self.settings["text_encoder_3"][0] is not None

    def _load_denoiser(self) -> None:
        self.unet = self._load_model(SD3Transformer2DModel, "transformer", fields.SD3)

    def _load_text(self) -> None:
        clip = CLIPTextModelWithProjection
        self.clip, self.clip_2 = (
            self._load_model(clip, part, fields.CLIP_TEXT) for part in ("text_encoder", "text_encoder_2")
        )
        self.tokenizer = self._load_tokenizer(CLIPTokenizer, "tokenizer", self.clip)
        self.tokenizer_2 = self._load_tokenizer(CLIPTokenizer, "tokenizer_2", self.clip_2)
        self.text_encoder = self.clip
        if self.t5:
            self.text_encoder = self._load_model(T5EncoderModel, "text_encoder_3", fields.T5)
            self.tokenizer_3 = self._load_tokenizer(T5TokenizerFast, "tokenizer_3", self.text_encoder)

    @property
    def _encoders(self) -> dict[str, nn.Module]:
        clips = {"text_encoder": self.clip, "text_encoder_2": self.clip_2}
        return clips | ({"text_encoder_3": self.text_encoder} if self.t5 else {})

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return tuple(self._encoders.values())

    def _check_fit(self) -> None:
        config, latents = self.unet.config, self.vae.config.latent_channels
        clips = self.clip.config, self.clip_2.config
        self._fits("in_channels", config.in_channels, latents, "the autoencoder's latents have")
        self._fits("out_channels", config.out_channels or config.in_channels, latents, "the autoencoder's latents have")
        pooled = sum(clip.projection_dim for clip in clips)
        self._fits("pooled_projection_dim", config.pooled_projection_dim, pooled, "both CLIP encoders project to")
        widest = sum(clip.hidden_size for clip in clips)
        if max(widest, pooled) > config.joint_attention_dim:  # padding by a negative number would cut them off
            self._fits("joint_attention_dim", config.joint_attention_dim, widest, "both CLIP encoders have")
        if self.t5:
            self._fits("joint_attention_dim", config.joint_attention_dim, self.text_encoder.config.d_model, "T5 has")

    def _load_process(self) -> None:
        """Raises UserError where patches do not divide the picture, or are more than there are position embeddings."""
        config, side = self.unet.config, self.latent_shape[1]
        each = self.resolution // side * config.patch_size
        where = f"model.resolution={self.resolution}"
        if self.resolution % each:
            raise UserError(f"{where}: model={self.name} needs a multiple of {each}")
        if side // config.patch_size > config.pos_embed_max_size:
            most = each * config.pos_embed_max_size
            raise UserError(f"{where}: model={self.name} has places for at most {most} pixels (pos_embed_max_size)")
        scheduler = self._scheduler_config(FlowMatchEulerDiscreteScheduler, fields.FLOW_MATCH)
        with self._named("scheduler"):
            tokens = (side // config.patch_size) ** 2
            self.process = Flow.from_config(scheduler, tokens, own_grid=True, noise=self.noise)

    @property
    def fingerprint(self) -> str:
        """Includes what text and losing conditions in a cache depend on."""
        settings = [super().fingerprint, self.t5, self.max_tokens]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids of both CLIP tokenizers and of T5's: (B, L + L + L5) int64 on the CPU; without T5, L5 = 0."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        length = self.tokenizer.model_max_length  # of both, as in the stock pipeline
        ids = [tokens(prompts, max_length=length, **options).input_ids for tokens in (self.tokenizer, self.tokenizer_2)]
        if self.t5:
            ids.append(self.tokenizer_3(prompts, max_length=self.max_tokens, **options).input_ids)
        return torch.cat(ids, 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Packed text: (B, L + L + L5) -> (B, L + max_tokens + 1, D)."""
        length, width = self.tokenizer.model_max_length, self.unet.config.joint_attention_dim
        first, second, third = upload(tokens, self.device).tensor_split((length, 2 * length), 1)
        clips = [clip(ids, output_hidden_states=True) for clip, ids in ((self.clip, first), (self.clip_2, second))]
        states = torch.cat([clip.hidden_states[-2] for clip in clips], -1)
        states = F.pad(states, (0, width - states.shape[-1]))
        if self.t5:
            others = self.text_encoder(third).last_hidden_state
        else:
            others = states.new_zeros(len(states), self.max_tokens, width)
        return pack(torch.cat([states, others], 1), torch.cat([clip.text_embeds for clip in clips], -1))

    def unread_control(self, control: SD3ControlNetModel) -> list[nn.Module]:
        """Parts of a ControlNet that do not affect the transformer, so that no gradient reaches them.

        No residual is added after the transformer's own last block. So these parts are all blocks after the last one
        whose residual is added (of 23 blocks for a transformer of 24 the last one), and the text output of that block.
        """
        blocks, zero, count = control.transformer_blocks, control.controlnet_blocks, len(self.unet.transformer_blocks)
        last = sd3_transformer.served(count - 2, count, len(blocks))
        return [*sd3_transformer.unread(blocks[last]), *blocks[last + 1 :], *zero[last + 1 :]]

    def _check_control(self, control: SD3ControlNetModel, where: str) -> None:
        """UserError for a ControlNet of another transformer; its number of blocks is its own."""
        own, wanted = control.config, self.unet.config
        same = ["in_channels", "patch_size", "attention_head_dim", "num_attention_heads", "pooled_projection_dim"]
        same += [] if own.joint_attention_dim is None else ["joint_attention_dim"]
        for name in same:
            if own[name] != wanted[name]:
                raise UserError(
                    f"{where}: {name}={own[name]}, and the transformer of model={self.name} has {wanted[name]}"
                )
        if own.num_layers > wanted.num_layers:
            raise UserError(
                f"{where}: num_layers={own.num_layers}, and the transformer of model={self.name} has "
                f"{wanted.num_layers}: some blocks of this ControlNet would have no effect"
            )

    def _control_from_denoiser(self) -> SD3ControlNetModel:
        """SD3ControlNetModel.from_transformer, which would write its own settings into the transformer's configuration.

        The embedder of the condition starts at 0, as the branch's output layers do. In a tiny model, whose training is
        short, it starts as a copy of the embedder of the latents, as in FLUX.
        """
        config, most = dict(self.unet.config), self.unet.config.num_layers - 1
        if not 1 <= self.control_layers <= most:  # the last block has no text to hand on, unlike those of a ControlNet
            raise UserError(f"model.control_layers={self.control_layers}: what works: 1 to {most}")
        config |= {"num_layers": self.control_layers, "extra_conditioning_channels": 0}
        control = SD3ControlNetModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
        for part in ("pos_embed", "time_text_embed", "context_embedder"):
            getattr(control, part).load_state_dict(getattr(self.unet, part).state_dict())
        blocks = zip(control.transformer_blocks, self.unet.transformer_blocks, strict=False)
        for block, start in blocks:
            block.load_state_dict(start.state_dict())
        if len(self.vae.config.block_out_channels) < 4:
            control.pos_embed_input.proj.load_state_dict(self.unet.pos_embed.proj.state_dict())
        return control
