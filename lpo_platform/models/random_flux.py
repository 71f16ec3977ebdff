"""FLUX at a given shape with random weights, as random_weights.py has Stable Diffusion."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lpo_platform.diffusion.flow import Flow
from lpo_platform.models.flux import Flux
from lpo_platform.models.random_weights import SD15, HashedWords, RandomStableDiffusion, Shape


@dataclass(frozen=True)
class FluxShape(Shape):
    """unet: the transformer; text_encoder: CLIP; text_encoder_2: T5. The rest as Flux has it."""

    max_tokens: int = 512
    control_layers: tuple[int, int] = (4, 4)


# FLUX.1-dev where it differs from the defaults of its classes
FLUX = FluxShape(
    name="flux",
    resolution=1024,
    unet={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    vae=SD15.vae
    | {"sample_size": 1024, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    | {"use_quant_conv": False, "use_post_quant_conv": False},
    text_encoder=SD15.text_encoder,
    text_encoder_2={"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    | {"feed_forward_proj": "gated-gelu"},
)


class RandomFlux(Flux):
    """Flux that draws its weights instead of loading them."""

    def __init__(self, shape: FluxShape, *, resolution: int | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.weights, self.controls, self.changes, self.reward = shape.name, "random", {}, {}, None
        self.resolution = resolution or shape.resolution
        self.guidance, self.num_inference_steps = 1.0, 1
        self.max_tokens, self.control_layers = shape.max_tokens, shape.control_layers
        with torch.device(device):
            self.unet = FluxTransformer2DModel.from_config(shape.unet)
            self.vae = AutoencoderKL.from_config(shape.vae)
            self.text_encoder = T5EncoderModel(T5Config(**shape.text_encoder_2))
            self.clip = CLIPTextModel(CLIPTextConfig(**shape.text_encoder))
        self.unet.distilled_guidance = 3.5
        words = {"vocab_size": self.text_encoder.config.vocab_size, "bos_token_id": 0, "eos_token_id": 1}
        self.t5_tokenizer = HashedWords(SimpleNamespace(max_position_embeddings=self.max_tokens, **words))
        self.tokenizer = HashedWords(self.clip.config)
        self.process = Flow(shift=3.0).to(device)
        self._finish()

    new_control = RandomStableDiffusion.new_control

    def any_tokens(self, count: int) -> Tensor:
        clip, t5 = self.clip.config, self.text_encoder.config
        sizes = (t5.vocab_size, self.max_tokens), (clip.vocab_size, clip.max_position_embeddings)
        return torch.cat([torch.randint(v, (count, length), device=self.device) for v, length in sizes], 1)
