"""Where a picture is light and where dark: its brightness, blurred."""

import json
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.tasks.task import Gray


class Luminance(Gray):
    """The mean of the channels in squares of `cell` pixels, enlarged again: (B, 1, H, W) in [0, 1].

    Args:
        cell: the side of a square, in pixels. It must divide the side of the picture.
    """

    name: ClassVar[str] = "luminance"
    differentiable: ClassVar[bool] = True
    scores: ClassVar[dict[str, bool]] = {"luminance/rmse": False}

    def __init__(self, cell: int = 8) -> None:
        if cell < 1:
            raise UserError(f"task.cell={cell}: must be at least 1 pixel")
        self.cell = cell

    @property
    def fingerprint(self) -> str:
        return json.dumps([self.name, self.cell])

    def detect(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images.float().mean(1, keepdim=True), self.cell)
        return F.interpolate(means, images.shape[-2:], mode="nearest")

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"luminance/rmse": self.distance(maps, target).sqrt()}
