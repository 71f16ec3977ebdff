"""The embedded data: procedural scenes as captioned pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Seed, Share
from lpo_platform.data.source import Sample
from lpo_platform.models.tiny.scenes import PEOPLE, ToySplit

if TYPE_CHECKING:
    from lpo_platform.models.tiny.judge import Judge
    from lpo_platform.tasks.task import Task


class ToySamples(ToySplit):
    """The scenes of a split as captioned pictures."""

    def __getitem__(self, i: int) -> Sample:
        scene = self.scene(i)
        name = f"toy-{self.split}-{self.seed}-{i:06d}"
        return Sample(id=name, image=scene.image.float() / 255, caption=scene.caption)


class Toy:
    """The embedded data: procedural scenes. About a tenth of the captions is held out for the test split.

    Args:
        num_train: scenes to train on.
        num_test: held-out scenes.
        seed: of the scenes. The held-out captions do not depend on it.
        people: share of the scenes with a person; null is 0.4, and 1 for task=pose, which scores people only.
        resolution: side of the pictures in pixels, a multiple of 8 and at least 32.
        task: the run's.

    Raises:
        ValueError: faces and limbs cannot be drawn at this resolution.
    """

    gives: ClassVar[tuple[str, ...]] = ("pictures", "prompts")
    toy: ClassVar[bool] = True

    def __init__(
        self,
        num_train: Count = 600,
        num_test: Count = 200,
        seed: Seed = 0,
        people: Share | None = None,
        *,
        resolution: Count = 64,
        task: Task | None = None,
    ) -> None:
        if resolution < 32 or resolution % 8:
            raise UserError(
                f"data=toy draws pictures whose side is a multiple of 8, at least 32, not {resolution}: "
                "choose a model with such a resolution (model=tiny has 64) or other data (data=folder)"
            )
        if people is None:
            people = 1 if task is not None and task.annotated == "people" else PEOPLE
        self.train = ToySamples("train", num_train, seed, resolution=resolution, people=people)
        self.test = ToySamples("test", num_test, seed, resolution=resolution, people=people)

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int:
        return settings["num_train"]

    @cached_property
    def judge(self) -> Judge:
        from lpo_platform.models.tiny.judge import Judge  # its weights are read at first use only

        return Judge.load()

    def alignment(self, images: Tensor, captions: list[str]) -> Tensor:
        """The share of the captioned attributes that pictures show: (B, 3, H, W) in [0, 1], B captions -> (B,)."""
        return self.judge.alignment(images, captions)

    def guards(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """The share of the picture that objects take, and every kind of attribute for every kind of prompt."""
        return self.judge.guards(images, captions)
