"""Whether pictures show the condition that other pictures show: the metrics of a task over two folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import save_png
from lpo_platform.evaluation.what.clip_lpips import opened, over, pictures_in
from lpo_platform.evaluation.what.oks import report
from lpo_platform.runs.record import write_json
from lpo_platform.tasks.task import Task


class Controllability:
    """A task's metrics of `generated` against what is detected in `originals`, folders of pictures of the same names.

    are: pictures, in which the task detects, or conditions, which it reads as they are. resolution: the side to which
    the largest central square of every picture is resized; null takes them as they are, pairs of one size.
    save: a folder that gets the condition of every generated picture.
    task: gives the task at a resolution.
    """

    def __init__(
        self,
        originals: str,
        generated: str,
        are: Literal["pictures", "conditions"] = "pictures",
        resolution: int | None = None,
        save: str | None = None,
        *,
        task: Callable[[int], Task],
    ) -> None:
        self.originals, self.generated, self.are = originals, generated, are
        self.resolution, self.save, self.task = resolution, save, task(resolution or 512)

    @torch.no_grad()
    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        originals, generated = pictures_in(self.originals), pictures_in(self.generated)
        counts: list[Tensor] = []
        left_out = {
            "missing in generated": sorted(set(originals) - set(generated)),
            "missing in originals": sorted(set(generated) - set(originals)),
        }

        def score(name: str) -> dict[str, float]:
            first, second = (opened(files[name], self.resolution).to(device) for files in (originals, generated))
            if self.are == "pictures" and first.shape != second.shape:
                raise UserError(f"{name}: two pictures of different size; what works: what.resolution=512")
            target, maps = self._maps(first), self._maps(second)
            if self.save is not None:
                save_png(self.task.render(maps)[0], Path(self.save).expanduser() / f"{name}.png")
            if (found := self.task.counts(maps, target)) is not None:
                counts.append(found.sum(0))
            judged = self.task.judge(second, target) if self.are == "pictures" else {}
            return {metric: float(value) for metric, value in (self.task.score(maps, target) | judged).items()}

        items = over([name for name in originals if name in generated], score, left_out)
        settings = {"what": "controllability", "task": self.task.name, "originals": self.originals,
                    "generated": self.generated, "are": self.are, "resolution": self.resolution}  # fmt: skip
        result = report(items, settings, left_out)
        if counts:
            result["pooled"] = {name: float(value) for name, value in self.task.pool(sum(counts)).items()}
        write_json(folder / "report.json", result)
        return result

    def _maps(self, pictures: Tensor) -> Tensor:
        return self.task.detect(pictures) if self.are == "pictures" else self.task.parse(pictures)
