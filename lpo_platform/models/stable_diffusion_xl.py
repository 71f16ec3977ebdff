"""Stable Diffusion XL (arXiv:2307.01952): two text encoders, and their pooled text and the picture's size beside t.

Its text is packed into one tensor, so that caches, gathers and rollouts handle one whatever the model.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from lpo_platform.config.errors import UserError
from lpo_platform.hardware.transfer import upload
from lpo_platform.models import fields
from lpo_platform.models.stable_diffusion import StableDiffusion

PIXELS_PER_LATENT = 8  # of every SDXL autoencoder


def pack(sequence: Tensor, pooled: Tensor) -> Tensor:
    """(B, L, D), (B, P) with P <= D -> (B, L + 1, D): the pooled vector is the last row, padded with zeros."""
    row = F.pad(pooled, (0, sequence.shape[-1] - pooled.shape[-1]))
    return torch.cat([sequence, row.unsqueeze(1)], 1)


def unpack(text: Tensor, pooled_dim: int) -> tuple[Tensor, Tensor]:
    """The inverse of pack: (B, L, D) and (B, pooled_dim)."""
    return text[:, :-1], text[:, -1, :pooled_dim]


class StableDiffusionXL(StableDiffusion):
    """Loads a StableDiffusionXLPipeline folder or hub id; settings as for StableDiffusion.

    The stock autoencoder overflows in float16, its configuration says so, and it stays in float32;
    `vae=madebyollin/sdxl-vae-fp16-fix` does not overflow and takes half the time and memory.
    """

    pipelines: ClassVar[tuple[str, str]] = ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline")
    index: ClassVar[fields.Fields] = fields.INDEX_XL

    def stock_parts(self) -> dict[str, Any]:
        second = {"text_encoder_2": self.text_encoder_2, "tokenizer_2": self.tokenizer_2}
        return {"text_encoder": self.text_encoder, "add_watermarker": False} | second

    def _load_text(self) -> None:
        super()._load_text()
        self.text_encoder_2 = self._load_model(CLIPTextModelWithProjection, "text_encoder_2", fields.CLIP_TEXT)
        self.tokenizer_2 = self._load_tokenizer(CLIPTokenizer, "tokenizer_2", self.text_encoder_2)

    def _check_scheduler(self, config: Mapping[str, Any]) -> None:
        """SDXL's stock pipelines take the scheduler as it is."""

    @property
    def _encoders(self) -> dict[str, nn.Module]:
        return super()._encoders | {"text_encoder_2": self.text_encoder_2}

    def _check_added(self) -> None:
        """UserError for a UNet that is not told the pooled text and the picture's size."""
        config = self.unet.config
        self._fits("addition_embed_type", config.addition_embed_type, "text_time", "SDXL needs")
        width = self.text_encoder_2.config.projection_dim + 6 * config.addition_time_embed_dim
        told = config.projection_class_embeddings_input_dim
        self._fits("projection_class_embeddings_input_dim", told, width, "its pooled text and six sizes have")

    def _finish(self) -> None:
        """Raises UserError where the time_ids would name another size than the picture's."""
        super()._finish()
        if self.latent_shape[1] * PIXELS_PER_LATENT != self.resolution:
            raise UserError(f"model.resolution={self.resolution}: SDXL needs an autoencoder that divides it by 8")

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return self.text_encoder, self.text_encoder_2

    @property
    def _vae_overflows(self) -> bool:
        return bool(self.vae.config.force_upcast)

    @property
    def unread_text(self) -> tuple[nn.Module, ...]:
        """The text is the state before the last layer."""
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder)
        return encoder.encoder.layers[-1], encoder.final_layer_norm

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids of both tokenizers, which pad differently: (B, 2, L) int64 on the CPU."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = [tokenizer(prompts, **options).input_ids for tokenizer in (self.tokenizer, self.tokenizer_2)]
        return torch.stack(ids, 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Packed text: (B, 2, L) -> (B, L + 1, D)."""
        return encode_text(*self.text_encoders, upload(tokens, self.device))

    def empty_text(self) -> Tensor:
        """What guidance leads away from: zeros, as StableDiffusionXLPipeline has it without a negative prompt, or where
        model_index.json says so the embedding of the empty prompt."""
        if not self.settings.get("force_zeros_for_empty_prompt", True):
            return self.embed(self.tokenize([""]))
        width = sum(encoder.config.hidden_size for encoder in self.text_encoders)
        shape = (1, self.tokenizer.model_max_length + 1, width)
        return torch.zeros(shape, dtype=self.text_encoder.dtype, device=self.device)


def encode_text(first: nn.Module, second: nn.Module, tokens: Tensor, place: Tensor | None = None) -> Tensor:
    """Token ids (B, 2, L) -> packed text (B, L + 1, D1 + D2).

    The sequence is the state before each encoder's last layer, without the final norm; the pooled vector is the second
    encoder's projection of its end token, from the last layer. place: where that token is, (B,); None leaves it to the
    encoder, which under SDXL's configuration takes the highest id for the end.
    """
    one = first(tokens[:, 0], output_hidden_states=True)
    two = second(tokens[:, 1], output_hidden_states=True)
    pooled = two.text_embeds if place is None else second.text_projection(at_place(two.last_hidden_state, place))
    return pack(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), pooled)


def at_place(states: Tensor, place: Tensor) -> Tensor:
    """The states (B, L, D) at one place of each row, (B, D)."""
    return states[torch.arange(len(states), device=states.device), place]
