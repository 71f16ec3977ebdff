"""Whether pictures show the condition that other pictures show: the metrics of a task over two folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.numbers import Count
from lpo_platform.data.picture_files import BadPicture, save_png
from lpo_platform.evaluation.what.clip_lpips import opened, over, pairs_of
from lpo_platform.evaluation.what.oks import report
from lpo_platform.runs.record import write_json
from lpo_platform.tasks.task import Task

OTHER_SIZE = "two pictures of different size; what.resolution=512 makes them equal"


class Controllability:
    """Measures a task's metrics of `generated` against what is detected in `originals`.

    Args:
        originals: a folder of pictures.
        generated: a folder of pictures of the same names.
        are: `pictures`, in which the task detects, or `conditions`, which it reads as they are.
        resolution: the side to which the largest central square of every picture is resized; null takes pictures as
            they are, and both of a pair need one size.
        save: a folder that gets the condition of every generated picture.
        task: gives the task at a resolution.
    """

    paths: ClassVar[dict[str, str]] = {"originals": "folder", "generated": "folder"}
    needs_task: ClassVar[bool] = True

    def __init__(
        self,
        originals: str,
        generated: str,
        are: Literal["pictures", "conditions"] = "pictures",
        resolution: Count | None = None,
        save: str | None = None,
        *,
        task: Callable[[int], Task],
    ) -> None:
        self.originals, self.generated, self.are = originals, generated, are
        self.resolution, self.save, self.task = resolution, save, task(resolution or 512)

    @torch.no_grad()
    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        pairs, left_out = pairs_of("originals", self.originals, "generated", self.generated)
        counts: list[Tensor] = []

        def score(name: str) -> dict[str, float]:
            first, second = (opened(file, self.resolution).to(device) for file in pairs[name])
            if first.shape != second.shape and not (self.are == "conditions" and self.task.resizes):
                raise BadPicture(OTHER_SIZE)
            target, maps = self._maps(first), self._maps(second)
            if self.save is not None:
                save_png(self.task.render(maps)[0], Path(self.save).expanduser() / f"{name}.png")
            if (found := self.task.counts(maps, target)) is not None:
                counts.append(found.sum(0))
            judged = self.task.second_scores(second, target) if self.are == "pictures" else {}
            return {metric: float(value) for metric, value in (self.task.score(maps, target) | judged).items()}

        items = over(list(pairs), score, left_out)
        settings = {"what": "controllability", "task": self.task.name, "originals": self.originals,
                    "generated": self.generated, "are": self.are, "resolution": self.resolution}  # fmt: skip
        result = report(items, settings, left_out)
        if counts:
            result["pooled"] = {name: float(value) for name, value in self.task.pool(sum(counts)).items()}
        write_json(folder / "report.json", result)
        return result

    def _maps(self, pictures: Tensor) -> Tensor:
        if self.are == "pictures":
            return self.task.detect(pictures)
        try:
            return self.task.parse(pictures)
        except ValueError as error:
            raise BadPicture(str(error)) from error
