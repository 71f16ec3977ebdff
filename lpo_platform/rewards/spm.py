"""SPO's step-aware preference model (arXiv:2406.04314): a PickScore that also reads the timestep.

Pictures in the middle of a trajectory are predictions of x_0. Every layer of the vision transformer, and the pooled
token, is shifted and scaled by an embedding of the timestep (adaLN). Before training it equals PickScore at any t.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, normalize
from transformers import CLIPModel

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype
from lpo_platform.rewards.clip import VIT_H
from lpo_platform.rewards.pickscore import PickScore
from lpo_platform.rewards.reward import Asked, checked
from lpo_platform.tasks.detector import UNREADABLE, read_weights, weight_file

FREQUENCIES = 256
NAMES = ("model.safetensors", "pytorch_model.bin")


class SPM(PickScore):
    """exp(logit_scale) times the cosine of pictures predicted at t; differences are log-odds of being preferred.

    Args:
        weights: the published .bin, or a .safetensors, as a file, <hub id>::<file>, or a folder with it; null for an
            untrained model, which is PickScore.
        pickscore: folder or hub id of the PickScore that gives the shape of the model and its first weights.
        processor, batch, dtype: see PickScore.
    """

    name: ClassVar[str] = "spm"

    def __init__(
        self,
        weights: str | None = None,
        pickscore: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = VIT_H,
        batch: Count = 32,
        dtype: Dtype = "float32",
    ) -> None:
        super().__init__(pickscore, processor, batch, dtype)
        condition(self.model)
        if weights is not None:
            load_weights(self.model, weights)

    def forward(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        """Grades finished pictures, t = 0."""
        return self.at(images, prompts, torch.zeros(len(images), device=images.device))

    @torch.no_grad()
    def at(self, images: Tensor, prompts: list[str], t: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], B prompts and timesteps (B,) -> (B,) float32, in the precision of the weights."""
        scores = [torch.zeros(0, device=self.device)]
        with torch.autocast(self.device.type, enabled=False):
            text = self.encoded(prompts) if prompts else None
            for start in range(0, len(images), self.batch):
                part = slice(start, start + self.batch)
                picture = embed(self.model, self._resized(images[part]), t[part].to(self.device))
                cosine = F.cosine_similarity(picture.float(), text[part].float(), eps=0)
                scores.append(self.model.logit_scale.float().exp() * cosine)
        return checked(self.name, torch.cat(scores), len(images)).to(images.device)

    def _resized(self, images: Tensor) -> Tensor:
        """Resizes as in training: bicubic without antialiasing, not rounded to 8 bits."""
        processor = self.processor.image_processor
        side = processor.crop_size.height
        height, width = (int(size * side / min(images.shape[-2:]) + 0.5) for size in images.shape[-2:])
        pixels = F.interpolate(images.to(self.device, torch.float32), (height, width), mode="bicubic")
        pixels = center_crop(pixels, [side, side]).clamp(0, 1)
        return normalize(pixels, list(processor.image_mean), list(processor.image_std)).to(self.model.dtype)


def condition(model: CLIPModel) -> None:
    """Adds the layers that read the timestep, under the published names. They have no effect yet."""
    vision = model.vision_model
    width, layers = model.config.vision_config.hidden_size, vision.encoder.layers
    model.t_embedder = nn.Module()
    model.t_embedder.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
    for linear in (model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        nn.init.normal_(linear.weight, std=0.02)
    for block, count in [(vision, 2), *((layer, 6) for layer in layers)]:
        block.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))
        nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(block.adaLN_modulation[1].bias)
    for layer in layers:
        gates = layer.adaLN_modulation[1].bias.data.view(6, width)[[2, 5]]
        layer.adaLN_modulation[1].bias.data.view(6, width)[[2, 5]] = torch.ones_like(gates)
    model.to(model.logit_scale.device, model.dtype).requires_grad_(False)


def embed(model: CLIPModel, pixels: Tensor, t: Tensor) -> Tensor:
    """The vision tower: pixels (B, 3, s, s) and t (B,) -> (B, d)."""
    vision = model.vision_model
    waves = get_timestep_embedding(t, FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
    time = model.t_embedder.mlp(waves.to(pixels.dtype))
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = layer.adaLN_modulation(time)[:, None].chunk(6, -1)
        hidden = layer.layer_norm1(x) * (1 + scale) + shift
        x = x + gate * layer.self_attn(hidden_states=hidden, attention_mask=None)[0]
        hidden = layer.layer_norm2(x) * (1 + scale_mlp) + shift_mlp
        x = x + gate_mlp * layer.mlp(hidden)
    shift, scale = vision.adaLN_modulation(time).chunk(2, -1)
    return model.visual_projection(vision.post_layernorm(x[:, 0]) * (1 + scale) + shift)


def load_weights(model: CLIPModel, weights: str) -> None:
    """Puts the weights of a file into a conditioned CLIP; UserError where it is none or lacks some of them."""
    path = Path(weights).expanduser()
    file = weight_file(weights, setting="weights") if "::" in weights else path
    file = file if file.is_file() else next(_there(path), None)
    if file is None:
        raise UserError(f"weights={weights}: no such file, nor a folder with {' or '.join(NAMES)}; null is PickScore")
    try:
        state = {k.removeprefix("model."): v for k, v in read_weights(file).items() if not k.endswith("position_ids")}
        found = model.load_state_dict(state, strict=False)
    except UNREADABLE as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"weights={weights}: not the weights of a step-aware preference model. Reason: {reason}") from e
    if found.missing_keys or found.unexpected_keys:
        lacking, surplus = found.missing_keys[:1], found.unexpected_keys[:1]
        reason = f"no {lacking[0]}" if lacking else f"unknown {surplus[0]}"
        raise UserError(f"weights={weights}: not the weights of a step-aware preference model: {reason} in it")


def _there(folder: Path) -> Iterator[Path]:
    return (folder / name for name in NAMES if (folder / name).is_file())
