"""A condition: how it is detected, drawn, read back, compared and scored. One object serves the whole platform."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Task(ABC):
    """Maps are (B, C, H, W) float32; control images (B, 3, H, W) in [0, 1]; images (B, 3, H, W) in [0, 1]."""

    name: ClassVar[str]
    scores: ClassVar[dict[str, bool]]
    """Names of what score() returns, and whether higher is better."""
    gray: ClassVar[bool] = False
    """Whether the three channels of a control image are equal, so that caches keep one."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with everything that changes detect()."""

    @abstractmethod
    def detect(self, images: Tensor) -> Tensor:
        """The condition that images show."""

    @abstractmethod
    def render(self, maps: Tensor) -> Tensor:
        """The control image of maps."""

    @abstractmethod
    def parse(self, control: Tensor) -> Tensor:
        """The maps of a control image: parse(render(maps)) = maps."""

    @abstractmethod
    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """How far maps are from their target, (B,), 0 for equal maps."""

    @abstractmethod
    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The reported metrics by name ("canny/f1"), each (B,)."""
