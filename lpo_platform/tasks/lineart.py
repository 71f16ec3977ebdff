"""Line drawings by the network of Informative Drawings (Chan et al., arXiv 2203.12691)."""

import json
from typing import ClassVar

import torch
from torch import Tensor, nn

from lpo_platform.tasks.detector import Choice, Detector, Embedded, from_file, identity_of, wants_toy
from lpo_platform.tasks.ms_ssim import ms_ssim
from lpo_platform.tasks.task import Gray, eight_bit

PUBLISHED = "spaces/awacke1/Image-to-Line-Drawings::model.pth"


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def _down(a: int, b: int) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.InstanceNorm2d(b), nn.ReLU()]


def _up(a: int, b: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), nn.InstanceNorm2d(b), nn.ReLU()]


class LineNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W), about 1 on paper and 0 on lines; H and W are multiples of 4.

    4,290,945 weights, named as in the published model.pth.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), nn.InstanceNorm2d(64), nn.ReLU())
        self.model1 = nn.Sequential(*_down(64, 128), *_down(128, 256))
        self.model2 = nn.Sequential(*(_Residual(256) for _ in range(3)))
        self.model3 = nn.Sequential(*_up(256, 128), *_up(128, 64))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        return self.model4(self.model3(self.model2(self.model1(self.model0(images)))))


class Lineart(Gray):
    """Lines, (B, 1, H, W) in [0, 1], 1 on a line: the inverse of what the network draws.

    Args:
        detector: `published`, `toy` (of the embedded world), or `auto`, which is toy where model or data are embedded.
        weights: a .pth or .safetensors file, as <file>, <folder>::<file> or <hub id>::<file>.
        pretrained: false draws the weights at random.
        uint8_wrap: computes the score of the published table (eval/eval.py of ZonglinL/CPO), where 1 - x of a uint8
            drawing wraps around, so that lines of 0 or 1 turn black. Equal maps then score less than 1.
    """

    name: ClassVar[str] = "lineart"
    differentiable: ClassVar[bool] = True
    scores: ClassVar[dict[str, bool]] = {"lineart/ms_ssim": True}

    def __init__(
        self,
        detector: Choice = "auto",
        weights: str = PUBLISHED,
        pretrained: bool = True,
        uint8_wrap: bool = False,
        *,
        toy: bool = False,
    ) -> None:
        self.toy, self.uint8_wrap = wants_toy(detector, toy), uint8_wrap
        self.detector = Embedded() if self.toy else published(weights, pretrained)

    @property
    def fingerprint(self) -> str:
        return json.dumps([self.name, self.detector.identity])

    def detect(self, images: Tensor) -> Tensor:
        found = self.detector(images)
        return found.lines if self.toy else 1 - found

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """In double precision, so that equal maps score 1."""
        if self.uint8_wrap:
            maps = wrapped(eight_bit(1 - maps).to(torch.uint8)) / 255
        return {"lineart/ms_ssim": ms_ssim(maps.double(), target.double())}


def wrapped(drawing: Tensor) -> Tensor:
    """1 - x modulo 256, which the published evaluation computes as the inverse of a uint8 drawing."""
    return (1 - drawing.int()) % 256


def published(weights: str, pretrained: bool) -> Detector:
    return Detector(from_file(LineNetwork, weights, pretrained), identity_of(weights, pretrained))
