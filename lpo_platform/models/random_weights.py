"""Stable Diffusion at a given shape with random weights, which a benchmark can use without a download.

SD15, SD21 and SDXL are the published models written down as data; `tiny` is read from the embedded model's own
configuration files.
"""

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lpo_platform.diffusion import noise
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.weights import ASSETS

Config = dict[str, Any]
# layers of ControlNets, those of transformers too, that start at 0
ZERO = (
    "controlnet_down_blocks", "controlnet_mid_block", "controlnet_blocks", "controlnet_single_blocks",
    "controlnet_x_embedder", "pos_embed_input",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The configurations of a Stable Diffusion's parts, in the words of diffusers and transformers."""

    name: str
    resolution: int
    unet: Config = field(repr=False)
    vae: Config = field(repr=False)
    text_encoder: Config = field(repr=False)
    text_encoder_2: Config | None = field(default=None, repr=False)


SD15 = Shape(
    name="sd15",
    resolution=512,
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    vae={
        "sample_size": 512,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
)

SD21 = replace(
    SD15,
    name="sd21",
    unet=SD15.unet
    | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    text_encoder=SD15.text_encoder
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
)

SDXL = Shape(
    name="sdxl",
    resolution=1024,
    unet={
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae=SD15.vae | {"sample_size": 1024, "scaling_factor": 0.13025},
    text_encoder=SD15.text_encoder,
    text_encoder_2=SD15.text_encoder
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
)


def tiny() -> Shape:
    """The embedded model's shape."""
    read = lambda part: json.loads((ASSETS / "tiny" / part / "config.json").read_text(encoding="utf-8"))  # noqa: E731
    return Shape("tiny", 64, read("unet"), read("vae"), read("text_encoder"))


class HashedWords:
    """A tokenizer without a vocabulary: the id of a word is a hash of it. Start and end are in their places."""

    def __init__(self, config: CLIPTextConfig) -> None:
        self.model_max_length, self.words = config.max_position_embeddings, config.vocab_size - 2
        self.start, self.end = config.bos_token_id, config.eos_token_id

    def __call__(self, prompts: list[str], **options: object) -> SimpleNamespace:
        """Ids padded with the end token, as StableDiffusion.tokenize asks for: input_ids (B, L) int64."""
        rows = torch.full((len(prompts), self.model_max_length), self.end)
        rows[:, 0] = self.start
        for row, prompt in zip(rows, prompts, strict=True):
            ids = [noise.key(word) % self.words for word in prompt.split()][: self.model_max_length - 2]
            row[1 : 1 + len(ids)] = torch.tensor(ids)
        return SimpleNamespace(input_ids=rows)


class RandomStableDiffusion(StableDiffusion):
    """StableDiffusion that draws its weights instead of loading them. On the meta device it costs neither time nor
    memory, and a step on it can be counted but not computed."""

    def __init__(self, shape: Shape, *, resolution: int | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.weights, self.controls, self.changes, self.settings = shape.name, "random", {}, {}, {}
        self.reward = None
        self.resolution = resolution or shape.resolution
        self.guidance, self.num_inference_steps = 1.0, 1
        with torch.device(device):
            self.unet = UNet2DConditionModel.from_config(shape.unet)
            self.vae = AutoencoderKL.from_config(shape.vae)
            self._draw_text(shape)
        self.process = DDIM().to(device)
        for part in self.parts:
            part.requires_grad_(False).eval()
        size = self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_shape = (self.vae.config.latent_channels, size, size)

    def _draw_text(self, shape: Shape) -> None:
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**shape.text_encoder))
        self.tokenizer = HashedWords(self.text_encoder.config)

    def any_tokens(self, count: int) -> Tensor:
        """Ids of `count` texts of full length, (B, L) int64 on the device."""
        text = self.text_encoder.config
        return torch.randint(text.vocab_size, (count, text.max_position_embeddings), device=self.device)

    def new_control(self) -> ControlNetModel:
        """A ControlNet of this denoiser. Its zero layers are drawn, too, so that its condition has an effect."""
        with torch.device(self.device):
            control = self.load_control("", "unet")
        for name, weight in control.named_parameters():
            if name.startswith(ZERO):
                torch.nn.init.normal_(weight, std=0.05)
        return control


class RandomStableDiffusionXL(RandomStableDiffusion, StableDiffusionXL):
    """The same for a shape with a second text encoder."""

    def _draw_text(self, shape: Shape) -> None:
        super()._draw_text(shape)
        self.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**shape.text_encoder_2))
        self.tokenizer_2 = HashedWords(self.text_encoder_2.config)


def random_model(shape: Shape, **settings: Any) -> RandomStableDiffusion:
    """The model of a shape; settings as for RandomStableDiffusion."""
    kind = RandomStableDiffusion if shape.text_encoder_2 is None else RandomStableDiffusionXL
    return kind(shape, **settings)
