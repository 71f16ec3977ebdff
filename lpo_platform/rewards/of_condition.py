"""What the rewards have in common that ask whether a picture shows the condition it was drawn from."""

from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.rewards.reward import Asked
from lpo_platform.tasks.task import Task


class OfCondition:
    """A `Reward`: subclasses name themselves and write `compare`; the task's own detector looks at the pictures.

    batch: pictures looked at in one forward.
    """

    name: ClassVar[str]

    def __init__(self, batch: int = 32, *, task: Task) -> None:
        if batch < 1:
            raise UserError(f"reward {self.name}: batch={batch}: must be at least 1 picture")
        self.task, self.batch = task, batch

    def reference(self, asked: Asked) -> Tensor:
        """What pictures are compared with, of the P conditions once each: (P, ...)."""
        return asked.maps

    def compare(self, maps: Tensor, reference: Tensor) -> Tensor:
        """The maps of what b pictures show, and the reference of each -> (b,)."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) float32. UserError where the pictures were drawn from prompts alone."""
        if condition is None:
            raise UserError(f"reward {self.name}: these pictures were drawn from no condition; it needs a task")
        scores = [torch.zeros(0, device=images.device)]
        with torch.autocast(images.device.type, enabled=False):
            reference = self.reference(condition)
            for start in range(0, len(images), self.batch):
                part = slice(start, start + self.batch)
                scores.append(self.compare(self.task.detect(images[part]), reference[condition.row[part]]))
        return torch.cat(scores)
