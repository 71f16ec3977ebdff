"""What rewards share that ask whether a picture shows the condition that it was drawn from."""

from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.rewards.reward import Asked
from lpo_platform.tasks.task import Task


class OfCondition:
    """A `Reward` by the task's own detector. Subclasses set `name` and write `compare`.

    Args:
        batch: pictures of one forward of the detector.
        task: the run's.
    """

    name: ClassVar[str]
    input: ClassVar[str] = "condition"
    maps: ClassVar[str | None] = None
    """What a task must have `annotated` for it to read its maps; None for any task."""

    def __init__(self, batch: Count = 32, *, task: Task) -> None:
        if batch < 1:
            raise UserError(f"reward {self.name}: batch={batch}: must be at least 1 picture")
        self.task, self.batch = task, batch

    def reference(self, asked: Asked) -> Tensor:
        """What pictures are compared with, once for each of the P conditions: (P, ...)."""
        return asked.maps

    def compare(self, maps: Tensor, reference: Tensor) -> Tensor:
        """Compares the maps of b pictures with the reference of each: (b,)."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) float32. Raises UserError where pictures were drawn from prompts alone."""
        if condition is None:
            raise UserError(f"reward {self.name}: these pictures were drawn from no condition; it needs a task")
        scores = [torch.zeros(0, device=images.device)]
        with torch.autocast(images.device.type, enabled=False):
            reference = self.reference(condition)
            for start in range(0, len(images), self.batch):
                part = slice(start, start + self.batch)
                scores.append(self.compare(self.task.detect(images[part]), reference[condition.row[part]]))
        return torch.cat(scores)
