"""A condition: how it is detected, drawn, read back, compared and scored. One object serves the whole platform."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor


class Task(ABC):
    """Maps are (B, C, H, W) float32; control images (B, 3, H, W) in [0, 1]; images (B, 3, H, W) in [0, 1]."""

    name: ClassVar[str]
    scores: ClassVar[dict[str, bool]]
    """Names of what score() returns, and whether higher is better."""
    pooled: ClassVar[dict[str, bool]] = {}
    """The same for what pool() returns: metrics of a whole set that are no mean over its items."""
    gray: ClassVar[bool] = False
    """Whether the three channels of a control image are equal, so that caches keep one."""
    categorical: ClassVar[bool] = False
    """Whether a control image is one of label colours, between which there is nothing."""

    resizes: ClassVar[bool] = False
    """Whether score() compares maps of different sizes."""
    annotated: ClassVar[Literal["classes", "people"] | None] = None
    """What labels of its maps are in data: numbers of classes (`classes` says how many there are), or keypoints."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with everything that changes detect() or render()."""

    @property
    def differentiable(self) -> bool:
        """Whether loss() has a gradient in the images."""
        return False

    @abstractmethod
    def detect(self, images: Tensor) -> Tensor:
        """The condition that images show."""

    @abstractmethod
    def render(self, maps: Tensor) -> Tensor:
        """The control image of maps."""

    def agreement(self, control: Tensor, maps: Tensor) -> Tensor | None:
        """Share of the maps that annotated control images show, (B,), of which below a half is a mistake in the data.

        nan where the maps hold nothing. None where a task cannot tell.
        """
        return None

    def worse(self, images: Tensor, control: Tensor) -> Tensor:
        """The control image of what pictures show that were drawn from `control`: a losing condition."""
        return self.render(self.detect(images))

    @abstractmethod
    def parse(self, control: Tensor) -> Tensor:
        """The maps of a control image: parse(render(maps)) = maps."""

    @abstractmethod
    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """How far maps are from their target, (B,), 0 for equal maps."""

    def target(self, images: Tensor, maps: Tensor) -> Tensor:
        """What loss() compares with, of pictures and their maps: these, unless it sees more than a condition shows."""
        return maps

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        """How far what images show is from target(), (B,): the reward loss of ControlNet++ (arXiv:2404.07987)."""
        return self.distance(self.detect(images), target)

    @abstractmethod
    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The reported metrics by name ("canny/f1"), each (B,), nan where an item has none."""

    def judge(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Metrics by a second detector, through which no reward and no loss looks; {} where a task has none."""
        return {}

    def grouped(self, maps: list[Tensor], target: Tensor) -> dict[str, Tensor]:
        """Metrics of score() for several pictures of an item taken as one, (B,), where that is not their mean."""
        return {}

    def counts(self, maps: Tensor, target: Tensor) -> Tensor | None:
        """What each item adds to the pooled metrics, with a first axis B; None where there are none."""
        return None

    def pool(self, counts: Tensor) -> dict[str, Tensor]:
        """The pooled metrics by name from summed counts; further axes in front stay."""
        return {}


class Gray(Task):
    """Maps (B, 1, H, W) in [0, 1] that are their own control image, repeated to three channels."""

    gray: ClassVar[bool] = True

    def render(self, maps: Tensor) -> Tensor:
        return maps.clamp(0, 1).expand(-1, 3, -1, -1)

    def parse(self, control: Tensor) -> Tensor:
        return control[:, :1]

    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """Mean squared difference."""
        return (maps - target).square().flatten(1).mean(1)


def unmixed(images: Tensor) -> AbstractContextManager:
    """Inside, the precision is that of the tensors, whatever autocast the caller is in; the meta device has none."""
    return nullcontext() if images.is_meta else torch.autocast(images.device.type, enabled=False)


def eight_bit(maps: Tensor) -> Tensor:
    """[0, 1] -> whole numbers 0 to 255 as float, cut off as a conversion to uint8 does it."""
    return torch.floor(maps.clamp(0, 1) * 255)
