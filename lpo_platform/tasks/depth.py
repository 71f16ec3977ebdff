"""Depth maps by DPT or Depth-Anything."""

import io
import json
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForDepthEstimation, DPTConfig

from lpo_platform.config.numbers import Quality
from lpo_platform.tasks.detector import (
    Choice,
    Detector,
    Embedded,
    Preprocessing,
    from_transformers,
    identity_of,
    wants_toy,
)
from lpo_platform.tasks.task import Gray, eight_bit

PUBLISHED = "Intel/dpt-large"


def small() -> DPTConfig:
    """A DPT of 0.1 million weights."""
    return DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16,
    )  # fmt: skip


class DepthNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 1, h, w), relative inverse depth at the network's own size; larger is nearer."""

    def __init__(self, weights: str, pretrained: bool) -> None:
        super().__init__()
        self.model = from_transformers(lambda _: AutoModelForDepthEstimation, weights, pretrained, small)
        half = ((0.5,) * 3, (0.5,) * 3)
        self.preprocessing = Preprocessing(weights, default=half, pretrained=pretrained)
        self.side = self.preprocessing.size.get("height") or getattr(self.model.config, "image_size", None) or 384
        self.patch = getattr(self.model.config, "patch_size", None) or 32

    def forward(self, images: Tensor, mode: str = "bicubic") -> Tensor:
        """mode: how pictures are resized to the network's size."""
        scale = self.side / min(images.shape[-2:])
        size = [self.patch * max(1, round(scale * side / self.patch)) for side in images.shape[-2:]]
        pixels = F.interpolate(self.preprocessing(images), size, mode=mode, antialias=True)
        return self.model(pixel_values=pixels).predicted_depth[:, None]


class Depth(Gray):
    """Relative depth, (B, 1, H, W), stretched to [0, 1] in every picture; 1 is near.

    Args:
        detector: `published`, `toy` (of the embedded world), or `auto`, which is toy where model or data are embedded.
        weights: folder or hub id of any depth model of transformers. Published: Intel/dpt-large.
        pretrained: false draws the weights at random.
        jpeg_quality: writes the control image as a JPEG of this quality and reads it back, as the published data were
            (75); null does not. CPO lets the overshoot of bicubic enlargement wrap around; here it is clamped.
    """

    resizes: ClassVar[bool] = True
    name: ClassVar[str] = "depth"
    differentiable: ClassVar[bool] = True
    scores: ClassVar[dict[str, bool]] = {"depth/rmse": False}

    def __init__(
        self,
        detector: Choice = "auto",
        weights: str = PUBLISHED,
        pretrained: bool = True,
        jpeg_quality: Quality | None = None,
        *,
        toy: bool = False,
    ) -> None:
        self.toy, self.jpeg_quality = wants_toy(detector, toy), jpeg_quality
        self.detector = Embedded() if self.toy else published(weights, pretrained)

    @property
    def fingerprint(self) -> str:
        return json.dumps([self.name, self.detector.identity, self.jpeg_quality])

    def detect(self, images: Tensor) -> Tensor:
        depth = stretched(self._depth(images))
        if depth.shape[-2:] == images.shape[-2:]:
            return depth
        return F.interpolate(depth, images.shape[-2:], mode="bicubic").clamp(0, 1)

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        """Mean squared difference of depths divided by their largest value, not stretched to 0.

        The network sees the pictures resized bilinearly, as in train/reward_control.py of ControlNet_Plus_Plus.
        """
        found = self._depth(images, **({} if self.toy else {"mode": "bilinear"}))
        found = F.interpolate(found, target.shape[-2:], mode="bilinear", antialias=True)
        return self.distance(scaled(found), scaled(target))

    def _depth(self, images: Tensor, **options: str) -> Tensor:
        """The depth as the network gives it, at its own size."""
        found = self.detector(images, **options)
        return found.depth if self.toy else found

    def render(self, maps: Tensor) -> Tensor:
        return super().render(maps if self.jpeg_quality is None else smoothed(maps, self.jpeg_quality))

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"depth/rmse": rmse(maps, target)}


def stretched(depth: Tensor) -> Tensor:
    """Stretches every map of (B, 1, H, W) from its smallest to its largest value to [0, 1]. A flat map is 0."""
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    return (depth - low) / (high - low).clamp_min(1e-8)


def scaled(depth: Tensor) -> Tensor:
    """Divides every map of (B, 1, H, W) by its largest value."""
    return depth / depth.amax((1, 2, 3), keepdim=True).clamp_min(1e-8)


def rmse(prediction: Tensor, label: Tensor) -> Tensor:
    """The published error, (B,), on the scale 0 to 255: prediction (B, 1, h, w), label (B, 1, H, W), of any range.

    Both are stretched and truncated to 8 bits; the prediction is then enlarged bilinearly as an 8-bit picture
    (eval/eval.py of ZonglinL/CPO).
    """
    wanted = eight_bit(stretched(label.double()))
    found = eight_bit(stretched(prediction.double()))
    if found.shape != wanted.shape:
        found = F.interpolate(found, wanted.shape[-2:], mode="bilinear", antialias=True).round()
    return (found - wanted).square().flatten(1).mean(1).sqrt()


def smoothed(maps: Tensor, quality: int) -> Tensor:
    """(B, 1, H, W) in [0, 1] through an 8-bit JPEG of that quality and back; values outside are clamped first."""
    return torch.stack([_through_jpeg(map_[0], quality) for map_ in eight_bit(maps.detach())])[:, None].to(maps) / 255


def _through_jpeg(levels: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(levels.byte().cpu().numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(levels.shape)


def published(weights: str, pretrained: bool) -> Detector:
    return Detector(DepthNetwork(weights, pretrained), identity_of(weights, pretrained))
