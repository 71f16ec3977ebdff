"""How close what a task finds in a picture is to what was asked for: a reward for any task."""

from typing import ClassVar

from torch import Tensor

from lpo_platform.config.errors import UserError, hint
from lpo_platform.config.numbers import Count
from lpo_platform.rewards.of_condition import OfCondition
from lpo_platform.tasks.task import Task


class Consistency(OfCondition):
    """A score of the task, with the sign that makes higher better.

    A score may be undefined for some pictures, such as the AP of a picture without people. That is an error here. The
    distance is always defined.

    Args:
        score: name of one of the task's scores; null is minus its distance.
        batch: pictures of one forward of the detector.
        task: the run's.
    """

    name: ClassVar[str] = "consistency"

    def __init__(self, score: str | None = None, batch: Count = 32, *, task: Task) -> None:
        super().__init__(batch, task=task)
        if score is not None and score not in task.scores:
            raise UserError(f"score={score}: task={task.name} has none{hint(score, task.scores)}")
        self.score = score

    def compare(self, maps: Tensor, reference: Tensor) -> Tensor:
        if self.score is None:
            return -self.task.distance(maps, reference)
        found = self.task.score(maps, reference)[self.score]
        return found if self.task.scores[self.score] else -found
