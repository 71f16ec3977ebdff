"""The contract of a task: how a condition is detected, drawn, read back, compared and scored."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor


class Task(ABC):
    """A condition that a ControlNet is steered by.

    Maps, (B, C, H, W) float32, are what a detector finds. Control images, (B, 3, H, W) in [0, 1], are how a ControlNet
    sees them. Images are (B, 3, H, W) in [0, 1].
    """

    name: ClassVar[str]
    scores: ClassVar[dict[str, bool]]
    """The names of what score() returns, and whether higher is better."""
    pooled: ClassVar[dict[str, bool]] = {}
    """The same for what pool() returns: metrics of a whole set that are no mean over its items."""
    gray: ClassVar[bool] = False
    """Whether the three channels of a control image are equal, so that caches keep one."""
    categorical: ClassVar[bool] = False
    """Whether a control image holds colours of labels, which must not be blended."""
    nearest: ClassVar[bool] = False
    """Whether control images are resized by nearest only: their edges are binary, or their colours are labels."""
    differentiable: ClassVar[bool] = False
    """Whether loss() has a gradient in the images; an instance whose settings take it away says False."""
    bounded: bool = True
    """Whether the control images of training lie in [0, 1], so that caches keep 8 bits of them."""
    train_form: str | None = None
    """The form of detected control images in training, None where it is that of evaluation."""
    resizes: ClassVar[bool] = False
    """Whether score() compares maps of different sizes."""
    annotated: ClassVar[Literal["classes", "people"] | None] = None
    """What labels of its maps are in data: numbers of classes (`classes` says how many there are), or keypoints."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A key of caches. It changes with everything that changes detect() or render()."""

    @abstractmethod
    def detect(self, images: Tensor) -> Tensor:
        """The condition that images show."""

    @abstractmethod
    def render(self, maps: Tensor) -> Tensor:
        """The control image of maps."""

    def shown_in_training(self, images: Tensor) -> Tensor:
        """The control image that training shows for pictures: that of evaluation, unless a task trains with another."""
        return self.render(self.detect(images))

    def agreement(self, control: Tensor, maps: Tensor) -> Tensor | None:
        """The share of the maps that annotated control images show, (B,). Below one half the data are taken to be
        wrong.

        nan where the maps hold nothing. None where a task cannot tell.
        """
        return None

    def worse(self, images: Tensor, control: Tensor) -> Tensor:
        """The losing condition: the control image of what is detected in pictures that were drawn from `control`."""
        return self.shown_in_training(images)

    @abstractmethod
    def parse(self, control: Tensor) -> Tensor:
        """The maps of a control image: parse(render(maps)) = maps."""

    @abstractmethod
    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """The distance of maps from their target, (B,). It is 0 for equal maps."""

    def target(self, images: Tensor, maps: Tensor) -> Tensor:
        """What loss() compares with, from pictures and their maps. It is the maps unless loss() needs more."""
        return maps

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        """The distance of what images show from target(), (B,): the reward loss of ControlNet++ (arXiv:2404.07987)."""
        return self.distance(self.detect(images), target)

    @abstractmethod
    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The reported metrics by name ("canny/f1"), (B,) each. nan marks an item on which a metric is undefined."""

    def second_scores(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Metrics by a second detector, which no reward and no loss uses. {} where a task has none."""
        return {}

    def grouped(self, maps: list[Tensor], target: Tensor) -> dict[str, Tensor]:
        """Metrics of several pictures of an item taken together, (B,), where they are not the mean of score()."""
        return {}

    def counts(self, maps: Tensor, target: Tensor) -> Tensor | None:
        """What each item adds to the pooled metrics, with a first axis B. None where there are no pooled metrics."""
        return None

    def pool(self, counts: Tensor) -> dict[str, Tensor]:
        """The pooled metrics by name, from summed counts. Further axes in front are kept."""
        return {}


class Gray(Task):
    """A task whose maps, (B, 1, H, W) in [0, 1], repeated to three channels, are the control image."""

    gray: ClassVar[bool] = True

    def render(self, maps: Tensor) -> Tensor:
        return maps.clamp(0, 1).expand(-1, 3, -1, -1)

    def parse(self, control: Tensor) -> Tensor:
        return control[:, :1]

    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """Mean squared difference."""
        return (maps - target).square().flatten(1).mean(1)


def unmixed(images: Tensor) -> AbstractContextManager:
    """Switches autocast off, so that the precision is that of the tensors. The meta device has no autocast."""
    return nullcontext() if images.is_meta else torch.autocast(images.device.type, enabled=False)


def eight_bit(maps: Tensor) -> Tensor:
    """[0, 1] -> whole numbers 0 to 255 as float, truncated as a conversion to uint8 does."""
    return torch.floor(maps.clamp(0, 1) * 255)
