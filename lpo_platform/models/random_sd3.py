"""Stable Diffusion 3 at a given shape with random weights, as random_weights.py has Stable Diffusion."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lpo_platform.diffusion.flow import Flow
from lpo_platform.models.random_flux import FLUX
from lpo_platform.models.random_weights import SDXL, Config, HashedWords, RandomStableDiffusion, Shape
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3


@dataclass(frozen=True)
class SD3Shape(Shape):
    """unet: the transformer; text_encoder, text_encoder_2: CLIP; text_encoder_3: T5. The rest as StableDiffusion3."""

    text_encoder_3: Config | None = field(default=None, repr=False)
    t5: bool = True
    max_tokens: int = 256
    control_layers: int = 12


SD3 = SD3Shape(
    name="sd3",
    resolution=1024,
    unet={
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    vae=FLUX.vae | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    text_encoder=SDXL.text_encoder,
    text_encoder_2=SDXL.text_encoder_2,
    text_encoder_3=FLUX.text_encoder_2,
)
SD35M = replace(
    SD3,
    name="sd35m",
    unet=SD3.unet | {"qk_norm": "rms_norm", "pos_embed_max_size": 384, "dual_attention_layers": list(range(13))},
)
SD35L = replace(
    SD3,
    name="sd35l",
    unet=SD3.unet
    | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
    control_layers=19,
)


class RandomStableDiffusion3(StableDiffusion3):
    """StableDiffusion3 that draws its weights instead of loading them."""

    def __init__(self, shape: SD3Shape, *, resolution: int | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.weights, self.controls, self.changes, self.reward = shape.name, "random", {}, {}, None
        self.settings, self.noise, self.resolution = {}, "sde", resolution or shape.resolution
        self.guidance, self.num_inference_steps = 1.0, 1
        self.t5, self.max_tokens, self.control_layers = shape.t5, shape.max_tokens, shape.control_layers
        with torch.device(device):
            self.unet = SD3Transformer2DModel.from_config(shape.unet)
            self.vae = AutoencoderKL.from_config(shape.vae)
            clips = shape.text_encoder, shape.text_encoder_2
            self.clip, self.clip_2 = (CLIPTextModelWithProjection(CLIPTextConfig(**clip)) for clip in clips)
            self.text_encoder = T5EncoderModel(T5Config(**shape.text_encoder_3)) if self.t5 else self.clip
        self.tokenizer, self.tokenizer_2 = HashedWords(self.clip.config), HashedWords(self.clip_2.config)
        if self.t5:
            words = {"vocab_size": self.text_encoder.config.vocab_size, "bos_token_id": 0, "eos_token_id": 1}
            self.tokenizer_3 = HashedWords(SimpleNamespace(max_position_embeddings=self.max_tokens, **words))
        self.process = Flow.from_config({"shift": 3.0}, 0, own_grid=True).to(device)
        self._finish()

    new_control = RandomStableDiffusion.new_control

    def any_tokens(self, count: int) -> Tensor:
        clips = ((clip.config.vocab_size, clip.config.max_position_embeddings) for clip in (self.clip, self.clip_2))
        sizes = [*clips, *([(self.text_encoder.config.vocab_size, self.max_tokens)] if self.t5 else [])]
        return torch.cat([torch.randint(v, (count, length), device=self.device) for v, length in sizes], 1)
