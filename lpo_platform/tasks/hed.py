"""Soft edges by HED (Xie and Tu, arXiv 1504.06375), in the form that the published ControlNets were trained with."""

import json
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpo_platform.tasks.detector import Choice, Detector, Embedded, from_file, identity_of, wants_toy
from lpo_platform.tasks.ms_ssim import ms_ssim
from lpo_platform.tasks.task import Gray, eight_bit

PUBLISHED = "lllyasviel/Annotators::ControlNetHED.pth"


class _Stage(nn.Module):
    """Convolutions of VGG and the edge map of this resolution."""

    def __init__(self, channels_in: int, channels: int, depth: int) -> None:
        super().__init__()
        sizes = [channels_in] + [channels] * depth
        self.convs = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)))
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class HedNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W) in (0, 1); 14,716,168 weights, named as in ControlNetHED.pth."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        widths, depths = (3, 64, 128, 256, 512, 512), (2, 2, 3, 3, 3)
        for number, ((wide_in, wide), depth) in enumerate(zip(pairwise(widths), depths, strict=True), 1):
            self.add_module(f"block{number}", _Stage(wide_in, wide, depth))

    def forward(self, images: Tensor) -> Tensor:
        x, logits = (images * 255).clamp(0, 255) - self.norm, []
        for number in range(1, 6):
            x, logit = getattr(self, f"block{number}")(x if number == 1 else F.max_pool2d(x, 2))
            logits.append(F.interpolate(logit, images.shape[-2:], mode="bilinear"))
        return torch.stack(logits).mean(0).sigmoid()


class Hed(Gray):
    """Soft edges, (B, 1, H, W) in [0, 1], differentiable in the picture.

    Args:
        detector: `published`, `toy` (of the embedded world), or `auto`, which is toy where model or data are embedded.
        weights: a .pth or .safetensors file, as <file>, <folder>::<file> or <hub id>::<file>.
        pretrained: false draws the weights at random.
        uint8_floor: rounds the edges down to 256 levels, as ControlNet++ and CPO do. There is then no gradient.
    """

    name: ClassVar[str] = "hed"
    differentiable: ClassVar[bool] = True
    scores: ClassVar[dict[str, bool]] = {"hed/ms_ssim": True}

    def __init__(
        self,
        detector: Choice = "auto",
        weights: str = PUBLISHED,
        pretrained: bool = True,
        uint8_floor: bool = False,
        *,
        toy: bool = False,
    ) -> None:
        self.toy, self.uint8_floor = wants_toy(detector, toy), uint8_floor
        self.differentiable = not uint8_floor
        self.detector = Embedded() if self.toy else published(weights, pretrained)

    @property
    def fingerprint(self) -> str:
        return json.dumps([self.name, self.detector.identity, self.uint8_floor])

    def detect(self, images: Tensor) -> Tensor:
        found = self.detector(images)
        edges = found.edges if self.toy else found
        return eight_bit(edges.detach()) / 255 if self.uint8_floor else edges

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """In double precision, so that equal maps score 1."""
        return {"hed/ms_ssim": ms_ssim(maps.double(), target.double())}


def published(weights: str, pretrained: bool) -> Detector:
    return Detector(from_file(HedNetwork, weights, pretrained), identity_of(weights, pretrained))
